//! All classes of one lane: whose turn it is, how fast they are served, and what is behind whom.
use super::Wish;
use super::line::{Line, Waiting};
use super::settings::Classes;
use crate::base::{Mono, PodId};
use crate::flow::Class;

/// Least time over which the pace is measured \[seconds\], and the weight of one measurement.
const SPAN_S: f64 = 1.0;
const PACE_GAIN: f64 = 0.3;
/// Work that one pod is taken to do before anything was measured \[seconds of cost per second\].
const PACE_PRIOR: f64 = 0.9;
/// Most credit that a class can save up \[microseconds of cost\].
const CREDIT_MAX: f64 = 20e6;

/// How fast waiting work is taken: cost granted per second, measured while some waits.
#[derive(Debug)]
struct Pace {
    per_s: Option<f64>,
    since: Option<Mono>,
    granted: f64,
}

/// See the file.
#[derive(Debug)]
pub(super) struct Lines {
    pub(super) by_class: [Line; Class::ALL.len()],
    /// Pods that serve it, sorted.
    pub(super) pods: Vec<PodId>,
    /// Where it is among lanes that share pods, in microseconds of cost: what was granted to it, from where the others were when it
    /// had work again.
    pub(super) tag: u64,
    /// Cost granted to each class so far \[microseconds\].
    served: [u64; Class::ALL.len()],
    /// Class tags of those below the first.
    shares: [u64; Class::ALL.len()],
    /// What the floors owe a class \[microseconds of cost\].
    credits: [f64; Class::ALL.len()],
    pace: Pace,
}

impl Lines {
    /// Of one pod, or of a pool whose pods are told later.
    pub(super) fn of(pod: Option<PodId>) -> Self {
        Self {
            by_class: Default::default(),
            pods: pod.into_iter().collect(),
            tag: 0,
            served: Default::default(),
            shares: Default::default(),
            credits: Default::default(),
            pace: Pace { per_s: None, since: None, granted: 0.0 },
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_class.iter().all(Line::is_empty)
    }

    pub(super) fn serves(&self, pod: PodId) -> bool {
        self.pods.binary_search(&pod).is_ok()
    }

    pub(super) fn line(&self, class: Class) -> Option<&Line> {
        self.by_class.get(class as usize)
    }

    pub(super) fn line_mut(&mut self, class: Class) -> Option<&mut Line> {
        self.by_class.get_mut(class as usize)
    }

    /// Classes with work and their places in the order in which they are asked: who is owed its floor, the first class, the others.
    /// Inside these lanes take turns, and inside a lane those below the first class by what they were served for their weight.
    pub(super) fn order(&self) -> impl Iterator<Item = (Rank, Class)> + use<> {
        let tag = self.tag;
        let order = Class::ALL.map(|class| {
            let (at, line) = (class as usize, self.line(class));
            let head_us = line.and_then(Line::head).map_or(f64::INFINITY, |head| head.wish.cost_us as f64);
            let is_owed = self.credits.get(at).is_some_and(|credit| *credit >= head_us.min(CREDIT_MAX));
            let group = match (is_owed, class) {
                (true, _) => 0,
                (false, Class::Interactive) => 1,
                (false, _) => 2,
            };
            let share = if group == 2 { self.shares.get(at).copied().unwrap_or(0) } else { 0 };
            let has_work = line.is_some_and(|line| !line.is_empty());
            has_work.then_some((Rank { group, tag, share, class: class as u8 }, class))
        });
        order.into_iter().flatten()
    }

    /// Takes a ticket out to be served now.
    pub(super) fn serve(&mut self, waiting: &Key, now: Mono, classes: &Classes) -> Option<Waiting> {
        let &Key { class, ticket } = waiting;
        let at = class as usize;
        let had_work: Vec<bool> = self.by_class.iter().map(|line| !line.is_empty()).collect();
        // Who had nothing to do begins where the others are.
        let least = self.shares.iter().zip(&had_work).skip(1).filter(|(_, has)| **has).map(|(share, _)| *share).min();
        let served = self.line_mut(class)?.serve(ticket, now)?;
        let cost_us = served.wish.cost_us;
        if let Some(share) = self.shares.get_mut(at) {
            *share = (*share).max(least.unwrap_or(0)) + (cost_us as f64 / classes.of(class).weight) as u64;
        }
        self.granted(class, cost_us, now, classes);
        Some(served)
    }

    /// Something was granted, after a wait or without.
    pub(super) fn granted(&mut self, class: Class, cost_us: u64, now: Mono, classes: &Classes) {
        for other in Class::ALL {
            let gain = classes.of(other).floor_share * cost_us as f64;
            let has = self.line(other).is_some_and(|line| !line.is_empty());
            if let Some(credit) = self.credits.get_mut(other as usize) {
                *credit = if has { (*credit + gain).min(CREDIT_MAX) } else { 0.0 };
            }
        }
        if let Some(credit) = self.credits.get_mut(class as usize) {
            *credit = (*credit - cost_us as f64).max(0.0);
        }
        self.tag += cost_us;
        if let Some(served) = self.served.get_mut(class as usize) {
            *served += cost_us;
        }
        self.pace.granted(cost_us as f64 / 1e6, now);
    }

    /// Tells the pace whether anything waits.
    pub(super) fn note_backlog(&mut self, now: Mono) {
        let waits = !self.is_empty();
        self.pace.note(waits, now);
    }

    /// Cost of a class and those before it \[microseconds\].
    pub(super) fn waiting_us(&self, class: Class) -> u64 {
        self.by_class.iter().take(class as usize + 1).map(Line::cost_us).sum()
    }

    /// Cost that is served before one that comes now \[microseconds\]. Floors and weights below the first class are left out: what they
    /// let pass is small against it.
    pub(super) fn ahead_us(&self, wish: &Wish) -> u64 {
        let before: u64 = self.by_class.iter().take(wish.class as usize).map(Line::cost_us).sum();
        before + self.line(wish.class).map_or(0, |line| line.ahead_us(wish))
    }

    /// Cost that was granted to this class and those before it \[microseconds\].
    pub(super) fn served_us(&self, class: Class) -> u64 {
        self.served.iter().take(class as usize + 1).sum()
    }

    /// Time in which so much cost is taken \[seconds\].
    pub(super) fn time_for(&self, cost_us: u64) -> f64 {
        let prior = PACE_PRIOR * self.pods.len().max(1) as f64;
        cost_us as f64 / 1e6 / self.pace.per_s.unwrap_or(prior).max(1e-3)
    }
}

/// Place of a class of a lane among all of them; the least is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    group: u8,
    tag: u64,
    share: u64,
    class: u8,
}

/// Names a ticket that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) class: Class,
    pub(super) ticket: crate::flow::TicketId,
}

impl Pace {
    fn granted(&mut self, cost_s: f64, now: Mono) {
        if self.since.is_some() {
            self.granted += cost_s;
            self.close(now);
        }
    }

    fn note(&mut self, waits: bool, now: Mono) {
        match (waits, self.since) {
            (true, None) => (self.since, self.granted) = (Some(now), 0.0),
            (false, Some(_)) => {
                self.close(now);
                self.since = None;
            }
            _ => {}
        }
    }

    fn close(&mut self, now: Mono) {
        let Some(since) = self.since else { return };
        let span_s = now.since(since).as_secs_f64();
        if span_s >= SPAN_S {
            let seen = self.granted / span_s;
            self.per_s = Some(self.per_s.map_or(seen, |before| before + PACE_GAIN * (seen - before)));
            (self.since, self.granted) = (Some(now), 0.0);
        }
    }
}
