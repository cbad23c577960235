//! The canonical byte stream of a request's prompts: what a chat template would render, in the order it renders it, but
//! without the template. Tools and template arguments come before messages; of a message come role, content, then the
//! rest ([`super::message`]). The same conversation sent through Chat, Responses or Messages gives the same stream as far
//! as it is plain text.
//!
//! Strings are decoded, so spelling does not matter, nor does the order of members, except where a template shows it
//! (inside tools and arguments of calls). `null` and empty containers mean the same as an absent member.
use crate::api::json::{self, Sink as _};
use crate::api::{Anatomy, Api};

use super::message::{self, flat, plain};
use super::writer::Writer;

/// What the template gets besides messages, in a fixed order.
const HEAD: [&str; 4] = ["chat_template", "chat_template_kwargs", "tools", "documents"];
/// First and second text of scoring and reranking, under all their names.
const FIRST: [&str; 4] = ["query", "queries", "text_1", "data_1"];
const SECOND: [&str; 4] = ["documents", "text_2", "data_2", "items"];

/// Writes every prompt of a body.
pub(super) fn write(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    let present = |name: &&str| present(anatomy, name);
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

fn present<'a>(anatomy: &Anatomy<'a>, name: &str) -> Option<&'a [u8]> {
    anatomy.value(name).filter(|value| !message::is_empty(value))
}

fn is_string(value: &[u8]) -> bool {
    value.first() == Some(&b'"')
}

fn is_array(value: &[u8]) -> bool {
    value.first() == Some(&b'[')
}

fn head(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    let mut begun = false;
    let mut name = |name: &str, writer: &mut Writer| {
        if !std::mem::replace(&mut begun, true) {
            writer.section(false);
        }
        writer.mark(b'h');
        writer.put(name.as_bytes());
    };
    if let Some(effort) = effort(anatomy) {
        name("reasoning_effort", writer);
        plain(effort, writer);
    }
    for member in HEAD {
        let Some(value) = present(anatomy, member) else { continue };
        name(member, writer);
        match member {
            "chat_template_kwargs" => flat(value, 1, &[], &mut |bytes| writer.put(bytes)),
            // Only these clients mark tools for caching; the mark moves from turn to turn.
            "tools" if anatomy.api == Api::Messages => {
                flat(value, 1, &[b"cache_control"], &mut |bytes| writer.put(bytes));
            }
            _ => plain(value, writer),
        }
        writer.named(value);
    }
    if let Some(system) = present(anatomy, "system") {
        message::write(b"\"system\"", system, writer);
        writer.named(system);
    }
}

/// How much the model is to think, which many templates show: its own member, or a member of `reasoning` (Responses).
fn effort<'a>(anatomy: &Anatomy<'a>) -> Option<&'a [u8]> {
    let inner = || json::member(present(anatomy, "reasoning")?, "effort").filter(|value| !message::is_empty(value));
    present(anatomy, "reasoning_effort").or_else(inner)
}

/// One conversation, or a list of them (`/v1/chat/completions/batch`): each is a prompt.
fn conversations(anatomy: &Anatomy<'_>, messages: &[u8], writer: &mut Writer) {
    let is_batch = messages.iter().skip(1).find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    if !is_batch {
        head(anatomy, writer);
        json::for_each_object(messages, |item| named(item, writer));
        return writer.end_prompt();
    }
    for conversation in json::elements(messages) {
        if writer.is_full() {
            writer.skip(conversation.len());
            continue;
        }
        head(anatomy, writer);
        json::for_each_object(conversation, |item| message::read(item, writer));
        writer.end_prompt();
    }
}

/// Writes the message that `item` begins with, and names it.
fn named(item: &[u8], writer: &mut Writer) -> usize {
    let length = message::read(item, writer);
    writer.named(item.get(..length).unwrap_or(item));
    length
}

/// Responses API: instructions are the system message; input is the user's text or a list of items.
fn responses(anatomy: &Anatomy<'_>, writer: &mut Writer) {
    head(anatomy, writer);
    if let Some(instructions) = present(anatomy, "instructions") {
        message::write(b"\"system\"", instructions, writer);
        writer.named(instructions);
    }
    match anatomy.value("input") {
        Some(text) if is_string(text) => {
            message::write(b"\"user\"", text, writer);
            writer.named(text);
        }
        Some(items) => {
            for item in json::elements(items) {
                if json::member(item, "role").is_some() {
                    named(item, writer);
                } else {
                    message::item(item, writer);
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
