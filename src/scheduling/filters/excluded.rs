//! Keeps the pods that were not yet tried for this request: a retry never goes to the same pod.
//!
//! Reads: the request's list of excluded pods.
//! Drops: the pods on it.
//! Range: keep or drop.
//! Unknown: nothing can be unknown here.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, Nobody, Verdict};

/// Settings of `excluded`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct Excluded;

/// Makes the filter.
pub fn build(_: &Settings) -> Box<dyn Filter> {
    Box::new(Excluded)
}

impl Filter for Excluded {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        if cx.request.excluded.is_empty() {
            return;
        }
        for (pod, verdict) in pods.iter().zip(verdicts) {
            if cx.request.excluded.contains(&pod.id) {
                *verdict = Verdict::Drop("already tried");
            }
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::AllTried
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::{PodId, Tokens};
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, pod};

    #[test]
    fn a_tried_pod_is_out() {
        let request = Request { excluded: &[PodId(1)], ..Request::new("m", Tokens(1)) };
        assert_eq!(judged(&Excluded, &request, &[pod(0), pod(1)]), [true, false]);
    }
}
