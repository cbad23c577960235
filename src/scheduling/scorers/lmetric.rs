//! A product of new work and batch size: prefill that many would have to wait for is dear.
//!
//! Formula: `(u + q·Q) · (n + plus)`: `u` uncached tokens of this request, `Q` those sent to the pod and not yet prefilled (`queued`),
//!   `n` requests there. LMETRIC (OSDI'26) leaves open whether queued tokens count; vllm-router's `kv_aware` counts them, with
//!   `plus: 1`. With `by: blocks` the second factor is KV in use, in blocks, plus 1: Dynamo's `lmetric` mode.
//! Reads: `load` (own bookings, current), `hit` (own prefix index), `block_tokens` (scrape), the request's prompt.
//! Range: 0 and up \[tokens × requests\].
//! Unknown: a pod whose block size is not known has blocks of 16 tokens; load of others is not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `lmetric`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a cost of 1 counts in the total.
    pub weight: f64,
    /// Whether uncached tokens sent before and not yet prefilled count.
    pub queued: bool,
    /// Added to the second factor, so that an idle pod is not free whatever it must compute.
    pub plus: f64,
    /// What the second factor counts.
    pub by: By,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, queued: false, plus: 1.0, by: By::Requests }
    }
}

/// What stands for the size of the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// Requests in flight.
    Requests,
    /// KV blocks in use.
    Blocks,
}

#[derive(Debug)]
struct Lmetric(Settings);

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(Lmetric(settings.clone()))
}

impl Scorer for Lmetric {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "tokens x requests" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let plus = if self.0.plus.is_finite() { self.0.plus.max(0.0) } else { 0.0 };
        for (pod, cost) in pods.iter().zip(costs) {
            let queued = if self.0.queued { pod.load.prefill_tokens.0 } else { 0 };
            let work = (pod.uncached(cx.request.prompt_tokens).0 + queued) as f64;
            let batch = match self.0.by {
                By::Requests => f64::from(pod.load.requests),
                By::Blocks => pod.load.pinned_tokens.0 as f64 / f64::from(pod.block_tokens.unwrap_or(16).max(1)),
            };
            *cost = Some(work * (batch + plus));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{costs, loaded};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn work_times_batch() {
        let mut pods = [loaded(0, 4, 1, 500), PodView { hit: Tokens(900), ..loaded(1, 9, 0, 0) }];
        pods[1].load.pinned_tokens = Tokens(320);
        let request = Request::new("m", Tokens(1000));
        let said = |settings: &Settings| costs(&*build(settings), &request, &pods);
        assert_eq!(said(&Settings::default()), [Some(5000.0), Some(1000.0)]);
        assert_eq!(said(&Settings { queued: true, plus: 0.0, ..Settings::default() }), [Some(6000.0), Some(900.0)]);
        assert_eq!(said(&Settings { by: By::Blocks, ..Settings::default() }), [Some(1000.0), Some(2100.0)]);
    }
}
