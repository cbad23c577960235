//! The data path: accepts, checks, plans, forwards, streams back.
//!
//! A connection enters through [`accept`] wrapped by [`guard`] (with [`lint`] and [`floods`]); each request on it goes
//! `gate` → `exchange` ([`frame`], route, `identity`) → `intake` (body, anatomy, model, fingerprint, admission) → `plan` → `attempt`
//! ([`headers`], [`upstream`]) → `relay` → access line. What a client sees of any failure is in [`reply`].
//!
//! On Pingora: its HTTP/1 and HTTP/2 server sessions are used through `HttpServerApp`, not `ProxyHttp`. The latter's native
//! forwarding can't be used once a body was read, and without it the phases around it only cost.
mod absent;
pub mod accept;
mod affinity;
mod asks;
mod attempt;
mod chunks;
mod client;
mod exchange;
pub mod floods;
pub mod frame;
pub mod gate;
pub mod guard;
mod guards;
pub mod headers;
mod identity;
mod intake;
mod legs;
pub mod lint;
pub mod lobby;
mod local;
pub mod memory;
mod plan;
mod prefill;
pub mod prewarm;
pub mod quota;
mod realtime;
mod relay;
pub mod reply;
mod rewrite;
pub mod routing;
pub mod rules;
pub mod settings;
mod shown;
mod side;
mod sockets;
mod trace;
mod trial;
mod turn;
pub mod upstream;
pub mod waitroom;

pub use accept::{Bound, Workers, start};
pub use gate::{Gate, GateApp, Hook, Parts, Phase, SpanSink};
pub use plan::OUTPUT_TOKENS;
pub use rewrite::Targets;
pub use routing::{Routing, Selection};
pub use rules::{Rules, Times};
pub use waitroom::room_of;
