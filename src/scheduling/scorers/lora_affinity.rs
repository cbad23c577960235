//! Prefers pods that have the request's adapter loaded.
//!
//! Formula: 0 where it is loaded or none is needed, 1 where it is not.
//! Reads: `adapter` (own bookings, current: what this gate sent there lately).
//! Range: 0 or 1 \[ratio\].
//! Unknown: adapters loaded for other clients are not seen and count as not loaded.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer, Warm};

/// Settings of `lora-affinity`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a missing adapter counts in the total.
    pub weight: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

#[derive(Debug)]
struct LoraAffinity;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(LoraAffinity)
}

impl Scorer for LoraAffinity {
    fn range(&self) -> Range {
        Range { low: 0.0, high: 1.0, unit: "ratio" }
    }

    fn cost(&self, _: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(if pod.adapter == Warm::No { 1.0 } else { 0.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{costs, pod};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn a_pod_with_the_adapter_is_preferred() {
        let pods = [pod(0), PodView { adapter: Warm::Yes, ..pod(1) }, PodView { adapter: Warm::No, ..pod(2) }];
        assert_eq!(costs(&LoraAffinity, &Request::new("m", Tokens(1)), &pods), [Some(0.0), Some(0.0), Some(1.0)]);
    }
}
