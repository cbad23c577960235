//! Requests for a model that has no pods yet: whether they may wait for the first one.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Settings under `flow.from_zero`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ZeroSettings {
    /// A request for a model that is named under `models` and has no pod waits so long for the first one, in seconds; autoscalers see it
    /// at once in `tidegate_absent_requests`. 0: it is refused at once.
    pub wait_max_s: u32,
    /// Most requests that wait so, over all models; more are refused at once.
    pub requests_max: u32,
}

impl Default for ZeroSettings {
    fn default() -> Self {
        Self { wait_max_s: 0, requests_max: 1_000 }
    }
}
