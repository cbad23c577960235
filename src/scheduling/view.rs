//! What a plug-in may know of a pod: plain values, taken once per decision.
//!
//! A new value is added here by a change of its own that states source, unit, staleness and what unknown means. Plug-ins
//! never reach behind the view: no lock, no clock, no table. Times are relative to the `now` of the decision.
use std::time::Duration;

use super::request::Request;
use crate::base::{Mono, PodId, Tokens};
use crate::pods::{Facts, LabelSet, LoadNow, Marks, Pod, Role, Served, Shut, Sign, Standing, StepTime};

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

/// Whether a pod has what a request needs loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warm {
    /// The request needs nothing of the kind.
    #[default]
    NotNeeded,
    /// This gate sent a request with the same need there not long ago.
    Yes,
    /// It did not: the pod probably has to load it first.
    No,
}

/// What a pod said of itself at its last scrape.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Gauges {
    /// Requests running \[requests\]; `None`: it does not tell.
    pub running: Option<u32>,
    /// Requests waiting \[requests\]; `None`: it does not tell.
    pub waiting: Option<u32>,
    /// Share of the KV cache in use; may be any number if the pod is broken. `None`: it does not tell.
    pub kv_used: Option<f64>,
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
    /// Until when it asked to be spared (`Retry-After` of a 429 or 503, or a default). Source and staleness as `standing`;
    /// `None`: it did not ask, or the time is over.
    pub busy_until: Option<Mono>,
    /// Telemetry could not reach it several times in a row. Source: scrapes. Unknown (never scraped) is false. Alone it
    /// says nothing about serving: see `pods::verdict`.
    pub is_dark: bool,
    /// What this gate has in flight there \[requests, tokens\]. Source: own bookings, at `now`, exact for this gate and
    /// blind to other clients of the pod. Never unknown.
    pub load: LoadNow,
    /// Last scraped gauges. Source: the pod's `/metrics`; `None` before the first scrape.
    pub reading: Option<Gauges>,
    /// Requests of other gates and direct clients in flight there \[requests\]. Source: last scrape, less what was ours at that
    /// instant; counts in full when just read, linearly less with age, nothing from 5 s on. Unknown is 0.
    pub foreign: f64,
    /// KV that others occupy there \[tokens\]. Source: `kv_used` of the last scrape and the capacity, less what was ours at that
    /// instant; fades as `foreign`. Unknown is 0.
    pub foreign_tokens: f64,
    /// Age of `reading` at `now`; `None` without one. Old readings are for the plug-in to refuse, see
    /// [`PodView::reading_within`].
    pub age: Option<Duration>,
    /// Prompt tokens of this request believed to be in the pod's KV cache \[tokens\]. Source: our prefix index, a belief
    /// at `now`. Unknown is 0.
    pub hit: Tokens,
    /// Of `hit`, tokens that a request still in prefill there is about to produce. Source and staleness as `hit`. Unknown is
    /// 0.
    pub coming: Tokens,
    /// Prompt tokens beyond `hit` that the pod counts as holding, because other gates are likely to have sent them there.
    /// Source: a guess ([`super::peers`]). 0 in a gate that is alone.
    pub guessed: Tokens,
    /// What is not known of the pod because other gates send requests there in the same moment, 0 to 1. Source: chance, another
    /// for each request ([`super::peers`]). 0 in a gate that is alone.
    pub blur: f64,
    /// Prompt tokens of this request that running requests of ours hold in the pod's KV cache anyway, so that it takes no room
    /// for them. Source: own bookings, at `now`. Unknown is 0.
    pub pinned: Tokens,
    /// Time of an engine step there. Source: latency model, learnt from our own requests; its prior until then.
    pub step: StepTime,
    /// Requests decoding on the other data-parallel ranks of the same engine: they step together \[requests\]. Source: own
    /// bookings, at `now`. 0 where there are no other ranks.
    pub peers_decoding: u32,
    /// Whether the adapter is loaded. Source: own bookings; what others had loaded is not seen.
    pub adapter: Warm,
    /// Whether the grammar is compiled. Source as `adapter`.
    pub grammar: Warm,
    /// When this gate last sent a request there. Source: own bookings. `None`: never.
    pub last_dispatch: Option<Mono>,
    /// When this gate last sent a prompt there of which nobody held anything. Source: own bookings. `None`: never.
    pub last_cold: Option<Mono>,
    /// Longest context of the model asked for \[tokens\]. Source: `max_model_len` of `/v1/models`. `None`: not told.
    pub context_max: Option<Tokens>,
    /// The operator's labels. Source: configuration or discovery. Never unknown.
    pub labels: LabelSet,
    /// Why it gets nothing new: its engine sleeps (scrape), or discovery or an operator say so. Unknown counts as open.
    pub shut: Option<Shut>,
    /// Whether it serves the model asked for.
    pub serves: Serves,
    /// KV capacity \[tokens\]. Source: `vllm:cache_config_info`, fixed while the engine runs; `None` before it was read.
    pub capacity: Option<Tokens>,
    /// KV block size \[tokens\]. Source and staleness as `capacity`.
    pub block_tokens: Option<u32>,
}

/// What is known of one pod about the prompt of a request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Belief<'a> {
    /// See [`PodView::hit`].
    pub hit: Tokens,
    /// See [`PodView::coming`].
    pub coming: Tokens,
    /// See [`PodView::guessed`].
    pub guessed: Tokens,
    /// See [`PodView::blur`].
    pub blur: f64,
    /// Marks of the prompt, to find what is pinned; `None`: nothing is taken to be.
    pub marks: Option<&'a Marks>,
}

impl PodView {
    /// The view of `pod` for a request, of whose prompt this is believed. `peers_decoding` is left at 0.
    pub fn of(pod: &Pod, request: &Request<'_>, belief: &Belief<'_>, now: Mono) -> Self {
        let facts = pod.facts.load();
        let sign = pod.sign(now);
        let reading = pod.reading.load();
        let reading = reading.as_ref().as_ref();
        let (foreign, foreign_tokens) = pod.load.others(now);
        let (serves, served) = serving(&facts, request.model);
        let warm = |key: Option<u64>| match key {
            None => Warm::NotNeeded,
            Some(key) if pod.load.has_used(key) => Warm::Yes,
            Some(_) => Warm::No,
        };
        let hit = if request.skips_cache { Tokens(0) } else { belief.hit.min(request.prompt_tokens) };
        Self {
            id: pod.id,
            role: pod.spec.role,
            standing: sign.standing,
            busy_until: sign.busy_until,
            is_dark: sign.is_dark,
            load: pod.load.at(now),
            reading: reading.map(|said| Gauges { running: said.running, waiting: said.waiting, kv_used: said.kv_used }),
            foreign,
            foreign_tokens,
            age: reading.map(|reading| now.since(reading.taken)),
            hit,
            coming: belief.coming.min(hit),
            blur: belief.blur,
            guessed: if request.skips_cache { Tokens(0) } else { belief.guessed.min(request.prompt_tokens.less(hit)) },
            pinned: belief.marks.filter(|_| hit.0 > 0).map_or(Tokens(0), |marks| pod.load.pinned(marks)),
            step: pod.load.step.get(),
            peers_decoding: 0,
            adapter: warm(request.adapter),
            grammar: warm(request.grammar),
            last_dispatch: pod.load.last_dispatch(),
            last_cold: pod.load.last_cold(),
            context_max: served.and_then(|served| served.context_max),
            labels: pod.labels,
            shut: sign.shut,
            serves,
            capacity: facts.capacity,
            block_tokens: facts.block_tokens,
        }
    }

    /// The gauges, if they are no older than `age_max`.
    pub fn reading_within(&self, age_max: Duration) -> Option<&Gauges> {
        self.reading.as_ref().filter(|_| self.age.is_some_and(|age| age <= age_max))
    }

    /// What the fleet's rules look at.
    pub const fn sign(&self) -> Sign {
        Sign { standing: self.standing, busy_until: self.busy_until, shut: self.shut, is_dark: self.is_dark }
    }

    /// KV occupied there by everybody \[tokens\]. Unknown parts are 0.
    pub fn occupied(&self) -> f64 {
        self.load.pinned_tokens.0 as f64 + self.foreign_tokens
    }

    /// Prompt tokens of a request of `prompt` tokens that this pod would have to prefill.
    pub fn uncached(&self, prompt: Tokens) -> Tokens {
        prompt.less(self.hit)
    }
}

/// Whether the pod serves the model, and what it says of it.
fn serving<'a>(facts: &'a Facts, model: &str) -> (Serves, Option<&'a Served>) {
    match &facts.served {
        None => (Serves::Unknown, None),
        Some(served) => match served.iter().find(|one| &*one.name == model) {
            Some(one) => (Serves::Yes, Some(one)),
            None => (Serves::No, None),
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::BTreeMap;

    use super::*;
    use crate::pods::{Outcome, PodSpec, Reading, Sleep};
    use crate::scheduling::testing;

    const NOW: Mono = Mono(7_000_000);

    #[test]
    fn a_view_shows_what_the_pod_says_and_did() {
        let addr = ([127, 0, 0, 1], 8_000).into();
        let spec = PodSpec {
            addr,
            authority: "a:8000".into(),
            tls: None,
            rank: None,
            role: Role::Decode,
            labels: BTreeMap::new(),
        };
        let pod = Pod::new(PodId(3), spec);
        let request = Request { adapter: Some(7), ..Request::new("m", Tokens(9)) };
        let belief = Belief { hit: Tokens(5), ..Belief::default() };
        let calm = PodView::of(&pod, &request, &belief, NOW);
        assert_eq!((calm.adapter, calm.grammar, calm.step.b > 4e-5), (Warm::No, Warm::NotNeeded, true));
        let again = Request { skips_cache: true, ..request };
        assert_eq!(PodView::of(&pod, &again, &belief, NOW).hit, Tokens(0));
        assert_eq!((calm.sign(), calm.hit, calm.role), (pod.sign(NOW), Tokens(5), Role::Decode));
        pod.health.lock().on(NOW, Outcome::Busy { retry_after: Some(Duration::from_secs(2)) });
        pod.learn(Facts { sleep: Sleep::Asleep, ..Facts::default() });
        (0..3).for_each(|_| pod.unreached());
        let view = PodView::of(&pod, &request, &Belief::default(), NOW);
        assert_eq!((view.busy_until, view.shut, view.is_dark), (Some(Mono(9_000_000)), Some(Shut::Asleep), true));
        assert_eq!(view.sign(), pod.sign(NOW));
    }

    #[test]
    fn the_load_of_others_fades_with_the_age_of_the_reading() {
        let addr = ([127, 0, 0, 1], 8_000).into();
        let spec =
            PodSpec { addr, authority: "a".into(), tls: None, rank: None, role: Role::Both, labels: BTreeMap::new() };
        let pod = Pod::new(PodId(3), spec);
        pod.learn(Facts { capacity: Some(Tokens(1_000)), ..Facts::default() });
        let foreign = |running, own, age_ms: u64| {
            let own = LoadNow { requests: own, pinned_tokens: Tokens(100), ..LoadNow::default() };
            let taken = Mono(NOW.0 - age_ms * 1_000);
            pod.read(Reading { taken, own, running, kv_used: Some(0.5), ..Reading::default() });
            let view = PodView::of(&pod, &Request::new("m", Tokens(9)), &Belief::default(), NOW);
            (view.foreign as u32, view.foreign_tokens as u32)
        };
        assert_eq!(foreign(Some(12), 2, 0), (10, 400));
        assert_eq!(foreign(Some(12), 2, 2_500), (5, 200));
        assert_eq!([foreign(Some(12), 2, 5_000), foreign(Some(12), 2, 6_000)], [(0, 0), (0, 0)]);
        assert_eq!([foreign(Some(2), 9, 0).0, foreign(None, 0, 0).0], [0, 0]);
        assert_eq!(testing::pod(0).foreign.to_string(), "0");
    }
}
