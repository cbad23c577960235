//! Keeps the pods that may do this step of a request.
//!
//! Reads: `role` (configuration or discovery, never stale) and the request's step.
//! Drops: prefill pods for anything that ends in a stream to the client; decode pods for a prefill step, unless the request may pull
//! from them.
//! Range: keep or drop. A decode pod does a whole request by itself: it can prefill.
//! Unknown: a pod without a stated role is `both`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pods::Role;
use crate::scheduling::{Candidates, Context, Filter, Nobody, Verdict};

/// Settings of `role`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct OfRole;

/// Makes the filter.
pub fn build(_: &Settings) -> Box<dyn Filter> {
    Box::new(OfRole)
}

impl Filter for OfRole {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        for (pod, verdict) in pods.iter().zip(verdicts) {
            *verdict = match (cx.request.may_use(pod.role), pod.role) {
                (true, _) => Verdict::Keep,
                (false, Role::Prefill) => Verdict::Drop("prefill only"),
                (false, _) => Verdict::Drop("decode only"),
            };
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::NoRole
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{judged, pod};
    use crate::scheduling::{PodView, Request, Step};

    fn check(step: Step, kept: [bool; 3]) {
        let roles = [Role::Both, Role::Prefill, Role::Decode];
        let pods: Vec<_> = (0..).zip(roles).map(|(id, role)| PodView { role, ..pod(id) }).collect();
        let request = Request { step, ..Request::new("m", Tokens(10)) };
        assert_eq!(judged(&OfRole, &request, &pods), kept, "{step:?}");
        let pulls = Request { may_pull: true, ..request };
        let kept = [kept[0], kept[1], kept[2] || step == Step::Prefill];
        assert_eq!(judged(&OfRole, &pulls, &pods), kept, "{step:?}, pulling");
    }

    #[test]
    fn each_step_on_its_pods() {
        check(Step::Whole, [true, false, true]);
        check(Step::Prefill, [true, true, false]);
        check(Step::Decode, [true, false, true]);
    }
}
