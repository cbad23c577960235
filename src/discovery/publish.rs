//! The one writer of the pod table's endpoints: takes what sources find and makes it the fleet, at most ten times a second.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::found::{Board, Found, State};
use crate::base::Mono;
use crate::pods::{Shut, Table};
use crate::runtime::now;

/// Least time between two fleets.
const EVERY: Duration = Duration::from_millis(100);

/// A source, as metrics show it.
#[derive(Clone, Debug)]
pub struct SourceHealth {
    /// What it is, as `service/vllm`.
    pub name: String,
    /// When it was last heard; `None` if never.
    pub heard: Option<Mono>,
    /// Its last answer was an error.
    pub is_failing: bool,
}

/// See the file.
#[derive(Debug)]
pub struct Publisher {
    table: Arc<Table>,
    board: Mutex<Board>,
    health: Mutex<BTreeMap<String, SourceHealth>>,
    news: Notify,
    /// One at a time: who took an older fleet from the board must not set it last.
    publishing: Mutex<()>,
    /// Addresses that operators drain.
    drained: watch::Sender<BTreeSet<SocketAddr>>,
}

impl Publisher {
    /// A publisher to this table.
    pub fn new(table: Arc<Table>) -> Self {
        Self {
            table,
            board: Mutex::default(),
            health: Mutex::default(),
            news: Notify::new(),
            publishing: Mutex::default(),
            drained: watch::Sender::default(),
        }
    }

    /// This is all that a source found. Whether that is news.
    pub fn set(&self, source: &str, all: BTreeMap<String, Vec<Found>>) -> bool {
        let is_news = self.board.lock().set(source, all);
        if is_news {
            self.news.notify_one();
        }
        is_news
    }

    /// One object of a source means this now; nothing if it is gone.
    pub fn put(&self, source: &str, object: &str, found: Vec<Found>) {
        if self.board.lock().put(source, object, found) {
            self.news.notify_one();
        }
    }

    /// Forgets sources that are none any more.
    pub fn keep(&self, is_source: impl Fn(&str) -> bool) {
        self.health.lock().retain(|name, _| is_source(name));
        if self.board.lock().keep(is_source) {
            self.news.notify_one();
        }
    }

    /// Name of the source that an address comes from.
    pub fn origin(&self, addr: SocketAddr) -> Option<String> {
        self.origins().remove(&addr)
    }

    /// Names of the sources that all addresses come from.
    pub fn origins(&self) -> HashMap<SocketAddr, String> {
        self.board.lock().origins()
    }

    /// Addresses that operators drain.
    pub(super) const fn drained(&self) -> &watch::Sender<BTreeSet<SocketAddr>> {
        &self.drained
    }

    /// A source was heard or failed. Whether that is different from before.
    pub fn heard(&self, source: &str, name: &str, is_failing: bool) -> bool {
        let mut all = self.health.lock();
        let one = all.entry(source.to_owned()).or_insert_with(|| SourceHealth {
            name: name.to_owned(),
            heard: None,
            is_failing: false,
        });
        if !is_failing {
            one.heard = Some(now());
        }
        std::mem::replace(&mut one.is_failing, is_failing) != is_failing
    }

    /// How the sources are that can tell.
    pub fn health(&self) -> Vec<SourceHealth> {
        self.health.lock().values().cloned().collect()
    }

    /// Publishes what is new, for ever.
    pub async fn run(&self) {
        loop {
            self.news.notified().await;
            self.publish();
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Makes what is known the fleet.
    pub fn publish(&self) {
        let _one = self.publishing.lock();
        let (specs, states) = self.board.lock().fleet();
        let (added, removed) = self.table.set(specs);
        for pod in added {
            tracing::info!(pod = %pod.id, authority = %pod.spec.authority, addr = %pod.spec.addr, "pod added");
        }
        let fleet = self.table.fleet();
        for pod in removed {
            // Another that comes with its address is not drained.
            let addr = pod.spec.addr;
            if fleet.pods.iter().all(|other| other.spec.addr != addr) {
                self.drained.send_if_modified(|drained| drained.remove(&addr));
            }
            tracing::info!(pod = %pod.id, authority = %pod.spec.authority, "pod removed, its requests run on");
        }
        let drained = self.drained.borrow().clone();
        for pod in &fleet.pods {
            let state = states.get(&pod.spec.addr);
            let shuts = &pod.load.shuts;
            if shuts.set(Shut::NotReady, state == Some(&State::NotReady)) {
                tracing::info!(pod = %pod.id, is_ready = state.is_none(), "pod changed, as discovery says");
            }
            if shuts.set(Shut::Drained, drained.contains(&pod.spec.addr)) {
                tracing::warn!(pod = %pod.id, is_drained = shuts.has(Shut::Drained), "pod changed, as an operator says");
            }
            if shuts.set(Shut::Terminating, state == Some(&State::Terminating)) {
                tracing::info!(pod = %pod.id, "pod terminates: nothing new is sent there, its requests run on");
            }
        }
    }
}
