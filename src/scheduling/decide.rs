//! The decision itself: filters, scores, pick, and the reasons.
//!
//! Pure and deterministic: same context and generator, same decision; the order of the pods has no influence. Buffers are
//! passed in, so deciding without detail does not allocate once they have grown. [`safe_mode`] is the answer when this
//! file fails: it shares no code with the plug-ins and needs in-flight counts only.
use super::candidates::Candidates;
use super::decision::{ALTERNATIVES_MAX, Alternative, Alternatives, Decision, Detail, Mode, Nobody};
use super::plugin::{Offer, Verdict};
use super::profile::{NamedFilter, Profile, WeighedScorer};
use super::request::{Context, Request};
use super::rows::Trace;
use super::view::{PodView, Serves};
use crate::base::{PodId, Rng};
use crate::pods::Standing;

/// Buffers of a decision, kept between decisions of one thread. Holds nothing that a later decision reads.
#[derive(Debug, Default)]
pub struct Scratch {
    kept: Vec<u32>,
    verdicts: Vec<Verdict>,
    costs: Vec<Option<f64>>,
    offers: Vec<Offer>,
}

/// Chooses a pod for the request of `cx`. Draws one number from `rng`, from which all else follows ([`Decision::seed`]).
pub fn decide(profile: &Profile, cx: &Context<'_>, rng: &mut Rng, detail: Detail, scratch: &mut Scratch) -> Decision {
    let seed = rng.bits();
    let mut trace = (detail == Detail::Rows).then(|| Trace::new(cx.pods.len()));
    let is_pin_good = pinned_is_good(profile, cx);
    all_by_id(cx.pods, &mut scratch.kept);
    let mut nobody = scratch.kept.is_empty().then_some(Nobody::NoPods);
    let mut is_restricted = false;
    for filter in &profile.filters {
        let before = scratch.kept.len();
        if nobody.is_none() && !sift(filter, cx, scratch, trace.as_mut()) {
            nobody = Some(filter.filter.nobody());
        }
        is_restricted |= scratch.kept.len() < before && filter.filter.is_lasting();
    }
    score(profile, cx, scratch, trace.as_mut());
    let chosen = match cx.request.pinned {
        Some(pod) if is_pin_good => Some(pod),
        _ => pick(profile, cx, &scratch.offers, seed),
    };
    let candidates = Candidates::new(cx.pods, &scratch.kept);
    let mut decision = Decision {
        chosen,
        alternatives: runners_up(&scratch.offers, chosen, second_of(profile, cx.request), seed),
        mode: if is_pin_good { Mode::Pinned } else { mode_of(&candidates) },
        nobody: if chosen.is_some() { None } else { nobody },
        considered: cx.pods.len() as u32,
        eligible: scratch.offers.len() as u32,
        is_restricted,
        seed,
        rows: Vec::new(),
    };
    if let Some(trace) = trace {
        decision.rows = trace.rows(cx.pods, chosen);
    }
    decision
}

/// Positions of all pods, by id.
fn all_by_id(pods: &[PodView], kept: &mut Vec<u32>) {
    kept.clear();
    kept.extend(0..pods.len() as u32);
    if !pods.is_sorted_by_key(|pod| pod.id) {
        kept.sort_by_key(|&position| pods.get(position as usize).map(|pod| pod.id));
    }
}

/// Whether the pinned pod is here and no filter but the yielding ones is against it.
fn pinned_is_good(profile: &Profile, cx: &Context<'_>) -> bool {
    let Some(pinned) = cx.request.pinned else { return false };
    let Some(position) = cx.pods.iter().position(|pod| pod.id == pinned) else { return false };
    let (alone, mut verdict) = ([position as u32], [Verdict::Keep]);
    profile.filters.iter().filter(|filter| !filter.filter.yields_to_pin()).all(|filter| {
        verdict.fill(Verdict::Keep);
        filter.filter.judge(cx, &Candidates::new(cx.pods, &alone), &mut verdict);
        verdict.iter().all(|verdict| verdict.keeps())
    })
}

/// Runs one filter; says whether anybody is left.
fn sift(filter: &NamedFilter, cx: &Context<'_>, scratch: &mut Scratch, trace: Option<&mut Trace>) -> bool {
    let Scratch { kept, verdicts, .. } = scratch;
    verdicts.clear();
    verdicts.resize(kept.len(), Verdict::Keep);
    filter.filter.judge(cx, &Candidates::new(cx.pods, kept), verdicts);
    if let Some(trace) = trace {
        trace.judged(filter.name, kept, verdicts);
    }
    if verdicts.iter().any(|verdict| !verdict.keeps()) {
        let mut judged = verdicts.iter();
        kept.retain(|_| judged.next().is_some_and(|verdict| verdict.keeps()));
    }
    !kept.is_empty()
}

/// Fills the offers: for each pod left the weighted sum of its costs.
fn score(profile: &Profile, cx: &Context<'_>, scratch: &mut Scratch, mut trace: Option<&mut Trace>) {
    let Scratch { kept, costs, offers, .. } = scratch;
    let candidates = Candidates::new(cx.pods, kept);
    offers.clear();
    offers.extend(candidates.iter().zip(kept.iter()).map(|(pod, &at)| Offer { pod: pod.id, cost: 0.0, at }));
    for one in &profile.scorers {
        costs.clear();
        costs.resize(offers.len(), None);
        one.scorer.cost(cx, &candidates, costs);
        let neutral = mean_of_known(costs);
        for (offer, cost) in offers.iter_mut().zip(costs.iter()) {
            offer.cost += counted(one, *cost, neutral);
        }
        if let Some(trace) = trace.as_deref_mut() {
            let counts = costs.iter().map(|&cost| (cost, counted(one, cost, neutral)));
            trace.scored(one.name, kept, counts);
            one.scorer.terms(cx, &candidates, &mut |candidate, name, value| {
                kept.get(candidate).into_iter().for_each(|&position| trace.term(position, name, value));
            });
        }
    }
    if let Some(trace) = trace {
        trace.totalled(kept, offers);
    }
}

/// What a cost adds to the total. A cost that is not finite is a fault of the plug-in and counts as unknown.
fn counted(one: &WeighedScorer, cost: Option<f64>, neutral: f64) -> f64 {
    one.weight * cost.filter(|cost| cost.is_finite()).unwrap_or(neutral)
}

/// What an unknown cost counts as: neither a reason for the pod nor against it.
fn mean_of_known(costs: &[Option<f64>]) -> f64 {
    let known = costs.iter().flatten().filter(|cost| cost.is_finite());
    let (sum, count) = known.fold((0.0, 0.0), |(sum, count), cost| (sum + cost, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

fn pick(profile: &Profile, cx: &Context<'_>, offers: &[Offer], seed: u64) -> Option<PodId> {
    let first = offers.first()?;
    let position = profile.picker.pick(cx, offers, &mut Rng::new(seed));
    Some(offers.get(position).unwrap_or(first).pod)
}

/// What a second of waiting costs, if a scorer says so.
fn second_of(profile: &Profile, request: &Request<'_>) -> Option<f64> {
    let known = profile.scorers.iter().filter_map(|one| Some(one.weight * one.scorer.second(request)?));
    Some(known.sum()).filter(|second| *second > 0.0)
}

/// The best offers besides the chosen; equals in an order drawn from the seed, so that retries spread.
fn runners_up(offers: &[Offer], chosen: Option<PodId>, second: Option<f64>, seed: u64) -> Alternatives {
    let mut best: [Option<Offer>; ALTERNATIVES_MAX] = [None; ALTERNATIVES_MAX];
    let draw = |pod: PodId| Rng::new(seed ^ (u64::from(pod.0) << 1)).bits();
    let is_before =
        |a: &Offer, b: &Offer| a.cost < b.cost || (a.cost <= b.cost && (draw(a.pod), a.pod) < (draw(b.pod), b.pod));
    for offer in offers.iter().filter(|offer| Some(offer.pod) != chosen) {
        if best.last().and_then(Option::as_ref).is_some_and(|last| !is_before(offer, last)) {
            continue;
        }
        let mut carried = *offer;
        for slot in &mut best {
            match slot {
                Some(held) if is_before(held, &carried) => {}
                Some(held) => std::mem::swap(held, &mut carried),
                None => {
                    *slot = Some(carried);
                    break;
                }
            }
        }
    }
    let least = offers.iter().find(|offer| Some(offer.pod) == chosen).map(|offer| offer.cost);
    let worse_s = |offer: &Offer| Some(((offer.cost - least?) / second?).max(0.0));
    Alternatives::new(best.iter().flatten().map(|offer| Alternative { pod: offer.pod, worse_s: worse_s(offer) }))
}

fn mode_of(candidates: &Candidates<'_>) -> Mode {
    let mut pods = candidates.iter();
    let is_ejected_back = candidates.iter().any(|pod| matches!(pod.standing, Standing::Ejected(_)));
    let is_probe_all = !candidates.is_empty() && pods.all(|pod| pod.standing == Standing::Probe);
    if is_ejected_back || is_probe_all { Mode::Panic } else { Mode::Normal }
}

/// Chooses without index, scores or settings: the least requests in flight among the pods that can serve, ties by `rng`.
/// Prefers pods in good standing; takes an ejected one rather than none. The pin and the excluded pods are respected.
pub fn safe_mode(pods: &[PodView], request: &Request<'_>, rng: &mut Rng) -> Decision {
    let seed = rng.bits();
    let draw = |pod: PodId| Rng::new(seed ^ (u64::from(pod.0) << 1)).bits();
    let can = |pod: &&PodView| pod.shut.is_none() && fits(pod, request) && !request.excluded.contains(&pod.id);
    let rank = |pod: &PodView| {
        let is_bad = matches!(pod.standing, Standing::Ejected(_) | Standing::Probe);
        (pod.serves != Serves::Yes, is_bad, pod.load.requests, draw(pod.id), pod.id)
    };
    let pinned = pods.iter().filter(can).find(|pod| Some(pod.id) == request.pinned);
    let best = pinned.or_else(|| pods.iter().filter(can).min_by_key(|pod| rank(pod)));
    Decision {
        chosen: best.map(|pod| pod.id),
        alternatives: Alternatives::default(),
        mode: Mode::Safe,
        nobody: if best.is_some() { None } else { Some(nobody(pods, request)) },
        considered: pods.len() as u32,
        eligible: pods.iter().filter(can).count() as u32,
        is_restricted: false,
        seed,
        rows: Vec::new(),
    }
}

fn fits(pod: &PodView, request: &Request<'_>) -> bool {
    request.may_use(pod.role) && serves(pod, request)
}

fn serves(pod: &PodView, request: &Request<'_>) -> bool {
    request.model.is_empty() || pod.serves != Serves::No
}

/// Why safe mode found nobody: the first condition that no pod meets.
fn nobody(pods: &[PodView], request: &Request<'_>) -> Nobody {
    if pods.is_empty() {
        Nobody::NoPods
    } else if !pods.iter().any(|pod| serves(pod, request)) {
        Nobody::ModelUnknown
    } else if !pods.iter().any(|pod| fits(pod, request)) {
        Nobody::NoRole
    } else if !pods.iter().any(|pod| fits(pod, request) && pod.shut.is_none()) {
        Nobody::AllShut
    } else {
        Nobody::AllTried
    }
}
