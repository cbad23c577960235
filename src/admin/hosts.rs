//! By which names a browser may reach the admin listener.
//!
//! A page of another site can let its own name point here (DNS rebinding) and then read what it likes, as if it came from here. So
//! a browser is answered only under names that nobody outside can own: addresses, `localhost`, names without a dot, names below the
//! domains that are never public, and those of `admin.hosts`. Tools send no such requests and are not asked.

/// Last labels of names that are never public.
const PRIVATE: &[&str] = &["localhost", "local", "internal", "svc", "home.arpa"];

/// Whether a browser that sent `Host: host` may be answered.
pub(super) fn is_own(host: Option<&str>, own: &[String]) -> bool {
    let Some(name) = host.and_then(name_of) else { return false };
    let is_private =
        |domain: &&str| name.strip_suffix(*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    name.parse::<std::net::IpAddr>().is_ok()
        || !name.contains('.')
        || PRIVATE.iter().any(is_private)
        || own.iter().any(|host| host.eq_ignore_ascii_case(&name))
}

/// The name or address in a `Host` field, in lower case, without port, brackets and the root's dot.
fn name_of(host: &str) -> Option<String> {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?.0,
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    (!name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_nobody_else_can_own() {
        let own = ["gate.example.com".to_owned()];
        for host in [
            "127.0.0.1:9901",
            "10.2.3.4",
            "[::1]:9901",
            "localhost:9901",
            "LOCALHOST",
            "tidegate:9901",
            "a.localhost",
            "gate.svc",
            "gate.ml.svc.cluster.local:9901",
            "Gate.Example.com:443",
            "gate.example.com.",
        ] {
            assert!(is_own(Some(host), &own), "{host}");
        }
        for host in [
            "evil.example:9901",
            "127.0.0.1.evil.example",
            "notlocalhost.com",
            "xlocal.xyz",
            "a.example.com",
            "",
            ":80",
            "[::1",
        ] {
            assert!(!is_own(Some(host), &own), "{host}");
        }
        assert!(!is_own(None, &own));
        assert!(!is_own(Some("gate.example.com"), &[]));
    }
}
