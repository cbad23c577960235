//! What a prompt has in common with earlier ones, and which pod has seen those: prompt → chained block hashes
//! ([`Fingerprint`]), and a bounded map from blocks to the pods that hold them ([`Index`]).
//!
//! All of it is an estimate made from bytes: no tokenizer, no template. It may cost quality when wrong, never an answer.
//!
//! ```text
//! canon, message, traits   body -> canonical bytes            run, slab      runs of blocks and where they live
//! writer, fingerprint      bytes -> blocks, chained           tree, walk     what is held, and how deep along a prompt
//! extension                answer -> blocks behind a prompt   order, tenants what goes first when room is needed
//! scale, ratio             blocks -> tokens                   truth          what usage says about beliefs
//! hits, index              what others see                    snapshot, restore  over a restart
//! isolation                salts that keep tenants apart
//! ```
pub mod anchor;
mod canon;
pub mod extension;
pub mod fingerprint;
pub mod hits;
pub mod index;
pub mod isolation;
mod message;
mod order;
mod ratio;
mod restore;
mod run;
mod scale;
mod slab;
pub mod snapshot;
mod tenants;
mod traits;
mod tree;
mod truth;
mod walk;
mod writer;

#[cfg(test)]
mod tests;

pub use anchor::{Anchor, Anchors};
pub use extension::{Answered, Extension};
pub use fingerprint::{BLOCK_BYTES, Boundary, Chain, Fingerprint, Seed};
pub use hits::Hits;
pub use index::{Claim, Index, Limits, Stats};
pub use isolation::SaltKey;
pub use snapshot::{BadSnapshot, PodName, Snapshot};
