//! Heads of requests, parsed by httparse and read as uvicorn reads them.

/// Longest head that is read.
pub(super) const HEAD_BYTES_MAX: usize = 64 << 10;
const FIELDS_MAX: usize = 128;

/// How the body of a request is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyFraming {
    /// By a length, possibly 0.
    Length(u64),
    /// By chunks.
    Chunked,
}

/// A request head.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: String,
    /// Names in lower case, in order of arrival.
    pub(super) fields: Vec<(String, String)>,
    pub(super) framing: BodyFraming,
    pub(super) is_kept_alive: bool,
    pub(super) expects_continue: bool,
}

impl Head {
    /// Parses a head from the start of `bytes`: `Ok(None)` if it is not complete, else the head and its length in bytes.
    pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Self, usize)>, BadHead> {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let length = match request.parse(bytes) {
            Ok(httparse::Status::Complete(length)) => length,
            Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
            Ok(httparse::Status::Partial) | Err(_) => return Err(BadHead),
        };
        let fields: Vec<(String, String)> = request
            .headers
            .iter()
            .map(|field| (field.name.to_ascii_lowercase(), String::from_utf8_lossy(field.value).into_owned()))
            .collect();
        let target = request.path.unwrap_or("/");
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut head = Self {
            method: request.method.unwrap_or("GET").to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            fields,
            framing: BodyFraming::Length(0),
            is_kept_alive: request.version == Some(1),
            expects_continue: false,
        };
        head.read_fields()?;
        Ok(Some((head, length)))
    }

    /// Value of the first field of this name (lower case).
    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn read_fields(&mut self) -> Result<(), BadHead> {
        let mut length = None;
        let mut is_chunked = false;
        for (name, value) in &self.fields {
            match name.as_str() {
                "content-length" => {
                    let value = value.trim().parse().map_err(|_| BadHead)?;
                    if length.replace(value).is_some_and(|before| before != value) {
                        return Err(BadHead);
                    }
                }
                "transfer-encoding" => is_chunked = value.to_ascii_lowercase().contains("chunked"),
                "connection" if value.eq_ignore_ascii_case("close") => self.is_kept_alive = false,
                "connection" if value.eq_ignore_ascii_case("keep-alive") => self.is_kept_alive = true,
                "expect" => self.expects_continue = value.eq_ignore_ascii_case("100-continue"),
                _ => {}
            }
        }
        self.framing = if is_chunked { BodyFraming::Chunked } else { BodyFraming::Length(length.unwrap_or(0)) };
        Ok(())
    }
}

/// The head is not HTTP/1: uvicorn answers 400 "Invalid HTTP request received." and closes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadHead;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn heads_are_read_with_their_framing() {
        let text = b"POST /v1/x?a=b HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nConnection: Close\r\n\r\nrest";
        let (head, length) = Head::parse(text).unwrap().unwrap();
        assert_eq!((head.path.as_str(), head.query.as_str(), length), ("/v1/x", "a=b", text.len() - 4));
        assert_eq!((head.framing, head.is_kept_alive), (BodyFraming::Chunked, false));
        assert!(Head::parse(b"GET / HT").unwrap().is_none());
        assert!(Head::parse(b"nonsense\r\n\r\n").is_err());
        assert!(Head::parse(b"GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n").is_err());
    }
}
