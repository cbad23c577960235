//! One try on a pod, from the pod's health's point of view. Begun before the connection is made, dropped when it is over.
//!
//! A guard, because a half-open probe is given to one request only: if that request is cancelled, panics or never connects,
//! dropping the attempt frees the probe. It books no load; that is [`super::Reservation`].
use std::sync::Arc;

use super::health::{Outcome, Ticket};
use super::pod::Pod;
use crate::base::Mono;

/// On whose word an attempt goes to a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The pod's own standing: refused while it is ejected or its probe is taken.
    Granted,
    /// The fleet's rule (too many are out, so all are used): goes even to an ejected pod.
    Forced,
}

/// A running attempt.
#[derive(Debug)]
pub struct Attempt {
    pod: Arc<Pod>,
    ticket: Ticket,
}

impl Attempt {
    /// Begins an attempt; `None` if the pod is out and `leave` does not override it. The probe of a pod whose ejection ran
    /// out goes to exactly one caller.
    pub fn begin(pod: &Arc<Pod>, now: Mono, leave: Leave) -> Option<Self> {
        let ticket = pod.health.lock().admit(now, leave == Leave::Forced)?;
        pod.asked(now);
        Some(Self { pod: Arc::clone(pod), ticket })
    }

    /// The pod.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Whether this attempt is the half-open probe.
    pub fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    /// Bytes of an answer came, good or bad: the pod is alive.
    pub fn heard(&self, now: Mono) {
        self.pod.heard(now);
    }

    /// The first good byte came. Brings a pod back that was out; the end of the answer is still to be told by [`Self::end`].
    pub fn answered(&mut self, now: Mono) {
        self.pod.health.lock().answered(now, self.ticket);
    }

    /// How it ended. Without this call (client gone before an answer) the attempt says nothing about the pod.
    pub fn end(self, now: Mono, outcome: Outcome) {
        self.pod.health.lock().end(now, self.ticket, outcome);
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        // After an end the probe is spent, and this does nothing.
        self.pod.health.lock().abandon(self.ticket);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::panic::AssertUnwindSafe;

    use super::super::Standing;
    use super::super::pod::tests::pod;
    use super::*;

    const AFTER: Mono = Mono(5_000_000);

    fn ejected() -> Arc<Pod> {
        let pod = pod(1);
        for _ in 0..3 {
            Attempt::begin(&pod, Mono::ZERO, Leave::Granted).unwrap().end(Mono::ZERO, Outcome::ConnectFailed);
        }
        pod
    }

    #[test]
    fn an_ejected_pod_is_refused_unless_forced() {
        let pod = ejected();
        assert!(Attempt::begin(&pod, Mono::ZERO, Leave::Granted).is_none());
        let forced = Attempt::begin(&pod, Mono::ZERO, Leave::Forced).unwrap();
        assert!(!forced.is_probe());
        forced.end(Mono::ZERO, Outcome::Good);
        assert!(matches!(pod.standing(Mono::ZERO), Standing::Ramp(_)));
    }

    #[test]
    fn of_many_threads_one_gets_the_probe_and_a_panic_frees_it() {
        let pod = ejected();
        let winners = std::thread::scope(|scope| {
            let tries: Vec<_> = (0..8).map(|_| scope.spawn(|| Attempt::begin(&pod, AFTER, Leave::Granted))).collect();
            tries.into_iter().filter_map(|each| each.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(winners.len(), 1);
        assert_ne!(pod.standing(AFTER), Standing::Probe);
        drop(winners);
        assert_eq!(pod.standing(AFTER), Standing::Probe);
        let unwound = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let _probe = Attempt::begin(&pod, AFTER, Leave::Granted).unwrap();
            std::panic::resume_unwind(Box::new("a fault in the request"));
        }));
        assert!(unwound.is_err());
        assert_eq!(pod.standing(AFTER), Standing::Probe);
    }

    #[test]
    fn a_good_first_byte_brings_the_pod_back_and_a_later_break_counts() {
        let pod = ejected();
        let mut probe = Attempt::begin(&pod, AFTER, Leave::Granted).unwrap();
        assert!(probe.is_probe());
        probe.answered(AFTER);
        assert_eq!(pod.standing(AFTER), Standing::Ramp(1.0 / 32.0));
        probe.end(AFTER, Outcome::Broken);
        for _ in 0..4 {
            Attempt::begin(&pod, AFTER, Leave::Granted).unwrap().end(AFTER, Outcome::Broken);
        }
        assert!(matches!(pod.standing(AFTER), Standing::Ejected(_)));
    }
}
