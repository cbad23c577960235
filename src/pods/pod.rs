//! One pod: fixed identity, learnt facts, last reading, health and load.
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::health::Health;
use super::load::Load;
use super::reading::{Facts, Reading};
use crate::base::PodId;

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
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodSpec {
    /// Where it listens. Always an address: names are resolved by discovery, off the data path.
    pub addr: SocketAddr,
    /// `host[:port]` as configured; sent as `Host`.
    pub authority: Arc<str>,
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
    /// Fixed description.
    pub spec: PodSpec,
    /// What the pod said of itself that rarely changes: models, capacity, start time.
    pub facts: ArcSwap<Facts>,
    /// The last scraped gauges with the time they were taken; `None` before the first scrape.
    pub reading: ArcSwap<Option<Reading>>,
    /// Passive health: ejection, half-open probe, ramp.
    pub health: Mutex<Health>,
    /// What this gate has in flight there.
    pub load: Load,
}

impl Pod {
    /// A pod nothing is known of yet.
    pub fn new(id: PodId, spec: PodSpec) -> Self {
        Self {
            id,
            spec,
            facts: ArcSwap::from_pointee(Facts::default()),
            reading: ArcSwap::from_pointee(None),
            health: Mutex::new(Health::default()),
            load: Load::default(),
        }
    }
}
