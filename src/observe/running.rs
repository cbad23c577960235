//! The configuration in force and how the last try to change it went, as metrics and the admin listener show them.
use std::sync::Arc;

/// What is known of the running configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunningConfig {
    /// 1 with the configuration of the start; one more with each that was taken since.
    pub generation: u64,
    /// Hash of its meaning, file and flags together: the same on gates that are configured the same. 48 bits, which a float holds.
    pub hash: u64,
    /// When it was taken \[seconds since 1970\].
    pub taken_s: u64,
    /// Whether the last try to change it succeeded.
    pub is_last_good: bool,
    /// Keys that differ from what the process started with and take effect after a restart.
    pub needs_restart: Vec<&'static str>,
    /// All settings as JSON, without secrets.
    pub json: Arc<str>,
}
