//! The control plane: discovery, telemetry, reload and heartbeat, on a thread of their own.
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::watch;

use super::setup;
use crate::config::{Config, Loaded, POLL_INTERVAL_S, Target, Watcher};
use crate::discovery::{self, PodSource};
use crate::observe::Readiness;
use crate::pods::Pod;
use crate::proxy::Gate;
use crate::runtime::{now, supervise};
use crate::telemetry::{Credential, Event, Observer, Telemetry};

const BEAT: Duration = Duration::from_secs(1);

/// Starts the control plane; it ends when `stopped` becomes true.
pub(super) fn spawn(
    loaded: Loaded,
    watcher: Watcher,
    gate: Arc<Gate>,
    readiness: Arc<Readiness>,
    stopped: watch::Receiver<bool>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control = Control { gate, readiness, watcher, credential: Arc::default() };
    std::thread::Builder::new().name("control".into()).spawn(move || runtime.block_on(control.run(loaded, stopped)))
}

struct Control {
    gate: Arc<Gate>,
    readiness: Arc<Readiness>,
    watcher: Watcher,
    credential: Arc<Credential>,
}

impl Control {
    async fn run(mut self, loaded: Loaded, mut stopped: watch::Receiver<bool>) {
        let (sources, sources_seen) = watch::channel(sources(&loaded.config));
        let (settings, settings_seen) = watch::channel(discovery_settings(&loaded.config));
        let (tried, tried_seen) = watch::channel(false);
        self.take_credential(&loaded);
        let telemetry = Telemetry::new(
            Arc::clone(&self.gate.table),
            telemetry_settings(&loaded.config),
            Arc::clone(&self.credential),
            observer(&self.gate, &self.readiness),
        );
        self.readiness.configured();
        let _tasks = [
            supervise("discovery", discovery::run(sources_seen, settings_seen, Arc::clone(&self.gate.table), tried)),
            supervise("telemetry", Arc::clone(&telemetry).run()),
            supervise("readiness", first_fleet(Arc::clone(&self.gate), Arc::clone(&self.readiness), tried_seen)),
        ];
        let mut config = loaded.config;
        let mut poll = tokio::time::interval(Duration::from_secs(POLL_INTERVAL_S));
        let mut beat = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stops| *stops) => return,
                _ = beat.tick() => self.beat(),
                _ = poll.tick() => if let Some(loaded) = self.reloaded(&config) {
                    sources.send_replace(self::sources(&loaded.config));
                    settings.send_replace(discovery_settings(&loaded.config));
                    telemetry.configure(telemetry_settings(&loaded.config));
                    config = loaded.config;
                },
            }
        }
    }

    fn beat(&self) {
        self.readiness.beat(now());
        self.gate.metrics.ready.set(u64::from(self.readiness.missing().is_none()));
        let fleet = self.gate.table.fleet();
        self.gate.metrics.forget(|pod| fleet.find(pod).is_some(), |model| fleet.by_model.contains_key(model));
    }

    /// A new configuration, if the files changed and are good.
    fn reloaded(&mut self, old: &Config) -> Option<Loaded> {
        let loaded = match self.watcher.poll()? {
            Ok(loaded) => loaded,
            Err(problems) => {
                self.gate.metrics.config_reloads.inc("bad");
                tracing::error!("configuration not taken, the old one stays:\n{problems}");
                return None;
            }
        };
        for key in old.needs_restart(&loaded.config) {
            tracing::warn!(key, "changed in the file; takes effect after a restart");
        }
        self.gate.set_rules(setup::rules(&loaded.config));
        self.take_credential(&loaded);
        self.gate.metrics.config_reloads.inc("ok");
        tracing::info!("configuration reloaded");
        Some(loaded)
    }

    fn take_credential(&self, loaded: &Loaded) {
        self.gate.set_credential(loaded.credential.clone());
        if let Err(error) = self.credential.change(loaded.config.credential_file.as_deref()) {
            tracing::error!(%error, "credential for telemetry not taken");
        }
    }
}

/// Tells readiness which pods the first fleet has.
async fn first_fleet(gate: Arc<Gate>, readiness: Arc<Readiness>, mut tried: watch::Receiver<bool>) {
    if tried.wait_for(|tried| *tried).await.is_ok() {
        let fleet = gate.table.fleet();
        readiness.discovered(fleet.pods.iter().map(|pod| pod.id));
        // Telemetry may have asked some already.
        fleet.pods.iter().filter(|pod| pod.is_tried()).for_each(|pod| readiness.tried(pod.id));
    }
}

/// What follows from what telemetry finds.
fn observer(gate: &Arc<Gate>, readiness: &Arc<Readiness>) -> Observer {
    let (gate, readiness) = (Arc::clone(gate), Arc::clone(readiness));
    Box::new(move |event| match event {
        Event::Learnt(pod) => learnt(&gate, pod),
        Event::Restarted(pod) => {
            gate.index.wipe(pod.id);
            gate.guards.died(now(), pod.id);
            gate.metrics.pod_events.inc("restarted");
            tracing::info!(pod = %pod.id, "pod restarted");
        }
        Event::Virtual(pod) => {
            gate.metrics.pod_events.inc("virtual_address");
            tracing::warn!(
                pod = %pod.id,
                authority = %pod.spec.authority,
                "several servers answer at this address in turn, as behind a Service; give the gate each pod's own address"
            );
        }
        Event::Scraped(pod) => {
            readiness.tried(pod.id);
            gate.metrics.scrapes.inc("ok");
            let facts = pod.facts.load();
            gate.guards.seen(now(), facts.served.iter().flatten().map(|served| &served.name), pod.id);
        }
        Event::Failed(pod) => {
            readiness.tried(pod.id);
            gate.metrics.scrapes.inc("failed");
        }
    })
}

fn learnt(gate: &Gate, pod: &Pod) {
    let facts = pod.facts.load();
    if let Some(capacity) = facts.capacity {
        let block = crate::base::Tokens(facts.block_tokens.unwrap_or(16).into());
        gate.index.set_capacity(pod.id, capacity, block);
    }
}

fn sources(config: &Config) -> Vec<PodSource> {
    config.targets.iter().filter_map(source).collect()
}

fn source(target: &Target) -> Option<PodSource> {
    PodSource::parse(&target.authority, target.role, target.labels.clone()).ok()
}

fn discovery_settings(config: &Config) -> discovery::Settings {
    discovery::Settings { resolve_interval_s: config.resolve_interval.as_secs_f64(), ..discovery::Settings::default() }
}

fn telemetry_settings(config: &Config) -> crate::telemetry::Settings {
    crate::telemetry::Settings {
        interval_ms: config.telemetry.interval_ms.into(),
        timeout_ms: config.telemetry.timeout_ms.into(),
        ..crate::telemetry::Settings::default()
    }
}
