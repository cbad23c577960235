//! The canonical byte stream of a request's prompts: what a chat template would render, in the order it renders it, but
//! without the template. Tools and template arguments come before messages; of a message come role, content, then the
//! rest. The same conversation sent through Chat, Responses or Messages gives the same stream as far as it is plain text.
//!
//! Strings are decoded, so spelling does not matter. A text part counts as its text, several are joined by a newline.
//! Media and other parts enter by a digest. `cache_control` (Anthropic clients move it from turn to turn) and the ids and
//! states of Responses items do not enter.
use xxhash_rust::xxh3::Xxh3;

use crate::api::json::{self, MemberView, Sink as _};
use crate::api::{Anatomy, Api};

use super::fingerprint::Writer;

/// What the template gets besides messages, in a fixed order.
const HEAD: [&str; 5] = ["chat_template", "chat_template_kwargs", "reasoning_effort", "tools", "documents"];
/// What a message may hold besides role and content, in a fixed order.
const REST: [&str; 5] = ["name", "tool_call_id", "tool_calls", "reasoning", "reasoning_content"];
/// First and second text of scoring and reranking, under all their names.
const FIRST: [&str; 4] = ["query", "queries", "text_1", "data_1"];
const SECOND: [&str; 4] = ["documents", "text_2", "data_2", "items"];

/// Writes every prompt of a body.
pub(super) fn write(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    let present = |name: &&str| anatomy.value(name).filter(|value| !is_empty(value));
    match anatomy.api {
        Api::Responses => responses(anatomy, writer),
        Api::Score | Api::Rerank | Api::GenerativeScoring => pairs(anatomy, writer),
        _ => {
            if let Some(messages) = present(&"messages") {
                conversations(anatomy, messages, writer);
            } else if let Some(value) = ["prompt", "token_ids"].iter().find_map(present) {
                prompts(value, writer);
            } else if FIRST.iter().find_map(present).is_some() {
                pairs(anatomy, writer);
            } else if let Some(value) = ["input", "inputs", "texts"].iter().find_map(present) {
                prompts(value, writer);
            }
        }
    }
}

/// Null and empty containers mean the same as an absent member.
fn is_empty(value: &[u8]) -> bool {
    matches!(value, b"null" | b"[]" | b"{}" | b"\"\"")
}

fn is_string(value: &[u8]) -> bool {
    value.first() == Some(&b'"')
}

fn is_array(value: &[u8]) -> bool {
    value.first() == Some(&b'[')
}

/// A string as its text, anything else in its flat form.
fn plain(value: &[u8], writer: &mut Writer) {
    match json::raw_string(value) {
        Some(raw) => json::decode_into(raw, writer),
        None => json::flatten_into(value, writer),
    }
}

fn head(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    for name in HEAD {
        if let Some(value) = anatomy.value(name).filter(|value| !is_empty(value)) {
            writer.mark(b'h');
            writer.put(name.as_bytes());
            plain(value, writer);
        }
    }
    if let Some(system) = anatomy.value("system").filter(|value| !is_empty(value)) {
        message(b"\"system\"", system, writer);
    }
}

/// One conversation, or a list of them (`/v1/chat/completions/batch`): each is a prompt.
fn conversations(anatomy: &Anatomy<'_>, messages: &[u8], writer: &mut Writer) {
    let is_batch = messages.iter().skip(1).find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if !is_batch {
        head(anatomy, writer);
        json::for_each_object(messages, |item| message_of(item, writer));
        return writer.end_prompt();
    }
    for conversation in json::elements(messages) {
        if writer.is_full() {
            writer.skip(conversation.len());
            continue;
        }
        head(anatomy, writer);
        json::for_each_object(conversation, |item| message_of(item, writer));
        writer.end_prompt();
    }
}

/// Writes the message that `item` begins with and returns its length in the body. A content that is a string and comes
/// after the role, as every client sends it, is written while it is read.
fn message_of(item: &[u8], writer: &mut Writer) -> usize {
    let (mut role, mut content): (Option<&[u8]>, &[u8]) = (None, b"null");
    let mut rest = [None; REST.len()];
    let mut is_written = false;
    let mut members = json::members(item);
    while let Some(member) = members.next_or(|key, value| {
        let text = value.strip_prefix(b"\"").filter(|_| key == b"content" && !is_written)?;
        begin_message(role?, writer);
        is_written = true;
        Some(1 + writer.decode_to_quote(text))
    }) {
        match member.key {
            b"role" => role = Some(member.value),
            b"content" => content = member.value,
            key => {
                let known = REST.iter().position(|name| name.as_bytes() == key);
                if let Some(slot) = known.and_then(|index| rest.get_mut(index)) {
                    *slot = Some(member.value);
                }
            }
        }
    }
    if !is_written {
        message(role.unwrap_or(b"\"\""), content, writer);
    }
    for (name, value) in REST.iter().zip(rest) {
        if let Some(value) = value.filter(|value| !is_empty(value)) {
            writer.mark(b'r');
            writer.put(name.as_bytes());
            plain(value, writer);
        }
    }
    members.finish()
}

fn begin_message(role: &[u8], writer: &mut Writer) {
    writer.mark(b'm');
    plain(role, writer);
    writer.mark(b'c');
}

fn message(role: &[u8], content: &[u8], writer: &mut Writer) {
    begin_message(role, writer);
    if is_string(content) {
        return plain(content, writer);
    }
    let mut after_text = false;
    for part in json::elements(content) {
        after_text = write_part(part, after_text, writer);
    }
}

/// Writes one part of a message; true if it was text.
fn write_part(part: &[u8], after_text: bool, writer: &mut Writer) -> bool {
    let (mut kind, mut text) = (&b"\"text\""[..], None);
    for member in json::members(part) {
        match member.key {
            b"type" => kind = member.value,
            b"text" => text = Some(member.value),
            _ => {}
        }
    }
    let bare = is_string(part).then_some(part);
    let is_text = matches!(kind, b"\"text\"" | b"\"input_text\"" | b"\"output_text\"");
    if let Some(text) = bare.or(text.filter(|_| is_text)) {
        if after_text {
            writer.put(b"\n");
        }
        plain(text, writer);
        return true;
    }
    if kind.starts_with(b"\"tool_") {
        writer.mark(b't');
        item_members(part, |bytes| writer.put(bytes));
    } else {
        let mut digest = Xxh3::new();
        item_members(part, |bytes| digest.update(bytes));
        writer.mark(b'p');
        writer.put(&digest.digest().to_le_bytes());
    }
    false
}

/// An item in its flat form, without the members that change from turn to turn though the prompt does not.
fn item_members(item: &[u8], mut put: impl FnMut(&[u8])) {
    let is_kept = |member: &MemberView<'_>| !matches!(member.key, b"cache_control" | b"status");
    let mut sink = Through(&mut put);
    for member in json::members(item).filter(is_kept) {
        sink.put(member.key);
        json::flatten_into(member.value, &mut sink);
    }
}

struct Through<'a>(&'a mut dyn FnMut(&[u8]));

impl json::Sink for Through<'_> {
    fn put(&mut self, bytes: &[u8]) {
        (self.0)(bytes);
    }
}

/// Responses API: instructions are the system message; input is the user's text or a list of items.
fn responses(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    head(anatomy, writer);
    if let Some(instructions) = anatomy.value("instructions").filter(|value| !is_empty(value)) {
        message(b"\"system\"", instructions, writer);
    }
    match anatomy.value("input") {
        Some(text) if is_string(text) => message(b"\"user\"", text, writer),
        Some(items) => {
            for item in json::elements(items) {
                if json::member(item, "role").is_some() {
                    message_of(item, writer);
                } else {
                    writer.mark(b'i');
                    item_members(item, |bytes| writer.put(bytes));
                }
            }
        }
        None => {}
    }
    writer.end_prompt();
}

/// Completions and embeddings: a text, token ids, or a list of either; each is a prompt.
fn prompts(value: &[u8], writer: &mut Writer) {
    let first = json::elements(value).next().and_then(|element| element.first());
    if !is_array(value) || first.is_some_and(|byte| byte.is_ascii_digit() || *byte == b'-') {
        return prompt(value, writer);
    }
    for element in json::elements(value) {
        if writer.is_full() {
            writer.skip(element.len());
        } else {
            prompt(element, writer);
        }
    }
}

fn prompt(value: &[u8], writer: &mut Writer) {
    if is_array(value) {
        ids(value, writer);
    } else {
        plain(value, writer);
    }
    writer.end_prompt();
}

/// Token ids as four bytes each. Anything between digits separates.
fn ids(value: &[u8], writer: &mut Writer) {
    let mut id = None;
    for byte in value {
        if byte.is_ascii_digit() {
            id = Some(id.unwrap_or(0_u32).wrapping_mul(10).wrapping_add(u32::from(byte - b'0')));
        } else if let Some(id) = id.take() {
            writer.id(id);
        }
    }
}

/// Scoring and reranking: one prompt per pair of texts.
fn pairs(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    let side = |names: &[&str]| names.iter().find_map(|name| anatomy.value(name)).unwrap_or_default();
    let (left, right) = (side(&FIRST), side(&SECOND));
    let list = |value| if is_array(value) { json::elements(value) } else { json::elements(b"") };
    let lefts: Vec<_> = if is_array(left) { list(left).collect() } else { vec![left] };
    let rights: Vec<_> = if is_array(right) { list(right).collect() } else { vec![right] };
    for index in 0..lefts.len().max(rights.len()) {
        let first = if lefts.len() == 1 { lefts.first() } else { lefts.get(index) };
        let second = if rights.len() == 1 { rights.first() } else { rights.get(index) };
        let (first, second) = (first.copied().unwrap_or_default(), second.copied().unwrap_or_default());
        if writer.is_full() {
            writer.skip(first.len() + second.len());
            continue;
        }
        if first.is_empty() && second.is_empty() {
            continue;
        }
        plain(first, writer);
        writer.mark(b'd');
        plain(second, writer);
        writer.end_prompt();
    }
}
