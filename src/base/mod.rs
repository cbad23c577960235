//! What every room speaks: identities, units, randomness. Level 0, imports nothing of the crate.
pub mod ids;
pub mod rng;
pub mod units;

pub use ids::{MODEL_NAME_BYTES_MAX, ModelName, PodId, RequestId};
pub use rng::Rng;
pub use units::{Mono, Tokens};
