//! Passive health of one pod, as a pure machine: what happened goes in, its standing comes out.
use crate::base::Mono;

/// How one attempt on a pod ended, as far as the pod's health is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A good answer, a client fault (4xx), or a stream that reached its end.
    Good,
    /// The connection could not be made.
    ConnectFailed,
    /// Reset, FIN, junk, 502 or 504, or a deadline passed before the answer.
    Broken,
    /// The pod answered 500.
    ServerError,
    /// 503 or 429: busy, not ill.
    Busy,
}

/// Whether a pod may get work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing {
    /// Yes.
    Ready,
    /// Yes, but no more than this share (0 to 1) of a fair load: new or recovering.
    Ramp(f64),
    /// Out until then.
    Ejected(Mono),
    /// The ejection ran out; one request may try.
    Probe,
}

/// State of one pod.
#[derive(Clone, Debug, Default)]
pub struct Health {}

impl Health {
    /// Books how an attempt ended.
    pub fn on(&mut self, now: Mono, outcome: Outcome) {
        let (_, _) = (now, outcome);
    }

    /// Whether the pod may get work at `now`.
    pub fn standing(&self, now: Mono) -> Standing {
        let _ = now;
        Standing::Ready
    }
}
