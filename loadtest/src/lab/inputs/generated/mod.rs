//! Workloads that need no file. Every number follows from the settings and the seed.
mod agent;
mod b2b;
mod bursts;
mod chat;
mod mixed;

pub(crate) use agent::Agent;
pub(crate) use b2b::B2b;
pub(crate) use bursts::Bursts;
pub(crate) use chat::Chat;
pub(crate) use mixed::Mixed;
