//! Keeps the pods that serve the model or adapter asked for.
//!
//! Reads: `serves` (the pod's own list of models, see `PodView::serves`) and the request's model.
//! Drops: pods whose list does not name the model; pods whose list is unknown while another is known to serve it.
//! Range: keep or drop. A request without a model keeps every pod: the pod judges.
//! Unknown: pods whose list was never read are tried when nobody is known to serve the model.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, Nobody, Serves, Verdict};

/// Settings of `model`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct Model;

/// Makes the filter.
pub fn build(_: &Settings) -> Box<dyn Filter> {
    Box::new(Model)
}

impl Filter for Model {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        if cx.request.model.is_empty() {
            return;
        }
        let is_known = pods.iter().any(|pod| pod.serves == Serves::Yes);
        for (pod, verdict) in pods.iter().zip(verdicts) {
            *verdict = match pod.serves {
                Serves::No => Verdict::Drop("does not serve the model"),
                Serves::Unknown if is_known => Verdict::Drop("its models are not known yet"),
                Serves::Yes | Serves::Unknown => Verdict::Keep,
            };
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::ModelUnknown
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{judged, pod};
    use crate::scheduling::{PodView, Request};

    fn check(model: &str, lists: &[Serves], kept: &[bool]) {
        let pods: Vec<_> = (0..).zip(lists).map(|(id, &serves)| PodView { serves, ..pod(id) }).collect();
        assert_eq!(judged(&Model, &Request::new(model, Tokens(10)), &pods), kept, "{model} {lists:?}");
    }

    #[test]
    fn known_servers_first_then_unknown_ones() {
        use Serves::{No, Unknown, Yes};
        check("m", &[Yes, No, Unknown], &[true, false, false]);
        check("m", &[No, Unknown], &[false, true]);
        check("m", &[No, No], &[false, false]);
        check("", &[No, Unknown], &[true, true]);
    }
}
