//! Checks of a parsed request head before anything is forwarded: nothing that two servers can frame differently passes.
//!
//! The byte-level lint has passed before; here fields are compared with each other. Pingora drops `Content-Length` when
//! `Transfer-Encoding` is there as well, so the raw head is read for what the client really sent. Sources: RFC 9112
//! sections 3.2, 6.1 and 6.3; RFC 9113 section 8.2.2. Pure.
use http::{HeaderMap, Method, Version, header};
use pingora::http::RequestHeader;

use super::upstream::decimal;

/// A rule that a request broke. Names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// `Content-Length` together with `Transfer-Encoding`.
    LengthWithCoding,
    /// More than one `Content-Length`, or a list in one.
    DoubledLength,
    /// `Content-Length` is not a plain decimal number.
    BadLength,
    /// `Transfer-Encoding` other than a single `chunked`, or on HTTP/1.0.
    BadCoding,
    /// No `Host` on HTTP/1.1, or no authority on HTTP/2.
    MissingHost,
    /// More than one `Host`.
    DoubledHost,
    /// `Host` holds bytes that no authority has.
    BadHost,
    /// A target in absolute form that contradicts `Host`, in authority form, with a fragment, or without a path.
    BadTarget,
    /// A version other than 1.0, 1.1 or 2.
    BadVersion,
    /// CONNECT and TRACE are not served.
    BadMethod,
    /// A framing field written with underscores.
    UnderscoreFraming,
    /// A field that HTTP/2 forbids.
    Http2Connection,
    /// `Expect` other than `100-continue`.
    BadExpect,
}

impl Rule {
    /// Name in metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LengthWithCoding => "length_with_coding",
            Self::DoubledLength => "doubled_length",
            Self::BadLength => "bad_length",
            Self::BadCoding => "bad_coding",
            Self::MissingHost => "missing_host",
            Self::DoubledHost => "doubled_host",
            Self::BadHost => "bad_host",
            Self::BadTarget => "bad_target",
            Self::BadVersion => "bad_version",
            Self::BadMethod => "bad_method",
            Self::UnderscoreFraming => "underscore_framing",
            Self::Http2Connection => "http2_connection",
            Self::BadExpect => "bad_expect",
        }
    }

    /// What the client is told.
    pub const fn text(self) -> &'static str {
        match self {
            Self::LengthWithCoding => "Send either Content-Length or Transfer-Encoding, not both.",
            Self::DoubledLength => "Send Content-Length once.",
            Self::BadLength => "Content-Length must be a decimal number.",
            Self::BadCoding => "Transfer-Encoding must be `chunked`, once, on HTTP/1.1.",
            Self::MissingHost => "The Host header is missing.",
            Self::DoubledHost => "Send Host once.",
            Self::BadHost => "The Host header is not a host name with an optional port.",
            Self::BadTarget => "The request target must be a path.",
            Self::BadVersion => "HTTP/1.0, HTTP/1.1 and HTTP/2 are spoken here.",
            Self::BadMethod => "This method is not served.",
            Self::UnderscoreFraming => "Framing headers are written with hyphens.",
            Self::Http2Connection => "Connection headers are not allowed in HTTP/2.",
            Self::BadExpect => "Expect must be `100-continue`.",
        }
    }
}

/// Checks a head. `raw` is the head as received on HTTP/1, `None` on HTTP/2.
pub fn check(head: &RequestHeader, raw: Option<&[u8]>) -> Result<(), Rule> {
    if matches!(head.method, Method::CONNECT | Method::TRACE) {
        return Err(Rule::BadMethod);
    }
    match raw {
        Some(raw) => http1(head, raw)?,
        None => http2(&head.headers, head.uri.authority().is_some())?,
    }
    expect(&head.headers)?;
    target(head, raw)
}

fn http1(head: &RequestHeader, raw: &[u8]) -> Result<(), Rule> {
    if !matches!(head.version, Version::HTTP_10 | Version::HTTP_11) {
        return Err(Rule::BadVersion);
    }
    let (mut lengths, mut codings, mut hosts) = (0, 0, 0);
    for line in raw.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { continue };
        let (name, value) = line.split_at(colon);
        let value = value.get(1..).unwrap_or_default().trim_ascii();
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => hosts += 1,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                lengths += 1;
                if decimal(value).is_none() {
                    return Err(if value.contains(&b',') { Rule::DoubledLength } else { Rule::BadLength });
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                codings += 1;
                if !value.eq_ignore_ascii_case(b"chunked") || head.version == Version::HTTP_10 {
                    return Err(Rule::BadCoding);
                }
            }
            14 if name.eq_ignore_ascii_case(b"content_length") => return Err(Rule::UnderscoreFraming),
            17 if name.eq_ignore_ascii_case(b"transfer_encoding") => return Err(Rule::UnderscoreFraming),
            _ => {}
        }
    }
    match (lengths, codings, hosts) {
        (1.., 1.., _) => Err(Rule::LengthWithCoding),
        (2.., ..) => Err(Rule::DoubledLength),
        (_, 2.., _) => Err(Rule::BadCoding),
        (_, _, 2..) => Err(Rule::DoubledHost),
        (_, _, 0) if head.version == Version::HTTP_11 => Err(Rule::MissingHost),
        _ => Ok(()),
    }
}

fn http2(headers: &HeaderMap, has_authority: bool) -> Result<(), Rule> {
    const FORBIDDEN: [&str; 5] = ["connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade"];
    if FORBIDDEN.iter().any(|name| headers.contains_key(*name)) {
        return Err(Rule::Http2Connection);
    }
    let lengths: Vec<_> = headers.get_all(header::CONTENT_LENGTH).iter().collect();
    match lengths.as_slice() {
        [] => {}
        [length] if decimal(length.as_bytes()).is_some() => {}
        [_] => return Err(Rule::BadLength),
        _ => return Err(Rule::DoubledLength),
    }
    match (has_authority, headers.get_all(header::HOST).iter().count()) {
        (_, 2..) => Err(Rule::DoubledHost),
        (false, 0) => Err(Rule::MissingHost),
        _ => Ok(()),
    }
}

fn expect(headers: &HeaderMap) -> Result<(), Rule> {
    let mut all = headers.get_all(header::EXPECT).iter();
    if all.all(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue")) { Ok(()) } else { Err(Rule::BadExpect) }
}

fn target(head: &RequestHeader, raw: Option<&[u8]>) -> Result<(), Rule> {
    let host = head.headers.get(header::HOST).map(http::HeaderValue::as_bytes);
    if let Some(host) = host
        && !is_authority(host)
        && !(host.is_empty() && head.version == Version::HTTP_10)
    {
        return Err(Rule::BadHost);
    }
    let Some(raw) = raw else {
        // Without `:authority`, `Host` stands for it (RFC 9113 section 8.3.1).
        let Some(authority) = head.uri.authority().map(|authority| authority.as_str().as_bytes()) else {
            return Ok(());
        };
        return agrees(authority, host.unwrap_or(authority));
    };
    let target = raw.split(|byte| *byte == b' ').nth(1).unwrap_or_default();
    if target.contains(&b'#') {
        return Err(Rule::BadTarget);
    }
    if target.starts_with(b"/") || (target == b"*" && head.method == Method::OPTIONS) {
        return Ok(());
    }
    // Absolute form (RFC 9112 section 3.2.2); it must agree with Host.
    let rest = target.strip_prefix(b"http://").or_else(|| target.strip_prefix(b"https://")).ok_or(Rule::BadTarget)?;
    let authority = rest.split(|byte| matches!(byte, b'/' | b'?')).next().unwrap_or_default();
    agrees(authority, host.unwrap_or_default())
}

fn agrees(authority: &[u8], host: &[u8]) -> Result<(), Rule> {
    if authority.contains(&b'@') || !authority.eq_ignore_ascii_case(host) { Err(Rule::BadTarget) } else { Ok(()) }
}

fn is_authority(host: &[u8]) -> bool {
    // An IPv6 address stands in brackets (RFC 3986 section 3.2.2).
    let (name, port) = match host.iter().position(|byte| *byte == b']') {
        Some(end) if host.starts_with(b"[") => host.split_at(end + 1),
        _ => host.split_at(host.iter().position(|byte| *byte == b':').unwrap_or(host.len())),
    };
    let is_bracketed = name.starts_with(b"[") && name.len() > 2;
    let inside = if is_bracketed { name.get(1..name.len() - 1).unwrap_or_default() } else { name };
    let is_named = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b'%');
    !name.is_empty()
        && host.len() <= 255
        && inside.iter().all(|byte| is_named(byte) || (is_bracketed && *byte == b':'))
        && port.strip_prefix(b":").map_or(port.is_empty(), |digits| digits.iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check_raw(raw: &str, expected: Result<(), Rule>) {
        let mut fields = [httparse::EMPTY_HEADER; 32];
        let mut parsed = httparse::Request::new(&mut fields);
        parsed.parse(raw.as_bytes()).unwrap();
        let mut head = RequestHeader::build(parsed.method.unwrap(), parsed.path.unwrap().as_bytes(), None).unwrap();
        head.set_version(if parsed.version == Some(1) { Version::HTTP_11 } else { Version::HTTP_10 });
        for field in parsed.headers.iter() {
            head.append_header(field.name.to_owned(), field.value).unwrap();
        }
        assert_eq!(check(&head, Some(raw.as_bytes())), expected, "{raw}");
    }

    #[test]
    fn ordinary_requests_pass() {
        check_raw("GET /v1/models HTTP/1.1\r\nHost: a:80\r\n\r\n", Ok(()));
        check_raw("POST /v1 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n", Ok(()));
        check_raw(
            "POST /v1 HTTP/1.1\r\nHost: [::1]:80\r\ntransfer-encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n",
            Ok(()),
        );
        check_raw("GET http://a:80/v1 HTTP/1.1\r\nHost: a:80\r\n\r\n", Ok(()));
        check_raw("GET / HTTP/1.0\r\n\r\n", Ok(()));
        check_raw("GET / HTTP/1.1\r\nHost: [fe80::1%25eth0]\r\n\r\n", Ok(()));
        check_raw("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", Ok(()));
    }

    #[test]
    fn each_rule_is_named() {
        let host = "POST / HTTP/1.1\r\nHost: a\r\n";
        for (fields, rule) in [
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Rule::LengthWithCoding),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Rule::DoubledLength),
            ("Content-Length: 5, 5\r\n", Rule::DoubledLength),
            ("Content-Length: +5\r\n", Rule::BadLength),
            ("Content-Length: 5x\r\n", Rule::BadLength),
            ("Content-Length:\r\n", Rule::BadLength),
            ("Content-Length: 99999999999999999999\r\n", Rule::BadLength),
            ("Transfer-Encoding: gzip, chunked\r\n", Rule::BadCoding),
            ("Transfer-Encoding: ,chunked\r\n", Rule::BadCoding),
            ("Transfer-Encoding: xchunked\r\n", Rule::BadCoding),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", Rule::BadCoding),
            ("Content_Length: 5\r\n", Rule::UnderscoreFraming),
            ("Host: b\r\n", Rule::DoubledHost),
            ("Expect: 200-ok\r\n", Rule::BadExpect),
        ] {
            check_raw(&format!("{host}{fields}\r\n"), Err(rule));
        }
        check_raw("GET / HTTP/1.1\r\n\r\n", Err(Rule::MissingHost));
        for host in ["a b", "a:b", "a:80:80", "a:80b", ":80", "[::1", "::1", "[]", "[::1]80", "a[b]"] {
            check_raw(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"), Err(Rule::BadHost));
        }
        check_raw("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", Err(Rule::BadHost));
        check_raw("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", Err(Rule::BadTarget));
        check_raw("GET /x#y HTTP/1.1\r\nHost: a\r\n\r\n", Err(Rule::BadTarget));
        check_raw("CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", Err(Rule::BadMethod));
        check_raw("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", Err(Rule::BadCoding));
    }
}
