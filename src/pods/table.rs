//! The pod table: one immutable snapshot at a time, replaced when discovery or `/v1/models` changes something.
//!
//! Discovery gives endpoints; telemetry finds out how many data-parallel ranks an endpoint has ([`Table::set_ranks`]), and an
//! endpoint with several becomes as many pods. A pod is its description: what stays equal keeps its id, its load and its
//! health, and an id is never given twice. Writers are serialised; readers never wait.
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::health::Settings;
use super::load::Load;
use super::pod::{Pod, PodSpec, Role};
use super::reading::Served;
use crate::base::{ModelName, PodId};

/// Most ranks one endpoint may show; a pod that claims more is not believed.
pub const RANKS_MAX: u32 = 1_024;

/// One snapshot of all pods.
#[derive(Debug)]
pub struct Fleet {
    /// Counts up with every change.
    pub generation: u64,
    /// All pods, by id.
    pub pods: Vec<Arc<Pod>>,
    /// Counters and role of each pod, in the same order: what a survey runs over.
    pub lanes: Vec<Lane>,
    /// Positions in `pods` of those that are known to serve a model or adapter.
    pub by_model: HashMap<ModelName, Vec<usize>>,
    /// Positions of those whose models are not known yet.
    pub unknown: Vec<usize>,
    /// Positions of the pods (ranks) of one address.
    pub by_addr: HashMap<SocketAddr, Vec<usize>>,
    /// Whether any pod only prefills.
    pub has_prefill: bool,
    /// Share of serving pods that may be out at once; from [`Settings`], for [`super::Census::rule`].
    pub ejected_share_max: f64,
}

/// What a survey needs of a pod.
#[derive(Clone, Debug)]
pub struct Lane {
    /// Which pod.
    pub id: PodId,
    /// What it may be asked to do.
    pub role: Role,
    /// Hash of its address and rank: the same in every gate.
    pub name: u64,
    /// Its counters.
    pub load: Arc<Load>,
}

impl Default for Fleet {
    fn default() -> Self {
        index(Vec::new(), 0, &Settings::default())
    }
}

impl Fleet {
    /// The pod of this id, if it is in the fleet.
    pub fn find(&self, id: PodId) -> Option<&Arc<Pod>> {
        let position = self.pods.binary_search_by_key(&id, |pod| pod.id).ok()?;
        self.pods.get(position)
    }

    /// Positions of the pods to choose from for `model`: those known to serve it. If there is none, or they get nothing new, those nothing
    /// is known of, because one of them may; if that is empty too, nobody here serves the model. Pods that only prefill do not count:
    /// while no other pod has told its models, one of the others has to be tried.
    pub fn serving(&self, model: &str) -> &[usize] {
        let Some(known) = self.by_model.get(model) else { return &self.unknown };
        let is_of_use = |position: &usize| {
            self.lanes
                .get(*position)
                .is_some_and(|lane| lane.load.shuts.is_open() && (!self.has_prefill || lane.role != Role::Prefill))
        };
        if self.unknown.is_empty() || known.iter().any(is_of_use) { known } else { &self.unknown }
    }

    /// The pods at these positions.
    pub fn at<'a>(&'a self, positions: &'a [usize]) -> impl Iterator<Item = &'a Arc<Pod>> {
        positions.iter().filter_map(|position| self.pods.get(*position))
    }

    /// The pods (ranks) of one address.
    pub fn endpoint(&self, addr: &SocketAddr) -> impl Iterator<Item = &Arc<Pod>> {
        self.at(self.by_addr.get(addr).map_or(&[], Vec::as_slice))
    }

    /// Every model and adapter once, as the first pod that has it describes it, base models first, then by name.
    pub fn models(&self) -> Vec<Served> {
        let mut seen: HashMap<ModelName, Served> = HashMap::with_capacity(self.by_model.len());
        for pod in &self.pods {
            for served in pod.facts.load().served.iter().flatten() {
                seen.entry(Arc::clone(&served.name)).or_insert_with(|| served.clone());
            }
        }
        let mut models: Vec<Served> = seen.into_values().collect();
        models.sort_by(|a, b| (a.parent.is_some(), &a.name).cmp(&(b.parent.is_some(), &b.name)));
        models
    }

    /// Whether telemetry had its first contact, good or bad, with every pod.
    pub fn is_tried(&self) -> bool {
        self.pods.iter().all(|pod| pod.is_tried())
    }
}

/// Pods that came and went with a change.
#[derive(Debug, Default)]
pub struct Change {
    /// New in the fleet.
    pub added: Vec<Arc<Pod>>,
    /// No longer in it; their requests run on.
    pub removed: Vec<Arc<Pod>>,
}

/// Owner of the snapshots.
#[derive(Debug, Default)]
pub struct Table {
    fleet: ArcSwap<Fleet>,
    writer: Mutex<Writer>,
}

#[derive(Debug, Default)]
struct Writer {
    next_id: u32,
    settings: Arc<Settings>,
    endpoints: Vec<PodSpec>,
    /// Number of ranks, where there is more than one.
    ranks: HashMap<SocketAddr, u32>,
}

impl Table {
    /// An empty table whose pods get these health settings.
    pub fn new(settings: Settings) -> Self {
        Self {
            fleet: ArcSwap::from_pointee(index(Vec::new(), 0, &settings)),
            writer: Mutex::new(Writer { settings: Arc::new(settings), ..Writer::default() }),
        }
    }

    /// The current snapshot.
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.load_full()
    }

    /// Takes new health settings for all pods.
    pub fn configure(&self, settings: Settings) {
        let mut writer = self.writer.lock();
        writer.settings = Arc::new(settings);
        for pod in &self.fleet.load().pods {
            pod.health.lock().configure(Arc::clone(&writer.settings));
        }
        self.reindex(&writer);
    }

    /// Makes `specs` the whole fleet: keeps pods that stay, adds new ones, drops the rest (their requests run on).
    /// Returns (added, removed).
    pub fn set(&self, specs: Vec<PodSpec>) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
        let mut writer = self.writer.lock();
        let addrs: HashSet<SocketAddr> = specs.iter().map(|spec| spec.addr).collect();
        writer.ranks.retain(|addr, _| addrs.contains(addr));
        writer.endpoints = specs;
        let change = self.publish(&mut writer);
        (change.added, change.removed)
    }

    /// Telemetry found `count` data-parallel ranks at an address. One rank means the endpoint is one pod without a rank.
    pub fn set_ranks(&self, addr: SocketAddr, count: u32) -> Change {
        let mut writer = self.writer.lock();
        let count = count.clamp(1, RANKS_MAX);
        let before = if count > 1 { writer.ranks.insert(addr, count) } else { writer.ranks.remove(&addr) };
        if before.unwrap_or(1) == count { Change::default() } else { self.publish(&mut writer) }
    }

    /// Rebuilds the index by model after a pod's facts changed.
    pub fn refresh(&self) {
        self.reindex(&self.writer.lock());
    }

    fn reindex(&self, writer: &Writer) {
        let old = self.fleet.load_full();
        self.fleet.store(Arc::new(index(old.pods.clone(), old.generation + 1, &writer.settings)));
    }

    fn publish(&self, writer: &mut Writer) -> Change {
        let old = self.fleet.load_full();
        let mut known: HashMap<&PodSpec, &Arc<Pod>> = old.pods.iter().map(|pod| (&pod.spec, pod)).collect();
        let is_at_work = old.pods.iter().any(|pod| pod.load.now().served > 0);
        let specs: Vec<PodSpec> = writer.expanded().collect();
        let (mut pods, mut added) = (Vec::with_capacity(specs.len()), Vec::new());
        let mut placed = HashSet::with_capacity(specs.len());
        for spec in &specs {
            if !placed.insert(spec) {
                continue;
            }
            if let Some(pod) = known.remove(spec) {
                pods.push(Arc::clone(pod));
                continue;
            }
            let pod = Arc::new(Pod::with_settings(PodId(writer.next_id), spec.clone(), Arc::clone(&writer.settings)));
            writer.next_id += 1;
            if is_at_work {
                pod.health.lock().newcomer();
            }
            added.push(Arc::clone(&pod));
            pods.push(pod);
        }
        let mut removed: Vec<Arc<Pod>> = known.into_values().cloned().collect();
        removed.sort_by_key(|pod| pod.id);
        pods.sort_by_key(|pod| pod.id);
        self.fleet.store(Arc::new(index(pods, old.generation + 1, &writer.settings)));
        Change { added, removed }
    }
}

impl Writer {
    /// The endpoints, each with several ranks as so many pods.
    fn expanded(&self) -> impl Iterator<Item = PodSpec> {
        self.endpoints.iter().flat_map(|spec| {
            let count = if spec.rank.is_none() { self.ranks.get(&spec.addr).copied() } else { None };
            (0..count.unwrap_or(1))
                .map(move |rank| PodSpec { rank: count.map_or(spec.rank, |_| Some(rank)), ..spec.clone() })
        })
    }
}

fn index(pods: Vec<Arc<Pod>>, generation: u64, settings: &Settings) -> Fleet {
    let mut fleet = Fleet {
        generation,
        pods: Vec::new(),
        lanes: Vec::new(),
        by_model: HashMap::new(),
        unknown: Vec::new(),
        by_addr: HashMap::new(),
        has_prefill: pods.iter().any(|pod| pod.spec.role == Role::Prefill),
        ejected_share_max: settings.ejected_share_max,
    };
    for (position, pod) in pods.iter().enumerate() {
        fleet.by_addr.entry(pod.spec.addr).or_default().push(position);
        let facts = pod.facts.load();
        let Some(models) = &facts.served else {
            fleet.unknown.push(position);
            continue;
        };
        for served in models {
            let positions = fleet.by_model.entry(Arc::clone(&served.name)).or_default();
            if positions.last() != Some(&position) {
                positions.push(position);
            }
        }
    }
    let lane = |pod: &Arc<Pod>| Lane { id: pod.id, role: pod.spec.role, name: pod.name, load: Arc::clone(&pod.load) };
    fleet.lanes = pods.iter().map(lane).collect();
    fleet.pods = pods;
    fleet
}

#[cfg(test)]
mod tests;
