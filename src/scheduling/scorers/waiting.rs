//! Prefers pods with fewer requests waiting in the engine, all clients counted.
//!
//! Formula: `(q_i - min) / (max - min)` over the pods, 0 for all if they are equal; with `normalised: false` the number itself.
//! Reads: `reading.waiting` (`vllm:num_requests_waiting`), if the reading is no older than `age_ms_max`.
//! Range: 0 (fewest) to 1 (most) \[ratio\], or 0 and up.
//! Unknown: without a reading, or with an old one, the cost is unknown and counts as the mean of the others.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::plugin::spread;
use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `waiting`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much the most counts in the total.
    pub weight: f64,
    /// Whether the least is 0 and the most 1, whatever they are.
    pub normalised: bool,
    /// Oldest reading that is believed \[ms\].
    pub age_ms_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, normalised: true, age_ms_max: 2000 }
    }
}

#[derive(Debug)]
struct Waiting(Settings);

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(Waiting(settings.clone()))
}

impl Scorer for Waiting {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "ratio, or requests" }
    }

    fn cost(&self, _: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let age_max = Duration::from_millis(self.0.age_ms_max);
        for (pod, cost) in pods.iter().zip(costs.iter_mut()) {
            *cost = pod.reading_within(age_max).and_then(|reading| reading.waiting).map(f64::from);
        }
        if self.0.normalised {
            spread(costs);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{costs, pod, read};
    use crate::scheduling::{PodView, Request};

    fn saying(id: u32, waiting: u32, age_ms: u64) -> PodView {
        let mut pod = read(pod(id), None, age_ms);
        pod.reading.as_mut().unwrap().waiting = Some(waiting);
        pod
    }

    #[test]
    fn the_most_is_1_and_old_news_are_none() {
        let pods = [saying(0, 2, 10), saying(1, 6, 10), saying(2, 4, 10), saying(3, 99, 3_000), pod(4)];
        let request = Request::new("m", Tokens(1));
        let said = costs(&*build(&Settings::default()), &request, &pods);
        assert_eq!(said, [Some(0.0), Some(1.0), Some(0.5), None, None]);
        let plain = Settings { normalised: false, ..Settings::default() };
        assert_eq!(costs(&*build(&plain), &request, &pods)[1], Some(6.0));
        assert_eq!(costs(&*build(&Settings::default()), &request, &pods[..1]), [Some(0.0)]);
    }
}
