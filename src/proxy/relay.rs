//! From a pod's answer to the client's: holds everything until the first real data, then passes bytes as they come.
//!
//! vLLM sends the head of a stream before the prefill, and some failures arrive as a 200 with an error event. So nothing
//! goes to the client before the first data event that is neither a comment nor an error (of a plain answer: its first
//! body byte); until then another pod can be tried. Afterwards every byte passes at once and unchanged.
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::StatusCode;
use tokio::time::{Sleep, sleep};

use super::attempt::{Cut, Failed, Kept, Tried, failure_of, watch};
use super::client::{Left, as_event};
use super::exchange::{End, Exchange};
use super::gate::Phase;
use super::headers::Frame;
use super::intake::Facts;
use super::reply::Fault;
use super::trial::Trial;
use super::upstream::{self, Framing, PodConn, PodFault, PodHead};
use crate::api::sse::First;
use crate::api::{Api, Marks, SseScan, Usage, response_id_of_body, usage_of_body};
use crate::base::PodId;
use crate::flow::Failure;
use crate::observe::Cause;
use crate::pods::Outcome;
use crate::runtime::now;

/// Held of a stream before its first data event; more commits it.
const HELD_BYTES_MAX: usize = 256 * 1024;
/// Held back of an event that is not whole; of a longer one, parts pass.
const EVENT_HELD_BYTES_MAX: usize = 16 * 1024;
/// Kept of a refusal's body.
const KEPT_BYTES_MAX: usize = 64 * 1024;
/// Time for the rest of a refusal's body.
const KEPT_WITHIN: Duration = Duration::from_secs(2);
/// Time for the end of the framing after a stream's good ending.
const TAIL_WITHIN: Duration = Duration::from_millis(20);
/// After the end of a lease, until the prefill pod has counted it.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// Largest plain answer that is looked into for usage.
const LOOKED_INTO_BYTES_MAX: usize = 4 << 20;

/// How a relayed answer ended.
enum Ended {
    Good,
    Broken(Fault),
}

impl Exchange {
    /// Relays an answer whose head was read.
    pub(super) async fn relay(
        &mut self,
        facts: &Facts,
        head: PodHead,
        mut conn: PodConn,
        trial: &mut Trial<'_>,
        alarm: Pin<&mut Sleep>,
    ) -> Result<Tried, End> {
        let is_fed = trial.fed.is_some();
        // A decoder that cannot load says no more than that (vLLM 0.32).
        let handover = (is_fed && head.status == StatusCode::INTERNAL_SERVER_ERROR).then_some(Failure::Handover);
        if let Some(failure) = failure_of(head.status).or(handover) {
            let fault = Fault::PodClosed;
            let kept = self.keep(&mut conn, head, BytesMut::new()).await?;
            upstream::checkin(conn, now());
            return Ok(Tried::Failed(Failed { failure, fault, kept }));
        }
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            return self.tunnel(facts, head, conn, trial).await;
        }
        let is_sse = head.status.is_success() && head.is_sse();
        match facts.api {
            Some(api) if is_sse => self.stream(facts, api, head, conn, trial, alarm).await,
            Some(_) if is_fed && head.status.is_success() => self.fed(facts, head, conn, trial, alarm).await,
            _ => self.plain(facts, head, conn, trial, alarm).await,
        }
    }

    /// Reads the rest of an answer that may not be needed, within bounds; `None` if it does not fit them.
    async fn keep(&mut self, conn: &mut PodConn, head: PodHead, mut body: BytesMut) -> Result<Option<Kept>, End> {
        let rest = async {
            while let Some(piece) = conn.body().await.ok()? {
                body.extend_from_slice(&piece);
                if body.len() > KEPT_BYTES_MAX + HELD_BYTES_MAX {
                    return None;
                }
            }
            Some(())
        };
        match watch(&mut self.client, pin!(sleep(KEPT_WITHIN)), rest).await {
            Ok(Some(())) => Ok(Some(Kept { head, body: body.freeze() })),
            Ok(None) | Err(Cut::Late) => Ok(None),
            Err(Cut::Left(left)) => Err(left.into()),
        }
    }

    /// Marks the point of no return; `Err`: the pod was wanted for somebody else a moment ago.
    pub(super) fn commit(&mut self, facts: &Facts, trial: &mut Trial<'_>, status: StatusCode) -> Result<(), Failed> {
        if self.permit.as_ref().is_some_and(|permit| !permit.commit()) {
            return Err(Failed::new(Failure::Busy, Fault::PodClosed));
        }
        self.at(Phase::Commit);
        self.handed_over(trial, status.is_success(), facts.is_stream);
        trial.answered(status);
        facts.body.release();
        self.note.committed = true;
        let at = now();
        self.note.first_at = Some(at);
        if facts.is_stream {
            self.stream_begins(at);
        }
        if let Some(ticket) = &self.ticket {
            ticket.committed(now());
        }
        if let Some(permit) = &self.permit {
            permit.committed(self.note.pod);
        }
        self.body_held = None;
        Ok(())
    }

    /// An answer that is not an event stream.
    async fn plain(
        &mut self,
        facts: &Facts,
        head: PodHead,
        mut conn: PodConn,
        trial: &mut Trial<'_>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Tried, End> {
        let status = head.status;
        let frame = match head.framing {
            Framing::Length(bytes) => Frame::Length(bytes),
            Framing::Empty => Frame::Length(0),
            Framing::Chunked | Framing::UntilClose => Frame::Open,
        };
        let first = match watch(&mut self.client, alarm.as_mut(), conn.body()).await {
            Ok(Ok(first)) => first.unwrap_or_default(),
            Ok(Err(_)) => return Ok(Tried::Failed(Failed::new(Failure::BrokenUncommitted, Fault::PodClosed))),
            Err(Cut::Left(left)) => return Err(left.into()),
            Err(Cut::Late) => return Ok(Tried::Failed(Failed::new(Failure::FirstByteTimeout, Fault::AnswerTimeout))),
        };
        if let Err(failed) = self.commit(facts, trial, status) {
            return Ok(Tried::Failed(failed));
        }
        let head = match self.client.warmed() {
            Some(api) => return self.plain_event(api, head, first, conn).await,
            None => self.client_head(head, frame)?,
        };
        let mut whole = Whole::new(facts.api.filter(|_| status.is_success()), &first);
        self.client.begin(head, first, conn.is_done()).await?;
        self.at(Phase::Stream);
        let ended = self.plain_rest(&mut conn, &mut whole, alarm).await;
        let (usage, response_id) = whole.facts(trial);
        self.note.usage = usage;
        // Also if the client has left meanwhile: it may come back for the response.
        if let Some(id) = response_id {
            self.gate.affinity.learn(&id, trial.pod);
        }
        let ended = ended?;
        if let Ended::Broken(fault) = ended {
            self.note.cause = Some(fault.row().cause);
            self.client.cut().await;
            return Ok(Tried::Done(usage, Outcome::Broken));
        }
        upstream::checkin(conn, now());
        let (cause, outcome) = match status.as_u16() {
            500.. => (Cause::PodError, Outcome::ServerError),
            400.. => (Cause::PodClientFault, Outcome::Good),
            _ => (Cause::Ok, Outcome::Good),
        };
        self.note.cause = Some(cause);
        Ok(Tried::Done(usage, outcome))
    }

    /// An answer that is not an event stream, where one was begun by comments: mostly a refusal.
    async fn plain_event(&mut self, api: Api, head: PodHead, first: Bytes, mut conn: PodConn) -> Result<Tried, End> {
        let status = head.status;
        let kept = self.keep(&mut conn, head, BytesMut::from(first)).await?;
        let Some(Kept { head, body }) = kept else { return Err(Fault::PodGarbage.into()) };
        upstream::checkin(conn, now());
        let head = self.client_head(head, Frame::Open)?;
        self.client.begin(head, as_event(api, &body), true).await?;
        let is_ours = status.is_server_error();
        self.note.cause = Some(if is_ours { Cause::PodError } else { Cause::PodClientFault });
        Ok(Tried::Done(None, if is_ours { Outcome::ServerError } else { Outcome::Good }))
    }

    async fn plain_rest(
        &mut self,
        conn: &mut PodConn,
        whole: &mut Whole,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Ended, End> {
        while !conn.is_done() {
            match watch(&mut self.client, alarm.as_mut(), conn.body()).await {
                Ok(Ok(Some(piece))) => {
                    whole.add(&piece);
                    if conn.is_done() {
                        self.client.last(piece).await?;
                    } else {
                        self.client.write(piece).await?;
                    }
                }
                Ok(Ok(None)) => break,
                Ok(Err(_)) => return Ok(Ended::Broken(Fault::StreamBroken)),
                Err(Cut::Left(left)) => return Err(left.into()),
                Err(Cut::Late) => return Ok(Ended::Broken(Fault::AnswerTimeout)),
            }
        }
        if !self.client.is_ended() {
            self.client.last(Bytes::new()).await?;
        }
        Ok(Ended::Good)
    }

    /// An answer that is not a stream, of a decoder whose KV came from another pod: read whole, so that its first token can be
    /// checked before anything reaches the client.
    async fn fed(
        &mut self,
        facts: &Facts,
        head: PodHead,
        mut conn: PodConn,
        trial: &mut Trial<'_>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Tried, End> {
        let mut body = BytesMut::new();
        // A long answer comes long after the lease: whether that ran out is asked when it would have.
        let ends = trial.fed.as_ref().map_or(now(), |fed| fed.ends());
        let mut over = pin!(sleep(ends.since(now()) + LOOK_AFTER));
        let mut has_looked = !self.rules.disagg.sentinel;
        while !conn.is_done() && body.len() <= LOOKED_INTO_BYTES_MAX {
            let piece = tokio::select! {
                biased;
                piece = watch(&mut self.client, alarm.as_mut(), conn.body()) => piece,
                () = over.as_mut(), if !has_looked => {
                    has_looked = true;
                    self.look(trial).await?;
                    continue;
                }
            };
            match piece {
                Ok(Ok(Some(piece))) => body.extend_from_slice(&piece),
                Ok(Ok(None)) => break,
                Ok(Err(_)) => return Ok(Tried::Failed(Failed::new(Failure::BrokenUncommitted, Fault::PodClosed))),
                Err(Cut::Left(left)) => return Err(left.into()),
                Err(Cut::Late) => {
                    return Ok(Tried::Failed(Failed::new(Failure::FirstByteTimeout, Fault::AnswerTimeout)));
                }
            }
        }
        if let Some(sentinel) = &mut trial.sentinel {
            sentinel.body(&body);
        }
        if let Some(failed) = self.unsound(trial).await? {
            return Ok(Tried::Failed(failed));
        }
        conn.put_back(body.freeze());
        self.plain(facts, head, conn, trial, alarm).await
    }

    /// An event stream.
    async fn stream(
        &mut self,
        facts: &Facts,
        api: Api,
        head: PodHead,
        mut conn: PodConn,
        trial: &mut Trial<'_>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Tried, End> {
        let mut scan = SseScan::new(api);
        let (mut held, mut boundary) = (BytesMut::new(), None);
        while (scan.first() != Some(First::Good) || trial.checked().is_none() && !conn.is_done())
            && held.len() <= HELD_BYTES_MAX
        {
            let piece = match watch(&mut self.client, alarm.as_mut(), conn.body()).await {
                Ok(Ok(Some(piece))) => piece,
                Ok(Ok(None)) if scan.is_done() && trial.fed.is_some() => break,
                Ok(Ok(None) | Err(PodFault::ClosedInBody)) => {
                    return Ok(Tried::Failed(Failed::new(Failure::BrokenUncommitted, Fault::PodClosed)));
                }
                Ok(Err(_)) => return Ok(Tried::Failed(Failed::new(Failure::Garbage, Fault::PodGarbage))),
                Err(Cut::Left(left)) => return Err(left.into()),
                Err(Cut::Late) => {
                    return Ok(Tried::Failed(Failed::new(Failure::FirstByteTimeout, Fault::FirstByteTimeout)));
                }
            };
            trial.heard(now());
            if let Some(end) = feed(&mut scan, &piece, trial).boundary {
                boundary = Some(held.len() + end);
            }
            held.extend_from_slice(&piece);
            // vLLM opens a chat before it knows whether the blocks came.
            if scan.first() == Some(First::Error) || trial.fed.is_some() && scan.has_error() {
                let failure = match status_of_event(&held) {
                    Some(500) if trial.fed.is_some() => Failure::Handover,
                    status => Failure::ErrorEvent { status },
                };
                let kept = self.keep(&mut conn, head, held).await?;
                upstream::checkin(conn, now());
                return Ok(Tried::Failed(Failed { failure, fault: Fault::PodClosed, kept }));
            }
        }
        // Some vLLM end a stream without a word when the blocks did not come.
        if scan.is_done() && trial.is_mute() {
            return Ok(Tried::Failed(Failed::new(Failure::Handover, Fault::PodClosed)));
        }
        if let Some(failed) = self.unsound(trial).await? {
            return Ok(Tried::Failed(failed));
        }
        if let Err(failed) = self.commit(facts, trial, head.status) {
            return Ok(Tried::Failed(failed));
        }
        let head = self.client_head(head, Frame::Open)?;
        trial.came(now(), scan.events());
        self.learn_response(&scan, trial.pod);
        let mut tail = Tail::default();
        let first = tail.take(held.freeze(), boundary);
        let is_end = conn.is_done() && scan.is_done() && tail.is_empty();
        self.client.begin(head, first, is_end).await?;
        self.at(Phase::Stream);
        let ended = self.stream_rest(facts, &mut conn, &mut scan, &mut tail, trial).await;
        self.note.events = scan.events();
        self.note.usage = scan.usage();
        self.learn_response(&scan, trial.pod);
        self.stream_ended(api, ended?, &scan, tail, conn).await
    }

    /// Remembers which pod made a response: it may be asked for or cancelled while it still streams.
    fn learn_response(&self, scan: &SseScan, pod: PodId) {
        if let Some(id) = scan.response_id() {
            self.gate.affinity.learn(id, pod);
        }
    }

    /// Passes events until the good ending, the end of the body, or a fault.
    async fn stream_rest(
        &mut self,
        facts: &Facts,
        conn: &mut PodConn,
        scan: &mut SseScan,
        tail: &mut Tail,
        trial: &mut Trial<'_>,
    ) -> Result<Ended, End> {
        let pause_max = self.rules.times(&facts.model).between_tokens;
        let mut gaps = self.in_flight.model().gaps();
        let mut last_at = now();
        let mut alarm = pin!(sleep(pause_max));
        while !(conn.is_done() || scan.is_done() && scan.at_boundary()) {
            match watch(&mut self.client, alarm.as_mut(), conn.body()).await {
                Ok(Ok(Some(piece))) => {
                    let at = now();
                    gaps.observe_us(at.0 - last_at.0);
                    last_at = at;
                    trial.heard(at);
                    let marks = feed(scan, &piece, trial);
                    trial.came(at, marks.events);
                    let whole = tail.take(piece, marks.boundary);
                    if conn.is_done() && scan.is_done() && tail.is_empty() {
                        self.client.last(whole).await?;
                    } else {
                        self.client.write(whole).await?;
                    }
                }
                Ok(Ok(None)) => break,
                Ok(Err(_)) => return Ok(Ended::Broken(Fault::StreamBroken)),
                Err(Cut::Left(Left::Cutoff)) => return Ok(Ended::Broken(Fault::ShuttingDown)),
                Err(Cut::Left(left)) => return Err(left.into()),
                Err(Cut::Late) => {
                    let paused = now().since(last_at);
                    if paused >= pause_max {
                        return Ok(Ended::Broken(Fault::IdleTimeout));
                    }
                    alarm.set(sleep(pause_max.saturating_sub(paused)));
                }
            }
        }
        // Some APIs end a failed stream with their error event and no good ending.
        let is_told = scan.is_done() || scan.has_error();
        Ok(if is_told { Ended::Good } else { Ended::Broken(Fault::Truncated) })
    }

    /// Ends the client's stream: well, or with one error event and no good ending.
    async fn stream_ended(
        &mut self,
        api: Api,
        ended: Ended,
        scan: &SseScan,
        mut tail: Tail,
        conn: PodConn,
    ) -> Result<Tried, End> {
        let usage = scan.usage();
        match ended {
            Ended::Good => {
                if !self.client.is_ended() {
                    self.client.last(tail.rest()).await?;
                }
                give_back(conn).await;
                let (cause, outcome) = if scan.has_error() {
                    (Cause::PodErrorEvent, Outcome::ServerError)
                } else {
                    (Cause::Ok, Outcome::Good)
                };
                self.note.cause = Some(cause);
                Ok(Tried::Done(usage, outcome))
            }
            Ended::Broken(fault) => {
                drop(conn);
                self.client.close_after();
                if scan.has_error() && scan.at_boundary() {
                    // The pod has told its failure itself, before it broke.
                    self.note.cause = Some(Cause::PodErrorEvent);
                    self.client.last(Bytes::new()).await?;
                    return Ok(Tried::Done(usage, Outcome::Broken));
                }
                self.note.cause = Some(fault.row().cause);
                let mut event = BytesMut::new();
                if tail.is_split {
                    event.extend_from_slice(b"\n\n");
                }
                event.extend_from_slice(&fault.event(api));
                self.client.last(event.freeze()).await?;
                let is_ours = matches!(fault, Fault::ShuttingDown);
                Ok(Tried::Done(usage, if is_ours { Outcome::Good } else { Outcome::Broken }))
            }
        }
    }
}

/// Scans a piece of a stream, and hands its events to what follows the answer's text.
fn feed(scan: &mut SseScan, piece: &[u8], trial: &mut Trial<'_>) -> Marks {
    let Trial { extension, sentinel, .. } = trial;
    match (extension, sentinel) {
        (None, None) => scan.feed(piece),
        (extension, sentinel) => scan.feed_to(piece, &mut |event| {
            if let Some(extension) = extension {
                extension.event(event);
            }
            if let Some(sentinel) = sentinel.as_mut().filter(|sentinel| sentinel.said().is_none()) {
                sentinel.event(event.name, event.data);
            }
        }),
    }
}

/// Holds back an event that is not whole yet, so that a stream that breaks inside it still ends between events: of half an
/// event a client can make nothing but an error of its own. Long events pass in parts.
#[derive(Default)]
struct Tail {
    bytes: BytesMut,
    /// Part of the current event has gone to the client.
    is_split: bool,
}

impl Tail {
    /// What of the stream may go to the client now that `piece` came, in which the last event ends at `boundary`.
    fn take(&mut self, piece: Bytes, boundary: Option<usize>) -> Bytes {
        if let Some(end) = boundary {
            self.is_split = false;
            if self.bytes.is_empty() && end == piece.len() {
                return piece;
            }
        }
        let end = boundary.unwrap_or(0).min(piece.len());
        let rest = piece.slice(end..);
        if self.bytes.len() + rest.len() > EVENT_HELD_BYTES_MAX {
            self.is_split = true;
            self.bytes.extend_from_slice(&piece);
            return self.rest();
        }
        let whole = if self.bytes.is_empty() || end == 0 {
            piece.slice(..end)
        } else {
            self.bytes.extend_from_slice(&piece.slice(..end));
            self.rest()
        };
        self.bytes.extend_from_slice(&rest);
        whole
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All that is held.
    fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.bytes).freeze()
    }
}

/// Pools the connection if the rest of the framing is there, or comes at once.
async fn give_back(mut conn: PodConn) {
    if !conn.is_done() {
        match tokio::time::timeout(TAIL_WITHIN, conn.body()).await {
            Ok(Ok(None)) => {}
            _ => return,
        }
    }
    upstream::checkin(conn, now());
}

/// The status that an error event states: a number as `error.code`, or by a word.
fn status_of_event(held: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(held).ok()?;
    let is_error = |event: &serde_json::Value| {
        event.get("error").is_some_and(|error| !error.is_null())
            || event.get("type").is_some_and(|kind| kind == "error")
    };
    let data = text.lines().filter_map(|line| line.strip_prefix("data:")).filter(|data| data.contains("error"));
    let event = data.filter_map(|data| serde_json::from_str(data.trim()).ok()).find(is_error)?;
    let error = event.get("error").unwrap_or(&event);
    let word = |name: &str| error.get(name).and_then(serde_json::Value::as_str);
    match error.get("code").and_then(serde_json::Value::as_u64) {
        Some(code) => u16::try_from(code).ok(),
        None => word("code").and_then(status_of_word).or_else(|| word("type").and_then(status_of_word)),
    }
}

/// The status behind a word of an error: types of the Messages API, codes of the Responses API.
fn status_of_word(word: &str) -> Option<u16> {
    Some(match word {
        "invalid_request_error" | "invalid_prompt" | "BadRequestError" => 400,
        "authentication_error" => 401,
        "permission_error" => 403,
        "not_found_error" | "NotFoundError" => 404,
        "request_too_large" => 413,
        "rate_limit_error" | "rate_limit_exceeded" => 429,
        "api_error" | "internal_error" | "server_error" | "InternalServerError" => 500,
        "overloaded_error" => 503,
        digits => return digits.parse().ok(),
    })
}

/// Collects a plain answer as it passes, to read its usage at the end. Large answers are not collected.
struct Whole {
    api: Option<Api>,
    first: Bytes,
    all: BytesMut,
}

impl Whole {
    fn new(api: Option<Api>, first: &Bytes) -> Self {
        Self { api, first: first.clone(), all: BytesMut::new() }
    }

    fn add(&mut self, piece: &Bytes) {
        if self.api.is_none() {
            return;
        }
        if self.first.len() + self.all.len() + piece.len() > LOOKED_INTO_BYTES_MAX {
            self.api = None;
            self.all = BytesMut::new();
            return;
        }
        if self.all.is_empty() {
            self.all.extend_from_slice(&self.first);
        }
        self.all.extend_from_slice(piece);
    }

    /// Usage, and the id of a stored response; the text goes to the trial.
    fn facts(&self, trial: &mut Trial<'_>) -> (Option<Usage>, Option<String>) {
        let Some(api) = self.api else { return (None, None) };
        let body = if self.all.is_empty() { &self.first[..] } else { &self.all[..] };
        if let Some(extension) = &mut trial.extension {
            extension.body(body);
        }
        (usage_of_body(api, body), response_id_of_body(api, body).filter(|_| api == Api::Responses))
    }
}
