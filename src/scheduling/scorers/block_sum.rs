//! A sum in KV blocks: prefill that would wait there, this request's own, and what is decoding.
//!
//! Formula: `prefill·(Q + u)/B + (K + L)/B + requests·n`, `B` tokens to a block: Dynamo's linear cost, with an overlap credit of 1.
//! Reads: `load` (own bookings, current), `hit` (own prefix index), `block_tokens` (scrape), the request's prompt.
//! Range: 0 and up \[blocks\].
//! Unknown: a pod whose block size is not known has blocks of 16 tokens; load of others is not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `block-sum`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a cost of 1 counts in the total.
    pub weight: f64,
    /// How much a block of prefill counts against a block that is held.
    pub prefill: f64,
    /// How many blocks a request in flight counts.
    pub requests: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, prefill: 1.0, requests: 0.0 }
    }
}

#[derive(Debug)]
struct BlockSum(Settings);

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(BlockSum(settings.clone()))
}

impl Scorer for BlockSum {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "blocks" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let sane = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
        let (prefill, requests) = (sane(self.0.prefill), sane(self.0.requests));
        let prompt = cx.request.prompt_tokens;
        for (pod, cost) in pods.iter().zip(costs) {
            let block = f64::from(pod.block_tokens.unwrap_or(16).max(1));
            let work = (pod.load.prefill_tokens + pod.uncached(prompt)).0 as f64;
            let held = (pod.load.pinned_tokens + prompt).0 as f64;
            *cost = Some((prefill * work + held) / block + requests * f64::from(pod.load.requests));
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
    fn blocks_add_up() {
        let mut pod = PodView { hit: Tokens(480), ..loaded(0, 3, 1, 160) };
        pod.load.pinned_tokens = Tokens(320);
        let settings = Settings { prefill: 2.0, requests: 1.0, ..Settings::default() };
        let said = costs(&*build(&settings), &Request::new("m", Tokens(640)), &[pod]);
        assert_eq!(said, [Some(2.0 * (10.0 + 10.0) + (20.0 + 40.0) + 3.0)]);
    }
}
