//! Prefers pods with the fewest of our requests in flight: join the shortest queue.
//!
//! Formula: `n_i`.
//! Reads: `load.requests` (own bookings, current).
//! Range: 0 and up \[requests\].
//! Unknown: nothing is; requests of other gates and direct clients are not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `active-requests`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much one request in flight counts in the total.
    pub weight: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0 }
    }
}

#[derive(Debug)]
struct ActiveRequests;

/// Makes the scorer.
pub fn build(_: &Settings) -> Box<dyn Scorer> {
    Box::new(ActiveRequests)
}

impl Scorer for ActiveRequests {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "requests" }
    }

    fn cost(&self, _: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(f64::from(pod.load.requests));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{costs, loaded};

    #[test]
    fn counts_requests() {
        let pods = [loaded(0, 0, 0, 0), loaded(1, 7, 2, 900)];
        assert_eq!(costs(&ActiveRequests, &Request::new("m", Tokens(1)), &pods), [Some(0.0), Some(7.0)]);
    }
}
