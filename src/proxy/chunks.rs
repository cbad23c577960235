//! Byte-level lint of a chunked request body, fed as it arrives from the socket.
//!
//! The HTTP parser behind us takes any byte in a chunk extension, a bare LF too. A server before us that ends the line there
//! sees other chunks than we do, and so another end of the request (RFC 9112 section 7.1). Data passes unread; sizes, line
//! ends, extensions and trailers must be beyond doubt. Pure: bytes in, verdict out.

/// Most bytes of one size line, and of all trailers.
const LINE_BYTES_MAX: u32 = 16 * 1024;
/// Most digits of a size; more would not fit 64 bits.
const SIZE_DIGITS_MAX: u32 = 16;

/// The body is not chunked as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BadChunk;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Size,
    Extension,
    SizeLf,
    Data,
    DataCr,
    DataLf,
    TrailerStart,
    Trailer,
    TrailerLf { is_last: bool },
    Done,
}

/// State of the lint between two reads.
#[derive(Clone, Debug)]
pub(super) struct ChunkLint {
    at: At,
    /// Size of the chunk; while in its data, what is left of it.
    size: u64,
    /// Bytes of the line, or of the trailers.
    line: u32,
}

impl ChunkLint {
    /// A lint that waits for the first byte of a body.
    pub(super) const fn new() -> Self {
        Self { at: At::Size, size: 0, line: 0 }
    }

    /// Looks at the next bytes of the body. Bytes behind its end are not looked at.
    pub(super) fn feed(&mut self, mut bytes: &[u8]) -> Result<(), BadChunk> {
        while let Some((&byte, rest)) = bytes.split_first() {
            match self.at {
                At::Done => return Ok(()),
                At::Data => {
                    let passed = usize::try_from(self.size).map_or(bytes.len(), |left| left.min(bytes.len()));
                    self.size -= passed as u64;
                    bytes = bytes.get(passed..).unwrap_or_default();
                    if self.size == 0 {
                        self.at = At::DataCr;
                    }
                }
                _ => {
                    self.at = self.step(byte)?;
                    bytes = rest;
                }
            }
        }
        Ok(())
    }

    fn step(&mut self, byte: u8) -> Result<At, BadChunk> {
        self.line += 1;
        if self.line > LINE_BYTES_MAX {
            return Err(BadChunk);
        }
        let is_text = byte == b'\t' || (byte >= 0x20 && byte != 0x7F);
        Ok(match (self.at, byte) {
            (At::Size, _) if byte.is_ascii_hexdigit() && self.line <= SIZE_DIGITS_MAX => {
                let digit = char::from(byte).to_digit(16).ok_or(BadChunk)?;
                self.size = (self.size << 4) | u64::from(digit);
                At::Size
            }
            (At::Size, b';' | b' ' | b'\t') if self.line > 1 => At::Extension,
            (At::Size, b'\r') if self.line > 1 => At::SizeLf,
            (At::Extension, b'\r') => At::SizeLf,
            (At::Extension, _) if is_text => At::Extension,
            (At::SizeLf, b'\n') => {
                self.line = 0;
                if self.size == 0 { At::TrailerStart } else { At::Data }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => {
                (self.line, self.size) = (0, 0);
                At::Size
            }
            (At::TrailerStart, b'\r') => At::TrailerLf { is_last: true },
            (At::TrailerStart, _) if super::lint::is_token(byte) => At::Trailer,
            (At::Trailer, b'\r') => At::TrailerLf { is_last: false },
            (At::Trailer, _) if is_text => At::Trailer,
            (At::TrailerLf { is_last: false }, b'\n') => At::TrailerStart,
            (At::TrailerLf { is_last: true }, b'\n') => At::Done,
            _ => return Err(BadChunk),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    fn check(body: &str, expected: Result<At, BadChunk>) {
        for cut in 0..=body.len() {
            let mut lint = ChunkLint::new();
            let (first, second) = body.as_bytes().split_at(cut);
            let seen = lint.feed(first).and_then(|()| lint.feed(second)).map(|()| lint.at);
            assert_eq!(seen, expected, "cut at {cut}: {}", body.escape_debug());
        }
    }

    #[test]
    fn good_bodies_pass_and_what_follows_is_not_looked_at() {
        check("0\r\n\r\n", Ok(At::Done));
        check("5\r\nhello\r\n0\r\n\r\nGET \0\n", Ok(At::Done));
        check("00A ;x=\"y\"\r\n01234\r\n\0\n5\r\n1\r\nx\r\n0;last\r\nTrailer: a\tb\r\nX:\r\n\r\n", Ok(At::Done));
        check("ffffffffffffffff\r\nx", Ok(At::Data));
    }

    #[test]
    fn every_doubt_is_refused() {
        for body in [
            "\r\n",
            ";\r\n",
            "+5\r\n",
            "-0\r\n",
            "0x5\r\n",
            "5_0\r\n",
            " 5\r\n",
            "g\r\n",
            "5\n",
            "5\r5",
            "5;a\nb\r\n",
            "5;\0\r\n",
            "5;\rx",
            "5;\u{7f}\r\n",
            "11111111111111111\r\n",
            "1\r\nx\n",
            "1\r\nxy",
            "1\r\nx\rx",
            "0\r\n\n",
            "0\r\n x: 1\r\n",
            "0\r\na\0\r\n",
            "0\r\na\n",
        ] {
            check(body, Err(BadChunk));
        }
        let mut lint = ChunkLint::new();
        assert_eq!(lint.feed(format!("5;{}", "x".repeat(20_000)).as_bytes()), Err(BadChunk));
    }

    proptest! {
        #[test]
        fn whatever_is_chunked_passes(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8), cut in 0_usize..400) {
            let mut body = Vec::new();
            for piece in &pieces {
                body.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                body.extend_from_slice(piece);
                body.extend_from_slice(b"\r\n");
            }
            body.extend_from_slice(b"0\r\n\r\n");
            let (first, second) = body.split_at(cut.min(body.len()));
            let mut lint = ChunkLint::new();
            prop_assert_eq!(lint.feed(first).and_then(|()| lint.feed(second)), Ok(()));
            prop_assert_eq!(lint.at, At::Done);
        }
    }
}
