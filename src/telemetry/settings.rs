//! How often pods are asked, how long they may take, how much they may say: the section `telemetry` of the configuration.
//!
//! Every limit has a default that suits pods on the same network. Nothing here is needed to dispatch a request: slower or
//! failing telemetry costs quality of routing, not requests.

/// Telemetry of pods.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Time between two scrapes of a pod's `/metrics`, in milliseconds; spread by ±10 %.
    pub interval_ms: u64,
    /// Longest time one question to a pod may take, connecting included, in milliseconds.
    pub timeout_ms: u64,
    /// Longest answer that is read, in bytes.
    pub body_max_bytes: usize,
    /// Time between two reads of a pod's `/v1/models`, in milliseconds. Also read at once after a restart.
    pub models_interval_ms: u64,
    /// Longest time between two scrapes of a pod that does not answer, in milliseconds.
    pub backoff_max_ms: u64,
    /// Scrapes per second over all pods; with many pods the interval grows to keep it.
    pub scrapes_per_s_max: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval_ms: 250,
            timeout_ms: 2_000,
            body_max_bytes: 4 * 1024 * 1024,
            models_interval_ms: 5_000,
            backoff_max_ms: 5_000,
            scrapes_per_s_max: 500,
        }
    }
}

impl Settings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let times = [
            ("interval_ms", self.interval_ms, 10),
            ("timeout_ms", self.timeout_ms, 10),
            ("models_interval_ms", self.models_interval_ms, 100),
            ("backoff_max_ms", self.backoff_max_ms, 10),
        ];
        for (field, value, least) in times {
            if !(least..=3_600_000).contains(&value) {
                problems.push((field, format!("must be between {least} and 3600000 milliseconds")));
            }
        }
        if !(4_096..=1 << 30).contains(&self.body_max_bytes) {
            problems.push(("body_max_bytes", "must be between 4096 and 1073741824 bytes".to_owned()));
        }
        if self.scrapes_per_s_max == 0 {
            problems.push(("scrapes_per_s_max", "must be at least 1".to_owned()));
        }
        problems
    }
}
