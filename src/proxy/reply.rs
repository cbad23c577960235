//! Every error a client can get from the gate, in one table: status, type, text, reason, cause.
//!
//! Shapes are those of the API called. 429 = capacity exists but is taken, 503 = there is none, 504 = a pod did not answer
//! in time, 502 = a pod broke. No text names a pod's address or quotes a request. Statuses of the gate appear nowhere else.
use std::borrow::Cow;

use crate::api::{Api, BadBody, BadForm, ErrorText, Exceeded, Shape, error_body, error_event};
use crate::base::{MODEL_NAME_BYTES_MAX, ModelName};
use crate::flow::{Denied, Reason, Refusal};
use crate::observe::Cause;
use bytes::Bytes;

use super::frame::Rule;
use super::lint::Violation;

/// Why a request got no (whole) answer from a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A raw head that no parser may see.
    Lint(Violation),
    /// A head whose framing is ambiguous.
    Frame(Rule),
    /// A request target over the limit \[bytes\].
    TargetTooLong(usize),
    /// Head or framing that the HTTP parser refused.
    BadHttp,
    /// The head did not come in time.
    HeadTimeout,
    /// The body did not come in time.
    BodyTimeout,
    /// The body is larger than the limit \[bytes\].
    BodyTooLarge(u64),
    /// The body ended before its length, or its chunks are malformed.
    BodyCut,
    /// A compressed body.
    ContentEncoding,
    /// The route takes a WebSocket only.
    NotAWebSocket,
    /// A WebSocket that does not say which model it is for.
    WhichModel,
    /// A member asks for more than the operator allows.
    TooMuch(Exceeded),
    /// The form cannot be used.
    BadForm(BadForm),
    /// A body that is not acceptable JSON.
    BadBody(BadBody),
    /// The client has no key that counts.
    Denied(Denied),
    /// The tenant uses as much as it may; how long until it may again \[s\].
    Limited(Reason, u32),
    /// No pod serves the model. Made by [`Fault::unknown_model`], which bounds the name.
    UnknownModel(String),
    /// No such path.
    UnknownRoute,
    /// A path that exists, with another method.
    MethodNotAllowed(&'static str),
    /// A pod's own route that is not open to clients.
    RouteRefused,
    /// No pod may take the request now; the word says why.
    NoPod(&'static str),
    /// The model is configured and has no pod yet; whether a stream was asked for.
    Absent(ModelName, bool),
    /// The gate's own bounds are reached; the word says which.
    Full(&'static str),
    /// It may not wait, or not any longer: why, and when to come back.
    Queue(Refusal),
    /// Memory is short.
    Memory,
    /// The same body killed pods before.
    Poisoned,
    /// No connection to any pod.
    ConnectFailed,
    /// The pod closed before it answered.
    PodClosed,
    /// The pod's answer is not HTTP.
    PodGarbage,
    /// Nothing of the answer came in time.
    FirstByteTimeout,
    /// The whole answer did not come in time.
    AnswerTimeout,
    /// A stream paused too long.
    IdleTimeout,
    /// The pod closed inside the answer.
    StreamBroken,
    /// The stream ended without the API's good ending.
    Truncated,
    /// Descriptors or ports ran out.
    Exhausted,
    /// The deadline that the request set for itself has passed.
    Deadline,
    /// The gate is about to stop.
    ShuttingDown,
    /// A panic in the gate.
    Panic,
}

/// One row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// HTTP status.
    pub status: u16,
    /// `error.type`, in vLLM's words where it has them.
    pub kind: &'static str,
    /// For a person.
    pub message: Cow<'static, str>,
    /// `error.code` of the OpenAI shape, if it is not the status.
    pub name: Option<&'static str>,
    /// `error.param`.
    pub param: Option<Cow<'static, str>>,
    /// `x-tidegate-reason`, for refusals.
    pub reason: Option<&'static str>,
    /// Cause in log and metrics.
    pub cause: Cause,
    /// `Retry-After` \[s\].
    pub retry_after_s: Option<u32>,
    /// Whether the connection can't be used after it.
    pub close: bool,
}

impl Row {
    const fn new(status: u16, kind: &'static str, message: &'static str, cause: Cause) -> Self {
        Self {
            status,
            kind,
            message: Cow::Borrowed(message),
            name: None,
            param: None,
            reason: None,
            cause,
            retry_after_s: None,
            close: false,
        }
    }

    const fn closing(mut self) -> Self {
        self.close = true;
        self
    }

    const fn refused(mut self, reason: &'static str, retry_after_s: Option<u32>) -> Self {
        self.reason = Some(reason);
        self.retry_after_s = retry_after_s;
        self
    }

    fn text(&self) -> ErrorText<'_> {
        ErrorText {
            message: &self.message,
            kind: self.kind,
            param: self.param.as_deref(),
            code: self.status,
            name: self.name,
        }
    }

    fn saying(mut self, message: String) -> Self {
        self.message = Cow::Owned(message);
        self
    }
}

const BAD: &str = "Bad Request";
const NOT_FOUND: &str = "NotFoundError";
const BUSY: &str = "Service Unavailable";
const TIMEOUT: &str = "Gateway Timeout";
const GATEWAY: &str = "Bad Gateway";
const INTERNAL: &str = "InternalServerError";

impl Fault {
    /// No pod serves the model. A name longer than any can be is told back cut short, with an ellipsis.
    pub fn unknown_model(name: &str) -> Self {
        let cut = name.get(..name.floor_char_boundary(MODEL_NAME_BYTES_MAX)).unwrap_or_default();
        let mark = if cut.len() < name.len() { "…" } else { "" };
        Self::UnknownModel(format!("{cut}{mark}"))
    }

    /// The row of this fault.
    pub fn row(&self) -> Row {
        match self {
            Self::Lint(_)
            | Self::Frame(_)
            | Self::TargetTooLong(_)
            | Self::BadHttp
            | Self::HeadTimeout
            | Self::BodyTimeout
            | Self::BodyTooLarge(_)
            | Self::BodyCut
            | Self::ContentEncoding
            | Self::BadBody(_)
            | Self::BadForm(_)
            | Self::TooMuch(_)
            | Self::NotAWebSocket
            | Self::WhichModel => self.row_of_bad_input(),
            Self::UnknownModel(_) | Self::UnknownRoute | Self::MethodNotAllowed(_) | Self::RouteRefused => {
                self.row_of_route()
            }
            Self::Denied(denied) => Self::row_of_denied(*denied),
            Self::Limited(reason, seconds) => Self::row_of_limited(*reason, *seconds),
            Self::NoPod(_)
            | Self::Absent(..)
            | Self::Full(_)
            | Self::Queue(_)
            | Self::Memory
            | Self::Poisoned
            | Self::Exhausted
            | Self::Deadline
            | Self::ShuttingDown => self.row_of_refusal(),
            _ => self.row_of_pod(),
        }
    }

    fn row_of_bad_input(&self) -> Row {
        match self {
            Self::Lint(Violation::HeadTooLarge | Violation::TooManyFields) => {
                Row::new(431, BAD, "The request head is too large.", Cause::HeadTooLarge).closing()
            }
            Self::Lint(violation) => Row::new(400, BAD, "", Cause::BadFraming)
                .saying(format!("The request is malformed ({}).", violation.as_str()))
                .closing(),
            Self::Frame(Rule::BadMethod) => {
                Row::new(405, BAD, Rule::BadMethod.text(), Cause::MethodNotAllowed).closing()
            }
            Self::Frame(Rule::BadExpect) => Row::new(417, BAD, Rule::BadExpect.text(), Cause::BadHeader).closing(),
            Self::Frame(rule) => Row::new(400, BAD, rule.text(), Cause::BadFraming).closing(),
            Self::TargetTooLong(bytes_max) => Row::new(414, BAD, "", Cause::HeadTooLarge)
                .saying(format!("The request target is longer than {bytes_max} bytes."))
                .closing(),
            Self::HeadTimeout => {
                Row::new(408, BAD, "The request head did not arrive in time.", Cause::HeadTimeout).closing()
            }
            Self::BodyTimeout => {
                Row::new(408, BAD, "The request body did not arrive in time.", Cause::BodyTimeout).closing()
            }
            Self::BodyTooLarge(bytes_max) => Row::new(413, BAD, "", Cause::BodyTooLarge)
                .saying(format!("The request body is larger than {bytes_max} bytes."))
                .closing(),
            Self::BodyCut => {
                Row::new(400, BAD, "The request body is not framed as announced.", Cause::BadFraming).closing()
            }
            Self::ContentEncoding => {
                Row::new(415, BAD, "Send the body uncompressed (no Content-Encoding).", Cause::UnsupportedMedia)
            }
            Self::NotAWebSocket => {
                let text = "This route takes a WebSocket over HTTP/1.1 (Upgrade: websocket).";
                Row::new(426, BAD, text, Cause::BadHeader).closing()
            }
            Self::WhichModel => {
                let text = "Say once which model it is for: /v1/realtime?model=NAME.";
                Row { param: Some("model".into()), ..Row::new(400, BAD, text, Cause::BadBody) }
            }
            Self::TooMuch(exceeded) => Row {
                param: Some(exceeded.member.into()),
                ..Row::new(400, BAD, "", Cause::BadBody).saying(exceeded.to_string())
            },
            Self::BadForm(why) => Row::new(400, BAD, "", Cause::BadBody).saying(why.to_string()),
            Self::BadBody(why) => {
                let mut row = Row::new(400, why.kind(), "", Cause::BadBody).saying(why.to_string());
                row.param = why.param();
                row
            }
            _ => Row::new(400, BAD, "The request is not valid HTTP.", Cause::BadFraming).closing(),
        }
    }

    fn row_of_route(&self) -> Row {
        match self {
            Self::UnknownModel(name) => {
                let mut row = Row::new(404, NOT_FOUND, "", Cause::UnknownModel)
                    .saying(format!("The model `{name}` does not exist."));
                row.param = Some("model".into());
                row
            }
            Self::MethodNotAllowed(_) => Row::new(405, "", "Method Not Allowed", Cause::MethodNotAllowed),
            Self::RouteRefused => Row::new(
                403,
                "PermissionDeniedError",
                "This route of the pods is not open to clients.",
                Cause::RouteRefused,
            )
            .refused("route_refused", None),
            _ => Row::new(404, "", "Not Found", Cause::UnknownRoute),
        }
    }

    fn row_of_denied(denied: Denied) -> Row {
        let text = match denied {
            Denied::Missing => "No API key was given. Send it as `Authorization: Bearer KEY` or as `x-api-key`.",
            Denied::Unknown => "This API key is not valid.",
        };
        let mut row = Row::new(401, "authentication_error", text, Cause::RefusedCaller).refused(denied.as_str(), None);
        row.name = Some("invalid_api_key");
        row
    }

    fn row_of_limited(reason: Reason, seconds: u32) -> Row {
        let what = match reason {
            Reason::TenantConcurrentLimit => "requests at once",
            Reason::TenantRequestsLimit => "requests per minute",
            _ => "tokens per minute",
        };
        Row::new(429, "RateLimitError", "", Cause::RefusedTenant)
            .saying(format!("Your limit of {what} is reached. Try again in {seconds} s."))
            .refused(reason.as_str(), Some(seconds))
    }

    fn row_of_refusal(&self) -> Row {
        match self {
            Self::NoPod(why) => {
                Row::new(503, BUSY, "No server can take this request now. Try again later.", Cause::RefusedNoPod)
                    .refused(why, Some(2))
            }
            Self::Absent(..) => Self::NoPod("no_pods").row_of_refusal(),
            Self::Full(which) => {
                Row::new(429, "RateLimitError", "Too much is in progress. Try again later.", Cause::RefusedModelBudget)
                    .refused(which, Some(1))
            }
            Self::Queue(Refusal { reason, retry_after }) => {
                let seconds = retry_after.map(|after| after.as_secs_f64().ceil() as u32);
                let text = "All servers are busy and the queue is too long. Try again later.";
                Row::new(429, "RateLimitError", text, Cause::RefusedQueue).refused(reason.as_str(), seconds)
            }
            Self::Memory => Row::new(503, BUSY, "Memory is short. Try again later.", Cause::RefusedMemory)
                .refused("memory", Some(1))
                .closing(),
            Self::Poisoned => Row::new(
                500,
                INTERNAL,
                "This request made servers fail before and is not tried again.",
                Cause::Poisoned,
            )
            .refused("request_poisoned", None),
            Self::Exhausted => Row::new(503, BUSY, "Sockets are short. Try again later.", Cause::GateExhausted)
                .refused("exhausted", Some(1)),
            Self::Deadline => {
                let text = "The deadline of the request (x-tidegate-deadline-ms) has passed.";
                Row::new(504, TIMEOUT, text, Cause::DeadlinePassed).refused("deadline_passed", None)
            }
            _ => Row::new(503, BUSY, "The server is shutting down.", Cause::ShuttingDown)
                .refused("shutting_down", Some(1))
                .closing(),
        }
    }

    fn row_of_pod(&self) -> Row {
        match self {
            Self::ConnectFailed => {
                Row::new(503, BUSY, "No server could be reached. Try again later.", Cause::ConnectFailed)
                    .refused("no_endpoint", Some(2))
            }
            Self::PodClosed => {
                Row::new(502, GATEWAY, "The server closed the connection before it answered.", Cause::PodClosed)
            }
            Self::PodGarbage => Row::new(502, GATEWAY, "The server's answer was malformed.", Cause::PodGarbage),
            Self::FirstByteTimeout => {
                Row::new(504, TIMEOUT, "The server did not answer in time.", Cause::FirstByteTimeout)
            }
            Self::AnswerTimeout => {
                Row::new(504, TIMEOUT, "The server's answer was not complete in time.", Cause::AnswerTimeout)
            }
            Self::IdleTimeout => {
                Row::new(504, TIMEOUT, "The server stopped sending (idle_timeout).", Cause::IdleTimeout)
            }
            Self::StreamBroken => Row::new(502, GATEWAY, "The connection to the server broke.", Cause::StreamBroken),
            Self::Truncated => {
                Row::new(502, GATEWAY, "The server ended the answer early (truncated).", Cause::Truncated)
            }
            _ => Row::new(500, INTERNAL, "Internal server error", Cause::GatePanic),
        }
    }

    /// The body of the answer: the API's shape, or FastAPI's `detail` where a vLLM server has that.
    pub fn body(&self, shape: Shape) -> Bytes {
        let row = self.row();
        if row.kind.is_empty() {
            return Bytes::from(format!("{{\"detail\":\"{}\"}}", row.message));
        }
        error_body(shape, &row.text())
    }

    /// The one event that tells a client its stream failed.
    pub fn event(&self, api: Api) -> Bytes {
        let row = self.row();
        error_event(api, &row.text())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Every fault with what a client sees of it: API shape × fault.
    #[test]
    fn the_table_is_what_clients_were_promised() {
        for (fault, status, reason, close) in [
            (Fault::Lint(Violation::BareLf), 400, None, true),
            (Fault::Lint(Violation::HeadTooLarge), 431, None, true),
            (Fault::Lint(Violation::TooManyFields), 431, None, true),
            (Fault::Frame(Rule::LengthWithCoding), 400, None, true),
            (Fault::Frame(Rule::BadMethod), 405, None, true),
            (Fault::Frame(Rule::BadExpect), 417, None, true),
            (Fault::TargetTooLong(9), 414, None, true),
            (Fault::BadHttp, 400, None, true),
            (Fault::HeadTimeout, 408, None, true),
            (Fault::BodyTimeout, 408, None, true),
            (Fault::BodyTooLarge(9), 413, None, true),
            (Fault::BodyCut, 400, None, true),
            (Fault::ContentEncoding, 415, None, false),
            (Fault::UnknownModel("x".into()), 404, None, false),
            (Fault::UnknownRoute, 404, None, false),
            (Fault::MethodNotAllowed("POST"), 405, None, false),
            (Fault::RouteRefused, 403, Some("route_refused"), false),
            (Fault::NoPod("no_pods"), 503, Some("no_pods"), false),
            (Fault::Full("model_requests"), 429, Some("model_requests"), false),
            (Fault::Denied(Denied::Missing), 401, Some("key_missing"), false),
            (Fault::Denied(Denied::Unknown), 401, Some("key_unknown"), false),
            (Fault::Limited(Reason::TenantTokensLimit, 7), 429, Some("tenant_tokens_limit"), false),
            (Fault::Memory, 503, Some("memory"), true),
            (Fault::Poisoned, 500, Some("request_poisoned"), false),
            (Fault::ConnectFailed, 503, Some("no_endpoint"), false),
            (Fault::PodClosed, 502, None, false),
            (Fault::PodGarbage, 502, None, false),
            (Fault::FirstByteTimeout, 504, None, false),
            (Fault::AnswerTimeout, 504, None, false),
            (Fault::IdleTimeout, 504, None, false),
            (Fault::StreamBroken, 502, None, false),
            (Fault::Truncated, 502, None, false),
            (Fault::Exhausted, 503, Some("exhausted"), false),
            (Fault::Deadline, 504, Some("deadline_passed"), false),
            (Fault::ShuttingDown, 503, Some("shutting_down"), true),
            (Fault::Panic, 500, None, false),
        ] {
            let row = fault.row();
            assert_eq!((row.status, row.reason, row.close), (status, reason, close), "{fault:?}");
            let needs_retry_after = matches!(row.status, 429 | 503);
            assert_eq!(row.retry_after_s.is_some(), needs_retry_after, "{fault:?}");
            let open_ai: serde_json::Value = serde_json::from_slice(&fault.body(Shape::OpenAi)).unwrap();
            if open_ai.get("detail").is_none() {
                let code = row.name.map_or_else(|| status.into(), serde_json::Value::from);
                assert_eq!(open_ai["error"]["code"], code, "{fault:?}");
                let anthropic: serde_json::Value = serde_json::from_slice(&fault.body(Shape::Anthropic)).unwrap();
                assert_eq!(anthropic["type"], "error", "{fault:?}");
            }
            for api in Api::ALL {
                let event = fault.event(api);
                assert!(event.ends_with(b"\n\n") && !event.windows(6).any(|part| part == b"[DONE]"), "{fault:?}");
            }
        }
    }

    #[test]
    fn a_name_is_told_back_within_its_bound() {
        let whole = "m".repeat(MODEL_NAME_BYTES_MAX);
        assert_eq!(Fault::unknown_model(&whole), Fault::UnknownModel(whole.clone()));
        assert_eq!(Fault::unknown_model(&format!("{whole}x")), Fault::UnknownModel(format!("{whole}…")));
        // A character that lies across the bound goes as a whole.
        let across = format!("{}é{}", "m".repeat(MODEL_NAME_BYTES_MAX - 1), "x".repeat(1 << 20));
        let Fault::UnknownModel(told) = Fault::unknown_model(&across) else { return };
        assert_eq!(told, format!("{}…", "m".repeat(MODEL_NAME_BYTES_MAX - 1)));
    }
}
