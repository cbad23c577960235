//! Tells a restarted pod from the same one, and a crowd behind one address from a pod.
//!
//! A process has one start time and counters that only grow. A new start time, or counters that went back, is a new process
//! whose caches are empty. A start time that *comes back* was never gone: several processes answer at this address (a
//! Service VIP, a balancer), and the gate's picture of "the pod" is a mixture. That is told once, and from then on changes
//! at this address mean nothing.
use std::time::Duration;

use crate::base::Mono;

/// Counters that only grow within a process: prefix queries and hits, preemptions, generated tokens.
pub const COUNTERS: usize = 4;

/// Start times that differ less are the same, in seconds (the kernel's boot time may be re-read after a clock step).
const START_SLACK_S: f64 = 1.0;
/// How long a start time is remembered. An address that alternates does so with every few scrapes.
const MEMORY: Duration = Duration::from_mins(10);
/// Counters that go back this often within [`FLUTTER`] are several processes; no engine restarts that fast.
const FLUTTERS: usize = 3;
const FLUTTER: Duration = Duration::from_secs(10);
const STARTS_MAX: usize = 8;

/// What one scrape says about the process that answered.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Witness {
    /// `process_start_time_seconds`.
    pub started_at_s: Option<f64>,
    /// Counters, summed over the ranks of the endpoint; `None` where the pod does not tell.
    pub counters: [Option<u64>; COUNTERS],
}

/// What the newest scrape means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// The same process as before, or nothing to compare with.
    Same,
    /// A new process.
    Restarted,
    /// Several processes share this address. Told once.
    Virtual,
}

/// Whether `after` comes from another process than `before`.
pub fn is_other(before: &Witness, after: &Witness) -> bool {
    let new_start = matches!((before.started_at_s, after.started_at_s), (Some(old), Some(new)) if differ(old, new));
    new_start || went_back(before, after)
}

/// The memory of one address.
#[derive(Clone, Debug, Default)]
pub struct Lives {
    last: Option<Witness>,
    starts: Vec<(f64, Mono)>,
    changes: Vec<Mono>,
    is_virtual: bool,
}

impl Lives {
    /// Takes the newest scrape of the address.
    pub fn see(&mut self, now: Mono, witness: Witness) -> Life {
        let before = self.last.replace(witness);
        let is_old_start = witness.started_at_s.is_some_and(|start| self.remember(now, start));
        if self.is_virtual {
            return Life::Same;
        }
        let Some(before) = before.filter(|before| is_other(before, &witness)) else { return Life::Same };
        self.changes.retain(|change| now.since(*change) < FLUTTER);
        self.changes.push(now);
        let moved = matches!((before.started_at_s, witness.started_at_s), (Some(old), Some(new)) if differ(old, new));
        if moved && is_old_start || self.changes.len() >= FLUTTERS {
            self.is_virtual = true;
            return Life::Virtual;
        }
        Life::Restarted
    }

    /// Whether several processes were seen behind this address.
    pub const fn is_virtual(&self) -> bool {
        self.is_virtual
    }

    /// Notes a start time; true if it was seen before.
    fn remember(&mut self, now: Mono, start: f64) -> bool {
        self.starts.retain(|(_, seen)| now.since(*seen) < MEMORY);
        if let Some((_, seen)) = self.starts.iter_mut().find(|(old, _)| !differ(*old, start)) {
            *seen = now;
            return true;
        }
        if self.starts.len() >= STARTS_MAX {
            self.starts.remove(0);
        }
        self.starts.push((start, now));
        false
    }
}

fn differ(one: f64, other: f64) -> bool {
    (one - other).abs() > START_SLACK_S
}

fn went_back(before: &Witness, after: &Witness) -> bool {
    before.counters.iter().zip(&after.counters).any(|pair| matches!(pair, (Some(old), Some(new)) if new < old))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds (second, start, counter); `None` start or counter = not told. Answers a letter per scrape.
    fn check(scrapes: &[(u64, Option<f64>, Option<u64>)], expected: &str) {
        let mut lives = Lives::default();
        let told: String = scrapes
            .iter()
            .map(|(second, start, counter)| {
                let witness = Witness { started_at_s: *start, counters: [*counter, None, None, None] };
                match lives.see(Mono(second * 1_000_000), witness) {
                    Life::Same => '.',
                    Life::Restarted => 'R',
                    Life::Virtual => 'V',
                }
            })
            .collect();
        assert_eq!(told, expected, "{scrapes:?}");
    }

    #[test]
    fn a_new_start_or_falling_counters_are_a_restart() {
        check(&[(0, Some(1e9), Some(5)), (1, Some(1e9), Some(9)), (2, Some(1e9 + 0.4), Some(9))], "...");
        check(&[(0, Some(1e9), Some(5)), (90, Some(1e9 + 80.0), Some(0)), (91, Some(1e9 + 80.0), Some(3))], ".R.");
        check(&[(0, None, Some(5)), (1, None, Some(4)), (2, None, Some(8))], ".R.");
        check(&[(0, Some(1e9), Some(5)), (1, Some(1e9), Some(0))], ".R");
        check(&[(0, Some(1e9), None), (1, None, Some(0)), (2, Some(1e9), None)], "...");
        check(&[(0, Some(1e9), Some(1)), (60, Some(2e9), Some(0)), (120, Some(3e9), Some(0))], ".RR");
    }

    #[test]
    fn a_start_time_that_comes_back_is_a_crowd_told_once() {
        let (a, b) = (Some(1e9), Some(1e9 + 7.0));
        check(&[(0, a, None), (1, b, None), (2, a, None), (3, b, None), (4, a, None)], ".RV..");
        check(
            &[(0, None, Some(9)), (1, None, Some(3)), (2, None, Some(9)), (3, None, Some(3)), (4, None, Some(1))],
            ".R.RV",
        );
        check(&[(0, a, None), (1, b, None), (900, b, None), (901, a, None)], ".R.R");
    }

    #[test]
    fn memory_is_bounded() {
        let mut lives = Lives::default();
        for step in 0..10_000_u32 {
            lives.see(Mono(0), Witness { started_at_s: Some(f64::from(step) * 100.0), ..Witness::default() });
        }
        assert!(lives.starts.len() <= STARTS_MAX && lives.changes.len() <= FLUTTERS);
    }
}
