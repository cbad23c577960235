//! Serves the admin pages on a thread and an event loop of their own.
//!
//! At most [`CONNECTIONS_MAX`] connections; one more is closed at once and counted. A request, with its wait on a kept-open
//! connection, has five seconds; writing an answer too.
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use super::answer::{AdminState, Answer, answer};
use super::board::Board;
use super::http::{self, BadRequest, Request};
use super::{dashboard, feed, hosts};
use crate::runtime::supervise;
use crate::tls::{ClientStream, Server};

/// Most connections at once.
pub const CONNECTIONS_MAX: usize = 64;

/// Longest time for one request, and for writing one answer.
const REQUEST_TIME: Duration = Duration::from_secs(5);

/// Pause after a failed accept (descriptors run out), so that the loop does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The running admin listener. Dropping it lets it run on; [`Admin::stop`] ends it.
#[derive(Debug)]
pub struct Admin {
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: JoinHandle<()>,
}

impl Admin {
    /// Where it listens.
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Ends the listener and its connections; who listens on the same socket in another process goes on.
    pub fn close(&mut self) {
        drop(self.stop.take());
    }

    /// Ends the listener and its connections, and waits for the thread.
    pub fn stop(mut self) {
        drop(self.stop.take());
        if self.thread.join().is_err() {
            tracing::error!("admin thread panicked");
        }
    }
}

/// Starts the admin listener on an already bound socket.
pub fn spawn_thread(listener: StdListener, tls: Option<Arc<Server>>, state: Arc<AdminState>) -> io::Result<Admin> {
    listener.set_nonblocking(true)?;
    let addr = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (stop, stopped) = oneshot::channel::<()>();
    let thread = std::thread::Builder::new().name("admin".into()).spawn(move || {
        runtime.block_on(async {
            match TcpListener::from_std(listener) {
                Ok(listener) => tokio::select! {
                    () = accept(listener, tls, state) => {}
                    _ = stopped => {}
                },
                Err(error) => tracing::error!(%error, "admin listener cannot be used"),
            }
        });
    })?;
    Ok(Admin { addr, stop: Some(stop), thread })
}

async fn accept(listener: TcpListener, tls: Option<Arc<Server>>, state: Arc<AdminState>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let board = Arc::new(Board::new());
    let (looking, looked_at) = (Arc::clone(&board), Arc::clone(&state));
    let _look = supervise("dashboard", async move { looking.run(&looked_at).await });
    loop {
        let Ok((socket, peer)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else {
            state.metrics.refused.inc("admin_connections");
            continue;
        };
        let (state, board, tls) = (Arc::clone(&state), Arc::clone(&board), tls.clone());
        supervise("admin connection", async move {
            match tls {
                None => serve(ClientStream::Plain(socket), peer.ip(), &state, &board).await,
                Some(tls) => {
                    if let Ok(accepted) = tls.accept(socket).await {
                        serve(accepted.io, peer.ip(), &state, &board).await;
                    }
                }
            }
            drop(permit);
        })
        .detach();
    }
}

async fn serve(mut socket: ClientStream, peer: IpAddr, state: &AdminState, board: &Board) {
    let mut buffer = Vec::new();
    loop {
        let (reply, keep_alive, has_body) = match timeout(REQUEST_TIME, http::read(&mut socket, &mut buffer)).await {
            Ok(Ok(request)) => {
                let mut reply = reply_to(state, peer, &request);
                if reply.content_type == dashboard::EVENT_STREAM {
                    if let Some(viewer) = board.join() {
                        return feed::serve(&mut socket, &events_head(), viewer, board, state).await;
                    }
                    reply = Answer::text(503, "as many viewers as there may be are looking at it");
                }
                (reply, request.keep_alive, request.method != "HEAD")
            }
            Ok(Err(BadRequest::Refused(status, text))) => (Answer::text(status, text), false, true),
            Ok(Err(BadRequest::Closed)) => return,
            Err(_late) if buffer.is_empty() => return,
            Err(_late) => (Answer::text(408, "request took too long"), false, true),
        };
        let bytes = encode(&reply, keep_alive, has_body);
        let is_written = matches!(timeout(REQUEST_TIME, send(&mut socket, &bytes)).await, Ok(Ok(())));
        if !is_written || !keep_alive {
            return;
        }
    }
}

async fn send(socket: &mut ClientStream, bytes: &[u8]) -> io::Result<()> {
    socket.write_all(bytes).await?;
    socket.flush().await
}

/// The answer to one request. That to who wants the dashboard's events is empty, but of their type.
fn reply_to(state: &AdminState, peer: IpAddr, request: &Request) -> Answer {
    let is_browser = request.has_origin || request.has_language;
    if is_browser && !hosts::is_own(request.host.as_deref(), &state.hosts) {
        return Answer::text(421, "browsers are answered under an address or a name of admin.hosts only");
    }
    if matches!(&*request.method, "GET" | "HEAD")
        && let Some(reply) = dashboard::reply(&request.path, request.wants_html, request.method == "GET")
    {
        return reply;
    }
    answer(state, peer, &request.method, &request.path, &request.body, request.has_origin)
}

/// Head of the dashboard's events: without a length, they end with the connection.
fn events_head() -> Vec<u8> {
    let (kind, policy) = (dashboard::EVENT_STREAM, dashboard::POLICY);
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nCache-Control: no-store\r\nX-Content-Type-Options: nosniff\r\n{policy}\
         Connection: close\r\n\r\n"
    )
    .into_bytes()
}

fn encode(reply: &Answer, keep_alive: bool, has_body: bool) -> Vec<u8> {
    let allow = reply.allow.map(|methods| format!("Allow: {methods}\r\n")).unwrap_or_default();
    let connection = if keep_alive { "" } else { "Connection: close\r\n" };
    let mut text = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
         X-Content-Type-Options: nosniff\r\n{}{allow}{connection}\r\n",
        reply.status,
        http::reason(reply.status),
        reply.content_type,
        reply.body.len(),
        dashboard::POLICY,
    );
    if has_body {
        text.push_str(&reply.body);
    }
    text.into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::io::{Read, Write};
    use std::net::TcpStream as StdStream;

    use super::*;

    fn start() -> Admin {
        let listener = StdListener::bind("127.0.0.1:0").unwrap();
        spawn_thread(listener, None, Arc::new(super::super::answer::tests::state())).unwrap()
    }

    fn exchange(admin: &Admin, raw: &str) -> String {
        let mut socket = StdStream::connect(admin.addr()).unwrap();
        socket.write_all(raw.as_bytes()).unwrap();
        let mut reply = String::new();
        socket.read_to_string(&mut reply).unwrap();
        reply
    }

    #[test]
    fn answers_over_a_socket_and_keeps_it_open() {
        let admin = start();
        let reply = exchange(
            &admin,
            "GET /healthz HTTP/1.1\r\n\r\nHEAD /metrics HTTP/1.1\r\n\r\nGET /no HTTP/1.1\r\nConnection: close\r\n\r\n",
        );
        let statuses: Vec<_> = reply.lines().filter(|line| line.starts_with("HTTP/1.1")).collect();
        assert_eq!(statuses, ["HTTP/1.1 200 OK", "HTTP/1.1 200 OK", "HTTP/1.1 404 Not Found"]);
        assert!(!reply.contains("# HELP"), "HEAD has no body");
        assert!(exchange(&admin, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        admin.stop();
    }

    #[test]
    fn connections_are_capped() {
        let admin = start();
        let mut open = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            let mut socket = StdStream::connect(admin.addr()).unwrap();
            socket.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").unwrap();
            let mut start = [0; 15];
            socket.read_exact(&mut start).unwrap();
            assert_eq!(&start, b"HTTP/1.1 200 OK");
            open.push(socket);
        }
        let mut extra = StdStream::connect(admin.addr()).unwrap();
        assert_eq!(extra.read(&mut [0; 1]).unwrap(), 0, "closed at once");
        drop(open);
        admin.stop();
    }
}
