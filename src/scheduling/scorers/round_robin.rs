//! Takes the pods in turn: the one this gate sent nothing to for the longest time.
//!
//! Formula: `1 / (1 + t)`, `t` the seconds since the last dispatch; 0 for a pod that never had one.
//! Reads: `last_dispatch` (own bookings, current).
//! Range: 0 to 1 \[ratio\].
//! Unknown: a pod that never had a request comes first.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `round-robin`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a cost of 1 counts in the total.
    pub weight: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

#[derive(Debug)]
struct RoundRobin;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(RoundRobin)
}

impl Scorer for RoundRobin {
    fn range(&self) -> Range {
        Range { low: 0.0, high: 1.0, unit: "ratio" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(pod.last_dispatch.map_or(0.0, |at| 1.0 / (1.0 + cx.now.since(at).as_secs_f64())));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::{Mono, Tokens};
    use crate::scheduling::testing::{NOW, costs, pod};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn the_longest_unused_comes_first() {
        let at = |id, ago: u64| PodView { last_dispatch: Some(Mono(NOW.0 - ago * 1_000_000)), ..pod(id) };
        let said = costs(&RoundRobin, &Request::new("m", Tokens(1)), &[at(0, 0), at(1, 3), pod(2)]);
        assert_eq!(said, [Some(1.0), Some(0.25), Some(0.0)]);
    }
}
