//! The prefill work this gate has sent to a pod, in the order sent, and when it should be done.
//!
//! An engine prefills first come, first served, so work that was sent stands in a line. A first token tells that its request
//! and all before it are done. A request that is not streamed shows no first token: its prefill is taken as done at its
//! predicted time, or when a later one is seen done. Pure: times come in; the owner holds the lock and publishes the summary.
use std::collections::VecDeque;

use crate::base::Mono;

/// Most entries kept; work beyond is not seen in the wait.
const ENTRIES_MAX: usize = 1_024;

#[derive(Clone, Copy, Debug)]
struct Entry {
    ticket: u64,
    /// Predicted time of the prefill \[µs\].
    takes_us: u64,
    tokens: u64,
    done: Mono,
    is_stream: bool,
}

/// What a reader needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Summary {
    /// When all of it should be done.
    pub(super) until: Mono,
    /// When this was true.
    pub(super) at: Mono,
    /// Tokens to be prefilled.
    pub(super) tokens: u64,
    /// Requests that will show a first token.
    pub(super) streams: u32,
    /// Requests that will not.
    pub(super) plain: u32,
}

/// The line.
#[derive(Debug, Default)]
pub(super) struct Queue {
    entries: VecDeque<Entry>,
    tickets: u64,
    at: Mono,
}

impl Queue {
    /// Adds work at the end; the ticket names it.
    pub(super) fn push(&mut self, now: Mono, takes_us: u64, tokens: u64, is_stream: bool) -> u64 {
        self.at = self.at.max(now);
        self.entries.retain(|entry| entry.is_stream || entry.done > now);
        self.tickets += 1;
        if self.entries.len() < ENTRIES_MAX {
            let starts = self.entries.back().map_or(now, |last| last.done.max(now));
            let done = Mono(starts.0.saturating_add(takes_us));
            self.entries.push_back(Entry { ticket: self.tickets, takes_us, tokens, done, is_stream });
        }
        self.tickets
    }

    /// The first token of `ticket` was seen: those before it that show none are done too. Those behind it begin now, or after what an
    /// engine that does not go by arrival has passed over: that is still to be done.
    pub(super) fn done(&mut self, now: Mono, ticket: u64) {
        self.at = self.at.max(now);
        self.entries.retain(|entry| entry.ticket > ticket || entry.is_stream && entry.ticket != ticket);
        let mut starts = now;
        for entry in &mut self.entries {
            let is_passed = entry.ticket < ticket;
            starts = if is_passed { starts.max(entry.done) } else { Mono(starts.0.saturating_add(entry.takes_us)) };
            entry.done = starts;
        }
    }

    /// `ticket` ended without having shown a first token: what is behind it moves up.
    pub(super) fn cancel(&mut self, ticket: u64) {
        let Some(place) = self.entries.iter().position(|entry| entry.ticket == ticket) else { return };
        let before =
            place.checked_sub(1).and_then(|before| self.entries.get(before)).map_or(self.at, |entry| entry.done);
        let Some(gone) = self.entries.remove(place) else { return };
        let freed = gone.takes_us.min(gone.done.0.saturating_sub(before.0));
        for entry in self.entries.iter_mut().skip(place) {
            entry.done = Mono(entry.done.0.saturating_sub(freed));
        }
    }

    /// Everything left, in a few numbers.
    pub(super) fn summary(&self) -> Summary {
        let mut all = Summary { at: self.at, until: self.at, ..Summary::default() };
        for entry in &self.entries {
            all.until = all.until.max(entry.done);
            all.tokens = all.tokens.saturating_add(entry.tokens);
            if entry.is_stream { all.streams += 1 } else { all.plain += 1 }
        }
        all
    }
}

impl Summary {
    /// Seconds of work left at `now`.
    pub(super) const fn wait(&self, now: Mono) -> f64 {
        self.until.0.saturating_sub(now.0) as f64 / 1e6
    }

    /// Share of the work left at `now`, 0 to 1.
    pub(super) fn left(&self, now: Mono) -> f64 {
        let whole = self.until.0.saturating_sub(self.at.0) as f64 / 1e6;
        if whole > 0.0 { (self.wait(now) / whole).min(1.0) } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Mono {
        Mono(ms * 1_000)
    }

    #[test]
    fn work_stands_in_line_and_first_tokens_move_it() {
        let mut queue = Queue::default();
        let first = queue.push(ms(0), 100_000, 1_000, true);
        let second = queue.push(ms(10), 50_000, 500, true);
        let third = queue.push(ms(20), 50_000, 500, true);
        assert_eq!(queue.summary(), Summary { until: ms(200), at: ms(20), tokens: 2_000, streams: 3, plain: 0 });
        queue.done(ms(160), first);
        assert_eq!(queue.summary().until, ms(260), "late, so the others are late");
        queue.cancel(second);
        assert_eq!((queue.summary().until, queue.summary().streams), (ms(210), 1));
        queue.done(ms(170), third);
        assert_eq!((queue.summary().wait(ms(170)).to_bits(), queue.summary().tokens), (0.0_f64.to_bits(), 0));
    }

    #[test]
    fn what_was_passed_over_is_still_to_be_done() {
        let mut queue = Queue::default();
        let long = queue.push(ms(0), 5_000_000, 40_000, true);
        let first = queue.push(ms(10), 50_000, 500, true);
        queue.push(ms(20), 50_000, 500, true);
        queue.done(ms(100), first);
        assert_eq!(queue.summary().until, ms(5_050), "it went before the long one, the third need not");
        queue.done(ms(5_200), long);
        assert_eq!(queue.summary().until, ms(5_250));
    }

    #[test]
    fn what_shows_no_first_token_is_done_at_its_time() {
        let mut queue = Queue::default();
        queue.push(ms(0), 100_000, 1_000, false);
        let stream = queue.push(ms(0), 100_000, 1_000, true);
        assert!((queue.summary().wait(ms(50)) - 0.15).abs() < 1e-9);
        assert!((queue.summary().left(ms(50)) - 0.75).abs() < 1e-9);
        queue.done(ms(120), stream);
        assert_eq!(queue.summary().plain, 0, "a later one was seen done");
        queue.push(ms(200), 10_000, 10, false);
        queue.push(ms(300), 10_000, 10, false);
        assert_eq!(queue.summary(), Summary { until: ms(310), at: ms(300), tokens: 10, streams: 0, plain: 1 });
    }

    #[test]
    fn a_flood_is_bounded() {
        let mut queue = Queue::default();
        for _ in 0..5_000 {
            queue.push(ms(0), 1_000, 1, true);
        }
        assert_eq!(queue.summary().streams as usize, ENTRIES_MAX);
    }
}
