//! Finds out where the pods are: from flags and the configuration's list, names resolved again and again.
//!
//! A [`PodSource`] is what an operator wrote; [`run`] turns sources into addresses off the data path and publishes them to the
//! table. Losing a name server costs nothing: the addresses last known stay. How many data-parallel ranks an address has is
//! found out by telemetry.
mod resolve;
mod settings;
mod source;

pub use resolve::run;
pub use settings::{PodEntry, Settings};
pub use source::{BadPod, Host, PodSource};
