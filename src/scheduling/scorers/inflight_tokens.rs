//! Prefers pods with the least prefill work in front of this request's first token, its own work included.
//!
//! Formula: `Q_i + u_i`: uncached prompt tokens dispatched to the pod and not yet prefilled, plus this request's own.
//! Reads: `load.prefill_tokens` (own bookings, current), `hit` (own prefix index), the request's prompt tokens.
//! Range: 0 and up \[tokens\].
//! Unknown: nothing is; work of other gates and direct clients is not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `inflight-tokens`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a token counts in the total.
    pub weight: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

#[derive(Debug)]
struct InflightTokens;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(InflightTokens)
}

impl Scorer for InflightTokens {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "tokens" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some((pod.load.prefill_tokens + pod.uncached(cx.request.prompt_tokens)).0 as f64);
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
    fn queue_plus_own_uncached() {
        let pods = [loaded(0, 1, 1, 700), PodView { hit: Tokens(900), ..loaded(1, 0, 0, 0) }];
        assert_eq!(costs(&InflightTokens, &Request::new("m", Tokens(1000)), &pods), [Some(1700.0), Some(100.0)]);
    }
}
