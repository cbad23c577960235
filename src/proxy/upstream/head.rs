//! Response heads: parsed strictly, framing decided once (RFC 9112 section 6.3). Pure.
use bytes::{Buf, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::PodFault;

const FIELDS_MAX: usize = 100;

/// How the end of a body is found; also what is left of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No (more) body.
    Empty,
    /// So many bytes are to come.
    Length(u64),
    /// Chunked coding.
    Chunked,
    /// Everything until the pod closes.
    UntilClose,
}

/// A final response head.
#[derive(Debug)]
pub struct PodHead {
    /// Status.
    pub status: StatusCode,
    /// All fields as they came.
    pub headers: HeaderMap,
    /// How the body ends.
    pub framing: Framing,
    /// Whether the pod keeps the connection.
    pub keep_alive: bool,
}

impl PodHead {
    /// Whether the body is an event stream.
    pub fn is_sse(&self) -> bool {
        let kind = self.headers.get(http::header::CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"))
    }
}

/// Takes one head from the front of `buf`, if it is complete.
pub(super) fn parse(buf: &mut BytesMut, is_head_request: bool, may_switch: bool) -> Result<Option<PodHead>, PodFault> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let consumed = match response.parse(buf) {
        Ok(httparse::Status::Complete(consumed)) => consumed,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(PodFault::Junk("not an HTTP/1.1 response")),
    };
    let status =
        response.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or(PodFault::Junk("status out of range"))?;
    let is_http11 = response.version == Some(1);
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| PodFault::Junk("field name"))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| PodFault::Junk("field value"))?;
        headers.append(name, value);
    }
    buf.advance(consumed);
    let framing = match status {
        StatusCode::SWITCHING_PROTOCOLS if may_switch => Framing::UntilClose,
        StatusCode::SWITCHING_PROTOCOLS => return Err(PodFault::Junk("unasked upgrade")),
        _ => framing(status, &headers, is_head_request)?,
    };
    let keep_alive = is_http11 && !mentions(&headers, "close");
    Ok(Some(PodHead { status, headers, framing, keep_alive }))
}

fn mentions(headers: &HeaderMap, token: &str) -> bool {
    headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

fn framing(status: StatusCode, headers: &HeaderMap, is_head_request: bool) -> Result<Framing, PodFault> {
    if status.is_informational()
        || status == StatusCode::NO_CONTENT
        || status == StatusCode::NOT_MODIFIED
        || is_head_request
    {
        return Ok(Framing::Empty);
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (codings.next(), lengths.next()) {
        (Some(_), Some(_)) => Err(PodFault::Junk("Content-Length with Transfer-Encoding")),
        (Some(coding), None) => {
            if codings.next().is_none() && coding.as_bytes().eq_ignore_ascii_case(b"chunked") {
                Ok(Framing::Chunked)
            } else {
                Err(PodFault::Junk("unknown transfer coding"))
            }
        }
        (None, Some(length)) => {
            if lengths.next().is_some() {
                return Err(PodFault::Junk("doubled Content-Length"));
            }
            match decimal(length.as_bytes()).ok_or(PodFault::Junk("Content-Length is not a number"))? {
                0 => Ok(Framing::Empty),
                length => Ok(Framing::Length(length)),
            }
        }
        (None, None) => Ok(Framing::UntilClose),
    }
}

/// A decimal number without sign, blanks or list; `None` on anything else or overflow.
pub(in crate::proxy) fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |number, digit| {
        digit.is_ascii_digit().then_some(())?;
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(head: &str, expected: Option<(u16, Framing, bool)>) {
        let mut buf = BytesMut::from(head);
        let seen = parse(&mut buf, false, false)
            .ok()
            .flatten()
            .map(|head| (head.status.as_u16(), head.framing, head.keep_alive));
        assert_eq!(seen, expected, "{head}");
    }

    #[test]
    fn framing_is_decided_once() {
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Some((200, Framing::Length(5), true)));
        check("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", Some((200, Framing::Empty, true)));
        check("HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n", Some((200, Framing::Chunked, true)));
        check("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n", Some((200, Framing::UntilClose, false)));
        check("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", Some((200, Framing::Length(5), false)));
        check("HTTP/1.1 204 No Content\r\n\r\n", Some((204, Framing::Empty, true)));
        check("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n", None);
    }

    #[test]
    fn contradictions_are_junk() {
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "hello",
            "HTTP/1.1 99 Low\r\n\r\n",
        ] {
            assert!(parse(&mut BytesMut::from(head), false, false).is_err(), "{head}");
        }
        let switched = parse(&mut BytesMut::from("HTTP/1.1 101 Switching Protocols\r\n\r\n"), false, true);
        assert_eq!(switched.unwrap().unwrap().framing, Framing::UntilClose);
    }
}
