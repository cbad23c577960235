//! A lean HTTP/1.1 client: keep-alive connections, bodies sent in one vectored write, answers read with the time of every event.
//!
//! It adds as little as it can to what it measures: no redirects, no decoding, no copy of a request. One connection carries one request at a
//! time. Times are taken when bytes were read from the socket.

use crate::body::{NONCE, Template, nonce};
use crate::sse::SseScan;
use crate::wire::{self, Framing, Unchunk};
use bytes::{Buf, BytesMut};
use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// One keep-alive connection.
pub(crate) struct Connection {
    stream: TcpStream,
    buffer: BytesMut,
    /// Whether a request was answered on it before.
    pub(crate) is_used: bool,
}

/// What one answer was like. Times run from just before the first byte was written.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Status code.
    pub(crate) status: u16,
    /// Time to the first data event of a stream, or to the first body byte; `None` if there was none.
    pub(crate) first: Option<Duration>,
    /// Time to the end.
    pub(crate) total: Duration,
    /// Body bytes without framing.
    pub(crate) bytes: u64,
    /// Data events without the ending.
    pub(crate) events: u64,
    /// Error events.
    pub(crate) errors: u64,
    /// Whether a stream said `[DONE]`; true for whole answers.
    pub(crate) done: bool,
    /// Whether the connection may be used again.
    pub(crate) keep: bool,
    /// After how long a refused request may come again.
    pub(crate) retry_after: Option<Duration>,
    /// Why a gate refused.
    pub(crate) reason: Option<String>,
}

/// Gets told of an answer as it comes.
pub(crate) trait Watch {
    /// `count` data events ended in bytes read at `at`.
    fn events(&mut self, _count: u64, _at: Instant) {}

    /// These bytes of the body came.
    fn bytes(&mut self, _bytes: &[u8]) {}
}

impl Watch for () {}

/// Keeps all of a body.
#[derive(Default)]
pub(crate) struct Body(pub(crate) Vec<u8>);

impl Watch for Body {
    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }
}

/// Keep-alive connections to one address, the last used first.
pub(crate) struct Connections {
    target: SocketAddr,
    idle: RefCell<Vec<Connection>>,
}

impl Connections {
    /// To this address, none open yet.
    pub(crate) fn new(target: SocketAddr) -> Self {
        Self { target, idle: RefCell::default() }
    }

    /// Sends one request of a template and reads its answer; an error is named.
    pub(crate) async fn ask(&self, template: &Template, number: u64, watch: &mut impl Watch) -> Result<Answer, String> {
        loop {
            let idle = self.idle.borrow_mut().pop();
            let mut connection = match idle {
                Some(connection) => connection,
                None => Connection::open(self.target).await.map_err(|error| format!("connect: {}", error.kind()))?,
            };
            let was_used = connection.is_used;
            match connection.ask(template, nonce(number), watch).await {
                Ok(answer) => {
                    if answer.keep {
                        self.idle.borrow_mut().push(connection);
                    }
                    return Ok(answer);
                }
                // The peer had closed an idle connection: nothing of this request was taken.
                Err(error) if was_used && error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => return Err(format!("broken: {}", error.kind())),
            }
        }
    }
}

impl Connection {
    /// Opens a connection.
    pub(crate) async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::with_capacity(16 * 1024), is_used: false })
    }

    /// Sends one request of a template and reads its answer.
    pub(crate) async fn ask(
        &mut self,
        template: &Template,
        nonce: [u8; NONCE],
        watch: &mut impl Watch,
    ) -> io::Result<Answer> {
        let start = Instant::now();
        self.send(&template.front, &nonce, &template.tail).await?;
        self.answer(start, watch).await
    }

    /// Sends a JSON body with these further header fields, each with its line end, and reads its answer.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        fields: &str,
        body: &[u8],
        watch: &mut impl Watch,
    ) -> io::Result<Answer> {
        let start = Instant::now();
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: gate.local\r\nContent-Type: application/json\r\n{fields}Content-Length: {length}\r\n\r\n"
        );
        self.send(head.as_bytes(), &[], body).await?;
        self.answer(start, watch).await
    }

    /// Sends a request without a body and reads the answer with its body.
    pub(crate) async fn get(address: SocketAddr, path: &str) -> io::Result<(u16, Vec<u8>)> {
        let mut connection = Self::open(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: gate.local\r\nConnection: close\r\n\r\n");
        connection.stream.write_all(request.as_bytes()).await?;
        let mut body = Body::default();
        let answer = connection.answer(Instant::now(), &mut body).await?;
        Ok((answer.status, body.0))
    }

    async fn send(&mut self, front: &[u8], nonce: &[u8], tail: &[u8]) -> io::Result<()> {
        let mut slices = [IoSlice::new(front), IoSlice::new(nonce), IoSlice::new(tail)];
        let mut rest: &mut [IoSlice<'_>] = &mut slices;
        while !rest.is_empty() {
            let written = self.stream.write_vectored(rest).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut rest, written);
        }
        Ok(())
    }

    async fn answer(&mut self, start: Instant, watch: &mut impl Watch) -> io::Result<Answer> {
        let head = self.head().await?;
        let mut reading = Reading {
            start,
            answer: Answer {
                status: head.status,
                retry_after: head.retry_after_s.map(Duration::from_secs),
                reason: head.reason,
                ..Answer::default()
            },
            scan: head.is_sse.then(SseScan::default),
        };
        let mut at = Instant::now();
        let mut left = head.framing;
        let mut unchunk = Unchunk::default();
        loop {
            let used = match &mut left {
                Framing::Chunked => unchunk.feed(&self.buffer, |bytes| reading.take(bytes, at, watch))?,
                Framing::Length(left) => {
                    let used = (self.buffer.len() as u64).min(*left) as usize;
                    let bytes = self.buffer.get(..used).unwrap_or_default();
                    reading.take(bytes, at, watch);
                    *left -= used as u64;
                    used
                }
                Framing::Close => {
                    reading.take(&self.buffer, at, watch);
                    self.buffer.len()
                }
            };
            self.buffer.advance(used);
            if unchunk.is_end() || left == Framing::Length(0) {
                break;
            }
            if self.fill().await? == 0 {
                if left == Framing::Close {
                    break;
                }
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            at = Instant::now();
        }
        self.is_used = true;
        Ok(reading.end(head.keep && left != Framing::Close && self.buffer.is_empty()))
    }

    async fn head(&mut self) -> io::Result<wire::Head> {
        loop {
            if let Some(head) = wire::head(&self.buffer)? {
                self.buffer.advance(head.len);
                if head.status / 100 != 1 {
                    return Ok(head);
                }
                continue;
            }
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
        }
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(8 * 1024);
        self.stream.read_buf(&mut self.buffer).await
    }
}

struct Reading {
    start: Instant,
    answer: Answer,
    scan: Option<SseScan>,
}

impl Reading {
    fn take(&mut self, bytes: &[u8], at: Instant, watch: &mut impl Watch) {
        if bytes.is_empty() {
            return;
        }
        self.answer.bytes += bytes.len() as u64;
        watch.bytes(bytes);
        let count = self.scan.as_mut().map_or(1, |scan| scan.feed(bytes));
        if count > 0 {
            self.answer.first.get_or_insert(at - self.start);
            if self.scan.is_some() {
                watch.events(count, at);
            }
        }
    }

    fn end(mut self, keep: bool) -> Answer {
        self.answer.total = self.start.elapsed();
        self.answer.keep = keep;
        self.answer.done = true;
        if let Some(scan) = self.scan {
            (self.answer.events, self.answer.errors, self.answer.done) = (scan.events, scan.errors, scan.done);
        }
        self.answer
    }
}
