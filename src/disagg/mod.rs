//! Prefill on one pod, decode on another: whether, with which bodies, and what becomes of it when something fails.
//!
//! The gate sends both legs itself. [`obstacle()`] says whether a request can be split at all, [`Around::plan`] on which
//! pods, and whether it should be ([`weigh`]), a [`Connector`] what goes into the bodies, [`Lease`] how long a prefill may be used, [`Sentinel`] whether the decoder read
//! what the prefiller wrote, [`Pairs`] what was learnt of two pods together, and [`Life`] what to do next after anything that
//! can happen. All of it is pure; the legs themselves are in `proxy::legs`.
//!
//! Why so careful: a lease that ran out is no error to vLLM 0.32. The decoder reads whatever is in the blocks by then, answers
//! 200 with wrong text, and keeps the wrong KV in its prefix cache.
mod balance;
mod body;
mod connector;
mod connectors;
mod decider;
mod expired;
mod lease;
mod life;
mod obstacle;
mod pairs;
mod plan;
mod sentinel;
mod settings;

pub use balance::{Balance, Balances, Got};
pub use body::{Legs, decode_body, prefill_body, salted};
pub use connector::{BadReply, Connector, Handover};
pub use connectors::connector;
pub use decider::{Choice, Costs, Reason, Way, weigh};
pub use expired::kv_expired;
pub use lease::{Lease, Timing};
pub use life::{Act, Check, DecodeFault, Event, Life, Outcome, PrefillFault, Rules, Want};
pub use obstacle::{Obstacle, obstacle};
pub use pairs::{Pairs, Wire};
pub use plan::{Around, Pair, Placed, Plan};
pub use sentinel::{Proof, Sampling, Sentinel};
pub use settings::{ConnectorName, Decider, Fallback, Settings};
