//! Sends all requests of a session to the same pod, as long as it is there.
//!
//! Formula: 0 on the pod that wins the draw between session and pod (rendezvous hashing), 1 on all others. When pods come or go only
//!   the sessions of the pod that left, or that the new one wins, move.
//! Reads: the request's `session` (hash of the header or cookie of `routing.session_header`).
//! Range: 0 or 1 \[ratio\].
//! Unknown: a request without a session has an unknown cost on every pod, which counts for nothing.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::plugin::drawn;
use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `session-affinity`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much leaving the session's pod counts in the total.
    pub weight: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

#[derive(Debug)]
struct SessionAffinity;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(SessionAffinity)
}

impl Scorer for SessionAffinity {
    fn range(&self) -> Range {
        Range { low: 0.0, high: 1.0, unit: "ratio" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let Some(session) = cx.request.session else { return };
        let home = pods.iter().map(|pod| pod.id).max_by_key(|pod| (drawn(session, *pod), *pod));
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(if Some(pod.id) == home { 0.0 } else { 1.0 });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{costs, pod};

    #[test]
    fn sessions_stay_and_spread() {
        let all: Vec<_> = (0..8).map(pod).collect();
        let home = |session, pods: &[_]| {
            let request = Request { session: Some(session), ..Request::new("m", Tokens(1)) };
            let costs = costs(&SessionAffinity, &request, pods);
            pods[costs.iter().position(|cost| *cost == Some(0.0)).unwrap()].id
        };
        let mut counts = [0; 8];
        for session in 0..800 {
            let before = home(session, &all);
            counts[before.0 as usize] += 1;
            assert!(home(session, &all[..7]) == before || before.0 == 7, "session {session} moved for nothing");
        }
        assert!(counts.iter().all(|&count| count > 60), "{counts:?}");
        assert_eq!(costs(&SessionAffinity, &Request::new("m", Tokens(1)), &all), [None; 8]);
    }
}
