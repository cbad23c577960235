//! Builders and runners for the tests of this room.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#![allow(clippy::large_types_passed_by_value, reason = "struct update reads best by value")]
use std::time::Duration;

use super::{Candidates, Context, Filter, Gauges, Offer, Picker, PodView, Request, Scorer, Serves, Verdict, Warm};
use crate::base::{Mono, PodId, Rng, Tokens};
use crate::pods::{LabelSet, LoadNow, Role, Standing, StepTime};

/// The instant of every decision in tests.
pub(super) const NOW: Mono = Mono(60_000_000);

/// A decision about `pods` with the fleet's default rules.
pub(super) const fn context<'a>(request: &'a Request<'a>, pods: &'a [PodView]) -> Context<'a> {
    Context::new(NOW, request, pods)
}

/// An idle, healthy pod without a reading that serves the model.
pub(super) fn pod(id: u32) -> PodView {
    PodView {
        id: PodId(id),
        role: Role::Both,
        standing: Standing::Ready,
        busy_until: None,
        is_dark: false,
        load: LoadNow::default(),
        reading: None,
        guessed: Tokens(0),
        blur: 0.0,
        foreign: 0.0,
        foreign_tokens: 0.0,
        age: None,
        hit: Tokens(0),
        coming: Tokens(0),
        pinned: Tokens(0),
        step: StepTime::PRIOR,
        peers_decoding: 0,
        adapter: Warm::NotNeeded,
        grammar: Warm::NotNeeded,
        last_dispatch: None,
        last_cold: None,
        context_max: None,
        labels: LabelSet::default(),
        shut: None,
        serves: Serves::Yes,
        capacity: None,
        block_tokens: None,
    }
}

/// A pod with load.
pub(super) fn loaded(id: u32, requests: u32, prefilling: u32, queued: u64) -> PodView {
    let load =
        LoadNow { requests, unanswered: prefilling, prefilling, prefill_tokens: Tokens(queued), ..LoadNow::default() };
    PodView { load, ..pod(id) }
}

/// `pod` with a reading of some age.
pub(super) fn read(pod: PodView, kv_used: Option<f64>, age_ms: u64) -> PodView {
    let reading = Gauges { kv_used, ..Gauges::default() };
    PodView { reading: Some(reading), age: Some(Duration::from_millis(age_ms)), ..pod }
}

/// What `filter` keeps of `pods`, which must be sorted by id.
pub(super) fn judged(filter: &dyn Filter, request: &Request<'_>, pods: &[PodView]) -> Vec<bool> {
    let kept: Vec<u32> = (0..pods.len() as u32).collect();
    let mut verdicts = vec![Verdict::Keep; pods.len()];
    filter.judge(&context(request, pods), &Candidates::new(pods, &kept), &mut verdicts);
    verdicts.iter().map(|verdict| verdict.keeps()).collect()
}

/// What `scorer` says of `pods`, which must be sorted by id.
pub(super) fn costs(scorer: &dyn Scorer, request: &Request<'_>, pods: &[PodView]) -> Vec<Option<f64>> {
    let kept: Vec<u32> = (0..pods.len() as u32).collect();
    let mut costs = vec![None; pods.len()];
    scorer.cost(&context(request, pods), &Candidates::new(pods, &kept), &mut costs);
    costs
}

/// How often `picker` takes each of the offers with these costs in `draws` draws.
pub(super) fn picks(picker: &dyn Picker, costs: &[f64], draws: usize) -> Vec<usize> {
    let offers: Vec<_> = (0..).zip(costs).map(|(id, &cost)| Offer { pod: PodId(id), cost, at: id }).collect();
    let request = Request::new("m", Tokens(1));
    let cx = context(&request, &[]);
    let (mut rng, mut counts) = (Rng::new(1), vec![0; costs.len()]);
    for _ in 0..draws {
        counts[picker.pick(&cx, &offers, &mut rng)] += 1;
    }
    counts
}
