//! The pods the gate can send to: who they are, what they said last, what we have sent them, how they are doing.
//!
//! Writers publish, readers take a snapshot: [`Table::fleet`] is one immutable list for a whole decision. The only shared
//! numbers that change under a reader are the in-flight counts of [`load`], and they are booked by guards. A request books
//! two things on a pod: its load ([`Reservation`]) and, for each try, its health ([`Attempt`]).
pub mod attempt;
pub mod health;
mod health_settings;
pub mod labels;
mod lien;
pub mod load;
pub mod pins;
pub mod pod;
mod queue;
pub mod reading;
pub mod restart;
pub mod shut;
pub mod step;
pub mod table;
mod tls;
pub mod verdict;
mod window;

pub use attempt::{Attempt, Leave};
pub use health::{Health, Outcome, Standing};
pub use labels::{LabelSet, weight};
pub use lien::Lien;
pub use load::{Glance, Load, LoadNow, Reservation, Work};
pub use pins::Marks;
pub use pod::{Pod, PodSpec, Role};
pub use reading::{Facts, Reading, Served, Sleep};
pub use restart::{Life, Lives, Witness};
pub use shut::{Shut, Shuts};
pub use step::{STEP_TOKENS, StepCell, StepTime};
pub use table::{Change, Fleet, Lane, Table};
pub use tls::{PodTls, TlsSettings};
pub use verdict::{Absent, Census, Rule, Sign};
