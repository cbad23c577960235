//! The control plane: discovery, telemetry, reload and heartbeat, on a thread of their own.
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::keys::KeysFile;
use super::tls::Listeners;
use super::{setup, snapshot};
use crate::base::{Mono, PodId};
use crate::config::{Config, POLL_INTERVAL_S, Problems, Watcher};
use crate::discovery::{self, Roster, SourceHealth};
use crate::observe::{Readiness, RunningConfig, Secret, SourceSeries, StepTimeSeries};
use crate::pods::{Fleet, Pod};
use crate::prefix::Snapshot;
use crate::proxy::lobby::Lobby;
use crate::proxy::waitroom::Waitroom;
use crate::proxy::{Gate, prewarm};
use crate::runtime::{now, supervise, unix_ms};
use crate::scheduling::latency::{REGIMES, Report};
use crate::telemetry::{Credential, Event, Observer, Telemetry};

const BEAT: Duration = Duration::from_secs(1);
/// A pod that is met later after the start than this gets nothing of a snapshot.
const SAVED_FOR: Duration = Duration::from_mins(10);

/// Somebody wants the configuration to be read now, and to know whether it was taken.
pub(super) type Asked = oneshot::Sender<bool>;

/// Starts the control plane; it ends when `stopped` becomes true.
pub(super) fn spawn(
    config: Config,
    (watcher, keys, listeners, roster): (Watcher, KeysFile, Listeners, Arc<Roster>),
    asked: mpsc::Receiver<Asked>,
    gate: Arc<Gate>,
    readiness: Arc<Readiness>,
    stopped: watch::Receiver<bool>,
    saved: Option<Snapshot>,
) -> io::Result<JoinHandle<()>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let control = Control {
        gate,
        readiness,
        watcher,
        keys,
        listeners,
        roster,
        credential: Arc::default(),
        memory_max: setup::container_bytes(),
        saved: Saved::new(saved),
        expired: Mutex::default(),
    };
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || runtime.block_on(control.run(config, stopped, asked)))
}

struct Control {
    gate: Arc<Gate>,
    readiness: Arc<Readiness>,
    watcher: Watcher,
    keys: KeysFile,
    listeners: Listeners,
    roster: Arc<Roster>,
    credential: Arc<Credential>,
    /// What the container allows \[bytes\].
    memory_max: Option<u64>,
    saved: Arc<Saved>,
    /// Leases that had run out on each pod.
    expired: Mutex<HashMap<PodId, u64>>,
}

/// What was saved at the last shutdown, until its pods are met again or it is too old to be of use.
struct Saved(Mutex<Option<Snapshot>>);

impl Saved {
    fn new(snapshot: Option<Snapshot>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(snapshot)))
    }

    /// Gives a pod what it held.
    fn meet(&self, gate: &Gate, pod: &Pod) {
        let mut saved = self.0.lock();
        let Some((snapshot, name)) = saved.as_mut().zip(snapshot::name(pod)) else { return };
        let blocks = gate.index.adopt(snapshot, &name, pod.id);
        if blocks > 0 {
            tracing::info!(pod = %pod.id, blocks, "prefix index restored");
        }
        if snapshot.is_done() {
            *saved = None;
        }
    }

    fn forget(&self) {
        if now() > Mono::ZERO.after(SAVED_FOR) {
            *self.0.lock() = None;
        }
    }
}

impl Control {
    async fn run(mut self, mut config: Config, mut stopped: watch::Receiver<bool>, mut asked: mpsc::Receiver<Asked>) {
        let started = config.clone();
        self.show(&started, &config);
        self.gate.index.begin_with(self.saved.0.lock().as_ref().unwrap_or(&Snapshot::default()));
        let (sources, sources_seen) = watch::channel(config.sources.clone());
        let (settings, settings_seen) = watch::channel(config.pods.clone());
        let (tried, tried_seen) = watch::channel(false);
        let publisher = Arc::clone(self.roster.publisher());
        self.take_credential(&config);
        let telemetry = Telemetry::new(
            Arc::clone(&self.gate.table),
            config.telemetry.clone(),
            Arc::clone(&self.credential),
            Arc::clone(&self.gate.pod_tls),
            observer(&self.gate, &self.readiness, &self.saved),
        );
        self.readiness.configured();
        let _tasks = [
            supervise("discovery", discovery::run(sources_seen, settings_seen, Arc::clone(&self.roster), tried)),
            supervise("telemetry", Arc::clone(&telemetry).run()),
            supervise("first contacts", prewarm::run(Arc::clone(&self.gate))),
            supervise("queue", Waitroom::run(Arc::clone(&self.gate))),
            supervise("sessions", Lobby::run(Arc::clone(&self.gate))),
            supervise("readiness", first_fleet(Arc::clone(&self.gate), Arc::clone(&self.readiness), tried_seen)),
        ];
        let publish = |new: &Config| {
            sources.send_replace(new.sources.clone());
            settings.send_replace(new.pods.clone());
            telemetry.configure(new.telemetry.clone());
        };
        let mut poll = tokio::time::interval(Duration::from_secs(POLL_INTERVAL_S));
        let mut beat = tokio::time::interval(BEAT);
        loop {
            tokio::select! {
                _ = stopped.wait_for(|stops| *stops) => return,
                _ = beat.tick() => {
                    self.beat(&config);
                    self.gate.metrics.sources.store(Arc::new(publisher.health().iter().map(source).collect()));
                }
                _ = poll.tick() => {
                    if let Some(news) = self.watcher.poll()
                        && let Some(new) = self.reloaded(news, &started, &config)
                    {
                        publish(&new);
                        config = new;
                    }
                    self.look_at_keys(&config);
                    self.listeners.refresh(&config, &self.gate);
                },
                Some(answer) = asked.recv() => {
                    let news = self.watcher.read();
                    let new = self.reloaded(news, &started, &config);
                    let is_taken = new.is_some();
                    if let Some(new) = new {
                        publish(&new);
                        config = new;
                    }
                    self.look_at_keys(&config);
                    self.listeners.refresh(&config, &self.gate);
                    // Who asked may have gone.
                    let _asker_has_gone = answer.send(is_taken);
                }
            }
        }
    }

    fn beat(&self, config: &Config) {
        self.readiness.beat(now());
        let fleet = self.gate.table.fleet();
        self.readiness.keep(|pod| fleet.find(pod).is_some());
        self.gate.index.keep(|pod| fleet.find(pod).is_some());
        self.gate.pairs.keep(|pod| fleet.find(pod).is_some());
        self.watch_leases(&fleet);
        if let Some((used, max)) = setup::resident_bytes().zip(config.limits.memory_bytes_max.or(self.memory_max)) {
            self.gate.metrics.memory_stage.set(self.gate.memory.tell(used, max) as u64);
        }
        self.publish_credential();
        self.gate.latency.refresh(&fleet);
        self.gate.peers.refresh(&fleet, now());
        let reports = self.gate.latency.reports().into_iter().map(|(name, report)| step_time(name, &report));
        self.gate.metrics.step_times.store(Arc::new(reports.collect()));
        self.gate.metrics.ready.set(u64::from(self.readiness.missing().is_none()));
        self.saved.forget();
        self.gate.metrics.forget(|pod| fleet.find(pod).is_some(), |model| fleet.by_model.contains_key(model));
    }

    /// Sounds the alarm when leases ran out on a prefill pod: decoders may have read blocks that were let go, and that is no error
    /// to them.
    fn watch_leases(&self, fleet: &Fleet) {
        let mut seen = self.expired.lock();
        seen.retain(|pod, _| fleet.find(*pod).is_some());
        for pod in &fleet.pods {
            let Some(count) = pod.reading.load().as_ref().as_ref().and_then(|reading| reading.kv_expired) else {
                continue;
            };
            let before = seen.insert(pod.id, count);
            if before.is_some_and(|before| count > before) {
                self.gate.metrics.degradations.inc("kv_lease_expired");
                tracing::error!(
                    pod = %pod.id, count,
                    "leases on KV blocks ran out on this pod: decoders that came after that read wrong blocks without an error. \
                     Is kv_lease_duration what disaggregation.lease_s says, and are decode pods overloaded?"
                );
            }
        }
    }

    /// Shows what runs now.
    fn show(&self, started: &Config, config: &Config) {
        self.gate.metrics.running_config.rcu(|before| RunningConfig {
            generation: before.generation + 1,
            hash: config.shown.hash,
            taken_s: unix_ms() / 1_000,
            is_last_good: true,
            needs_restart: started.needs_restart(config),
            json: Arc::clone(&config.shown.json),
        });
    }

    /// A try to change the configuration failed.
    fn is_bad(&self) {
        self.gate.metrics.config_reloads.inc("bad");
        let before = self.gate.metrics.running_config.load_full();
        self.gate.metrics.running_config.store(Arc::new(RunningConfig { is_last_good: false, ..(*before).clone() }));
    }

    /// Puts a new configuration in force, if it is good.
    fn reloaded(&mut self, news: Result<Config, Problems>, started: &Config, old: &Config) -> Option<Config> {
        let new = match news {
            Ok(new) => new,
            Err(problems) => {
                self.is_bad();
                tracing::error!("configuration not taken, the old one stays:\n{problems}");
                return None;
            }
        };
        if self.keys.path() != new.flow.keys_file.as_deref() {
            match KeysFile::open(new.flow.keys_file.as_deref()) {
                Ok(keys) => self.keys = keys,
                Err(error) => {
                    self.is_bad();
                    tracing::error!(%error, "configuration not taken, the old one stays; save it again once the keys are there");
                    return None;
                }
            }
        }
        for key in started.needs_restart(&new) {
            tracing::warn!(key, "changed in the file; takes effect after a restart");
        }
        // An operator's switch stands until the file says otherwise than before.
        if old.routing.safe_mode != new.routing.safe_mode {
            self.gate.set_safe_mode(new.routing.safe_mode);
            tracing::warn!(on = new.routing.safe_mode, "safe mode set by the configuration file");
        }
        if old.flow != new.flow {
            self.keys.tell(&new.flow.tenants);
        }
        self.gate.set_rules(setup::rules(&new, self.keys.keys()));
        self.gate.set_routing(setup::routing(&new));
        self.gate.table.configure(new.pods.health.clone());
        self.take_credential(&new);
        self.gate.metrics.config_reloads.inc("ok");
        self.show(started, &new);
        let generation = self.gate.metrics.running_config.load().generation;
        tracing::info!(generation, hash = format!("{:012x}", new.shown.hash), "configuration reloaded");
        Some(new)
    }

    /// Takes clients' keys again if their file changed.
    fn look_at_keys(&mut self, config: &Config) {
        match self.keys.poll() {
            None => {}
            Some(Ok(())) => {
                self.gate.set_rules(setup::rules(config, self.keys.keys()));
                self.gate.metrics.config_reloads.inc("ok");
                self.keys.tell(&config.flow.tenants);
            }
            Some(Err(error)) => {
                self.gate.metrics.config_reloads.inc("bad");
                tracing::error!(%error, "API keys not reloaded, the last good ones stay");
            }
        }
    }

    /// Takes the key for pods from the configured file; the data path sends the same one.
    fn take_credential(&self, config: &Config) {
        if let Err(error) = self.credential.change(config.pods.credential_file.as_deref()) {
            tracing::error!(%error, "credential for pods not taken, the old one stays");
        }
        self.publish_credential();
    }

    fn publish_credential(&self) {
        self.gate.set_credential(self.credential.key().map(|key| Secret::new(key.as_str())));
    }
}

/// A source of pods, as metrics show it.
fn source(health: &SourceHealth) -> SourceSeries {
    let age_s = health.heard.map(|heard| now().since(heard).as_secs_f64());
    SourceSeries { name: health.name.clone(), age_s, is_failing: health.is_failing }
}

/// What the latency model knows of a variant, as metrics show it.
fn step_time(variant: Arc<str>, report: &Report) -> StepTimeSeries {
    StepTimeSeries {
        variant,
        terms: report.step.terms(),
        overhead_s: report.overhead_s,
        seen: report.seen,
        errors: REGIMES.into_iter().zip(report.errors).collect(),
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
fn observer(gate: &Arc<Gate>, readiness: &Arc<Readiness>, saved: &Arc<Saved>) -> Observer {
    let (gate, readiness, saved) = (Arc::clone(gate), Arc::clone(readiness), Arc::clone(saved));
    Box::new(move |event| match event {
        Event::Learnt(pod) => {
            learnt(&gate, pod);
            saved.meet(&gate, pod);
        }
        Event::Restarted(pod) => {
            gate.index.wipe(pod.id);
            gate.pairs.restarted(pod.id, pod.name);
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
            gate.waitroom.read(&gate, pod);
            let facts = pod.facts.load();
            gate.guards.seen(now(), facts.served.iter().flatten().map(|served| &served.name), pod.id);
        }
        Event::Failed(pod) => {
            readiness.tried(pod.id);
            gate.metrics.scrapes.inc("failed");
        }
        Event::Refused(pod) => gate.guards.died(now(), pod.id),
    })
}

fn learnt(gate: &Gate, pod: &Pod) {
    let facts = pod.facts.load();
    if let Some(capacity) = facts.capacity {
        let block = crate::base::Tokens(facts.block_tokens.unwrap_or(16).into());
        gate.index.set_capacity(pod.id, capacity, block);
    }
}
