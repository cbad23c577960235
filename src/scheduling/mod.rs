//! Which pod serves a request, and why.
//!
//! Pure: [`decide()`] takes the facts of one request, a list of plain [`PodView`]s, the time and a seeded generator, and
//! returns a [`Decision`] with its reasons. Filters keep or drop pods, scorers put a cost on those left (lower is better),
//! a picker takes one. Each of these is one file in `filters/`, `scorers/` or `pickers/`; `src/build.rs` lists them, so
//! adding a plug-in is adding a file. The files' headers state what they read, their range and what unknown means, and
//! the conformance suite holds every one of them to it.
//!
//! Nothing here keeps state between requests: in-flight load is booked by `pods`, cached prefixes are known by `prefix`,
//! and both arrive as numbers in the view. When this room fails, [`safe_mode`] needs nothing but in-flight counts.
pub mod candidates;
#[cfg(test)]
mod conformance;
pub mod decide;
pub mod decision;
pub mod expression;
pub mod filters;
pub mod latency;
pub mod marginal;
pub mod peers;
pub mod pickers;
pub mod plugin;
pub mod profile;
pub mod request;
mod rows;
pub mod scorers;
pub mod survey;
#[cfg(test)]
mod testing;
pub mod view;

pub use candidates::Candidates;
pub use decide::{Scratch, decide, safe_mode};
pub use decision::{Alternatives, Decision, Detail, Mode, Nobody, ReadingCell, Row};
pub use latency::{Latency, Meter};
pub use peers::{Guesses, Peers};
pub use plugin::{Filter, Offer, Picker, Plugin, Range, Scorer, Verdict};
pub use profile::{BadProfile, Profile, ProfileSettings};
pub use request::{Context, Handover, LeftOut, Means, Request, Step};
pub use survey::{Desk, Query, place};
pub use view::{Belief, Gauges, PodView, Serves, Warm};
