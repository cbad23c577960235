//! What configuration says about the data plane: `listen`, `limits`, `trust` and the entries of `models`.
//!
//! Every field has its unit in its name and its default as a constant here. [`problems`](Limits::problems) of a struct tells
//! everything that makes no sense in it, as (field, what is wrong and what to write instead).
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::FieldBounds;
use crate::flow::{SloSettings, tenant_name_problem};
use crate::tls::ServerTls;

/// Problems of a struct: field, and what to write instead.
pub type Problems = Vec<(&'static str, String)>;

/// Default of [`Listen::addr`].
pub const ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);
/// Default of [`Limits::body_bytes_max`].
pub const BODY_BYTES_MAX: u64 = 64 << 20;
/// Default of [`Limits::head_bytes_max`].
pub const HEAD_BYTES_MAX: u32 = 64 << 10;
/// Default of [`Limits::head_fields_max`].
pub const HEAD_FIELDS_MAX: u16 = 100;
/// Default of [`Limits::target_bytes_max`].
pub const TARGET_BYTES_MAX: u32 = 8 << 10;
/// Default of [`Limits::connections_max`].
pub const CONNECTIONS_MAX: u32 = 20_000;

/// Settings under `listen`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Listen {
    /// Address of the HTTP/1.1 listener.
    pub addr: SocketAddr,
    /// Address of a listener for HTTP/2 without TLS by prior knowledge (h2c); unset means none.
    pub h2c_addr: Option<SocketAddr>,
    /// TLS on `addr`, with HTTP/1.1 and HTTP/2.
    pub tls: ServerTls,
    /// Worker threads; unset means one per processor.
    pub threads: Option<u16>,
    /// How long new connections are still taken after a shutdown began, while `/readyz` says no, in seconds.
    pub drain_accept_s: u32,
    /// How long requests in flight may run on after that, in seconds.
    pub drain_max_s: u32,
    /// Web pages that may read what the gate itself answers (errors, models): `*` for all, as pods do unless
    /// `--allowed-origins` of vLLM says otherwise, or one origin such as `https://chat.example`; unset means none.
    pub allow_origin: Option<String>,
    /// A stream whose answer has not begun, because it waits or its prompt is computed, gets a comment every so many seconds, so that
    /// nobody on the way gives it up. The first one takes the status 200 with it: what goes wrong later is told by an event, without
    /// `Retry-After`. Unset means none.
    pub sse_keep_alive_s: Option<u32>,
    /// Paths to pods beyond the served API.
    pub paths: Paths,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            addr: ADDR,
            h2c_addr: None,
            tls: ServerTls::default(),
            threads: None,
            drain_accept_s: 5,
            drain_max_s: 300,
            allow_origin: Some("*".to_owned()),
            sse_keep_alive_s: None,
            paths: Paths::default(),
        }
    }
}

impl Listen {
    /// Everything that makes no sense.
    pub fn problems(&self) -> Problems {
        let mut problems = Vec::new();
        let callers = self.tls.client_certificates.callers.iter().filter_map(|caller| caller.tenant.as_deref());
        problems.extend(callers.filter_map(tenant_name_problem).map(|hint| ("tls.client_certificates.callers", hint)));
        if self.threads == Some(0) {
            problems.push(("threads", "0 threads serve nobody; write 1 or more, or leave it out".to_owned()));
        }
        if self.sse_keep_alive_s == Some(0) {
            problems.push(("sse_keep_alive_s", "0 would never stop; write 1 or more, or leave it out".to_owned()));
        }
        if self.h2c_addr.is_some_and(|h2c| h2c == self.addr && h2c.port() != 0) {
            problems.push(("h2c_addr", "is the address of the HTTP/1.1 listener; write another port".to_owned()));
        }
        if self
            .allow_origin
            .as_ref()
            .is_some_and(|origin| origin.is_empty() || !origin.bytes().all(|b| b.is_ascii_graphic()))
        {
            let text = "is no origin; write `*`, one origin such as `https://chat.example`, or null";
            problems.push(("allow_origin", text.to_owned()));
        }
        for path in &self.paths.allow {
            let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'?' | b'#' | b'\\'));
            let stars = path.matches('*').count();
            if !path.starts_with('/') || !is_plain || stars > 1 || (stars == 1 && !path.ends_with("/*")) {
                let text =
                    format!("`{}` is no path pattern; write e.g. `/metrics` or `/my/api/*`", path.escape_debug());
                problems.push(("paths.allow", text));
            }
        }
        problems
    }
}

/// Settings under `listen.paths`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Paths {
    /// Paths passed to pods though they are not part of the served API, such as `/metrics`, or `/my/api/*` for all below.
    /// Pods' development and administration routes are refused unless they are listed here.
    pub allow: Vec<String>,
}

/// Settings under `limits`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Largest request body, in bytes; more is answered 413.
    pub body_bytes_max: u64,
    /// Largest request head, in bytes; more is answered 431.
    pub head_bytes_max: u32,
    /// Most header fields of a request; more is answered 431.
    pub head_fields_max: u16,
    /// Longest request target (path and query), in bytes; more is answered 414.
    pub target_bytes_max: u32,
    /// Most client connections. Half the file descriptors of the process is the limit if that is less.
    pub connections_max: u32,
    /// Memory the process may use, in bytes: from 80 % idle connections go sooner, from 90 % large bodies are refused, from
    /// 95 % all are. Unset means what the container allows, else no bound.
    pub memory_bytes_max: Option<u64>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// What one request may ask of an engine.
    pub fields: Fields,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            body_bytes_max: BODY_BYTES_MAX,
            head_bytes_max: HEAD_BYTES_MAX,
            head_fields_max: HEAD_FIELDS_MAX,
            target_bytes_max: TARGET_BYTES_MAX,
            connections_max: CONNECTIONS_MAX,
            memory_bytes_max: None,
            timeouts: Timeouts::default(),
            fields: Fields::default(),
        }
    }
}

impl Limits {
    /// Everything that makes no sense.
    pub fn problems(&self) -> Problems {
        let mut problems = Vec::new();
        for (field, value, least) in [
            ("body_bytes_max", self.body_bytes_max, 1_024),
            ("head_bytes_max", self.head_bytes_max.into(), 1_024),
            ("head_fields_max", self.head_fields_max.into(), 8),
            ("target_bytes_max", self.target_bytes_max.into(), 64),
            ("connections_max", self.connections_max.into(), 1),
            ("memory_bytes_max", self.memory_bytes_max.unwrap_or(u64::MAX), 64 << 20),
        ] {
            if value < least {
                problems.push((field, format!("{value} is too small to serve; write {least} or more")));
            }
        }
        problems.extend(self.timeouts.problems());
        problems
    }
}

/// Settings under `limits.fields`: what one request may ask of an engine. Over it the answer is 400.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// Most answers to a prompt (`n`, `best_of`); unset means any.
    pub answers_max: Option<u64>,
    /// Most generated tokens asked for (`max_tokens` and its like); unset means any.
    pub generated_tokens_max: Option<u64>,
    /// Most entries of `logit_bias`; unset means any.
    pub logit_bias_max: Option<u64>,
    /// Most bytes of schemas and grammars (`response_format`, `structured_outputs`, ...) together; unset means any.
    pub grammar_bytes_max: Option<u64>,
}

impl Default for Fields {
    fn default() -> Self {
        Self {
            answers_max: Some(128),
            generated_tokens_max: None,
            logit_bias_max: Some(1_024),
            grammar_bytes_max: Some(256 << 10),
        }
    }
}

impl From<&Fields> for FieldBounds {
    fn from(fields: &Fields) -> Self {
        Self {
            answers: fields.answers_max,
            tokens: fields.generated_tokens_max,
            logit_bias: fields.logit_bias_max,
            grammar_bytes: fields.grammar_bytes_max,
        }
    }
}

/// Settings under `limits.timeouts`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Until the first token of a stream, in seconds.
    pub first_token_s: u32,
    /// Until the end of an answer that is not streamed, in seconds.
    pub answer_s: u32,
    /// Between two tokens of a stream, in seconds.
    pub between_tokens_s: u32,
    /// Until a pod accepts a connection, in milliseconds.
    pub connect_ms: u32,
    /// Until a request's head is complete, in seconds, however slowly it comes.
    pub head_s: u32,
    /// Until a request's body is complete, in seconds, for an empty one.
    pub body_s: u32,
    /// Slowest body taken, in bytes per second: adds one second to `body_s` for so many bytes.
    pub body_bytes_per_s: u32,
    /// Until a client that does not read is given up, in seconds.
    pub write_s: u32,
    /// How long an idle client connection is kept, in seconds.
    pub keep_alive_s: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            first_token_s: 300,
            answer_s: 3_600,
            between_tokens_s: 300,
            connect_ms: 2_000,
            head_s: 10,
            body_s: 30,
            body_bytes_per_s: 8 << 10,
            write_s: 120,
            keep_alive_s: 75,
        }
    }
}

impl Timeouts {
    /// These deadlines with those of a model in their place.
    #[must_use]
    pub fn with(&self, model: &ModelTimeouts) -> Self {
        Self {
            first_token_s: model.first_token_s.unwrap_or(self.first_token_s),
            answer_s: model.answer_s.unwrap_or(self.answer_s),
            between_tokens_s: model.between_tokens_s.unwrap_or(self.between_tokens_s),
            connect_ms: model.connect_ms.unwrap_or(self.connect_ms),
            ..self.clone()
        }
    }

    /// Deadline of a body of `bytes`, from the end of the head.
    pub fn body(&self, bytes: u64) -> Duration {
        Duration::from_secs(u64::from(self.body_s) + bytes / u64::from(self.body_bytes_per_s.max(1)))
    }

    /// Deadline of a connect.
    pub const fn connect(&self) -> Duration {
        Duration::from_millis(self.connect_ms as u64)
    }

    fn problems(&self) -> Problems {
        let zero = [
            ("timeouts.first_token_s", self.first_token_s),
            ("timeouts.answer_s", self.answer_s),
            ("timeouts.between_tokens_s", self.between_tokens_s),
            ("timeouts.connect_ms", self.connect_ms),
            ("timeouts.head_s", self.head_s),
            ("timeouts.body_s", self.body_s),
            ("timeouts.body_bytes_per_s", self.body_bytes_per_s),
            ("timeouts.write_s", self.write_s),
            ("timeouts.keep_alive_s", self.keep_alive_s),
        ];
        let zero = zero.into_iter().filter(|(_, value)| *value == 0);
        zero.map(|(field, _)| (field, "0 would end everything at once; write 1 or more".to_owned())).collect()
    }
}

/// Settings under `trust`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// Networks of proxies in front of the gate, as `10.0.0.0/8`. Only their `X-Forwarded-For` and `Forwarded` are believed.
    pub proxies: Vec<Network>,
    /// Networks of trusted callers. They may ask for decisions, and choose a data-parallel rank and
    /// any class.
    pub callers: Vec<Network>,
}

/// Settings under `models.<name>`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Model {
    /// Other names clients may use for this model.
    pub aliases: Vec<String>,
    /// Name the pods know this model by, written into the body; unset means the name used here.
    pub rewrite_to: Option<String>,
    /// In place of `rewrite_to`, several names by weight, for a canary. A conversation stays with its name: the session decides where
    /// it is named (`routing.session_header`), else the messages it begins with. Names that no pod serves are passed over.
    pub targets: Vec<Target>,
    /// Deadlines of this model that differ from `limits.timeouts`.
    pub timeouts: ModelTimeouts,
    /// What requests to this model are promised, where it differs from `flow.slo`.
    pub slo: SloSettings,
}

/// One of `models.<name>.targets`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Name the pods know it by.
    pub model: String,
    /// Its share, against the others' weights; with 0 it gets nothing.
    pub weight: u32,
}

/// Settings under `models.<name>.timeouts`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ModelTimeouts {
    /// Until the first token of a stream, in seconds.
    pub first_token_s: Option<u32>,
    /// Until the end of an answer that is not streamed, in seconds.
    pub answer_s: Option<u32>,
    /// Between two tokens of a stream, in seconds.
    pub between_tokens_s: Option<u32>,
    /// Until a pod accepts a connection, in milliseconds.
    pub connect_ms: Option<u32>,
}

/// A network in CIDR notation; an address alone is itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Network {
    addr: IpAddr,
    bits: u8,
}

impl Network {
    /// Whether `addr` is in it. An IPv4 address mapped into IPv6 counts as IPv4.
    pub fn contains(&self, addr: IpAddr) -> bool {
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(addr)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == addr.to_bits() & mask
            }
            (IpAddr::V6(own), IpAddr::V6(addr)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
                own.to_bits() & mask == addr.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let bad = || format!("`{}` is no network; write e.g. 10.0.0.0/8 or fd00::/8", text.escape_debug());
        let (addr, bits) = text.split_once('/').map_or((&*text, None), |(addr, bits)| (addr, Some(bits)));
        let addr: IpAddr = addr.parse().map_err(|_| bad())?;
        let bits_max = if addr.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Ok(bits_max), |bits| bits.parse().map_err(|_| bad()))?;
        if bits > bits_max { Err(bad()) } else { Ok(Self { addr, bits }) }
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        network.to_string()
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.addr, self.bits)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn networks_contain_what_they_should() {
        for (network, addr, is_in) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("10.0.0.0/8", "::ffff:10.0.0.1", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("0.0.0.0/0", "fd00::1", false),
            ("fd00::/8", "fdff::1", true),
            ("127.0.0.1", "127.0.0.2", false),
        ] {
            let network = Network::try_from(network.to_owned()).unwrap();
            assert_eq!(network.contains(addr.parse().unwrap()), is_in, "{network} {addr}");
        }
        for bad in ["", "10.0.0.0/33", "10.0.0/8", "host", "10.0.0.0/", "10.0.0.0/-1"] {
            assert!(Network::try_from(bad.to_owned()).is_err(), "{bad}");
        }
    }

    #[test]
    fn defaults_make_sense_and_nonsense_is_told() {
        assert_eq!(Limits::default().problems(), []);
        assert_eq!(Listen::default().problems(), []);
        let timeouts = Timeouts { head_s: 0, ..Timeouts::default() };
        let limits = Limits { head_fields_max: 1, connections_max: 0, timeouts, ..Limits::default() };
        let fields: Vec<_> = limits.problems().into_iter().map(|(field, _)| field).collect();
        assert_eq!(fields, ["head_fields_max", "connections_max", "timeouts.head_s"]);
        let allow = ["/ok", "/ok/*", "no", "/a*", "/*/b", "/q?x"].map(str::to_owned).to_vec();
        let listen = Listen { threads: Some(0), h2c_addr: Some(ADDR), paths: Paths { allow }, ..Listen::default() };
        assert_eq!(listen.problems().len(), 2 + 4);
    }

    #[test]
    fn a_model_changes_only_its_own_deadlines() {
        let model = ModelTimeouts { first_token_s: Some(7), ..ModelTimeouts::default() };
        let timeouts = Timeouts::default().with(&model);
        assert_eq!((timeouts.first_token_s, timeouts.answer_s), (7, 3_600));
        assert_eq!(timeouts.body(80 << 10), Duration::from_secs(40));
    }
}
