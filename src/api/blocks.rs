//! Where strings of JSON text end, found 64 bytes at a time: one bit per byte for quotes, backslashes and control bytes,
//! and arithmetic on those bits instead of a branch per escape. How the bits of escaped bytes follow from those of
//! backslashes is from simdjson (Langdale and Lemire, "Parsing gigabytes of JSON per second", `find_escaped`).
//!
//! Says only whether a string is good. What is wrong with a bad one, and where, the scanner finds out byte by byte.
use wide::u8x16;

/// Bytes looked at in one step.
pub(super) const STEP: usize = 64;
const ODD: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// One bit per byte of a block: lowest bit, first byte.
fn bits(block: &[u8; STEP], test: impl Fn(u8x16) -> u8x16) -> u64 {
    let (parts, _) = block.as_chunks::<16>();
    parts.iter().rev().fold(0, |bits, part| (bits << 16) | u64::from(test(u8x16::new(*part)).to_bitmask()))
}

/// Bits of the bytes that are `byte`.
pub(super) fn equal(block: &[u8; STEP], byte: u8) -> u64 {
    bits(block, |part| part.simd_eq(u8x16::splat(byte)))
}

/// Bits of the bytes below 0x20.
fn controls(block: &[u8; STEP]) -> u64 {
    bits(block, |part| part.min(u8x16::splat(0x1F)).simd_eq(part))
}

/// Bits of the bytes that a backslash escapes. `carry` is 1 if the block before ended in a backslash that escapes this
/// block's first byte.
const fn escaped(backslashes: u64, carry: &mut u64) -> u64 {
    if backslashes == 0 {
        return std::mem::replace(carry, 0);
    }
    let starts = backslashes & !*carry;
    let ends = ((starts << 1) | ODD).wrapping_sub(starts) ^ ODD;
    let escaped = ends ^ (backslashes | *carry);
    *carry = (ends & backslashes) >> 63;
    escaped
}

/// A string that was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Closed {
    /// Offset just behind the closing quote.
    pub(super) end: usize,
    /// Does it hold an escape?
    pub(super) has_escape: bool,
    /// With `CHECKED`: are it and what its last block holds behind it ASCII? Else true.
    pub(super) is_ascii: bool,
}

/// Finds the end of the string whose text starts at `at`. Nothing if it is not closed or, with `CHECKED`, if it holds a
/// control byte or an escape that JSON does not know.
pub(super) fn string_end<const CHECKED: bool>(text: &[u8], mut at: usize) -> Option<Closed> {
    let (mut carry, mut all_escapes, mut high) = (0, 0, u8x16::ZERO);
    loop {
        let rest = text.get(at..)?;
        let mut padded = [0; STEP];
        let block = if let Some(block) = rest.first_chunk::<STEP>() {
            block
        } else {
            padded.get_mut(..rest.len())?.copy_from_slice(rest);
            &padded
        };
        let backslashes = equal(block, b'\\');
        let escaped = escaped(backslashes, &mut carry);
        let all_quotes = equal(block, b'"');
        let quotes = all_quotes & !escaped;
        let inside = (quotes & quotes.wrapping_neg()).wrapping_sub(1);
        all_escapes |= escaped & inside;
        if CHECKED {
            high = block.as_chunks::<16>().0.iter().fold(high, |high, part| high | u8x16::new(*part));
            let unknown = if escaped & inside == 0 {
                0
            } else {
                escaped & inside & !(all_quotes | backslashes | equal(block, b'n'))
            };
            if controls(block) & inside != 0 || !escapes_are_known(text, at, unknown) {
                return None;
            }
        }
        if quotes != 0 {
            let end = at + quotes.trailing_zeros() as usize + 1;
            return Some(Closed { end, has_escape: all_escapes != 0, is_ascii: high.to_bitmask() == 0 });
        }
        at += STEP;
    }
}

/// Do the marked bytes, counted from `at`, each make an escape with the backslash before them?
fn escapes_are_known(text: &[u8], at: usize, mut marks: u64) -> bool {
    while marks != 0 {
        let place = at + marks.trailing_zeros() as usize;
        marks &= marks - 1;
        match text.get(place) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {}
            Some(b'u') if is_hex(text.get(place + 1..place + 5)) => {}
            _ => return false,
        }
    }
    true
}

fn is_hex(digits: Option<&[u8]>) -> bool {
    digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Rng;

    /// The same, byte by byte.
    fn slowly(text: &[u8], checked: bool) -> Option<(usize, bool)> {
        let (mut at, mut has_escape) = (0, false);
        loop {
            match *text.get(at)? {
                b'"' => return Some((at + 1, has_escape)),
                b'\\' => {
                    has_escape = true;
                    let good = match text.get(at + 1) {
                        Some(b'u') => is_hex(text.get(at + 2..at + 6)),
                        other => other.is_some_and(|byte| br#""\/bfnrt"#.contains(byte)),
                    };
                    if checked && !good {
                        return None;
                    }
                    at += 2;
                }
                byte if checked && byte < 0x20 => return None,
                _ => at += 1,
            }
        }
    }

    #[test]
    fn ends_are_where_a_walk_by_bytes_finds_them() {
        let mut rng = Rng::new(11);
        let alphabets: [&[u8]; 4] = [b"\\\\\\\"", b"a\\\\n", b"abcdefghijk\\\\nu0dE9\"\x1F", b"abc\xC3\xA9 \\n"];
        for round in 0..40_000 {
            let alphabet = alphabets[round % 4];
            let length = rng.below(200) as usize;
            let mut text: Vec<u8> = (0..length).map(|_| alphabet[rng.below(alphabet.len() as u64) as usize]).collect();
            text.extend_from_slice(b"\"tail\\");
            let seen = |closed: Option<Closed>| closed.map(|closed| (closed.end, closed.has_escape));
            let checked = string_end::<true>(&text, 0);
            assert_eq!(seen(checked), slowly(&text, true), "{text:?}");
            assert_eq!(seen(string_end::<false>(&text, 0)), slowly(&text, false), "{text:?}");
            let is_ascii = checked.is_none_or(|closed| !closed.is_ascii || text[..closed.end].is_ascii());
            assert!(is_ascii && (!text.is_ascii() || checked.is_none_or(|closed| closed.is_ascii)), "{text:?}");
        }
    }
}
