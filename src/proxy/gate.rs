//! The gate as Pingora's HTTP server sees it: one call per request on a connection.
//!
//! Reads the head under an absolute deadline, runs the exchange so that a panic costs that request only, and hands the
//! connection back for the next one.
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::task::Poll;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use parking_lot::Mutex;
use pingora::ErrorType;
use pingora::apps::{HttpPersistentSettings, HttpServerApp, HttpServerOptions, ReusedHttpStream};
use pingora::protocols::http::ServerSession;
use pingora::protocols::http::v2::server::{H2Options, default_h2_options};
use pingora::server::ShutdownWatch;
use tokio::sync::watch;

use super::absent::Absent;
use super::affinity::Affinity;
use super::client::{Client, Stop};
use super::exchange::Exchange;
use super::guard::{Conn, conn_of};
use super::guards::Guards;
use super::identity::is_tenant;
use super::lobby::Lobby;
use super::memory::{Memory, Stage};
use super::quota::Quotas;
use super::reply::Fault;
use super::routing::Routing;
use super::rules::Rules;
use super::shown::Shown;
use super::waitroom::Waitroom;
use crate::disagg::{Balances, Pairs};
use crate::observe::{AccessRecord, ExplainRing, Metrics, Secret, TraceRecord};
use crate::pods::{Pod, Shut, Table};
use crate::prefix::{Index, SaltKey};
use crate::runtime::now;
use crate::scheduling::{Latency, Peers, Profile};
use crate::tls::Connectors;

/// Idle time of a connection while memory is short.
const IDLE_WHEN_SHORT: Duration = Duration::from_secs(5);
const H2_IDLE: Duration = Duration::from_mins(5);
/// Bytes of answers that wait in one HTTP/2 stream for its client; h2 would keep 400 KiB.
const H2_STREAM_BYTES_MAX: usize = 64 << 10;

/// Where a request is; the hook of fault tests is called with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Head read.
    Head,
    /// Body read.
    Body,
    /// Before the pod is chosen.
    Plan,
    /// Waiting for room on a pod.
    Queue,
    /// Pod chosen, nothing sent.
    Dispatch,
    /// Before the first byte goes to the client.
    Commit,
    /// After it.
    Stream,
    /// After the answer.
    Settle,
}

impl Phase {
    /// Value of the `phase` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Body => "body",
            Self::Plan => "plan",
            Self::Queue => "queue",
            Self::Dispatch => "dispatch",
            Self::Commit => "commit",
            Self::Stream => "stream",
            Self::Settle => "settle",
        }
    }
}

/// Called at each phase of each request; a test may panic in it.
pub type Hook = Box<dyn Fn(Phase) + Send + Sync>;

/// Where the spans of a traced request go.
pub type SpanSink = Box<dyn Fn(TraceRecord) + Send + Sync>;

/// All that the data path works with.
pub struct Gate {
    /// The pods.
    pub table: Arc<Table>,
    /// Which pod has which prefix.
    pub index: Arc<Index>,
    /// How long an engine step takes.
    pub latency: Latency,
    /// What is known of other gates.
    pub peers: Peers,
    /// What is known of pods in pairs.
    pub pairs: Pairs,
    /// What missed promises say of the choice between one pod and two.
    pub balances: Balances,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Last decisions.
    pub explain: Arc<ExplainRing>,
    /// Least in flight, no index.
    pub safe_mode: Arc<AtomicBool>,
    /// Takes access lines.
    pub log: Box<dyn Fn(&AccessRecord<'_>) + Send + Sync>,
    /// Takes the spans of requests; `None`: none are recorded.
    pub spans: Option<SpanSink>,
    /// Which pod made which response.
    pub(super) affinity: Affinity,
    /// Bounds, budgets and guards of flow.
    pub guards: Arc<Guards>,
    /// Whose sessions are active.
    pub lobby: Lobby,
    /// Who waits for the first pod of a model.
    pub absent: Absent,
    /// Who waits for room on a pod.
    pub waitroom: Waitroom,
    /// What tenants with limits use.
    pub quotas: Arc<Quotas>,
    /// Secret of prefix hashes.
    pub prefix_secret: u64,
    /// Secret of tenants' salts.
    pub salt_key: SaltKey,
    /// How short memory is.
    pub memory: Memory,
    /// Connects to pods.
    pub pod_tls: Arc<Connectors>,
    /// Fault injection.
    pub hook: Option<Hook>,
    rules: ArcSwap<Rules>,
    routing: ArcSwap<Routing>,
    credential: Mutex<Option<Arc<Secret>>>,
    drawn: AtomicU64,
    cutoff: watch::Sender<bool>,
    closing: watch::Sender<bool>,
}

/// Parts of a [`Gate`].
pub struct Parts {
    /// See [`Gate::table`].
    pub table: Arc<Table>,
    /// See [`Gate::index`].
    pub index: Arc<Index>,
    /// See [`Gate::metrics`].
    pub metrics: Arc<Metrics>,
    /// See [`Gate::explain`].
    pub explain: Arc<ExplainRing>,
    /// See [`Gate::safe_mode`].
    pub safe_mode: Arc<AtomicBool>,
    /// See [`Gate::log`].
    pub log: Box<dyn Fn(&AccessRecord<'_>) + Send + Sync>,
    /// See [`Gate::spans`].
    pub spans: Option<SpanSink>,
    /// See [`Gate::hook`].
    pub hook: Option<Hook>,
    /// How requests are placed.
    pub routing: Routing,
    /// What the data path goes by.
    pub rules: Rules,
    /// Seed of request ids and tie-breaks. Must be unpredictable in production.
    pub seed: u64,
    /// See [`Gate::prefix_secret`].
    pub prefix_secret: u64,
    /// See [`Gate::salt_key`].
    pub salt_key: SaltKey,
}

impl Gate {
    /// An answer broke on a pod. One that is being deleted should let them end: that is told, once for each.
    pub fn cut(&self, pod: &Pod) {
        if !pod.load.shuts.has(Shut::Terminating) {
            return;
        }
        self.metrics.pod_events.inc("cut_while_terminating");
        if !pod.load.was_told_to_cut.swap(true, Relaxed) {
            tracing::warn!(
                pod = %pod.id,
                labels = ?pod.spec.labels,
                "a pod that is being deleted broke answers off; start vLLM with --shutdown-timeout (0 by default) and give the pod a \
                 terminationGracePeriodSeconds above it"
            );
        }
    }

    /// Puts the parts together.
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { table, index, metrics, explain, safe_mode, log, spans, hook, .. } = parts;
        let Parts { routing, rules, seed, prefix_secret, salt_key, .. } = parts;
        metrics.tenants.name(rules.tenants.names());
        let pod_tls = Arc::new(Connectors::new(Arc::clone(&metrics)));
        Arc::new(Self {
            table,
            index,
            latency: Latency::default(),
            peers: Peers::default(),
            pairs: Pairs::default(),
            balances: Balances::default(),
            metrics,
            explain,
            safe_mode,
            log,
            spans,
            affinity: Affinity::default(),
            guards: Arc::new(Guards::new(&rules)),
            lobby: Lobby::new(&rules),
            absent: Absent::default(),
            waitroom: Waitroom::new(&rules),
            quotas: Arc::default(),
            prefix_secret,
            salt_key,
            memory: Memory::default(),
            pod_tls,
            hook,
            rules: ArcSwap::from_pointee(rules),
            routing: ArcSwap::from_pointee(routing),
            credential: Mutex::new(None),
            drawn: AtomicU64::new(seed),
            cutoff: watch::Sender::new(false),
            closing: watch::Sender::new(false),
        })
    }

    /// The rules now.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// Switches safe mode on or off.
    pub fn set_safe_mode(&self, is_on: bool) {
        self.safe_mode.store(is_on, Relaxed);
        self.metrics.safe_mode.set(u64::from(is_on));
    }

    /// Replaces the rules for requests that come.
    pub fn set_rules(&self, rules: Rules) {
        self.guards.configure(&rules);
        self.lobby.configure(&rules);
        self.waitroom.configure(&rules);
        self.metrics.tenants.name(rules.tenants.names());
        self.quotas.keep(|tenant| is_tenant(&rules, tenant));
        self.rules.store(Arc::new(rules));
    }

    /// How requests are placed now.
    pub fn routing(&self) -> Arc<Routing> {
        self.routing.load_full()
    }

    /// Replaces how requests that come are placed.
    pub fn set_routing(&self, routing: Routing) {
        self.routing.store(Arc::new(routing));
    }

    /// What `profile` would have chosen for a recent request, as JSON; `None` if the request is not known any more.
    pub fn explained_by(&self, id: &str, policy: &str, profile: &Profile) -> Option<String> {
        let source = self.explain.source(id)?;
        Some(source.as_any()?.downcast_ref::<Shown>()?.by(policy, profile))
    }

    /// The credential for pods, if one is configured.
    pub fn credential(&self) -> Option<Arc<Secret>> {
        self.credential.lock().clone()
    }

    /// Sets or clears the credential for pods.
    pub fn set_credential(&self, credential: Option<Secret>) {
        *self.credential.lock() = credential.map(Arc::new);
    }

    /// A seed that was not given before.
    pub fn draw(&self) -> u64 {
        crate::base::Rng::new(self.drawn.fetch_add(0x9E37_79B9_7F4A_7C15, Relaxed)).bits()
    }

    /// Closes connections that wait for a next request.
    pub fn close_idle(&self) {
        self.closing.send_replace(true);
    }

    /// Ends what still runs: streams with an error event, the rest with a refusal or a cut.
    pub fn cut_off(&self) {
        self.cutoff.send_replace(true);
    }

    /// Tells a fault test where a request is.
    pub fn at(&self, phase: Phase) {
        if let Some(hook) = &self.hook {
            hook(phase);
        }
    }
}

/// The gate on one kind of listener.
#[derive(Clone)]
pub struct GateApp {
    /// What is shared by all listeners and workers.
    pub gate: Arc<Gate>,
    options: HttpServerOptions,
}

impl GateApp {
    /// The gate on an HTTP/1.1 listener.
    pub fn new(gate: Arc<Gate>) -> Self {
        let mut options = HttpServerOptions::default();
        options.h2_idle_timeout = Some(H2_IDLE);
        Self { gate, options }
    }

    /// The same for connections that begin with the HTTP/2 preface.
    #[must_use]
    pub fn with_h2c(mut self) -> Self {
        self.options.h2c = true;
        self
    }
}

#[async_trait]
impl HttpServerApp for GateApp {
    async fn process_new_http(
        self: &Arc<Self>,
        mut session: ServerSession,
        shutdown: &ShutdownWatch,
    ) -> Option<ReusedHttpStream> {
        let conn = conn_of(&session)?;
        let rules = self.gate.rules();
        let stop = Stop { leaving: shutdown.clone(), cutoff: self.gate.cutoff.subscribe() };
        let is_short = self.gate.memory.stage() >= Stage::CloseIdle;
        match read_head(&mut session, &conn, &rules, is_short, (shutdown, self.gate.closing.subscribe())).await {
            Ok(true) => {}
            Ok(false) => return None,
            Err(fault) => {
                let client = Client::new(session, conn, rules.write_timeout, stop);
                Exchange::refuse_head(&self.gate, client, fault).await;
                return None;
            }
        }
        let client = Client::new(session, Arc::clone(&conn), rules.write_timeout, stop);
        let mut exchange = Exchange::new(Arc::clone(&self.gate), rules, client);
        // Boxed: a connection that waits for its next request does not hold the room of one.
        if catch(Box::pin(exchange.run())).await.is_err() {
            exchange.panicked().await;
        }
        let client = exchange.finish();
        if !client.is_ended() || client.is_cut() {
            return None;
        }
        let session = client.into_session();
        let persistent = HttpPersistentSettings::for_session(&session);
        // What is left of the body is passed over first: it is no head.
        let reusable = session.finish().await.ok().flatten()?;
        conn.expect_head();
        Some(ReusedHttpStream::from_reusable_stream(reusable, persistent))
    }

    fn h2_options(&self) -> Option<H2Options> {
        let mut options = default_h2_options();
        options.max_send_buffer_size(H2_STREAM_BYTES_MAX);
        Some(options)
    }

    fn server_options(&self) -> Option<&HttpServerOptions> {
        Some(&self.options)
    }
}

/// Reads a head. `Ok(false)`: the connection ended or was idle too long, nothing to answer.
async fn read_head(
    session: &mut ServerSession,
    conn: &Conn,
    rules: &Rules,
    is_memory_short: bool,
    (shutdown, mut closing): (&ShutdownWatch, watch::Receiver<bool>),
) -> Result<bool, Fault> {
    if session.is_http2() {
        return Ok(true);
    }
    let is_reused = conn.is_reused();
    let idle_max = match (is_reused, is_memory_short) {
        (true, false) => rules.idle_timeout,
        (true, true) => rules.idle_timeout.min(IDLE_WHEN_SHORT),
        (false, _) => rules.head_timeout,
    };
    if !*shutdown.borrow() {
        session.set_keepalive(Some(idle_max.as_secs().max(1)));
    }
    let waits_from = now();
    let read = {
        let mut read = pin!(session.read_request());
        // A head cannot be late before this first rings, whenever it started; then the rest of its time is known.
        let mut alarm = pin!(tokio::time::sleep(rules.head_timeout.min(idle_max)));
        loop {
            tokio::select! {
                biased;
                read = &mut read => break read,
                () = &mut alarm => {
                    let (until, late) = match conn.head_started() {
                        Some(started) => (started.after(rules.head_timeout), Err(Fault::HeadTimeout)),
                        None => (waits_from.after(idle_max), Ok(false)),
                    };
                    let left = until.since(now());
                    if left.is_zero() {
                        return late;
                    }
                    alarm.set(tokio::time::sleep(left.min(rules.head_timeout)));
                }
                // While the gate leaves, idle connections stay: a request may be on its way, and its answer closes them. At the
                // end of that time they are not waited for; only one that was just made is.
                _ = closing.wait_for(|closes| *closes), if is_reused && conn.head_started().is_none() => return Ok(false),
            }
        }
    };
    if let Some(violation) = conn.violation() {
        return Err(Fault::Lint(violation));
    }
    match read {
        // Pingora's own timer may ring before ours.
        Ok(false) if conn.head_started().is_some() => Err(Fault::HeadTimeout),
        Ok(has_request) => Ok(has_request),
        Err(error) if *error.etype() == ErrorType::InvalidHTTPHeader => Err(Fault::BadHttp),
        Err(_) => Ok(false),
    }
}

/// Runs a future; a panic in it becomes an error.
async fn catch<F: Future>(mut future: Pin<Box<F>>) -> Result<F::Output, ()> {
    std::future::poll_fn(move |cx| match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
        Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
        Ok(Poll::Pending) => Poll::Pending,
        Err(_) => Poll::Ready(Err(())),
    })
    .await
}
