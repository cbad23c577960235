//! Own accept path: worker threads that accept, cap and guard connections and hand them to Pingora's HTTP server.
//!
//! Each worker is one thread with its own runtime and its own share of the listening sockets, so a connection, its pods'
//! sockets and its timers stay on one thread. Accepting ourselves gives what Pingora's listener has not: a cap, an
//! absolute head deadline, a lint of the raw head, and a drain that can keep accepting for a while.
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pingora::services::listening::Service;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::gate::GateApp;
use super::guard::GuardedStream;
use super::{sockets, upstream};
use crate::base::Mono;
use crate::runtime::{now, spawn_connection, supervise};
use crate::tls::{ClientStream, Server};

/// HTTP/2 connection preface (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Pause after an accept that failed, descriptors being the usual reason.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);

/// What the listening sockets should do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Accept and serve.
    Open,
    /// Accept and serve, one request per connection: the gate is about to stop.
    Leaving,
    /// Accept no more; what runs may finish.
    Closed,
}

/// What is spoken on a socket.
#[derive(Clone, Debug)]
enum Spoken {
    Http1,
    /// HTTP/2 without TLS, and HTTP/1.1.
    H2c,
    /// Either, as agreed on in the handshake.
    Tls(Arc<Server>),
}

/// A bound socket and what is spoken on it.
#[derive(Debug)]
pub struct Bound {
    socket: StdListener,
    spoken: Spoken,
}

impl Bound {
    /// Binds `addr`. With `is_h2c`, HTTP/2 without TLS is spoken beside HTTP/1.1.
    pub fn bind(addr: SocketAddr, is_h2c: bool) -> io::Result<Self> {
        Self::on(StdListener::bind(addr)?, is_h2c)
    }

    /// Takes a socket that listens already.
    pub fn on(socket: StdListener, is_h2c: bool) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        Ok(Self { socket, spoken: if is_h2c { Spoken::H2c } else { Spoken::Http1 } })
    }

    /// The same inside TLS, if there is any: HTTP/1.1 and HTTP/2.
    #[must_use]
    pub fn with_tls(self, tls: Option<Arc<Server>>) -> Self {
        Self { spoken: tls.map_or(self.spoken, Spoken::Tls), ..self }
    }

    /// The socket, to be handed to a process that takes over.
    pub fn socket(&self) -> io::Result<StdListener> {
        self.socket.try_clone()
    }

    /// Where it listens.
    pub fn addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

/// The running workers.
#[derive(Debug)]
pub struct Workers {
    threads: Vec<JoinHandle<()>>,
    phase: watch::Sender<Phase>,
    shutdown: watch::Sender<bool>,
    beats: Arc<[AtomicU64]>,
}

/// Starts `count` workers that serve `app` on all of `bound`.
pub fn start(count: usize, bound: &[Bound], app: &GateApp) -> io::Result<Workers> {
    let (phase, _) = watch::channel(Phase::Open);
    let (shutdown, _) = watch::channel(false);
    let mut threads = Vec::with_capacity(count);
    let beats: Arc<[AtomicU64]> = (0..count.max(1)).map(|_| AtomicU64::new(now().0)).collect();
    for number in 0..count.max(1) {
        let sockets = bound
            .iter()
            .map(|bound| Ok((bound.socket.try_clone()?, bound.spoken.clone())))
            .collect::<io::Result<Vec<_>>>()?;
        let worker = Worker {
            app: Arc::new(app.clone()),
            h2_app: Arc::new(app.clone().with_h2c()),
            phase: phase.subscribe(),
            shutdown: shutdown.subscribe(),
            open: Arc::new(AtomicUsize::new(0)),
            number,
            beats: Arc::clone(&beats),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name = format!("gate-{number}");
        threads.push(std::thread::Builder::new().name(name).spawn(move || runtime.block_on(worker.run(sockets)))?);
    }
    Ok(Workers { threads, phase, shutdown, beats })
}

impl Workers {
    /// Announces the end: answers close their connections, HTTP/2 clients are told to go; accepting goes on.
    pub fn leave(&self) {
        self.phase.send_replace(Phase::Leaving);
        self.shutdown.send_replace(true);
    }

    /// Accepts no more. Workers end when their last connection has.
    pub fn close(&self) {
        self.phase.send_replace(Phase::Closed);
        self.shutdown.send_replace(true);
    }

    /// Whether no worker that runs was silent for longer than `silent_max`. May be asked from any thread, at any time.
    pub fn pulse(&self, silent_max: Duration) -> impl Fn() -> bool + Send + use<> {
        let beats = Arc::clone(&self.beats);
        move || beats.iter().all(|beat| now().since(Mono(beat.load(SeqCst))) <= silent_max)
    }

    /// Whether all workers have ended.
    pub fn is_ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

/// One thread's view.
#[derive(Clone)]
struct Worker {
    app: Arc<GateApp>,
    h2_app: Arc<GateApp>,
    phase: watch::Receiver<Phase>,
    shutdown: watch::Receiver<bool>,
    open: Arc<AtomicUsize>,
    number: usize,
    beats: Arc<[AtomicU64]>,
}

impl Worker {
    async fn run(mut self, sockets: Vec<(StdListener, Spoken)>) {
        let mut tasks = Vec::new();
        for (socket, spoken) in sockets {
            match TcpListener::from_std(socket) {
                Ok(listener) => tasks.push(supervise("accept", self.clone().accept(listener, spoken))),
                Err(error) => tracing::error!(%error, "cannot listen"),
            }
        }
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        loop {
            let is_closed = tokio::select! {
                _ = sweep.tick() => {
                    upstream::sweep(now());
                    false
                }
                closed = self.phase.wait_for(|phase| *phase == Phase::Closed) => {
                    drop(closed);
                    true
                }
            };
            self.beat(now());
            if is_closed {
                for task in tasks {
                    task.ended().await;
                }
                while self.open.load(SeqCst) > 0 {
                    self.beat(now());
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                // One that has ended is not waited for.
                return self.beat(Mono(u64::MAX));
            }
        }
    }

    fn beat(&self, at: Mono) {
        if let Some(beat) = self.beats.get(self.number) {
            beat.store(at.0, SeqCst);
        }
    }

    async fn accept(mut self, listener: TcpListener, spoken: Spoken) {
        loop {
            let is_closed = *self.phase.borrow() == Phase::Closed;
            let accepted = tokio::select! {
                biased;
                accepted = listener.accept() => accepted,
                // Those who connected before the end are in the queue of the socket and are still served.
                () = std::future::ready(()), if is_closed => return,
                _ = self.phase.changed() => continue,
            };
            match accepted {
                Ok((io, peer)) => self.take(io, peer, &spoken),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    }

    fn take(&self, io: TcpStream, peer: SocketAddr, spoken: &Spoken) {
        let gate = &self.app.gate;
        if gate.metrics.connections.value() >= gate.rules().connections_max {
            gate.metrics.refused.inc("connections");
            return;
        }
        let held = gate.metrics.connections.hold(1);
        let open = Open::new(&self.open);
        let (worker, spoken) = (self.clone(), spoken.clone());
        spawn_connection(async move {
            let (_held, _open) = (held, open);
            if let Err(error) = worker.serve(io, peer, spoken).await {
                tracing::debug!(%error, "connection ended before its first request");
            }
        });
    }

    async fn serve(self, io: TcpStream, peer: SocketAddr, spoken: Spoken) -> io::Result<()> {
        let rules = self.app.gate.rules();
        sockets::tend(&io, rules.write_timeout)?;
        let (mut io, may_h2, certificate) = match spoken {
            Spoken::Http1 => (ClientStream::Plain(io), false, None),
            Spoken::H2c => (ClientStream::Plain(io), true, None),
            Spoken::Tls(server) => {
                // Boxed: only connections with TLS, and only until they are there, hold the room of a handshake.
                let accepted = Box::pin(server.accept(io)).await?;
                (accepted.io, accepted.is_h2, accepted.peer)
            }
        };
        let ahead = if may_h2 {
            match tokio::time::timeout(rules.head_timeout, sniff(&mut io)).await {
                Ok(ahead) => ahead?,
                Err(_) => return Ok(()),
            }
        } else {
            Bytes::new()
        };
        let is_http2 = ahead.as_ref() == PREFACE;
        let head_max = is_http2.then_some(rules.head_timeout);
        let stream = GuardedStream::new(io, (peer, certificate), ahead, head_max, rules.head, rules.write_timeout)?;
        let app = if is_http2 { self.h2_app } else { self.app };
        Service::<GateApp>::handle_event(Box::new(stream), app, self.shutdown).await;
        Ok(())
    }
}

/// Reads ahead until it is clear whether the HTTP/2 preface is coming. What was read is what the connection begins with.
async fn sniff(io: &mut ClientStream) -> io::Result<Bytes> {
    let mut ahead = BytesMut::with_capacity(PREFACE.len());
    while ahead.len() < PREFACE.len() && PREFACE.starts_with(&ahead) {
        let mut piece = [0; PREFACE.len()];
        let room = piece.get_mut(..PREFACE.len() - ahead.len()).unwrap_or_default();
        match tokio::io::AsyncReadExt::read(io, room).await? {
            0 => break,
            read => ahead.extend_from_slice(piece.get(..read).unwrap_or_default()),
        }
    }
    Ok(ahead.freeze())
}

/// Counts a worker's open connections, panics included.
struct Open(Arc<AtomicUsize>);

impl Open {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}
