//! What this gate has in flight on a pod. Booked when a pod is chosen, given back by a guard on every exit path.
//!
//! In the words of the ranking cost: `Q` is [`LoadNow::prefill_tokens`], `n` is [`LoadNow::requests`], `d` is
//! [`LoadNow::decoding`], `K` is [`LoadNow::context_tokens`], which grows with what is generated. `K` counts a prefix shared
//! by two requests twice; whoever knows the blocks may correct it. Everything is exact: after the last guard all is zero.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::pod::Pod;
use crate::base::Tokens;

/// No request has more tokens than this; a pod that claims more in its `usage` is not believed.
const TOKENS_MAX: u64 = 1 << 32;

/// Counters of one pod.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicU32,
    prefilling: AtomicU32,
    prefill_tokens: AtomicU64,
    prompt_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    served: AtomicU64,
}

/// One look at the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadNow {
    /// Dispatched and not ended.
    pub requests: u32,
    /// Of these, without a first token yet.
    pub prefilling: u32,
    /// Uncached prompt tokens dispatched and not yet prefilled.
    pub prefill_tokens: Tokens,
    /// Prompt tokens of everything in flight, and what it generated so far.
    pub context_tokens: Tokens,
    /// Of these, generated.
    pub generated_tokens: Tokens,
    /// Requests that ended well since the pod was first seen.
    pub served: u64,
}

impl LoadNow {
    /// Requests in flight that have their first token.
    pub const fn decoding(&self) -> u32 {
        self.requests.saturating_sub(self.prefilling)
    }
}

impl Load {
    /// The counters now. Each is exact; two of them may be a moment apart.
    pub fn now(&self) -> LoadNow {
        let generated = self.generated_tokens.load(Relaxed);
        LoadNow {
            requests: self.requests.load(Relaxed),
            prefilling: self.prefilling.load(Relaxed),
            prefill_tokens: Tokens(self.prefill_tokens.load(Relaxed)),
            context_tokens: Tokens(self.prompt_tokens.load(Relaxed).saturating_add(generated)),
            generated_tokens: Tokens(generated),
            served: self.served.load(Relaxed),
        }
    }
}

/// A booking on a pod. Dropping it gives everything back, also while unwinding.
#[derive(Debug)]
pub struct Reservation {
    pod: Arc<Pod>,
    prompt: u64,
    uncached: u64,
    generated: u64,
    prefilling: bool,
}

impl Reservation {
    /// Books a request of `prompt` tokens, of which `uncached` must be prefilled.
    pub fn book(pod: Arc<Pod>, prompt: Tokens, uncached: Tokens) -> Self {
        let (prompt, uncached) = (prompt.0.min(TOKENS_MAX), uncached.0.min(TOKENS_MAX));
        pod.load.requests.fetch_add(1, Relaxed);
        pod.load.prefilling.fetch_add(1, Relaxed);
        pod.load.prefill_tokens.fetch_add(uncached, Relaxed);
        pod.load.prompt_tokens.fetch_add(prompt, Relaxed);
        Self { pod, prompt, uncached, generated: 0, prefilling: true }
    }

    /// The pod it is booked on.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The first token arrived: the prefill is done.
    pub fn first_token(&mut self) {
        if std::mem::take(&mut self.prefilling) {
            self.pod.load.prefilling.fetch_sub(1, Relaxed);
            self.pod.load.prefill_tokens.fetch_sub(self.uncached, Relaxed);
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
        self.first_token();
        self.pod.load.served.fetch_add(1, Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.first_token();
        self.pod.load.requests.fetch_sub(1, Relaxed);
        self.pod.load.prompt_tokens.fetch_sub(self.prompt, Relaxed);
        self.pod.load.generated_tokens.fetch_sub(self.generated, Relaxed);
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

    use super::super::pod::tests::pod;
    use super::*;
    use crate::base::Rng;

    #[test]
    fn counts_follow_a_request() {
        let pod = pod(1);
        let mut booking = Reservation::book(Arc::clone(&pod), Tokens(100), Tokens(40));
        let mut expected = LoadNow {
            requests: 1,
            prefilling: 1,
            prefill_tokens: Tokens(40),
            context_tokens: Tokens(100),
            ..LoadNow::default()
        };
        assert_eq!(pod.load.now(), expected);
        booking.first_token();
        booking.tokens(7);
        expected =
            LoadNow { requests: 1, context_tokens: Tokens(107), generated_tokens: Tokens(7), ..LoadNow::default() };
        assert_eq!((pod.load.now(), pod.load.now().decoding()), (expected, 1));
        booking.settle(Some(Tokens(90)), Some(Tokens(5)));
        assert_eq!(pod.load.now().context_tokens, Tokens(95));
        booking.settle(None, Some(Tokens(u64::MAX)));
        booking.served();
        drop(booking);
        assert_eq!(pod.load.now(), LoadNow { served: 1, ..LoadNow::default() });
    }

    fn history(pods: &[Arc<Pod>], rng: &mut Rng) {
        let mut open: Vec<Reservation> = Vec::new();
        for _ in 0..200 {
            let any = rng.below(open.len().max(1) as u64) as usize;
            let tokens = if rng.below(20) == 0 { rng.bits() } else { rng.below(5_000) };
            match (rng.below(8), open.get_mut(any)) {
                (0..=2, _) | (_, None) => {
                    let pod = Arc::clone(pods.get(rng.below(pods.len() as u64) as usize).unwrap());
                    open.push(Reservation::book(pod, Tokens(tokens), Tokens(rng.below(9_000))));
                }
                (3, Some(booking)) => booking.first_token(),
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
            assert_eq!(pod.load.now(), LoadNow { served: pod.load.now().served, ..LoadNow::default() });
            assert!(pod.load.now().served > 0);
        }
    }
}
