//! One message of a conversation as canonical bytes: role, content, then the rest. A text part counts as its text, several
//! are joined by a newline. Media and other parts enter by a digest. `cache_control` (Anthropic clients move it from turn
//! to turn) and the ids and states of Responses items do not enter.
use std::borrow::Cow;

use xxhash_rust::xxh3::Xxh3;

use crate::api::json::{self, MemberView, Sink};

use super::writer::Writer;

/// What a message may hold besides role and content, in a fixed order.
const REST: [&[u8]; 5] = [b"name", b"tool_call_id", b"tool_calls", b"reasoning", b"reasoning_content"];
/// Members of parts that say nothing to the model.
const PART_ASIDE: [&[u8]; 1] = [b"cache_control"];
/// The same of items of the Responses API.
const ITEM_ASIDE: [&[u8]; 3] = [b"cache_control", b"id", b"status"];
/// Most members of an object that are put in order; one with more keeps its own.
const SORTED_MAX: usize = 24;

/// Null and empty containers mean the same as an absent member.
pub(super) fn is_empty(value: &[u8]) -> bool {
    matches!(value, b"null" | b"[]" | b"{}" | b"\"\"")
}

/// A string as its text, anything else in its flat form.
pub(super) fn plain(value: &[u8], writer: &mut Writer) {
    match json::raw_string(value) {
        Some(raw) => json::decode_into(raw, writer),
        None => json::flatten_into(value, writer),
    }
}

/// Writes the message that `item` begins with and returns its length in the body. A content that is a string and comes
/// after the role, as every client sends it, is written while it is read.
pub(super) fn read(item: &[u8], writer: &mut Writer) -> usize {
    let (mut role, mut content): (Option<&[u8]>, &[u8]) = (None, b"null");
    let mut rest = [None; REST.len()];
    let mut is_written = false;
    let mut members = json::members(item);
    while let Some(member) = members.next_or(|key, value| {
        let text = value.strip_prefix(b"\"").filter(|_| key == b"content" && !is_written)?;
        begin(role?, writer);
        is_written = true;
        Some(1 + writer.decode_to_quote(text))
    }) {
        match &*key(&member, &[b"role", b"content"]) {
            b"role" => role = Some(member.value),
            b"content" => content = member.value,
            key => {
                let known = REST.iter().position(|name| *name == key);
                if let Some(slot) = known.and_then(|index| rest.get_mut(index)) {
                    *slot = Some(member.value);
                }
            }
        }
    }
    if !is_written {
        write(role.unwrap_or(b"\"\""), content, writer);
    }
    for (name, value) in REST.iter().zip(rest) {
        let Some(value) = value.filter(|value| !is_empty(value)) else { continue };
        writer.mark(b'r');
        writer.put(name);
        if *name == b"tool_calls" {
            flat(value, 2, &[], &mut |bytes| writer.put(bytes));
        } else {
            plain(value, writer);
        }
    }
    members.finish()
}

fn begin(role: &[u8], writer: &mut Writer) {
    writer.section(true);
    writer.role(role);
    writer.mark(b'm');
    plain(role, writer);
    writer.mark(b'c');
}

/// Writes a message of this role.
pub(super) fn write(role: &[u8], content: &[u8], writer: &mut Writer) {
    begin(role, writer);
    if content.first() == Some(&b'"') {
        return plain(content, writer);
    }
    let mut after_text = false;
    for part in json::elements(content) {
        after_text = write_part(part, after_text, writer);
    }
}

/// Writes an item of the Responses API that is no message: a call, its output, reasoning.
pub(super) fn item(item: &[u8], writer: &mut Writer) {
    writer.section(true);
    writer.mark(b'i');
    flat(item, 1, &ITEM_ASIDE, &mut |bytes| writer.put(bytes));
}

/// Writes one part of a message; true if it was text.
fn write_part(part: &[u8], after_text: bool, writer: &mut Writer) -> bool {
    let (mut kind, mut text) = (Cow::Borrowed(&b"text"[..]), None);
    for member in json::members(part) {
        match &*key(&member, &[b"type", b"text"]) {
            b"type" => kind = word(json::raw_string(member.value).unwrap_or_default()),
            b"text" => text = Some(member.value),
            _ => {}
        }
    }
    let bare = (part.first() == Some(&b'"')).then_some(part);
    let is_text = matches!(&*kind, b"text" | b"input_text" | b"output_text");
    if let Some(text) = bare.or(text.filter(|_| is_text)) {
        if after_text {
            writer.put(b"\n");
        }
        plain(text, writer);
        return true;
    }
    if kind.starts_with(b"tool_") {
        writer.mark(b't');
        // The parts of a result are marked for caching too; the arguments of a call are shown in their own order.
        let depth = if &*kind == b"tool_result" { 2 } else { 1 };
        flat(part, depth, &PART_ASIDE, &mut |bytes| writer.put(bytes));
    } else {
        writer.medium();
        let mut digest = Xxh3::new();
        flat(part, 2, &PART_ASIDE, &mut |bytes| digest.update(bytes));
        writer.mark(b'p');
        writer.put(&digest.digest().to_le_bytes());
    }
    false
}

/// A member's key with escapes resolved, unless it is one of `usual` as written.
fn key<'a>(member: &MemberView<'a>, usual: &[&[u8]]) -> Cow<'a, [u8]> {
    if usual.contains(&member.key) { Cow::Borrowed(member.key) } else { word(member.key) }
}

/// A short string, given between its quotes, with escapes resolved.
fn word(raw: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', raw).is_none() {
        return Cow::Borrowed(raw);
    }
    let mut decoded = Vec::new();
    json::decode_into(raw, &mut decoded);
    Cow::Owned(decoded)
}

/// A value in its flat form. Objects down to `depth` levels (lists do not count) have their members in the order of their
/// keys, without null ones and without those of `aside`.
pub(super) fn flat(value: &[u8], depth: usize, aside: &[&[u8]], put: &mut dyn FnMut(&[u8])) {
    match value.first() {
        Some(b'[') if depth > 0 => {
            for element in json::elements(value) {
                put(b"[");
                flat(element, depth, aside, put);
            }
            put(b"]");
        }
        Some(b'{') if depth > 0 => object(value, depth, aside, put),
        _ => json::flatten_into(value, &mut Through(put)),
    }
}

fn object(value: &[u8], depth: usize, aside: &[&[u8]], put: &mut dyn FnMut(&[u8])) {
    let mut sorted = [const { None::<(Cow<'_, [u8]>, &[u8])> }; SORTED_MAX];
    let mut count = 0;
    for member in json::members(value) {
        let key = key(&member, &[]);
        if member.value == b"null" || aside.contains(&&*key) {
            continue;
        }
        let Some(slot) = sorted.get_mut(count) else { return json::flatten_into(value, &mut Through(put)) };
        *slot = Some((key, member.value));
        count += 1;
    }
    let sorted = sorted.get_mut(..count).unwrap_or_default();
    // Stable: of two members with the same key the last one counts, and stays last.
    sorted.sort_by(|a, b| a.as_ref().map(|a| &a.0).cmp(&b.as_ref().map(|b| &b.0)));
    put(b"{");
    for (key, value) in sorted.iter().flatten() {
        put(&[0xFE]);
        put(key);
        put(&[0xFE, b':']);
        flat(value, depth - 1, aside, put);
    }
    put(b"}");
}

struct Through<'a>(&'a mut dyn FnMut(&[u8]));

impl Sink for Through<'_> {
    fn put(&mut self, bytes: &[u8]) {
        (self.0)(bytes);
    }
}
