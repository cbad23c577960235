//! What a plug-in may know of a pod: plain values, taken once per decision.
//!
//! A new value is added here by a change of its own that states source, unit, staleness and what unknown means. Plug-ins
//! never reach behind the view: no lock, no clock, no table. Times are relative to the `now` of the decision.
use std::time::Duration;

use crate::base::{Mono, PodId, Tokens};
use crate::pods::{LoadNow, Pod, Reading, Role, Sleep, Standing};

/// Whether a pod serves the model of the request. Source: the pod's `/v1/models`; as old as its last read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Its list names the model or adapter.
    Yes,
    /// Its list does not.
    No,
    /// The list was never read (new pod, or a server without the route): it may be tried when nobody is known to serve.
    Unknown,
}

/// One pod as plug-ins see it.
#[derive(Clone, Copy, Debug)]
pub struct PodView {
    /// Which pod. Source: pod table. Never unknown.
    pub id: PodId,
    /// What it may be asked to do. Source: configuration or discovery. Never unknown; default both.
    pub role: Role,
    /// Passive health. Source: outcomes of our own requests, at `now`. A pod never tried is new, not ill.
    pub standing: Standing,
    /// What this gate has in flight there \[requests, tokens\]. Source: own bookings, at `now`, exact for this gate and
    /// blind to other clients of the pod. Never unknown.
    pub load: LoadNow,
    /// Last scraped gauges. Source: the pod's `/metrics`; `None` before the first scrape.
    pub reading: Option<Reading>,
    /// Age of `reading` at `now`; `None` without one. Old readings are for the plug-in to refuse, see
    /// [`PodView::reading_within`].
    pub age: Option<Duration>,
    /// Prompt tokens of this request believed to be in the pod's KV cache \[tokens\]. Source: our prefix index, a belief
    /// at `now`. Unknown is 0.
    pub hit: Tokens,
    /// The engine sleeps (weights offloaded). Source: scrape. Unknown counts as awake.
    pub sleeping: bool,
    /// Whether it serves the model asked for.
    pub serves: Serves,
    /// KV capacity \[tokens\]. Source: `vllm:cache_config_info`, fixed while the engine runs; `None` before it was read.
    pub capacity: Option<Tokens>,
    /// KV block size \[tokens\]. Source and staleness as `capacity`.
    pub block_tokens: Option<u32>,
}

impl PodView {
    /// The view of `pod` for a request of `model`, of whose prompt `hit` tokens are believed to be cached there.
    pub fn of(pod: &Pod, model: &str, hit: Tokens, now: Mono) -> Self {
        let facts = pod.facts.load();
        let reading = **pod.reading.load();
        let serves = match &facts.served {
            None => Serves::Unknown,
            Some(served) if served.iter().any(|one| &*one.name == model) => Serves::Yes,
            Some(_) => Serves::No,
        };
        Self {
            id: pod.id,
            role: pod.spec.role,
            standing: pod.health.lock().standing(now),
            load: pod.load.now(),
            reading,
            age: reading.map(|reading| now.since(reading.taken)),
            hit,
            sleeping: facts.sleep == Sleep::Asleep,
            serves,
            capacity: facts.capacity,
            block_tokens: facts.block_tokens,
        }
    }

    /// The gauges, if they are no older than `age_max`.
    pub fn reading_within(&self, age_max: Duration) -> Option<&Reading> {
        self.reading.as_ref().filter(|_| self.age.is_some_and(|age| age <= age_max))
    }

    /// Requests in flight that have their first token \[requests\].
    pub fn decoding(&self) -> u32 {
        self.load.requests.saturating_sub(self.load.prefilling)
    }

    /// Prompt tokens of a request of `prompt` tokens that this pod would have to prefill.
    pub fn uncached(&self, prompt: Tokens) -> Tokens {
        prompt.less(self.hit)
    }
}
