//! The HTTP/1.1 client towards pods.
//!
//! Own code and not Pingora's connector, because the gate needs three things there that decide its cost and its promises:
//! request head and body leave in one vectored write and small answers return in one read; an answer that comes before
//! the body was taken (413, 401) is seen at once; and nothing is buffered beyond one read, so ten thousand idle streams
//! are cheap. vLLM's server (uvicorn) speaks HTTP/1.1 only.
mod chunked;
mod head;
mod pool;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::io::AsyncWrite;
use tokio::net::TcpStream;

pub(in crate::proxy) use head::decimal;
pub use head::{Framing, PodHead};
pub use pool::{checkin, checkout, forget, sweep};

use super::sockets;
use crate::tls::{Connectors, Dial, PodStream};
use chunked::Dechunk;

/// Largest response head taken from a pod.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const READ_BYTES_MIN: usize = 4 * 1024;
const READ_BYTES_MAX: usize = 64 * 1024;

/// Why an exchange with a pod failed.
#[derive(Debug, thiserror::Error)]
pub enum PodFault {
    /// No connection could be made.
    #[error("connect failed: {0}")]
    Connect(io::Error),
    /// The pod closed or reset the connection before its head was complete.
    #[error("closed before the answer")]
    ClosedEarly,
    /// The pod closed or reset the connection inside the body.
    #[error("closed inside the body")]
    ClosedInBody,
    /// What came is not HTTP/1.1 or contradicts itself.
    #[error("malformed answer: {0}")]
    Junk(&'static str),
    /// Another socket error.
    #[error("socket error: {0}")]
    Io(#[from] io::Error),
}

/// What happened to the request's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// All were taken by the socket.
    All,
    /// The pod began to answer before it took them all; the connection can't be used again.
    Early,
}

/// A connection to a pod, with at most one exchange on it at a time.
#[derive(Debug)]
pub struct PodConn {
    io: PodStream,
    addr: SocketAddr,
    dial: Option<Dial>,
    buf: BytesMut,
    read_bytes: usize,
    framing: Framing,
    dechunk: Dechunk,
    /// Body bytes that were read and given back.
    returned: Option<Bytes>,
    /// Whether it served an exchange before.
    pub reused: bool,
    /// Whether the pod may switch protocols: its 101 is then an answer, and all that follows its body.
    pub may_switch: bool,
    reusable: bool,
}

impl PodConn {
    /// Connects within `limit`, with a handshake if `dial` says so.
    pub async fn connect(
        connectors: &Connectors,
        addr: SocketAddr,
        dial: Option<Dial>,
        limit: Duration,
    ) -> Result<Self, PodFault> {
        let io = match tokio::time::timeout(limit, connectors.connect(addr, dial.clone())).await {
            Ok(connected) => connected.map_err(PodFault::Connect)?,
            Err(_) => return Err(PodFault::Connect(io::ErrorKind::TimedOut.into())),
        };
        sockets::tend(io.tcp(), sockets::UNANSWERED_MAX).map_err(PodFault::Connect)?;
        Ok(Self {
            io,
            addr,
            dial,
            buf: BytesMut::new(),
            read_bytes: READ_BYTES_MIN,
            framing: Framing::Empty,
            dechunk: Dechunk::default(),
            returned: None,
            reused: false,
            may_switch: false,
            reusable: true,
        })
    }

    /// Sends head and body, watching for an answer meanwhile.
    pub async fn send(&mut self, head: &[u8], body: &[u8]) -> Result<Sent, PodFault> {
        let (mut head, mut body) = (head, body);
        let PodStream::Plain(io) = &self.io else { return self.send_in_tls(head, body).await };
        while !head.is_empty() || !body.is_empty() {
            match io.try_write_vectored(&[io::IoSlice::new(head), io::IoSlice::new(body)]) {
                Ok(written) => {
                    let of_head = written.min(head.len());
                    head = head.get(of_head..).unwrap_or_default();
                    body = body.get(written - of_head..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if writable_or_answer(io, &mut self.buf).await? {
                        self.reusable = false;
                        return Ok(Sent::Early);
                    }
                }
                // The pod may have answered and closed; its answer is then still to be read.
                Err(_) => {
                    self.reusable = false;
                    return Ok(Sent::Early);
                }
            }
        }
        Ok(Sent::All)
    }

    /// The same inside TLS, which hides what the socket does.
    async fn send_in_tls(&mut self, head: &[u8], body: &[u8]) -> Result<Sent, PodFault> {
        let (mut head, mut body) = (head, body);
        let (io, buf) = (&mut self.io, &mut self.buf);
        let sent = std::future::poll_fn(|cx| {
            loop {
                let is_all = head.is_empty() && body.is_empty();
                let slices = [io::IoSlice::new(head), io::IoSlice::new(body)];
                let written = if is_all {
                    Pin::new(&mut *io).poll_flush(cx).map_ok(|()| 0)
                } else {
                    Pin::new(&mut *io).poll_write_vectored(cx, &slices)
                };
                match written {
                    Poll::Ready(Ok(_)) if is_all => return Poll::Ready(Ok(Sent::All)),
                    Poll::Ready(Ok(written @ 1..)) => {
                        let of_head = written.min(head.len());
                        head = head.get(of_head..).unwrap_or_default();
                        body = body.get(written - of_head..).unwrap_or_default();
                    }
                    // The pod may have answered and closed; its answer is then still to be read.
                    Poll::Ready(_) => return Poll::Ready(Ok(Sent::Early)),
                    Poll::Pending => {
                        buf.reserve(READ_BYTES_MIN);
                        let mut read = std::pin::pin!(tokio::io::AsyncReadExt::read_buf(&mut *io, buf));
                        return match ready!(read.as_mut().poll(cx)) {
                            Ok(0) | Err(_) => Poll::Ready(Err(PodFault::ClosedEarly)),
                            Ok(_) => Poll::Ready(Ok(Sent::Early)),
                        };
                    }
                }
            }
        });
        let sent = sent.await?;
        self.reusable &= sent == Sent::All;
        Ok(sent)
    }

    /// Reads the next final head (1xx heads are passed over).
    pub async fn head(&mut self, is_head_request: bool) -> Result<PodHead, PodFault> {
        loop {
            if let Some(head) = head::parse(&mut self.buf, is_head_request, self.may_switch)? {
                if head.status.is_informational() && head.status != StatusCode::SWITCHING_PROTOCOLS {
                    continue;
                }
                self.framing = head.framing;
                self.dechunk = Dechunk::default();
                self.reusable &= head.keep_alive && self.framing != Framing::UntilClose;
                return Ok(head);
            }
            if self.buf.len() > HEAD_BYTES_MAX {
                return Err(PodFault::Junk("head too large"));
            }
            match self.fill().await {
                Ok(0) | Err(_) => return Err(PodFault::ClosedEarly),
                Ok(_) => {}
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buf.reserve(self.read_bytes);
        let room = self.buf.capacity() - self.buf.len();
        let read = tokio::io::AsyncReadExt::read_buf(&mut self.io, &mut self.buf).await?;
        self.read_bytes = if read == room { (self.read_bytes * 2).min(READ_BYTES_MAX) } else { READ_BYTES_MIN };
        Ok(read)
    }

    /// The next bytes of the body as they came, `None` at its end. All that one read brought is given at once.
    /// Cancel-safe: dropping the future loses nothing.
    pub async fn body(&mut self) -> Result<Option<Bytes>, PodFault> {
        if let Some(returned) = self.returned.take() {
            return Ok(Some(returned));
        }
        loop {
            if let Some(piece) = self.buffered()? {
                return Ok(Some(piece));
            }
            if self.framing == Framing::Empty {
                return Ok(None);
            }
            match self.fill().await {
                Ok(0) if self.framing == Framing::UntilClose => {
                    self.framing = Framing::Empty;
                    return Ok(None);
                }
                Ok(0) | Err(_) => return Err(PodFault::ClosedInBody),
                Ok(_) => {}
            }
        }
    }

    /// Sends bytes to a pod that has switched protocols.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        tokio::io::AsyncWriteExt::write_all(&mut self.io, bytes).await?;
        tokio::io::AsyncWriteExt::flush(&mut self.io).await
    }

    /// Gives back what was read of the body; it is read again first.
    pub fn put_back(&mut self, body: Bytes) {
        self.returned = (!body.is_empty()).then_some(body);
    }

    /// Whether the body has ended.
    pub fn is_done(&self) -> bool {
        self.framing == Framing::Empty && self.returned.is_none()
    }

    /// Body bytes that are here already.
    fn buffered(&mut self) -> Result<Option<Bytes>, PodFault> {
        let piece = match &mut self.framing {
            Framing::Empty => return Ok(None),
            Framing::UntilClose => self.buf.split(),
            Framing::Length(left) => {
                let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(self.buf.len());
                *left -= taken as u64;
                let piece = self.buf.split_to(taken);
                if *left == 0 {
                    self.framing = Framing::Empty;
                }
                piece
            }
            Framing::Chunked => {
                let piece = self.dechunk.take(&mut self.buf).map_err(PodFault::Junk)?;
                if self.dechunk.is_done() {
                    self.framing = Framing::Empty;
                }
                piece
            }
        };
        Ok((!piece.is_empty()).then(|| piece.freeze()))
    }

    /// Whether the connection can serve another exchange: the answer ended, cleanly, with nothing after it.
    fn can_serve_again(&self) -> bool {
        self.reusable && self.is_done() && self.buf.is_empty()
    }

    /// Whether the pod has closed the idle connection, or said something nobody asked for.
    fn went_stale(&mut self) -> bool {
        self.io.holds_bytes() || sockets::is_stale(self.io.tcp())
    }
}

/// Waits until more can be written, or an answer has begun (true).
async fn writable_or_answer(io: &TcpStream, buf: &mut BytesMut) -> Result<bool, PodFault> {
    tokio::select! {
        biased;
        ready = io.readable() => {
            ready?;
            match io.try_read_buf(buf) {
                Ok(0) => Err(PodFault::ClosedEarly),
                Ok(_) => Ok(true),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
                Err(_) => Err(PodFault::ClosedEarly),
            }
        }
        ready = io.writable() => {
            ready?;
            Ok(false)
        }
    }
}
