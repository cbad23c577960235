//! Spreads prompts that nobody has cached: to the pod that had such a prompt the longest time ago.
//!
//! Formula: where the time of the pod's last cold prompt lies between the oldest (0) and the newest (1); if anybody has a hit, 0.5 for all. Comes from
//!   llm-d's `no-hit-lru-scorer`, where it cut the p99 of the time to first token: cold prompts are the ones that prefill long.
//! Reads: `hit` (own prefix index), `last_cold` (own bookings, current).
//! Range: 0 to 1 \[ratio\].
//! Unknown: a pod that never had one is the oldest.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Mono;
use crate::scheduling::{Candidates, Context, PodView, Range, Scorer};

/// Settings of `no-hit-lru`.
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
struct NoHitLru;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(NoHitLru)
}

impl Scorer for NoHitLru {
    fn range(&self) -> Range {
        Range { low: 0.0, high: 1.0, unit: "ratio" }
    }

    fn cost(&self, _: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let is_warm = pods.iter().any(|pod| pod.hit.0 > 0);
        let age = |pod: &PodView| pod.last_cold.map_or(Mono::ZERO, |at| at);
        let (oldest, newest) =
            pods.iter().map(age).fold((Mono(u64::MAX), Mono::ZERO), |(low, high), at| (low.min(at), high.max(at)));
        let whole = newest.since(oldest).as_secs_f64();
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(if is_warm {
                0.5
            } else if whole > 0.0 {
                (age(pod).since(oldest).as_secs_f64() / whole).min(1.0)
            } else {
                0.0
            });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{costs, pod};

    #[test]
    fn the_longest_without_a_cold_prompt_comes_first() {
        let at = |id, seconds: u64| PodView { last_cold: Some(Mono(seconds * 1_000_000)), ..pod(id) };
        let mut pods = [at(0, 40), at(1, 20), at(2, 30), at(3, 60)];
        let request = Request::new("m", Tokens(1));
        assert_eq!(costs(&NoHitLru, &request, &pods), [Some(0.5), Some(0.0), Some(0.25), Some(1.0)]);
        pods[2].last_cold = None;
        assert_eq!(costs(&NoHitLru, &request, &pods)[2], Some(0.0));
        pods[3].hit = Tokens(1);
        assert_eq!(costs(&NoHitLru, &request, &pods), [Some(0.5); 4]);
    }
}
