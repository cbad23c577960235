//! Keeps one visiting task per address of the fleet, spreads them over time, and bundles changes of the table.
//!
//! The fleet is looked at every [`LOOK`]; addresses that came get a task, those that went lose it. A task that panicked is
//! started anew at the next look. With many pods the interval grows so that all together stay below a rate.
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;

use super::credential::Credential;
use super::settings::Settings;
use super::visit::Visitor;
use crate::base::Rng;
use crate::pods::{Pod, Table};
use crate::runtime::{Task, now, supervise};
use crate::tls::Connectors;

/// Time between two looks at the fleet, and between two rebuilds of its index by model.
const LOOK: Duration = Duration::from_millis(100);
/// Time between two looks at the credential file.
const CREDENTIAL_LOOK: Duration = Duration::from_secs(5);

/// Something telemetry found that others act on.
#[derive(Clone, Copy, Debug)]
pub enum Event<'a> {
    /// A pod's models, capacity or sleep changed; see [`Pod::facts`].
    Learnt(&'a Arc<Pod>),
    /// Another process answers at the pod's address: its caches are empty.
    Restarted(&'a Arc<Pod>),
    /// Several processes answer at the pod's address in turn; told once per address.
    Virtual(&'a Arc<Pod>),
    /// A scrape succeeded.
    Scraped(&'a Arc<Pod>),
    /// A scrape failed.
    Failed(&'a Arc<Pod>),
    /// Nothing listens at the pod's address; told after [`Event::Failed`], at every scrape.
    Refused(&'a Arc<Pod>),
}

/// Who is told. Called from telemetry's tasks; must not block.
pub type Observer = Box<dyn Fn(Event<'_>) + Send + Sync>;

/// The telemetry of a fleet.
pub struct Telemetry {
    pub(super) table: Arc<Table>,
    pub(super) settings: ArcSwap<Settings>,
    pub(super) credential: Arc<Credential>,
    pub(super) connectors: Arc<Connectors>,
    pub(super) observer: Observer,
    /// A pod's models changed: the table's index is to be rebuilt.
    pub(super) stale: Notify,
    endpoints: AtomicUsize,
}

impl fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Telemetry").field("settings", &self.settings.load()).finish_non_exhaustive()
    }
}

struct Visiting {
    _task: Task,
    alive: Weak<()>,
}

impl Telemetry {
    /// Telemetry that does nothing until it is [`Telemetry::run`].
    pub fn new(
        table: Arc<Table>,
        settings: Settings,
        credential: Arc<Credential>,
        connectors: Arc<Connectors>,
        observer: Observer,
    ) -> Arc<Self> {
        Arc::new(Self {
            table,
            settings: ArcSwap::from_pointee(settings),
            credential,
            connectors,
            observer,
            stale: Notify::new(),
            endpoints: AtomicUsize::new(0),
        })
    }

    /// Takes new settings; each task uses them from its next visit on.
    pub fn configure(&self, settings: Settings) {
        self.settings.store(Arc::new(settings));
    }

    /// Visits every pod of the table, for ever. Dropping the future ends all visits.
    pub async fn run(self: Arc<Self>) {
        let mut visits: HashMap<SocketAddr, Visiting> = HashMap::new();
        let mut rng = Rng::new(now().0 ^ u64::from(std::process::id()) << 32);
        let mut credential_read = now();
        loop {
            self.follow(&mut visits, &mut rng);
            if now().since(credential_read) >= CREDENTIAL_LOOK {
                credential_read = now();
                self.reload_credential().await;
            }
            if tokio::time::timeout(LOOK, self.stale.notified()).await.is_ok() {
                self.table.refresh();
                // At most one rebuild per look, however many pods have news.
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    /// Starts and ends visits so that every address of the fleet has one.
    fn follow(self: &Arc<Self>, visits: &mut HashMap<SocketAddr, Visiting>, rng: &mut Rng) {
        let fleet = self.table.fleet();
        self.endpoints.store(fleet.by_addr.len(), Relaxed);
        visits.retain(|addr, visiting| fleet.by_addr.contains_key(addr) && visiting.alive.strong_count() > 0);
        let addrs: Vec<SocketAddr> = fleet.by_addr.keys().filter(|addr| !visits.contains_key(addr)).copied().collect();
        let rate = u64::from(self.settings.load().scrapes_per_s_max.max(1));
        let spread_us = addrs.len() as u64 * 1_000_000 / rate;
        for addr in addrs {
            let token = Arc::new(());
            let alive = Arc::downgrade(&token);
            let first = Duration::from_micros(rng.below(spread_us));
            let task = supervise("telemetry", visit_for_ever(Arc::clone(self), addr, first, rng.bits(), token));
            visits.insert(addr, Visiting { _task: task, alive });
        }
    }

    async fn reload_credential(&self) {
        let credential = Arc::clone(&self.credential);
        match tokio::task::spawn_blocking(move || credential.reload()).await {
            Ok(Ok(true)) => tracing::info!("pod credential reloaded"),
            Ok(Err(error)) => tracing::warn!(%error, "pod credential not reloaded, the last good one stays"),
            _ => {}
        }
    }

    /// Time to the next visit after `failures` failed ones in a row.
    pub(super) fn pause(&self, failures: u32, rng: &mut Rng) -> Duration {
        let settings = self.settings.load();
        let endpoints = self.endpoints.load(Relaxed) as f64;
        let by_rate_ms = endpoints * 1_000.0 / f64::from(settings.scrapes_per_s_max.max(1));
        let base_ms = by_rate_ms.max(settings.interval_ms as f64);
        let backed_off_ms = base_ms * f64::from(1_u32 << failures.min(16));
        let pause_ms = backed_off_ms.min(base_ms.max(settings.backoff_max_ms as f64));
        Duration::from_micros((pause_ms * 1_000.0 * (0.9 + 0.2 * rng.unit())) as u64)
    }
}

/// `alive` is dropped with the task, however it ends.
async fn visit_for_ever(telemetry: Arc<Telemetry>, addr: SocketAddr, first: Duration, seed: u64, alive: Arc<()>) {
    let mut rng = Rng::new(seed);
    let mut visitor = Visitor::new(telemetry, addr);
    tokio::time::sleep(first).await;
    loop {
        visitor.visit(now()).await;
        debug_assert!(Arc::weak_count(&alive) > 0, "it is watched as long as it runs");
        tokio::time::sleep(visitor.pause(&mut rng)).await;
    }
}

#[cfg(test)]
mod tests;
