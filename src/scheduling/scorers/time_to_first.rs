//! Prefers the pod that should give the first token soonest, whatever that does to others.
//!
//! Formula: `W + p`: predicted seconds of prefill sent there and not done, and this request's own (Mooncake's conductor, without
//!   transfers).
//! Reads: `load.wait_s` (own bookings, current), `step` (latency model), `hit` (own prefix index), the request's prompt.
//! Range: 0 and up \[seconds\].
//! Unknown: without a sample the step time is the prior; work of others is not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `time-to-first`.
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
struct TimeToFirst;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(TimeToFirst)
}

impl Scorer for TimeToFirst {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "seconds" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        for (pod, cost) in pods.iter().zip(costs) {
            let uncached = pod.uncached(cx.request.prompt_tokens);
            *cost = Some(pod.load.wait_s + pod.step.prefill(uncached.0, pod.hit.0));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{costs, loaded};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn wait_and_own_prefill() {
        let mut pods = [loaded(0, 1, 0, 0), PodView { hit: Tokens(8_000), ..loaded(1, 1, 1, 9) }];
        pods[1].load.wait_s = 0.2;
        let said = costs(&TimeToFirst, &Request::new("m", Tokens(8_000)), &pods);
        assert_eq!(said[1], Some(0.2));
        assert!(said[0] > said[1]);
    }
}
