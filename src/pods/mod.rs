//! The pods the gate can send to: who they are, what they said last, what we have sent them, how they are doing.
//!
//! Writers publish, readers take a snapshot: [`Table::fleet`] is one immutable list for a whole decision. The only shared
//! numbers that change under a reader are the in-flight counts of [`load`], and they are booked by guards.
pub mod health;
pub mod load;
pub mod pod;
pub mod reading;
pub mod table;

pub use health::{Health, Outcome, Standing};
pub use load::{Load, LoadNow, Reservation};
pub use pod::{Pod, PodSpec, Role};
pub use reading::{Facts, Reading, Sleep};
pub use table::{Fleet, Table};
