//! What an operator may write for a pod: `http://host:port`, `host:port`, `http://host`, with an IPv6 address in brackets.
//!
//! Everything else is refused in words that say what to write. A URL with `user:password@` is not quoted back: errors end in
//! logs.
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use crate::pods::{PodTls, Role, TlsSettings};

/// A pod, or a name behind which there are several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSource {
    /// Name or address to connect to.
    pub host: Host,
    /// Port to connect to.
    pub port: u16,
    /// `host[:port]` as written; sent as `Host`.
    pub authority: Arc<str>,
    /// What it may be asked to do.
    pub role: Role,
    /// How TLS is spoken with it; `None` without TLS.
    pub tls: Option<PodTls>,
    /// Operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// Where a source points.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// An address: one pod.
    Addr(IpAddr),
    /// A name: one pod per address it resolves to.
    Name(String),
}

/// Why a pod cannot be used as written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPod {
    /// Another scheme.
    #[error("`{0}://` is not a scheme pods speak; write http://host:port or https://host:port")]
    Scheme(String),
    /// `user:password@`.
    #[error(
        "a user or password cannot be part of a pod's URL; put the key into the file named by pods.credential_file"
    )]
    UserInfo,
    /// A path.
    #[error("leave out the path `{0}`: each request keeps its own path; write http://host:port")]
    Path(String),
    /// A query or fragment.
    #[error("leave out what follows `?` or `#`; write http://host:port")]
    Query,
    /// No host.
    #[error("the host is missing; write http://host:port")]
    NoHost,
    /// No usable host name.
    #[error("`{0}` is no host name or address; write http://host:port (IPv6 in brackets: http://[::1]:8000)")]
    Host(String),
    /// No port where one is needed.
    #[error("the port is missing; write {0}:8000, with the pod's port")]
    NoPort(String),
    /// No usable port.
    #[error("`{0}` is no port; write a number from 1 to 65535")]
    Port(String),
}

impl PodSource {
    /// Reads what an operator wrote.
    pub fn parse(url: &str, role: Role, labels: BTreeMap<String, String>) -> Result<Self, BadPod> {
        let url = url.trim();
        let (scheme, rest) = url.split_once("://").map_or((None, url), |(scheme, rest)| (Some(scheme), rest));
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, tail) = rest.split_at(end);
        if authority.contains('@') || scheme.is_some_and(|scheme| scheme.contains('@')) {
            return Err(BadPod::UserInfo);
        }
        let is_tls = match scheme {
            None => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("http") => false,
            Some(scheme) if scheme.eq_ignore_ascii_case("https") => true,
            Some(other) => return Err(BadPod::Scheme(shown(other))),
        };
        if tail.contains(['?', '#']) {
            return Err(BadPod::Query);
        }
        if !matches!(tail, "" | "/") {
            return Err(BadPod::Path(shown(tail)));
        }
        let (host, port) = split_port(authority)?;
        if host.is_empty() {
            return Err(BadPod::NoHost);
        }
        let port = match port {
            Some(port) => {
                let is_digits = port.bytes().all(|byte| byte.is_ascii_digit());
                let number = port.parse().ok().filter(|number| is_digits && *number > 0);
                number.ok_or_else(|| BadPod::Port(shown(port)))?
            }
            None if scheme.is_some() => {
                if is_tls {
                    443
                } else {
                    80
                }
            }
            None => return Err(BadPod::NoPort(shown(host))),
        };
        let host = Host::parse(host)?;
        let tls = is_tls.then(|| PodTls { server_name: host.server_name().into(), settings: Arc::default() });
        Ok(Self { host, port, authority: authority.into(), role, tls, labels })
    }

    /// The same with these settings for TLS, if it is a source with TLS.
    #[must_use]
    pub fn with_tls(mut self, settings: &Arc<TlsSettings>) -> Self {
        if let Some(tls) = &mut self.tls {
            if let Some(name) = &settings.server_name {
                tls.server_name = name.as_str().into();
            }
            tls.settings = Arc::clone(settings);
        }
        self
    }
}

impl Host {
    /// The name its certificate should have.
    fn server_name(&self) -> String {
        match self {
            Self::Addr(addr) => addr.to_string(),
            Self::Name(name) => name.trim_end_matches('.').to_owned(),
        }
    }

    fn parse(host: &str) -> Result<Self, BadPod> {
        let bad = || BadPod::Host(shown(host));
        if let Some(inside) = host.strip_prefix('[') {
            let inside = inside.strip_suffix(']').ok_or_else(bad)?;
            return inside.parse::<Ipv6Addr>().map(|addr| Self::Addr(addr.into())).map_err(|_| bad());
        }
        if let Ok(addr) = host.parse::<IpAddr>() {
            return Ok(Self::Addr(addr));
        }
        let labels: Vec<&str> = host.strip_suffix('.').unwrap_or(host).split('.').collect();
        let is_label = |label: &&str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'))
        };
        // `1.2.3` and `300.1.1.1` are mistyped addresses, though a resolver would take some of them.
        let is_number = labels.last().is_some_and(|label| label.bytes().all(|byte| byte.is_ascii_digit()));
        if host.len() > 253 || is_number || !labels.iter().all(is_label) {
            return Err(bad());
        }
        Ok(Self::Name(host.to_owned()))
    }
}

/// Host and, if written, port.
fn split_port(authority: &str) -> Result<(&str, Option<&str>), BadPod> {
    if authority.starts_with('[') {
        let end = authority.find(']').ok_or_else(|| BadPod::Host(shown(authority)))? + 1;
        let (host, rest) = authority.split_at(end);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(BadPod::Host(shown(authority))),
        };
    }
    match authority.split_once(':') {
        Some((_, port)) if port.contains(':') => Err(BadPod::Host(shown(authority))),
        Some((host, port)) => Ok((host, Some(port))),
        None => Ok((authority, None)),
    }
}

/// A short, printable form for an error.
fn shown(text: &str) -> String {
    text.chars().take(80).map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn parse(url: &str) -> Result<PodSource, BadPod> {
        PodSource::parse(url, Role::Both, BTreeMap::new())
    }

    fn check(url: &str, host: &str, port: u16, authority: &str) {
        let source = parse(url).unwrap();
        let shown = match &source.host {
            Host::Addr(addr) => addr.to_string(),
            Host::Name(name) => format!("name {name}"),
        };
        assert_eq!((shown.as_str(), source.port, &*source.authority), (host, port, authority), "{url}");
    }

    #[test]
    fn what_may_be_written() {
        check("http://gpu-1:8000", "name gpu-1", 8_000, "gpu-1:8000");
        check(" HTTP://Pod.Local:8000/ ", "name Pod.Local", 8_000, "Pod.Local:8000");
        check("10.0.0.7:8000", "10.0.0.7", 8_000, "10.0.0.7:8000");
        check("http://svc.ns.svc.cluster.local.", "name svc.ns.svc.cluster.local.", 80, "svc.ns.svc.cluster.local.");
        check("http://[::1]:8000", "::1", 8_000, "[::1]:8000");
        check("[fe80::2]:1", "fe80::2", 1, "[fe80::2]:1");
        check("https://pod.example", "name pod.example", 443, "pod.example");
    }

    #[test]
    fn a_certificate_is_for_the_host_unless_another_name_is_set() {
        let name = |url: &str| parse(url).unwrap().tls.map(|tls| tls.server_name.to_string());
        assert_eq!(name("http://pod:8000"), None);
        assert_eq!(name("pod:8000"), None);
        for (url, expected) in
            [("HTTPS://Pod.x.:8000", "Pod.x"), ("https://10.0.0.1:1", "10.0.0.1"), ("https://[::1]:1", "::1")]
        {
            assert_eq!(name(url).as_deref(), Some(expected), "{url}");
        }
        let settings = Arc::new(TlsSettings { server_name: Some("vllm".into()), ..TlsSettings::default() });
        let source = parse("https://10.0.0.1:1").unwrap().with_tls(&settings);
        assert_eq!(source.tls.unwrap(), PodTls { server_name: "vllm".into(), settings: Arc::clone(&settings) });
        assert_eq!(parse("http://10.0.0.1:1").unwrap().with_tls(&settings).tls, None);
    }

    #[test]
    fn what_is_refused_and_how() {
        for (url, expected) in [
            ("grpc://pod:8000", BadPod::Scheme("grpc".into())),
            ("http://me:secret@pod:8000", BadPod::UserInfo),
            ("me:secret@pod:8000", BadPod::UserInfo),
            ("https://me:secret@pod", BadPod::UserInfo),
            ("http://pod:8000/v1", BadPod::Path("/v1".into())),
            ("http://pod:8000/?a=b", BadPod::Query),
            ("pod:8000#x", BadPod::Query),
            ("", BadPod::NoHost),
            ("http://:8000", BadPod::NoHost),
            ("pod", BadPod::NoPort("pod".into())),
            ("pod:", BadPod::Port(String::new())),
            ("pod:0", BadPod::Port("0".into())),
            ("pod:65536", BadPod::Port("65536".into())),
            ("pod:+80", BadPod::Port("+80".into())),
            ("::1:8000", BadPod::Host("::1:8000".into())),
            ("http://[::1:8000", BadPod::Host("[::1:8000".into())),
            ("http://[::1]8000", BadPod::Host("[::1]8000".into())),
            ("http://[pod]:1", BadPod::Host("[pod]".into())),
            ("300.1.1.1:80", BadPod::Host("300.1.1.1".into())),
            ("a..b:80", BadPod::Host("a..b".into())),
            ("a b:80", BadPod::Host("a b".into())),
            ("a\r\nx: y:80", BadPod::Host("a\u{fffd}\u{fffd}x: y:80".into())),
        ] {
            assert_eq!(parse(url), Err(expected), "{url}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn anything_written_is_read_or_refused_and_never_breaks_a_head(url in ".{0,60}") {
            if let Ok(source) = parse(&url) {
                prop_assert!(source.authority.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
