//! Keeps the pods that hold most of the prompt, unless waiting for them takes too long.
//!
//! Reads: `hit` (own prefix index), `load.prefill_tokens` (own bookings, current), the request's prompt.
//! Drops: pods that hold less than `share` of the prompt, if one holds as much; *break-out*: none, if the best holder's first token is
//!   predicted more than `penalty_ms_max` after the best other pod's.
//! Range: keep or drop. The prediction is llm-d's: uncached tokens in flight there and this request's own, over `tokens_per_s`.
//! Unknown: a prompt of unknown length has no holders. Work of others is not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, PodView, Verdict};

/// Settings of `prefix-affinity`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Share of the prompt that a holder has, 0 to 1.
    pub share: f64,
    /// How much later the first token may come for a hit \[ms\]; 0 means any time.
    pub penalty_ms_max: f64,
    /// Prefill rate of a pod \[tokens/s\].
    pub tokens_per_s: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { share: 0.8, penalty_ms_max: 18_000.0, tokens_per_s: 15_928.0 }
    }
}

#[derive(Debug)]
struct PrefixAffinity(Settings);

/// Makes the filter.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(PrefixAffinity(settings.clone()))
}

impl Filter for PrefixAffinity {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        let prompt = cx.request.prompt_tokens;
        let is_holder = |pod: &PodView| prompt.0 > 0 && pod.hit.0 as f64 >= self.0.share * prompt.0 as f64;
        let work = |pod: &PodView| (pod.load.prefill_tokens + pod.uncached(prompt)).0;
        let least = |holds: bool| pods.iter().filter(|pod| is_holder(pod) == holds).map(work).min();
        let (Some(warm), Some(cold)) = (least(true), least(false)) else { return };
        let tokens_max = self.0.penalty_ms_max / 1e3 * self.0.tokens_per_s;
        if tokens_max > 0.0 && warm as f64 - cold as f64 > tokens_max {
            return;
        }
        for (pod, verdict) in pods.iter().zip(verdicts) {
            if !is_holder(pod) {
                *verdict = Verdict::Drop("others hold the prompt");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, loaded};

    #[test]
    fn holders_until_they_are_swamped() {
        let kept = |hit, queued| {
            let pods = [PodView { hit: Tokens(hit), ..loaded(0, 1, 1, queued) }, loaded(1, 0, 0, 0)];
            let settings = Settings { penalty_ms_max: 1_000.0, tokens_per_s: 10_000.0, ..Settings::default() };
            judged(&*build(&settings), &Request::new("m", Tokens(1000)), &pods)
        };
        assert_eq!((kept(800, 0), kept(790, 0)), (vec![true, false], vec![true, true]));
        assert_eq!((kept(800, 10_800), kept(800, 10_801)), (vec![true, false], vec![true, true]));
    }
}
