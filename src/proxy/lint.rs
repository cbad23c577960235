//! Byte-level lint of a raw HTTP/1 request, fed as it arrives from the socket: its head, and of a chunked body the framing.
//!
//! The HTTP parser behind us forgives what another parser on the way may read differently: bare LF line ends, a bare CR,
//! control bytes, blanks in the request target. A gate must not forward what two parsers can disagree on (RFC 9112
//! sections 2.2, 3 and 5.1), so these end the connection before anything is parsed. Sizes are bounded here as well,
//! since no filter runs before the head is complete. Pure: bytes in, verdict out.

use super::chunks::ChunkLint;

/// Why a request was refused. Names are metric labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Violation {
    /// LF without CR before it.
    BareLf = 1,
    /// CR without LF after it.
    BareCr,
    /// A control byte other than a horizontal tab in a field.
    Control,
    /// The request line is not three parts separated by single spaces, or its target has a byte outside `!`..`~`.
    RequestLine,
    /// A field line that continues the one before (obsolete folding).
    Folding,
    /// A field name that is empty or not a token, or is followed by a blank.
    FieldName,
    /// The head is larger than the limit.
    HeadTooLarge,
    /// More field lines than the limit.
    TooManyFields,
    /// Sizes, line ends, extensions or trailers of a chunked body are not as they should be.
    Chunk,
}

impl Violation {
    /// Name in metrics and in the error text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BareLf => "bare_lf",
            Self::BareCr => "bare_cr",
            Self::Control => "control_byte",
            Self::RequestLine => "request_line",
            Self::Folding => "obs_fold",
            Self::FieldName => "field_name",
            Self::HeadTooLarge => "head_too_large",
            Self::TooManyFields => "too_many_fields",
            Self::Chunk => "chunk",
        }
    }

    /// The violation with this discriminant.
    pub const fn from_u8(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::BareLf,
            2 => Self::BareCr,
            3 => Self::Control,
            4 => Self::RequestLine,
            5 => Self::Folding,
            6 => Self::FieldName,
            7 => Self::HeadTooLarge,
            8 => Self::TooManyFields,
            9 => Self::Chunk,
            _ => return None,
        })
    }
}

/// Bounds of a head.
#[derive(Clone, Copy, Debug)]
pub struct HeadLimits {
    /// Bytes of the whole head, line ends included.
    pub head_bytes_max: usize,
    /// Field lines.
    pub fields_max: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the request line; empty lines are allowed here (RFC 9112 section 2.2).
    Start,
    Method,
    Target,
    Version,
    LineStart,
    Name,
    Value,
    /// After a CR; the flag says whether the line was empty.
    Cr {
        empty: bool,
        start: bool,
    },
    Done,
}

/// State of the lint between two reads.
#[derive(Clone, Debug)]
pub struct HeadLint {
    at: At,
    bytes: usize,
    fields: usize,
    /// Letters of [`CODING`] that the name being read begins with; `None` if it differs.
    matched: Option<usize>,
    /// The head has a `Transfer-Encoding`. One that is not `chunked` is refused by the frame check.
    is_coded: bool,
    chunks: ChunkLint,
    limits: HeadLimits,
}

const CODING: &[u8] = b"transfer-encoding";

impl HeadLint {
    /// A lint that waits for the first byte of a head.
    pub const fn new(limits: HeadLimits) -> Self {
        Self { at: At::Start, bytes: 0, fields: 0, matched: None, is_coded: false, chunks: ChunkLint::new(), limits }
    }

    /// Whether the head has ended; later bytes are body.
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Whether no byte of a head has come yet.
    pub fn is_fresh(&self) -> bool {
        self.bytes == 0
    }

    /// Starts over for the next request on the connection.
    pub fn reset(&mut self) {
        *self = Self::new(self.limits);
    }

    /// Looks at the next bytes from the socket. Of bytes after the end of the head, only chunked framing is looked at.
    pub fn feed(&mut self, chunk: &[u8]) -> Result<(), Violation> {
        let mut rest = chunk;
        while let Some((&byte, behind)) = rest.split_first() {
            if self.at == At::Done {
                let is_good = !self.is_coded || self.chunks.feed(rest).is_ok();
                return if is_good { Ok(()) } else { Err(Violation::Chunk) };
            }
            rest = behind;
            self.bytes += 1;
            if self.bytes > self.limits.head_bytes_max {
                return Err(Violation::HeadTooLarge);
            }
            self.at = self.step(byte)?;
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<At, Violation> {
        let at = self.at;
        if let At::Cr { empty, start } = at {
            return match (byte, empty, start) {
                (b'\n', true, true) => Ok(At::Start),
                (b'\n', true, false) => Ok(At::Done),
                (b'\n', false, _) => Ok(At::LineStart),
                _ => Err(Violation::BareCr),
            };
        }
        match byte {
            b'\n' => Err(Violation::BareLf),
            b'\r' => match at {
                At::Start => Ok(At::Cr { empty: true, start: true }),
                At::LineStart => Ok(At::Cr { empty: true, start: false }),
                At::Version | At::Value => Ok(At::Cr { empty: false, start: false }),
                At::Name => Err(Violation::FieldName),
                _ => Err(Violation::RequestLine),
            },
            _ => match at {
                At::Start | At::Method | At::Target | At::Version => Self::request_line(at, byte),
                At::LineStart => {
                    self.fields += 1;
                    if self.fields > self.limits.fields_max {
                        return Err(Violation::TooManyFields);
                    }
                    self.matched = Some(0);
                    if matches!(byte, b' ' | b'\t') { Err(Violation::Folding) } else { self.name(byte, true) }
                }
                At::Name => self.name(byte, false),
                _ if (byte < 0x20 && byte != b'\t') || byte == 0x7F => Err(Violation::Control),
                _ => Ok(At::Value),
            },
        }
    }

    fn request_line(at: At, byte: u8) -> Result<At, Violation> {
        match (at, byte) {
            (At::Start | At::Version, b' ') => Err(Violation::RequestLine),
            (At::Start | At::Method, _) if is_token(byte) => Ok(At::Method),
            (At::Method, b' ') | (At::Target, 0x21..=0x7E) => Ok(At::Target),
            (At::Target, b' ') | (At::Version, 0x21..=0x7E) => Ok(At::Version),
            _ => Err(Violation::RequestLine),
        }
    }

    fn name(&mut self, byte: u8, first: bool) -> Result<At, Violation> {
        if is_token(byte) {
            let fits = |at: &usize| CODING.get(*at) == Some(&byte.to_ascii_lowercase());
            self.matched = self.matched.filter(fits).map(|at| at + 1);
            Ok(At::Name)
        } else if byte == b':' && !first {
            self.is_coded |= self.matched == Some(CODING.len());
            Ok(At::Value)
        } else {
            Err(Violation::FieldName)
        }
    }
}

/// `tchar` of RFC 9110 section 5.6.2.
pub(super) const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
        )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    const LIMITS: HeadLimits = HeadLimits { head_bytes_max: 200, fields_max: 4 };

    fn check(head: &[u8], expected: Result<bool, Violation>) {
        let mut lint = HeadLint::new(LIMITS);
        let seen = lint.feed(head).map(|()| lint.is_done());
        assert_eq!(seen, expected, "{}", head.escape_ascii());
        for cut in 0..head.len() {
            let mut lint = HeadLint::new(LIMITS);
            let seen = lint.feed(&head[..cut]).and_then(|()| lint.feed(&head[cut..])).map(|()| lint.is_done());
            assert_eq!(seen, expected, "cut at {cut}: {}", head.escape_ascii());
        }
    }

    #[test]
    fn good_heads_pass_and_bodies_are_not_looked_at() {
        check(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Ok(true));
        check(b"\r\nPOST /x?y=%20 HTTP/1.1\r\nHost: a\r\nX:\tb c\r\n\r\n\n\r\0body", Ok(true));
        check(b"GET / HTTP/1.1\r\nHost: \xC3\xA9\r\n", Ok(false));
    }

    #[test]
    fn each_class_is_named() {
        check(b"GET / HTTP/1.1\nHost: a\n\n", Err(Violation::BareLf));
        check(b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", Err(Violation::BareCr));
        check(b"GET / HTTP/1.1\r\r\nHost: a\r\n\r\n", Err(Violation::BareCr));
        check(b"GET / HTTP/1.1\r\nHost: a\0\r\n\r\n", Err(Violation::Control));
        check(b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", Err(Violation::RequestLine));
        check(b"GET /a b HTTP/1.1\r\n\r\n", Err(Violation::RequestLine));
        check(b"GET /\rx HTTP/1.1\r\n\r\n", Err(Violation::RequestLine));
        check(b"GET /\xFF HTTP/1.1\r\n\r\n", Err(Violation::RequestLine));
        check(b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n", Err(Violation::Folding));
        check(b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", Err(Violation::FieldName));
        check(b"GET / HTTP/1.1\r\n: a\r\n\r\n", Err(Violation::FieldName));
        check(b"GET / HTTP/1.1\r\nHost\r\n\r\n", Err(Violation::FieldName));
        check(b"GET / HTTP/1.1\r\nA:1\r\nB:1\r\nC:1\r\nD:1\r\nE:1\r\n\r\n", Err(Violation::TooManyFields));
        check(&[b"GET /".as_slice(), &[b'a'; 300]].concat(), Err(Violation::HeadTooLarge));
    }

    #[test]
    fn framing_of_a_chunked_body_is_looked_at_and_no_other() {
        let with =
            |field: &str, body: &str| format!("POST / HTTP/1.1\r\nA: b\r\n{field}: chunked\r\n\r\n{body}").into_bytes();
        check(&with("Transfer-Encoding", "2;x=y\r\nok\r\n0\r\n\r\nGET"), Ok(true));
        check(&with("transfer-ENCODING", "2;x\ny\r\nok\r\n0\r\n\r\n"), Err(Violation::Chunk));
        check(&with("Transfer-Encodings", "2;x\ny\r\n"), Ok(true));
        check(&with("X-Transfer-Encoding", "2;x\ny\r\n"), Ok(true));
    }

    proptest! {
        #[test]
        fn the_verdict_does_not_depend_on_the_cut(head in proptest::collection::vec(any::<u8>(), 0..80), cut in 0_usize..80) {
            let mut whole = HeadLint::new(LIMITS);
            let expected = whole.feed(&head).map(|()| whole.is_done());
            let cut = cut.min(head.len());
            let mut parts = HeadLint::new(LIMITS);
            let seen = parts.feed(&head[..cut]).and_then(|()| parts.feed(&head[cut..])).map(|()| parts.is_done());
            prop_assert_eq!(seen, expected);
        }

        #[test]
        fn what_passes_has_only_crlf_line_ends(tail in "[ -~\r\n\t]{0,60}") {
            let head = format!("GET / HTTP/1.1\r\n{tail}\r\n\r\n");
            let mut lint = HeadLint::new(LIMITS);
            if lint.feed(head.as_bytes()).is_ok() && lint.is_done() {
                let end = head.find("\r\n\r\n").unwrap();
                for line in head[..end].split("\r\n") {
                    prop_assert!(!line.contains('\r') && !line.contains('\n'));
                }
            }
        }
    }
}
