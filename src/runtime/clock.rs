//! Time since the process started, as data for the rooms that decide.
#![allow(clippy::disallowed_methods, reason = "the one place that reads the clocks")]
use std::sync::OnceLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::base::Mono;

/// Now, on the monotonic clock. Never goes back, whatever happens to the wall clock.
pub fn now() -> Mono {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    Mono(u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX))
}

/// Wall-clock time in microseconds since 1970, for log lines and traces only.
pub fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// Wall-clock time in milliseconds since 1970, for log lines only.
pub fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
