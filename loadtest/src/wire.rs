//! HTTP/1.1 framing for both ends of this tool: heads, and the chunked coding taken apart at any split.
//!
//! Lenient on purpose where a proxy must be strict: it reads what peers on 127.0.0.1 send and judges nothing. It must not be used to
//! decide whether a message is safe.

use memchr::{memchr, memmem};
use std::io;

/// Longest head read.
pub(crate) const HEAD_MAX: usize = 256 * 1024;

/// How the body of a message is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    /// A known number of bytes (0 = no body).
    Length(u64),
    /// Chunked coding.
    Chunked,
    /// Until the connection closes (answers only).
    Close,
}

/// What the head of a request or an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    /// First line without its line end.
    pub(crate) first: String,
    /// Status code of an answer; 0 for a request.
    pub(crate) status: u16,
    /// Delimiting of the body.
    pub(crate) framing: Framing,
    /// Whether the connection may carry another message.
    pub(crate) keep: bool,
    /// Whether a request asks for `100 Continue`.
    pub(crate) expects: bool,
    /// Whether the body is a stream of server-sent events.
    pub(crate) is_sse: bool,
    /// Seconds after which to come again (`Retry-After`).
    pub(crate) retry_after_s: Option<u64>,
    /// Why a gate refused (`x-tidegate-reason`).
    pub(crate) reason: Option<String>,
    /// Bytes of the head with its empty line.
    pub(crate) len: usize,
}

/// Reads the head at the start of `bytes`; `None` while it is not complete.
pub(crate) fn head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = memmem::find(bytes, b"\r\n\r\n") else {
        if bytes.len() > HEAD_MAX {
            return Err(io::Error::other("head too long"));
        }
        return Ok(None);
    };
    let text = bytes.get(..end).unwrap_or_default();
    let mut lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end);
    let first = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let status = status_of(&first);
    let is_answer = first.starts_with("HTTP/");
    let mut head = Head {
        status,
        framing: if is_answer { Framing::Close } else { Framing::Length(0) },
        keep: first.contains("HTTP/1.1"),
        expects: false,
        is_sse: false,
        retry_after_s: None,
        reason: None,
        len: end + 4,
        first,
    };
    for line in lines {
        let Some(colon) = memchr(b':', line) else { continue };
        let (name, value) = line.split_at(colon);
        note(&mut head, name, value.get(1..).unwrap_or_default().trim_ascii());
    }
    if is_answer && (matches!(status, 204 | 304) || status / 100 == 1) {
        head.framing = Framing::Length(0);
    }
    Ok(Some(head))
}

fn note(head: &mut Head, name: &[u8], value: &[u8]) {
    if name.eq_ignore_ascii_case(b"content-length") {
        if head.framing != Framing::Chunked {
            let number = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
            head.framing = number.map_or(head.framing, Framing::Length);
        }
    } else if name.eq_ignore_ascii_case(b"transfer-encoding") {
        head.framing = Framing::Chunked;
    } else if name.eq_ignore_ascii_case(b"connection") {
        head.keep = !value.eq_ignore_ascii_case(b"close");
    } else if name.eq_ignore_ascii_case(b"expect") {
        head.expects = true;
    } else if name.eq_ignore_ascii_case(b"content-type") {
        head.is_sse = value.starts_with(b"text/event-stream");
    } else if name.eq_ignore_ascii_case(b"retry-after") {
        head.retry_after_s = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
    } else if name.eq_ignore_ascii_case(b"x-tidegate-reason") {
        head.reason = Some(String::from_utf8_lossy(value).into_owned());
    }
}

fn status_of(first: &str) -> u16 {
    match first.split_once(' ') {
        Some((version, rest)) if version.starts_with("HTTP/") => {
            rest.get(..3).and_then(|code| code.parse().ok()).unwrap_or(0)
        }
        _ => 0,
    }
}

/// Takes chunked coding apart.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unchunk {
    state: Chunk,
    left: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Chunk {
    #[default]
    Size,
    Extension,
    Data,
    DataEnd,
    Trailer,
    TrailerLine,
    End,
}

impl Unchunk {
    /// Whether the last chunk and the trailers were read.
    pub(crate) fn is_end(&self) -> bool {
        self.state == Chunk::End
    }

    /// Takes bytes, hands the payload in them to `sink` and returns how many bytes belonged to this body.
    pub(crate) fn feed(&mut self, bytes: &[u8], mut sink: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut at = 0;
        while self.state != Chunk::End {
            let rest = bytes.get(at..).unwrap_or_default();
            let Some(first) = rest.first() else { break };
            if self.state == Chunk::Data {
                let take = (rest.len() as u64).min(self.left) as usize;
                sink(rest.get(..take).unwrap_or_default());
                self.left -= take as u64;
                at += take;
                if self.left == 0 {
                    self.state = Chunk::DataEnd;
                }
                continue;
            }
            self.step(*first)?;
            at += 1;
        }
        Ok(at)
    }

    fn step(&mut self, byte: u8) -> io::Result<()> {
        self.state = match (self.state, byte) {
            (Chunk::Size | Chunk::Extension, b'\n') if self.left == 0 => Chunk::Trailer,
            (Chunk::Size | Chunk::Extension, b'\n') => Chunk::Data,
            (Chunk::Size, b';' | b'\r' | b' ') | (Chunk::Extension, _) => Chunk::Extension,
            (Chunk::Size, _) => {
                let digit = char::from(byte).to_digit(16).ok_or_else(|| io::Error::other("bad chunk size"))?;
                self.left =
                    self.left.checked_mul(16).ok_or_else(|| io::Error::other("bad chunk size"))? + u64::from(digit);
                Chunk::Size
            }
            (Chunk::DataEnd, b'\n') => Chunk::Size,
            (Chunk::DataEnd, b'\r') => Chunk::DataEnd,
            (Chunk::Trailer, b'\n') => Chunk::End,
            (Chunk::Trailer, b'\r') | (Chunk::TrailerLine, b'\n') => Chunk::Trailer,
            (Chunk::Trailer | Chunk::TrailerLine, _) => Chunk::TrailerLine,
            (Chunk::DataEnd, _) => return Err(io::Error::other("chunk longer than its size")),
            (Chunk::Data | Chunk::End, _) => self.state,
        };
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn heads_of_both_kinds() {
        let bytes =
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n5";
        let answer = head(bytes).unwrap().unwrap();
        assert_eq!((answer.status, answer.framing, answer.keep, answer.is_sse), (200, Framing::Chunked, true, true));
        assert_eq!(answer.len, bytes.len() - 1);
        let request = head(b"POST /x HTTP/1.1\r\nContent-Length: 12\r\nConnection: close\r\n\r\n").unwrap().unwrap();
        assert_eq!((request.status, request.framing, request.keep), (0, Framing::Length(12), false));
        assert_eq!(request.first, "POST /x HTTP/1.1");
        assert_eq!(head(b"HTTP/1.1 200 OK\r\ncontent-le").unwrap(), None);
    }

    #[test]
    fn refusals_say_why_and_when_to_come_again() {
        let bytes = b"HTTP/1.1 429 x\r\nRetry-After: 7\r\nX-Tidegate-Reason: queue_full\r\ncontent-length: 0\r\n\r\n";
        let refused = head(bytes).unwrap().unwrap();
        assert_eq!((refused.retry_after_s, refused.reason.as_deref()), (Some(7), Some("queue_full")));
        let dated = head(b"HTTP/1.1 503 x\r\nretry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\n\r\n").unwrap().unwrap();
        assert_eq!((dated.retry_after_s, dated.reason), (None, None), "dates are nobody's here");
    }

    #[test]
    fn answers_without_a_length_last_until_close_and_204_has_no_body() {
        assert_eq!(head(b"HTTP/1.0 200 OK\r\n\r\n").unwrap().unwrap().framing, Framing::Close);
        assert_eq!(head(b"HTTP/1.1 204 No Content\r\n\r\n").unwrap().unwrap().framing, Framing::Length(0));
    }

    #[test]
    fn chunks_at_any_split() {
        let coded = b"5;ext=1\r\nhello\r\nA\r\n, my world\r\n0\r\nX-T: 1\r\n\r\nNEXT";
        for step in 1..coded.len() {
            let (mut unchunk, mut text, mut used) = (Unchunk::default(), Vec::new(), 0);
            for part in coded.chunks(step) {
                used += unchunk.feed(part, |bytes| text.extend_from_slice(bytes)).unwrap();
            }
            assert!(unchunk.is_end(), "cut every {step}");
            assert_eq!((text.as_slice(), used), (&b"hello, my world"[..], coded.len() - 4));
        }
        assert!(Unchunk::default().feed(b"zz\r\n", |_| ()).is_err());
    }
}
