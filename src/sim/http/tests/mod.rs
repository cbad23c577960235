//! Tests over real sockets on 127.0.0.1. `client` is a bare HTTP/1.1 client that sees every byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod client;
mod faults;
mod serving;
mod shapes;
