//! What a plug-in may know of a pod: plain values, taken once per decision.
//!
//! A new value is added here by a change of its own that states source, unit, staleness and what unknown means. Plug-ins
//! never reach behind the view: no lock, no clock, no table. Times are relative to the `now` of the decision.
use std::time::Duration;

use crate::base::{Mono, PodId, Tokens};
use crate::pods::{LoadNow, Pod, Reading, Role, Sign, Standing};

/// Age at which a reading says nothing any more about the requests of others: half of them have ended long before.
const FOREIGN_AGE_MAX: Duration = Duration::from_secs(5);

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
        let sign = pod.sign(now);
        let reading = **pod.reading.load();
        let serves = match &facts.served {
            None => Serves::Unknown,
            Some(served) if served.iter().any(|one| &*one.name == model) => Serves::Yes,
            Some(_) => Serves::No,
        };
        Self {
            id: pod.id,
            role: pod.spec.role,
            standing: sign.standing,
            busy_until: sign.busy_until,
            is_dark: sign.is_dark,
            load: pod.load.now(),
            reading,
            age: reading.map(|reading| now.since(reading.taken)),
            hit,
            sleeping: sign.is_asleep,
            serves,
            capacity: facts.capacity,
            block_tokens: facts.block_tokens,
        }
    }

    /// The gauges, if they are no older than `age_max`.
    pub fn reading_within(&self, age_max: Duration) -> Option<&Reading> {
        self.reading.as_ref().filter(|_| self.age.is_some_and(|age| age <= age_max))
    }

    /// What the fleet's rules look at.
    pub const fn sign(&self) -> Sign {
        Sign { standing: self.standing, busy_until: self.busy_until, is_asleep: self.sleeping, is_dark: self.is_dark }
    }

    /// Requests of other gates and direct clients in flight there \[requests\]. Source: `reading`, less what was ours at
    /// that instant; counts in full when just read, linearly less with age, nothing from 5 s on. Unknown is 0.
    pub fn foreign(&self) -> f64 {
        let (Some(reading), Some(age)) = (&self.reading, self.age) else { return 0.0 };
        let worth = 1.0 - age.as_secs_f64() / FOREIGN_AGE_MAX.as_secs_f64();
        f64::from(reading.foreign().unwrap_or(0)) * worth.max(0.0)
    }

    /// Prompt tokens of a request of `prompt` tokens that this pod would have to prefill.
    pub fn uncached(&self, prompt: Tokens) -> Tokens {
        prompt.less(self.hit)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::BTreeMap;

    use super::*;
    use crate::pods::{Facts, Outcome, PodSpec, Sleep};
    use crate::scheduling::testing;

    const NOW: Mono = Mono(7_000_000);

    #[test]
    fn a_view_shows_what_the_pod_says_and_did() {
        let addr = ([127, 0, 0, 1], 8_000).into();
        let spec =
            PodSpec { addr, authority: "a:8000".into(), rank: None, role: Role::Decode, labels: BTreeMap::new() };
        let pod = Pod::new(PodId(3), spec);
        let calm = PodView::of(&pod, "m", Tokens(5), NOW);
        assert_eq!((calm.sign(), calm.hit, calm.role), (pod.sign(NOW), Tokens(5), Role::Decode));
        pod.health.lock().on(NOW, Outcome::Busy { retry_after: Some(Duration::from_secs(2)) });
        pod.learn(Facts { sleep: Sleep::Asleep, ..Facts::default() });
        (0..3).for_each(|_| pod.unreached());
        let view = PodView::of(&pod, "m", Tokens(0), NOW);
        assert_eq!((view.busy_until, view.sleeping, view.is_dark), (Some(Mono(9_000_000)), true, true));
        assert_eq!(view.sign(), pod.sign(NOW));
    }

    #[test]
    fn the_load_of_others_fades_with_the_age_of_the_reading() {
        let foreign = |running, own, age_ms| {
            let mut view = testing::read(testing::pod(0), None, age_ms);
            let reading = view.reading.as_mut().unwrap();
            (reading.running, reading.own.requests) = (running, own);
            view.foreign().to_string()
        };
        assert_eq!(foreign(Some(12), 2, 0), "10");
        assert_eq!(foreign(Some(12), 2, 2_500), "5");
        assert_eq!([foreign(Some(12), 2, 5_000), foreign(Some(12), 2, 60_000)], ["0", "0"]);
        assert_eq!([foreign(Some(2), 9, 0), foreign(None, 0, 0)], ["0", "0"]);
        assert_eq!(testing::pod(0).foreign().to_string(), "0");
    }
}
