//! A lenient walk over JSON text: members of an object, elements of an array, decoded strings. Never recursive, never
//! builds a tree, never fails: on text that is not JSON it yields less or nothing, so it may be used on a pod's answer.
//!
//! A request body has been checked by [`super::Anatomy`] before it is walked; the walk itself checks nothing. Values are
//! handed out as raw slices of the input without surrounding white space. Decoded strings are WTF-8: a lone surrogate,
//! which Python's `json` accepts, becomes its three bytes.
use std::borrow::Cow;
use std::hash::Hasher;

use super::blocks;
use super::decode::{self, Buffer, Drain};

/// Where decoded text goes.
pub trait Sink {
    /// Takes the next bytes of the text.
    fn put(&mut self, bytes: &[u8]);

    /// Takes the text of a string, given between its quotes with its escapes as written.
    fn decode(&mut self, raw: &[u8]) {
        if memchr::memchr(b'\\', raw).is_none() {
            return self.put(raw);
        }
        let mut buffer = Buffer::default();
        let mut out = Whole(self);
        decode::decode(raw, &mut buffer, &mut out);
        out.drain(&mut buffer);
    }

    /// Takes the text of a string up to its closing quote, with its escapes as written. Returns the offset just behind
    /// that quote; the end of the text if there is none.
    fn decode_to_quote(&mut self, text: &[u8]) -> usize {
        let mut buffer = Buffer::default();
        let mut out = Whole(self);
        let end = decode::decode_to_quote(text, &mut buffer, &mut out);
        out.drain(&mut buffer);
        end
    }
}

impl Sink for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

impl Sink for xxhash_rust::xxh3::Xxh3 {
    fn put(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }
}

/// One member of an object, with offsets into the walked slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberView<'a> {
    /// The key between its quotes, escapes as written.
    pub key: &'a [u8],
    /// The value as written.
    pub value: &'a [u8],
    /// Offset of the key's opening quote.
    pub start: usize,
    /// Offset of the value.
    pub value_start: usize,
    /// Offset of the comma after the value, if there is one.
    pub comma: Option<usize>,
}

impl MemberView<'_> {
    /// Offset just behind the value.
    pub const fn end(&self) -> usize {
        self.value_start + self.value.len()
    }
}

/// Iterator over the members of an object, in order, duplicates included.
#[derive(Clone, Debug)]
pub struct Members<'a> {
    text: &'a [u8],
    at: usize,
    /// Offset behind the last member read.
    end: usize,
}

/// The members of the object that `value` begins with; none if it is not an object. Text behind the object is not read.
pub fn members(value: &[u8]) -> Members<'_> {
    let at = skip_space(value, 0);
    let at = if value.get(at) == Some(&b'{') { at + 1 } else { value.len() };
    Members { text: value, at, end: at }
}

impl Members<'_> {
    /// Skips the members that are left and returns the offset just behind the object.
    pub fn finish(mut self) -> usize {
        while self.next().is_some() {}
        let close = skip_space(self.text, self.end);
        if self.text.get(close) == Some(&b'}') { close + 1 } else { self.text.len() }
    }
}

/// Calls `visit` with the text from each element that is an object up to the end of the array; it returns how many bytes
/// the object has ([`Members::finish`]). Large arrays of objects are so read once instead of twice.
pub fn for_each_object<'a>(array: &'a [u8], mut visit: impl FnMut(&'a [u8]) -> usize) {
    let mut at = skip_space(array, 0);
    while let Some(byte) = array.get(at) {
        at = match byte {
            b'[' | b',' | b' ' | b'\n' | b'\r' | b'\t' => at + 1,
            b'{' => at + visit(array.get(at..).unwrap_or_default()).max(1),
            b']' => return,
            _ => value_end(array, at).max(at + 1),
        };
    }
}

impl<'a> Members<'a> {
    /// The next member. `take` is asked first, with the member's key and the text from its value on: it may read the value
    /// itself and return where that ends. So long values are gone through once, not twice.
    pub fn next_or(&mut self, take: impl FnOnce(&'a [u8], &'a [u8]) -> Option<usize>) -> Option<MemberView<'a>> {
        let start = skip_space(self.text, self.at);
        if self.text.get(start) != Some(&b'"') {
            return None;
        }
        let key_end = string_end(self.text, start + 1);
        let colon = skip_space(self.text, key_end);
        if self.text.get(colon) != Some(&b':') {
            return None;
        }
        let key = self.text.get(start + 1..key_end.saturating_sub(1))?;
        let value_start = skip_space(self.text, colon + 1);
        let taken = take(key, self.text.get(value_start..)?);
        let end = taken.map_or_else(|| value_end(self.text, value_start), |len| value_start + len);
        let after = skip_space(self.text, end);
        let comma = (self.text.get(after) == Some(&b',')).then_some(after);
        self.at = comma.map_or(self.text.len(), |comma| comma + 1);
        self.end = end;
        Some(MemberView { key, value: self.text.get(value_start..end)?, start, value_start, comma })
    }
}

impl<'a> Iterator for Members<'a> {
    type Item = MemberView<'a>;

    fn next(&mut self) -> Option<MemberView<'a>> {
        self.next_or(|_, _| None)
    }
}

/// Iterator over the elements of an array.
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    text: &'a [u8],
    at: usize,
}

/// The elements of `value`; none if it is not an array.
pub fn elements(value: &[u8]) -> Elements<'_> {
    let at = skip_space(value, 0);
    let at = if value.get(at) == Some(&b'[') { at + 1 } else { value.len() };
    Elements { text: value, at }
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let start = skip_space(self.text, self.at);
        let end = value_end(self.text, start);
        if end == start {
            return None;
        }
        let after = skip_space(self.text, end);
        self.at = if self.text.get(after) == Some(&b',') { after + 1 } else { self.text.len() };
        self.text.get(start..end)
    }
}

/// The value of the member `name`; the last one if there are several, as Python reads it.
pub fn member<'a>(object: &'a [u8], name: &str) -> Option<&'a [u8]> {
    members(object).filter(|member| key_is(member.key, name)).last().map(|member| member.value)
}

/// Is this key, as written between its quotes, `name` once its escapes are resolved?
pub fn key_is(key: &[u8], name: &str) -> bool {
    if key.len() == name.len() || memchr::memchr(b'\\', key).is_none() {
        return key == name.as_bytes();
    }
    let mut decoded = Vec::new();
    decode_into(key, &mut decoded);
    decoded == name.as_bytes()
}

/// What is between the quotes of a string value, escapes as written; nothing if it is not a string.
pub fn raw_string(value: &[u8]) -> Option<&[u8]> {
    value.strip_prefix(b"\"")?.strip_suffix(b"\"")
}

/// The text of a string value; lone surrogates are replaced. Nothing if it is not a string.
pub fn text(value: &[u8]) -> Option<Cow<'_, str>> {
    let raw = raw_string(value)?;
    if memchr::memchr(b'\\', raw).is_none() {
        return Some(String::from_utf8_lossy(raw));
    }
    let mut decoded = Vec::with_capacity(raw.len());
    decode_into(raw, &mut decoded);
    Some(Cow::Owned(String::from_utf8_lossy(&decoded).into_owned()))
}

/// Writes the text of a string, given between its quotes, with escapes resolved.
pub fn decode_into(raw: &[u8], sink: &mut impl Sink) {
    sink.decode(raw);
}

/// Decoded text that goes to a sink whole.
struct Whole<'a, S: ?Sized>(&'a mut S);

impl<S: Sink + ?Sized> Drain for Whole<'_, S> {
    fn drain(&mut self, buffer: &mut Buffer) {
        let text = buffer.text();
        if !text.is_empty() {
            self.0.put(text);
            buffer.consume(text.len());
        }
    }

    fn plain(&mut self, buffer: &mut Buffer, text: &[u8]) {
        self.drain(buffer);
        self.0.put(text);
    }
}

/// Writes any value in a form that does not depend on white space or on how strings are escaped: punctuation and numbers
/// as they are, strings decoded between two 0xFE bytes (which no text contains). Key order is kept: templates render it.
pub fn flatten_into(value: &[u8], sink: &mut impl Sink) {
    let mut at = 0;
    while let Some(&byte) = value.get(at) {
        match byte {
            b'"' => {
                let end = string_end(value, at + 1);
                sink.put(&[0xFE]);
                decode_into(value.get(at + 1..end.saturating_sub(1)).unwrap_or_default(), sink);
                sink.put(&[0xFE]);
                at = end;
            }
            b' ' | b'\t' | b'\n' | b'\r' => at += 1,
            _ => {
                let run = value.get(at..).unwrap_or_default();
                let len = run.iter().position(|byte| matches!(byte, b'"' | b' ' | b'\t' | b'\n' | b'\r'));
                let len = len.unwrap_or(run.len());
                sink.put(run.get(..len).unwrap_or_default());
                at += len;
            }
        }
    }
}

/// Offset of the next byte that is not white space.
pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

/// Marks the top bit of the bytes that are zero. Bytes above the first such byte may be marked wrongly.
const fn zeros(word: u64) -> u64 {
    word.wrapping_sub(0x0101_0101_0101_0101) & !word & 0x8080_8080_8080_8080
}

/// Marks quotes, backslashes and control bytes, as [`zeros`] does.
const fn stops(word: u64) -> u64 {
    let controls = word.wrapping_sub(0x2020_2020_2020_2020) & !word & 0x8080_8080_8080_8080;
    controls | zeros(word ^ 0x5C5C_5C5C_5C5C_5C5C) | zeros(word ^ 0x2222_2222_2222_2222)
}

/// Index of the first marked byte; 8 if none is.
const fn first_hit(marks: u64) -> usize {
    (marks.trailing_zeros() / 8) as usize
}

/// Offset just behind the quote of a string that ends within eight bytes, without escapes and control bytes; and whether
/// these eight bytes are ASCII.
pub(super) fn short_string_end(text: &[u8], at: usize) -> Option<(usize, bool)> {
    let chunk = text.get(at..)?.first_chunk::<8>()?;
    let word = u64::from_le_bytes(*chunk);
    let found = first_hit(stops(word));
    (chunk.get(found) == Some(&b'"')).then_some((at + found + 1, word & 0x8080_8080_8080_8080 == 0))
}

/// Offset just behind the closing quote of the string whose text starts at `at`; the end of the text if it is cut.
fn string_end(text: &[u8], at: usize) -> usize {
    short_string_end(text, at)
        .map(|(end, _)| end)
        .or_else(|| blocks::string_end::<false>(text, at).map(|closed| closed.end))
        .unwrap_or(text.len())
}

/// Offset just behind the value that starts at `at`; `at` itself if none starts there.
fn value_end(text: &[u8], at: usize) -> usize {
    match text.get(at) {
        Some(b'"') => string_end(text, at + 1),
        Some(b'{' | b'[') => container_end(text, at),
        _ => {
            let rest = text.get(at..).unwrap_or_default();
            let len = rest.iter().position(|byte| matches!(byte, b',' | b'}' | b']' | b' ' | b'\n' | b'\r' | b'\t'));
            at + len.unwrap_or(rest.len())
        }
    }
}

fn container_end(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0_usize;
    while let Some(&byte) = text.get(at) {
        at += 1;
        match byte {
            b'"' => at = string_end(text, at),
            b'{' | b'[' => depth += 1,
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return at;
                }
            }
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn members_and_elements_are_raw_slices_in_order() {
        let object = br#" { "a" : [1, "x,]" ,{"b":2}] , "\u0061":"\"" }"#;
        let seen: Vec<_> = members(object).map(|member| (member.key, member.value)).collect();
        assert_eq!(seen, [(&b"a"[..], &br#"[1, "x,]" ,{"b":2}]"#[..]), (br"\u0061", br#""\"""#)]);
        assert_eq!(member(object, "a"), Some(&br#""\"""#[..]), "the last one counts");
        let list: Vec<_> = elements(seen[0].1).collect();
        assert_eq!(list, [&b"1"[..], br#""x,]""#, br#"{"b":2}"#]);
        assert_eq!(members(b"[1]").count() + elements(b"{}").count() + elements(b"[]").count(), 0);
    }

    #[test]
    fn strings_decode_as_python_reads_them() {
        for raw in [r#""a\n\t\"\\\/\b\f\r""#, r#""\u00e9\u20ac\ud83d\ude00""#, r#""plain é""#, r#""""#] {
            let expected: String = serde_json::from_str(raw).unwrap();
            assert_eq!(text(raw.as_bytes()).unwrap(), expected);
        }
        let mut lone = Vec::new();
        decode_into(br"\ud83dx", &mut lone);
        assert_eq!(lone, b"\xED\xA0\xBDx");
    }

    #[test]
    fn flat_form_ignores_spelling_but_keeps_structure() {
        let flat = |value: &str| {
            let mut out = Vec::new();
            flatten_into(value.as_bytes(), &mut out);
            out
        };
        assert_eq!(flat(r#"{"a": ["\u00e9", 1]}"#), flat(r#"{"a":["é",1]}"#));
        assert_ne!(flat(r#"["a","b"]"#), flat(r#"["a\",\"b"]"#));
    }

    #[test]
    fn anything_else_yields_less_and_does_not_hang() {
        for cut in
            ["", "{", "{\"", "{\"a", "{\"a\"", "{\"a\":", "{\"a\":\"", "[1,", "[", "[\"\\", "{\"a\":[[[", "\"\\u12"]
        {
            assert!(members(cut.as_bytes()).count() <= 1, "{cut}");
            assert!(elements(cut.as_bytes()).count() <= 1, "{cut}");
            text(cut.as_bytes());
        }
    }
}
