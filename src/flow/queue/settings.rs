//! What configuration says of the queue: sections `flow.queue` and `flow.classes`.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::flow::Class;

/// What becomes of a class that has no room for one more waiting request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhenFull {
    /// The one that comes is refused.
    #[default]
    RefuseNewest,
    /// The one of the class that is due last is refused, be it the one that comes.
    EvictLast,
}

/// What is written of a class. Each class has defaults of its own.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClassSettings {
    /// Share of the service that classes below the first get, against each other. The first class goes before all others. Unset: 4 for
    /// `standard`, 1 for `batch`.
    pub weight: Option<f64>,
    /// Share of the service that the class gets at least while it has work, in 0 to 0.5. Unset: 0.1 for `standard`, 0.05 for `batch`.
    pub floor_share: Option<f64>,
    /// Requests that may wait, for each model. Unset: 20000.
    pub requests_max: Option<u32>,
    /// Bytes of bodies that may wait, for each model. Unset: 536870912.
    pub body_bytes_max: Option<u64>,
    /// Work that may wait, for each model, in seconds of one pod. Unset: 1000000.
    pub cost_s_max: Option<f64>,
    /// Longest wait, in seconds. Unset: 60 for `interactive`, 120 for `standard`, 3600 for `batch`.
    pub wait_max_s: Option<f64>,
    /// What becomes of one too many: `refuse_newest` or `evict_last`. Either way a tenant that fills the class gives way to others, up to
    /// their share.
    pub when_full: WhenFull,
    /// A pod takes one more request of this class while its queued prefill takes no longer than this, in seconds; each pod adapts it
    /// by a factor. Unset: 0.5; 0.2 for `batch`.
    pub pod_wait_max_s: Option<f64>,
}

/// Settings under `flow.classes`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Classes {
    /// Somebody watches the first token.
    pub interactive: ClassSettings,
    /// What has no class.
    pub standard: ClassSettings,
    /// Nobody waits.
    pub batch: ClassSettings,
}

/// What holds for a class, per pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClassRules {
    /// See [`ClassSettings::weight`].
    pub weight: f64,
    /// See [`ClassSettings::floor_share`].
    pub floor_share: f64,
    /// See [`ClassSettings::requests_max`].
    pub requests_max: u32,
    /// See [`ClassSettings::body_bytes_max`].
    pub body_bytes_max: u64,
    /// See [`ClassSettings::cost_s_max`].
    pub cost_s_max: f64,
    /// See [`ClassSettings::wait_max_s`].
    pub wait_max_s: f64,
    /// See [`ClassSettings::when_full`].
    pub when_full: WhenFull,
    /// See [`ClassSettings::pod_wait_max_s`].
    pub pod_wait_max_s: f64,
}

impl ClassRules {
    /// See [`ClassRules::wait_max_s`].
    pub fn wait_max(&self) -> Duration {
        Duration::from_secs_f64(self.wait_max_s)
    }
}

impl Classes {
    /// What holds for a class.
    pub fn of(&self, class: Class) -> ClassRules {
        let (written, weight, floor_share, wait_max_s, pod_wait_max_s) = match class {
            Class::Interactive => (&self.interactive, 1.0, 0.0, 60.0, 0.5),
            Class::Standard => (&self.standard, 4.0, 0.1, 120.0, 0.5),
            Class::Batch => (&self.batch, 1.0, 0.05, 3_600.0, 0.2),
        };
        ClassRules {
            weight: written.weight.unwrap_or(weight),
            floor_share: written.floor_share.unwrap_or(floor_share),
            requests_max: written.requests_max.unwrap_or(20_000),
            body_bytes_max: written.body_bytes_max.unwrap_or(512 << 20),
            cost_s_max: written.cost_s_max.unwrap_or(1e6),
            wait_max_s: written.wait_max_s.unwrap_or(wait_max_s),
            when_full: written.when_full,
            pod_wait_max_s: written.pod_wait_max_s.unwrap_or(pod_wait_max_s),
        }
    }

    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for class in Class::ALL {
            let rules = self.of(class);
            for (field, value, least, most) in [
                ("weight", rules.weight, 1e-3, 1e6),
                ("floor_share", rules.floor_share, 0.0, 0.5),
                ("cost_s_max", rules.cost_s_max, 1e-3, 1e12),
                ("wait_max_s", rules.wait_max_s, 0.001, 86_400.0),
                ("pod_wait_max_s", rules.pod_wait_max_s, 0.001, 3_600.0),
            ] {
                if !(least..=most).contains(&value) {
                    let name = class.as_str();
                    problems.push((field, format!("{value} of {name} is out of range; write {least} to {most}")));
                }
            }
        }
        problems
    }
}

/// Settings under `flow.queue`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSettings {
    /// Requests wait here, ordered by class, tenant and deadline, while the pods have no room. Switched off, all go at once and wait
    /// in the engines, in the order in which they came.
    pub enabled: bool,
    /// Refuse a request at once if it is predicted to miss its time to first token by more than what it was promised, times this. 0:
    /// never.
    pub refuse_beyond: f64,
    /// Part of a pod's KV cache that is filled, running answers counted as they are expected to grow; each pod adapts it.
    pub kv_fill_share: f64,
    /// A prefill of the last class that takes longer than this is long, in seconds.
    pub long_prefill_s: f64,
    /// Part of the pods that long prefills of the last class may occupy at once, however long the others wait; one may always. More
    /// of them while nobody of another class waits for longer than his own prefill takes.
    pub long_prefill_pods_share: f64,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            refuse_beyond: 1.0,
            kv_fill_share: 0.95,
            long_prefill_s: 2.0,
            long_prefill_pods_share: 0.25,
        }
    }
}

impl QueueSettings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let fields = [
            ("refuse_beyond", self.refuse_beyond, 0.0, 1e3),
            ("kv_fill_share", self.kv_fill_share, 0.1, 1.0),
            ("long_prefill_s", self.long_prefill_s, 0.01, 86_400.0),
            ("long_prefill_pods_share", self.long_prefill_pods_share, 0.0, 1.0),
        ];
        let bad = fields.into_iter().filter(|(_, value, least, most)| !(*least..=*most).contains(value));
        bad.map(|(field, value, least, most)| (field, format!("{value} is out of range; write {least} to {most}")))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sane_and_nonsense_is_told() {
        assert_eq!((Classes::default().problems(), QueueSettings::default().problems()), (vec![], vec![]));
        let mut bad = Classes::default();
        (bad.batch.weight, bad.standard.floor_share) = (Some(0.0), Some(f64::NAN));
        assert_eq!(bad.problems().iter().map(|(field, _)| *field).collect::<Vec<_>>(), ["floor_share", "weight"]);
        let bad = QueueSettings { kv_fill_share: 2.0, ..QueueSettings::default() };
        assert_eq!(bad.problems().len(), 1);
    }
}
