//! When the queue looks at a pod or a ticket again.
//!
//! A heap from which nothing is taken out early: what has changed meanwhile is passed over when its time comes, and all of that is
//! thrown out once it is most.
use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::base::{Mono, PodId};
use crate::flow::TicketId;

/// Entries that are not worth a look.
const FEW: usize = 64;

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Timer {
    Pod(PodId),
    Ticket(TicketId),
}

/// See the file.
#[derive(Debug, Default)]
pub(super) struct Timers {
    heap: BinaryHeap<Reverse<(Mono, Timer)>>,
}

impl Timers {
    /// One more time.
    pub(super) fn add(&mut self, at: Mono, timer: Timer) {
        self.heap.push(Reverse((at, timer)));
    }

    /// The first time.
    pub(super) fn first(&self) -> Option<Mono> {
        self.heap.peek().map(|Reverse((at, _))| *at)
    }

    /// Takes the first out, if its time has come.
    pub(super) fn due(&mut self, now: Mono) -> Option<(Mono, Timer)> {
        self.heap.peek().filter(|Reverse((at, _))| *at <= now)?;
        self.heap.pop().map(|Reverse(first)| first)
    }

    /// Sees to it that the first still counts, and that most do; no more than `most` can.
    pub(super) fn clean(&mut self, most: usize, counts: impl Fn(Mono, Timer) -> bool) {
        while self.heap.peek().is_some_and(|Reverse((at, timer))| !counts(*at, *timer)) {
            self.heap.pop();
        }
        if self.heap.len() > Self::max(most) {
            self.heap.retain(|Reverse((at, timer))| counts(*at, *timer));
        }
    }

    /// Entries there may be, if no more than `most` count.
    pub(super) const fn max(most: usize) -> usize {
        2 * most + FEW
    }

    /// Entries there are.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether it is there.
    pub(super) fn has(&self, at: Mono, timer: Timer) -> bool {
        self.heap.iter().any(|Reverse(one)| *one == (at, timer))
    }
}
