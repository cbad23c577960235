//! From a fleet to the views that a decision looks at. What the data path and the policy lab call: [`place`].
//!
//! Up to [`WHOLE_MAX`] pods each gets a view. In a larger fleet most of them cannot be best, and a thousand views would take
//! longer than the decision: if the profile goes by the marginal cost alone, one pass over the pods' counters (no locks, no
//! facts) ranks all of them by that cost, and only the [`BEST`] first get a view, with every pod that is not calm and the
//! pinned one. Rules about the whole fleet are told who was left out. Any other profile sees all pods.
use super::decide::{Scratch, decide};
use super::decision::{Decision, Detail};
use super::marginal::{Ask, Rates};
use super::peers::Guesses;
use super::profile::Profile;
use super::request::{Context, LeftOut, Request, Step};
use super::view::{Belief, PodView};
use crate::base::{Mono, PodId, Rng, Tokens};
use crate::pods::{Fleet, Marks, Pod, Role, StepTime};
use crate::prefix::Hits;

/// Fleets up to this size are looked at whole.
pub const WHOLE_MAX: usize = 256;
/// Pods of a larger fleet that are looked at closely.
pub const BEST: usize = 16;
/// More pods than this that are not calm: the fleet is in trouble, and looked at whole.
const UNEASY_MAX: usize = 64;

/// What is to be placed, and where it could go.
#[derive(Clone, Copy, Debug)]
pub struct Query<'a> {
    /// The pods.
    pub fleet: &'a Fleet,
    /// The request.
    pub request: &'a Request<'a>,
    /// What each pod is thought to hold of its prompt.
    pub hits: &'a Hits,
    /// What other gates are likely to have put where.
    pub guesses: Guesses,
    /// Marks of its prompt, to find what is pinned; `None`: nothing is taken to be.
    pub marks: Option<&'a Marks>,
    /// Data-parallel rank that a trusted caller chose; without such a pod it is not heeded.
    pub rank: Option<u32>,
    /// The instant of the decision.
    pub now: Mono,
}

/// One pod of a large fleet, ranked.
#[derive(Clone, Copy, Debug, Default)]
struct Rough {
    position: u32,
    cost: f64,
    prefill: f64,
}

/// Buffers of a decision and its survey, kept between decisions of one thread.
#[derive(Debug, Default)]
pub struct Desk {
    views: Vec<PodView>,
    rough: Vec<Rough>,
    best: Vec<Rough>,
    kv_share: Option<f64>,
    left_out: LeftOut,
    scratch: Scratch,
}

/// Chooses a pod for the query. Draws one number from `rng`.
pub fn place(profile: &Profile, query: &Query<'_>, rng: &mut Rng, detail: Detail, desk: &mut Desk) -> Decision {
    desk.survey(profile.marginal(), query, rng.clone().bits());
    let drawn = rng.clone();
    let decision = desk.decide(profile, query, rng, detail);
    if decision.chosen.is_some() || desk.left_out.pods == 0 {
        return decision;
    }
    *rng = drawn;
    desk.survey(None, query, 0);
    desk.decide(profile, query, rng, detail)
}

impl Desk {
    /// The views of the last survey.
    pub fn views(&self) -> &[PodView] {
        &self.views
    }

    /// The views of the last survey as the whole context of a decision.
    pub fn context<'a>(&'a self, query: &Query<'a>) -> Context<'a> {
        Context {
            now: query.now,
            request: query.request,
            pods: &self.views,
            ejected_share_max: query.fleet.ejected_share_max,
            kv_share: self.kv_share,
            left_out: self.left_out,
        }
    }

    fn decide(&mut self, profile: &Profile, query: &Query<'_>, rng: &mut Rng, detail: Detail) -> Decision {
        let mut scratch = std::mem::take(&mut self.scratch);
        let decision = decide(profile, &self.context(query), rng, detail, &mut scratch);
        self.scratch = scratch;
        decision
    }

    /// Takes the views that a decision needs. With `rates` a large fleet is cut to the pods that can be best by them, equals
    /// by chance.
    pub fn survey(&mut self, rates: Option<&Rates>, query: &Query<'_>, chance: u64) {
        self.views.clear();
        (self.kv_share, self.left_out) = (None, LeftOut::default());
        let fleet = query.fleet;
        let positions = candidates(fleet, query.request.model);
        let count = positions.map_or(fleet.pods.len(), <[usize]>::len);
        if let Some(rank) = query.rank {
            let all = (0..count).filter_map(|nth| at(fleet, positions, nth));
            self.views.extend(all.filter(|(_, pod)| pod.spec.rank == Some(rank)).map(|(_, pod)| view(pod, query)));
        }
        if !self.views.is_empty() {
            return;
        }
        if let Some(rates) = rates.filter(|_| count > WHOLE_MAX)
            && self.cut(rates, query, positions, count, chance)
        {
            return;
        }
        (self.kv_share, self.left_out) = (None, LeftOut::default());
        self.views.clear();
        self.views.extend((0..count).filter_map(|nth| at(fleet, positions, nth)).map(|(_, pod)| view(pod, query)));
    }

    /// Ranks a large fleet by its counters and takes views of the best; false if it should be looked at whole.
    fn cut(
        &mut self,
        rates: &Rates,
        query: &Query<'_>,
        positions: Option<&[usize]>,
        count: usize,
        chance: u64,
    ) -> bool {
        let ask = Ask::of(query.request, rates, 0.0);
        self.rough.clear();
        let (mut pinned, mut known, mut requests) = (0.0, 0.0, 0.0);
        let mut line = ask.line(StepTime::PRIOR);
        let mut inverse = (f64::INFINITY, 0.0);
        let holds = !(query.request.skips_cache || query.hits.is_empty());
        for nth in 0..count {
            let position = positions.map_or(Some(nth), |positions| positions.get(nth).copied()).unwrap_or(usize::MAX);
            let Some(lane) = query.fleet.lanes.get(position) else { continue };
            if !can(lane.role, query.request.step) {
                continue;
            }
            let is_named = Some(lane.id) == query.request.pinned || query.guesses.pods().any(|pod| pod == lane.id);
            if (is_named || !lane.load.is_clear())
                && let Some(pod) = query.fleet.pods.get(position)
                && (is_named || !pod.is_calm(query.now))
            {
                self.views.push(view(pod, query));
                continue;
            }
            let hit = if holds { query.hits.depth(lane.id) } else { Tokens(0) };
            let seen = lane.load.glance(query.now);
            let (cost, prefill) = ask.rough(&seen, hit, &mut line);
            if seen.capacity.is_finite() {
                if inverse.0.to_bits() != seen.capacity.to_bits() {
                    inverse = (seen.capacity, 1.0 / seen.capacity);
                }
                pinned += (seen.pinned_tokens * inverse.1).min(1.0);
                known += 1.0;
            }
            requests += seen.requests;
            self.rough.push(Rough { position: position as u32, cost, prefill });
        }
        if self.views.len() > UNEASY_MAX || self.rough.len() <= BEST {
            return false;
        }
        let kv_share = if known > 0.0 { pinned / known } else { 0.0 };
        self.keep_best(Ask::price(rates, kv_share), chance);
        for kept in &self.best {
            let Some(pod) = query.fleet.pods.get(kept.position as usize) else { continue };
            self.views.push(view(pod, query));
            requests -= pod.load.glance(query.now).requests;
        }
        self.kv_share = Some(kv_share);
        let left = self.rough.len() - self.best.len();
        self.left_out = LeftOut { pods: left as u32, requests: requests.max(0.0) };
        true
    }

    /// The cheapest of `rough`, from a place drawn by chance on, so that equals all have their turn.
    fn keep_best(&mut self, price: f64, chance: u64) {
        let start = Rng::new(chance).below(self.rough.len() as u64) as usize;
        let (behind, ahead) = self.rough.split_at(start.min(self.rough.len()));
        self.best.clear();
        let mut bound = f64::INFINITY;
        for rough in ahead.iter().chain(behind) {
            let cost = rough.cost + price * rough.prefill;
            if cost >= bound {
                continue;
            }
            let place = self.best.partition_point(|kept| kept.cost <= cost);
            self.best.truncate(BEST - 1);
            self.best.insert(place.min(self.best.len()), Rough { cost, ..*rough });
            if self.best.len() == BEST {
                bound = self.best.last().map_or(f64::INFINITY, |last| last.cost);
            }
        }
    }
}

/// Positions of the pods that may serve a model: those known to, else those that have not told yet; `None`: all, no model was
/// named.
fn candidates<'a>(fleet: &'a Fleet, model: &str) -> Option<&'a [usize]> {
    (!model.is_empty()).then(|| fleet.serving(model))
}

fn at<'a>(fleet: &'a Fleet, positions: Option<&[usize]>, nth: usize) -> Option<(usize, &'a Pod)> {
    let position = positions.map_or(Some(nth), |positions| positions.get(nth).copied())?;
    Some((position, fleet.pods.get(position)?))
}

fn can(role: Role, step: Step) -> bool {
    match step {
        Step::Prefill => role != Role::Decode,
        Step::Whole | Step::Decode => role != Role::Prefill,
    }
}

fn view(pod: &Pod, query: &Query<'_>) -> PodView {
    let (hit, coming) = query.hits.of(pod.id);
    let guessed = query.guesses.beyond(pod.id, hit);
    let belief = Belief { hit, coming, guessed, blur: query.guesses.blur(pod.id), marks: query.marks };
    let mut view = PodView::of(pod, query.request, &belief, query.now);
    if pod.spec.rank.is_some() {
        view.peers_decoding = peers_decoding(pod.id, query.fleet.endpoint(&pod.spec.addr), query.now);
    }
    view
}

/// Requests decoding on the other ranks of an endpoint.
fn peers_decoding<'a>(own: PodId, ranks: impl Iterator<Item = &'a std::sync::Arc<Pod>>, now: Mono) -> u32 {
    ranks.filter(|rank| rank.id != own).map(|rank| rank.load.at(now).decoding()).sum()
}

#[cfg(test)]
mod tests;
