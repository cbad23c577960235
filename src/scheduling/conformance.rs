//! What every plug-in of the registry is held to, and the decision made of them, over many random fleets.
//!
//! A plug-in's header states what it reads, its range and what unknown means; filters also what they drop. The order of the
//! pods has no influence, costs are finite and in their range, picks are in bounds and follow from the generator. Of the whole:
//! whoever may answer is never left unused. A failing case prints its seed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::time::Duration;

use super::filters::REGISTRY as FILTERS;
use super::pickers::REGISTRY as PICKERS;
use super::scorers::REGISTRY as SCORERS;
use super::testing::{NOW, context, pod};
use super::{
    Candidates, Context, Decision, Detail, Gauges, Mode, Offer, PodView, Profile, Request, Scratch, Serves, Step,
    Verdict, Warm, decide, safe_mode,
};
use crate::base::{Mono, PodId, Rng, Tokens};
use crate::pods::{LoadNow, Role, Shut, Standing, StepTime};

const SEEDS: u64 = 400;

/// A pod in any state.
fn any_pod(id: u32, rng: &mut Rng) -> PodView {
    let requests = rng.below(40) as u32;
    let prefilling = rng.below(u64::from(requests) + 1) as u32;
    let context = rng.below(1_000_000);
    let load = LoadNow {
        requests,
        unanswered: prefilling,
        prefilling,
        coming: rng.below(4) as u32,
        prefill_tokens: Tokens(rng.below(100_000)),
        wait_s: rng.unit() * 10.0,
        held_s: rng.unit() * 2.0,
        held_first_s: rng.unit(),
        context_tokens: Tokens(context),
        generated_tokens: Tokens(rng.below(1_000)),
        pinned_tokens: Tokens(rng.below(context + 1)),
        served: rng.below(100),
        dispatched: rng.below(1_000),
    };
    let reading = (rng.below(3) > 0).then(|| Gauges {
        running: (rng.below(4) > 0).then(|| rng.below(300) as u32),
        waiting: (rng.below(4) > 0).then(|| rng.below(300) as u32),
        kv_used: [None, Some(f64::NAN), Some(-1.0), Some(2.0), Some(rng.unit())][rng.below(5) as usize],
    });
    let later = Mono(NOW.0 + 1 + rng.below(9_000_000));
    let standings =
        [Standing::Ready, Standing::Ready, Standing::Ramp(rng.unit()), Standing::Ejected(later), Standing::Probe];
    PodView {
        role: [Role::Both, Role::Both, Role::Prefill, Role::Decode][rng.below(4) as usize],
        standing: standings[rng.below(5) as usize],
        busy_until: (rng.below(4) == 0).then_some(later),
        is_dark: rng.below(4) == 0,
        load,
        reading,
        age: reading.map(|_| Duration::from_micros(rng.below(10_000_000))),
        guessed: Tokens(rng.below(500)),
        blur: rng.unit(),
        foreign: rng.unit() * 20.0,
        foreign_tokens: rng.unit() * 50_000.0,
        hit: Tokens(rng.below(20_000)),
        coming: Tokens(rng.below(2_000)),
        pinned: Tokens(rng.below(2_000)),
        step: StepTime::PRIOR.scaled(0.1 + rng.unit()),
        peers_decoding: rng.below(3) as u32,
        adapter: [Warm::NotNeeded, Warm::Yes, Warm::No][rng.below(3) as usize],
        grammar: [Warm::NotNeeded, Warm::Yes, Warm::No][rng.below(3) as usize],
        last_dispatch: (rng.below(2) == 0).then(|| Mono(rng.below(NOW.0))),
        last_cold: (rng.below(2) == 0).then(|| Mono(rng.below(NOW.0))),
        context_max: (rng.below(2) == 0).then(|| Tokens(rng.below(40_000))),
        shut: (rng.below(8) == 0).then_some(Shut::Asleep),
        serves: [Serves::Yes, Serves::Yes, Serves::Unknown, Serves::No][rng.below(4) as usize],
        capacity: (rng.below(2) == 0).then_some(Tokens(500_000)),
        block_tokens: (rng.below(2) == 0).then_some(16),
        ..pod(id)
    }
}

/// Runs `test` on random contexts: a request, its pods by id, the same pods in another order, and a generator.
fn each_case(test: impl Fn(u64, &Request<'_>, &[PodView], &[PodView], &mut Rng)) {
    for seed in 0..SEEDS {
        let mut rng = Rng::new(seed);
        let pods: Vec<PodView> = (0..rng.below(10) as u32).map(|id| any_pod(id, &mut rng)).collect();
        let mut mixed = pods.clone();
        for last in (1..mixed.len()).rev() {
            mixed.swap(last, rng.below(last as u64 + 1) as usize);
        }
        let any_ids: Vec<PodId> = (0..rng.below(3)).map(|_| PodId(rng.below(10) as u32)).collect();
        let request = Request {
            step: [Step::Whole, Step::Prefill, Step::Decode][rng.below(3) as usize],
            may_pull: rng.below(4) == 0,
            max_tokens: (rng.below(2) == 0).then(|| Tokens(rng.below(1_000))),
            expected_tokens: (rng.below(2) == 0).then(|| rng.unit() * 1_000.0),
            generates: rng.below(4) > 0,
            is_stream: rng.below(2) == 0,
            answers: 1 + rng.below(3) as u32,
            urgency: (rng.below(2) == 0).then(|| 1.0 + rng.unit()),
            ttft_s: (rng.below(2) == 0).then(|| rng.unit()),
            media: rng.below(2) as u32,
            session: (rng.below(2) == 0).then(|| rng.bits()),
            head: (rng.below(2) == 0).then(|| rng.bits()),
            pinned: (rng.below(5) == 0).then(|| PodId(rng.below(10) as u32)),
            excluded: &any_ids,
            ..Request::new(if rng.below(8) == 0 { "" } else { "m" }, Tokens(rng.below(3) * rng.below(20_000)))
        };
        test(seed, &request, &pods, &mixed, &mut rng);
    }
}

/// Positions of `pods` by id.
fn by_id(pods: &[PodView]) -> Vec<u32> {
    let mut kept: Vec<u32> = (0..pods.len() as u32).collect();
    kept.sort_by_key(|&position| pods[position as usize].id);
    kept
}

fn check_header(name: &str, header: &str, words: &[&str]) {
    for word in words {
        let said = header.lines().any(|line| line.strip_prefix(word).is_some_and(|rest| !rest.trim().is_empty()));
        assert!(said, "{name}: its header has no line `{word} ...`");
    }
}

#[test]
fn headers_say_what_is_read_and_what_unknown_means() {
    for one in FILTERS {
        check_header(one.name, &one.header(), &["Reads:", "Drops:", "Range:", "Unknown:"]);
    }
    for one in SCORERS {
        check_header(one.name, &one.header(), &["Formula:", "Reads:", "Range:", "Unknown:"]);
    }
    for one in PICKERS {
        check_header(one.name, &one.header(), &["Reads:", "Range:", "Unknown:"]);
    }
}

#[test]
fn filters_do_not_see_the_order_of_pods() {
    let verdicts = |filter: usize, cx: &Context<'_>| {
        let kept = by_id(cx.pods);
        let mut verdicts = vec![Verdict::Keep; kept.len()];
        (FILTERS[filter].default)().build().judge(cx, &Candidates::new(cx.pods, &kept), &mut verdicts);
        verdicts
    };
    each_case(|seed, request, pods, mixed, _| {
        for (position, one) in FILTERS.iter().enumerate() {
            let straight = verdicts(position, &context(request, pods));
            assert_eq!(straight, verdicts(position, &context(request, mixed)), "{}, seed {seed}", one.name);
        }
    });
}

#[test]
fn costs_are_in_range_and_do_not_see_the_order_of_pods() {
    let costs = |scorer: usize, cx: &Context<'_>| {
        let kept = by_id(cx.pods);
        let mut costs = vec![None; kept.len()];
        (SCORERS[scorer].default)().build().cost(cx, &Candidates::new(cx.pods, &kept), &mut costs);
        costs
    };
    each_case(|seed, request, pods, mixed, _| {
        for (position, one) in SCORERS.iter().enumerate() {
            let straight = costs(position, &context(request, pods));
            assert_eq!(straight, costs(position, &context(request, mixed)), "{}, seed {seed}", one.name);
            let range = (one.default)().build().range();
            let is_good = |cost: &f64| cost.is_finite() && (range.low..=range.high).contains(cost);
            assert!(straight.iter().flatten().all(is_good), "{}, seed {seed}: {straight:?}", one.name);
        }
    });
}

#[test]
fn picks_are_in_bounds_and_follow_from_the_generator() {
    each_case(|seed, request, pods, _, rng| {
        let offers: Vec<Offer> = pods.iter().map(|pod| Offer { pod: pod.id, cost: rng.unit(), at: pod.id.0 }).collect();
        for one in PICKERS.iter().filter(|_| !offers.is_empty()) {
            let pick = || (one.default)().build().pick(&context(request, pods), &offers, &mut Rng::new(seed));
            assert_eq!(pick(), pick(), "{}, seed {seed}", one.name);
            assert!(pick() < offers.len(), "{}, seed {seed}", one.name);
        }
    });
}

fn decided(request: &Request<'_>, pods: &[PodView], seed: u64) -> Decision {
    decide(&Profile::default(), &context(request, pods), &mut Rng::new(seed), Detail::Rows, &mut Scratch::default())
}

/// Whether the guards but `health` are for this pod.
fn may_answer(request: &Request<'_>, pods: &[PodView], pod: &PodView) -> bool {
    let best = if pods.iter().any(|pod| pod.serves == Serves::Yes) { Serves::Yes } else { Serves::Unknown };
    let serves = request.model.is_empty() || pod.serves == best;
    serves && request.may_use(pod.role) && pod.shut.is_none() && !request.excluded.contains(&pod.id)
}

#[test]
fn whoever_may_answer_is_used_and_nobody_else() {
    each_case(|seed, request, pods, mixed, _| {
        let decision = decided(request, pods, seed);
        assert_eq!(decision, decided(request, mixed, seed), "seed {seed}: the order of the pods counts");
        let able: Vec<PodId> = pods.iter().filter(|pod| may_answer(request, pods, pod)).map(|pod| pod.id).collect();
        let is_pinned = decision.mode == Mode::Pinned && decision.chosen == request.pinned;
        assert_eq!(decision.chosen.is_some(), is_pinned || !able.is_empty(), "seed {seed}: {decision:?}");
        assert_eq!(decision.nobody.is_some(), decision.chosen.is_none(), "seed {seed}: {decision:?}");
        let used = decision.chosen.iter().copied().chain(decision.alternatives.iter());
        for id in used.filter(|id| !(is_pinned && Some(*id) == request.pinned)) {
            assert!(able.contains(&id), "seed {seed}: {id} in {decision:?}");
        }
        let safe = safe_mode(pods, request, &mut Rng::new(seed));
        assert!(safe.chosen.is_some() || able.is_empty(), "seed {seed}: {safe:?}");
    });
}

#[test]
fn an_ejected_pod_is_chosen_in_panic_only() {
    let mut panics = 0;
    each_case(|seed, request, pods, _, _| {
        let decision = decided(&Request { pinned: None, ..*request }, pods, seed);
        let Some(chosen) = pods.iter().find(|pod| Some(pod.id) == decision.chosen) else { return };
        if matches!(chosen.standing, Standing::Ejected(_)) {
            assert_eq!(decision.mode, Mode::Panic, "seed {seed}: {decision:?}");
        }
    });
    for seed in 0..20 {
        let out = PodView { standing: Standing::Ejected(Mono(NOW.0 + 1)), ..pod(0) };
        panics += u32::from(decided(&Request::new("m", Tokens(9)), &[out], seed).mode == Mode::Panic);
        let probe = PodView { standing: Standing::Probe, ..pod(0) };
        panics += u32::from(decided(&Request::new("m", Tokens(9)), &[probe], seed).mode == Mode::Panic);
    }
    assert_eq!(panics, 40);
}
