//! The pod table: one immutable snapshot at a time, replaced when discovery or `/v1/models` changes something.
use std::collections::HashMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use super::pod::{Pod, PodSpec};
use crate::base::{ModelName, PodId};

/// One snapshot of all pods.
#[derive(Debug, Default)]
pub struct Fleet {
    /// Counts up with every change.
    pub generation: u64,
    /// All pods, by id.
    pub pods: Vec<Arc<Pod>>,
    /// Positions in `pods` of those that serve a model or adapter.
    pub by_model: HashMap<ModelName, Vec<usize>>,
}

/// Owner of the snapshots.
#[derive(Debug, Default)]
pub struct Table {
    fleet: ArcSwap<Fleet>,
    next_id: Mutex<u32>,
}

impl Table {
    /// The current snapshot.
    pub fn fleet(&self) -> Arc<Fleet> {
        self.fleet.load_full()
    }

    /// Makes `specs` the whole fleet: keeps pods that stay, adds new ones, drops the rest (their requests run on).
    /// Returns (added, removed).
    pub fn set(&self, specs: Vec<PodSpec>) -> (Vec<Arc<Pod>>, Vec<Arc<Pod>>) {
        let mut next_id = self.next_id.lock();
        let old = self.fleet.load_full();
        let (mut pods, mut added) = (Vec::with_capacity(specs.len()), Vec::new());
        for spec in specs {
            if let Some(pod) = old.pods.iter().find(|pod| pod.spec == spec) {
                pods.push(Arc::clone(pod));
            } else {
                let pod = Arc::new(Pod::new(PodId(*next_id), spec));
                *next_id += 1;
                added.push(Arc::clone(&pod));
                pods.push(pod);
            }
        }
        let removed = old.pods.iter().filter(|pod| !pods.iter().any(|kept| kept.id == pod.id)).cloned().collect();
        self.publish(pods, old.generation);
        (added, removed)
    }

    /// Rebuilds the index by model after a pod's facts changed.
    pub fn refresh(&self) {
        let _one_writer = self.next_id.lock();
        let old = self.fleet.load_full();
        self.publish(old.pods.clone(), old.generation);
    }

    fn publish(&self, mut pods: Vec<Arc<Pod>>, generation: u64) {
        pods.sort_by_key(|pod| pod.id);
        let mut by_model: HashMap<ModelName, Vec<usize>> = HashMap::new();
        for (position, pod) in pods.iter().enumerate() {
            for served in pod.facts.load().served.iter().flatten() {
                by_model.entry(Arc::clone(&served.name)).or_default().push(position);
            }
        }
        self.fleet.store(Arc::new(Fleet { generation: generation + 1, pods, by_model }));
    }
}
