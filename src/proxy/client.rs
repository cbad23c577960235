//! The client's side of one request: reading its body, noticing that it left, writing to it.
//!
//! A thin face over Pingora's session (HTTP/1 and HTTP/2 alike) that knows the traps: a half-closed connection counts as
//! left, bytes of a next request must not look like a disconnect, the head waits for the first bytes of the body so that
//! both leave in one write, and a cut answer must not be terminated.
mod warm;

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use pingora::ErrorType;
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::http::ServerSession;
use tokio::sync::watch;
use tokio::time::sleep;

use super::guard::Conn;
use super::reply::Fault;
use crate::api::Shape;
use crate::base::Mono;
use crate::runtime::now;
use warm::Warm;
pub(super) use warm::as_event;

/// Longest body that is passed over to keep a connection.
const PASSED_OVER_BYTES_MAX: u64 = 64 * 1024;
/// Bytes of a next request that are read over, to notice a disconnect behind them.
const SURPLUS_BYTES_MAX: u32 = 64 * 1024;

/// Why nothing more can be written to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lost {
    /// It closed or reset the connection or stream.
    Gone,
    /// It stopped reading until the write deadline.
    Stalled,
}

/// Why an answer is waited for no longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// The client left.
    Gone,
    /// The gate ends now; what still runs is cut.
    Cutoff,
    /// Its deadline passed before an answer began.
    Overdue,
}

/// What tells a request that the gate stops.
#[derive(Clone)]
pub(super) struct Stop {
    /// The gate will stop: answers close their connections.
    pub(super) leaving: watch::Receiver<bool>,
    /// It stops now.
    pub(super) cutoff: watch::Receiver<bool>,
}

/// One request's client.
pub(super) struct Client {
    session: ServerSession,
    /// Its connection.
    pub(super) conn: Arc<Conn>,
    /// Whose pages may read an answer of the gate's own.
    pub(super) opened_to: Option<HeaderValue>,
    watches: bool,
    surplus_bytes: u32,
    status: Option<u16>,
    /// More than comments was sent.
    has_begun: bool,
    warm: Option<Box<Warm>>,
    /// When an answer that has not begun is of no use any more.
    pub(super) due: Option<Mono>,
    sent_bytes: u64,
    ended: bool,
    is_cut: bool,
    stop: Stop,
}

impl Client {
    /// Takes a session whose head was read.
    pub(super) fn new(mut session: ServerSession, conn: Arc<Conn>, write_timeout: Duration, stop: Stop) -> Self {
        // HTTP/1 is timed by the guarded stream; of HTTP/2 that sees the connection only, not one stalled stream.
        session.set_write_timeout(session.is_http2().then_some(write_timeout));
        // Pingora's own rule would count `100 Continue` as such an answer; see `pass_over_body`.
        session.set_close_on_response_before_downstream_finish(false);
        Self {
            session,
            conn,
            opened_to: None,
            watches: true,
            surplus_bytes: 0,
            status: None,
            has_begun: false,
            warm: None,
            due: None,
            sent_bytes: 0,
            ended: false,
            is_cut: false,
            stop,
        }
    }

    /// The request's head.
    pub(super) fn head(&self) -> &RequestHeader {
        self.session.req_header()
    }

    /// The raw head, on HTTP/1 only.
    pub(super) fn raw_head(&self) -> Option<Bytes> {
        self.session.as_http1().map(pingora::protocols::http::v1::server::HttpSession::get_headers_raw_bytes)
    }

    /// Whether it speaks HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.session.is_http2()
    }

    /// Whether chunked coding can be used towards it.
    pub(super) fn is_http11(&self) -> bool {
        !self.is_http2() && self.head().version == Version::HTTP_11
    }

    /// Status sent so far.
    pub(super) fn status(&self) -> Option<u16> {
        self.status
    }

    /// Body bytes sent so far.
    pub(super) fn sent_bytes(&self) -> u64 {
        self.sent_bytes
    }

    /// Whether the whole answer was sent, or given up on.
    pub(super) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Whether the answer was broken off: the connection serves nothing more.
    pub(super) fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Forgets a wish to switch protocols, so that the body is read as that of an ordinary request.
    pub(super) fn ignore_upgrade(&mut self) {
        if self.head().headers.contains_key(header::UPGRADE) {
            self.session.req_header_mut().remove_header(&header::UPGRADE);
        }
    }

    /// Whether it wishes to go on with a WebSocket.
    pub(super) fn wants_websocket(&self) -> bool {
        let fields = &self.head().headers;
        let mut wished = fields.get_all(header::UPGRADE).iter();
        let is_wished = wished.next().is_some_and(|name| name.as_bytes().eq_ignore_ascii_case(b"websocket"));
        let connection = fields.get_all(header::CONNECTION).iter().filter_map(|told| told.to_str().ok());
        let mut words = connection.flat_map(|told| told.split(','));
        is_wished
            && wished.next().is_none()
            && self.is_http11()
            && words.any(|word| word.trim().eq_ignore_ascii_case("upgrade"))
    }

    /// Switches protocols.
    pub(super) async fn switch(&mut self, head: Box<ResponseHeader>) -> Result<(), Lost> {
        self.has_begun = true;
        self.watches = false;
        self.send_head(head).await
    }

    /// What the client sends once protocols were switched; `None` when it has closed, or the gate ends.
    pub(super) async fn tunnelled(&mut self) -> Option<Bytes> {
        let mut cutoff = self.stop.cutoff.clone();
        tokio::select! {
            biased;
            () = told(&mut cutoff) => None,
            read = self.session.read_request_body() => read.ok().flatten(),
        }
    }

    /// No further request on this connection.
    pub(super) fn close_after(&mut self) {
        self.session.set_keepalive(None);
    }

    /// Before an answer to a request whose body was not read: a short body that is surely coming may be passed over, else
    /// this is the connection's last request. A client that waits for `100 Continue` may never send its body.
    pub(super) fn pass_over_body(&mut self, within: Duration) {
        if self.is_http2() || self.session.is_body_done() {
            return;
        }
        self.session.set_total_drain_timeout(Some(within));
        let is_short = self.announced_body().is_some_and(|bytes| bytes <= PASSED_OVER_BYTES_MAX);
        if !is_short || self.head().headers.contains_key(header::EXPECT) {
            self.close_after();
        }
    }

    /// Reads the whole body, at most `bytes_max`, within `limit` plus the time that `floor` bytes per second take. Time that
    /// was earned by sending fast is not saved up: at no time is more than `limit` left.
    /// `grow` is told of every piece before it is kept and may refuse.
    pub(super) async fn body(
        &mut self,
        bytes_max: u64,
        limit: Duration,
        floor: u64,
        mut grow: impl FnMut(u64) -> Result<(), Fault>,
    ) -> Result<Bytes, Fault> {
        let mut cutoff = self.stop.cutoff.clone();
        if self.head().headers.contains_key(header::EXPECT) && self.is_http11() {
            self.session.write_continue_response().await.map_err(|_| Fault::BodyCut)?;
        }
        let (mut first, mut all) = (Bytes::new(), BytesMut::new());
        let deadline = sleep(limit);
        tokio::pin!(deadline);
        let mut earned = 0_u64;
        loop {
            let piece = tokio::select! {
                biased;
                read = self.session.read_request_body() => match read {
                    Ok(Some(piece)) => piece,
                    Ok(None) => break,
                    Err(error) => return Err(self.body_fault(&error)),
                },
                () = &mut deadline => return Err(Fault::BodyTimeout),
                () = told(&mut cutoff) => return Err(Fault::ShuttingDown),
            };
            let have = (first.len() + all.len() + piece.len()) as u64;
            if have > bytes_max {
                return Err(Fault::BodyTooLarge(bytes_max));
            }
            grow(piece.len() as u64)?;
            earned += piece.len() as u64;
            if earned >= floor {
                let more = Duration::from_secs(earned / floor);
                earned %= floor;
                let latest = sleep(limit).deadline();
                let until = (deadline.deadline() + more).min(latest);
                deadline.as_mut().reset(until);
            }
            if first.is_empty() && all.is_empty() {
                first = piece;
            } else {
                if all.is_empty() {
                    all.reserve(self.body_hint(bytes_max, have));
                    all.extend_from_slice(&std::mem::take(&mut first));
                }
                all.extend_from_slice(&piece);
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }

    /// Room to reserve: what the client announced, but no more than thrice what it has sent.
    fn body_hint(&self, bytes_max: u64, have: u64) -> usize {
        let announced = self.announced_body().unwrap_or(have).min(bytes_max);
        usize::try_from(announced.min(have.saturating_mul(3)).max(have)).unwrap_or(0)
    }

    /// Length the client announced, if it did.
    pub(super) fn announced_body(&self) -> Option<u64> {
        super::upstream::decimal(self.head().headers.get(header::CONTENT_LENGTH)?.as_bytes())
    }

    fn body_fault(&self, error: &pingora::Error) -> Fault {
        match (self.conn.violation(), error.etype()) {
            (Some(violation), _) => Fault::Lint(violation),
            (None, ErrorType::ReadTimedout) => Fault::BodyTimeout,
            (None, _) => Fault::BodyCut,
        }
    }

    /// Resolves when the client has left, nothing was sent when its deadline passed, or the gate cuts what still runs; else never.
    /// Cancel-safe.
    pub(super) async fn left(&mut self) -> Left {
        let mut cutoff = self.stop.cutoff.clone();
        loop {
            let due = self.due.filter(|_| !self.has_begun);
            let comment = self.warm.as_ref().filter(|_| !self.has_begun).map(|warm| warm.at);
            tokio::select! {
                biased;
                () = self.gone() => return Left::Gone,
                () = told(&mut cutoff) => return Left::Cutoff,
                () = until(due) => return Left::Overdue,
                () = until(comment) => {}
            }
            if self.comfort().await.is_err() {
                return Left::Gone;
            }
        }
    }

    /// Resolves when the client has left. A half-close (FIN) counts as leaving.
    async fn gone(&mut self) {
        while self.watches {
            match self.session.read_body_or_idle(true).await {
                Ok(_) => self.watches = false,
                // A byte of a next request came early. That will not be served on this connection; after too much of it,
                // disconnects are noticed by writing only.
                Err(error) if *error.etype() == ErrorType::ConnectError => {
                    self.close_after();
                    self.surplus_bytes += 1;
                    self.watches = self.surplus_bytes < SURPLUS_BYTES_MAX;
                }
                Err(_) => return,
            }
        }
        std::future::pending::<()>().await;
    }

    /// Sends the head, unless comments went before, together with the first bytes of the body; with `end`, that is all of the answer.
    pub(super) async fn begin(&mut self, head: Box<ResponseHeader>, first: Bytes, end: bool) -> Result<(), Lost> {
        if self.is_torn() {
            return Err(Lost::Stalled);
        }
        self.has_begun = true;
        if self.status.is_none() {
            self.send_head(head).await?;
        }
        if end { self.last(first).await } else { self.write(first).await }
    }

    async fn send_head(&mut self, head: Box<ResponseHeader>) -> Result<(), Lost> {
        self.status = Some(head.status.as_u16());
        if *self.stop.leaving.borrow() {
            self.close_after();
        }
        self.cork(true);
        let written = self.session.write_response_header(head).await;
        self.cork(false);
        written.map_err(|error| self.lost(&error))
    }

    /// Sends more of the body; of nothing, nothing.
    pub(super) async fn write(&mut self, piece: Bytes) -> Result<(), Lost> {
        if piece.is_empty() {
            return Ok(());
        }
        self.sent_bytes += piece.len() as u64;
        self.session.write_response_body(piece, false).await.map_err(|error| self.lost(&error))
    }

    /// Sends the rest of the body (may be empty) and ends it.
    pub(super) async fn last(&mut self, piece: Bytes) -> Result<(), Lost> {
        if self.is_torn() {
            return Err(Lost::Stalled);
        }
        self.sent_bytes += piece.len() as u64;
        self.cork(true);
        let written = self.session.write_response_body(piece, self.is_http2()).await;
        self.cork(false);
        written.map_err(|error| self.lost(&error))?;
        if !self.is_http2() {
            self.session.finish_body().await.map_err(|error| self.lost(&error))?;
        }
        self.ended = true;
        Ok(())
    }

    /// Joins writes, on HTTP/1 only: an HTTP/2 connection is shared with other streams.
    fn cork(&self, corked: bool) {
        if !self.is_http2() {
            self.conn.cork(corked);
        }
    }

    /// Breaks the answer off so that the client sees that it is not whole.
    pub(super) async fn cut(&mut self) {
        (self.ended, self.is_cut) = (true, true);
        self.close_after();
        self.session.shutdown().await;
    }

    fn lost(&self, error: &pingora::Error) -> Lost {
        let is_stalled = self.conn.is_stalled() || *error.etype() == ErrorType::WriteTimedout;
        if is_stalled { Lost::Stalled } else { Lost::Gone }
    }

    /// Answers with a fault of the gate. Only before [`Client::begin`].
    pub(super) async fn refuse(&mut self, fault: &Fault, shape: Shape, request_id: &str) -> Result<(), Lost> {
        let row = fault.row();
        let body = fault.body(shape);
        if row.close {
            self.close_after();
        }
        let mut head = Self::fault_head(fault, body.len(), request_id).map_err(|error| self.lost(&error))?;
        self.open(&mut head).map_err(|error| self.lost(&error))?;
        self.begin(head, body, true).await
    }

    fn fault_head(fault: &Fault, body_bytes: usize, request_id: &str) -> pingora::Result<Box<ResponseHeader>> {
        let row = fault.row();
        let status = StatusCode::from_u16(row.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut head = ResponseHeader::build_no_case(status, Some(6))?;
        head.insert_header(header::CONTENT_TYPE, "application/json")?;
        head.insert_header(header::CONTENT_LENGTH, body_bytes)?;
        head.insert_header("x-request-id", request_id)?;
        if let Some(reason) = row.reason {
            head.insert_header("x-tidegate-reason", reason)?;
        }
        if let Some(seconds) = row.retry_after_s {
            head.insert_header(header::RETRY_AFTER, seconds)?;
        }
        if row.status == StatusCode::UNAUTHORIZED {
            head.insert_header(header::WWW_AUTHENTICATE, "Bearer")?;
        }
        if let Fault::MethodNotAllowed(allow) = fault {
            head.insert_header(header::ALLOW, *allow)?;
        }
        if row.close {
            head.insert_header(header::CONNECTION, "close")?;
        }
        Ok(Box::new(head))
    }

    /// Answers with a body of the gate's own.
    pub(super) async fn answer(
        &mut self,
        status: StatusCode,
        fields: HeaderMap,
        body: Bytes,
        request_id: &str,
    ) -> Result<(), Lost> {
        let frame = super::headers::Frame::Length(body.len() as u64);
        let mut head =
            super::headers::to_client(status, fields, frame, self.is_http11()).map_err(|error| self.lost(&error))?;
        head.insert_header("x-request-id", request_id).map_err(|error| self.lost(&error))?;
        self.open(&mut head).map_err(|error| self.lost(&error))?;
        self.begin(head, body, true).await
    }

    /// Lets the web page that asked read the answer, as pods do (CORS).
    fn open(&self, head: &mut ResponseHeader) -> pingora::Result<()> {
        let Some(origin) = &self.opened_to else { return Ok(()) };
        head.insert_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone())?;
        head.insert_header(header::VARY, "Origin")
    }

    /// Gives the session back at the end of the request.
    pub(super) fn into_session(self) -> ServerSession {
        self.session
    }
}

/// Resolves once the flag is up; never if nobody can raise it any more.
async fn told(flag: &mut watch::Receiver<bool>) {
    if flag.wait_for(|is_up| *is_up).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves at that time; never without one.
async fn until(at: Option<Mono>) {
    match at {
        Some(at) => sleep(at.since(now())).await,
        None => std::future::pending().await,
    }
}
