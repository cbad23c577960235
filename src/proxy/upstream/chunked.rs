//! Chunked coding of answers, decoded in place (RFC 9112 section 7.1). Pure.
use bytes::{Buf, BytesMut};

const SIZE_LINE_BYTES_MAX: usize = 4 * 1024;
const TRAILER_BYTES_MAX: usize = 16 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum At {
    #[default]
    Size,
    Data(u64),
    /// The CRLF after a chunk's data.
    DataEnd,
    Trailer,
    Done,
}

/// Where in the coding the stream is.
#[derive(Debug, Default)]
pub(super) struct Dechunk {
    at: At,
    trailer_bytes: usize,
}

impl Dechunk {
    /// Whether the last chunk and the trailers have passed.
    pub(super) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Takes all payload that is in `buf`. Empty when more bytes are needed, or at the end.
    pub(super) fn take(&mut self, buf: &mut BytesMut) -> Result<BytesMut, &'static str> {
        let mut payload = BytesMut::new();
        loop {
            match self.at {
                At::Done => return Ok(payload),
                At::Data(left) => {
                    if buf.is_empty() {
                        return Ok(payload);
                    }
                    let taken = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
                    let piece = buf.split_to(taken);
                    if payload.is_empty() {
                        payload = piece;
                    } else {
                        payload.extend_from_slice(&piece);
                    }
                    let left = left - taken as u64;
                    self.at = if left == 0 { At::DataEnd } else { At::Data(left) };
                }
                At::DataEnd => match (buf.first(), buf.get(1)) {
                    (Some(b'\r'), Some(b'\n')) => {
                        buf.advance(2);
                        self.at = At::Size;
                    }
                    (None, _) | (Some(b'\r'), None) => return Ok(payload),
                    _ => return Err("chunk longer than its size"),
                },
                At::Size => {
                    let Some(line_bytes) = line(buf, SIZE_LINE_BYTES_MAX)? else { return Ok(payload) };
                    let size = size(buf.get(..line_bytes).unwrap_or_default())?;
                    buf.advance(line_bytes + 2);
                    self.at = if size == 0 { At::Trailer } else { At::Data(size) };
                }
                At::Trailer => {
                    let Some(line_bytes) = line(buf, TRAILER_BYTES_MAX)? else { return Ok(payload) };
                    buf.advance(line_bytes + 2);
                    self.trailer_bytes += line_bytes;
                    if self.trailer_bytes > TRAILER_BYTES_MAX {
                        return Err("trailers too large");
                    }
                    if line_bytes == 0 {
                        self.at = At::Done;
                    }
                }
            }
        }
    }
}

/// Length of the line at the front, without its CRLF; `None` if it is not complete.
fn line(buf: &[u8], bytes_max: usize) -> Result<Option<usize>, &'static str> {
    match memchr::memchr(b'\n', buf) {
        None if buf.len() > bytes_max => Err("chunk line too long"),
        None => Ok(None),
        Some(end) => match end.checked_sub(1).and_then(|before| buf.get(before)) {
            Some(b'\r') => Ok(Some(end - 1)),
            _ => Err("bare LF in chunked coding"),
        },
    }
}

fn size(line: &[u8]) -> Result<u64, &'static str> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (number, rest) = line.split_at(digits);
    if number.is_empty() || number.len() > 16 || !matches!(rest.first(), None | Some(b';' | b' ' | b'\t')) {
        return Err("bad chunk size");
    }
    if rest.contains(&b'\r') {
        return Err("bare CR in chunked coding");
    }
    std::str::from_utf8(number).ok().and_then(|number| u64::from_str_radix(number, 16).ok()).ok_or("bad chunk size")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
    use proptest::prelude::*;

    fn check(wire: &[u8], expected: Result<(&[u8], bool), &str>) {
        for step in 1..=wire.len() {
            let (mut dechunk, mut buf, mut payload, mut failed) =
                (Dechunk::default(), BytesMut::new(), Vec::new(), None);
            for part in wire.chunks(step) {
                buf.extend_from_slice(part);
                match dechunk.take(&mut buf) {
                    Ok(piece) => payload.extend_from_slice(&piece),
                    Err(why) => failed = failed.or(Some(why)),
                }
            }
            match (failed, expected) {
                (Some(why), Err(expected)) => assert_eq!(why, expected, "step {step}"),
                (None, Ok((bytes, done))) => {
                    assert_eq!((payload.as_slice(), dechunk.is_done()), (bytes, done), "step {step}");
                }
                (failed, expected) => panic!("step {step}: {failed:?} {expected:?}"),
            }
        }
    }

    #[test]
    fn payload_at_every_split() {
        check(b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n", Ok((b"hello!", true)));
        check(b"5\r\nhello\r\n0\r\nx: y\r\n\r\n", Ok((b"hello", true)));
        check(b"A\r\n0123456789\r\n", Ok((b"0123456789", false)));
    }

    #[test]
    fn what_is_not_the_coding_is_refused() {
        check(b"x\r\nhello\r\n", Err("bad chunk size"));
        check(b"0x5\r\nhello\r\n", Err("bad chunk size"));
        check(b"+5\r\nhello\r\n", Err("bad chunk size"));
        check(b"11111111111111111\r\nhello\r\n", Err("bad chunk size"));
        check(b"5\nhello\r\n", Err("bare LF in chunked coding"));
        check(b"4\r\nhello\r\n0\r\n\r\n", Err("chunk longer than its size"));
    }

    proptest! {
        #[test]
        fn any_payload_survives(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 0..8), step in 1_usize..60) {
            let mut wire = Vec::new();
            for piece in &pieces {
                wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                wire.extend_from_slice(piece);
                wire.extend_from_slice(b"\r\n");
            }
            wire.extend_from_slice(b"0\r\n\r\n");
            let (mut dechunk, mut buf, mut payload) = (Dechunk::default(), BytesMut::new(), Vec::new());
            for part in wire.chunks(step) {
                buf.extend_from_slice(part);
                payload.extend_from_slice(&dechunk.take(&mut buf).unwrap());
            }
            prop_assert_eq!(payload, pieces.concat());
            prop_assert!(dechunk.is_done() && buf.is_empty());
        }
    }
}
