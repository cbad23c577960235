//! Resolves the escapes of JSON strings into a buffer, for a reader that takes whole pieces. Text is copied 64 bytes at a
//! time, beyond what is known to be plain; the next escape then overwrites what was too much. Long text without escapes
//! goes to the reader as it lies in the body.
//!
//! Lenient: what is no escape yields its bytes without the backslash. A lone surrogate becomes its three bytes (WTF-8).
use super::blocks::{self, STEP};

const SIZE: usize = 2048;
/// Room that one step needs: its text, escapes in it, and what is copied too far.
const ROOM: usize = 256;
/// Text that one step may read: an escape at its end, or what is copied too far.
const WINDOW: usize = 2 * STEP;

/// What a one-letter escape stands for, by its letter.
const PLAIN: [u8; 256] = {
    let mut table = [0; 256];
    let (mut left, mut letter): (&mut [u8], u8) = (&mut table, 0);
    while let [first, rest @ ..] = left {
        *first = match letter {
            b'n' => b'\n',
            b't' => b'\t',
            b'r' => b'\r',
            b'b' => 8,
            b'f' => 12,
            other => other,
        };
        (left, letter) = (rest, letter.wrapping_add(1));
    }
    table
};

/// Values of hexadecimal digits; 0xFF for other bytes.
const HEX: [u8; 256] = {
    let mut table = [0xFF; 256];
    let (mut left, mut digit): (&mut [u8], u8) = (&mut table, 0);
    while let [first, rest @ ..] = left {
        *first = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            b'A'..=b'F' => digit - b'A' + 10,
            _ => 0xFF,
        };
        (left, digit) = (rest, digit.wrapping_add(1));
    }
    table
};

/// Takes decoded text.
pub trait Drain {
    /// Takes text off the front of the buffer and leaves fewer than 1,024 bytes in it.
    fn drain(&mut self, buffer: &mut Buffer);
    /// Takes what is in the buffer and this text behind it.
    fn plain(&mut self, buffer: &mut Buffer, text: &[u8]);
}

/// Decoded bytes on their way.
#[derive(Debug)]
pub struct Buffer {
    bytes: [u8; SIZE],
    len: usize,
}

impl Default for Buffer {
    fn default() -> Self {
        Self { bytes: [0; SIZE], len: 0 }
    }
}

impl Buffer {
    /// What is in it.
    pub fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Forgets the first `used` bytes.
    pub fn consume(&mut self, used: usize) {
        let used = used.min(self.len);
        self.bytes.copy_within(used..self.len, 0);
        self.len -= used;
    }

    /// Puts a few bytes (at most 256) behind the text.
    pub fn push(&mut self, bytes: &[u8], out: &mut impl Drain) {
        self.make_room(out);
        if let Some(free) = self.bytes.get_mut(self.len..self.len + bytes.len()) {
            free.copy_from_slice(bytes);
            self.len += bytes.len();
        }
    }

    fn make_room(&mut self, out: &mut impl Drain) {
        if self.len + ROOM > SIZE {
            out.drain(self);
        }
    }

    /// Copies bytes to offset `at`, behind the text.
    fn put_at<const N: usize>(&mut self, at: usize, bytes: Option<&[u8; N]>) {
        if let (Some(bytes), Some(free)) = (bytes, self.bytes.get_mut(at..at + N)) {
            free.copy_from_slice(bytes);
        }
    }

    /// Writes one escape (`escape` starts with its backslash) to offset `at`. Returns how long it is and how much it wrote.
    #[inline]
    fn escape(&mut self, at: usize, escape: &[u8]) -> (usize, usize) {
        let Some(kind) = escape.get(1) else { return (1, 0) };
        if *kind == b'u' {
            let (used, bytes, written) = unicode(escape);
            self.put_at(at, Some(&bytes));
            return (used, written);
        }
        if let (Some(free), Some(plain)) = (self.bytes.get_mut(at), PLAIN.get(usize::from(*kind))) {
            *free = *plain;
        }
        (2, 1)
    }
}

/// The length of a `\u` escape or pair of them, and what it stands for: how many of the four bytes count.
#[inline]
fn unicode(escape: &[u8]) -> (usize, [u8; 4], usize) {
    let Some(first) = hex4(escape.get(2..6)) else { return (2, [0; 4], 0) };
    let mut code = first;
    let mut used = 6;
    if (0xD800..0xDC00).contains(&first) && escape.get(6..8) == Some(b"\\u") {
        let low = hex4(escape.get(8..12)).filter(|low| (0xDC00..0xE000).contains(low));
        if let Some(low) = low {
            code = 0x1_0000 + ((first - 0xD800) << 10) + (low - 0xDC00);
            used = 12;
        }
    }
    let tail = |shift: u32| 0x80 | ((code >> shift) & 0x3F) as u8;
    match code {
        0..0x80 => (used, [code as u8, 0, 0, 0], 1),
        0x80..0x800 => (used, [0xC0 | (code >> 6) as u8, tail(0), 0, 0], 2),
        0x800..0x1_0000 => (used, [0xE0 | (code >> 12) as u8, tail(6), tail(0), 0], 3),
        _ => (used, [0xF0 | (code >> 18) as u8, tail(12), tail(6), tail(0)], 4),
    }
}

/// Decodes the text of a string, given between its quotes, behind what the buffer holds.
pub fn decode(raw: &[u8], buffer: &mut Buffer, out: &mut impl Drain) {
    run::<false>(raw, buffer, out);
}

/// Decodes the text of a string up to its closing quote, behind what the buffer holds. Returns the offset just behind the
/// quote; the end of the text if there is none.
pub fn decode_to_quote(text: &[u8], buffer: &mut Buffer, out: &mut impl Drain) -> usize {
    run::<true>(text, buffer, out)
}

/// Offset of the next backslash or, with `QUOTED`, quote; the length of the text if there is none.
fn plain_len<const QUOTED: bool>(text: &[u8]) -> usize {
    let found = if QUOTED { memchr::memchr2(b'\\', b'"', text) } else { memchr::memchr(b'\\', text) };
    found.unwrap_or(text.len())
}

fn run<const QUOTED: bool>(text: &[u8], buffer: &mut Buffer, out: &mut impl Drain) -> usize {
    let mut rest = text;
    let mut clean_steps = 0;
    while let Some(window) = rest.first_chunk::<WINDOW>() {
        buffer.make_room(out);
        let Some(block) = window.first_chunk::<STEP>() else { break };
        let slashes = blocks::equal(block, b'\\');
        let quotes = if QUOTED { blocks::equal(block, b'"') } else { 0 };
        let used = if slashes | quotes != 0 {
            clean_steps = 0;
            match step(window, slashes, quotes, buffer) {
                Step::Read(used) => used,
                Step::Closed(used) => return text.len() - rest.len() + used,
            }
        } else if clean_steps < 2 {
            clean_steps += 1;
            buffer.put_at(buffer.len, Some(block));
            buffer.len += STEP;
            STEP
        } else {
            clean_steps = 0;
            let plain = plain_len::<QUOTED>(rest);
            out.plain(buffer, rest.get(..plain).unwrap_or_default());
            plain
        };
        rest = rest.get(used..).unwrap_or_default();
    }
    buffer.make_room(out);
    loop {
        let (plain, escape) = rest.split_at(plain_len::<QUOTED>(rest));
        buffer.push(plain, out);
        match escape.first() {
            None => return text.len(),
            Some(b'"') if QUOTED => return text.len() - escape.len() + 1,
            Some(_) => {
                let (used, written) = buffer.escape(buffer.len, escape);
                buffer.len += written;
                rest = escape.get(used..).unwrap_or_default();
            }
        }
    }
}

/// What one step came to: how much of the window was read, and whether that was all of the string.
enum Step {
    Read(usize),
    Closed(usize),
}

/// Decodes a block that holds the backslashes and quotes marked.
#[inline]
fn step(window: &[u8; WINDOW], slashes: u64, quotes: u64, buffer: &mut Buffer) -> Step {
    let (mut at, mut len, mut ahead) = (0, buffer.len, u64::MAX);
    while at < STEP {
        let slash = (slashes & ahead).trailing_zeros() as usize;
        let quote = (quotes & ahead).trailing_zeros() as usize;
        let found = slash.min(quote);
        buffer.put_at(len, window.get(at..).and_then(<[u8]>::first_chunk::<STEP>));
        len += found - at;
        if found == STEP {
            at = STEP;
        } else if quote < slash {
            buffer.len = len;
            return Step::Closed(quote + 1);
        } else {
            let (used, written) = buffer.escape(len, window.get(found..).unwrap_or_default());
            (at, len) = (found + used, len + written);
            ahead = if at < STEP { u64::MAX << at } else { 0 };
        }
    }
    buffer.len = len;
    Step::Read(at)
}

fn hex4(digits: Option<&[u8]>) -> Option<u32> {
    let digits = digits?.first_chunk::<4>()?;
    let [a, b, c, d] = digits.map(|digit| HEX.get(usize::from(digit)).copied().unwrap_or(0xFF));
    let all = [a, b, c, d].iter().fold(0, |all, value| all | value);
    (all < 16).then(|| (u32::from(a) << 12) | (u32::from(b) << 8) | (u32::from(c) << 4) | u32::from(d))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::json::{Sink as _, decode_into};
    use crate::base::Rng;

    /// JSON text of random strings decodes to what serde reads, at every length and place of escapes.
    #[test]
    fn long_strings_decode_as_another_parser_reads_them() {
        let mut rng = Rng::new(5);
        let pieces = [
            "a",
            "word ",
            "\\n",
            "\\\\",
            "\\\"",
            "\\u00e9",
            "\\u0041",
            "\\ud83d\\ude00",
            "\\u20AC",
            "\u{e9}",
            "\u{1f600}",
            "\\/",
        ];
        for round in 0..3_000_u64 {
            let plain = [0, 1, 5, 60, 400][(round % 5) as usize];
            let mut raw = String::new();
            for _ in 0..rng.below(80) {
                raw += pieces[rng.below(pieces.len() as u64) as usize];
                raw += &"plain text without end ".repeat(1 + plain / 23)[..rng.below(plain as u64 + 1) as usize];
            }
            let expected: String = serde_json::from_str(&format!("\"{raw}\"")).unwrap();
            let mut decoded = Vec::new();
            decode_into(raw.as_bytes(), &mut decoded);
            assert_eq!(String::from_utf8(decoded).unwrap(), expected, "round {round}");
            for behind in ["\"", "\",\"more\\\":1}", &format!("\"{}", "\\\"x".repeat(100))] {
                let mut decoded = Vec::new();
                let end = decoded.decode_to_quote(format!("{raw}{behind}").as_bytes());
                assert_eq!(
                    (String::from_utf8(decoded).unwrap(), end),
                    (expected.clone(), raw.len() + 1),
                    "round {round}"
                );
            }
        }
    }

    #[test]
    fn what_is_no_escape_loses_its_backslash_only() {
        for (raw, expected) in [("\\q", "q"), ("\\", ""), ("\\u12", "12"), ("\\u12g4", "12g4"), ("a\\", "a")] {
            for before in [0, 50, 62, 63, 64, 126, 127, 128, 1_000] {
                for after in [0, 1, 63, 200] {
                    let end = if raw.ends_with('\\') { 0 } else { after };
                    let frame = |text: &str| format!("{}{text}{}", "x".repeat(before), "y".repeat(end));
                    let mut decoded = Vec::new();
                    decode_into(frame(raw).as_bytes(), &mut decoded);
                    assert_eq!(String::from_utf8(decoded).unwrap(), frame(expected), "{raw} {before} {after}");
                }
            }
        }
    }
}
