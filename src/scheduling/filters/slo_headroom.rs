//! Keeps the pods that should give the first token within the promised time, if any should.
//!
//! Reads: `load.wait_s` (own bookings, current), `step` (latency model), `hit` (own prefix index), the request's `ttft_s` and prompt.
//! Drops: pods whose predicted first token comes later than promised, if one comes in time.
//! Range: keep or drop. If none makes it all stay: late is better than never.
//! Unknown: a request without a promise keeps every pod. Without a sample the step time is the prior.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, PodView, Verdict};

/// Settings of `slo-headroom`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Share of the promised time that must be left over, 0 to 1.
    pub reserve: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { reserve: 0.1 }
    }
}

#[derive(Debug)]
struct SloHeadroom(Settings);

/// Makes the filter.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(SloHeadroom(settings.clone()))
}

impl Filter for SloHeadroom {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        let Some(promised) = cx.request.ttft_s else { return };
        let bound = promised * (1.0 - self.0.reserve.clamp(0.0, 1.0));
        let is_late = |pod: &PodView| {
            let uncached = pod.uncached(cx.request.prompt_tokens);
            pod.load.wait_s + pod.step.prefill(uncached.0, pod.hit.0) > bound
        };
        if pods.iter().all(is_late) {
            return;
        }
        for (pod, verdict) in pods.iter().zip(verdicts) {
            if is_late(pod) {
                *verdict = Verdict::Drop("would be late");
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
    use crate::scheduling::testing::{judged, pod};

    #[test]
    fn late_pods_are_spared_if_one_is_in_time() {
        let waits = |id, wait_s| {
            let mut pod = pod(id);
            pod.load.wait_s = wait_s;
            pod
        };
        let kept = |ttft_s, pods: &[_]| {
            judged(&*build(&Settings::default()), &Request { ttft_s, ..Request::new("m", Tokens(100)) }, pods)
        };
        let pods = [waits(0, 0.1), waits(1, 0.9), waits(2, 2.0)];
        assert_eq!(kept(Some(1.0), &pods), [true, false, false]);
        assert_eq!((kept(Some(1.0), &pods[1..]), kept(None, &pods)), (vec![true; 2], vec![true; 3]));
    }
}
