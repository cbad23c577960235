//! From a fleet to the views that a decision looks at. What the data path and the policy lab call: [`place`].
//!
//! Up to [`WHOLE_MAX`] pods each gets a view. In a larger fleet most of them cannot be best, and a thousand views would take
//! longer than the decision: if the profile goes by the marginal cost alone, one pass over the pods' counters (no locks, no
//! facts) ranks all of them by that cost, and only the [`BEST`] first get a view, with every pod that is not calm and the
//! pinned one. Rules about the whole fleet are told who was left out. Any other profile sees all pods.
use super::decide::{Scratch, decide};
use super::decision::{Decision, Detail};
use super::marginal::{Ask, Rates, Sums, Terms, means_of};
use super::peers::Guesses;
use super::profile::Profile;
use super::request::{Context, LeftOut, Means, Request};
use super::view::{Belief, PodView};
use crate::base::{Mono, PodId, Rng, Tokens};
use crate::pods::{Fleet, Marks, Pod, StepTime};
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

impl<'a> Query<'a> {
    /// A query of a gate that is alone, about a prompt of which nothing is pinned and no rank was chosen; set the rest by struct
    /// update.
    pub fn new(fleet: &'a Fleet, request: &'a Request<'a>, hits: &'a Hits, now: Mono) -> Self {
        Self { fleet, request, hits, guesses: Guesses::default(), marks: None, rank: None, now }
    }
}

/// One pod of a large fleet, ranked.
#[derive(Clone, Copy, Debug, Default)]
struct Rough {
    position: u32,
    cost: f64,
    hit: Tokens,
}

/// Buffers of a decision and its survey, kept between decisions of one thread.
#[derive(Debug, Default)]
pub struct Desk {
    views: Vec<PodView>,
    rough: Vec<Rough>,
    best: Vec<Rough>,
    means: Option<Means>,
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

    /// The marginal cost of a pod of the last survey, whatever the profile goes by; `None` if it is not among them.
    pub fn terms(&self, profile: &Profile, query: &Query<'_>, pod: PodId) -> Option<Terms> {
        let cx = self.context(query);
        let view = cx.pods.iter().find(|view| view.id == pod)?;
        let means = cx.means.unwrap_or_else(|| means_of(cx.pods.iter()));
        let usual = super::scorers::marginal_cost::Settings::default().rates();
        Some(Ask::of(query.request, profile.marginal().unwrap_or(&usual), &means).terms(view, query.now))
    }

    /// The views of the last survey as the whole context of a decision.
    pub fn context<'a>(&'a self, query: &Query<'a>) -> Context<'a> {
        Context {
            now: query.now,
            request: query.request,
            pods: &self.views,
            ejected_share_max: query.fleet.ejected_share_max,
            means: self.means,
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
        (self.means, self.left_out) = (None, LeftOut::default());
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
        (self.means, self.left_out) = (None, LeftOut::default());
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
        let ask = Ask::of(query.request, rates, &Means::default());
        self.rough.clear();
        let (mut sums, mut requests) = (Sums::default(), 0.0);
        let mut line = ask.line(StepTime::PRIOR);
        let holds = !(query.request.skips_cache || query.hits.is_empty());
        for nth in 0..count {
            let position = positions.map_or(Some(nth), |positions| positions.get(nth).copied()).unwrap_or(usize::MAX);
            let Some(lane) = query.fleet.lanes.get(position) else { continue };
            if !query.request.may_use(lane.role) {
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
            let cost = ask.rough(&seen, hit, &mut line);
            sums.add(seen.step, seen.pinned_tokens, seen.capacity);
            requests += seen.requests;
            self.rough.push(Rough { position: position as u32, cost, hit });
        }
        if self.views.len() > UNEASY_MAX || self.rough.len() <= BEST {
            return false;
        }
        let means = sums.means();
        self.keep_best(&Ask::of(query.request, rates, &means), chance);
        for kept in &self.best {
            let Some(pod) = query.fleet.pods.get(kept.position as usize) else { continue };
            self.views.push(view(pod, query));
            requests -= pod.load.glance(query.now).requests;
        }
        self.means = Some(means);
        let left = self.rough.len() - self.best.len();
        self.left_out = LeftOut { pods: left as u32, requests: requests.max(0.0) };
        true
    }

    /// The cheapest of `rough`, from a place drawn by chance on, so that equals all have their turn.
    fn keep_best(&mut self, ask: &Ask, chance: u64) {
        let start = Rng::new(chance).below(self.rough.len() as u64) as usize;
        let (behind, ahead) = self.rough.split_at(start.min(self.rough.len()));
        self.best.clear();
        let mut bound = f64::INFINITY;
        let mut last = (Tokens(0), ask.priced(Tokens(0)));
        for rough in ahead.iter().chain(behind) {
            if last.0 != rough.hit {
                last = (rough.hit, ask.priced(rough.hit));
            }
            let cost = rough.cost + last.1;
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
