//! The socket face of the simulated engine: pods that speak HTTP/1.1 as vLLM 0.32 behind uvicorn does, with faults.
//!
//! `SimPod` is one pod on 127.0.0.1, `Fleet` several, `SimArgs` and `run` the `tidegate sim` command. What arrives is kept
//! in a bounded log that tests read; what goes wrong is told by a `Script` of rules. The server is written by hand on
//! tokio and httparse because faults need every byte of an answer. Only for tests and demonstrations: no TLS, no HTTP/2.
mod ask;
mod audio;
mod body;
mod chat;
mod completions;
mod config;
mod connection;
mod dialect;
pub mod expect;
mod faults;
mod fleet;
mod handover;
mod head;
mod host;
mod json;
mod log;
mod messages;
mod metrics;
mod plain;
mod pod;
mod pooling;
mod ranks;
mod refuse;
mod responses;
mod routes;
mod script;
#[cfg(test)]
mod tests;
mod tokens;
mod transfer;
mod wire;

pub use config::{Serves, SimConfig, SimRole};
pub use fleet::{Fleet, SimArgs, run};
pub use handover::Handover;
pub use log::{Arrival, Ended};
pub use pod::SimPod;
pub use script::{Cut, Fault, Framing, KvFault, MetricsFault, Rule, Script};
pub use transfer::SimConnector;
