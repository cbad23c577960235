//! Header fields on their way through: what pods get, what clients get back.
//!
//! Towards pods the head is written fresh: hop-by-hop fields and those nominated by `Connection` go (RFC 9110 section
//! 7.6.1), framing and identity fields are the gate's own and set last, routing fields of any stack go, names with
//! underscores go because servers disagree on them. Pure.
use std::net::{IpAddr, SocketAddr};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use pingora::http::ResponseHeader;

/// What a request head towards a pod is made of.
pub struct ToPod<'a> {
    /// Method of the call.
    pub method: &'a Method,
    /// Path and query.
    pub target: &'a str,
    /// `Host` of the pod.
    pub authority: &'a str,
    /// The host the client asked for: `Host`, or `:authority` of HTTP/2.
    pub host: Option<&'a str>,
    /// The client's fields.
    pub fields: &'a HeaderMap,
    /// Length of the body; `None` for a call without one.
    pub body_bytes: Option<usize>,
    /// Name of the request.
    pub request_id: &'a str,
    /// The hop before the gate.
    pub client: IpAddr,
    /// The hop before the gate is a proxy that is believed: its forwarding fields are kept and extended.
    pub is_proxy: bool,
    /// The hop before the gate speaks TLS.
    pub is_tls: bool,
    /// The caller may choose a data-parallel rank.
    pub may_choose_rank: bool,
    /// Replaces the client's `Authorization`.
    pub credential: Option<&'a str>,
    /// The client's keys are the gate's to judge, so they go no further.
    pub keeps_keys: bool,
    /// Fields that name a class: the gate has heeded them.
    pub class_headers: &'a [HeaderName],
    /// Priority that pods are told.
    pub priority: Option<u64>,
    /// Data-parallel rank to address.
    pub rank: Option<u32>,
    /// The protocol to switch to.
    pub upgrade: Option<&'static str>,
    /// `traceparent` of the call.
    pub traceparent: Option<&'a str>,
}

/// Fields dropped for a reason worth counting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// Names with an underscore.
    pub underscore: u32,
    /// Routing fields of this gate or another stack.
    pub routing: u32,
}

/// Writes the head of a call to a pod into `out`.
pub fn to_pod(out: &mut Vec<u8>, call: &ToPod<'_>) -> Dropped {
    let mut dropped = Dropped::default();
    for part in [call.method.as_str(), " ", call.target, " HTTP/1.1\r\nhost: ", call.authority, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let nominated = Nominated::of(call.fields);
    for (name, value) in call.fields {
        match fate(name, call) {
            Fate::Pass if nominated.has(name) => {}
            Fate::Pass => line(out, name.as_str(), value.as_bytes()),
            Fate::Drop => {}
            Fate::Underscore => dropped.underscore += 1,
            Fate::Routing => dropped.routing += 1,
        }
    }
    forwarded(out, call);
    line(out, "x-request-id", call.request_id.as_bytes());
    if let Some(traceparent) = call.traceparent {
        line(out, "traceparent", traceparent.as_bytes());
    }
    if let Some(upgrade) = call.upgrade {
        line(out, "connection", b"Upgrade");
        line(out, "upgrade", upgrade.as_bytes());
    }
    if let Some(credential) = call.credential {
        out.extend_from_slice(b"authorization: Bearer ");
        out.extend_from_slice(credential.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    if let Some(rank) = call.rank {
        number(out, "x-data-parallel-rank", u64::from(rank));
    }
    if let Some(priority) = call.priority {
        number(out, "x-vllm-priority", priority);
    }
    if let Some(bytes) = call.body_bytes {
        number(out, "content-length", bytes as u64);
    }
    out.extend_from_slice(b"\r\n");
    dropped
}

enum Fate {
    Pass,
    Drop,
    Underscore,
    Routing,
}

fn fate(name: &HeaderName, call: &ToPod<'_>) -> Fate {
    let name = name.as_str();
    match name {
        // Where the gate has a key of its own, or judges those of clients, a client's keys are not the pod's to see.
        "authorization" | "x-api-key" | "api-key" | "cookie" if call.credential.is_some() || call.keeps_keys => {
            Fate::Drop
        }
        // A caller's own choice was obeyed when the pod was chosen; an endpoint without ranks judges it.
        "x-data-parallel-rank" if call.may_choose_rank => {
            if call.rank.is_none() {
                Fate::Pass
            } else {
                Fate::Drop
            }
        }
        "x-data-parallel-rank" | "target-pod" | "routing-strategy" | "x-vllm-priority" => Fate::Routing,
        _ if call.class_headers.iter().any(|field| field == name) => Fate::Routing,
        // The gate scans answers, so it asks for them uncompressed; a pod's load is not for clients (ORCA, vLLM 0.32). The
        // rest it sets itself.
        "accept-encoding"
        | "endpoint-load-metrics-format"
        | "host"
        | "content-length"
        | "expect"
        | "x-request-id"
        | "traceparent"
        | "x-real-ip" => Fate::Drop,
        _ if is_hop_by_hop(name) => Fate::Drop,
        _ if name.starts_with("x-forwarded-") || name == "forwarded" => {
            if call.is_proxy && !matches!(name, "x-forwarded-for") { Fate::Pass } else { Fate::Drop }
        }
        _ if is_routing(name) => Fate::Routing,
        _ if name.contains('_') => Fate::Underscore,
        _ => Fate::Pass,
    }
}

/// Fields that concern one connection only.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
            | "http2-settings"
    )
}

/// Fields by which this gate or another stack is told where to send a request (llm-d, Envoy's gateway extensions, SMG,
/// AIBrix, Dynamo). From outside they are never obeyed and never passed on.
fn is_routing(name: &str) -> bool {
    const PREFIXES: [&str; 10] = [
        "x-tidegate-",
        "x-gateway-",
        "x-prefiller-",
        "x-prefill-",
        "x-decode-",
        "x-encoder-",
        "x-envoy-",
        "x-llm-d-",
        "x-smg-",
        "x-dynamo-",
    ];
    name.starts_with("x-") && PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// Names listed in `Connection`.
struct Nominated<'a>(Vec<&'a str>);

impl<'a> Nominated<'a> {
    fn of(fields: &'a HeaderMap) -> Self {
        if !fields.contains_key(header::CONNECTION) {
            return Self(Vec::new());
        }
        let lists = fields.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
        Self(lists.flat_map(|list| list.split(',')).map(str::trim).filter(|name| !name.is_empty()).collect())
    }

    fn has(&self, name: &HeaderName) -> bool {
        self.0.iter().any(|nominated| nominated.eq_ignore_ascii_case(name.as_str()))
    }
}

fn forwarded(out: &mut Vec<u8>, call: &ToPod<'_>) {
    out.extend_from_slice(b"x-forwarded-for: ");
    if call.is_proxy {
        for earlier in call.fields.get_all("x-forwarded-for") {
            out.extend_from_slice(earlier.as_bytes());
            out.extend_from_slice(b", ");
        }
    }
    push_display(out, call.client);
    out.extend_from_slice(b"\r\n");
    if !(call.is_proxy && call.fields.contains_key("x-forwarded-proto")) {
        line(out, "x-forwarded-proto", if call.is_tls { b"https" } else { b"http" });
    }
    if !(call.is_proxy && call.fields.contains_key("x-forwarded-host"))
        && let Some(host) = call.host
    {
        line(out, "x-forwarded-host", host.as_bytes());
    }
}

fn line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

fn number(out: &mut Vec<u8>, name: &str, number: u64) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    push_display(out, number);
    out.extend_from_slice(b"\r\n");
}

fn push_display(out: &mut Vec<u8>, value: impl std::fmt::Display) {
    use std::io::Write as _;
    // Writing into a vector does not fail.
    if write!(out, "{value}").is_err() {
        debug_assert!(false, "write to a vector failed");
    }
}

/// Makes a pod's `Location` relative where it names the pod itself: clients neither know nor reach its address.
pub fn hide_pod(fields: &mut HeaderMap, authority: &str, addr: SocketAddr) {
    for name in [header::LOCATION, header::CONTENT_LOCATION] {
        let Some(target) = fields.get(&name).and_then(|value| value.to_str().ok()) else { continue };
        let Some((scheme, rest)) = target.split_once("//") else { continue };
        if !matches!(scheme.to_ascii_lowercase().as_str(), "http:" | "https:" | "") {
            continue;
        }
        let (named, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let named = named.rsplit_once('@').map_or(named, |(_, host)| host);
        if named.eq_ignore_ascii_case(authority) || named.parse() == Ok(addr) {
            // One slash: what begins with two would name a host again.
            let path = format!("/{}", path.trim_start_matches('/'));
            match HeaderValue::from_str(&path) {
                Ok(relative) => drop(fields.insert(name, relative)),
                Err(_) => drop(fields.remove(name)),
            }
        }
    }
}

/// How a response body is framed towards the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `Content-Length`.
    Length(u64),
    /// Length unknown: chunked, or the HTTP version's own way.
    Open,
}

/// The client's head from a pod's: same status and fields, hop-by-hop ones aside.
pub fn to_client(
    status: StatusCode,
    fields: HeaderMap,
    frame: Frame,
    is_http11: bool,
) -> pingora::Result<Box<ResponseHeader>> {
    let mut head = ResponseHeader::build_no_case(status, Some(fields.len() + 4))?;
    let mut last: Option<HeaderName> = None;
    for (name, value) in fields {
        if let Some(name) = name {
            last = Some(name);
        }
        let Some(name) = last.clone() else { continue };
        if !is_hop_by_hop(name.as_str())
            && !matches!(name.as_str(), "content-length" | "x-request-id")
            && !name.as_str().starts_with("x-tidegate-")
        {
            head.append_header(name, value)?;
        }
    }
    match frame {
        Frame::Length(bytes) => head.insert_header(header::CONTENT_LENGTH, bytes)?,
        Frame::Open if is_http11 => {
            head.insert_header(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"))?;
        }
        Frame::Open => {}
    }
    Ok(Box::new(head))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn fields(list: &[(&str, &str)]) -> HeaderMap {
        let mut fields = HeaderMap::new();
        for (name, value) in list {
            fields.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        fields
    }

    fn check(list: &[(&str, &str)], is_trusted: bool, credential: Option<&str>, expected: &str, dropped: Dropped) {
        let fields = fields(list);
        let mut out = Vec::new();
        let seen = to_pod(
            &mut out,
            &ToPod {
                method: &Method::POST,
                target: "/v1?x=1",
                authority: "pod:8000",
                host: fields.get("host").and_then(|host| host.to_str().ok()),
                fields: &fields,
                body_bytes: Some(5),
                request_id: "r1",
                client: IpAddr::from([10, 0, 0, 9]),
                is_proxy: is_trusted,
                is_tls: false,
                may_choose_rank: is_trusted,
                credential,
                keeps_keys: false,
                class_headers: &[],
                priority: None,
                rank: None,
                upgrade: None,
                traceparent: None,
            },
        );
        assert_eq!(String::from_utf8(out).unwrap(), expected.replace('\n', "\r\n"));
        assert_eq!(seen, dropped);
    }

    #[test]
    fn framing_and_identity_are_ours() {
        check(
            &[
                ("host", "gate"),
                ("content-length", "99"),
                ("authorization", "Bearer client"),
                ("x-forwarded-for", "1.2.3.4"),
                ("forwarded", "for=1.2.3.4"),
                ("x-data-parallel-rank", "3"),
                ("x-prefiller-host-port", "evil:1"),
                ("bad_name", "x"),
                ("accept-encoding", "gzip"),
                ("x-request-id", "theirs"),
                ("content-type", "application/json"),
            ],
            false,
            None,
            "POST /v1?x=1 HTTP/1.1\nhost: pod:8000\nauthorization: Bearer client\ncontent-type: application/json\nx-forwarded-for: 10.0.0.9\nx-forwarded-proto: http\nx-forwarded-host: gate\nx-request-id: r1\ncontent-length: 5\n\n",
            Dropped { underscore: 1, routing: 2 },
        );
    }

    #[test]
    fn nominated_fields_go_and_the_pods_credential_stays() {
        check(
            &[
                ("connection", "close, X-Secret , authorization"),
                ("x-secret", "1"),
                ("authorization", "Bearer client"),
                ("te", "trailers"),
            ],
            false,
            Some("pod-key"),
            "POST /v1?x=1 HTTP/1.1\nhost: pod:8000\nx-forwarded-for: 10.0.0.9\nx-forwarded-proto: http\nx-request-id: r1\nauthorization: Bearer pod-key\ncontent-length: 5\n\n",
            Dropped::default(),
        );
    }

    #[test]
    fn a_clients_secrets_stay_here_when_the_gate_has_a_key() {
        let secrets = [
            ("authorization", "Bearer client"),
            ("x-api-key", "client"),
            ("api-key", "client"),
            ("cookie", "session=client"),
            ("endpoint-load-metrics-format", "JSON"),
            ("anthropic-version", "2023-06-01"),
        ];
        check(
            &secrets,
            false,
            Some("pod-key"),
            "POST /v1?x=1 HTTP/1.1\nhost: pod:8000\nanthropic-version: 2023-06-01\nx-forwarded-for: 10.0.0.9\nx-forwarded-proto: http\nx-request-id: r1\nauthorization: Bearer pod-key\ncontent-length: 5\n\n",
            Dropped::default(),
        );
        check(
            &secrets,
            false,
            None,
            "POST /v1?x=1 HTTP/1.1\nhost: pod:8000\nauthorization: Bearer client\nx-api-key: client\napi-key: client\ncookie: session=client\nanthropic-version: 2023-06-01\nx-forwarded-for: 10.0.0.9\nx-forwarded-proto: http\nx-request-id: r1\ncontent-length: 5\n\n",
            Dropped::default(),
        );
    }

    #[test]
    fn no_answer_leads_a_client_to_a_pod() {
        for (location, expected) in [
            ("http://pod:8000/docs/", "/docs/"),
            ("HTTP://POD:8000/docs?a=1#b", "/docs?a=1#b"),
            ("//pod:8000/x", "/x"),
            ("https://10.0.0.7:8000/x", "/x"),
            ("http://key@pod:8000/x", "/x"),
            ("http://pod:8000", "/"),
            ("http://pod:8000?a=1", "/?a=1"),
            ("http://pod:8000//evil/x", "/evil/x"),
            ("http://pod:80001/x", "http://pod:80001/x"),
            ("https://other.example/x?at=//pod:8000/", "https://other.example/x?at=//pod:8000/"),
            ("/x", "/x"),
        ] {
            let mut answer = fields(&[("location", location)]);
            hide_pod(&mut answer, "pod:8000", SocketAddr::from(([10, 0, 0, 7], 8000)));
            assert_eq!(answer.get("location").unwrap(), expected, "{location}");
        }
    }

    #[test]
    fn a_trusted_proxy_is_believed() {
        check(
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "api"),
                ("x-data-parallel-rank", "3"),
            ],
            true,
            None,
            "POST /v1?x=1 HTTP/1.1\nhost: pod:8000\nx-forwarded-proto: https\nx-forwarded-host: api\nx-data-parallel-rank: 3\nx-forwarded-for: 1.2.3.4, 10.0.0.9\nx-request-id: r1\ncontent-length: 5\n\n",
            Dropped::default(),
        );
    }

    #[test]
    fn answers_keep_their_fields_but_not_the_hop() {
        let answer = fields(&[
            ("server", "uvicorn"),
            ("set-cookie", "a=1"),
            ("set-cookie", "b=2"),
            ("connection", "keep-alive"),
            ("content-length", "7"),
        ]);
        let head = to_client(StatusCode::OK, answer, Frame::Open, true).unwrap();
        assert_eq!(head.headers.get_all("set-cookie").iter().count(), 2);
        assert_eq!(head.headers.get("transfer-encoding").unwrap(), "chunked");
        assert!(head.headers.get("connection").is_none() && head.headers.get("content-length").is_none());
    }
}
