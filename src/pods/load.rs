//! What this gate has in flight on a pod. Booked when a pod is chosen, given back by a guard on every exit path.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use super::pod::Pod;
use crate::base::Tokens;

/// Counters of one pod.
#[derive(Debug, Default)]
pub struct Load {
    requests: AtomicU32,
    prefilling: AtomicU32,
    prefill_tokens: AtomicU64,
    context_tokens: AtomicU64,
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
    /// Prompt tokens of everything in flight.
    pub context_tokens: Tokens,
    /// Requests that ended well since the pod was first seen.
    pub served: u64,
}

impl Load {
    /// The counters now.
    pub fn now(&self) -> LoadNow {
        LoadNow {
            requests: self.requests.load(Relaxed),
            prefilling: self.prefilling.load(Relaxed),
            prefill_tokens: Tokens(self.prefill_tokens.load(Relaxed)),
            context_tokens: Tokens(self.context_tokens.load(Relaxed)),
            served: self.served.load(Relaxed),
        }
    }
}

/// A booking on a pod. Dropping it gives everything back, also while unwinding.
#[derive(Debug)]
pub struct Reservation {
    pod: Arc<Pod>,
    prompt: Tokens,
    uncached: Tokens,
    prefilling: bool,
}

impl Reservation {
    /// Books a request of `prompt` tokens, of which `uncached` must be prefilled.
    pub fn book(pod: Arc<Pod>, prompt: Tokens, uncached: Tokens) -> Self {
        pod.load.requests.fetch_add(1, Relaxed);
        pod.load.prefilling.fetch_add(1, Relaxed);
        pod.load.prefill_tokens.fetch_add(uncached.0, Relaxed);
        pod.load.context_tokens.fetch_add(prompt.0, Relaxed);
        Self { pod, prompt, uncached, prefilling: true }
    }

    /// The pod it is booked on.
    pub fn pod(&self) -> &Arc<Pod> {
        &self.pod
    }

    /// The first token arrived: the prefill is done.
    pub fn first_token(&mut self) {
        if std::mem::take(&mut self.prefilling) {
            self.pod.load.prefilling.fetch_sub(1, Relaxed);
            self.pod.load.prefill_tokens.fetch_sub(self.uncached.0, Relaxed);
        }
    }

    /// The request ended well.
    pub fn served(mut self) {
        self.first_token();
        self.pod.load.served.fetch_add(1, Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.first_token();
        self.pod.load.requests.fetch_sub(1, Relaxed);
        self.pod.load.context_tokens.fetch_sub(self.prompt.0, Relaxed);
    }
}
