//! Room `sim`: simulated vLLM pods.
//!
//! `engine` is the pure model of one vLLM engine (batching, prefix cache, preemption, step time); time is an argument, so
//! the same code serves a policy lab without sockets. `http` puts vLLM 0.32's HTTP face and scripted faults around it: the
//! pods of tests, of `tidegate sim` and of `tidegate demo`. `content` is the rule by which a client checks every byte.
pub mod engine;
pub mod http;

/// What a simulated pod answers, and how a client can know it beforehand.
pub mod content {
    pub use super::engine::content::{natural_tokens, piece, seed, text, token};
    pub use super::http::expect::{Expected, expected};
}
