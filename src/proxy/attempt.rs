//! Attempts on pods: dispatch, classify what went wrong, try once more elsewhere while nothing reached the client.
use std::future::Future;
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use pingora::http::RequestHeader;
use tokio::time::{Sleep, sleep};

use super::client::{Client, Left, as_event};
use super::exchange::{End, Exchange};
use super::gate::Phase;
use super::headers::{self, ToPod};
use super::intake::Facts;
use super::legs::Legs;
use super::plan::{Avoid, Choice, Planned, has_other};
use super::reply::Fault;
use super::trial::Trial;
use super::upstream::{self, PodConn, PodFault, PodHead};
use crate::api::Usage;
use crate::base::{Mono, PodId};
use crate::flow::{Failure, Replay, Setback, Verdict, classify};
use crate::observe::{Cause, Stage};
use crate::pods::{Attempt, Outcome};
use crate::runtime::now;
use crate::tls::Dial;

/// Dead connections taken from the pool in a row before the pod itself is blamed.
const STALE_MAX: u32 = 3;
/// A reused connection that breaks sooner was dead before; later, the pod had the request.
pub(super) const STALE_WITHIN: Duration = Duration::from_millis(30);

/// An answer of a pod that is kept until it is clear that nobody gives a better one.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) head: PodHead,
    pub(super) body: Bytes,
}

/// A failed attempt. Nothing of it reached the client.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) failure: Failure,
    pub(super) fault: Fault,
    pub(super) kept: Option<Kept>,
}

/// How an attempt ended, if the client is still there.
pub(super) enum Tried {
    /// The client has its answer, good or broken; what the pod told of usage, and what it says of the pod's health.
    Done(Option<Usage>, Outcome),
    /// It may be tried elsewhere.
    Failed(Failed),
}

/// Why waiting for a pod stopped.
pub(super) enum Cut {
    /// The client left, or the gate ends.
    Left(Left),
    /// The time is up.
    Late,
}

/// Waits for `future` while watching the client and the clock.
pub(super) async fn watch<T>(
    client: &mut Client,
    alarm: Pin<&mut Sleep>,
    future: impl Future<Output = T>,
) -> Result<T, Cut> {
    tokio::select! {
        biased;
        output = future => Ok(output),
        left = client.left() => Err(Cut::Left(left)),
        () = alarm => Err(Cut::Late),
    }
}

impl Failed {
    pub(super) const fn new(failure: Failure, fault: Fault) -> Self {
        Self { failure, fault, kept: None }
    }

    pub(super) fn of(fault: &PodFault) -> Self {
        match fault {
            PodFault::Connect(error) => match error.kind() {
                std::io::ErrorKind::TimedOut => Self::new(Failure::ConnectTimeout, Fault::ConnectFailed),
                std::io::ErrorKind::AddrNotAvailable => Self::new(Failure::NoLocalSocket, Fault::Exhausted),
                _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
                    Self::new(Failure::NoLocalSocket, Fault::Exhausted)
                }
                _ => Self::new(Failure::ConnectRefused, Fault::ConnectFailed),
            },
            PodFault::ClosedEarly | PodFault::Io(_) => Self::new(Failure::NoHead, Fault::PodClosed),
            PodFault::ClosedInBody => Self::new(Failure::BrokenUncommitted, Fault::PodClosed),
            PodFault::Junk("head too large") => Self::new(Failure::HeadTooLarge, Fault::PodGarbage),
            PodFault::Junk(_) => Self::new(Failure::Garbage, Fault::PodGarbage),
        }
    }

    /// What it says about the pod's health.
    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self.failure {
            // Which of the two pods is to blame for a failed handover is not known.
            Failure::NoLocalSocket | Failure::Handover => None,
            Failure::ConnectRefused | Failure::ConnectTimeout | Failure::TlsFailed => Some(Outcome::ConnectFailed),
            Failure::Busy => {
                Some(Outcome::Busy { retry_after: self.kept.as_ref().and_then(|kept| retry_after(&kept.head)) })
            }
            Failure::ErrorEvent { status: Some(429 | 503) } => Some(Outcome::Busy { retry_after: None }),
            Failure::ErrorEvent { status: Some(400..=499) } => Some(Outcome::Good),
            Failure::ErrorEvent { .. } | Failure::ServerError => Some(Outcome::ServerError),
            _ => Some(Outcome::Broken),
        }
    }
}

fn retry_after(head: &PodHead) -> Option<Duration> {
    let seconds = head.headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

impl Exchange {
    /// Sends the request to pods until one answers, within the rules for retries.
    pub(super) async fn attempts(&mut self, facts: &Facts) -> Result<(), End> {
        let mut tried: Vec<PodId> = Vec::new();
        let mut last: Option<Failed> = None;
        let times = self.rules.times(&facts.model);
        // One deadline for all attempts together.
        let mut alarm = pin!(sleep(if facts.is_stream { times.first_token } else { times.answer }));
        let mut planned = None;
        if self.rules.disagg.can_split(&self.gate.table.fleet()) {
            match self.choose_legs(facts, &Avoid { pods: &[], prefillers: &[] })? {
                Planned::One(choice) => planned = Some(choice),
                Planned::Two(pair) => match Box::pin(self.both(facts, pair, &mut tried, alarm.as_mut())).await? {
                    Legs::Answered => return Ok(()),
                    Legs::Failed(failed) => return self.give_up(failed).await,
                    Legs::Alone(failed) => last = failed,
                },
            }
        }
        loop {
            let choice = match planned.take().map_or_else(|| self.choose(facts, &tried), Ok) {
                Ok(choice) => choice,
                Err(fault) => match last {
                    Some(failed) => return self.give_up(failed).await,
                    None => return Err(fault.into()),
                },
            };
            let (permit, choice) = self.turn(facts, choice, None, &tried, alarm.as_mut()).await?;
            let recalled = self.hold(permit);
            let Some(health) = Attempt::begin(&choice.pod, now(), choice.leave) else {
                self.let_go_unused();
                tried.push(choice.pod.id);
                continue;
            };
            self.tries(&choice);
            let mut trial = Trial::begin(&self.gate, facts, &choice, health);
            let started = trial.started;
            self.booked();
            let failed = match self.attempt_unless(recalled, facts, &choice, &mut trial, alarm.as_mut()).await? {
                // Closing the connection has aborted it; it waits again.
                None => {
                    drop(trial);
                    self.leg_ends(Some("taken_back"));
                    self.taken_back(started, alarm.as_mut());
                    continue;
                }
                Some(Tried::Done(usage, outcome)) => {
                    self.leg_ends((outcome == Outcome::Broken).then_some("broken"));
                    if outcome == Outcome::Broken {
                        let key = facts.body_key();
                        self.gate.guards.broke(now(), choice.pod.id, started, key);
                        self.gate.cut(&choice.pod);
                    }
                    trial.settled(usage, outcome);
                    self.paid(&choice, usage.as_ref());
                    return Ok(());
                }
                Some(Tried::Failed(failed)) => failed,
            };
            self.leg_ends(Some(failed.fault.row().cause.as_str()));
            tried.push(choice.pod.id);
            if let Some(outcome) = failed.outcome() {
                trial.over(outcome);
            }
            drop(trial);
            self.let_go();
            self.broke(facts, &choice, &failed, started);
            if !self.goes_again(facts, &choice, &failed, started, &tried).await? {
                return self.give_up(failed).await;
            }
            last = Some(failed);
        }
    }

    fn tries(&mut self, choice: &Choice) {
        self.note.attempts += 1;
        self.note.pod = Some(choice.pod.id);
        (self.note.prompt, self.note.hit) = (choice.prompt, choice.hit);
        self.in_flight.model().attempt();
        self.leg_begins("serve", choice.pod.id);
    }

    /// Tells the poison guard, and lets go of the pod's pooled connections, when a pod broke.
    pub(super) fn broke(&self, facts: &Facts, choice: &Choice, failed: &Failed, started: Mono) {
        match failed.failure {
            Failure::ConnectRefused => {
                self.gate.guards.died(now(), choice.pod.id);
                upstream::forget(choice.pod.spec.addr);
            }
            Failure::NoHead | Failure::BrokenUncommitted | Failure::WriteBroken => {
                let key = facts.body_key();
                self.gate.guards.broke(now(), choice.pod.id, started, key);
                self.gate.cut(&choice.pod);
            }
            _ => {}
        }
    }

    /// Asks whether the request may go to another pod; waits while that is open.
    async fn goes_again(
        &mut self,
        facts: &Facts,
        choice: &Choice,
        failed: &Failed,
        started: Mono,
        tried: &[PodId],
    ) -> Result<bool, End> {
        let class = classify(failed.failure);
        let setback = Setback {
            class,
            pod: choice.pod.id,
            started,
            failed: now(),
            attempts: self.note.attempts,
            replay: facts.replay,
            has_other_pod: has_other(&self.gate.table.fleet(), &facts.model, tried),
        };
        self.granted(facts, &setback).await
    }

    /// Whether the rules let a request go on after this failure; waits while that is open.
    pub(super) async fn granted(&mut self, facts: &Facts, setback: &Setback) -> Result<bool, End> {
        loop {
            match self.gate.guards.may_retry(now(), &facts.account, setback) {
                Verdict::Retry => {
                    self.gate.metrics.retries.inc(setback.class.letter());
                    let key = || facts.body_key();
                    if self.gate.guards.poisoned(now(), key).is_some() {
                        return Err(Fault::Poisoned.into());
                    }
                    return Ok(true);
                }
                Verdict::Stop(stop) => {
                    self.note.reason = Some(stop.as_str());
                    return Ok(false);
                }
                Verdict::Wait(pause) => {
                    let never = std::future::pending::<()>();
                    if let Err(Cut::Left(left)) = watch(&mut self.client, pin!(sleep(pause)), never).await {
                        return Err(left.into());
                    }
                }
            }
        }
    }

    /// Nobody gives a better answer: the pod's own if there is one, else the gate's.
    async fn give_up(&mut self, failed: Failed) -> Result<(), End> {
        let Some(kept) = failed.kept else { return Err(failed.fault.into()) };
        self.note.cause = Some(match failed.failure {
            Failure::Busy => Cause::PodBusy,
            Failure::ErrorEvent { .. } => Cause::PodErrorEvent,
            _ => Cause::PodError,
        });
        let api = self.client.warmed().filter(|_| !kept.head.is_sse());
        let body = api.map(|api| as_event(api, &kept.body)).unwrap_or(kept.body);
        let frame = headers::Frame::Length(body.len() as u64);
        let head = self.client_head(kept.head, frame)?;
        self.client.begin(head, body, true).await?;
        Ok(())
    }

    /// One attempt on one pod, with a fresh connection for each dead one from the pool.
    pub(super) async fn attempt(
        &mut self,
        facts: &Facts,
        choice: &Choice,
        trial: &mut Trial<'_>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Tried, End> {
        let connect_within = self.rules.times(&facts.model).connect;
        let spec = &choice.pod.spec;
        let dial = match self.gate.pod_tls.dial(spec.tls.as_ref()) {
            Ok(dial) => dial,
            Err(error) => return Ok(Tried::Failed(Failed::of(&PodFault::Connect(error)))),
        };
        let body = self.body_for(facts, &choice.pod);
        let has_body = !body.is_empty() || self.client.head().method == Method::POST;
        let head = self.pod_head(choice, has_body.then_some(body.len()), &self.note.request_id);
        // A connection of the pool may be dead already. That shows only once the request is sent, and it would have to be
        // sent again: not for one that must not run twice.
        let may_pool = facts.replay == Replay::Harmless;
        let mut stale = 0;
        loop {
            let began = now();
            let mut conn = match may_pool.then(|| upstream::checkout(spec.addr, dial.as_ref(), began)).flatten() {
                Some(conn) => conn,
                None => match self.connect(spec.addr, dial.clone(), connect_within).await? {
                    Ok(conn) => conn,
                    Err(fault) => return Ok(Tried::Failed(Failed::of(&fault))),
                },
            };
            self.at(Phase::Dispatch);
            conn.may_switch = self.note.is_tunnel;
            match self.ask(&mut conn, &head, &body, alarm.as_mut()).await? {
                Ok(answer) => {
                    trial.heard(now());
                    return self.relay(facts, answer, conn, trial, alarm.as_mut()).await;
                }
                Err(failed) => {
                    let is_stale =
                        conn.reused && failed.failure == Failure::NoHead && now().since(began) < STALE_WITHIN;
                    if is_stale && stale < STALE_MAX {
                        stale += 1;
                        // Most likely it was idle for too long. But a body may also kill a pod that fast.
                        let key = facts.body_key();
                        self.gate.guards.broke(now(), choice.pod.id, trial.started, key);
                        continue;
                    }
                    return Ok(Tried::Failed(failed));
                }
            }
        }
    }

    pub(super) async fn connect(
        &mut self,
        addr: std::net::SocketAddr,
        dial: Option<Dial>,
        limit: Duration,
    ) -> Result<Result<PodConn, PodFault>, End> {
        let started = now();
        let connected = tokio::select! {
            biased;
            connected = PodConn::connect(&self.gate.pod_tls, addr, dial, limit) => connected,
            left = self.client.left() => return Err(left.into()),
        };
        self.gate.metrics.stage(Stage::Connect, now().since(started));
        Ok(connected)
    }

    /// Sends the request and reads the head of the answer.
    pub(super) async fn ask(
        &mut self,
        conn: &mut PodConn,
        head: &[u8],
        body: &[u8],
        alarm: Pin<&mut Sleep>,
    ) -> Result<Result<PodHead, Failed>, End> {
        let is_head_request = self.client.head().method == Method::HEAD;
        let asked = async {
            conn.send(head, body).await?;
            conn.head(is_head_request).await
        };
        match watch(&mut self.client, alarm, asked).await {
            Ok(Ok(head)) => Ok(Ok(head)),
            Ok(Err(fault)) => Ok(Err(Failed::of(&fault))),
            Err(Cut::Left(left)) => Err(left.into()),
            Err(Cut::Late) => Ok(Err(Failed::new(Failure::FirstByteTimeout, Fault::FirstByteTimeout))),
        }
    }

    /// The head of the call to a pod.
    pub(super) fn pod_head(&self, choice: &Choice, body_bytes: Option<usize>, request_id: &str) -> Vec<u8> {
        let client = self.client.head();
        let target = client.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        let credential = self.gate.credential();
        let trace = self.traceparent();
        let mut head = Vec::with_capacity(512);
        let dropped = headers::to_pod(
            &mut head,
            &ToPod {
                method: &client.method,
                target,
                authority: &choice.pod.spec.authority,
                host: host_of(client),
                fields: &client.headers,
                body_bytes,
                request_id,
                client: self.peer,
                is_proxy: self.rules.is_proxy(self.peer),
                is_tls: self.client.conn.is_tls,
                may_choose_rank: self.is_trusted,
                credential: credential.as_ref().map(|secret| secret.expose()),
                keeps_keys: self.rules.keys.is_some(),
                class_headers: &self.rules.class_headers,
                priority: self.pod_priority(),
                rank: choice.pod.spec.rank,
                upgrade: self.note.is_tunnel.then_some("websocket"),
                traceparent: trace.as_deref(),
            },
        );
        let counts = &self.gate.metrics.dropped_headers;
        if dropped.underscore > 0 {
            counts.add("underscore", dropped.underscore.into());
        }
        if dropped.routing > 0 {
            counts.add("routing", dropped.routing.into());
        }
        head
    }

    /// The head of a pod's answer as the client gets it.
    pub(super) fn client_head(
        &self,
        mut head: PodHead,
        frame: headers::Frame,
    ) -> Result<Box<pingora::http::ResponseHeader>, End> {
        let fleet = self.gate.table.fleet();
        if let Some(pod) = self.note.pod.and_then(|id| fleet.find(id)) {
            headers::hide_pod(&mut head.headers, &pod.spec.authority, pod.spec.addr);
        }
        let build = || {
            let mut out = headers::to_client(head.status, head.headers, frame, self.client.is_http11())?;
            out.insert_header("x-request-id", &*self.note.request_id)?;
            if self.note.queued_us > 0 {
                out.insert_header("x-tidegate-queue-ms", (self.note.queued_us / 1_000).to_string())?;
            }
            if let Some(shown) = &self.shown {
                out.insert_header("x-tidegate-decision", shown.clone())?;
            }
            Ok::<_, Box<pingora::Error>>(out)
        };
        build().map_err(|_| Fault::PodGarbage.into())
    }
}

/// Whether a status says that the pod did no work, or stands behind a gateway that broke: another pod may do better.
pub(super) const fn failure_of(status: StatusCode) -> Option<Failure> {
    match status.as_u16() {
        429 | 503 => Some(Failure::Busy),
        502 | 504 => Some(Failure::GatewayStatus),
        _ => None,
    }
}

/// The host a client asked for: `Host`, or `:authority` of HTTP/2.
fn host_of(head: &RequestHeader) -> Option<&str> {
    let host = head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
    host.or_else(|| head.uri.authority().map(http::uri::Authority::as_str))
}
