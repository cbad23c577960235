//! Follows the cache while pods are balanced, else the shortest queue (SGLang's and SMG's cache_aware).
//!
//! Formula: with `max - min > abs` and `max > rel·min` requests in flight: the requests. Else, if the best match is over `threshold` of
//!   the prompt: the uncached share, holders of less than the best 1 more. Else: tokens held, the "smallest tree", as
//!   `K / (K + 1e6)`.
//! Reads: `load` (own bookings, current), `hit` (own prefix index), the request's prompt.
//! Range: 0 and up \[requests, or ratio\].
//! Unknown: a prompt of unknown length matches nothing; load of others is not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `cache-or-balance`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a cost of 1 counts in the total.
    pub weight: f64,
    /// Difference of requests in flight above which balance comes first.
    pub abs: u32,
    /// Ratio of requests in flight above which it does.
    pub rel: f64,
    /// Match of the prompt that is worth following, 0 to 1.
    pub threshold: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, abs: 32, rel: 1.1, threshold: 0.5 }
    }
}

#[derive(Debug)]
struct CacheOrBalance(Settings);

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(CacheOrBalance(settings.clone()))
}

impl Scorer for CacheOrBalance {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "requests, or ratio" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let (mut least, mut most, mut best) = (u32::MAX, 0, 0);
        for pod in pods.iter() {
            (least, most) = (least.min(pod.load.requests), most.max(pod.load.requests));
            best = best.max(pod.hit.0);
        }
        let prompt = cx.request.prompt_tokens.0 as f64;
        let is_uneven = most.saturating_sub(least) > self.0.abs && f64::from(most) > self.0.rel * f64::from(least);
        let is_match = prompt > 0.0 && best as f64 > self.0.threshold * prompt;
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(if is_uneven {
                f64::from(pod.load.requests)
            } else if is_match {
                pod.uncached(cx.request.prompt_tokens).0 as f64 / prompt + if pod.hit.0 < best { 1.0 } else { 0.0 }
            } else {
                let held = pod.load.pinned_tokens.0 as f64;
                held / (held + 1e6)
            });
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
    fn three_modes() {
        let request = Request::new("m", Tokens(1000));
        let said = |hit, requests| {
            let pods = [PodView { hit: Tokens(hit), ..loaded(0, requests, 0, 0) }, loaded(1, 1, 0, 0)];
            costs(&*build(&Settings::default()), &request, &pods)
        };
        assert_eq!(said(600, 40), [Some(40.0), Some(1.0)]);
        assert_eq!(said(600, 20), [Some(0.4), Some(2.0)]);
        assert_eq!(said(400, 20), [Some(0.0), Some(0.0)]);
    }
}
