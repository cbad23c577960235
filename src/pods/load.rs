//! What this gate has in flight on a pod, and the few other numbers of it that every decision looks at.
//!
//! Booked when a pod is chosen, given back by a guard on every exit path; after the last guard all counts are zero. In the
//! words of the ranking cost: `Q` is [`LoadNow::prefill_tokens`], `W` is [`LoadNow::wait_s`], `n` is [`LoadNow::requests`], `d`
//! is [`LoadNow::decoding`], `A` is [`LoadNow::context_tokens`] and `K` is [`LoadNow::pinned_tokens`]; both grow with what is
//! generated. Readers take no lock: what needs one (`queue`, `pins`) is published as a few atomics.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::pins::{Marks, Pins};
use super::pod::Pod;
use super::queue::{Queue, Summary};
use super::shut::Shuts;
use super::step::{StepCell, StepTime};
use crate::base::{Mono, Tokens};

/// No request has more tokens than this; a pod that claims more in its `usage` is not believed.
pub(super) const TOKENS_MAX: u64 = 1 << 32;

/// Counters of one pod. What every decision looks at comes first, in two cache lines: a survey of a thousand pods is bound by
/// those.
#[derive(Debug, Default)]
#[repr(C, align(128))]
pub struct Load {
    requests: AtomicU32,
    unanswered: AtomicU32,
    streams: AtomicU32,
    plain: AtomicU32,
    pub(super) coming: AtomicU32,
    /// Prefills that wait at the gate for room there \[µs\]: all, and those of the first class.
    held_us: AtomicU64,
    held_first_us: AtomicU64,
    /// Something is held against the pod: its health needs a closer look.
    pub(super) is_uneasy: AtomicBool,
    /// Why it gets nothing new.
    pub shuts: Shuts,
    /// The log has said that it breaks answers off while it is being deleted.
    pub was_told_to_cut: AtomicBool,
    pub(super) scrape_failures: AtomicU32,
    until: AtomicU64,
    at: AtomicU64,
    pub(super) prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    shared_tokens: AtomicU64,
    /// KV capacity in tokens; 0 while unknown.
    pub(super) capacity: AtomicU64,
    /// Time of an engine step there, as the latency model knows it; the prior until then.
    pub step: StepCell,
    others: Others,
    queued_tokens: AtomicU64,
    served: AtomicU64,
    dispatched: AtomicU64,
    last_dispatch: AtomicU64,
    last_cold: AtomicU64,
    ledger: Mutex<Ledger>,
}

/// What a lock is needed for.
#[derive(Debug, Default)]
struct Ledger {
    queue: Queue,
    pins: Pins,
}

/// What the last reading said of the load of others.
#[derive(Debug, Default)]
struct Others {
    requests: AtomicU32,
    tokens: AtomicU64,
    taken: AtomicU64,
    /// When others were last seen there.
    seen: AtomicU64,
}

/// One look at the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LoadNow {
    /// Dispatched and not ended.
    pub requests: u32,
    /// Of these, without a first byte yet.
    pub unanswered: u32,
    /// Of these, still in prefill: a request that is not streamed is taken out at its predicted time.
    pub prefilling: u32,
    /// Requests that will decode there once another pod has prefilled them; not among `requests`.
    pub coming: u32,
    /// Uncached prompt tokens dispatched and not yet prefilled, what should be done by now taken off.
    pub prefill_tokens: Tokens,
    /// Predicted time until all of that is done \[seconds\].
    pub wait_s: f64,
    /// Time of the prefills that wait at the gate until the pod has room for them \[seconds\].
    pub held_s: f64,
    /// Of this, of the first class, before which nothing else goes \[seconds\].
    pub held_first_s: f64,
    /// Prompt tokens of everything in flight, and what it generated so far: each sequence's context added up.
    pub context_tokens: Tokens,
    /// Of these, generated.
    pub generated_tokens: Tokens,
    /// KV that this occupies: as `context_tokens`, a prefix that several requests share counted once.
    pub pinned_tokens: Tokens,
    /// Requests that ended well since the pod was first seen.
    pub served: u64,
    /// Requests dispatched since the pod was first seen.
    pub dispatched: u64,
}

impl LoadNow {
    /// Requests in flight that are past their prefill.
    pub const fn decoding(&self) -> u32 {
        self.requests.saturating_sub(self.prefilling)
    }
}

/// A short look: what the ranking of a large fleet needs.
#[derive(Clone, Copy, Debug)]
pub struct Glance {
    /// See [`LoadNow::requests`].
    pub requests: f64,
    /// See [`LoadNow::decoding`].
    pub decoding: f64,
    /// See [`LoadNow::wait_s`].
    pub wait_s: f64,
    /// See [`LoadNow::held_s`].
    pub held_s: f64,
    /// See [`LoadNow::held_first_s`].
    pub held_first_s: f64,
    /// See [`LoadNow::context_tokens`].
    pub context_tokens: f64,
    /// See [`LoadNow::pinned_tokens`].
    pub pinned_tokens: f64,
    /// KV capacity \[tokens\]; infinite while unknown.
    pub capacity: f64,
    /// Requests and KV tokens of others.
    pub others: (f64, f64),
    /// Time of an engine step.
    pub step: StepTime,
}

impl Load {
    /// The counters at `now`. Each is exact, or exactly predicted; two of them may be a moment apart.
    pub fn at(&self, now: Mono) -> LoadNow {
        let queue = self.queue();
        let left = queue.left(now);
        let requests = self.requests.load(Relaxed);
        let plain = (f64::from(queue.plain) * left).ceil() as u32;
        let generated = self.generated_tokens.load(Relaxed);
        let context = self.prompt_tokens.load(Relaxed).saturating_add(generated);
        LoadNow {
            requests,
            unanswered: self.unanswered.load(Relaxed),
            prefilling: queue.streams.saturating_add(plain).min(requests),
            coming: self.coming.load(Relaxed),
            prefill_tokens: Tokens((queue.tokens as f64 * left) as u64),
            wait_s: queue.wait(now),
            held_s: self.held_us.load(Relaxed) as f64 * 1e-6,
            held_first_s: self.held_first_us.load(Relaxed) as f64 * 1e-6,
            context_tokens: Tokens(context),
            generated_tokens: Tokens(generated),
            pinned_tokens: Tokens(context.saturating_sub(self.shared_tokens.load(Relaxed))),
            served: self.served.load(Relaxed),
            dispatched: self.dispatched.load(Relaxed),
        }
    }

    /// Prefills of so many microseconds wait at the gate for room there, and so many of the first class.
    pub fn hold(&self, held_us: u64, first_us: u64) {
        self.held_us.store(held_us, Relaxed);
        self.held_first_us.store(first_us, Relaxed);
    }

    /// The counters as last booked: work that should be done by now still counts.
    pub fn now(&self) -> LoadNow {
        self.at(Mono(self.at.load(Relaxed)))
    }

    /// A short look at `now`.
    #[inline]
    pub fn glance(&self, now: Mono) -> Glance {
        let (until, plain) = (Mono(self.until.load(Relaxed)), self.plain.load(Relaxed));
        let requests = self.requests.load(Relaxed);
        let plain = if plain == 0 { 0 } else { (f64::from(plain) * self.queue().left(now)).ceil() as u32 };
        let prefilling = self.streams.load(Relaxed).saturating_add(plain);
        let context = self.prompt_tokens.load(Relaxed).saturating_add(self.generated_tokens.load(Relaxed));
        let capacity = self.capacity.load(Relaxed);
        Glance {
            requests: f64::from(requests),
            decoding: f64::from(requests.saturating_sub(prefilling) + self.coming.load(Relaxed)),
            wait_s: until.0.saturating_sub(now.0) as f64 * 1e-6,
            held_s: self.held_us.load(Relaxed) as f64 * 1e-6,
            held_first_s: self.held_first_us.load(Relaxed) as f64 * 1e-6,
            context_tokens: context as f64,
            pinned_tokens: context.saturating_sub(self.shared_tokens.load(Relaxed)) as f64,
            capacity: if capacity == 0 { f64::INFINITY } else { capacity as f64 },
            others: self.others(now),
            step: self.step.get(),
        }
    }

    /// Requests without a first token: streams until it came, others until it was predicted.
    pub fn unanswered(&self, now: Mono) -> u32 {
        let queue = self.queue();
        queue.streams + (f64::from(queue.plain) * queue.left(now)).ceil() as u32
    }

    /// Streams that should have their first token by now and have none.
    pub fn overdue(&self, now: Mono) -> u32 {
        if Mono(self.until.load(Relaxed)) <= now { self.streams.load(Relaxed) } else { 0 }
    }

    fn queue(&self) -> Summary {
        Summary {
            until: Mono(self.until.load(Relaxed)),
            at: Mono(self.at.load(Relaxed)),
            tokens: self.queued_tokens.load(Relaxed),
            streams: self.streams.load(Relaxed),
            plain: self.plain.load(Relaxed),
        }
    }

    /// KV capacity, if the pod has told it.
    pub fn capacity(&self) -> Option<Tokens> {
        Some(self.capacity.load(Relaxed)).filter(|tokens| *tokens > 0).map(Tokens)
    }

    /// Takes what a reading says of the load of others: requests and KV tokens.
    pub(super) fn set_others(&self, taken: Mono, requests: u32, tokens: u64) {
        self.others.requests.store(requests, Relaxed);
        self.others.tokens.store(tokens, Relaxed);
        self.others.taken.store(taken.0, Relaxed);
        if requests > 0 {
            self.others.seen.fetch_max(taken.0, Relaxed);
        }
    }

    /// Whether a reading taken since then showed requests of others.
    pub fn saw_others_since(&self, then: Mono) -> bool {
        let seen = self.others.seen.load(Relaxed);
        seen > 0 && seen >= then.0
    }

    /// Requests and KV tokens of others there, as much as their reading is still worth (see [`super::reading::worth`]).
    #[inline]
    pub fn others(&self, now: Mono) -> (f64, f64) {
        let (requests, tokens) = (self.others.requests.load(Relaxed), self.others.tokens.load(Relaxed));
        if requests == 0 && tokens == 0 {
            return (0.0, 0.0);
        }
        let worth = super::reading::worth(now, Mono(self.others.taken.load(Relaxed)));
        (f64::from(requests) * worth, tokens as f64 * worth)
    }

    /// Whether nothing at all is held against the pod: it is awake, in good standing and in telemetry's reach. Else
    /// [`Pod::is_calm`] tells.
    #[inline]
    pub fn is_clear(&self) -> bool {
        let is_held = self.is_uneasy.load(Relaxed) || !self.shuts.is_open();
        !is_held && self.scrape_failures.load(Relaxed) == 0
    }

    /// When this gate last sent anything there; `None` if it never did.
    pub fn last_dispatch(&self) -> Option<Mono> {
        Some(Mono(self.last_dispatch.load(Relaxed))).filter(|at| *at > Mono::ZERO)
    }

    /// When this gate last sent a prompt there of which no pod held anything; `None` if it never did.
    pub fn last_cold(&self) -> Option<Mono> {
        Some(Mono(self.last_cold.load(Relaxed))).filter(|at| *at > Mono::ZERO)
    }

    /// Tokens of a prompt with these marks that running requests of ours hold in the pod's KV cache anyway.
    pub fn pinned(&self, marks: &Marks) -> Tokens {
        self.ledger.lock().pins.pinned(marks)
    }

    /// Whether a request with this adapter or grammar went there not long ago.
    pub fn has_used(&self, key: u64) -> bool {
        self.ledger.lock().pins.has_used(key)
    }

    /// A new process at the address: nothing is loaded there.
    pub(super) fn restarted(&self) {
        self.ledger.lock().pins.forget_uses();
    }

    fn settle(&self, ledger: &Ledger) {
        let summary = ledger.queue.summary();
        self.until.store(summary.until.0, Relaxed);
        self.at.store(summary.at.0, Relaxed);
        self.queued_tokens.store(summary.tokens, Relaxed);
        self.streams.store(summary.streams, Relaxed);
        self.plain.store(summary.plain, Relaxed);
        self.shared_tokens.store(ledger.pins.shared().0, Relaxed);
    }
}

/// What is booked for a request.
#[derive(Clone, Copy, Debug)]
pub struct Work<'a> {
    /// When it is dispatched.
    pub now: Mono,
    /// Tokens of its prompt.
    pub prompt: Tokens,
    /// Of these, to be prefilled.
    pub uncached: Tokens,
    /// Whether its first token will be seen.
    pub is_stream: bool,
    /// Whether no pod held anything of the prompt.
    pub is_cold: bool,
    /// What it shares with others; `None`: nothing.
    pub marks: Option<&'a Marks>,
    /// Adapter and grammar that the pod must load for it, hashed.
    pub uses: [Option<u64>; 2],
}

impl Work<'_> {
    /// A streamed request of `prompt` tokens, of which `uncached` must be prefilled.
    pub const fn new(now: Mono, prompt: Tokens, uncached: Tokens) -> Self {
        Self { now, prompt, uncached, is_stream: true, is_cold: false, marks: None, uses: [None; 2] }
    }
}

/// A booking on a pod. Dropping it gives everything back, also while unwinding.
#[derive(Debug)]
pub struct Reservation {
    pod: Arc<Pod>,
    prompt: u64,
    generated: u64,
    ticket: Option<u64>,
    is_unanswered: bool,
    marks: Option<Marks>,
    predicted_s: f64,
}

impl Reservation {
    /// Books a request.
    pub fn dispatch(pod: Arc<Pod>, work: &Work<'_>) -> Self {
        let (prompt, uncached) = (work.prompt.0.min(TOKENS_MAX), work.uncached.0.min(TOKENS_MAX));
        let load = &*pod.load;
        let predicted_s = load.step.get().prefill(uncached, prompt.saturating_sub(uncached));
        load.requests.fetch_add(1, Relaxed);
        load.unanswered.fetch_add(1, Relaxed);
        load.prompt_tokens.fetch_add(prompt, Relaxed);
        load.dispatched.fetch_add(1, Relaxed);
        load.last_dispatch.fetch_max(work.now.0, Relaxed);
        if work.is_cold {
            load.last_cold.fetch_max(work.now.0, Relaxed);
        }
        let ticket = {
            let mut ledger = load.ledger.lock();
            work.uses.iter().flatten().for_each(|key| ledger.pins.uses(*key));
            work.marks.iter().for_each(|marks| ledger.pins.add(marks));
            let ticket = ledger.queue.push(work.now, (predicted_s * 1e6) as u64, uncached, work.is_stream);
            load.settle(&ledger);
            ticket
        };
        let marks = work.marks.cloned();
        Self { pod, prompt, generated: 0, ticket: Some(ticket), is_unanswered: true, marks, predicted_s }
    }

    /// Books a streamed request at the start of time: for those who have no clock.
    pub fn book(pod: Arc<Pod>, prompt: Tokens, uncached: Tokens) -> Self {
        Self::dispatch(pod, &Work::new(Mono::ZERO, prompt, uncached))
    }

    /// The pod it is booked on.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// Time its own prefill was predicted to take \[seconds\].
    pub const fn predicted_s(&self) -> f64 {
        self.predicted_s
    }

    /// The first token arrived: the prefill is done.
    pub fn first_token(&mut self, now: Mono) {
        self.answered();
        if let Some(ticket) = self.ticket.take() {
            let mut ledger = self.pod.load.ledger.lock();
            ledger.queue.done(now, ticket);
            self.pod.load.settle(&ledger);
        }
    }

    /// `count` more tokens were generated (an estimate from events until `usage` tells).
    pub fn tokens(&mut self, count: u64) {
        let generated = self.generated.saturating_add(count);
        move_to(&self.pod.load.generated_tokens, &mut self.generated, generated);
    }

    /// The pod told the true counts so far (`usage`): replaces the estimates. `None` leaves one as it is.
    pub fn settle(&mut self, prompt: Option<Tokens>, generated: Option<Tokens>) {
        if let Some(prompt) = prompt {
            move_to(&self.pod.load.prompt_tokens, &mut self.prompt, prompt.0);
        }
        if let Some(generated) = generated {
            move_to(&self.pod.load.generated_tokens, &mut self.generated, generated.0);
        }
    }

    /// The request ended well.
    pub fn served(&mut self) {
        self.pod.load.served.fetch_add(1, Relaxed);
    }

    fn answered(&mut self) {
        if std::mem::take(&mut self.is_unanswered) {
            self.pod.load.unanswered.fetch_sub(1, Relaxed);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.answered();
        let load = &*self.pod.load;
        load.requests.fetch_sub(1, Relaxed);
        load.prompt_tokens.fetch_sub(self.prompt, Relaxed);
        load.generated_tokens.fetch_sub(self.generated, Relaxed);
        if self.ticket.is_some() || self.marks.is_some() {
            let mut ledger = load.ledger.lock();
            self.ticket.take().into_iter().for_each(|ticket| ledger.queue.cancel(ticket));
            self.marks.iter().for_each(|marks| ledger.pins.remove(marks));
            load.settle(&ledger);
        }
    }
}

/// Moves a booking to its new value, in one step that never lets the counter dip below the others' bookings.
fn move_to(counter: &AtomicU64, booked: &mut u64, value: u64) {
    let value = value.min(TOKENS_MAX);
    if value >= *booked {
        counter.fetch_add(value - *booked, Relaxed);
    } else {
        counter.fetch_sub(*booked - value, Relaxed);
    }
    *booked = value;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::super::Lien;
    use super::super::pod::tests::pod;
    use super::*;
    use crate::base::Rng;

    #[test]
    fn counts_follow_a_request() {
        let pod = pod(1);
        let mut booking = Reservation::book(Arc::clone(&pod), Tokens(100), Tokens(40));
        let wait_s = booking.predicted_s();
        let mut expected = LoadNow {
            requests: 1,
            unanswered: 1,
            prefilling: 1,
            prefill_tokens: Tokens(40),
            wait_s: (wait_s * 1e6).floor() / 1e6,
            context_tokens: Tokens(100),
            pinned_tokens: Tokens(100),
            dispatched: 1,
            ..LoadNow::default()
        };
        assert_eq!(pod.load.now(), expected);
        booking.first_token(Mono(9_000));
        booking.tokens(7);
        expected = LoadNow {
            requests: 1,
            context_tokens: Tokens(107),
            pinned_tokens: Tokens(107),
            generated_tokens: Tokens(7),
            dispatched: 1,
            ..LoadNow::default()
        };
        assert_eq!((pod.load.now(), pod.load.now().decoding()), (expected, 1));
        booking.settle(Some(Tokens(90)), Some(Tokens(5)));
        assert_eq!(pod.load.now().context_tokens, Tokens(95));
        booking.settle(None, Some(Tokens(u64::MAX)));
        booking.served();
        drop(booking);
        assert_eq!(pod.load.now(), LoadNow { served: 1, dispatched: 1, ..LoadNow::default() });
    }

    #[test]
    fn what_a_pod_keeps_for_another_takes_room_but_no_time() {
        let pod = pod(1);
        let lien = Lien::new(Arc::clone(&pod), Tokens(70));
        let load = pod.load.now();
        assert_eq!((load.pinned_tokens, load.requests, load.wait_s.to_string()), (Tokens(70), 0, "0".to_owned()));
        drop(lien);
        assert_eq!(pod.load.now(), LoadNow::default());
        let room = Lien::coming(Arc::clone(&pod), Tokens(70));
        let (load, seen) = (pod.load.now(), pod.load.glance(Mono::ZERO));
        assert_eq!(
            (load.pinned_tokens, load.requests, load.coming, seen.decoding.to_string()),
            (Tokens(70), 0, 1, "1".to_owned())
        );
        drop(room);
        assert_eq!(pod.load.now(), LoadNow::default());
    }

    fn history(pods: &[Arc<Pod>], rng: &mut Rng) {
        let mut open: Vec<Reservation> = Vec::new();
        for _ in 0..200 {
            let any = rng.below(open.len().max(1) as u64) as usize;
            let tokens = if rng.below(20) == 0 { rng.bits() } else { rng.below(5_000) };
            match (rng.below(8), open.get_mut(any)) {
                (0..=2, _) | (_, None) => {
                    let pod = Arc::clone(pods.get(rng.below(pods.len() as u64) as usize).unwrap());
                    let blocks: Vec<u64> = (0..rng.below(200)).map(|block| block << 20 | rng.below(2)).collect();
                    let work = Work {
                        is_stream: tokens % 3 > 0,
                        marks: Some(&Marks::of(&blocks, 64.0)),
                        ..Work::new(Mono(rng.below(9_000_000)), Tokens(tokens), Tokens(rng.below(9_000)))
                    };
                    open.push(Reservation::dispatch(pod, &work));
                }
                (3, Some(booking)) => booking.first_token(Mono(tokens % 10_000_000)),
                (4, Some(booking)) => booking.tokens(tokens),
                (5, Some(booking)) => booking.settle(Some(Tokens(tokens)), (tokens % 2 == 0).then_some(Tokens(tokens))),
                (6, Some(_)) => open.swap_remove(any).served(),
                (_, Some(_)) => drop(open.swap_remove(any)),
            }
            for (index, pod) in pods.iter().enumerate() {
                let own = open.iter().filter(|booking| booking.pod.id == pod.id).count();
                assert!(pod.load.now().requests as usize >= own, "pod {index}");
            }
        }
        if rng.below(3) == 0 {
            std::panic::resume_unwind(Box::new("a fault in the middle"));
        }
    }

    #[test]
    fn what_is_not_streamed_leaves_the_queue_by_itself_and_shared_prefixes_count_once() {
        let pod = pod(1);
        let marks = Marks::of(&(0..64).collect::<Vec<u64>>(), 64.0);
        let plain = Work { is_stream: false, marks: Some(&marks), ..Work::new(Mono(1), Tokens(5_000), Tokens(5_000)) };
        let (_one, two) =
            (Reservation::dispatch(Arc::clone(&pod), &plain), Reservation::dispatch(Arc::clone(&pod), &plain));
        let takes_us = (two.predicted_s() * 1e6) as u64;
        let seen = |at_us| (pod.load.at(Mono(at_us)).prefilling, pod.load.at(Mono(at_us)).prefill_tokens.0 / 100);
        assert_eq!([seen(1), seen(2 + takes_us), seen(9_000_000)], [(2, 100), (1, 49), (0, 0)]);
        let load = pod.load.at(Mono(9_000_000));
        assert_eq!((load.unanswered, load.decoding()), (2, 2));
        assert_eq!((load.context_tokens, load.pinned_tokens), (Tokens(10_000), Tokens(10_000 - 4_096)));
        assert_eq!((pod.load.pinned(&marks), pod.load.last_cold()), (Tokens(4_096), None));
    }

    #[test]
    fn any_history_on_many_threads_ends_at_zero() {
        let pods: Vec<Arc<Pod>> = (0..3).map(pod).collect();
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let pods = &pods;
                scope.spawn(move || {
                    for round in 0..50 {
                        let mut rng = Rng::new(thread * 1_000 + round);
                        let _maybe_unwound = catch_unwind(AssertUnwindSafe(|| history(pods, &mut rng)));
                    }
                });
            }
        });
        for pod in &pods {
            let LoadNow { served, dispatched, .. } = pod.load.now();
            assert_eq!(pod.load.now(), LoadNow { served, dispatched, ..LoadNow::default() });
            assert!(served > 0 && dispatched > served);
        }
    }
}
