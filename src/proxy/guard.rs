//! The stream that Pingora reads a client through: lints heads, times them, joins small writes.
//!
//! Pingora runs no filter before a request head is complete, has a read timeout per read only, and writes a response
//! head and the first body bytes in two system calls. All three are mended below it, in the stream. What the gate needs
//! to know of the connection travels with it as [`Conn`].
use std::fmt;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering::Relaxed};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Buf, Bytes, BytesMut};
use http::StatusCode;
use pingora::http::ResponseHeader;
use pingora::protocols::raw_connect::ProxyDigest;
use pingora::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest, UniqueID,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::floods::FrameMeter;
use super::lint::{HeadLimits, HeadLint, Violation};
use crate::base::Mono;
use crate::runtime::now;
use crate::tls::{ClientStream, Peer};

/// Joined writes are sent at the latest when this many bytes wait.
const JOIN_BYTES_MAX: usize = 16 * 1024;

/// How long, and for how many bytes, a closing connection is read on.
const LINGER_MAX: Duration = Duration::from_millis(500);
const LINGER_BYTES_MAX: usize = 4 << 20;

/// What the gate knows of a client connection; shared between the stream and the requests on it.
#[derive(Debug)]
pub struct Conn {
    /// The client's address.
    pub peer: SocketAddr,
    /// Whether it is inside TLS.
    pub is_tls: bool,
    /// Names in its certificate, which was verified.
    pub certificate: Option<Arc<Peer>>,
    head_started: AtomicU64,
    violation: AtomicU8,
    next_head: AtomicBool,
    is_reused: AtomicBool,
    corked: AtomicBool,
    stalled: AtomicBool,
}

impl Conn {
    /// When the first byte of the current head arrived; `None` while the connection is idle.
    pub fn head_started(&self) -> Option<Mono> {
        Some(Mono(self.head_started.load(Relaxed))).filter(|at| *at != Mono::ZERO)
    }

    /// Why the head was refused, if it was.
    pub fn violation(&self) -> Option<Violation> {
        Violation::from_u8(self.violation.load(Relaxed))
    }

    /// The bytes that come next are a new head.
    pub fn expect_head(&self) {
        self.is_reused.store(true, Relaxed);
        self.head_started.store(0, Relaxed);
        self.next_head.store(true, Relaxed);
    }

    /// Whether a request was served on it before.
    pub fn is_reused(&self) -> bool {
        self.is_reused.load(Relaxed)
    }

    /// Whether the client took nothing for the whole write timeout. Nothing more can be written then.
    pub fn is_stalled(&self) -> bool {
        self.stalled.load(Relaxed)
    }

    /// While corked, writes are joined and not sent.
    pub fn cork(&self, corked: bool) {
        self.corked.store(corked, Relaxed);
    }
}

/// How the bytes of a connection are watched.
enum Watch {
    Http1(HeadLint),
    Http2(FrameMeter),
}

/// A client's socket with the guards of this module around it.
pub struct GuardedStream {
    io: ClientStream,
    /// Bytes read while finding out the protocol, given out again first.
    replay: Bytes,
    joined: BytesMut,
    /// How long the client may take nothing, and the alarm for it while it does.
    write_timeout: Duration,
    stall: Option<Pin<Box<Sleep>>>,
    watch: Watch,
    conn: Arc<Conn>,
    digest: Arc<ProxyDigest>,
    socket: Arc<SocketDigest>,
    /// Rings when an HTTP/2 head that is coming should have ended, or that of an earlier one.
    alarm: Option<Pin<Box<Sleep>>>,
}

impl GuardedStream {
    /// Guards `io`; `replay` are bytes that were read from it already. With `h2_head_max` it is HTTP/2, and a head may take
    /// so long.
    pub fn new(
        io: ClientStream,
        (peer, certificate): (SocketAddr, Option<Arc<Peer>>),
        replay: Bytes,
        h2_head_max: Option<Duration>,
        limits: HeadLimits,
        write_timeout: Duration,
    ) -> io::Result<Self> {
        let conn = Arc::new(Conn {
            peer,
            is_tls: matches!(io, ClientStream::Tls(_)),
            certificate,
            head_started: AtomicU64::new(0),
            violation: AtomicU8::new(0),
            next_head: AtomicBool::new(false),
            is_reused: AtomicBool::new(false),
            corked: AtomicBool::new(false),
            stalled: AtomicBool::new(false),
        });
        let carrier = ResponseHeader::build(StatusCode::OK, Some(0)).map_err(io::Error::other)?;
        let digest = Arc::new(ProxyDigest::new(Box::new(carrier), Some(Box::new(Arc::clone(&conn)))));
        let socket = Arc::new(SocketDigest::from_raw_fd(std::os::fd::AsRawFd::as_raw_fd(io.tcp())));
        let lint = || Watch::Http1(HeadLint::new(limits));
        let watch = h2_head_max.map_or_else(lint, |head_max| Watch::Http2(FrameMeter::new(head_max)));
        let joined = BytesMut::new();
        Ok(Self { io, replay, joined, write_timeout, stall: None, watch, conn, digest, socket, alarm: None })
    }

    /// Nothing comes: ready with an error once an HTTP/2 head that has begun is late.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let until = match &self.watch {
            Watch::Http2(meter) => meter.head_until(),
            Watch::Http1(_) => None,
        };
        let Some(until) = until else {
            self.alarm = None;
            return Poll::Pending;
        };
        loop {
            let left = until.since(now());
            if left.is_zero() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "a head that does not end")));
            }
            ready!(self.alarm.get_or_insert_with(|| Box::pin(sleep(left))).as_mut().poll(cx));
            self.alarm = None;
        }
    }

    fn look(&mut self, chunk: &[u8]) -> io::Result<()> {
        match &mut self.watch {
            Watch::Http1(lint) => {
                if self.conn.next_head.load(Relaxed) {
                    self.conn.next_head.store(false, Relaxed);
                    lint.reset();
                }
                if lint.is_fresh() {
                    self.conn.head_started.store(now().0.max(1), Relaxed);
                }
                lint.feed(chunk).map_err(|violation| {
                    self.conn.violation.store(violation as u8, Relaxed);
                    io::Error::new(io::ErrorKind::InvalidData, violation.as_str())
                })
            }
            Watch::Http2(meter) => {
                meter.feed(now(), chunk).map_err(|flood| io::Error::new(io::ErrorKind::ConnectionAborted, flood))
            }
        }
    }

    /// Gives a write that does not get on until the write timeout. All of Pingora's writes come through here, also those
    /// that it would wait for without end.
    fn poll_in_time(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_ready() {
            self.stall = None;
            return written;
        }
        let timeout = self.write_timeout;
        let alarm = self.stall.get_or_insert_with(|| Box::pin(sleep(timeout)));
        ready!(alarm.as_mut().poll(cx));
        self.stall = None;
        self.joined = BytesMut::new();
        self.conn.stalled.store(true, Relaxed);
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_send_joined(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.joined.is_empty() {
            let written = Pin::new(&mut self.io).poll_write(cx, &self.joined);
            let sent = ready!(self.poll_in_time(cx, written))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.joined.advance(sent);
        }
        if self.joined.capacity() > JOIN_BYTES_MAX {
            self.joined = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for GuardedStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.replay.is_empty() {
            match Pin::new(&mut this.io).poll_read(cx, buf) {
                Poll::Ready(read) => read?,
                Poll::Pending => return this.poll_late(cx),
            }
        } else {
            let given = this.replay.len().min(buf.remaining());
            buf.put_slice(&this.replay.split_to(given));
        }
        let chunk = buf.filled().get(before..).unwrap_or_default();
        if chunk.is_empty() { Poll::Ready(Ok(())) } else { Poll::Ready(this.look(chunk)) }
    }
}

impl AsyncWrite for GuardedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if this.conn.is_stalled() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if this.joined.len() + data.len() > JOIN_BYTES_MAX {
            ready!(this.poll_send_joined(cx))?;
            if data.len() >= JOIN_BYTES_MAX {
                let written = Pin::new(&mut this.io).poll_write(cx, data);
                return this.poll_in_time(cx, written);
            }
        }
        this.joined.extend_from_slice(data);
        Poll::Ready(Ok(data.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let mut taken = 0;
        for slice in slices.iter().filter(|slice| !slice.is_empty()) {
            match Pin::new(&mut *this).poll_write(cx, slice) {
                Poll::Ready(Ok(written)) => {
                    taken += written;
                    if written < slice.len() {
                        break;
                    }
                }
                Poll::Ready(Err(error)) if taken == 0 => return Poll::Ready(Err(error)),
                Poll::Pending if taken == 0 => return Poll::Pending,
                Poll::Ready(Err(_)) | Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.conn.corked.load(Relaxed) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_send_joined(cx))?;
        // TLS may hold what the socket did not take. Not before a write that goes on: it would count as progress.
        let flushed = Pin::new(&mut self.io).poll_flush(cx).map_ok(|()| 0);
        self.poll_in_time(cx, flushed).map_ok(|_| ())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send_joined(cx))?;
        let closed = Pin::new(&mut self.io).poll_shutdown(cx).map_ok(|()| 0);
        self.poll_in_time(cx, closed).map_ok(|_| ())
    }
}

impl fmt::Debug for GuardedStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardedStream").field("peer", &self.conn.peer).finish_non_exhaustive()
    }
}

#[async_trait]
impl Shutdown for GuardedStream {
    /// Ends our side, then reads on for a moment: closing a socket with unread bytes resets it, and the client would lose
    /// an answer that it has not read yet, such as a 413 in the middle of its upload.
    async fn shutdown(&mut self) {
        if tokio::io::AsyncWriteExt::shutdown(self).await.is_err() {
            return;
        }
        let linger = async {
            let mut scratch = [0; 4 * 1024];
            let mut left = LINGER_BYTES_MAX;
            while let Ok(read) = tokio::io::AsyncReadExt::read(&mut self.io, &mut scratch).await {
                left = left.saturating_sub(read);
                if read == 0 || left == 0 {
                    return;
                }
            }
        };
        let _ended_or_late = tokio::time::timeout(LINGER_MAX, linger).await;
    }
}

#[async_trait]
impl Peek for GuardedStream {
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let Some((ahead, into)) = self.replay.get(..buf.len()).zip(Some(buf)) else { return Ok(false) };
        into.copy_from_slice(ahead);
        Ok(true)
    }
}

impl UniqueID for GuardedStream {
    fn id(&self) -> i32 {
        std::os::fd::AsRawFd::as_raw_fd(self.io.tcp())
    }
}

impl Ssl for GuardedStream {}

impl GetTimingDigest for GuardedStream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for GuardedStream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(Arc::clone(&self.digest))
    }
}

impl GetSocketDigest for GuardedStream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}

/// The connection that a Pingora session runs on.
pub fn conn_of(session: &pingora::protocols::http::ServerSession) -> Option<Arc<Conn>> {
    let digest = session.digest()?.proxy_digest.as_ref()?;
    digest.user_data.as_ref()?.downcast_ref::<Arc<Conn>>().cloned()
}
