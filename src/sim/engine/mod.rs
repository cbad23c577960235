//! The simulated engine: one data-parallel rank of a vLLM server, as a pure state machine over virtual time.
//!
//! `Engine` schedules as vLLM's V1 scheduler does (running first, chunked prefill with what is left of the token budget,
//! then the queue; the last one is preempted when blocks run out), `BlockPool` is its prefix cache, `StepCost` the time a
//! step takes, `tokenizer` and `content` the made-up language in which prompts are counted and answers written.
//! No socket, clock, lock or ambient randomness here: the same submissions at the same instants give the same events.
pub mod content;
mod cost;
mod job;
mod pool;
mod rank;
pub mod tokenizer;

pub use cost::StepCost;
pub use job::{EngineSettings, Event, EventKind, Job, Prompt, Refusal, Stats};
pub use rank::Engine;
