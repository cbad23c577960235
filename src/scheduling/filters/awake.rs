//! Keeps the pods that may get something new: a sleeping engine has no weights in its memory, and one that is drained, not ready or
//! terminating ends what it has.
//!
//! Reads: `shut` (`vllm:engine_sleep_state` of the last scrape, as old as that; discovery; operators).
//! Drops: pods that are shut.
//! Range: keep or drop.
//! Unknown: a pod of which nothing is said is open.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, Nobody, Verdict};

/// Settings of `awake`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct Awake;

/// Makes the filter.
pub fn build(_: &Settings) -> Box<dyn Filter> {
    Box::new(Awake)
}

impl Filter for Awake {
    fn judge(&self, _: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        for (pod, verdict) in pods.iter().zip(verdicts) {
            if let Some(why) = pod.shut {
                *verdict = Verdict::Drop(why.as_str());
            }
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::AllShut
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::pods::Shut;
    use crate::scheduling::testing::{judged, pod};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn who_is_shut_gets_nothing() {
        let shut = |why, id| PodView { shut: Some(why), ..pod(id) };
        let pods = [pod(0), shut(Shut::Asleep, 1), shut(Shut::Drained, 2)];
        assert_eq!(judged(&Awake, &Request::new("m", Tokens(1)), &pods), [true, false, false]);
    }
}
