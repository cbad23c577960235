//! The writer of answers: heads, bodies and chunks as uvicorn frames them, and every fault that concerns bytes.
//!
//! Bytes are gathered (at most `GATHER_BYTES`) and flushed before any wait. While it waits, the writer watches for the
//! client's FIN or RST: both end the exchange. Bytes that the client sends early are kept for the next request.
use std::future::Future;
use std::time::Duration;

use bytes::BytesMut;
use tokio::net::TcpStream;

use super::faults::Plan;
use super::head::Head;
use super::host;
use super::log::Ended;
use super::script::Cut;

/// Outcome of writing: an error says how the exchange ended early.
pub(super) type Step = Result<(), Ended>;

const GATHER_BYTES: usize = 8 << 10;
const EARLY_BYTES_MAX: usize = 16 << 10;

/// A whole answer.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    /// Fields before `content-length`.
    pub(super) fields: Vec<(&'static str, String)>,
    pub(super) content_type: Option<&'static str>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    /// 200 with a JSON body.
    pub(super) fn json(body: String) -> Self {
        Self::with(200, Some("application/json"), body.into_bytes())
    }

    /// Any answer.
    pub(super) fn with(status: u16, content_type: Option<&'static str>, body: Vec<u8>) -> Self {
        Self { status, fields: Vec::new(), content_type, body }
    }
}

/// The writer of one exchange.
pub(super) struct Wire<'a> {
    stream: &'a TcpStream,
    early: &'a mut BytesMut,
    out: Vec<u8>,
    /// Bytes written to the socket.
    pub(super) sent: u64,
    /// Status of the answer, once begun.
    pub(super) status: Option<u16>,
    /// Events pushed so far.
    events: u64,
    request_id: Option<String>,
    is_kept_alive: bool,
    plan: Plan,
}

impl<'a> Wire<'a> {
    /// A writer for the answer to `head`.
    pub(super) fn new(stream: &'a TcpStream, early: &'a mut BytesMut, head: &Head, request_id: Option<String>) -> Self {
        let is_kept_alive = head.is_kept_alive;
        let (out, plan) = (Vec::new(), Plan::default());
        Self { stream, early, out, sent: 0, status: None, events: 0, request_id, is_kept_alive, plan }
    }

    /// Takes the faults to follow.
    pub(super) fn follow(&mut self, plan: &Plan) {
        self.plan = plan.clone();
        self.is_kept_alive &= !plan.is_closed_after;
    }

    /// Whether the connection may serve another request.
    pub(super) fn is_kept_alive(&self) -> bool {
        self.is_kept_alive
    }

    /// Closes the connection after this answer.
    pub(super) fn close_after(&mut self) {
        self.is_kept_alive = false;
    }

    /// Writes a whole answer.
    pub(super) async fn reply(&mut self, reply: &Reply) -> Step {
        self.head(reply.status, &reply.fields, Some(reply.body.len()), reply.content_type);
        if let Some(wait) = self.plan.slow_body {
            self.wait(wait).await?;
        }
        if self.plan.silence_at_event == Some(0) {
            return self.fall_silent().await;
        }
        if self.plan.is_split {
            for byte in &reply.body {
                self.out.push(*byte);
                self.flush().await?;
            }
        }
        let whole = if self.plan.is_split { &[][..] } else { &reply.body };
        for part in whole.chunks(GATHER_BYTES) {
            self.out.extend_from_slice(part);
            self.flush().await?;
        }
        self.flush().await
    }

    /// Writes the head of a stream, at once, if it was not written before.
    pub(super) async fn begin_stream(&mut self) -> Step {
        if self.status.is_some() {
            return Ok(());
        }
        self.head(200, &[], None, Some("text/event-stream; charset=utf-8"));
        self.flush().await
    }

    /// Adds one event as a chunk. Flushes when enough has gathered.
    pub(super) async fn event(&mut self, bytes: &[u8]) -> Step {
        if self.plan.cut_at_event.is_some_and(|(at, _)| at == self.events) {
            self.flush().await?;
            return self.cut(self.plan.cut_at_event.map_or(Cut::Fin, |(_, how)| how));
        }
        if self.plan.silence_at_event == Some(self.events) {
            return self.fall_silent().await;
        }
        self.events += 1;
        if self.plan.is_split {
            for byte in bytes {
                self.chunk(std::slice::from_ref(byte));
                self.flush().await?;
                tokio::task::yield_now().await;
            }
            return Ok(());
        }
        self.chunk(bytes);
        if self.out.len() >= GATHER_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Writes the final chunk.
    pub(super) async fn end_stream(&mut self) -> Step {
        self.out.extend_from_slice(b"0\r\n\r\n");
        self.flush().await
    }

    /// Writes bytes as they are.
    pub(super) async fn raw(&mut self, bytes: &[u8]) -> Step {
        for part in bytes.chunks(GATHER_BYTES) {
            self.out.extend_from_slice(part);
            self.flush().await?;
        }
        Ok(())
    }

    /// Writes what has gathered, up to the byte where the script cuts.
    pub(super) async fn flush(&mut self) -> Step {
        let mut out = std::mem::take(&mut self.out);
        let room = self.plan.cut_at_byte.map_or(u64::MAX, |(at, _)| at.saturating_sub(self.sent));
        let is_cut = room <= out.len() as u64;
        out.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        let mut rest = out.as_slice();
        while !rest.is_empty() {
            match self.stream.try_write(rest) {
                Ok(count) => {
                    self.sent += count as u64;
                    rest = rest.get(count..).unwrap_or_default();
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    tokio::select! {
                        biased;
                        () = left(self.stream, self.early) => return Err(Ended::ClientLeft),
                        writable = self.stream.writable() => if writable.is_err() { return Err(Ended::ClientLeft) },
                    }
                }
                Err(_) => return Err(Ended::ClientLeft),
            }
        }
        if is_cut {
            return self.cut(self.plan.cut_at_byte.map_or(Cut::Fin, |(_, how)| how));
        }
        // A large event must not leave its room to a quiet stream.
        if out.capacity() <= 2 * GATHER_BYTES {
            out.clear();
            self.out = out;
        }
        Ok(())
    }

    /// Flushes, then waits for `what`; the client leaving ends it.
    pub(super) async fn until<T>(&mut self, what: impl Future<Output = T>) -> Result<T, Ended> {
        self.flush().await?;
        tokio::select! {
            biased;
            value = what => Ok(value),
            () = left(self.stream, self.early) => Err(Ended::ClientLeft),
        }
    }

    /// Flushes, then waits.
    pub(super) async fn wait(&mut self, time: Duration) -> Step {
        self.until(tokio::time::sleep(time)).await
    }

    /// Flushes, then does nothing until the client leaves.
    pub(super) async fn fall_silent(&mut self) -> Step {
        self.until(std::future::pending()).await
    }

    /// Ends the connection. It closes when the stream is dropped; RST if asked.
    pub(super) fn cut(&self, how: Cut) -> Step {
        if how == Cut::Reset {
            reset(self.stream);
        }
        Err(Ended::Cut)
    }

    fn chunk(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(format!("{:x}\r\n", bytes.len()).as_bytes());
        self.out.extend_from_slice(bytes);
        self.out.extend_from_slice(b"\r\n");
    }

    fn head(&mut self, status: u16, fields: &[(&str, String)], length: Option<usize>, content_type: Option<&str>) {
        self.status = Some(status);
        let mut text = format!("HTTP/1.1 {status} {}\r\n", phrase(status));
        let mut field = |name: &str, value: &str| {
            text.push_str(name);
            text.push_str(": ");
            text.push_str(value);
            text.push_str("\r\n");
        };
        field("date", &host::http_date(host::unix().as_secs()));
        field("server", "uvicorn");
        for (name, value) in fields {
            field(name, value);
        }
        if let Some(length) = length {
            field("content-length", &length.to_string());
        }
        if let Some(content_type) = content_type {
            field("content-type", content_type);
        }
        field("vary", "Origin");
        if let Some(id) = &self.request_id {
            field("x-request-id", id);
        }
        if self.plan.head_filler > 0 {
            field("x-filler", &"x".repeat(self.plan.head_filler));
        }
        if length.is_none() {
            field("transfer-encoding", "chunked");
        }
        if !self.is_kept_alive {
            field("connection", "close");
        }
        text.push_str("\r\n");
        self.out.extend_from_slice(text.as_bytes());
    }
}

/// Makes the close of a stream an RST.
pub(super) fn reset(stream: &TcpStream) {
    // A socket that is gone already cannot be reset, which is as good.
    drop(stream.set_zero_linger());
}

/// Comes back when the client has sent FIN or RST. What it sends before is kept, up to a limit.
async fn left(stream: &TcpStream, early: &mut BytesMut) {
    loop {
        if early.len() >= EARLY_BYTES_MAX {
            std::future::pending::<()>().await;
        }
        if stream.readable().await.is_err() {
            return;
        }
        match stream.try_read_buf(early) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

/// Reason phrase of a status.
pub(super) fn phrase(status: u16) -> &'static str {
    http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or("Unknown")
}
