//! A very small HTTP/1.1 client for one endpoint: GET, one request at a time, keep-alive, everything bounded.
//!
//! Telemetry must never be in the way of requests, so it has its own connection, its own deadline over the whole exchange and
//! its own cap on what a pod may answer. A kept connection that turns out closed is replaced once, in silence: pods close
//! idle ones (uvicorn after 5 s). Errors never quote what the pod sent.
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::pods::PodTls;
use crate::tls::{self, Connectors, Dial, PodStream};

const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 100;
const INTERIM_MAX: usize = 4;

/// Why an endpoint gave no answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum FetchError {
    /// No connection.
    #[error("cannot connect: {0}")]
    Connect(io::ErrorKind),
    /// No TLS with it; a word for why, and what to do.
    #[error("TLS handshake failed ({0}): {1}")]
    Tls(&'static str, &'static str),
    /// The deadline passed.
    #[error("no complete answer in time")]
    TimedOut,
    /// The connection ended before the answer did.
    #[error("the connection ended before the answer did")]
    Closed,
    /// More than the cap.
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
    /// Not HTTP/1.
    #[error("the answer is not valid HTTP/1: {0}")]
    Malformed(&'static str),
}

/// What an endpoint answered.
#[derive(Debug)]
pub(super) struct Answer {
    /// HTTP status.
    pub(super) status: u16,
    /// The whole body.
    pub(super) body: BytesMut,
}

/// What one exchange may cost.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// From the first try to connect to the last byte.
    pub(super) timeout: Duration,
    /// Of the body.
    pub(super) body_bytes: usize,
}

/// The connection to one endpoint.
#[derive(Debug)]
pub(super) struct Line {
    addr: SocketAddr,
    authority: Arc<str>,
    tls: Option<PodTls>,
    connectors: Arc<Connectors>,
    kept: Option<(PodStream, Option<Dial>)>,
}

impl Line {
    /// A line that connects when it is first used.
    pub(super) fn new(addr: SocketAddr, authority: Arc<str>, tls: Option<PodTls>, connectors: Arc<Connectors>) -> Self {
        Self { addr, authority, tls, connectors, kept: None }
    }

    /// Whether it speaks with the endpoint in this way.
    pub(super) fn is_for(&self, tls: Option<&PodTls>) -> bool {
        self.tls.as_ref() == tls
    }

    /// Asks for `path`.
    pub(super) async fn get(&mut self, path: &str, bearer: Option<&str>, caps: Caps) -> Result<Answer, FetchError> {
        let credential = bearer.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!(
            "GET {path} HTTP/1.1\r\nhost: {}\r\naccept: */*\r\nuser-agent: tidegate\r\n{credential}\r\n",
            self.authority
        );
        // The future owns the connection while it runs: a deadline that cuts it off closes it.
        let dial = self.connectors.dial(self.tls.as_ref()).map_err(|error| of_connect(&error))?;
        let kept = self.kept.take().filter(|(_, with)| *with == dial).map(|(stream, _)| stream);
        let connect = self.connectors.connect(self.addr, dial.clone());
        let exchange = exchange(kept, connect, request.as_bytes(), caps.body_bytes);
        let (answer, kept) = tokio::time::timeout(caps.timeout, exchange).await.map_err(|_| FetchError::TimedOut)??;
        self.kept = kept.map(|stream| (stream, dial));
        Ok(answer)
    }
}

fn of_connect(error: &io::Error) -> FetchError {
    let is_tls =
        matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound | io::ErrorKind::ConnectionAborted);
    let reason = tls::reason(error);
    if is_tls { FetchError::Tls(reason, tls::advice(reason)) } else { FetchError::Connect(error.kind()) }
}

type Exchanged = (Answer, Option<PodStream>);

async fn exchange(
    kept: Option<PodStream>,
    connect: impl Future<Output = io::Result<PodStream>>,
    request: &[u8],
    body_bytes_max: usize,
) -> Result<Exchanged, FetchError> {
    if let Some(stream) = kept {
        let mut wire = Wire::new(stream);
        match wire.talk(request, body_bytes_max).await {
            Err(FetchError::Closed) if !wire.heard => {}
            other => return other.map(|(answer, keep)| (answer, keep.then_some(wire.stream))),
        }
    }
    let stream = connect.await.map_err(|error| of_connect(&error))?;
    stream.tcp().set_nodelay(true).ok();
    let mut wire = Wire::new(stream);
    let (answer, keep) = wire.talk(request, body_bytes_max).await?;
    Ok((answer, keep.then_some(wire.stream)))
}

struct Wire {
    stream: PodStream,
    buffer: BytesMut,
    heard: bool,
}

#[derive(Debug, PartialEq, Eq)]
struct Head {
    status: u16,
    framing: Framing,
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClose,
}

impl Wire {
    fn new(stream: PodStream) -> Self {
        Self { stream, buffer: BytesMut::with_capacity(8 * 1024), heard: false }
    }

    /// One exchange; also whether the connection can be used again.
    async fn talk(&mut self, request: &[u8], body_bytes_max: usize) -> Result<(Answer, bool), FetchError> {
        self.stream.write_all(request).await.map_err(|_| FetchError::Closed)?;
        self.stream.flush().await.map_err(|_| FetchError::Closed)?;
        let head = self.head().await?;
        let body = match head.framing {
            Framing::Length(length) if length > body_bytes_max => return Err(FetchError::TooLarge(body_bytes_max)),
            Framing::Length(length) => self.exactly(length).await?,
            Framing::Chunked => self.chunks(body_bytes_max).await?,
            Framing::UntilClose => self.rest(body_bytes_max).await?,
        };
        let keep = head.keep && head.framing != Framing::UntilClose && self.buffer.is_empty();
        Ok((Answer { status: head.status, body }, keep))
    }

    /// Reads more; false at the end of the stream.
    async fn fill(&mut self) -> Result<bool, FetchError> {
        self.buffer.reserve(4 * 1024);
        let count = self.stream.read_buf(&mut self.buffer).await.map_err(|_| FetchError::Closed)?;
        self.heard |= count > 0;
        Ok(count > 0)
    }

    /// Reads more; the end of the stream is an error.
    async fn need(&mut self) -> Result<(), FetchError> {
        if self.fill().await? { Ok(()) } else { Err(FetchError::Closed) }
    }

    /// The final head, past any interim ones.
    async fn head(&mut self) -> Result<Head, FetchError> {
        let mut interim = 0;
        loop {
            match parse_head(&self.buffer)? {
                Some((length, head)) => {
                    self.buffer.advance(length);
                    match head.status {
                        101 => return Err(FetchError::Malformed("it switches protocols")),
                        200.. => return Ok(head),
                        _ if interim >= INTERIM_MAX => return Err(FetchError::Malformed("too many interim answers")),
                        _ => interim += 1,
                    }
                }
                None if self.buffer.len() > HEAD_BYTES_MAX => return Err(FetchError::TooLarge(HEAD_BYTES_MAX)),
                None => self.need().await?,
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Result<BytesMut, FetchError> {
        while self.buffer.len() < length {
            self.need().await?;
        }
        Ok(self.buffer.split_to(length))
    }

    async fn rest(&mut self, bytes_max: usize) -> Result<BytesMut, FetchError> {
        while self.fill().await? {
            if self.buffer.len() > bytes_max {
                return Err(FetchError::TooLarge(bytes_max));
            }
        }
        Ok(self.buffer.split())
    }

    async fn chunks(&mut self, bytes_max: usize) -> Result<BytesMut, FetchError> {
        let mut body = BytesMut::new();
        loop {
            let size = match httparse::parse_chunk_size(&self.buffer) {
                Ok(httparse::Status::Complete((length, size))) => {
                    self.buffer.advance(length);
                    usize::try_from(size).unwrap_or(usize::MAX)
                }
                Ok(httparse::Status::Partial) if self.buffer.len() > HEAD_BYTES_MAX => {
                    return Err(FetchError::Malformed("a chunk size does not end"));
                }
                Ok(httparse::Status::Partial) => {
                    self.need().await?;
                    continue;
                }
                Err(_) => return Err(FetchError::Malformed("bad chunk size")),
            };
            if size == 0 {
                return self.trailers().await.map(|()| body);
            }
            if size > bytes_max - body.len() {
                return Err(FetchError::TooLarge(bytes_max));
            }
            let chunk = self.exactly(size).await?;
            body.extend_from_slice(&chunk);
            if self.exactly(2).await?.as_ref() != b"\r\n" {
                return Err(FetchError::Malformed("a chunk does not end where it should"));
            }
        }
    }

    /// Skips trailers up to the empty line.
    async fn trailers(&mut self) -> Result<(), FetchError> {
        let mut skipped = 0;
        loop {
            match memchr::memchr(b'\n', &self.buffer) {
                Some(end) => {
                    let line = self.buffer.split_to(end + 1);
                    skipped += line.len();
                    if line.trim_ascii().is_empty() {
                        return Ok(());
                    }
                }
                None => self.need().await?,
            }
            if skipped + self.buffer.len() > HEAD_BYTES_MAX {
                return Err(FetchError::TooLarge(HEAD_BYTES_MAX));
            }
        }
    }
}

/// The head at the start of `buffer` with its length; `None` if it is not complete.
fn parse_head(buffer: &[u8]) -> Result<Option<(usize, Head)>, FetchError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(buffer) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(FetchError::Malformed("bad head")),
    };
    let status = response.code.unwrap_or_default();
    let (mut content_length, mut chunked) = (None, false);
    let mut keep = response.version == Some(1);
    for header in response.headers.iter() {
        let value = header.value.trim_ascii();
        if header.name.eq_ignore_ascii_case("content-length") {
            let told = std::str::from_utf8(value).ok().and_then(|text| text.parse::<usize>().ok());
            if told.is_none() || content_length.is_some_and(|before| Some(before) != told) {
                return Err(FetchError::Malformed("bad content-length"));
            }
            content_length = told;
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            if chunked || !value.eq_ignore_ascii_case(b"chunked") {
                return Err(FetchError::Malformed("unknown transfer-encoding"));
            }
            chunked = true;
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep &= !value.split(|byte| *byte == b',').any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"));
        }
    }
    let framing = match (chunked, content_length) {
        _ if status < 200 || matches!(status, 204 | 304) => Framing::Length(0),
        (true, _) => Framing::Chunked,
        (false, Some(length)) => Framing::Length(length),
        (false, None) => Framing::UntilClose,
    };
    keep &= !(chunked && content_length.is_some());
    Ok(Some((length, Head { status, framing, keep })))
}

#[cfg(test)]
mod tests;
