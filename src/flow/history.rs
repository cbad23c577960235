//! The retry budget on random histories: requests, pods that die under them and recover, fleets that fail as a whole.
//!
//! Time goes in ticks. A test-only model of what `proxy` does with verdicts: a setback is asked about until it gets a retry
//! or a stop. Printed seeds tell which history failed.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::budget::ASK_AGAIN;
use super::{Replay, RetryBudget, RetryClass, RetrySettings, Setback, Verdict, may_retry};
use crate::base::{Mono, PodId, Rng};

/// A pod is down for at least this long, which is longer than its requests take to notice.
const DOWN_TICKS: u64 = 300;
const NOTICED_WITHIN_TICKS: u64 = 150;

#[derive(Clone, Copy)]
struct Attempt {
    pod: usize,
    number: u32,
    started: u64,
    ends: u64,
}

#[derive(Default)]
struct Counts {
    requests: u64,
    attempts: u64,
    served: u64,
    stopped: u64,
    deaths: u64,
}

struct History {
    rng: Rng,
    tick: u64,
    budget: RetryBudget,
    /// When each pod died; `None` while it lives.
    died: Vec<Option<u64>>,
    running: Vec<Attempt>,
    asking: Vec<(Setback, usize)>,
    counts: Counts,
}

impl History {
    fn new(seed: u64, pods: usize) -> Self {
        let budget = RetryBudget::new(RetrySettings::default());
        let died = vec![None; pods];
        Self { rng: Rng::new(seed), tick: 1, budget, died, running: vec![], asking: vec![], counts: Counts::default() }
    }

    fn at(tick: u64) -> Mono {
        Mono::ZERO.after(ASK_AGAIN * u32::try_from(tick).unwrap())
    }

    fn chance(&mut self, share: f64) -> bool {
        self.rng.unit() < share
    }

    fn kill(&mut self, pod: usize) {
        self.died[pod] = Some(self.tick);
        self.counts.deaths += 1;
        // Each connection notices in its own time.
        for attempt in self.running.iter_mut().filter(|attempt| attempt.pod == pod) {
            attempt.ends = self.tick + self.rng.below(NOTICED_WITHIN_TICKS);
        }
    }

    fn arrive(&mut self) {
        self.counts.requests += 1;
        self.budget.arrived();
        let pod = self.rng.below(self.died.len() as u64) as usize;
        self.dispatch(pod, 1);
    }

    fn dispatch(&mut self, pod: usize, number: u32) {
        self.counts.attempts += 1;
        let takes = if self.died[pod].is_some() { 0 } else { 5 + self.rng.below(100) };
        self.running.push(Attempt { pod, number, started: self.tick, ends: self.tick + takes });
    }

    /// What ends in this tick answers, or fails and asks.
    fn end(&mut self) {
        let tick = self.tick;
        let ended: Vec<_> = self.running.extract_if(.., |attempt| attempt.ends <= tick).collect();
        for Attempt { pod, number, started, .. } in ended {
            let Some(died) = self.died[pod] else {
                self.budget.answered(PodId(pod as u32), Self::at(tick));
                self.budget.ended();
                self.counts.served += 1;
                continue;
            };
            let class = if started < died { RetryClass::Unanswered } else { RetryClass::NotDelivered };
            let setback = Setback {
                class,
                pod: PodId(pod as u32),
                started: Self::at(started),
                failed: Self::at(tick),
                attempts: number,
                replay: Replay::Harmless,
                has_other_pod: self.died.len() > 1,
            };
            self.asking.push((setback, pod));
        }
        for (setback, pod) in std::mem::take(&mut self.asking) {
            match may_retry(Self::at(tick), &setback, &mut self.budget) {
                Verdict::Retry => {
                    let other = 1 + self.rng.below(self.died.len() as u64 - 1) as usize;
                    self.dispatch((pod + other) % self.died.len(), setback.attempts + 1);
                }
                Verdict::Wait(_) => self.asking.push((setback, pod)),
                Verdict::Stop(_) => {
                    self.budget.ended();
                    self.counts.stopped += 1;
                }
            }
        }
    }

    /// One tick with `arrivals` requests on average.
    fn step(&mut self, arrivals: f64) {
        let mut share = arrivals;
        while share > 0.0 {
            if self.chance(share) {
                self.arrive();
            }
            share -= 1.0;
        }
        self.end();
        self.tick += 1;
    }

    fn drain(&mut self) {
        while !self.running.is_empty() || !self.asking.is_empty() {
            self.step(0.0);
        }
        assert_eq!(self.counts.served + self.counts.stopped, self.counts.requests, "each request ends once");
    }
}

#[test]
fn a_fleet_that_fails_as_a_whole_is_hit_a_tenth_harder_at_most() {
    for seed in 0..200 {
        let mut history = History::new(seed, 2 + seed as usize % 5);
        let rate = 0.05 + history.rng.unit() * 3.0;
        // First it lives for a while in some histories, so that there is proof of life, but of old.
        for _ in 0..history.rng.below(3) * 200 {
            history.step(rate);
        }
        (0..history.died.len()).for_each(|pod| history.kill(pod));
        history.drain();
        let before = (history.counts.requests, history.counts.attempts);
        let allowed = f64::from(RetrySettings::default().budget_min);
        for _ in 0..2_000 {
            history.step(rate);
        }
        history.drain();
        let requests = (history.counts.requests - before.0) as f64;
        let attempts = (history.counts.attempts - before.1) as f64;
        assert!(attempts <= 1.1 * requests + allowed, "seed {seed}: {attempts} attempts for {requests} requests");
        assert!(attempts > requests, "seed {seed}: it does try again");
    }
}

#[test]
fn a_death_is_charged_once_however_many_requests_it_meets() {
    let mut retries = 0;
    let mut charged = 0;
    for seed in 0..200 {
        let mut history = History::new(seed, 3 + seed as usize % 5);
        let rate = 0.5 + history.rng.unit() * 5.0;
        for _ in 0..3_000 {
            let pod = history.rng.below(history.died.len() as u64) as usize;
            let living = history.died.iter().filter(|died| died.is_none()).count();
            let (falls, rises) = (history.chance(0.005), history.chance(0.02));
            match history.died[pod] {
                None if living > 2 && falls => history.kill(pod),
                Some(died) if history.tick > died + DOWN_TICKS && rises => history.died[pod] = None,
                _ => {}
            }
            history.step(rate);
        }
        history.drain();
        let counts = &history.counts;
        assert!(history.budget.charged() <= counts.deaths, "seed {seed}: {} charged", history.budget.charged());
        retries += counts.attempts - counts.requests;
        charged += history.budget.charged();
    }
    assert!(charged > 100 && retries > 20 * charged, "{retries} retries, {charged} charged: deaths met many requests");
}

#[test]
fn other_settings_hold_from_then_on() {
    let mut history = History::new(7, 2);
    history.budget.configure(RetrySettings { attempts_max: 1, ..RetrySettings::default() });
    (0..2).for_each(|pod| history.kill(pod));
    for _ in 0..100 {
        history.step(1.0);
    }
    history.drain();
    assert_eq!(history.counts.attempts, history.counts.requests);
    assert!(history.counts.requests > 0);
}
