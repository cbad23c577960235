//! What a prompt has in common with earlier ones, and which pod has seen those: prompt → chained block hashes
//! ([`Fingerprint`]), and a bounded map from blocks to the pods that hold them ([`Index`]).
//!
//! All of it is an estimate made from bytes: no tokenizer, no template. It may cost quality when wrong, never an answer.
mod canon;
pub mod fingerprint;
pub mod index;
mod ratio;
mod run;

#[cfg(test)]
mod tests;

pub use fingerprint::{BLOCK_BYTES, Chain, Fingerprint, Seed};
pub use index::{Claim, Hits, Index, Limits, Stats};
