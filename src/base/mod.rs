//! What every room speaks: identities, units, promises, randomness. Level 0, imports nothing of the crate.
pub mod ids;
pub mod rng;
pub mod slo;
pub mod units;

pub use ids::{MODEL_NAME_BYTES_MAX, ModelName, PodId, RequestId};
pub use rng::Rng;
pub use slo::Slo;
pub use units::{Mono, Tokens};
