//! What a pod says of itself: slow facts and fast gauges. Absent is `None`, never a sentinel.
//!
//! A reading has the time it was taken; who uses it decides how much an old one is worth. Nothing here is needed to
//! dispatch: the gate's own bookings ([`super::Load`]) are.
use super::load::LoadNow;
use crate::base::{ModelName, Mono, Tokens};

/// A model or adapter served by a pod, from its `/v1/models`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served {
    /// Name clients use.
    pub name: ModelName,
    /// Base model if this is a LoRA adapter.
    pub parent: Option<ModelName>,
    /// Longest context in tokens, if told.
    pub context_max: Option<Tokens>,
    /// The pod's own JSON object for this model, passed on in the gate's `/v1/models`.
    pub card: Box<str>,
}

/// Facts that change when a pod restarts or loads an adapter.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Models and adapters; `None` until `/v1/models` was read once.
    pub served: Option<Vec<Served>>,
    /// `process_start_time_seconds`; a change means a restart.
    pub started_at_s: Option<f64>,
    /// KV block size in tokens (`vllm:cache_config_info`).
    pub block_tokens: Option<u32>,
    /// KV capacity in tokens.
    pub capacity: Option<Tokens>,
    /// vLLM version from `/version`.
    pub version: Option<String>,
    /// Whether the engine sleeps.
    pub sleep: Sleep,
}

/// `vllm:engine_sleep_state`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sleep {
    /// Awake, or the pod does not say.
    #[default]
    Awake,
    /// Weights offloaded or discarded: gets nothing.
    Asleep,
}

/// Gauges of one scrape. Names follow vLLM's metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Reading {
    /// When it was taken, on our clock.
    pub taken: Mono,
    /// What this gate itself had in flight there at that moment: the rest of what was read is foreign load.
    pub own: LoadNow,
    /// `vllm:num_requests_running`.
    pub running: Option<u32>,
    /// `vllm:num_requests_waiting_by_reason{reason="capacity"}`, else `vllm:num_requests_waiting`.
    pub waiting: Option<u32>,
    /// `vllm:kv_cache_usage_perc`, 0 to 1.
    pub kv_used: Option<f64>,
    /// `vllm:prefix_cache_queries_total` \[tokens\].
    pub prefix_queries: Option<u64>,
    /// `vllm:prefix_cache_hits_total` \[tokens\].
    pub prefix_hits: Option<u64>,
    /// `vllm:num_preemptions_total`.
    pub preemptions: Option<u64>,
    /// `vllm:generation_tokens_total`.
    pub generated: Option<u64>,
    /// Leases on KV blocks that ran out, and decoders that came after that: `vllm:nixl_num_kv_expired_reqs_total` and
    /// `vllm:nixl_num_notifications_after_expiry_total`.
    pub kv_expired: Option<u64>,
}

/// Age at which a reading says nothing any more about the requests of others: half of them have ended long before.
const FOREIGN_AGE_US_MAX: f64 = 5e6;

/// What a reading is worth at `now` as to the load of others: 1 when just taken, linearly less, 0 from 5 s on.
#[inline]
pub fn worth(now: Mono, taken: Mono) -> f64 {
    (1.0 - now.0.saturating_sub(taken.0) as f64 * (1.0 / FOREIGN_AGE_US_MAX)).max(0.0)
}

impl Reading {
    /// How old the reading is.
    pub const fn age(&self, now: Mono) -> std::time::Duration {
        now.since(self.taken)
    }

    /// Requests in the pod that are not ours: other gates, direct clients. `None` if the pod does not tell.
    pub fn foreign(&self) -> Option<u32> {
        let scraped = self.running?.saturating_add(self.waiting.unwrap_or(0));
        Some(scraped.saturating_sub(self.own.requests))
    }

    /// KV tokens in the pod that are not ours, of `capacity`. `None` if the pod does not tell.
    pub fn foreign_tokens(&self, capacity: Tokens) -> Option<f64> {
        let used = self.kv_used.filter(|used| used.is_finite())?.clamp(0.0, 1.0);
        Some((used * capacity.0 as f64 - self.own.pinned_tokens.0 as f64).max(0.0))
    }
}
