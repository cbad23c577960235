//! One request from head to log line: check, route, answer or balance, and account for it exactly once.
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};

use super::client::{Client, Left, Lost};
use super::frame;
use super::gate::{Gate, Phase};
use super::guards::Ticket;
use super::identity::Identity;
use super::lobby::Stay;
use super::reply::Fault;
use super::rules::Rules;
use super::trace::Trace;
use super::waitroom::Permit;
use crate::api::{Api, Route, Shape, Usage, route};
use crate::base::{ModelName, Mono, PodId, RequestId, Rng, Slo, Tokens};
use crate::disagg::{Balance, Got};
use crate::observe::{AccessRecord, Cause, Ending, Held, InFlight, Stage, TokenKind, printable_id};
use crate::runtime::{now, unix_ms};

/// How a request ended, if not with a good answer.
#[derive(Debug)]
pub(super) enum End {
    /// The gate says why there is no answer.
    Fault(Fault),
    /// The client left.
    Lost(Lost),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl From<Left> for End {
    fn from(left: Left) -> Self {
        match left {
            Left::Gone => Self::Lost(Lost::Gone),
            Left::Cutoff => Self::Fault(Fault::ShuttingDown),
            Left::Overdue => Self::Fault(Fault::Deadline),
        }
    }
}

impl From<Lost> for End {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

/// What the access line will tell.
#[derive(Debug)]
pub(super) struct Note {
    pub(super) request_id: RequestId,
    pub(super) started: Mono,
    pub(super) route: &'static str,
    pub(super) api: Option<Api>,
    pub(super) model: Option<ModelName>,
    pub(super) cause: Option<Cause>,
    pub(super) reason: Option<&'static str>,
    pub(super) pod: Option<PodId>,
    pub(super) prefill_pod: Option<PodId>,
    pub(super) attempts: u32,
    /// It had its turn before: it is not refused any more for what is predicted.
    pub(super) was_granted: bool,
    pub(super) committed: bool,
    pub(super) is_stream: bool,
    /// A WebSocket, or what is to become one.
    pub(super) is_tunnel: bool,
    pub(super) mode: Option<&'static str>,
    pub(super) bytes_in: u64,
    pub(super) usage: Option<Usage>,
    /// Length of the prompt, an estimate, and what of it the pod was believed to hold.
    pub(super) prompt: Tokens,
    pub(super) hit: Tokens,
    pub(super) events: u64,
    pub(super) first_at: Option<Mono>,
    /// When the prefill of a request on two pods had answered.
    pub(super) prefilled_at: Option<Mono>,
    pub(super) slo: Slo,
    /// What of it was configured or asked by a trusted caller: only this teaches, or anybody could steer where others go.
    pub(super) vouched: Slo,
    /// When the body was there.
    pub(super) read_at: Option<Mono>,
    /// Learns from it; `None` where no pod only prefills.
    pub(super) balance: Option<Arc<Balance>>,
    pub(super) plan_us: Option<u64>,
    /// Time in the queue \[microseconds\].
    pub(super) queued_us: u64,
    pub(super) phase: Phase,
}

/// One request on its way.
pub(super) struct Exchange {
    pub(super) gate: Arc<Gate>,
    pub(super) rules: Arc<Rules>,
    pub(super) client: Client,
    pub(super) note: Note,
    pub(super) in_flight: InFlight,
    pub(super) rng: Rng,
    pub(super) peer: IpAddr,
    pub(super) is_trusted: bool,
    pub(super) identity: Identity,
    pub(super) body_held: Option<Held>,
    pub(super) ticket: Option<Ticket>,
    /// The leave to be on a pod; dropped after what is booked there.
    pub(super) permit: Option<Permit>,
    /// At its session.
    pub(super) stay: Option<Stay>,
    pub(super) shown: Option<HeaderValue>,
    /// What is recorded for its trace; `None` where nothing is exported.
    pub(super) trace: Option<Box<Trace>>,
}

impl Exchange {
    pub(super) fn new(gate: Arc<Gate>, rules: Arc<Rules>, mut client: Client) -> Self {
        client.opened_to = rules.opened_to(&client.head().headers);
        let started = client.conn.head_started().unwrap_or_else(now);
        let mut rng = Rng::new(gate.draw());
        let request_id = client
            .head()
            .headers
            .get("x-request-id")
            .and_then(|id| printable_id(id.as_bytes()))
            .map_or_else(|| made_id(&mut rng), RequestId::from);
        let peer = client.conn.peer.ip().to_canonical();
        let is_trusted = rules.is_trusted(peer) || rules.certified(&client.conn).is_some_and(|caller| caller.trusted);
        Self {
            is_trusted,
            identity: Identity::unknown(&rules, is_trusted),
            in_flight: gate.metrics.request(),
            note: Note::new(request_id, started),
            gate,
            rules,
            client,
            rng,
            peer,
            body_held: None,
            ticket: None,
            permit: None,
            stay: None,
            shown: None,
            trace: None,
        }
    }

    /// Answers a request whose head never became one.
    pub(super) async fn refuse_head(gate: &Arc<Gate>, mut client: Client, fault: Fault) {
        let started = client.conn.head_started().unwrap_or_else(now);
        let request_id = made_id(&mut Rng::new(gate.draw()));
        let row = fault.row();
        if let Fault::Lint(violation) = &fault {
            gate.metrics.framing_rejected.inc(violation.as_str());
        }
        client.close_after();
        let status = client.refuse(&fault, Shape::OpenAi, &request_id).await.ok().map(|()| row.status);
        client.cut().await;
        gate.metrics.finish(gate.metrics.other(), None, status.unwrap_or(0), row.cause);
        let addr = gate.rules().is_client_logged.then(|| client.conn.peer.ip().to_canonical().to_string());
        (gate.log)(&AccessRecord {
            client: addr.as_deref(),
            status,
            e2e_us: micros(started, now()),
            bytes_out: client.sent_bytes(),
            ..AccessRecord::new(unix_ms(), &request_id, "", "unknown", row.cause)
        });
    }

    /// Serves the request to its end.
    pub(super) async fn run(&mut self) {
        let end = self.serve().await;
        if let Err(end) = end {
            self.ended(end).await;
        }
        self.leave();
        self.at(Phase::Settle);
    }

    async fn serve(&mut self) -> Result<(), End> {
        let raw = self.client.raw_head();
        if let Err(rule) = frame::check(self.client.head(), raw.as_deref()) {
            self.gate.metrics.framing_rejected.inc(rule.as_str());
            return Err(Fault::Frame(rule).into());
        }
        let target_bytes = self.client.head().raw_path().len();
        if target_bytes > self.rules.target_bytes_max {
            return Err(Fault::TargetTooLong(self.rules.target_bytes_max).into());
        }
        self.at(Phase::Head);
        self.gate.metrics.stage(Stage::Head, now().since(self.note.started));
        let head = self.client.head();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let route = route(&method, &path, &self.rules.paths);
        if route != Route::Realtime {
            self.client.ignore_upgrade();
        }
        match route {
            Route::Balanced(api) => {
                self.note.api = Some(api);
                self.note.route = api.name();
                self.trace_begins();
                self.identify()?;
                self.balanced(Some(api)).await
            }
            Route::Allowed => {
                self.note.route = "allowed";
                self.trace_begins();
                self.identify()?;
                self.classify(None);
                self.balanced(None).await
            }
            Route::Models => self.models().await,
            Route::Realtime => self.realtime().await,
            Route::ResponseById { id, .. } => self.response_by_id(id).await,
            Route::Health | Route::Ping => self.alive().await,
            Route::Version => self.version().await,
            Route::Preflight => self.preflight().await,
            Route::Refused => Err(Fault::RouteRefused.into()),
            Route::MethodNotAllowed { allow } => Err(Fault::MethodNotAllowed(allow).into()),
            Route::Unknown => Err(Fault::UnknownRoute.into()),
        }
    }

    /// Tells the client, as far as it can still be told.
    async fn ended(&mut self, end: End) {
        match end {
            End::Lost(lost) => {
                self.note.cause = Some(if lost == Lost::Stalled { Cause::ClientStalled } else { Cause::ClientGone });
                self.client.cut().await;
            }
            End::Fault(fault) => {
                let row = fault.row();
                self.note.cause.get_or_insert(row.cause);
                self.note.reason = self.note.reason.or(row.reason);
                if let Some(reason) = row.reason {
                    self.gate.metrics.refused.inc(reason);
                    let class = self.identity.class().map(|_| self.identity.caller.class as usize);
                    if let Some(reasons) = class.and_then(|class| self.gate.metrics.class_refused.get(class)) {
                        reasons.inc(reason);
                    }
                }
                if let Some(api) = self.client.warmed() {
                    if self.client.last(fault.event(api)).await.is_err() {
                        self.client.cut().await;
                    }
                    return;
                }
                if self.client.status().is_some() {
                    self.client.cut().await;
                    return;
                }
                self.client.pass_over_body(self.rules.body_timeout);
                if self.client.refuse(&fault, self.shape(), &self.note.request_id).await.is_err() {
                    self.client.cut().await;
                }
            }
        }
    }

    /// The request enters a phase.
    pub(super) fn at(&mut self, phase: Phase) {
        self.note.phase = phase;
        self.gate.at(phase);
    }

    /// A phase panicked: that costs this request only.
    pub(super) async fn panicked(&mut self) {
        self.gate.metrics.panics.inc(self.note.phase.as_str());
        self.note.cause = Some(Cause::GatePanic);
        if !self.client.is_ended() {
            self.ended(End::Fault(Fault::Panic)).await;
        }
        self.client.close_after();
    }

    /// Shape of errors on this route.
    pub(super) fn shape(&self) -> Shape {
        self.note.api.map_or(Shape::OpenAi, Api::shape)
    }

    /// Books the outcome, writes the one access line, and gives the client back.
    pub(super) fn finish(mut self) -> Client {
        let (end, cause, trace_id) = (now(), self.note.cause.unwrap_or(Cause::GateFault), self.trace_id());
        self.trace_ends(end, cause);
        let Self { gate, client, note, in_flight, rules, peer, identity, .. } = self;
        let addr = rules.is_client_logged.then(|| peer.to_string());
        let model = in_flight.model();
        if !note.is_tunnel {
            model.e2e.observe(end.since(note.started));
        }
        if let Some(first_at) = note.first_at
            && note.api.is_some_and(Api::generates)
        {
            model.ttft.observe(first_at.since(note.started));
            // Of an answer that is not streamed the first token is not seen.
            if cause == Cause::Ok && note.is_stream {
                let got = note.got(first_at, end);
                if let Some(balance) = &note.balance {
                    balance.ended(&note.vouched, &got);
                }
                note.slo.judge(got.ttft_s, got.itl_s).into_iter().for_each(|verdict| gate.metrics.slo.inc(verdict));
            }
        }
        if let Some(usage) = note.usage {
            model.add_tokens(TokenKind::Prompt, usage.prompt_tokens);
            model.add_tokens(TokenKind::Completion, usage.completion_tokens);
            model.add_tokens(TokenKind::Cached, usage.cached_tokens.unwrap_or(0));
        }
        gate.metrics.finish(model, note.pod, client.status().unwrap_or(0), cause);
        if note.plan_us.is_some() {
            gate.explain.ended(&note.request_id, note.ending(cause, client.status(), identity.class(), end));
        }
        let head = client.head();
        (gate.log)(&AccessRecord {
            trace_id,
            http: if client.is_http2() { "2" } else { "1.1" },
            model: note.model.as_deref(),
            tenant: identity.tenant(),
            class: identity.class(),
            client: addr.as_deref(),
            status: client.status(),
            reason: note.reason,
            pod: note.pod,
            prefill_pod: note.prefill_pod,
            attempts: note.attempts,
            committed: note.committed,
            stream: note.is_stream,
            mode: note.mode,
            bytes_in: note.bytes_in,
            bytes_out: client.sent_bytes(),
            prompt_tokens: note.usage.map(|usage| usage.prompt_tokens),
            completion_tokens: note.usage.map(|usage| usage.completion_tokens),
            cached_tokens: note.usage.and_then(|usage| usage.cached_tokens),
            hit_estimate_tokens: note.plan_us.map(|_| note.hit.0),
            events: note.events,
            ttft_us: note.first_at.map(|first| micros(note.started, first)),
            e2e_us: micros(note.started, end),
            queue_us: (note.queued_us > 0).then_some(note.queued_us),
            plan_us: note.plan_us,
            ..AccessRecord::new(unix_ms(), &note.request_id, head.method.as_str(), note.route, cause)
        });
        identity.settle(&note, cause, client.status().unwrap_or(0), &gate.metrics);
        gate.metrics.stage(Stage::Settle, now().since(end));
        client
    }

    /// Answers with JSON of the gate's own, or with an empty body.
    pub(super) async fn json(&mut self, route: &'static str, body: Bytes) -> Result<(), End> {
        self.note.route = route;
        self.note.cause = Some(Cause::Local);
        let mut fields = HeaderMap::with_capacity(1);
        self.client.pass_over_body(self.rules.body_timeout);
        if !body.is_empty() {
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.client.answer(http::StatusCode::OK, fields, body, &self.note.request_id).await?;
        Ok(())
    }
}

impl Note {
    /// How long a good stream took, as its client saw it, from the end of its body on.
    fn got(&self, first_at: Mono, end: Mono) -> Got {
        let tokens = self.usage.map_or(self.events, |usage| usage.completion_tokens);
        let gaps = tokens.saturating_sub(1) as f64;
        let began = self.read_at.unwrap_or(self.started);
        let itl_s = (gaps > 0.0).then(|| end.since(first_at).as_secs_f64() / gaps);
        let prefill_pod_s = self.prefilled_at.map_or(0.0, |at| at.since(began).as_secs_f64());
        Got { ttft_s: first_at.since(began).as_secs_f64(), itl_s, prefill_pod_s }
    }

    /// How it ended, beside its decision.
    fn ending(&self, cause: Cause, status: Option<u16>, class: Option<&'static str>, end: Mono) -> Ending {
        Ending {
            cause,
            status,
            class,
            attempts: self.attempts,
            ttft_us: self.first_at.map(|first| micros(self.started, first)),
            e2e_us: micros(self.started, end),
            cached_tokens: self.usage.and_then(|usage| usage.cached_tokens),
            completion_tokens: self.usage.map(|usage| usage.completion_tokens),
        }
    }

    pub(super) const fn new(request_id: RequestId, started: Mono) -> Self {
        Self {
            request_id,
            started,
            route: "unknown",
            api: None,
            model: None,
            cause: None,
            reason: None,
            pod: None,
            prefill_pod: None,
            attempts: 0,
            was_granted: false,
            committed: false,
            is_stream: false,
            is_tunnel: false,
            mode: None,
            bytes_in: 0,
            usage: None,
            prompt: Tokens(0),
            hit: Tokens(0),
            events: 0,
            first_at: None,
            prefilled_at: None,
            slo: Slo { ttft_s: None, itl_s: None },
            vouched: Slo { ttft_s: None, itl_s: None },
            read_at: None,
            balance: None,
            plan_us: None,
            queued_us: 0,
            phase: Phase::Head,
        }
    }
}

fn micros(from: Mono, to: Mono) -> u64 {
    to.0.saturating_sub(from.0)
}

/// A request id of 32 hexadecimal digits.
fn made_id(rng: &mut Rng) -> RequestId {
    format!("{:016x}{:016x}", rng.bits(), rng.bits()).into()
}
