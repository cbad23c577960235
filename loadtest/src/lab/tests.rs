//! The lab on small cells.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
