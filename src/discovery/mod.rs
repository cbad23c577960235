//! Finds out where the pods are: from flags and the configuration's list, from files, from operators, with names
//! resolved again and again, and from Kubernetes.
//!
//! Each source says what it finds to the [`Publisher`], which makes all of it together the fleet, off the data path. A [`PodSource`] is
//! what an operator wrote in the list. Losing a name server or an API server costs nothing: what was known last stays. How many data-parallel ranks an address has is
//! found out by telemetry.
mod found;
pub mod kubernetes;
mod lists;
mod publish;
mod resolve;
mod roster;
mod run;
mod settings;
mod source;

pub use found::{Board, Found, State};
pub use publish::{Publisher, SourceHealth};
pub use roster::{Roster, RosterProblem};
pub use run::run;
pub use settings::{PodEntry, Settings};
pub use source::{BadPod, Host, PodSource};
