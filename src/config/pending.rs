//! Settings of rooms that do not own theirs yet, so that the tree is whole. Each struct moves to its room unchanged.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings under `routing`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// Start in safe mode: least in flight, no prefix index.
    pub safe_mode: bool,
}

/// Settings under `prefix`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefix {
    /// Memory of the prefix index, in bytes; the least recently used blocks go first.
    pub index_bytes_max: u64,
}

impl Default for Prefix {
    fn default() -> Self {
        Self { index_bytes_max: 1 << 30 }
    }
}

/// Settings under `retry`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Retry {
    /// Most attempts of a request, the first included.
    pub attempts_max: u8,
    /// Retries in flight at most, in percent of all requests in flight.
    pub budget_percent: u8,
    /// Retries that are always allowed, however few requests are in flight.
    pub budget_min: u32,
    /// Whether a request that reached a pod may be sent to another one when no byte of an answer came.
    pub is_delivered_retried: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 2, budget_percent: 10, budget_min: 3, is_delivered_retried: true }
    }
}

/// Settings under `telemetry`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Telemetry {
    /// Time between two scrapes of a pod's metrics, in milliseconds; a little jitter is added.
    pub interval_ms: u32,
    /// Longest time of one scrape, in milliseconds.
    pub timeout_ms: u32,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self { interval_ms: 250, timeout_ms: 2_000 }
    }
}
