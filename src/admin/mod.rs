//! The listener for operators: health, readiness, metrics, explained decisions, pods, safe mode, and a page that shows them.
//!
//! It has a thread and an event loop of its own ([`spawn_thread`]), so it answers while the data plane is saturated or
//! drains. Loopback by default; nothing it shows holds a prompt, a key or a body. Only safe mode and the fleet
//! ([`PodChange`]) can be changed. Browsers
//! are answered under names only that nobody outside can own (`hosts`).
mod answer;
mod board;
mod dashboard;
mod feed;
mod hosts;
mod http;
mod roster;
mod server;
pub mod settings;

pub use answer::{AdminState, Answer, Replay, answer};
pub use roster::{Origins, PodChange, Roster};
pub use server::{Admin, CONNECTIONS_MAX, spawn_thread};
pub use settings::Settings;
