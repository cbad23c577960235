//! Whether a request may go now, and whether it may go again.
//!
//! Pure machines with `now` as an argument: [`Gate`] admits, [`Limits`] holds tenants to what they may use, [`Sessions`] how many sessions
//! may be active, [`Queue`] whose turn it is at which pod, [`RetryBudget`] and [`may_retry`] decide on second attempts, [`PoisonGuard`] keeps a body that kills pods from walking through the fleet. [`ByteBudget`] bounds the memory of bodies.
//! None of them waits, logs or counts: the caller turns effects into calls. All state is bounded by named limits.
//!
//! Where a pod is chosen is not decided here (that is `scheduling`), nor what a client sees (that is `proxy`): a refusal is
//! a reason and a time.
pub mod asked;
pub mod budget;
pub mod bytes;
pub mod caller;
pub mod gate;
#[cfg(test)]
mod history;
pub mod keys;
pub mod limits;
pub mod poison;
pub mod queue;
pub mod refusal;
pub mod retry;
pub mod sessions;
mod share;
pub mod slo;
pub mod tenant;
pub mod zero;

pub use asked::{CLASS_HEADERS, Chosen, Ignored};
pub use budget::{Budgets, RetryBudget, RetrySettings};
pub use bytes::{ByteBudget, Held};
pub use caller::{Caller, Class, Trust};
pub use gate::{Arrival, Effect, Effects, Event, Gate, GateSettings, TicketId};
pub use keys::{BadKeys, Denied, Keys, tenant_name_problem};
pub use limits::{Bounds, Charge, Limits, Used};
pub use poison::{BodyKey, PoisonGuard};
pub use queue::{
    Backlog, Bound, ClassRules, ClassSettings, Classes, EngineState, Pool, Queue, QueueSettings, Room, Rooms, Spot,
    WhenFull, Wish,
};
pub use refusal::{Reason, Refusal};
pub use retry::{Failure, Replay, RetryClass, Setback, Stop, Verdict, classify, may_retry};
pub use sessions::{SessionSettings, Sessions};
pub use slo::{SloSettings, deadline_s};
pub use tenant::{Policy, TenantLimits, TenantSettings, Tenants};
pub use zero::ZeroSettings;
