//! All classes of one lane: whose turn it is, how fast they are served, and what is behind whom.
use super::line::{Line, Waiting};
use super::settings::Classes;
use crate::base::{Mono, PodId};
use crate::flow::Class;

/// Least time over which the pace is measured \[seconds\], and the weight of one measurement.
const SPAN_S: f64 = 1.0;
const PACE_GAIN: f64 = 0.3;
/// What was measured is of no use once nothing waited for so long \[seconds\].
const PACE_LASTS_S: f64 = 10.0;
/// No class is thought to be served more slowly than its floor, or than this \[seconds of cost per second\].
const PACE_MIN: f64 = 1e-3;
/// Work that one pod is taken to do before anything was measured \[seconds of cost per second\].
const PACE_PRIOR: f64 = 0.9;
/// A wait that begins is taken to be so much longer than predicted: better refused at once than at half of the time. The more first
/// tokens came later than promised, the more, up to the last; and the weight of one first token.
pub(super) const CAUTION: f64 = 1.25;
const CAUTION_BY_LATE: f64 = 8.0;
const CAUTION_MAX: f64 = 3.0;
const LATE_SPARED: f64 = 0.02;
const LATE_GAIN: f64 = 0.02;
/// Most credit that a class can save up \[microseconds of cost\].
const CREDIT_MAX: f64 = 20e6;

/// How fast waiting work of a class is taken: cost granted per second, measured while some waits. Who waits for what nobody else
/// needs lets others by: then it is what the first class could have had.
#[derive(Debug, Default)]
struct Pace {
    per_s: Option<f64>,
    since: Option<Mono>,
    /// When nothing waited any more.
    ended: Option<Mono>,
    granted: f64,
    /// Its share of all.
    claimed: f64,
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
    /// Tag of the class below the first that was served last: who had nothing to do begins there.
    class_time: u64,
    /// What the floors owe a class \[microseconds of cost\].
    credits: [f64; Class::ALL.len()],
    /// Part of promised first tokens that came late after a wait, by class.
    late: [f64; Class::ALL.len()],
    /// Of each class, while any of it waits: what goes before it is in it.
    paces: [Pace; Class::ALL.len()],
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
            class_time: 0,
            credits: Default::default(),
            late: Default::default(),
            paces: Default::default(),
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
            let head_us = line.and_then(Line::head_us).map_or(f64::INFINITY, |cost_us| cost_us as f64);
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
        let served = self.line_mut(class)?.serve(ticket, now)?;
        let cost_us = served.wish.cost_us;
        if let Some(share) = self.shares.get_mut(at).filter(|_| class != Class::Interactive) {
            self.class_time = self.class_time.max(*share);
            *share += (cost_us as f64 / classes.of(class).weight) as u64;
        }
        self.granted(class, cost_us, now, classes);
        Some(served)
    }

    /// One of a class begins to wait.
    pub(super) fn push(&mut self, waiting: Waiting) {
        let at = waiting.wish.class as usize;
        let (Some(line), Some(share)) = (self.by_class.get_mut(at), self.shares.get_mut(at)) else { return };
        if line.is_empty() {
            *share = (*share).max(self.class_time);
        }
        line.push(waiting);
    }

    /// Something was granted, after a wait or without.
    pub(super) fn granted(&mut self, class: Class, cost_us: u64, now: Mono, classes: &Classes) {
        for other in Class::ALL {
            let gain = classes.of(other).floor_share * cost_us as f64;
            let head_us = self.line(other).and_then(Line::head_us).map(|cost_us| cost_us as f64);
            let has = head_us.is_some();
            let Some(credit) = self.credits.get_mut(other as usize) else { continue };
            // No more than the next one of it: one grant of great cost is not to put the class before the first for seconds.
            *credit = head_us.map_or(0.0, |head_us| (*credit + gain).min(head_us.min(CREDIT_MAX)));
            if has && other == class {
                // What went may have cost more than the head: that is owed, but not what it was served by its weight.
                *credit = (*credit - cost_us as f64).max(-(cost_us as f64));
            }
        }
        self.tag += cost_us;
        if let Some(served) = self.served.get_mut(class as usize) {
            *served += cost_us;
        }
        for (pace, of) in self.paces.iter_mut().zip(Class::ALL) {
            let own = if of == class { cost_us as f64 } else { 0.0 };
            pace.granted(own / 1e6, claim(of, classes) * cost_us as f64 / 1e6, now);
        }
    }

    /// Tells the paces whether anything waits.
    pub(super) fn note_backlog(&mut self, now: Mono) {
        for (pace, line) in self.paces.iter_mut().zip(&self.by_class) {
            pace.note(!line.is_empty(), now);
        }
    }

    /// A promised first token came after a wait, in time or not; or who waited for it was refused in the end.
    pub(super) fn note_first(&mut self, class: Class, is_late: bool) {
        if let Some(late) = self.late.get_mut(class as usize) {
            *late += LATE_GAIN * (f64::from(u8::from(is_late)) - *late);
        }
    }

    /// What the prediction of a wait that begins is multiplied by.
    pub(super) fn caution(&self, class: Class) -> f64 {
        let late = self.late.get(class as usize).map_or(0.0, |late| (late - LATE_SPARED).max(0.0));
        (CAUTION + CAUTION_BY_LATE * late).min(CAUTION_MAX)
    }

    /// Cost that was granted to a class \[microseconds\].
    pub(super) fn served_us(&self, class: Class) -> u64 {
        self.served.get(class as usize).copied().unwrap_or(0)
    }

    /// Time in which so much cost of a class is taken \[seconds\].
    pub(super) fn time_for(&self, class: Class, cost_us: u64, now: Mono, classes: &Classes) -> f64 {
        let prior = PACE_PRIOR * self.pods.len().max(1) as f64;
        let pace = self.paces.get(class as usize).and_then(|pace| pace.at(now)).unwrap_or(prior);
        cost_us as f64 / 1e6 / pace.max(classes.of(class).floor_share * prior).max(PACE_MIN)
    }
}

/// Part of what was granted to others that a class would have had if it had asked: the first all but their floors. Those behind it wait
/// for their best pods while others go elsewhere, and are served no faster than was seen.
fn claim(class: Class, classes: &Classes) -> f64 {
    let floors = Class::ALL.map(|other| classes.of(other).floor_share).into_iter().skip(1);
    if class == Class::Interactive { 1.0 - floors.sum::<f64>() } else { 0.0 }
}

/// Place of a class of a lane among all of them; the least is asked first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    group: u8,
    tag: u64,
    share: u64,
    class: u8,
}

impl Rank {
    /// Whether the class has not had its floor.
    pub(super) const fn is_owed(&self) -> bool {
        self.group == 0
    }
}

/// Names a ticket that waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) class: Class,
    pub(super) ticket: crate::flow::TicketId,
}

impl Pace {
    fn granted(&mut self, cost_s: f64, claimed_s: f64, now: Mono) {
        if self.since.is_some() {
            (self.granted, self.claimed) = (self.granted + cost_s, self.claimed + claimed_s);
            self.close(now);
        }
    }

    fn note(&mut self, waits: bool, now: Mono) {
        match (waits, self.since) {
            (true, None) => {
                if self.ended.is_some_and(|ended| now.since(ended).as_secs_f64() > PACE_LASTS_S) {
                    self.per_s = None;
                }
                (self.since, self.granted, self.claimed) = (Some(now), 0.0, 0.0);
            }
            (false, Some(_)) => {
                self.close(now);
                (self.since, self.ended) = (None, Some(now));
            }
            _ => {}
        }
    }

    fn close(&mut self, now: Mono) {
        if self.since.is_some_and(|since| now.since(since).as_secs_f64() >= SPAN_S) {
            self.per_s = self.at(now);
            (self.since, self.granted, self.claimed) = (Some(now), 0.0, 0.0);
        }
    }

    /// As if the span that is open were closed, once it is long enough.
    fn at(&self, now: Mono) -> Option<f64> {
        let span_s = self.since.map_or(0.0, |since| now.since(since).as_secs_f64());
        if span_s < SPAN_S {
            return self.per_s;
        }
        let seen = self.granted.max(self.claimed) / span_s;
        // A longer span counts for more.
        let gain = 1.0 - (1.0 - PACE_GAIN).powf(span_s / SPAN_S);
        Some(self.per_s.map_or(seen, |before| before + gain * (seen - before)))
    }
}
