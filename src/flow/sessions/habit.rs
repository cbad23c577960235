//! What was seen of the sessions of one model: how they come back, what they cost, and how much of their past was still cached.
use crate::base::Mono;
use crate::flow::Class;

/// Bins of times between an answer and the next turn: four per doubling, from a tenth of a second to hours.
const GAP_BINS: usize = 80;
const GAP_LEAST_S: f64 = 0.1;
/// Counts are halved when there are so many, so that the past fades.
const COUNT_MAX: f64 = 4_096.0;
/// Gaps that must have been seen before they count.
const GAPS_MIN: f64 = 32.0;
/// Part of those that come back at all that did so within the time that a session is waited for, and that time before any was seen.
const GAP_SHARE: f64 = 0.95;
const PATIENCE_S: (f64, f64, f64) = (10.0, 120.0, 900.0);
/// Least weight of one request in a mean.
const MEAN_WEIGHT: f64 = 0.005;
/// Sessions that did not come back, assumed at first: what comes once only must not be held for what it would take if it came again.
const LOST_AT_FIRST: f64 = 8.0;
/// Time that misses may take, as part of what answers take, and bounds of the misses that follow.
const MISS_COST: f64 = 0.15;
const MISS_GOAL: (f64, f64) = (0.04, 0.9);
/// Time over which rates are taken \[s\].
const RATE_S: f64 = 60.0;
const RATE_LEAST_S: f64 = 5.0;

/// A sum that fades; its rate is per second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rate {
    sum: f64,
    at: Mono,
    began: Option<Mono>,
}

impl Rate {
    pub(super) fn add(&mut self, now: Mono, amount: f64) {
        self.sum = self.sum * fade(self.at, now) + amount;
        self.began.get_or_insert(now);
        self.at = now;
    }

    pub(super) fn per_s(&self, now: Mono) -> f64 {
        let Some(began) = self.began else { return 0.0 };
        self.sum * fade(self.at, now) / (RATE_S * (1.0 - fade(began, now))).max(RATE_LEAST_S)
    }
}

/// What is left of the past.
fn fade(then: Mono, now: Mono) -> f64 {
    (-now.since(then).as_secs_f64() / RATE_S).exp()
}

/// A mean: of all at first, then of the last few hundred.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Mean {
    mean: f64,
    seen: u32,
}

impl Mean {
    pub(super) fn see(&mut self, value: f64) {
        self.seen = self.seen.saturating_add(1);
        self.mean += (value - self.mean) * (1.0 / f64::from(self.seen)).max(MEAN_WEIGHT);
    }

    /// `without` before it has seen anything.
    pub(super) fn or(self, without: f64) -> f64 {
        if self.seen == 0 { without } else { self.mean }
    }
}

/// See the file.
#[derive(Clone, Debug)]
pub(super) struct Habits {
    /// Times between an answer and the next turn, counted by length.
    gaps: [f64; GAP_BINS],
    /// The same of the last few hundred on average, and how long answers take on an idle fleet \[s\].
    gap_s: Mean,
    pub(super) stream_s: Mean,
    /// To compute a turn from nothing, and its answer \[s of a pod\]; the same of all turns, per second.
    pub(super) whole_s: Mean,
    pub(super) whole: Rate,
    /// To compute again what a turn reuses \[s of a pod\].
    pub(super) again_s: Mean,
    /// The same, per second.
    pub(super) saved: Rate,
    /// The answer to it \[s of a pod\].
    pub(super) answer_s: Mean,
    /// Tokens of a prompt per block of it.
    pub(super) block_tokens: Mean,
    /// Part of a session's first prompt that others had left in the caches.
    pub(super) shared: Mean,
    /// Sessions that were new and came back, or did not, by class.
    came_back: [f64; 3],
    stayed_away: [f64; 3],
    /// Tokens that sessions were let in with after a wait.
    pub(super) let_in: Rate,
}

impl Default for Habits {
    fn default() -> Self {
        Self {
            gaps: [0.0; GAP_BINS],
            gap_s: Mean::default(),
            stream_s: Mean::default(),
            whole_s: Mean::default(),
            whole: Rate::default(),
            again_s: Mean::default(),
            saved: Rate::default(),
            block_tokens: Mean::default(),
            shared: Mean::default(),
            came_back: [0.0; 3],
            stayed_away: [LOST_AT_FIRST; 3],
            answer_s: Mean::default(),
            let_in: Rate::default(),
        }
    }
}

impl Habits {
    /// A session came back after so long; `first` is the class of one that did so for the first time.
    pub(super) fn returned(&mut self, gap_s: f64, first: Option<Class>) {
        let bin = (4.0 * (gap_s / GAP_LEAST_S).max(1.0).log2()) as usize;
        self.gap_s.see(gap_s.min(PATIENCE_S.2));
        if let Some(count) = self.gaps.get_mut(bin.min(GAP_BINS - 1)) {
            *count += 1.0;
        }
        if self.gaps.iter().sum::<f64>() > COUNT_MAX {
            self.gaps.iter_mut().for_each(|count| *count *= 0.5);
        }
        if let Some(class) = first {
            self.was_new(class, true);
        }
    }

    /// A session that was new came back, or did not in time.
    pub(super) fn was_new(&mut self, class: Class, came_back: bool) {
        let at = class as usize;
        let (Some(back), Some(away)) = (self.came_back.get_mut(at), self.stayed_away.get_mut(at)) else { return };
        *(if came_back { &mut *back } else { &mut *away }) += 1.0;
        if *back + *away > COUNT_MAX {
            (*back, *away) = (0.5 * *back, 0.5 * *away);
        }
    }

    /// Part of new sessions of a class that come back.
    pub(super) fn return_share(&self, class: Class) -> f64 {
        let at = class as usize;
        let (back, away) = self.came_back.get(at).zip(self.stayed_away.get(at)).unwrap_or((&0.0, &1.0));
        back / (back + away)
    }

    /// For how long a session is waited for after an answer: most of those that come back do so within it \[s\].
    pub(super) fn patience_s(&self) -> f64 {
        let (least, unknown, most) = PATIENCE_S;
        let all: f64 = self.gaps.iter().sum();
        if all < GAPS_MIN {
            return unknown;
        }
        let mut left = GAP_SHARE * all;
        let bin = self.gaps.iter().position(|count| {
            left -= count;
            left <= 0.0
        });
        let upper_s = GAP_LEAST_S * 2_f64.powf((bin.unwrap_or(GAP_BINS) + 1) as f64 / 4.0);
        upper_s.clamp(least, most)
    }

    /// What a session that comes back takes of a pod if nothing of it is cached, as part of the time of one, while nobody waits for
    /// anything: unknown before enough came back.
    pub(super) fn whole_load(&self) -> Option<f64> {
        let is_known = self.gaps.iter().sum::<f64>() >= GAPS_MIN;
        is_known.then(|| self.whole_s.or(0.0) / (self.gap_s.or(0.0) + self.stream_s.or(0.0)).max(1e-3))
    }

    /// Part of what sessions reuse that may be missing, beside what is missing for other causes: where a prefill from nothing takes
    /// next to nothing against the answer, room for more sessions is worth more than hits.
    pub(super) fn miss_goal(&self) -> f64 {
        let (least, most) = MISS_GOAL;
        (MISS_COST * self.answer_s.or(0.0) / self.again_s.or(1.0).max(1e-6)).clamp(least, most)
    }
}
