//! Keeps the pods whose engine is awake: a sleeping one has no weights in its memory.
//!
//! Reads: `sleeping` (`vllm:engine_sleep_state` of the last scrape, as old as that).
//! Drops: sleeping pods.
//! Range: keep or drop.
//! Unknown: a pod that does not say is awake.
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
            if pod.sleeping {
                *verdict = Verdict::Drop("asleep");
            }
        }
    }

    fn nobody(&self) -> Nobody {
        Nobody::AllAsleep
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{judged, pod};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn sleepers_get_nothing() {
        let pods = [pod(0), PodView { sleeping: true, ..pod(1) }];
        assert_eq!(judged(&Awake, &Request::new("m", Tokens(1)), &pods), [true, false]);
    }
}
