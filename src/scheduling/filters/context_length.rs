//! Keeps the pods whose context is long enough for the request.
//!
//! Reads: `context_max` (`max_model_len` of the pod's `/v1/models`), the request's prompt (an estimate) and its bound on the answer.
//! Drops: pods whose context is shorter than the prompt by more than `slack`, if one is long enough.
//! Range: keep or drop. If none is long enough all stay: the pod refuses the request itself, and says why.
//! Unknown: a pod that does not tell its context stays.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, PodView, Verdict};

/// Settings of `context-length`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much longer than the context the estimated prompt may be, as a share of the context.
    pub slack: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { slack: 0.1 }
    }
}

#[derive(Debug)]
struct ContextLength(Settings);

/// Makes the filter.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(ContextLength(settings.clone()))
}

impl Filter for ContextLength {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        let needed = cx.request.prompt_tokens.0 as f64;
        let slack = if self.0.slack.is_finite() { self.0.slack.max(0.0) } else { 0.0 };
        let fits = |pod: &PodView| pod.context_max.is_none_or(|most| needed <= most.0 as f64 * (1.0 + slack));
        if pods.iter().any(fits) {
            for (pod, verdict) in pods.iter().zip(verdicts) {
                if !fits(pod) {
                    *verdict = Verdict::Drop("its context is too short");
                }
            }
        }
    }

    fn is_lasting(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, pod};

    #[test]
    fn long_prompts_go_where_they_fit() {
        let of = |id, most| PodView { context_max: Some(Tokens(most)), ..pod(id) };
        let kept = |prompt, pods: &[_]| judged(&*build(&Settings::default()), &Request::new("m", Tokens(prompt)), pods);
        let pods = [of(0, 8_000), of(1, 32_000), pod(2)];
        assert_eq!(kept(8_700, &pods), [true, true, true]);
        assert_eq!(kept(9_000, &pods), [false, true, true]);
        assert_eq!(kept(90_000, &pods[..2]), [true, true], "the pod says why not");
    }
}
