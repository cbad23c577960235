//! What leaves the process about itself: Prometheus text, the access log, traces.
//!
//! [`prometheus::render`] writes every metric of the table in `observe`; [`access_log`] writes lines from a thread of its own
//! and never makes a request wait, and so does [`otlp`] with spans. None knows prompts, keys or bodies.
pub mod access_log;
pub mod otlp;
pub mod prometheus;

pub use access_log::{AccessLog, Target};
pub use otlp::{Exporter, OtlpError, Spans};
pub use prometheus::{Scrape, render};
