//! The address of a pod as users write it.
use std::collections::BTreeMap;

use crate::pods::Role;

/// A pod endpoint before its name is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Host name, or address without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
    /// As sent in `Host`.
    pub authority: String,
    /// What it may be asked to do.
    pub role: Role,
    /// Operator's labels.
    pub labels: BTreeMap<String, String>,
}

/// Host, port and authority of a pod URL, or what to write instead.
pub(super) fn parse(url: &str) -> Result<(String, u16, String), String> {
    const EXAMPLE: &str = "write e.g. http://10.0.0.7:8000";
    let Some(rest) = url.strip_prefix("http://") else {
        return Err(match url.split_once("://") {
            Some(("https", rest)) => {
                format!("TLS to pods is not available yet; write http://{} and keep the network private", shown(rest))
            }
            Some((scheme, _)) => format!("`{}` is no scheme for pods; {EXAMPLE}", shown(scheme)),
            None => format!("the scheme is missing; write http://{}", shown(url)),
        });
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains('@') {
        return Err("no user or password here; put the key into pods.credential_file".to_owned());
    }
    if authority.contains(['/', '?', '#']) {
        return Err("a pod has no path; leave out everything after the port".to_owned());
    }
    let (host, port) =
        split(authority).ok_or_else(|| format!("`{}` is no host and port; {EXAMPLE}", shown(authority)))?;
    Ok((host.to_owned(), port, authority.to_owned()))
}

fn split(authority: &str) -> Option<(&str, u16)> {
    let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
        let (host, port) = rest.split_once(']')?;
        host.parse::<std::net::Ipv6Addr>().ok()?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
    } else {
        let (host, port) = authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
        let is_name = host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
        (if is_name && !host.is_empty() { host } else { return None }, port)
    };
    let port = match port {
        None => 80,
        Some(port) if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok().filter(|port| *port > 0)?,
        Some(_) => return None,
    };
    Some((host, port))
}

/// Short and printable, whatever was written.
fn shown(text: &str) -> String {
    text.chars().take(80).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn good_urls() {
        for (url, host, port, authority) in [
            ("http://a:8000", "a", 8000, "a:8000"),
            ("http://a.b-c/", "a.b-c", 80, "a.b-c"),
            ("http://[::1]:9", "::1", 9, "[::1]:9"),
            ("http://10.0.0.7:65535", "10.0.0.7", 65535, "10.0.0.7:65535"),
        ] {
            assert_eq!(parse(url).unwrap(), (host.to_owned(), port, authority.to_owned()));
        }
    }

    #[test]
    fn bad_urls_say_what_to_write() {
        for (url, hint) in [
            ("https://a:8000", "TLS to pods is not available yet; write http://a:8000"),
            ("a:8000", "write http://a:8000"),
            ("ftp://a", "no scheme"),
            ("http://u:p@a:1", "credential_file"),
            ("http://a:1/v1", "leave out"),
            ("http://a:0", "no host and port"),
            ("http://a:99999", "no host and port"),
            ("http://a:+80", "no host and port"),
            ("http://", "no host and port"),
            ("http://a b", "no host and port"),
            ("http://::1:80", "no host and port"),
        ] {
            let text = parse(url).unwrap_err();
            assert!(text.contains(hint), "{url}: {text}");
        }
    }
}
