//! Whether a failed attempt may be made again: classes of failures, and the rules per class.
//!
//! The classes are A to G of the retry policy. A request is tried at most twice, never on the same pod, and never after
//! anything reached the client. The bound on all retries together is the budget's (`budget`). What the client gets when there
//! is no retry is the reply's business: for B and F the pod's own answer.
use std::time::Duration;

use super::budget::RetryBudget;
use crate::base::{Mono, PodId};

/// Most attempts for one request, whatever the settings say.
pub const ATTEMPTS_MAX: u32 = 2;

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The pod refused the connection, or its host is unreachable.
    ConnectRefused,
    /// No connection within the connect timeout.
    ConnectTimeout,
    /// The TLS handshake failed.
    TlsFailed,
    /// We have no port or descriptor for a connection.
    NoLocalSocket,
    /// A pooled connection was closed before a byte of the request was written.
    ReusedClosed,
    /// 503 or 429: the pod did no work.
    Busy,
    /// The connection broke while the request was being written.
    WriteBroken,
    /// Reset or FIN before a response head.
    NoHead,
    /// 502 or 504 from the pod or something before it.
    GatewayStatus,
    /// Not HTTP, or framing that does not parse.
    Garbage,
    /// Broken after the head, before anything reached the client.
    BrokenUncommitted,
    /// An error event with this status as the first event of a stream.
    ErrorEvent {
        /// The status the event states; `None` if it states none.
        status: Option<u16>,
    },
    /// The response head is larger than allowed.
    HeadTooLarge,
    /// Broken after something reached the client, or ended without the good ending.
    BrokenCommitted,
    /// No first token, or no answer, in time.
    FirstByteTimeout,
    /// Silence between tokens for too long.
    IdleTimeout,
    /// The pod answered 500 or another 5xx that is an answer; it is passed on as it is.
    ServerError,
    /// The pod answered 4xx other than 429.
    ClientFault,
    /// The body is in quarantine.
    Poisoned,
    /// A decode pod could not load the KV blocks, or loaded others than were written, or perhaps others.
    Handover,
}

/// Classes of failures, A to G.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RetryClass {
    /// A: not delivered. Free.
    NotDelivered,
    /// B: refused by the pod with no work done. Charged; without a retry the pod's answer passes.
    Refused,
    /// C: delivered, nothing of an answer reached the client. Charged; a pod's death once.
    Unanswered,
    /// D: the response started. Never.
    Started,
    /// E: timed out at us. Never: work may be running.
    TimedOut,
    /// F: the pod answered. Never; its answer passes.
    Answered,
    /// G: poison. Never.
    Poison,
}

impl RetryClass {
    /// Its letter in the retry policy.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::NotDelivered => "A",
            Self::Refused => "B",
            Self::Unanswered => "C",
            Self::Started => "D",
            Self::TimedOut => "E",
            Self::Answered => "F",
            Self::Poison => "G",
        }
    }
}

impl RetryClass {
    /// Every class, in order.
    pub const ALL: [Self; 7] = [
        Self::NotDelivered,
        Self::Refused,
        Self::Unanswered,
        Self::Started,
        Self::TimedOut,
        Self::Answered,
        Self::Poison,
    ];

    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotDelivered => "not_delivered",
            Self::Refused => "refused",
            Self::Unanswered => "unanswered",
            Self::Started => "started",
            Self::TimedOut => "timed_out",
            Self::Answered => "answered",
            Self::Poison => "poison",
        }
    }
}

/// The class of a failure.
pub const fn classify(failure: Failure) -> RetryClass {
    match failure {
        Failure::ConnectRefused
        | Failure::ConnectTimeout
        | Failure::TlsFailed
        | Failure::NoLocalSocket
        | Failure::ReusedClosed => RetryClass::NotDelivered,
        Failure::Busy | Failure::ErrorEvent { status: Some(429 | 503) } => RetryClass::Refused,
        Failure::ErrorEvent { status: Some(400..=499) } | Failure::ServerError | Failure::ClientFault => {
            RetryClass::Answered
        }
        Failure::WriteBroken
        | Failure::NoHead
        | Failure::GatewayStatus
        | Failure::Garbage
        | Failure::BrokenUncommitted
        | Failure::Handover
        | Failure::ErrorEvent { .. } => RetryClass::Unanswered,
        Failure::HeadTooLarge | Failure::BrokenCommitted => RetryClass::Started,
        Failure::FirstByteTimeout | Failure::IdleTimeout => RetryClass::TimedOut,
        Failure::Poisoned => RetryClass::Poison,
    }
}

/// Whether a delivered request may be delivered again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// It only computes: generation, embeddings, scoring, tokenizing.
    Harmless,
    /// It may leave something behind on the pod (a stored response, an unknown route): not after delivery.
    Unknown,
}

/// One failed attempt.
#[derive(Clone, Copy, Debug)]
pub struct Setback {
    /// Class of the failure.
    pub class: RetryClass,
    /// The pod it failed on.
    pub pod: PodId,
    /// When the attempt was dispatched.
    pub started: Mono,
    /// When it failed. The same on every question about this failure.
    pub failed: Mono,
    /// Attempts made for the request, this one included.
    pub attempts: u32,
    /// Whether it may be delivered again.
    pub replay: Replay,
    /// Whether a pod is left that was not tried.
    pub has_other_pod: bool,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Try on another pod, now.
    Retry,
    /// Too many failed at once to know whether other pods live: ask again after this time. Ends within
    /// [`super::budget::PATIENCE`].
    Wait(Duration),
    /// No retry.
    Stop(Stop),
}

/// Why there is no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The class is never retried.
    Never,
    /// Enough attempts were made.
    AttemptsSpent,
    /// All pods were tried.
    NoOtherPod,
    /// The request was delivered and may not be delivered again.
    NotReplayable,
    /// The model's retry budget is spent.
    BudgetSpent,
}

impl Stop {
    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::AttemptsSpent => "attempts_spent",
            Self::NoOtherPod => "no_other_pod",
            Self::NotReplayable => "not_replayable",
            Self::BudgetSpent => "budget_spent",
        }
    }
}

/// Whether the request of `setback` may be tried again. Notes the failure in the budget in any case.
pub fn may_retry(now: Mono, setback: &Setback, budget: &mut RetryBudget) -> Verdict {
    use RetryClass::{NotDelivered, Refused, Unanswered};
    if matches!(setback.class, NotDelivered | Unanswered | RetryClass::TimedOut) {
        budget.failed(setback.pod, setback.failed);
    }
    let attempts_max = budget.settings().attempts_max.min(ATTEMPTS_MAX);
    let may_redeliver = setback.replay == Replay::Harmless && budget.settings().retry_delivered;
    match setback.class {
        NotDelivered | Refused | Unanswered if setback.attempts >= attempts_max => Verdict::Stop(Stop::AttemptsSpent),
        NotDelivered | Refused | Unanswered if !setback.has_other_pod => Verdict::Stop(Stop::NoOtherPod),
        Unanswered if !may_redeliver => Verdict::Stop(Stop::NotReplayable),
        NotDelivered => budget.ask_undelivered(now, setback),
        Refused => budget.ask_refused(),
        Unanswered => budget.ask_unanswered(now, setback),
        _ => Verdict::Stop(Stop::Never),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::flow::RetrySettings;

    #[test]
    fn the_table() {
        use Failure as F;
        let rows = [
            (F::ConnectRefused, 'A'),
            (F::ConnectTimeout, 'A'),
            (F::TlsFailed, 'A'),
            (F::NoLocalSocket, 'A'),
            (F::ReusedClosed, 'A'),
            (F::Busy, 'B'),
            (F::ErrorEvent { status: Some(503) }, 'B'),
            (F::WriteBroken, 'C'),
            (F::NoHead, 'C'),
            (F::GatewayStatus, 'C'),
            (F::Garbage, 'C'),
            (F::BrokenUncommitted, 'C'),
            (F::ErrorEvent { status: Some(500) }, 'C'),
            (F::ErrorEvent { status: None }, 'C'),
            (F::HeadTooLarge, 'D'),
            (F::BrokenCommitted, 'D'),
            (F::FirstByteTimeout, 'E'),
            (F::IdleTimeout, 'E'),
            (F::ErrorEvent { status: Some(400) }, 'F'),
            (F::ServerError, 'F'),
            (F::ClientFault, 'F'),
            (F::Poisoned, 'G'),
        ];
        for (failure, letter) in rows {
            assert_eq!(classify(failure).letter(), letter.to_string(), "{failure:?}");
        }
    }

    fn check(class: RetryClass, change: impl Fn(&mut Setback), settings: &RetrySettings, expected: Verdict) {
        let mut setback = Setback {
            class,
            pod: PodId(1),
            started: Mono(0),
            failed: Mono(10),
            attempts: 1,
            replay: Replay::Harmless,
            has_other_pod: true,
        };
        change(&mut setback);
        let verdict = may_retry(Mono(10), &setback, &mut RetryBudget::new(settings.clone()));
        assert_eq!(verdict, expected, "{setback:?}");
    }

    #[test]
    fn rules_per_class() {
        use RetryClass::{Answered, NotDelivered, Poison, Refused, Started, TimedOut, Unanswered};
        let usual = RetrySettings::default();
        for class in [NotDelivered, Refused, Unanswered] {
            check(class, |_| {}, &usual, Verdict::Retry);
            check(class, |setback| setback.attempts = 2, &usual, Verdict::Stop(Stop::AttemptsSpent));
            check(class, |setback| setback.has_other_pod = false, &usual, Verdict::Stop(Stop::NoOtherPod));
            let once = RetrySettings { attempts_max: 1, ..usual.clone() };
            check(class, |_| {}, &once, Verdict::Stop(Stop::AttemptsSpent));
        }
        for class in [Started, TimedOut, Answered, Poison] {
            check(class, |_| {}, &usual, Verdict::Stop(Stop::Never));
        }
        check(NotDelivered, |setback| setback.replay = Replay::Unknown, &usual, Verdict::Retry);
        check(Unanswered, |setback| setback.replay = Replay::Unknown, &usual, Verdict::Stop(Stop::NotReplayable));
        let careful = RetrySettings { retry_delivered: false, ..usual };
        check(Unanswered, |_| {}, &careful, Verdict::Stop(Stop::NotReplayable));
    }
}
