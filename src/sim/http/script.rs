//! Scripted faults: rules that say which request meets which fault.
//!
//! A rule matches by path, header, marker in the body and count; every rule counts its own matches. All rules that match a
//! request add up (slow tokens and a cut at event 5). Rules without body marker are looked up when the head is there, so
//! that an early answer is early; rules for connections when one is accepted. A client may also ask for a fault by the
//! header `x-sim-fault`, e.g. `cut-at-event=3`, see `Fault::parse`.
use std::ops::RangeInclusive;
use std::time::Duration;

use bytes::Bytes;

/// How a connection is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// RST.
    Reset,
    /// FIN.
    Fin,
}

/// Answers that are not HTTP as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Bytes of a TLS alert instead of a status line.
    Garbage,
    /// A body without any head.
    Http09,
    /// A chunk size that is not a number, after a good first chunk.
    BadChunkSize,
    /// Two different Content-Length fields.
    TwoContentLengths,
    /// Content-Length and Transfer-Encoding.
    LengthAndChunked,
    /// Less body than Content-Length says, then FIN.
    ShortBody,
}

/// What `/metrics` does instead of telling the truth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsFault {
    /// Never answers.
    Hang,
    /// 200 with text that is not an exposition.
    Garbage,
    /// Always reports an idle engine with frozen counters.
    Idle,
    /// 500.
    Error,
    /// 64 MiB of valid lines nobody asked for.
    Huge,
    /// Gauges are `NaN`.
    NotANumber,
}

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset: at accept in a connection rule, else as soon as the head is read.
    Refuse,
    /// Nothing is answered and the connection stays open. In a connection rule nothing is read either.
    Silent,
    /// The answer stops before this byte (0 = before the head), counted from the status line.
    CutAtByte(u64, Cut),
    /// The stream stops before this event (0 = after the head).
    CutAtEvent(u64, Cut),
    /// Head, then silence.
    SilenceAfterHead,
    /// The stream falls silent before this event.
    SilenceAtEvent(u64),
    /// Waits before the head.
    SlowHead(Duration),
    /// Waits after the head, before the first event or body byte.
    SlowBody(Duration),
    /// Waits before each token. In a not streamed answer the waits add up before the head.
    SlowTokens(Duration),
    /// A 200 stream with an error event after this many tokens, then the API's end.
    ErrorEvent(u64),
    /// Ends cleanly but without the API's good ending (`[DONE]`, `response.completed`, `message_stop`).
    NoGoodEnding,
    /// All events, then FIN without the final chunk.
    NoFinalChunk,
    /// All events with the good ending, then neither final chunk nor FIN.
    OpenAfterEnd,
    /// Broken HTTP.
    Framing(Framing),
    /// These bytes instead of an answer, then FIN.
    Raw(Bytes),
    /// A header of this many bytes in the head.
    HugeHead(usize),
    /// An extra event of this many content bytes after the first token.
    HugeEvent(usize),
    /// Every byte of the body in a chunk and a write of its own.
    SplitBytes,
    /// This status with a vLLM error body, and this Retry-After if any, in seconds.
    Status(u16, Option<u64>),
    /// This status at once, without reading the body, which then is never read.
    EarlyAnswer(u16),
    /// Interim answers with these statuses before the final one.
    Interim(Vec<u16>),
    /// The whole pod dies: every connection is reset, new ones are refused, until `SimPod::restart`.
    Crash,
    /// `/metrics` misbehaves.
    Metrics(MetricsFault),
    /// The answer says `connection: close` and the connection is closed after it.
    CloseAfter,
    /// Handing over KV blocks goes wrong.
    Kv(KvFault),
}

/// What goes wrong when KV blocks are handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFault {
    /// The prefill pod hands over nothing (`kv_transfer_params: null`).
    Nothing,
    /// The prefill pod's answer has no `remote_port`.
    LacksPort,
    /// The prefill pod lets go of the blocks at once.
    Expires,
    /// The decode pod waits so long before it begins to load.
    Stalls(Duration),
    /// The decode pod cannot load.
    Fails,
    /// The decode pod reads something else, without noticing.
    Garbles,
}

impl Fault {
    /// Reads `name` or `name=value`: `refuse`, `silent`, `cut-at-byte=N`, `fin-at-byte=N`, `cut-at-event=N`,
    /// `fin-at-event=N`, `silence-after-head`, `silence-at-event=N`, `slow-head=MS`, `slow-body=MS`, `slow-tokens=MS`,
    /// `error-event=N`, `no-good-ending`, `no-final-chunk`, `open-after-end`, `garbage`, `http09`, `bad-chunk-size`,
    /// `two-content-lengths`, `length-and-chunked`, `short-body`, `huge-head`, `huge-event`, `split-bytes`,
    /// `status=CODE` (429 and 503 with Retry-After 1), `early-answer=CODE`, `interim=CODE`, `crash`, `close-after`,
    /// `kv-nothing`, `kv-lacks-port`, `kv-expires`, `kv-stalls=MS`, `kv-fails`, `kv-garbles`. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let number = || value.trim().parse::<u64>().ok();
        let millis = || number().map(Duration::from_millis);
        let status = || number().and_then(|code| u16::try_from(code).ok());
        Some(match name.trim() {
            "refuse" => Self::Refuse,
            "silent" => Self::Silent,
            "cut-at-byte" => Self::CutAtByte(number()?, Cut::Reset),
            "fin-at-byte" => Self::CutAtByte(number()?, Cut::Fin),
            "cut-at-event" => Self::CutAtEvent(number()?, Cut::Reset),
            "fin-at-event" => Self::CutAtEvent(number()?, Cut::Fin),
            "silence-after-head" => Self::SilenceAfterHead,
            "silence-at-event" => Self::SilenceAtEvent(number()?),
            "slow-head" => Self::SlowHead(millis()?),
            "slow-body" => Self::SlowBody(millis()?),
            "slow-tokens" => Self::SlowTokens(millis()?),
            "error-event" => Self::ErrorEvent(number()?),
            "no-good-ending" => Self::NoGoodEnding,
            "no-final-chunk" => Self::NoFinalChunk,
            "open-after-end" => Self::OpenAfterEnd,
            "garbage" => Self::Framing(Framing::Garbage),
            "http09" => Self::Framing(Framing::Http09),
            "bad-chunk-size" => Self::Framing(Framing::BadChunkSize),
            "two-content-lengths" => Self::Framing(Framing::TwoContentLengths),
            "length-and-chunked" => Self::Framing(Framing::LengthAndChunked),
            "short-body" => Self::Framing(Framing::ShortBody),
            "huge-head" => Self::HugeHead(2 << 20),
            "huge-event" => Self::HugeEvent(4 << 20),
            "split-bytes" => Self::SplitBytes,
            "status" => {
                let code = status()?;
                Self::Status(code, matches!(code, 429 | 503).then_some(1))
            }
            "early-answer" => Self::EarlyAnswer(status()?),
            "interim" => Self::Interim(vec![status()?]),
            "crash" => Self::Crash,
            "close-after" => Self::CloseAfter,
            "kv-nothing" => Self::Kv(KvFault::Nothing),
            "kv-lacks-port" => Self::Kv(KvFault::LacksPort),
            "kv-expires" => Self::Kv(KvFault::Expires),
            "kv-stalls" => Self::Kv(KvFault::Stalls(millis()?)),
            "kv-fails" => Self::Kv(KvFault::Fails),
            "kv-garbles" => Self::Kv(KvFault::Garbles),
            _ => return None,
        })
    }
}

/// Which requests (or connections) meet which fault.
#[derive(Clone, Debug)]
pub struct Rule {
    pub(super) fault: Fault,
    pub(super) is_for_connections: bool,
    pub(super) path: Option<String>,
    pub(super) header: Option<(String, String)>,
    pub(super) marker: Option<Bytes>,
    pub(super) matches: RangeInclusive<u64>,
}

impl Rule {
    /// Every request of any method for `path`, if one is named, meets this fault; without a path, `GET /metrics` meets
    /// metrics faults and every `POST` all others.
    pub fn new(fault: Fault) -> Self {
        Self { fault, is_for_connections: false, path: None, header: None, marker: None, matches: 1..=u64::MAX }
    }

    /// For connections at accept: `Refuse` or `Silent`.
    pub fn at_accept(fault: Fault) -> Self {
        Self { is_for_connections: true, ..Self::new(fault) }
    }

    /// Only requests for paths that begin so.
    #[must_use]
    pub fn path(self, prefix: &str) -> Self {
        Self { path: Some(prefix.to_owned()), ..self }
    }

    /// Only requests with this header field (name in any case, exact value).
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Self {
        Self { header: Some((name.to_ascii_lowercase(), value.to_owned())), ..self }
    }

    /// Only requests whose body contains these bytes.
    #[must_use]
    pub fn marker(self, bytes: impl Into<Bytes>) -> Self {
        Self { marker: Some(bytes.into()), ..self }
    }

    /// Only the n-th match, from 1.
    #[must_use]
    pub fn nth(self, n: u64) -> Self {
        Self { matches: n..=n, ..self }
    }

    /// Only the first `count` matches.
    #[must_use]
    pub fn times(self, count: u64) -> Self {
        Self { matches: 1..=count, ..self }
    }

    /// Only these matches, counted from 1.
    #[must_use]
    pub fn matches(self, range: RangeInclusive<u64>) -> Self {
        Self { matches: range, ..self }
    }
}

/// A set of rules. The empty script lets everything go well.
#[derive(Clone, Debug, Default)]
pub struct Script {
    /// The rules; all that match apply.
    pub rules: Vec<Rule>,
}

impl Script {
    /// Everything goes well.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every `POST` meets this fault (`/metrics` for metrics faults).
    pub fn always(fault: Fault) -> Self {
        Self::none().rule(Rule::new(fault))
    }

    /// Adds a rule.
    #[must_use]
    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }
}

impl From<Rule> for Script {
    fn from(rule: Rule) -> Self {
        Self::none().rule(rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_by_header_are_read_or_refused() {
        assert_eq!(Fault::parse("cut-at-event=3"), Some(Fault::CutAtEvent(3, Cut::Reset)));
        assert_eq!(Fault::parse("status=503"), Some(Fault::Status(503, Some(1))));
        assert_eq!(Fault::parse("status=500"), Some(Fault::Status(500, None)));
        for wrong in ["", "cut-at-event", "cut-at-event=x", "status=99999", "nonsense"] {
            assert_eq!(Fault::parse(wrong), None, "{wrong}");
        }
    }
}
