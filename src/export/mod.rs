//! What leaves the process about itself: Prometheus text and the access log.
//!
//! [`prometheus::render`] writes every metric of the table in `observe`; [`access_log`] writes lines from a thread of its own
//! and never makes a request wait. Neither knows prompts, keys or bodies.
pub mod access_log;
pub mod prometheus;

pub use access_log::{AccessLog, Target};
pub use prometheus::{Scrape, render};
