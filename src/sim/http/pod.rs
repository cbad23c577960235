//! One simulated pod: its socket, its lives, its script and its log.
//!
//! A life begins at `start` or `restart` and ends at `stop` or a scripted crash: every connection is reset, the port
//! refuses, the engines and their caches are gone. While it is down the pod keeps its port bound without listening, so
//! that nobody else gets it. Log and script outlive lives.
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use super::config::SimConfig;
use super::connection;
use super::faults::{Faults, Plan};
use super::handover::{Leases, SIDE_CHANNEL};
use super::head::Head;
use super::host;
use super::log::{Arrival, Log};
use super::ranks::Ranks;
use super::responses::Store;
use super::script::{Fault, Script};
use super::wire::reset;
use crate::base::Rng;

/// Connections that the kernel may keep waiting.
const BACKLOG: u32 = 4_096;

/// What one life of a pod has: all of it is lost with it.
pub(super) struct Life {
    pub(super) ranks: Ranks,
    pub(super) responses: Store,
    pub(super) leases: Leases,
    /// Name of its engine; another in every life.
    pub(super) engine: String,
    /// Wall clock of its start, since 1970.
    pub(super) started: Duration,
    stop: watch::Sender<bool>,
    /// Tasks of this life that still run: connections and the acceptor.
    tasks: watch::Sender<usize>,
}

/// What connections share.
pub(super) struct Shared {
    pub(super) config: SimConfig,
    pub(super) addr: SocketAddr,
    pub(super) log: Arc<Log>,
    faults: Mutex<Faults>,
    life: ArcSwapOption<Life>,
    requests: AtomicU64,
    connections: AtomicU64,
    ids: Mutex<Rng>,
}

impl Shared {
    /// Number of a new request, from 1.
    pub(super) fn next_request(&self) -> u64 {
        self.requests.fetch_add(1, Relaxed) + 1
    }

    /// Random bits for an id.
    pub(super) fn fresh(&self) -> u64 {
        self.ids.lock().bits()
    }

    /// The fault of a connection just accepted.
    pub(super) fn connection_fault(&self) -> Option<Fault> {
        self.faults.lock().of_connection()
    }

    /// Adds the faults of a request to its plan; see `Faults::of_request`.
    pub(super) fn plan(&self, head: &Head, body: Option<&[u8]>, plan: &mut Plan) {
        if body.is_none()
            && let Some(fault) = head.field("x-sim-fault")
        {
            fault.split(',').filter_map(|one| Fault::parse(one.trim())).for_each(|fault| plan.add(&fault));
        }
        let mut faults = self.faults.lock();
        if !faults.is_empty() {
            faults.of_request(head, body, plan);
        }
    }

    /// Ends the life at once.
    pub(super) fn crash(&self) {
        if let Some(life) = self.life.load().as_ref() {
            life.stop.send_replace(true);
        }
    }
}

/// A simulated vLLM pod on 127.0.0.1. Dropping it stops it.
pub struct SimPod {
    shared: Arc<Shared>,
    addr: SocketAddr,
    /// The bound socket while the pod is down.
    parked: Arc<Mutex<Option<TcpSocket>>>,
}

impl SimPod {
    /// Starts a pod on a free port.
    pub async fn start(config: SimConfig) -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), config).await
    }

    /// Starts a pod on this address.
    pub async fn start_at(addr: SocketAddr, config: SimConfig) -> io::Result<Self> {
        let socket = bind(addr)?;
        let addr = socket.local_addr()?;
        let shared = Arc::new(Shared {
            log: Arc::new(Log::new(config.log_requests_max, config.log_body_bytes_max)),
            faults: Mutex::default(),
            life: ArcSwapOption::empty(),
            requests: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            ids: Mutex::new(Rng::new(u64::from(addr.port()) << 32 | u64::from(std::process::id()))),
            addr,
            config,
        });
        let pod = Self { shared, addr, parked: Arc::new(Mutex::new(Some(socket))) };
        pod.restart().await?;
        Ok(pod)
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://address`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Replaces the script; counts start anew.
    pub fn script(&self, script: impl Into<Script>) {
        *self.shared.faults.lock() = Faults::new(script.into());
    }

    /// Ends its life: resets all connections and refuses new ones. Comes back when that is so.
    pub async fn stop(&self) {
        let Some(life) = self.shared.life.load_full() else { return };
        life.stop.send_replace(true);
        let mut tasks = life.tasks.subscribe();
        // The sender lives in `life`, so this cannot fail.
        drop(tasks.wait_for(|count| *count == 0).await);
    }

    /// Comes back when the pod is down, by `stop` or by a scripted crash.
    pub async fn wait_down(&self) {
        let Some(life) = self.shared.life.load_full() else { return };
        let mut stop = life.stop.subscribe();
        host::raised(&mut stop).await;
        let mut tasks = life.tasks.subscribe();
        drop(tasks.wait_for(|count| *count == 0).await);
    }

    /// Begins a new life on the same port; first ends the present one. Must be called inside a tokio runtime.
    pub async fn restart(&self) -> io::Result<()> {
        self.stop().await;
        let socket = self.parked.lock().take();
        let socket = match socket {
            Some(socket) => socket,
            None => bind(self.addr)?,
        };
        let listener = socket.listen(BACKLOG)?;
        let stop = watch::Sender::new(false);
        let life = Arc::new(Life {
            ranks: Ranks::new(&self.shared.config, &stop),
            responses: Store::new(self.shared.config.responses_max),
            leases: Leases::default(),
            engine: format!("sim-{}-{:08x}", self.addr.port(), self.shared.fresh() as u32),
            started: host::unix(),
            stop,
            tasks: watch::Sender::new(1),
        });
        self.shared.life.store(Some(life.clone()));
        host::spawn("simulated pod", accept(self.shared.clone(), life, listener, self.addr, self.parked.clone()));
        Ok(())
    }

    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.shared.life.load().as_ref().is_some_and(|life| !*life.stop.borrow())
    }

    /// What arrived so far, in order.
    pub fn log(&self) -> Vec<Arrival> {
        self.shared.log.all()
    }

    /// What arrived so far at paths that a gate does not ask for itself (`/metrics`, `/health`, `/version`, `/v1/models`).
    pub fn served(&self) -> Vec<Arrival> {
        let mut all = self.log();
        all.retain(|arrival| {
            let is_probe = matches!(arrival.path.as_str(), "/metrics" | "/health" | "/version" | "/v1/models");
            !(is_probe || arrival.path.starts_with(SIDE_CHANNEL))
        });
        all
    }

    /// Forgets what arrived.
    pub fn clear_log(&self) {
        self.shared.log.clear();
    }

    /// Comes back when `is_met` holds for the log, with the log. Put a timeout around it.
    pub async fn wait_for(&self, is_met: impl Fn(&[Arrival]) -> bool) -> Vec<Arrival> {
        self.shared.log.wait_for(is_met).await
    }

    /// Sequences in flight now, streams still being written included.
    pub fn running(&self) -> u64 {
        self.shared.life.load().as_ref().map_or(0, |life| life.ranks.in_flight())
    }

    /// Leases on its KV blocks that are out now.
    pub fn leases(&self) -> usize {
        self.shared.life.load().as_ref().map_or(0, |life| life.leases.open())
    }

    /// Leases that ran out in this life, and decoders that came after that.
    pub fn leases_ended(&self) -> (u64, u64) {
        self.shared.life.load().as_ref().map_or((0, 0), |life| life.leases.counts())
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        let acceptor = usize::from(self.is_up());
        self.shared.life.load().as_ref().map_or(0, |life| life.tasks.borrow().saturating_sub(acceptor))
    }

    /// Connections accepted since the start, over all lives.
    pub fn connections_accepted(&self) -> u64 {
        self.shared.connections.load(Relaxed)
    }

    /// Its settings.
    pub fn config(&self) -> &SimConfig {
        &self.shared.config
    }
}

impl Drop for SimPod {
    fn drop(&mut self) {
        self.shared.crash();
    }
}

fn bind(addr: SocketAddr) -> io::Result<TcpSocket> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    Ok(socket)
}

/// Counts a task of a life while it runs.
struct Task(Arc<Life>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.tasks.send_modify(|count| *count -= 1);
    }
}

/// Accepts connections until the life ends.
async fn accept(
    shared: Arc<Shared>,
    life: Arc<Life>,
    listener: TcpListener,
    addr: SocketAddr,
    parked: Arc<Mutex<Option<TcpSocket>>>,
) {
    let task = Task(life.clone());
    let mut stop = life.stop.subscribe();
    loop {
        tokio::select! {
            biased;
            () = host::raised(&mut stop) => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    life.tasks.send_modify(|count| *count += 1);
                    let number = shared.connections.fetch_add(1, Relaxed) + 1;
                    host::spawn("simulated connection", connect(shared.clone(), Task(life.clone()), stream, number));
                }
                // Out of descriptors: those who wait must wait longer.
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            },
        }
    }
    drop(listener);
    // Connections in the backlog were reset by the drop. Keep the port from others.
    *parked.lock() = bind(addr).ok();
    drop(task);
}

/// One connection, until it ends or its life does.
async fn connect(shared: Arc<Shared>, task: Task, stream: TcpStream, number: u64) {
    let life = task.0.clone();
    let mut stop = life.stop.subscribe();
    // Without it faults that split writes would be joined again; a socket that refuses is closing anyway.
    drop(stream.set_nodelay(true));
    tokio::select! {
        biased;
        () = host::raised(&mut stop) => reset(&stream),
        () = connection::serve(&shared, &life, &stream, number) => {}
    }
    drop(stream);
    drop(task);
}
