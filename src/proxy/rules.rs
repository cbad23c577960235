//! What the data path goes by, resolved from configuration: limits, times, trust, names. Replaced whole on a reload.
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use http::header::{self, HeaderMap, HeaderName};

use super::guard::Conn;
use super::lint::HeadLimits;
use super::rewrite::Targets;
use super::settings::{Limits, Listen, Network, Timeouts, Trust};
use crate::api::{FieldBounds, PathRules};
use crate::base::ModelName;
use crate::disagg;
use crate::flow::{CLASS_HEADERS, GateSettings, Keys, RetrySettings, SloSettings, Tenants};
use crate::tls::CertificateCaller;

/// Times allowed towards pods, per model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Making a connection.
    pub connect: Duration,
    /// Dispatch to the first data of a stream.
    pub first_token: Duration,
    /// Dispatch to the end of an answer that is not a stream.
    pub answer: Duration,
    /// Silence inside a stream.
    pub between_tokens: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_token: Duration::from_mins(5),
            answer: Duration::from_hours(1),
            between_tokens: Duration::from_mins(5),
        }
    }
}

impl From<&Timeouts> for Times {
    fn from(timeouts: &Timeouts) -> Self {
        let seconds = |count: u32| Duration::from_secs(count.into());
        Self {
            connect: timeouts.connect(),
            first_token: seconds(timeouts.first_token_s),
            answer: seconds(timeouts.answer_s),
            between_tokens: seconds(timeouts.between_tokens_s),
        }
    }
}

/// Everything the data path goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// What one request may ask of an engine.
    pub fields: FieldBounds,
    /// Share of requests that are traced, where traces are exported at all.
    pub trace_share: f64,
    /// Bounds of a request head.
    pub head: HeadLimits,
    /// Longest request target \[bytes\].
    pub target_bytes_max: usize,
    /// From a head's first byte to its last; also from accepting a connection to its first byte.
    pub head_timeout: Duration,
    /// Idle time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Largest request body \[bytes\].
    pub body_bytes_max: u64,
    /// Time for a body, plus a second per `body_floor_bytes`.
    pub body_timeout: Duration,
    /// Slowest rate at which a body may come \[bytes/s\].
    pub body_floor_bytes: u64,
    /// A client that takes nothing for so long is cut off.
    pub write_timeout: Duration,
    /// Client connections at once.
    pub connections_max: u64,
    /// Bytes of bodies held at once; past 90 % large bodies are refused, past 95 % all are.
    pub memory_bytes_max: u64,
    /// Networks of proxies, whose forwarding fields are believed.
    pub proxies: Vec<Network>,
    /// Networks of callers who may choose ranks and classes and see decisions.
    pub callers: Vec<Network>,
    /// Origin whose pages may read the gate's own answers; `*` means every origin.
    pub allow_origin: Option<HeaderValue>,
    /// Streams get a comment so often until their answer begins.
    pub comment_every: Option<Duration>,
    /// Paths opened beyond the table.
    pub paths: PathRules,
    /// Times of models without their own.
    pub times: Times,
    /// Times by model.
    pub model_times: HashMap<ModelName, Times>,
    /// What models promise that differs from the general promise.
    pub slos: HashMap<ModelName, SloSettings>,
    /// Other names of models: alias to the names pods know.
    pub aliases: HashMap<ModelName, Targets>,
    /// Decisions are shown to every client that asks.
    pub explain: bool,
    /// Access lines name the address at the other end of the connection.
    pub is_client_logged: bool,
    /// When a failed request may go to another pod.
    pub retry: RetrySettings,
    /// What the gate holds at once.
    pub bounds: GateSettings,
    /// Clients' keys; `None`: nobody is asked for one.
    pub keys: Option<Arc<Keys>>,
    /// Who clients' certificates stand for; the first that applies counts.
    pub certified: Vec<CertificateCaller>,
    /// What tenants may do.
    pub tenants: Tenants,
    /// Fields that may name a class, the first that is there counts.
    pub class_headers: Vec<HeaderName>,
    /// Tenants do not find each other's prompts in the pods' caches.
    pub isolates_tenants: bool,
    /// Prefill and decode on two pods.
    pub disagg: disagg::Settings,
    /// How long new connections are taken after a shutdown began.
    pub drain_accept: Duration,
    /// How long requests may run on after that.
    pub drain_max: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            head: HeadLimits { head_bytes_max: 64 * 1024, fields_max: 100 },
            target_bytes_max: 8 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_bytes_max: 64 << 20,
            body_timeout: Duration::from_secs(30),
            body_floor_bytes: 8 * 1024,
            fields: FieldBounds::default(),
            trace_share: 0.0,
            write_timeout: Duration::from_mins(2),
            connections_max: 10_000,
            memory_bytes_max: 1 << 30,
            proxies: Vec::new(),
            callers: Vec::new(),
            allow_origin: None,
            comment_every: None,
            paths: PathRules::default(),
            times: Times::default(),
            model_times: HashMap::new(),
            slos: HashMap::new(),
            aliases: HashMap::new(),
            explain: false,
            is_client_logged: false,
            retry: RetrySettings::default(),
            bounds: GateSettings::default(),
            keys: None,
            certified: Vec::new(),
            tenants: Tenants::default(),
            class_headers: CLASS_HEADERS.map(HeaderName::from_static).to_vec(),
            isolates_tenants: false,
            disagg: disagg::Settings::default(),
            drain_accept: Duration::from_secs(5),
            drain_max: Duration::from_mins(5),
        }
    }
}

impl Rules {
    /// The rules that configuration asks for; names of models and retries are set by the caller.
    pub fn of(listen: &Listen, limits: &Limits, trust: &Trust, paths: PathRules) -> Self {
        let times = &limits.timeouts;
        let seconds = |count: u32| Duration::from_secs(count.into());
        Self {
            head: HeadLimits {
                head_bytes_max: limits.head_bytes_max as usize,
                fields_max: limits.head_fields_max.into(),
            },
            target_bytes_max: limits.target_bytes_max as usize,
            head_timeout: seconds(times.head_s),
            idle_timeout: seconds(times.keep_alive_s),
            body_bytes_max: limits.body_bytes_max,
            body_timeout: seconds(times.body_s),
            body_floor_bytes: u64::from(times.body_bytes_per_s).max(1),
            write_timeout: seconds(times.write_s),
            fields: FieldBounds::from(&limits.fields),
            connections_max: u64::from(limits.connections_max),
            proxies: trust.proxies.clone(),
            callers: trust.callers.clone(),
            allow_origin: listen.allow_origin.as_deref().and_then(|origin| HeaderValue::from_str(origin).ok()),
            comment_every: listen.sse_keep_alive_s.map(|seconds| Duration::from_secs(seconds.into())),
            paths,
            certified: listen.tls.client_certificates.callers.clone(),
            times: Times::from(times),
            drain_accept: seconds(listen.drain_accept_s),
            drain_max: seconds(listen.drain_max_s),
            ..Self::default()
        }
    }

    /// Whether the forwarding fields of a hop are believed.
    pub fn is_proxy(&self, addr: IpAddr) -> bool {
        self.proxies.iter().any(|network| network.contains(addr))
    }

    /// Who the certificate of a connection stands for.
    pub(super) fn certified(&self, conn: &Conn) -> Option<&CertificateCaller> {
        let peer = conn.certificate.as_ref()?;
        self.certified.iter().find(|caller| caller.applies(peer))
    }

    /// Whether a hop may choose ranks and see decisions.
    pub fn is_trusted(&self, addr: IpAddr) -> bool {
        self.callers.iter().any(|network| network.contains(addr))
    }

    /// `Access-Control-Allow-Origin` of an answer of the gate's own to a request with these fields. Only a request of a
    /// web page names its `Origin`.
    pub fn opened_to(&self, fields: &HeaderMap) -> Option<HeaderValue> {
        let origin = fields.get(header::ORIGIN)?;
        self.allow_origin.clone().filter(|allowed| allowed == "*" || allowed == origin)
    }

    /// What requests to a model are promised, unless they say otherwise.
    pub fn slo(&self, model: &str) -> SloSettings {
        self.slos.get(model).copied().unwrap_or_default().or(self.bounds.slo)
    }

    /// Times of a model.
    pub fn times(&self, model: &str) -> Times {
        self.model_times.get(model).copied().unwrap_or(self.times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pages_of_the_allowed_origin_may_read_answers_of_the_gate() {
        for (allowed, origin, wanted) in [
            (Some("*"), Some("https://a.example"), Some("*")),
            (Some("https://a.example"), Some("https://a.example"), Some("https://a.example")),
            (Some("https://a.example"), Some("https://b.example"), None),
            (Some("*"), None, None),
            (None, Some("https://a.example"), None),
        ] {
            let listen = Listen { allow_origin: allowed.map(str::to_owned), ..Listen::default() };
            let rules = Rules::of(&listen, &Limits::default(), &Trust::default(), PathRules::default());
            let fields = origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin))).into_iter().collect();
            assert_eq!(rules.opened_to(&fields).as_ref().map(HeaderValue::as_bytes), wanted.map(str::as_bytes));
        }
    }
}
