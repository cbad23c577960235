//! Keeps the pods that may do this step of a request.
//!
//! Reads: `role` (configuration or discovery, never stale) and the request's step.
//! Drops: prefill pods for anything that ends in a stream to the client; decode pods for a prefill step.
//! Range: keep or drop. A decode pod does a whole request by itself: it can prefill.
//! Unknown: a pod without a stated role is `both`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pods::Role;
use crate::scheduling::{Candidates, Context, Filter, Nobody, Step, Verdict};

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
            *verdict = match (cx.request.step, pod.role) {
                (_, Role::Both) | (Step::Prefill, Role::Prefill) | (Step::Whole | Step::Decode, Role::Decode) => {
                    Verdict::Keep
                }
                (Step::Whole | Step::Decode, Role::Prefill) => Verdict::Drop("prefill only"),
                (Step::Prefill, Role::Decode) => Verdict::Drop("decode only"),
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
    use crate::scheduling::{PodView, Request};

    fn check(step: Step, kept: [bool; 3]) {
        let roles = [Role::Both, Role::Prefill, Role::Decode];
        let pods: Vec<_> = (0..).zip(roles).map(|(id, role)| PodView { role, ..pod(id) }).collect();
        let request = Request { step, ..Request::new("m", Tokens(10)) };
        assert_eq!(judged(&OfRole, &request, &pods), kept, "{step:?}");
    }

    #[test]
    fn each_step_on_its_pods() {
        check(Step::Whole, [true, false, true]);
        check(Step::Prefill, [true, true, false]);
        check(Step::Decode, [true, false, true]);
    }
}
