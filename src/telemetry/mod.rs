//! Asks the pods how they are: scrapes `/metrics`, reads `/v1/models` and `/version`, and publishes what they say.
//!
//! One task per address, one question at a time, so a pod that hangs delays nobody but itself. What is learnt goes into the
//! pods ([`crate::pods::Pod::learn`], [`crate::pods::Pod::read`]) and the table (models, data-parallel ranks); who must act
//! on it (the prefix index when a pod restarted) is told by an [`Event`]. A failed scrape ejects nobody: readings grow old.
mod credential;
mod fetch;
mod metrics;
mod models;
mod scraper;
mod settings;
#[cfg(test)]
mod test_server;
mod visit;

pub use credential::{Credential, CredentialError};
pub use scraper::{Event, Observer, Telemetry};
pub use settings::Settings;
