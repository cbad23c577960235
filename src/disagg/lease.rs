//! How long the blocks of a prefill may be used.
//!
//! vLLM 0.32 keeps the blocks of a finished prefill for `kv_lease_duration` (30 s). From the moment a decoder has queued the
//! request it extends the lease by heartbeats, every sixth of it. Until then nobody does. So a decode is dispatched only while
//! `age <= min(lease / 2, lease - lease / 6 - wire-up - ingest - 2 s)`, with the age counted from an instant that is known to
//! precede the prefill's answer.
use std::time::Duration;

use crate::base::Mono;

/// Kept back for what nobody has measured.
const MARGIN: Duration = Duration::from_secs(2);

/// What a decoder needs before its first heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// First contact of the pair; none once it is made.
    pub wire_up: Duration,
    /// From the request's first byte to its place in the engine's queue, nearly always.
    pub ingest: Duration,
}

/// Blocks that a prefill pod keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    begun: Mono,
    length: Duration,
}

impl Lease {
    /// A lease of `length` that began at `begun` or later: the last instant at which the prefill had not answered yet.
    pub const fn new(begun: Mono, length: Duration) -> Self {
        Self { begun, length }
    }

    /// Age at `now`, never less than the true one.
    pub fn age(&self, now: Mono) -> Duration {
        now.since(self.begun)
    }

    /// Highest age at which a decode may be dispatched; zero if never.
    pub fn age_max(&self, timing: &Timing) -> Duration {
        let kept = self.length / 6 + timing.wire_up + timing.ingest + MARGIN;
        (self.length / 2).min(self.length.saturating_sub(kept))
    }

    /// Whether a decode may be dispatched at `now`.
    pub fn is_good(&self, now: Mono, timing: &Timing) -> bool {
        let most = self.age_max(timing);
        !most.is_zero() && self.age(now) <= most
    }

    /// Whether, at `now`, the blocks may be gone if no heartbeat came.
    pub fn may_be_over(&self, now: Mono) -> bool {
        self.age(now) >= self.length * 5 / 6
    }

    /// When the pod has surely let go of the blocks if nobody came for them.
    pub fn ends(&self) -> Mono {
        self.begun.after(self.length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decode_goes_out_only_while_nobody_can_have_reused_the_blocks() {
        let at = |ms: u64| Mono(1_000_000_000 + ms * 1_000);
        let seconds = Duration::from_secs;
        let known = Timing { wire_up: Duration::ZERO, ingest: seconds(1) };
        let lease = Lease::new(at(0), seconds(30));
        assert_eq!(lease.age_max(&known), seconds(15));
        assert!(lease.is_good(at(15_000), &known) && !lease.is_good(at(15_001), &known));
        let unknown = Timing { wire_up: seconds(15), ..known };
        assert_eq!(lease.age_max(&unknown), seconds(7));
        let short = Lease::new(at(0), seconds(12));
        assert_eq!((short.age_max(&known), short.age_max(&unknown)), (seconds(6), seconds(0)));
        assert!(!short.is_good(at(0), &unknown), "never, not even at once");
        assert!(!short.may_be_over(at(9_900)) && short.may_be_over(at(10_000)));
        assert_eq!((short.ends(), short.age(at(6_000))), (at(12_000), seconds(6)));
    }
}
