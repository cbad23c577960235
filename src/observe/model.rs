//! Numbers of one model, and the guard of a request in flight there.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::gauge::{Gauge, Held};
use super::histogram::{E2E_US, GAP_US, Histogram, LocalHistogram, TTFT_US};
use crate::base::ModelName;

/// Kinds of tokens in usage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TokenKind {
    /// Prompt tokens, cached ones included.
    Prompt,
    /// Generated tokens.
    Completion,
    /// Prompt tokens the pod had in its KV cache.
    Cached,
}

impl TokenKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Prompt, Self::Completion, Self::Cached];

    /// Value of the `kind` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Prompt => "prompt",
            Self::Completion => "completion",
            Self::Cached => "cached",
        }
    }
}

/// Numbers of one model.
#[derive(Debug)]
pub struct ModelMetrics {
    /// Place in the key of `requests_total`.
    pub(super) index: u16,
    /// Name of the label, `other` for models without own series.
    pub name: ModelName,
    /// Time to first token.
    pub ttft: Histogram,
    /// Gaps between events; use [`ModelMetrics::gaps`] on streams.
    pub event_gap: Arc<Histogram>,
    /// Whole requests.
    pub e2e: Histogram,
    /// Requests in flight; held through [`Metrics::request`](super::Metrics::request).
    pub in_flight: Gauge,
    /// Legs of requests on two pods.
    pub legs: LegTimes,
    attempts: AtomicU64,
    tokens: [AtomicU64; 3],
}

/// Times of the two legs of requests.
#[derive(Debug)]
pub struct LegTimes {
    /// Prefill legs, to their answer.
    pub prefill: Histogram,
    /// Decode legs, to their first data.
    pub handover: Histogram,
    /// Ages of leases when their decode leg was sent.
    pub lease_age: Histogram,
}

impl ModelMetrics {
    pub(super) fn new(index: u16, name: ModelName) -> Self {
        Self {
            index,
            name,
            ttft: Histogram::new(TTFT_US),
            event_gap: Arc::new(Histogram::new(GAP_US)),
            e2e: Histogram::new(E2E_US),
            in_flight: Gauge::default(),
            legs: LegTimes {
                prefill: Histogram::new(TTFT_US),
                handover: Histogram::new(TTFT_US),
                lease_age: Histogram::new(TTFT_US),
            },
            attempts: AtomicU64::new(0),
            tokens: [const { AtomicU64::new(0) }; 3],
        }
    }

    /// Counts tokens told by usage.
    pub fn add_tokens(&self, kind: TokenKind, tokens: u64) {
        let [prompt, completion, cached] = &self.tokens;
        let counter = match kind {
            TokenKind::Prompt => prompt,
            TokenKind::Completion => completion,
            TokenKind::Cached => cached,
        };
        counter.fetch_add(tokens, Relaxed);
    }

    /// Tokens counted so far.
    pub fn tokens(&self, kind: TokenKind) -> u64 {
        let [prompt, completion, cached] = &self.tokens;
        match kind {
            TokenKind::Prompt => prompt.load(Relaxed),
            TokenKind::Completion => completion.load(Relaxed),
            TokenKind::Cached => cached.load(Relaxed),
        }
    }

    /// Counts one attempt on a pod.
    pub fn attempt(&self) {
        self.attempts.fetch_add(1, Relaxed);
    }

    /// Attempts counted so far.
    pub fn attempts(&self) -> u64 {
        self.attempts.load(Relaxed)
    }

    /// A counter of event gaps for one stream: no shared write per event.
    pub fn gaps(&self) -> LocalHistogram {
        LocalHistogram::new(Arc::clone(&self.event_gap))
    }
}

/// One request in flight. Dropping it takes it off the gauge.
#[derive(Debug)]
#[must_use = "dropping it ends the request on the gauge"]
pub struct InFlight {
    model: Arc<ModelMetrics>,
    held: Held,
}

impl InFlight {
    pub(super) fn new(model: Arc<ModelMetrics>) -> Self {
        Self { held: model.in_flight.hold(1), model }
    }

    /// Moves the request to its model's gauge, once the model is known.
    pub fn assign(&mut self, model: Arc<ModelMetrics>) {
        self.held = model.in_flight.hold(1);
        self.model = model;
    }

    /// The model it counts under.
    pub const fn model(&self) -> &Arc<ModelMetrics> {
        &self.model
    }
}
