//! As much HTTP/1.1 as the admin listener needs: one request at a time, small limits, no chunked bodies.
use tokio::io::{AsyncRead, AsyncReadExt};

/// Largest head \[bytes\].
pub(super) const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Largest body \[bytes\].
pub(super) const BODY_BYTES_MAX: usize = 4 * 1024;
/// Most header fields.
const FIELDS_MAX: usize = 64;

/// One request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) method: String,
    /// With the query.
    pub(super) path: String,
    pub(super) body: Vec<u8>,
    /// A browser says where the page came from; tools do not.
    pub(super) has_origin: bool,
    /// Browsers say which languages they like, and a page can't keep them from it; tools do not.
    pub(super) has_language: bool,
    pub(super) wants_html: bool,
    pub(super) host: Option<String>,
    pub(super) keep_alive: bool,
}

/// Why there is no request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum BadRequest {
    /// The client closed between two requests, or in the middle of one.
    Closed,
    /// To be answered with this status and text, then closed.
    Refused(u16, &'static str),
}

use BadRequest::{Closed, Refused};

/// Reads one request. `buffer` keeps what was read beyond it.
pub(super) async fn read<R: AsyncRead + Unpin>(socket: &mut R, buffer: &mut Vec<u8>) -> Result<Request, BadRequest> {
    let (mut request, head_bytes, body_bytes) = loop {
        if let Some(parsed) = parse_head(buffer)? {
            break parsed;
        }
        if buffer.len() >= HEAD_BYTES_MAX {
            return Err(Refused(431, "request head too large"));
        }
        more(socket, buffer).await?;
    };
    while buffer.len() < head_bytes + body_bytes {
        more(socket, buffer).await?;
    }
    request.body = buffer.drain(..head_bytes + body_bytes).skip(head_bytes).collect();
    Ok(request)
}

async fn more<R: AsyncRead + Unpin>(socket: &mut R, buffer: &mut Vec<u8>) -> Result<(), BadRequest> {
    let mut chunk = [0; 4096];
    match socket.read(&mut chunk).await {
        Ok(0) | Err(_) => Err(Closed),
        Ok(count) => {
            buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            Ok(())
        }
    }
}

/// Request without body, length of the head, length of the body; `None` while the head is incomplete.
fn parse_head(buffer: &[u8]) -> Result<Option<(Request, usize, usize)>, BadRequest> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let head_bytes = match head.parse(buffer) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Refused(431, "too many header fields")),
        Err(_) => return Err(Refused(400, "not an HTTP/1 request")),
    };
    let mut body_bytes = None;
    let mut request = Request { keep_alive: head.version == Some(1), ..Request::default() };
    for field in head.headers.iter() {
        let is = |name: &str| field.name.eq_ignore_ascii_case(name);
        if is("transfer-encoding") {
            return Err(Refused(411, "send a body with Content-Length"));
        } else if is("content-length") {
            let length =
                std::str::from_utf8(field.value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
            let length =
                length.and_then(|text| text.parse::<usize>().ok()).ok_or(Refused(400, "bad Content-Length"))?;
            if body_bytes.replace(length).is_some() {
                return Err(Refused(400, "Content-Length twice"));
            }
        } else if is("origin") {
            request.has_origin = true;
        } else if is("accept-language") {
            request.has_language = true;
        } else if is("accept") {
            request.wants_html |= field.value.windows(9).any(|part| part == b"text/html");
        } else if is("host") {
            // Of two the last counts for neither: no browser sends them.
            let host = String::from_utf8_lossy(field.value).into_owned();
            request.host = if request.host.is_some() { Some(String::new()) } else { Some(host) };
        } else if is("connection") {
            request.keep_alive &= !field.value.eq_ignore_ascii_case(b"close");
        }
    }
    let body_bytes = body_bytes.unwrap_or(0);
    if body_bytes > BODY_BYTES_MAX {
        return Err(Refused(413, "request body too large"));
    }
    head.path.unwrap_or("/").clone_into(&mut request.path);
    head.method.unwrap_or_default().clone_into(&mut request.method);
    Ok(Some((request, head_bytes, body_bytes)))
}

/// Name of the statuses used here.
pub(super) const fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        411 => "Length Required",
        413 => "Content Too Large",
        421 => "Misdirected Request",
        431 => "Request Header Fields Too Large",
        503 => "Service Unavailable",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(raw: &[u8]) -> Result<Request, BadRequest> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read(&mut &*raw, &mut Vec::new()))
    }

    #[test]
    fn two_requests_on_one_connection() {
        let mut raw = &b"POST /safe-mode?x HTTP/1.1\r\nContent-Length: 2\r\n\r\nonGET / HTTP/1.0\r\n\r\n"[..];
        let (runtime, mut buffer) = (tokio::runtime::Builder::new_current_thread().build().unwrap(), Vec::new());
        let first = runtime.block_on(read(&mut raw, &mut buffer)).unwrap();
        assert_eq!(
            (&*first.method, &*first.path, &*first.body, first.keep_alive),
            ("POST", "/safe-mode?x", &b"on"[..], true)
        );
        let second = runtime.block_on(read(&mut raw, &mut buffer)).unwrap();
        assert_eq!((&*second.path, second.keep_alive), ("/", false));
        assert_eq!(runtime.block_on(read(&mut raw, &mut buffer)), Err(Closed));
    }

    #[test]
    fn bad_requests_are_refused() {
        let long = format!("GET / HTTP/1.1\r\nA: {}\r\n\r\n", "x".repeat(HEAD_BYTES_MAX * 2));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(FIELDS_MAX + 1));
        for (raw, status) in [
            ("\0\r\n\r\n", 400),
            (&long, 431),
            (&many, 431),
            ("POST / HTTP/1.1\r\nContent-Length: 4097\r\n\r\n", 413),
            ("POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
            ("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", 400),
            ("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        ] {
            assert!(matches!(check(raw.as_bytes()), Err(Refused(got, _)) if got == status), "{status}");
        }
        assert_eq!(check(b"GET / HT"), Err(Closed));
    }
}
