//! Prefers pods with more free KV cache.
//!
//! Formula: the used share of the KV cache as the engine reports it.
//! Reads: `reading.kv_used` (`vllm:kv_cache_usage_perc`), if the reading is no older than `age_ms_max`.
//! Range: 0 (empty) to 1 (full) \[ratio\].
//! Unknown: without a reading, or with an old one, the cost is unknown and counts as the mean of the others.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `kv-use`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a full cache counts in the total.
    pub weight: f64,
    /// Oldest reading that is believed \[ms\].
    pub age_ms_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, age_ms_max: 2000 }
    }
}

#[derive(Debug)]
struct KvUse {
    age_max: Duration,
}

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(KvUse { age_max: Duration::from_millis(settings.age_ms_max) })
}

impl Scorer for KvUse {
    fn range(&self) -> Range {
        Range { low: 0.0, high: 1.0, unit: "ratio" }
    }

    fn cost(&self, _: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        for (pod, cost) in pods.iter().zip(costs) {
            let used = pod.reading_within(self.age_max).and_then(|reading| reading.kv_used);
            *cost = used.filter(|used| used.is_finite()).map(|used| used.clamp(0.0, 1.0));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{costs, pod, read};

    #[test]
    fn fresh_readings_only() {
        let pods = [read(pod(0), Some(0.25), 100), read(pod(1), Some(0.5), 2001), read(pod(2), None, 1), pod(3)];
        let scorer = build(&Settings::default());
        assert_eq!(costs(&*scorer, &Request::new("m", Tokens(1)), &pods), [Some(0.25), None, None, None]);
        let lying = [read(pod(0), Some(f64::NAN), 1), read(pod(1), Some(7.0), 1)];
        assert_eq!(costs(&*scorer, &Request::new("m", Tokens(1)), &lying), [None, Some(1.0)]);
    }
}
