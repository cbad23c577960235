//! Prefers pods that have more of the prompt in their KV cache.
//!
//! Formula: `1 - m_i / L`, the share of the prompt that must be prefilled there.
//! Reads: `hit` (own prefix index, a belief), the request's prompt tokens.
//! Range: 0 (all cached) to 1 (nothing) \[ratio\].
//! Unknown: an unknown hit is 0 tokens; a prompt of unknown length (0 tokens) makes the cost unknown on every pod.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `prefix-hit`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a wholly uncached prompt counts in the total.
    pub weight: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

#[derive(Debug)]
struct PrefixHit;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(PrefixHit)
}

impl Scorer for PrefixHit {
    fn range(&self) -> Range {
        Range { low: 0.0, high: 1.0, unit: "ratio" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let prompt = cx.request.prompt_tokens;
        if prompt.0 == 0 {
            return;
        }
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(pod.uncached(prompt).0 as f64 / prompt.0 as f64);
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
    fn share_of_the_prompt_that_is_missing() {
        let hits = [0, 250, 1000, 5000];
        let pods: Vec<_> = (0..).zip(hits).map(|(id, hit)| PodView { hit: Tokens(hit), ..pod(id) }).collect();
        let expected = [Some(1.0), Some(0.75), Some(0.0), Some(0.0)];
        assert_eq!(costs(&PrefixHit, &Request::new("m", Tokens(1000)), &pods), expected);
        assert_eq!(costs(&PrefixHit, &Request::new("m", Tokens(0)), &pods), [None; 4]);
    }
}
