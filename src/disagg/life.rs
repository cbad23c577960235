//! The life of one request on two pods, as a state machine: what happened goes in, what to do comes out.
//!
//! ```text
//! state      event                         next
//! planning   pair found                    prefill
//!            no pair                       alone
//! prefill    not delivered, refused, lost  another pair (at most 2 prefills), else alone or fail, as configured
//!            judged (4xx)                  alone: the decoder's own verdict is the client's
//!            late                          alone or fail, as configured
//!            done                          decode, under a lease
//! leased     lease too old when sending    another pair, else alone; the old lease runs out
//!            decoder not reached           another decoder, same lease (at most twice)
//! decoding   refused, died, KV load failed,
//!            wrong first token, blocks may have been let go  alone, since no more than 2 decodes are allowed
//!            late                          fail
//!            first data, checked           commit
//! any        client left                   end; a lease nobody came for is an orphan
//! ```
//! What always holds: at most 2 prefills and 2 decodes (alone counts as one); a lease is sent to a decoder at most once, and only
//! while it is good; nothing is committed before its check; one end.
//!
//! A decoder that answers at all, even with a refusal, has told the prefiller to let go (vLLM 0.32): only one that was never
//! reached leaves the lease as it was.
use super::lease::{Lease, Timing};
use crate::base::Mono;

/// Most decoders that cannot be reached, before it is given up. They have done no work, so they are no decodes.
const UNREACHED_MAX: u8 = 2;

/// Bounds and choices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether a decode pod does it all if the prefill failed.
    pub falls_back: bool,
    /// Most prefills.
    pub prefills_max: u8,
    /// Most decodes, alone or not.
    pub decodes_max: u8,
}

impl Default for Rules {
    fn default() -> Self {
        Self { falls_back: true, prefills_max: 2, decodes_max: 2 }
    }
}

/// What is to be planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// A prefill pod and a decode pod.
    Pair,
    /// Another decode pod for the lease there is.
    Decoder,
}

/// How a prefill failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillFault {
    /// Not delivered, or refused with no work done.
    Refused,
    /// The pod broke, or its answer cannot be used.
    Lost,
    /// The pod says that the request is wrong.
    Judged,
    /// No answer in time.
    Late,
}

/// How a decode failed before anything of it reached the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecodeFault {
    /// Nothing of the request was sent: the lease is untouched.
    Unreached,
    /// Refused, broken, or the KV blocks could not be loaded.
    Broken,
    /// No first token in time.
    Late,
}

/// What the check of a first token says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Both pods made the same.
    Agrees,
    /// Nothing can be said.
    Open,
    /// The decoder read something else than the prefiller wrote.
    Differs,
    /// The prefiller may have let go of the blocks before the decoder read them.
    Expired,
}

impl Check {
    /// Its name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agrees => "agrees",
            Self::Open => "open",
            Self::Differs => "differs",
            Self::Expired => "expired",
        }
    }
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// What was wanted is planned.
    Planned,
    /// It cannot be had, or is not worth it.
    NotPlanned,
    /// The prefill answered with all that a decoder needs.
    PrefillDone(Lease),
    /// The prefill failed.
    PrefillFailed(PrefillFault),
    /// A connection to the decoder is there; the next thing is to send.
    Sending(Timing),
    /// The decode failed.
    DecodeFailed(DecodeFault),
    /// The decoder's first data is there, and was checked.
    First(Check),
    /// The answer has ended, well or not.
    Ended,
    /// The client left.
    Left,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Choose pods; answer with `Planned` or `NotPlanned`.
    Plan(Want),
    /// Send the prefill.
    Prefill,
    /// Connect to the decoder; answer with `Sending` right before the first byte.
    Decode,
    /// Send it.
    Send,
    /// A decode pod does it all, in one step; this machine has ended.
    Alone,
    /// The answer goes to the client.
    Commit,
    /// It is over.
    Finish(Outcome),
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The client has what there is.
    Answered,
    /// Nothing reached the client, and nothing more is tried.
    Failed,
    /// The client left; whether a lease is left that nobody comes for.
    Left {
        /// It runs out by itself.
        orphan: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Planning,
    Prefilling,
    Leased,
    Decoding,
    Streaming,
    Over,
}

/// The machine. Feed it events in the order of its own acts.
#[derive(Clone, Debug)]
pub struct Life {
    rules: Rules,
    phase: Phase,
    prefills: u8,
    decodes: u8,
    /// Decoders that could not be reached.
    unreached: u8,
    /// A lease that no decoder was sent yet.
    lease: Option<Lease>,
    /// Leases that were given up before they were sent.
    dropped: u8,
    /// The last prefill failed.
    is_prefill_lost: bool,
}

impl Life {
    /// A request for which a pair has been chosen, and the first thing to do.
    pub const fn begin(rules: Rules) -> (Self, Act) {
        let life = Self {
            rules,
            phase: Phase::Prefilling,
            prefills: 1,
            decodes: 0,
            unreached: 0,
            lease: None,
            dropped: 0,
            is_prefill_lost: false,
        };
        (life, Act::Prefill)
    }

    /// Prefills so far.
    pub const fn prefills(&self) -> u8 {
        self.prefills
    }

    /// Decodes sent so far.
    pub const fn decodes(&self) -> u8 {
        self.decodes
    }

    /// Leases given up before a decoder was sent them; they run out by themselves.
    pub const fn dropped(&self) -> u8 {
        self.dropped
    }

    /// Takes what happened and says what to do. An event that cannot happen in this state ends it as failed.
    pub fn on(&mut self, event: Event, now: Mono) -> Act {
        match (self.phase, event) {
            (Phase::Over, _) => Act::Finish(Outcome::Failed),
            (_, Event::Left) => {
                let orphan = self.drop_lease();
                self.finish(Outcome::Left { orphan })
            }
            (Phase::Planning, Event::Planned) if self.lease.is_some() => self.go(Phase::Leased, Act::Decode),
            (Phase::Planning, Event::Planned) => {
                self.prefills += 1;
                self.go(Phase::Prefilling, Act::Prefill)
            }
            (Phase::Planning, Event::NotPlanned) if self.rules.falls_back || !self.is_prefill_lost => self.alone(),
            (Phase::Prefilling, Event::PrefillDone(lease)) => {
                self.lease = Some(lease);
                self.is_prefill_lost = false;
                self.go(Phase::Leased, Act::Decode)
            }
            (Phase::Prefilling, Event::PrefillFailed(fault)) => self.prefill_failed(fault),
            (Phase::Leased, Event::Sending(timing)) => match self.lease.take() {
                Some(lease) if lease.is_good(now, &timing) => {
                    self.decodes += 1;
                    self.go(Phase::Decoding, Act::Send)
                }
                given_up => {
                    self.dropped += u8::from(given_up.is_some());
                    self.again()
                }
            },
            (Phase::Leased, Event::DecodeFailed(DecodeFault::Unreached)) => {
                self.unreached += 1;
                if self.unreached <= UNREACHED_MAX {
                    return self.go(Phase::Planning, Act::Plan(Want::Decoder));
                }
                self.drop_lease();
                self.finish(Outcome::Failed)
            }
            (Phase::Decoding, Event::First(Check::Agrees | Check::Open)) => self.go(Phase::Streaming, Act::Commit),
            (
                Phase::Decoding,
                Event::First(Check::Differs | Check::Expired) | Event::DecodeFailed(DecodeFault::Broken),
            ) => self.again(),
            (Phase::Streaming, Event::Ended) => self.finish(Outcome::Answered),
            _ => {
                self.drop_lease();
                self.finish(Outcome::Failed)
            }
        }
    }

    fn prefill_failed(&mut self, fault: PrefillFault) -> Act {
        let has_more = self.prefills < self.rules.prefills_max;
        self.is_prefill_lost = true;
        match fault {
            PrefillFault::Judged => self.alone(),
            PrefillFault::Refused | PrefillFault::Lost if has_more => self.go(Phase::Planning, Act::Plan(Want::Pair)),
            _ if self.rules.falls_back => self.alone(),
            _ => self.finish(Outcome::Failed),
        }
    }

    /// From the start, if that is still allowed. The last decode is not risked on a second handover.
    fn again(&mut self) -> Act {
        let left = self.rules.decodes_max.saturating_sub(self.decodes);
        match (left, self.prefills < self.rules.prefills_max) {
            (0, _) => self.finish(Outcome::Failed),
            (2.., true) => self.go(Phase::Planning, Act::Plan(Want::Pair)),
            _ => self.alone(),
        }
    }

    fn alone(&mut self) -> Act {
        self.drop_lease();
        self.decodes += 1;
        self.go(Phase::Over, Act::Alone)
    }

    fn finish(&mut self, outcome: Outcome) -> Act {
        self.go(Phase::Over, Act::Finish(outcome))
    }

    fn drop_lease(&mut self) -> bool {
        let had = self.lease.take().is_some();
        self.dropped += u8::from(had);
        had
    }

    fn go(&mut self, phase: Phase, act: Act) -> Act {
        self.phase = phase;
        act
    }
}

#[cfg(test)]
mod tests;
