//! The best pair of pods for a request, against the best pod alone.
//!
//! Whoever calls says how one part of a request is placed (with its own index, books and record of reasons): the gate does, and
//! the policy lab. Everything else is here, so that both decide alike.
use super::decider::{Choice, Costs, Reason, Way, weigh};
use super::lease::Lease;
use super::obstacle::Obstacle;
use super::pairs::Pairs;
use super::settings::{Decider, Settings};
use crate::base::{Mono, PodId, Tokens};
use crate::pods::Fleet;
use crate::scheduling::marginal::Terms;
use crate::scheduling::{Decision, Handover, Step};

/// One part of a request, placed.
pub struct Placed<K> {
    /// The decision.
    pub decision: Decision,
    /// What the request costs on the chosen pod by the ranking; `None` without one.
    pub terms: Option<Terms>,
    /// What the caller keeps of it.
    pub kept: K,
}

/// Two pods for one request.
pub struct Pair<K> {
    /// Does the prefill.
    pub prefiller: PodId,
    /// Does the decode.
    pub decoder: PodId,
    /// How the prefill was placed.
    pub prefill: Placed<K>,
    /// How the decode was placed.
    pub decode: Placed<K>,
    /// What both legs cost.
    cost: Way,
}

/// One pod or two.
pub struct Plan<K> {
    /// What it is to be.
    pub choice: Choice,
    /// Why.
    pub reason: Reason,
    /// What was weighed, if there was a pair.
    pub costs: Option<Costs>,
    /// The best pod alone.
    pub local: Placed<K>,
    /// The best pair.
    pub pair: Option<Pair<K>>,
}

/// What a plan looks at beside the parts.
#[derive(Clone, Copy)]
pub struct Around<'a> {
    /// The pods.
    pub fleet: &'a Fleet,
    /// What was learnt of pairs.
    pub pairs: &'a Pairs,
    /// The rules.
    pub settings: &'a Settings,
    /// What a second that decoding loses is worth ([`Balance::weight`](super::Balance::weight)).
    pub weight: f64,
    /// The instant.
    pub now: Mono,
}

impl Around<'_> {
    /// Plans a request. `place` places one part of it; `uncached` tells the prompt tokens that a pod would have to compute.
    pub fn plan<K>(
        &self,
        obstacle: Option<Obstacle>,
        uncached: impl Fn(PodId) -> Tokens,
        mut place: impl FnMut(Step, Handover) -> Placed<K>,
    ) -> Plan<K> {
        let local = place(Step::Whole, Handover::default());
        let may_split = obstacle.is_none() && self.settings.decider != Decider::Never;
        let pair = may_split.then(|| self.pair(place)).flatten();
        let costs = pair.as_ref().map(|pair| Costs {
            local: local.terms.as_ref().map_or(Way::IMPOSSIBLE, Way::of),
            remote: pair.cost,
            uncached: local.decision.chosen.map_or(Tokens(u64::MAX), uncached),
            weight: self.weight,
        });
        let (choice, reason) = weigh(self.settings, obstacle, costs.as_ref());
        Plan { choice, reason, costs, local, pair }
    }

    /// The best pair whose pods get along, if there is one.
    fn pair<K>(&self, mut place: impl FnMut(Step, Handover) -> Placed<K>) -> Option<Pair<K>> {
        let prefill = place(Step::Prefill, Handover::default());
        let likely = prefill.decision.chosen?;
        let lead_s = prefill.terms.as_ref().map_or(0.0, Terms::first_s);
        let usual = Handover { lead_s, ..self.usual(likely) };
        let decode = place(Step::Decode, usual);
        decode.decision.chosen?;
        let all = |decision: &Decision| -> Vec<PodId> {
            decision.chosen.into_iter().chain(decision.alternatives.iter()).collect()
        };
        let (prefillers, decoders) = (all(&prefill.decision), all(&decode.decision));
        let pairs = prefillers.iter().flat_map(|one| decoders.iter().map(move |other| (*one, *other)));
        let (prefiller, decoder) = pairs.into_iter().find(|(one, other)| self.gets_along(*one, *other))?;
        let extra_s = (self.pairs.wire(prefiller, decoder, self.now).setup_s - usual.setup_s).max(0.0);
        let legs = [&prefill, &decode].into_iter().filter_map(|leg| leg.terms.as_ref().map(Way::of));
        let cost = legs.fold(Way { first_s: extra_s, stall_s: 0.0, rest_s: 0.0 }, Way::and);
        Some(Pair { prefiller, decoder, prefill, decode, cost })
    }

    /// What handing over from a prefiller takes with a decoder of which nothing is known.
    pub fn usual(&self, prefiller: PodId) -> Handover {
        let wire = self.pairs.wire(prefiller, prefiller, self.now);
        Handover { setup_s: wire.setup_s, token_s: wire.token_s, lead_s: 0.0 }
    }

    /// Whether two pods can hand over now: not one and the same, not suspected, labelled alike, and a lease lasts long enough for them.
    pub fn gets_along(&self, prefiller: PodId, decoder: PodId) -> bool {
        let Some((one, other)) = self.fleet.find(prefiller).zip(self.fleet.find(decoder)) else { return false };
        let is_alike = |label: &String| one.spec.labels.get(label) == other.spec.labels.get(label);
        let timing = self.pairs.timing(prefiller, decoder);
        let wire = self.pairs.wire(prefiller, decoder, self.now);
        // Who waits for a first contact waits long; it is being made.
        let has_met = wire.is_wired || !self.settings.prewarm;
        prefiller != decoder
            && has_met
            && !wire.is_suspect
            && self.settings.pair_labels.iter().all(is_alike)
            && Lease::new(self.now, self.settings.lease()).is_good(self.now, &timing)
    }
}
