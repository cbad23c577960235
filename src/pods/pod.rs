//! One pod: fixed identity, learnt facts, last reading, health and load.
//!
//! Facts and readings are written by telemetry through [`Pod::learn`] and [`Pod::read`]; health by whoever talks to the pod,
//! through [`super::Attempt`]. Looks that a decision takes at a thousand pods ([`Pod::sign`]) take no lock while all is well.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::health::{Health, Settings, Standing};
use super::labels::{LabelSet, weight};
use super::load::Load;
use super::reading::{Facts, Reading, Sleep};
use super::shut::Shut;
use super::tls::PodTls;
use super::verdict::Sign;
use crate::base::{Mono, PodId};

/// Scrapes that fail in a row until telemetry calls a pod dark.
const DARK_FAILURES: u32 = 3;
/// How long a dark pod with requests in flight may send nothing until it counts as frozen. Well above the gap of any step
/// of an engine; a long prefill alone does not make a pod dark.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// When to look at a frozen pod again.
const SILENCE_LOOK: Duration = Duration::from_secs(1);

/// What a pod may be asked to do in disaggregated serving.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Prefill and decode.
    #[default]
    Both,
    /// Prefill only: never streams to a client.
    Prefill,
    /// Decode; it can still prefill by itself.
    Decode,
}

/// How discovery describes a pod. Equal specs are the same pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodSpec {
    /// Where it listens. Always an address: names are resolved by discovery, off the data path.
    pub addr: SocketAddr,
    /// `host[:port]` as configured; sent as `Host`.
    pub authority: Arc<str>,
    /// How TLS is spoken with it; `None` without TLS.
    pub tls: Option<PodTls>,
    /// Data-parallel rank to address with `X-data-parallel-rank`; `None` when the endpoint has a single engine.
    pub rank: Option<u32>,
    /// What it may be asked to do.
    pub role: Role,
    /// Operator's labels (rack, hardware, variant).
    pub labels: BTreeMap<String, String>,
}

/// A pod and everything the gate knows of it. Shared by `Arc`; lives as long as somebody still talks to it.
#[derive(Debug)]
pub struct Pod {
    /// Name of this pod in logs and metrics.
    pub id: PodId,
    /// Hash of its address and rank: the same in every gate, and after it was away.
    pub name: u64,
    /// Fixed description.
    pub spec: PodSpec,
    /// Its labels, for filters.
    pub labels: LabelSet,
    /// What the pod said of itself that rarely changes: models, capacity, start time. Written by [`Pod::learn`] only.
    pub facts: ArcSwap<Facts>,
    /// The last scraped gauges with the time they were taken; `None` before the first scrape.
    pub reading: ArcSwap<Option<Reading>>,
    /// Passive health: ejection, half-open probe, ramp.
    pub health: Mutex<Health>,
    /// What this gate has in flight there, and what else every decision looks at.
    pub load: Arc<Load>,
    tried: AtomicBool,
    /// When the first request since the pod was last heard was sent.
    asked: AtomicU64,
    /// When anything last came from the pod on the data path.
    heard: AtomicU64,
}

impl Pod {
    /// A pod nothing is known of yet, with default health settings.
    pub fn new(id: PodId, spec: PodSpec) -> Self {
        Self::with_settings(id, spec, Arc::new(Settings::default()))
    }

    /// A pod nothing is known of yet.
    pub fn with_settings(id: PodId, spec: PodSpec, settings: Arc<Settings>) -> Self {
        let load = Arc::new(Load::default());
        let mut health = Health::watched(settings, Arc::clone(&load));
        health.limit(weight(&spec.labels).unwrap_or(1.0));
        Self {
            id,
            name: xxhash_rust::xxh3::xxh3_64(format!("{} {:?}", spec.addr, spec.rank).as_bytes()),
            labels: LabelSet::of(&spec.labels),
            spec,
            facts: ArcSwap::from_pointee(Facts::default()),
            reading: ArcSwap::from_pointee(None),
            health: Mutex::new(health),
            load,
            tried: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            heard: AtomicU64::new(0),
        }
    }

    /// Takes new facts; true if they differ in what the table's index by model is built of.
    pub fn learn(&self, facts: Facts) -> bool {
        self.load.shuts.set(Shut::Asleep, facts.sleep == Sleep::Asleep);
        self.load.capacity.store(facts.capacity.map_or(0, |tokens| tokens.0), Relaxed);
        let changed = self.facts.load().served != facts.served;
        self.facts.store(Arc::new(facts));
        changed
    }

    /// Takes a new reading.
    pub fn read(&self, reading: Reading) {
        let tokens = self.facts.load().capacity.and_then(|capacity| reading.foreign_tokens(capacity)).unwrap_or(0.0);
        self.load.set_others(reading.taken, reading.foreign().unwrap_or(0), tokens as u64);
        self.reading.store(Arc::new(Some(reading)));
    }

    /// Telemetry reached the pod, whatever it answered.
    pub fn reached(&self) {
        self.load.scrape_failures.store(0, Relaxed);
    }

    /// Telemetry could not reach the pod. Never ejects by itself; see [`super::verdict`] for what it does.
    pub fn unreached(&self) {
        self.load.scrape_failures.fetch_update(Relaxed, Relaxed, |count| Some(count.saturating_add(1))).ok();
    }

    /// A request is being sent to the pod.
    pub fn asked(&self, now: Mono) {
        if self.asked.load(Relaxed) <= self.heard.load(Relaxed) {
            self.asked.store(now.0, Relaxed);
        }
    }

    /// Bytes of an answer came from the pod.
    pub fn heard(&self, now: Mono) {
        self.heard.store(now.0, Relaxed);
    }

    /// Whether requests are in flight there and nothing has come since the oldest of them was sent, for too long.
    fn is_silent(&self, now: Mono) -> bool {
        let asked = Mono(self.asked.load(Relaxed));
        self.load.now().requests > 0 && asked.0 > self.heard.load(Relaxed) && now.since(asked) > SILENCE_MAX
    }

    /// Whether nothing is held against the pod and it is awake: what needs no closer look.
    pub fn is_calm(&self, now: Mono) -> bool {
        let is_dark = self.load.scrape_failures.load(Relaxed) >= DARK_FAILURES;
        let is_held = self.load.is_uneasy.load(Relaxed) || !self.load.shuts.is_open();
        !(is_held || is_dark && self.is_silent(now))
    }

    /// Telemetry had its first contact, good or bad. The gate is ready when every pod had one.
    pub fn tried(&self) {
        self.tried.store(true, Relaxed);
    }

    /// Whether telemetry had its first contact.
    pub fn is_tried(&self) -> bool {
        self.tried.load(Relaxed)
    }

    /// Telemetry found a new process at the address: the old one's gauges and ejection are void. (Its facts are replaced when
    /// read anew; bookings run on until their guards end.)
    pub fn restarted(&self, now: Mono) {
        self.reading.store(Arc::new(None));
        self.load.set_others(now, 0, 0);
        self.load.restarted();
        self.health.lock().restarted(now);
    }

    /// Whether the pod itself may get work at `now`; the fleet's rules come on top.
    pub fn standing(&self, now: Mono) -> Standing {
        if self.load.is_uneasy.load(Relaxed) { self.health.lock().standing(now) } else { Standing::Ready }
    }

    /// What the fleet's rules look at. A pod that answers neither telemetry nor its requests is frozen: it looks idle, and
    /// would draw all traffic, so it counts as ejected until one of the two answers.
    pub fn sign(&self, now: Mono) -> Sign {
        let (shut, is_dark) = (self.load.shuts.first(), self.load.scrape_failures.load(Relaxed) >= DARK_FAILURES);
        if is_dark && self.is_silent(now) {
            let standing = Standing::Ejected(now.after(SILENCE_LOOK));
            return Sign { standing, busy_until: None, shut, is_dark };
        }
        if !self.load.is_uneasy.load(Relaxed) {
            return Sign { standing: Standing::Ready, busy_until: None, shut, is_dark };
        }
        let health = self.health.lock();
        Sign { standing: health.standing(now), busy_until: health.busy_until(now), shut, is_dark }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::health::Outcome;
    use super::*;

    /// What a test needs of discovery: pod `number` at a port of its own.
    pub(in super::super) fn spec(number: u32) -> PodSpec {
        let addr = SocketAddr::from(([127, 0, 0, 1], 8_000 + number as u16));
        PodSpec {
            addr,
            authority: addr.to_string().into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: BTreeMap::new(),
        }
    }

    pub(in super::super) fn pod(number: u32) -> Arc<Pod> {
        Arc::new(Pod::new(PodId(number), spec(number)))
    }

    #[test]
    fn a_weight_below_1_is_a_share_for_good() {
        let addr = SocketAddr::from(([10, 0, 0, 1], 1));
        let labels = BTreeMap::from([("weight".to_owned(), "0.25".to_owned())]);
        let spec = PodSpec { addr, authority: "a".into(), tls: None, rank: None, role: Role::Both, labels };
        let pod = Pod::new(PodId(0), spec);
        assert_eq!(pod.standing(Mono::ZERO), Standing::Ramp(0.25));
        let mut health = pod.health.lock();
        health.newcomer();
        (0..1_000).for_each(|_| health.on(Mono(5), Outcome::Good));
        drop(health);
        assert_eq!(pod.standing(Mono(600_000_000)), Standing::Ramp(0.25));
    }

    #[test]
    fn a_pod_that_answers_neither_telemetry_nor_requests_is_out_until_one_answers() {
        let pod = pod(1);
        let at = |seconds: u64| Mono(100_000_000 + seconds * 1_000_000);
        let is_out = |seconds| matches!(pod.sign(at(seconds)).standing, Standing::Ejected(_));
        pod.asked(at(0));
        pod.heard(at(1));
        let booking = super::super::Reservation::book(Arc::clone(&pod), crate::base::Tokens(9), crate::base::Tokens(9));
        pod.asked(at(2));
        pod.asked(at(9));
        assert!(!is_out(20), "silence alone is a long prefill");
        (0..3).for_each(|_| pod.unreached());
        assert!(!is_out(4) && is_out(6), "counted from the oldest request without an answer");
        pod.heard(at(7));
        assert!(!is_out(30), "telemetry alone says nothing about serving");
        pod.asked(at(31));
        assert!(is_out(40));
        pod.reached();
        assert!(!is_out(40));
        (0..3).for_each(|_| pod.unreached());
        drop(booking);
        assert!(!is_out(40), "without requests nothing is known");
    }

    #[test]
    fn the_lock_free_look_tells_what_the_locked_one_does() {
        let pod = pod(1);
        let now = Mono(7_000_000);
        assert_eq!(pod.sign(now), Sign { standing: Standing::Ready, busy_until: None, shut: None, is_dark: false });
        pod.health.lock().on(now, Outcome::Busy { retry_after: None });
        assert_eq!(pod.sign(now).busy_until, Some(Mono(8_000_000)));
        pod.learn(Facts { sleep: Sleep::Asleep, ..Facts::default() });
        (0..3).for_each(|_| pod.unreached());
        (0..3).for_each(|_| pod.health.lock().on(now, Outcome::ConnectFailed));
        let sign = pod.sign(now);
        assert_eq!(
            (sign.shut, sign.is_dark, sign.standing),
            (Some(Shut::Asleep), true, Standing::Ejected(Mono(12_000_000)))
        );
        pod.read(Reading::default());
        pod.reached();
        pod.restarted(now);
        assert_eq!((pod.sign(now).is_dark, pod.standing(now)), (false, Standing::Probe));
        assert_eq!(**pod.reading.load(), None);
    }
}
