//! Unframing of chunked request bodies, byte by byte as they come.
use bytes::{Buf, BytesMut};

/// State of a chunked body being read.
#[derive(Debug, Default)]
pub(super) struct Dechunk {
    /// Bytes of the current chunk still to come, with its CRLF.
    left: usize,
    is_in_chunk: bool,
    is_in_trailer: bool,
}

/// What became of the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunked {
    /// More must come.
    Partial,
    /// The body is whole.
    Whole,
    /// Not a chunked body.
    Bad,
}

impl Dechunk {
    /// Moves what can be unframed from `raw` to `body`.
    pub(super) fn feed(&mut self, raw: &mut BytesMut, body: &mut BytesMut) -> Chunked {
        loop {
            if self.is_in_chunk {
                let take = self.left.saturating_sub(2).min(raw.len());
                body.extend_from_slice(&raw.split_to(take));
                self.left -= take;
                if self.left > 2 || raw.len() < 2 {
                    return Chunked::Partial;
                }
                if !raw.starts_with(b"\r\n") {
                    return Chunked::Bad;
                }
                raw.advance(2);
                self.is_in_chunk = false;
            }
            let Some(end) = memchr::memmem::find(raw, b"\r\n") else {
                return if raw.len() > 1_024 { Chunked::Bad } else { Chunked::Partial };
            };
            let line = raw.split_to(end + 2);
            let line = line.get(..end).unwrap_or_default();
            if self.is_in_trailer {
                if line.is_empty() {
                    return Chunked::Whole;
                }
                continue;
            }
            let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
            let size = std::str::from_utf8(digits).ok().and_then(|text| usize::from_str_radix(text.trim(), 16).ok());
            match size {
                Some(0) => self.is_in_trailer = true,
                Some(size) if size < usize::MAX / 2 => {
                    self.left = size + 2;
                    self.is_in_chunk = true;
                }
                _ => return Chunked::Bad,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_split_gives_the_same_body() {
        let text = b"4\r\nWiki\r\n6;x=y\r\npedia \r\n0\r\ntrailer: 1\r\n\r\nnext";
        for split in 0..text.len() {
            let (mut raw, mut body, mut state) = (BytesMut::new(), BytesMut::new(), Dechunk::default());
            let (left, right) = text.split_at(split);
            raw.extend_from_slice(left);
            let mut result = state.feed(&mut raw, &mut body);
            if result == Chunked::Partial {
                raw.extend_from_slice(right);
                result = state.feed(&mut raw, &mut body);
            }
            assert_eq!((result, body.as_ref()), (Chunked::Whole, b"Wikipedia ".as_ref()), "split at {split}");
        }
        let mut raw = BytesMut::from(&b"zz\r\n"[..]);
        assert_eq!(Dechunk::default().feed(&mut raw, &mut BytesMut::new()), Chunked::Bad);
    }
}
