//! The default: what this request costs on a pod, to itself and to the others there, in prefill tokens.
//!
//! Formula: `w·(Q + u) + D·u + ō·(2·c·n + d·(K + n·L))` per pod: wait and own prefill, worth `w` times what comes after the
//!   first token; its prefill delays each of `D` decoding requests; its `ō` output tokens take longer by the `n` requests and
//!   `K` context tokens there, and make each of the `n` wait for it. `c` and `d` are step costs in prefill tokens. It is the
//!   router-local part of a marginal cost in seconds divided by the seconds of one prefill token; the defaults are
//!   `c` = 20 µs, `d` = 76 ns over `b` = 44 µs (Qwen3-32B on 2 H100). Only ratios matter: twice or half changes little.
//!   `K` grows with every token generated: without them it loses to the shortest queue on long answers. `n` and `D` are our
//!   own requests and those of others, who are taken to be decoding: most of a request's life is.
//! Reads: `load` (own bookings, current), `foreign` (requests of other gates and direct clients; scrapes, less with their
//!   age), `hit` (own prefix index), the request's prompt, max tokens and urgency.
//! Range: 0 and up \[tokens\].
//! Unknown: without a fresh reading the load of others counts as none; their context, and a full KV cache, are not seen.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `token-cost`. The defaults are meant to stay.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a token counts in the total.
    pub weight: f64,
    /// Worth of a second before the first token against one after it, for requests that do not say: 5 for a tight time to
    /// first token, 1 for throughput.
    pub urgency: f64,
    /// Length of an answer that is expected when the client sets no lower bound \[tokens\].
    pub output_tokens: f64,
    /// What one more sequence adds to a step, in prefill tokens \[tokens\].
    pub sequence_tokens: f64,
    /// What one more token of context adds to a step, in prefill tokens \[tokens\].
    pub context_tokens: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, urgency: 3.0, output_tokens: 300.0, sequence_tokens: 0.45, context_tokens: 0.0017 }
    }
}

#[derive(Debug)]
struct TokenCost(Settings);

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(TokenCost(settings.clone()))
}

impl Scorer for TokenCost {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "tokens" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let (own, request) = (&self.0, cx.request);
        let output = match (request.generates, request.max_tokens) {
            (false, _) => 0.0,
            (true, Some(most)) => own.output_tokens.min(most.0 as f64),
            (true, None) => own.output_tokens,
        };
        let urgency = request.urgency.unwrap_or(own.urgency);
        let prompt = request.prompt_tokens.0 as f64;
        for (pod, cost) in pods.iter().zip(costs) {
            let uncached = pod.uncached(request.prompt_tokens).0 as f64;
            let foreign = pod.foreign();
            let requests = f64::from(pod.load.requests) + foreign;
            let before = urgency * (pod.load.prefill_tokens.0 as f64 + uncached);
            let delays = (f64::from(pod.load.decoding()) + foreign) * uncached;
            let context = pod.load.context_tokens.0 as f64 + requests * prompt;
            let after = output * (2.0 * own.sequence_tokens * requests + own.context_tokens * context);
            *cost = Some(before + delays + after);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    #![allow(clippy::large_types_passed_by_value, reason = "struct update reads best by value")]
    use proptest::prelude::*;

    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{costs, loaded, read};
    use crate::scheduling::{PodView, Request};

    fn cost_of(request: &Request<'_>, pod: PodView) -> f64 {
        costs(&*build(&Settings::default()), request, &[pod])[0].unwrap()
    }

    #[test]
    fn an_idle_warm_pod_beats_an_idle_cold_one_and_loses_when_it_is_swamped() {
        let request = Request::new("m", Tokens(8000));
        let warm = |requests, queued| PodView { hit: Tokens(7800), ..loaded(0, requests, 0, queued) };
        let cold = cost_of(&request, loaded(1, 0, 0, 0));
        assert!(cost_of(&request, warm(0, 0)) < cold);
        assert!(cost_of(&request, warm(2, 1000)) < cold, "some load is worth the hit");
        assert!(cost_of(&request, warm(2, 20_000)) > cold, "a long queue is not");
    }

    #[test]
    fn without_output_only_the_prefill_counts() {
        let request = Request { generates: false, ..Request::new("m", Tokens(100)) };
        assert_eq!(cost_of(&request, loaded(0, 0, 0, 50)).to_bits(), 450.0_f64.to_bits());
        let short = Request { max_tokens: Some(Tokens(1)), ..Request::new("m", Tokens(100)) };
        let pod = loaded(0, 10, 0, 0);
        assert!(cost_of(&short, pod) < cost_of(&Request::new("m", Tokens(100)), pod));
    }

    #[test]
    fn what_is_generated_counts_as_context() {
        let request = Request::new("m", Tokens(100));
        let mut long = loaded(0, 1, 0, 0);
        long.load.context_tokens = Tokens(1100);
        long.load.generated_tokens = Tokens(1000);
        let mut short = loaded(1, 1, 0, 0);
        short.load.context_tokens = Tokens(100);
        let settings = Settings::default();
        let difference = cost_of(&request, long) - cost_of(&request, short);
        assert!((difference - settings.output_tokens * settings.context_tokens * 1000.0).abs() < 1e-6, "{difference}");
    }

    #[test]
    fn requests_of_others_count_like_ours_and_less_with_age() {
        let request = Request::new("m", Tokens(100));
        let foreign = |running, age_ms| {
            let mut pod = read(loaded(0, 2, 0, 0), None, age_ms);
            let reading = pod.reading.as_mut().unwrap();
            (reading.running, reading.own.requests) = (Some(running), 2);
            cost_of(&request, pod)
        };
        let own = |requests| cost_of(&request, loaded(0, requests, 0, 0));
        assert_eq!(foreign(10, 0).to_bits(), own(10).to_bits());
        assert_eq!(foreign(10, 2_500).to_bits(), own(6).to_bits());
        assert_eq!(foreign(10, 5_000).to_bits(), own(2).to_bits());
    }

    proptest! {
        /// More to prefill, a longer queue, more requests, more context: never cheaper.
        #[test]
        fn monotone(prompt in 0_u64..200_000, hit in 0_u64..200_000, requests in 0_u32..300, queued in 0_u64..500_000,
                    context in 0_u64..2_000_000, more in 1_u64..5000) {
            let request = Request::new("m", Tokens(prompt));
            let mut pod = PodView { hit: Tokens(hit), ..loaded(0, requests, 0, queued) };
            pod.load.context_tokens = Tokens(context);
            let base = cost_of(&request, pod);
            let mut changed = [pod; 4];
            changed[0].hit = Tokens(hit.saturating_sub(more));
            changed[1].load.prefill_tokens += Tokens(more);
            changed[2].load.requests += 1;
            changed[3].load.context_tokens += Tokens(more);
            for worse in changed {
                prop_assert!(cost_of(&request, worse) >= base);
            }
        }
    }
}
