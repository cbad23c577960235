//! The default: what this request costs on a pod, to itself and to the others there, in seconds.
//!
//! Formula: `w·(max(W, W_kv, opens) + p·(1 + 6·f) + loads) + x·d·p + σ·p + ō·s + x·ō·k·n·(c + d·L)`, all of it in `scheduling::marginal`.
//!   One unit, so one policy for prefill-bound, decode-bound and cache-bound loads: affinity holds as long as a hit is worth
//!   the wait, and harder the fuller the fleet's KV is, because then a hit is capacity.
//! Reads: `load`, `pinned`, `peers_decoding`, `adapter`, `grammar` (own bookings, current), `step` (latency model, prior until
//!   learnt), `hit` (own prefix index), `guessed` and `blur` (other gates), `capacity` (scrape, fixed), `busy_until`, `foreign` (scrapes, less with age), the
//!   fleet's `means`; of the request its prompt, expected and most tokens, answers, media and urgency.
//! Range: 0 and up \[seconds\].
//! Unknown: without a reading the load of others counts as none; without a capacity there is no wait for KV room; without a
//!   sample the step time is the prior, whose ratios hold for most models: twice or half changes few choices.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::marginal::{Ask, Rates, means};
use crate::scheduling::{Candidates, Context, Range, Request, Scorer};

/// Settings of `marginal-cost`. The defaults are meant to stay.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a second counts in the total.
    pub weight: f64,
    /// Worth of a second before the first token against one after it, for requests whose class does not say: 5 for a tight
    /// time to first token, 1 for throughput.
    pub urgency: f64,
    /// Worth of a second of the other requests on a pod against one of this request.
    pub others: f64,
    /// Price of uncached prefill while KV is scarce: this times `U/(1 - U)` for the occupied share `U` of the fleet's KV.
    pub cache_price: f64,
    /// Length of an answer where nothing is known of the model's answers \[tokens\].
    pub output_tokens: f64,
    /// Time to load an adapter to which this gate sent nothing on the pod lately \[seconds\].
    pub adapter_load_s: f64,
    /// Time to compile a grammar that was not used on the pod lately \[seconds\].
    pub grammar_compile_s: f64,
    /// Time to encode one image or clip that is not in the pod's cache \[seconds\].
    pub media_encode_s: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            weight: 1.0,
            urgency: 4.0,
            others: 0.5,
            cache_price: 60.0,
            output_tokens: 300.0,
            adapter_load_s: 0.3,
            grammar_compile_s: 0.1,
            media_encode_s: 0.05,
        }
    }
}

impl Settings {
    /// The constants of the formula. What is not a number from 0 up counts as 0.
    pub(in crate::scheduling) fn rates(&self) -> Rates {
        let sane = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
        Rates {
            urgency: sane(self.urgency),
            others: sane(self.others),
            cache_price: sane(self.cache_price),
            output_tokens: sane(self.output_tokens),
            adapter_s: sane(self.adapter_load_s),
            grammar_s: sane(self.grammar_compile_s),
            media_s: sane(self.media_encode_s),
        }
    }
}

#[derive(Debug)]
struct MarginalCost(Rates);

/// Makes the scorer.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(MarginalCost(settings.rates()))
}

impl Scorer for MarginalCost {
    fn range(&self) -> Range {
        Range { low: 0.0, high: f64::INFINITY, unit: "seconds" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let ask = Ask::of(cx.request, &self.0, &means(cx, pods));
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = Some(ask.cost(pod, cx.now));
        }
    }

    fn terms(&self, cx: &Context<'_>, pods: &Candidates<'_>, tell: &mut dyn FnMut(usize, &'static str, f64)) {
        let ask = Ask::of(cx.request, &self.0, &means(cx, pods));
        for (position, pod) in pods.iter().enumerate() {
            for (name, value) in ask.terms(pod, cx.now).named() {
                tell(position, name, value);
            }
        }
    }

    fn second(&self, request: &Request<'_>) -> Option<f64> {
        Some(request.urgency.unwrap_or(self.0.urgency)).filter(|second| *second > 0.0)
    }

    fn marginal(&self) -> Option<&Rates> {
        Some(&self.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    #![allow(clippy::large_types_passed_by_value, reason = "struct update reads best by value")]
    use proptest::prelude::*;

    use super::*;
    use crate::base::{Mono, Tokens};
    use crate::scheduling::testing::{NOW, context, costs, loaded};
    use crate::scheduling::{Handover, Means, PodView, Request, Step, Warm};

    fn cost_of(request: &Request<'_>, pod: PodView) -> f64 {
        costs(&*build(&Settings::default()), request, &[pod])[0].unwrap()
    }

    /// A pod with a queue, as the gate books it: tokens and the time they take.
    fn queued(id: u32, requests: u32, tokens: u64) -> PodView {
        let mut pod = loaded(id, requests, 0, tokens);
        pod.load.wait_s = pod.step.prefill(tokens, 0);
        pod
    }

    #[test]
    fn what_waits_at_the_gate_counts_unless_the_request_goes_before_it() {
        let request = Request::new("m", Tokens(1_000));
        let first = Request { is_first: true, ..request };
        let held = |all_s, first_s| {
            let mut pod = loaded(0, 1, 0, 0);
            (pod.load.held_s, pod.load.held_first_s) = (all_s, first_s);
            pod
        };
        let (free, taken) = (cost_of(&request, held(0.0, 0.0)), cost_of(&request, held(3.0, 0.0)));
        assert!((taken - free - 12.0).abs() < 1e-9, "four times three seconds: {free} {taken}");
        assert!((cost_of(&first, held(3.0, 0.0)) - free).abs() < 1e-9);
        assert!((cost_of(&first, held(3.0, 1.0)) - free - 4.0).abs() < 1e-9);
    }

    #[test]
    fn an_idle_warm_pod_beats_an_idle_cold_one_and_loses_when_it_is_swamped() {
        let request = Request::new("m", Tokens(8000));
        let warm = |requests, tokens| PodView { hit: Tokens(7800), ..queued(0, requests, tokens) };
        let cold = cost_of(&request, queued(1, 0, 0));
        assert!(cost_of(&request, warm(0, 0)) < cold);
        assert!(cost_of(&request, warm(4, 2000)) < cold, "some load is worth the hit");
        assert!(cost_of(&request, warm(2, 20_000)) > cold, "a long queue is not");
    }

    #[test]
    fn without_output_only_the_prefill_counts() {
        let request = Request { generates: false, urgency: Some(2.0), ..Request::new("m", Tokens(1000)) };
        let (pod, step) = (queued(0, 0, 500), crate::pods::StepTime::PRIOR);
        let expected = 2.0 * (step.prefill(1000, 0) + step.prefill(500, 0));
        assert!((cost_of(&request, pod) - expected).abs() < 1e-12);
        let short = Request { max_tokens: Some(Tokens(1)), ..Request::new("m", Tokens(100)) };
        assert!(cost_of(&short, pod) < cost_of(&Request::new("m", Tokens(100)), pod));
    }

    #[test]
    fn a_queue_that_is_done_before_the_kv_comes_is_no_wait_and_what_will_come_is_not_held_up_for_free() {
        let decode = |lead_s| {
            let handover = Handover { setup_s: 0.01, token_s: 0.0, lead_s };
            Request { step: Step::Decode, handover, ..Request::new("m", Tokens(1000)) }
        };
        let wait = queued(0, 0, 20_000).load.wait_s;
        let cost = |lead_s| cost_of(&decode(lead_s), queued(0, 1, 20_000));
        let saved = cost(0.0) - cost(wait / 2.0);
        assert!(saved > 0.0 && (cost(0.0) - cost(wait) - 2.0 * saved).abs() < 1e-9);
        assert_eq!(cost(wait).to_bits(), cost(9.0 * wait).to_bits());
        let mut awaited = queued(0, 1, 0);
        awaited.load.coming = 3;
        let whole = Request::new("m", Tokens(5000));
        assert!(cost_of(&whole, awaited) > cost_of(&whole, queued(0, 1, 0)));
    }

    #[test]
    fn a_full_cache_costs_a_wait_unless_the_prompt_is_pinned_there_already() {
        let request = Request::new("m", Tokens(10_000));
        let mut full = loaded(0, 4, 0, 0);
        (full.capacity, full.load.context_tokens, full.load.pinned_tokens) =
            (Some(Tokens(100_000)), Tokens(95_000), Tokens(95_000));
        let mut roomy = full;
        roomy.capacity = Some(Tokens(1_000_000));
        let own = PodView { pinned: Tokens(9_000), ..full };
        let cx = |pod: PodView| {
            let pods = [pod];
            let means = Means { kv_share: 0.5, step: pod.step };
            let cx = Context { means: Some(means), ..context(&request, &pods) };
            let mut out = [None];
            build(&Settings::default()).cost(&cx, &Candidates::new(&pods, &[0]), &mut out);
            out[0].unwrap()
        };
        assert!(cx(full) > cx(roomy) && cx(own).to_bits() == cx(roomy).to_bits());
        assert_eq!(cx(PodView { capacity: None, ..full }).to_bits(), cx(roomy).to_bits());
    }

    #[test]
    fn a_cache_that_answers_will_fill_is_no_room() {
        let request = |expected| Request { expected_tokens: Some(expected), ..Request::new("m", Tokens(1000)) };
        let pod = |capacity| PodView { capacity: Some(Tokens(capacity)), ..loaded(0, 50, 0, 0) };
        let extra = |expected| cost_of(&request(expected), pod(60_000)) - cost_of(&request(expected), pod(10_000_000));
        assert!(extra(300.0).abs() < 1e-9, "50 answers of 300 tokens fit");
        assert!(extra(4_000.0) > 1.0, "50 of 4,000 do not");
    }

    #[test]
    fn the_price_of_a_miss_is_the_same_on_slow_and_on_fast_pods() {
        let request = Request::new("m", Tokens(5_000));
        let mut pods = [loaded(0, 0, 0, 0), loaded(1, 0, 0, 0)];
        pods[1].step = pods[0].step.scaled(2.0);
        let (cx, mut prices) = (context(&request, &pods), [0.0; 2]);
        let means = means(&cx, &Candidates::new(&pods, &[0, 1]));
        assert!((means.step.b / pods[0].step.b - 1.5).abs() < 1e-9 && means.kv_share.abs() < 1e-9);
        let cx = Context { means: Some(Means { kv_share: 0.5, ..means }), ..cx };
        let scorer = build(&Settings::default());
        scorer.terms(&cx, &Candidates::new(&pods, &[0, 1]), &mut |pod, name, value| {
            if name == "price" {
                prices[pod] = value;
            }
        });
        assert!(prices[0] > 0.0 && prices[0].to_bits() == prices[1].to_bits());
    }

    #[test]
    fn what_has_to_be_loaded_and_who_shares_the_engine_cost() {
        let request = Request { media: 2, ..Request::new("m", Tokens(1000)) };
        let base = cost_of(&request, loaded(0, 1, 0, 0));
        for worse in [
            PodView { adapter: Warm::No, ..loaded(0, 1, 0, 0) },
            PodView { grammar: Warm::No, ..loaded(0, 1, 0, 0) },
            PodView { peers_decoding: 3, ..loaded(0, 1, 0, 0) },
            PodView { busy_until: Some(Mono(NOW.0 + 1_000_000)), ..loaded(0, 1, 0, 0) },
        ] {
            assert!(cost_of(&request, worse) > base);
        }
        assert!(cost_of(&Request { media: 0, ..request }, loaded(0, 1, 0, 0)) < base);
        assert!(cost_of(&Request { answers: 4, ..request }, loaded(0, 1, 0, 0)) > base);
    }

    #[test]
    fn requests_of_others_count_like_ours() {
        let request = Request::new("m", Tokens(100));
        let foreign = PodView { foreign: 8.0, ..loaded(0, 2, 0, 0) };
        assert_eq!(cost_of(&request, foreign).to_bits(), cost_of(&request, loaded(0, 10, 0, 0)).to_bits());
    }

    #[test]
    fn what_other_gates_are_guessed_to_have_sent_counts_like_a_hit_and_their_haste_costs() {
        let request = Request::new("m", Tokens(5000));
        let cost = |hit, guessed, blur| {
            cost_of(&request, PodView { hit: Tokens(hit), guessed: Tokens(guessed), blur, ..loaded(0, 2, 0, 0) })
        };
        assert_eq!(cost(1000, 2000, 0.0).to_bits(), cost(3000, 0, 0.0).to_bits());
        assert_eq!(cost(4000, 2000, 0.0).to_bits(), cost(5000, 0, 0.0).to_bits(), "no more than all");
        assert!(cost(0, 0, 0.5) > cost(0, 0, 0.1) && cost(0, 0, 0.1) > cost(0, 0, 0.0));
    }

    #[test]
    fn the_terms_add_up_to_the_cost() {
        let request = Request::new("m", Tokens(5000));
        let pods = [queued(0, 7, 900), PodView { adapter: Warm::No, hit: Tokens(300), ..queued(1, 3, 0) }];
        let (cx, mut sums) = (context(&request, &pods), [0.0; 2]);
        let scorer = build(&Settings::default());
        scorer.terms(&cx, &Candidates::new(&pods, &[0, 1]), &mut |pod, _, value| sums[pod] += value);
        for (sum, cost) in sums.iter().zip(costs(&*scorer, &request, &pods)) {
            assert!((sum - cost.unwrap()).abs() < 1e-9);
        }
    }

    proptest! {
        /// More to prefill, a longer queue, more requests, more context, less room: never cheaper.
        #[test]
        fn monotone(prompt in 0_u64..200_000, hit in 0_u64..200_000, requests in 0_u32..300, wait in 0_u32..60_000,
                    held in 0_u64..2_000_000, capacity in 1_u64..3_000_000, more in 1_u64..5000) {
            let request = Request::new("m", Tokens(prompt));
            let mut pod = PodView { hit: Tokens(hit), capacity: Some(Tokens(capacity)), ..loaded(0, requests, 0, 0) };
            pod.load.wait_s = f64::from(wait) / 1000.0;
            (pod.load.context_tokens, pod.load.pinned_tokens) = (Tokens(held), Tokens(held));
            let base = cost_of(&request, pod);
            let mut changed = [pod; 6];
            changed[0].hit = Tokens(hit.saturating_sub(more));
            changed[1].load.wait_s += more as f64 / 1000.0;
            changed[2].load.requests += 1;
            changed[3].load.context_tokens += Tokens(more);
            changed[4].load.pinned_tokens += Tokens(more);
            changed[5].peers_decoding += 1;
            for worse in changed {
                prop_assert!(cost_of(&request, worse) >= base * (1.0 - 1e-12));
            }
        }
    }
}
