//! Wiring: builds every room, connects them, starts and stops them. Knows all, decides nothing.
//!
//! Threads: one per worker (the data path), one for the control plane (discovery, telemetry, reload), one for admin, one for
//! the access log. The data path shares with the others only what is published: the pod table, rules, counters.
mod control;
mod inherited;
mod keys;
mod notify;
mod service;
mod setup;
mod snapshot;
mod tls;
mod upgrade;

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use self::inherited::Inherited;
use self::keys::KeysFile;
use self::tls::Listeners;
use crate::admin::{Admin, AdminState, PodChange, spawn_thread};
use crate::base::{ModelName, Mono};
use crate::config::{Config, Problems, ServeArgs, Watcher, policy as policy_of, policy_names};
use crate::discovery::{Publisher, Roster, RosterProblem};
use crate::export::access_log::Writer;
use crate::export::{AccessLog, Exporter, OtlpError, Spans};
use crate::observe::{BEAT_AGE_MAX, ExplainRing, MetricLimits, Metrics, QueueSeries, Readiness, SessionSeries};
use crate::pods::Table;
use crate::prefix::Index;
use crate::proxy::{Bound, Gate, GateApp, Hook, Parts, SpanSink, Workers, start};
use crate::runtime::now;
use crate::tls::TlsError;

pub use keys::{key_line, new_key};
pub use service::{EXIT_CUT, Service};
pub use setup::workers_default;

/// Time for telling the clients of requests that are cut.
const CUT_WITHIN: Duration = Duration::from_secs(2);

/// Longest time that clients at an inherited socket wait for the first look at the pods.
const PODS_WITHIN: Duration = Duration::from_secs(5);

/// Time for the last access lines at a stop. It runs out only if requests were cut, since these hold the log.
const LAST_LINES_WITHIN: Duration = Duration::from_secs(2);

/// Why the gate did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is not good; the text tells every problem.
    #[error("{0}")]
    Config(Problems),
    /// An address can't be listened on.
    #[error("cannot listen on {addr}: {error}; choose another address or stop what holds it")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        error: io::Error,
    },
    /// Certificates or keys of a listener cannot be used.
    #[error("cannot use the certificates of {place}: {error}")]
    Tls {
        /// The section.
        place: &'static str,
        /// Why.
        error: TlsError,
    },
    /// Traces cannot be exported as configured.
    #[error("{0}")]
    Traces(#[from] OtlpError),
    /// Another thing the system refused.
    #[error("cannot start")]
    System(#[from] io::Error),
}

/// A running gate.
pub struct App {
    addr: SocketAddr,
    h2c_addr: Option<SocketAddr>,
    gate: Arc<Gate>,
    readiness: Arc<Readiness>,
    workers: Workers,
    admin: Admin,
    control: JoinHandle<()>,
    stop: watch::Sender<bool>,
    writers: (Writer, Exporter),
    snapshot_file: Option<PathBuf>,
    /// The listening sockets, for a process that takes over.
    sockets: Vec<(&'static str, TcpListener)>,
    asks: mpsc::Sender<control::Asked>,
    hurry: Arc<AtomicBool>,
}

impl App {
    /// Reads the configuration and starts everything. `hook` is called at each phase of each request; only tests have one.
    pub fn start(args: ServeArgs, hook: Option<Hook>) -> Result<Self, StartError> {
        let inherited = Inherited::take();
        let is_activated = !inherited.is_empty() && !upgrade::is_taking_over();
        let (config, watcher) = Watcher::start(args).map_err(StartError::Config)?;
        setup::warn(&config);
        let metrics = Metrics::new(MetricLimits { models_max: config.observe.models_max, ..MetricLimits::default() });
        let (log, spans, writers) = outlets(&config, &metrics)?;
        let readiness = Arc::new(Readiness::default());
        let (prefix_secret, salt_key) = snapshot::secrets(&config.prefix)?;
        // One that cannot be used stops the start: to go on without would let everybody in.
        let keys = KeysFile::open(config.flow.keys_file.as_deref())?;
        keys.tell(&config.flow.tenants);
        let gate = Gate::new(Parts {
            table: Arc::new(Table::new(config.pods.health.clone())),
            index: Arc::new(Index::new(setup::index_limits(&config))),
            metrics: Arc::clone(&metrics),
            explain: Arc::new(ExplainRing::new(config.observe.decisions_max as usize)),
            safe_mode: Arc::new(AtomicBool::new(config.routing.safe_mode)),
            log: Box::new(move |record| log.write(record)),
            spans,
            hook,
            routing: setup::routing(&config),
            rules: setup::rules(&config, keys.keys()),
            seed: setup::seed()?,
            prefix_secret,
            salt_key,
        });
        let saved = snapshot::load(&config.prefix, prefix_secret);
        let snapshot_file = config.prefix.snapshot_file.clone();
        let listeners = Listeners::open(&config, &metrics)?;
        let admin_tls = listeners.admin.clone();
        let (bound, admin_socket) = bind(&config, &listeners, inherited)?;
        let sockets = handed(&bound, &admin_socket)?;
        let addr = bound.first().map_or_else(|| Ok(config.listen.addr), Bound::addr)?;
        let h2c_addr = bound.get(1).map(Bound::addr).transpose()?;
        let publisher = Arc::new(Publisher::new(Arc::clone(&gate.table)));
        let roster = Arc::new(Roster::open(publisher, config.pods.state_file.clone())?);
        let state = admin_state(&gate, &readiness, &config, &roster);
        let threads = workers(&config);
        let (stop, stopped) = watch::channel(false);
        let (asks, asked) = mpsc::channel(1);
        let control = control::spawn(
            config,
            (watcher, keys, listeners, Arc::clone(&roster)),
            asked,
            Arc::clone(&gate),
            Arc::clone(&readiness),
            stopped,
            saved,
        )?;
        if upgrade::is_taking_over() {
            // It serves nobody before it knows its pods: the one it replaces still does.
            wait_until_ready(&readiness, upgrade::READY_WITHIN)?;
        }
        let admin = spawn_thread(admin_socket, admin_tls, Arc::new(state))?;
        // Who holds the socket has clients wait there: they are not refused for pods that the gate is about to know.
        let _is_ready = is_activated.then(|| wait_until_ready(&readiness, PODS_WITHIN));
        let workers = start(threads, &bound, &GateApp::new(Arc::clone(&gate)))?;
        Ok(Self {
            addr,
            h2c_addr,
            gate,
            readiness,
            workers,
            admin,
            control,
            stop,
            writers,
            snapshot_file,
            sockets,
            asks,
            hurry: Arc::default(),
        })
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Where clients connect with HTTP/2, if anywhere.
    pub fn h2c_addr(&self) -> Option<SocketAddr> {
        self.h2c_addr
    }

    /// Where operators look.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.addr()
    }

    /// The data path, for tests and embedding.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Whether the gate is ready: configured, pods known and each tried once, not draining.
    pub fn is_ready(&self) -> bool {
        self.readiness.missing().is_none()
    }

    /// Reads the configuration again and says whether it was taken. Blocks until then; not to be called by a task.
    pub fn reload(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.asks.blocking_send(answer).is_ok() && answered.blocking_recv().unwrap_or(false)
    }

    /// Whether the control thread and all workers run; may be asked from any thread.
    pub fn health(&self) -> impl Fn() -> bool + Send + use<> {
        let (readiness, pulse) = (Arc::clone(&self.readiness), self.workers.pulse(BEAT_AGE_MAX));
        move || readiness.is_alive(now()) && pulse()
    }

    /// Set it to cut short whatever drain runs or comes.
    pub fn hurry(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.hurry)
    }

    fn sockets(&self) -> &[(&'static str, TcpListener)] {
        &self.sockets
    }

    /// Writes what pods are believed to hold, if it is to be kept.
    fn save_prefixes(&self) {
        if let Some(path) = &self.snapshot_file {
            snapshot::save(path, &self.gate.index, &self.gate.table, self.gate.prefix_secret);
        }
    }

    /// Stops: no longer ready, accepts for a while longer, lets requests end within their time, then ends everything.
    /// Blocks until that is done.
    pub fn drain(self) {
        let rules = self.gate.rules();
        self.readiness.drain();
        self.workers.leave();
        tracing::info!("draining");
        self.wait(now().after(rules.drain_accept), false);
        self.close(rules.drain_max);
    }

    /// Stops after another process has taken over the sockets: nothing is accepted any more, and who is connected is told to
    /// connect anew. Blocks until that is done.
    pub(crate) fn retire(mut self) {
        let rules = self.gate.rules();
        self.readiness.drain();
        self.sockets.clear();
        self.workers.close();
        // From now on operators are answered by the other, and what it saves must not be overwritten.
        self.admin.close();
        self.snapshot_file = None;
        self.wait(now().after(rules.drain_accept), true);
        self.close(rules.drain_max);
    }

    /// Waits until then, or until somebody is in a hurry, or `for_workers` until the workers have ended.
    fn wait(&self, until: Mono, for_workers: bool) {
        while now() < until && !self.hurry.load(Relaxed) && !(for_workers && self.workers.is_ended()) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Stops accepting at once and ends when the requests have, within `limit`.
    pub fn close(mut self, limit: Duration) {
        self.readiness.drain();
        self.sockets.clear();
        self.workers.close();
        self.gate.close_idle();
        let until = now().after(limit);
        self.wait(until, true);
        let cut: u64 = self.gate.metrics.models().iter().map(|model| model.in_flight.value()).sum();
        if !self.workers.is_ended() {
            self.gate.cut_off();
            let until = now().after(CUT_WITHIN);
            while now() < until && !self.workers.is_ended() {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        tracing::info!(cut, "drain ended; `cut` requests were still running and were cut");
        self.stop.send_replace(true);
        if self.control.join().is_err() {
            tracing::error!("the control plane panicked");
        }
        self.admin.stop();
        if let Some(path) = &self.snapshot_file {
            snapshot::save(path, &self.gate.index, &self.gate.table, self.gate.prefix_secret);
        }
        drop(self.gate);
        // With all requests ended nobody holds the log any more, and its writer ends after the lines it has.
        if !self.writers.0.join_within(LAST_LINES_WITHIN) {
            tracing::warn!("the last access lines may be missing");
        }
        if !self.writers.1.join_within(LAST_LINES_WITHIN) {
            tracing::warn!("the last spans may be missing");
        }
    }
}

type Outlets = (AccessLog, Option<SpanSink>, (Writer, Exporter));

/// Where access lines and spans go, and the threads that write them.
fn outlets(config: &Config, metrics: &Arc<Metrics>) -> Result<Outlets, StartError> {
    let (log, writer) = AccessLog::start(&config.access_log, Arc::clone(metrics))?;
    let (spans, exporter) = match Spans::start(&config.observe.traces, Arc::clone(metrics))? {
        Some((spans, exporter)) => (Some(Box::new(move |trace| spans.put(trace)) as SpanSink), exporter),
        None => (None, Exporter::none()),
    };
    Ok((log, spans, (writer, exporter)))
}

/// Waits until the gate is ready; an error says what is still missing when the time is over.
fn wait_until_ready(readiness: &Readiness, within: Duration) -> Result<(), StartError> {
    let until = now().after(within);
    while let Some(missing) = readiness.missing() {
        if now() > until {
            return Err(StartError::System(io::Error::other(format!("not ready in time: {missing}"))));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The sockets under the names by which a process that takes over knows them.
fn handed(bound: &[Bound], admin: &TcpListener) -> io::Result<Vec<(&'static str, TcpListener)>> {
    let names = ["listen", "h2c"];
    let mut sockets: Vec<_> =
        names.into_iter().zip(bound).map(|(name, bound)| Ok((name, bound.socket()?))).collect::<io::Result<_>>()?;
    sockets.push(("admin", admin.try_clone()?));
    Ok(sockets)
}

fn bind(
    config: &Config,
    listeners: &Listeners,
    mut inherited: Inherited,
) -> Result<(Vec<Bound>, TcpListener), StartError> {
    let listen = &config.listen;
    let mut on = |name, addr| {
        let socket = inherited.claim(name, addr).map_or_else(|| TcpListener::bind(addr), Ok);
        socket.map_err(|error| StartError::Listen { addr, error })
    };
    let mut bound = vec![Bound::on(on("listen", listen.addr)?, false)?.with_tls(listeners.clients.clone())];
    if let Some(addr) = listen.h2c_addr {
        bound.push(Bound::on(on("h2c", addr)?, true)?);
    }
    let admin = on("admin", config.admin.addr)?;
    inherited.close_rest();
    Ok((bound, admin))
}

fn workers(config: &Config) -> usize {
    config.listen.threads.map_or_else(workers_default, usize::from)
}

fn admin_state(gate: &Arc<Gate>, readiness: &Arc<Readiness>, config: &Config, roster: &Arc<Roster>) -> AdminState {
    let (seen, asked) = (Arc::clone(gate), Arc::clone(gate));
    let (origins, changed) = (Arc::clone(roster), Arc::clone(roster));
    AdminState {
        table: Arc::clone(&gate.table),
        metrics: Arc::clone(&gate.metrics),
        explain: Arc::clone(&gate.explain),
        readiness: Arc::clone(readiness),
        safe_mode: Arc::clone(&gate.safe_mode),
        refresh: Box::new(move |metrics| {
            let stats = seen.index.stats();
            metrics.index_blocks.set(stats.blocks as u64);
            metrics.index_bytes.set(stats.bytes as u64);
            metrics.absent.store(Arc::new(seen.absent.census()));
            metrics.queues.store(Arc::new(queues(&seen)));
            metrics.sessions.store(Arc::new(sessions(&seen)));
        }),
        replay: Box::new(move |id, policy| {
            let names: Vec<_> = policy_names().collect();
            let profile = policy_of(policy).ok_or_else(|| names.join(", "))?;
            Ok(asked.explained_by(id, policy, &profile))
        }),
        origins: Box::new(move || origins.publisher().origins()),
        roster: Box::new(move |change| change_pods(&changed, change)),
        now: now as fn() -> Mono,
        changes_from: config.admin.changes_from,
        hosts: config.admin.hosts.clone(),
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// Does with a pod what an operator wants.
fn change_pods(roster: &Roster, change: PodChange<'_>) -> Result<(), (u16, String)> {
    let done = match change {
        PodChange::Add(json) => roster.add(json).map(|url| tracing::info!(url, "pod added by an operator")),
        PodChange::Remove(pod) => roster.remove(pod),
        PodChange::Drain(pod, is_drained) => {
            roster.drain(pod, is_drained);
            Ok(())
        }
    };
    done.map_err(|problem| (if matches!(problem, RosterProblem::Bad(_)) { 400 } else { 409 }, problem.to_string()))
}

/// Sessions, by model: those without series of their own together.
fn sessions(gate: &Gate) -> Vec<SessionSeries> {
    let mut all: BTreeMap<ModelName, SessionSeries> = BTreeMap::new();
    for (model, census) in gate.lobby.census() {
        let model = gate.metrics.model(&model).name.clone();
        let empty = SessionSeries { model: model.clone(), active: 0, waiting: 0, tokens: 0, room: None };
        let line = all.entry(model).or_insert(empty);
        line.active += census.active;
        line.waiting += census.waiting;
        line.tokens += census.tokens;
        line.room = line.room.into_iter().chain(census.room).reduce(|sum, room| sum + room);
    }
    all.into_values().collect()
}

/// What waits, by model: those without series of their own together.
fn queues(gate: &Gate) -> Vec<QueueSeries> {
    let mut all: Vec<QueueSeries> = Vec::new();
    for (pool, class, backlog) in gate.waitroom.backlogs() {
        let model = gate.metrics.model(&pool.model).name.clone();
        let (role, class) = (if pool.is_prefill { "prefill" } else { "decode" }, class.as_str());
        let known = all.iter_mut().find(|line| line.model == model && line.role == role && line.class == class);
        if let Some(line) = known {
            line.requests += backlog.requests;
            line.body_bytes += backlog.body_bytes;
            line.cost_s += backlog.cost_s;
            line.oldest_s = line.oldest_s.max(backlog.oldest_s);
            line.backlog_s = line.backlog_s.max(backlog.wait_s);
            continue;
        }
        all.push(QueueSeries {
            model,
            role,
            class,
            requests: backlog.requests,
            body_bytes: backlog.body_bytes,
            cost_s: backlog.cost_s,
            oldest_s: backlog.oldest_s,
            backlog_s: backlog.wait_s,
        });
    }
    all.sort_by(|a, b| (&a.model, a.role, a.class).cmp(&(&b.model, b.role, b.class)));
    all
}
