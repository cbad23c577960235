//! Whether the gate is ready, as facts that the rooms report and `/readyz` reads.
//!
//! Ready = configuration loaded, first discovery snapshot there (it may be empty), every pod of that snapshot tried once,
//! not draining. Pods that come later do not make a ready gate unready.
use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use crate::base::{Mono, PodId};

/// Silence of the event loop after which the gate counts as stuck.
pub const BEAT_AGE_MAX: Duration = Duration::from_secs(10);

/// What is still missing for being ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Missing {
    /// No configuration yet.
    Configuration,
    /// No discovery snapshot yet.
    Discovery,
    /// So many pods of the first snapshot were not tried yet.
    Pods(usize),
    /// The gate drains; it will not be ready again.
    Draining,
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Configuration => f.write_str("configuration is not loaded yet"),
            Self::Discovery => f.write_str("no list of pods yet"),
            Self::Pods(count) => write!(f, "{count} pods not tried yet"),
            Self::Draining => f.write_str("draining"),
        }
    }
}

/// Shared by `Arc`; rooms report, admin reads.
#[derive(Debug, Default)]
pub struct Readiness {
    configured: AtomicBool,
    draining: AtomicBool,
    untried: Mutex<Option<HashSet<PodId>>>,
    beat_us: AtomicU64,
}

impl Readiness {
    /// Configuration is loaded.
    pub fn configured(&self) {
        self.configured.store(true, Relaxed);
    }

    /// A discovery snapshot is there. Only the first one counts.
    pub fn discovered(&self, pods: impl IntoIterator<Item = PodId>) {
        self.untried.lock().get_or_insert_with(|| pods.into_iter().collect());
    }

    /// A pod was tried, whatever came of it. Also call it for pods that were removed before they were tried.
    pub fn tried(&self, pod: PodId) {
        if let Some(untried) = self.untried.lock().as_mut() {
            untried.remove(&pod);
        }
    }

    /// Pods that left before they were tried are not waited for; an endpoint that shows ranks becomes other pods.
    pub fn keep(&self, is_there: impl Fn(PodId) -> bool) {
        if let Some(untried) = self.untried.lock().as_mut() {
            untried.retain(|pod| is_there(*pod));
        }
    }

    /// The gate drains from now on.
    pub fn drain(&self) {
        self.draining.store(true, Relaxed);
    }

    /// Whether the gate drains.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Relaxed)
    }

    /// The data plane's event loop runs; call about once a second.
    pub fn beat(&self, now: Mono) {
        self.beat_us.store(now.0.max(1), Relaxed);
    }

    /// Whether the event loop ran lately. True as long as nobody ever beat.
    pub fn is_alive(&self, now: Mono) -> bool {
        match self.beat_us.load(Relaxed) {
            0 => true,
            beat_us => now.since(Mono(beat_us)) <= BEAT_AGE_MAX,
        }
    }

    /// What is missing; `None` means ready.
    pub fn missing(&self) -> Option<Missing> {
        if self.is_draining() {
            return Some(Missing::Draining);
        }
        if !self.configured.load(Relaxed) {
            return Some(Missing::Configuration);
        }
        match self.untried.lock().as_ref() {
            None => Some(Missing::Discovery),
            Some(untried) if !untried.is_empty() => Some(Missing::Pods(untried.len())),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn becomes_ready_step_by_step_and_stays_so() {
        let readiness = Readiness::default();
        assert_eq!(readiness.missing(), Some(Missing::Configuration));
        readiness.configured();
        assert_eq!(readiness.missing(), Some(Missing::Discovery));
        readiness.discovered([PodId(1), PodId(2)]);
        readiness.tried(PodId(1));
        assert_eq!(readiness.missing(), Some(Missing::Pods(1)));
        readiness.tried(PodId(2));
        assert_eq!(readiness.missing(), None);
        readiness.keep(|_| false);
        readiness.discovered([PodId(3)]);
        assert_eq!(readiness.missing(), None, "later pods do not unready the gate");
        readiness.drain();
        assert_eq!(readiness.missing(), Some(Missing::Draining));
    }

    #[test]
    fn pods_that_left_are_not_waited_for() {
        let readiness = Readiness::default();
        readiness.configured();
        readiness.discovered([PodId(1), PodId(2)]);
        readiness.keep(|pod| pod == PodId(2));
        assert_eq!(readiness.missing(), Some(Missing::Pods(1)));
        readiness.keep(|_| false);
        assert_eq!(readiness.missing(), None);
    }

    #[test]
    fn a_silent_event_loop_is_noticed() {
        let readiness = Readiness::default();
        assert!(readiness.is_alive(Mono(u64::MAX)));
        readiness.beat(Mono::ZERO);
        assert!(readiness.is_alive(Mono::ZERO.after(BEAT_AGE_MAX)));
        assert!(!readiness.is_alive(Mono::ZERO.after(BEAT_AGE_MAX * 2)));
    }
}
