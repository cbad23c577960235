//! One session, and what sessions are together.
use super::GroupKey;
use super::habit::Habits;
use crate::base::Mono;
use crate::flow::Class;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SessionId(pub(super) u64);

/// A conversation, or whatever else reuses prompts.
#[derive(Debug)]
pub(super) struct Session {
    /// What its next prompt will show.
    pub(super) name: u64,
    /// Whose room it takes while it is active.
    pub(super) group: Option<GroupKey>,
    /// Tokens that only it reuses.
    pub(super) own: u64,
    /// Tokens of its first prompt that were cached: others have them too.
    pub(super) shared: u64,
    /// Tokens that its last turn left in a cache.
    pub(super) context: u64,
    /// Tokens of these that its prompt began with when it last came.
    pub(super) reuse: u64,
    /// Blocks of its last prompt, and the hash of the last of them.
    pub(super) blocks: usize,
    pub(super) end: u64,
    pub(super) first: Mono,
    /// When its last turn came or ended.
    pub(super) last: Mono,
    /// Requests under way, and waiting.
    pub(super) flights: u32,
    pub(super) waits: u32,
    /// Turns that ended.
    pub(super) turns: u32,
    pub(super) class: Class,
    pub(super) has_returned: bool,
    /// It was refused, and may come again.
    pub(super) was_refused: bool,
    /// Its last request was not served: how soon it comes again is not for it to say.
    pub(super) was_cut: bool,
    /// What it takes of a pod: to compute all of its prompt, of that what it reuses, and its answer \[s\].
    pub(super) costs_s: (f64, f64, f64),
}

impl Session {
    pub(super) const fn is_free(&self) -> bool {
        self.flights == 0 && self.waits == 0
    }

    /// What of so many tokens is its own and will be reused: conversations reuse all of it, and grow; questions about one document
    /// reuse the document.
    pub(super) fn keeps(&self, context: u64) -> u64 {
        let reused = if self.has_returned { context.min(2 * self.reuse) } else { context };
        reused.saturating_sub(self.shared)
    }

    /// It would be active if it were let in.
    pub(super) const fn is_outside(&self) -> bool {
        self.group.is_none() && (self.waits > 0 || self.was_refused)
    }
}

/// Sums over sessions that came back, and over those that have not yet by class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sum {
    sessions: u64,
    tokens: u64,
}

/// What such sessions are, together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    returned: Sum,
    new: [Sum; 3],
}

impl Sums {
    fn of(&mut self, session: &Session) -> &mut Sum {
        let new = self.new.get_mut(session.class as usize).filter(|_| !session.has_returned);
        new.unwrap_or(&mut self.returned)
    }

    pub(super) fn add(&mut self, session: &Session) {
        let sum = self.of(session);
        (sum.sessions, sum.tokens) = (sum.sessions + 1, sum.tokens + session.own);
    }

    pub(super) fn take(&mut self, session: &Session) {
        let sum = self.of(session);
        (sum.sessions, sum.tokens) = (sum.sessions - 1, sum.tokens - session.own);
    }

    /// Those that are expected to come back, and what they will reuse \[tokens\].
    pub(super) fn expected(&self, habits: &Habits) -> (f64, f64) {
        let all = Class::ALL.into_iter().zip(&self.new);
        all.fold((self.returned.sessions as f64, self.returned.tokens as f64), |(sessions, tokens), (class, new)| {
            let share = habits.return_share(class);
            (sessions + share * new.sessions as f64, tokens + share * new.tokens as f64)
        })
    }

    pub(super) fn sessions(&self) -> u64 {
        self.returned.sessions + self.new.iter().map(|new| new.sessions).sum::<u64>()
    }
}
