//! What the rooms that do I/O share: the one clock and the one way to start a task.
//!
//! [`now`] is the only reader of the monotonic clock, [`supervise`] the only caller of `spawn`.
mod clock;
mod file;
mod task;

pub use clock::{now, unix_ms, unix_us};
pub use file::replace;
pub use task::{Task, spawn_connection, supervise};
