//! Chat requests of an exact size, ready to send: one template per shared prefix.
//!
//! A template is the HTTP head and JSON body up to a place for 16 hex digits, and what follows. The digits make every request unique at its
//! end while the whole conversation before them is shared by all requests of that prefix. Text is words with escapes and two-byte letters, in
//! messages of about 1 kB, so that a gate has to do the work real prompts give it.

use crate::schedule::Dice;

/// Bytes of the part that differs between two requests of one prefix.
pub(crate) const NONCE: usize = 16;
const MESSAGE_BYTES: usize = 1000;
const WORDS: [&str; 24] = [
    "the",
    "token",
    "cache",
    "of",
    "a",
    "long",
    "answer",
    "is",
    "kept",
    "while",
    "every",
    "pod",
    "reads",
    "its",
    "prompt",
    "again",
    "caf\u{e9}",
    "line\\n",
    "\\\"quoted\\\"",
    "and",
    "then",
    "42",
    "Gro\u{df}e",
    "budget",
];

/// What requests of one kind look like.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shape {
    /// Size of the JSON body in bytes; smaller than the least possible body means the least possible.
    pub(crate) bytes: usize,
    /// Number of distinct shared prefixes.
    pub(crate) prefixes: usize,
    /// Name of the model asked for.
    pub(crate) model: String,
    /// Tokens asked for; `loadtest backend` sends as many events.
    pub(crate) max_tokens: u64,
    /// Whether the answer is streamed.
    pub(crate) stream: bool,
    /// Time between events asked of `loadtest backend` (an extra member any API passes on); `None` leaves the member out.
    pub(crate) interval_us: Option<u64>,
    /// Value of the member `user`; `None` leaves it out.
    pub(crate) user: Option<String>,
    /// Further header fields, each with its line end.
    pub(crate) fields: String,
    /// Whether a stream is asked to tell its token counts.
    pub(crate) is_usage_asked: bool,
}

/// A request that is complete but for its 16 hex digits.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    /// HTTP head and body up to the digits.
    pub(crate) front: Vec<u8>,
    /// Body after the digits.
    pub(crate) tail: Vec<u8>,
    /// Whether the answer is streamed.
    pub(crate) stream: bool,
    /// Events a good streamed answer of `loadtest backend` has.
    pub(crate) events: u64,
}

impl Template {
    /// Bytes on the wire.
    pub(crate) fn wire_bytes(&self) -> u64 {
        (self.front.len() + NONCE + self.tail.len()) as u64
    }
}

/// Sixteen hex digits for a request.
pub(crate) fn nonce(number: u64) -> [u8; NONCE] {
    let mut digits = [b'0'; NONCE];
    for (digit, shift) in digits.iter_mut().zip((0..16u32).rev()) {
        *digit = char::from_digit((number >> (4 * shift)) as u32 & 15, 16).map_or(b'0', |letter| letter as u8);
    }
    digits
}

/// One template per prefix, for `path`.
pub(crate) fn templates(shape: &Shape, path: &str) -> Vec<Template> {
    (0..shape.prefixes.max(1)).map(|prefix| template(shape, path, prefix as u64)).collect()
}

fn template(shape: &Shape, path: &str, prefix: u64) -> Template {
    let mut end = format!(" answer now\"}}],\"max_tokens\":{},\"stream\":{}", shape.max_tokens, shape.stream);
    if let Some(interval) = shape.interval_us {
        end.extend([format!(",\"interval_us\":{interval}")]);
    }
    if let Some(user) = &shape.user {
        end.extend([format!(",\"user\":\"{user}\"")]);
    }
    if shape.is_usage_asked {
        end.push_str(",\"stream_options\":{\"include_usage\":true}");
    }
    end.push('}');
    let start = format!("{{\"model\":\"{}\",\"messages\":[", shape.model);
    let last = "{\"role\":\"user\",\"content\":\"";
    let room = shape.bytes.saturating_sub(start.len() + last.len() + NONCE + end.len());
    let body_front = start + &conversation(room, prefix) + last;
    let length = body_front.len() + NONCE + end.len();
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: gate.local\r\nUser-Agent: loadtest\r\nAccept: */*\r\nContent-Type: application/json\r\n{}Content-Length: {length}\r\n\r\n",
        shape.fields
    );
    Template {
        front: (head + &body_front).into_bytes(),
        tail: end.into_bytes(),
        stream: shape.stream,
        events: shape.max_tokens,
    }
}

/// Messages of exactly `room` bytes with their commas, or none if they do not fit.
fn conversation(room: usize, prefix: u64) -> String {
    let mut dice = Dice::new(prefix.wrapping_mul(0x1234_5678_9abc_def1) ^ 0x5eed);
    let mut text = String::with_capacity(room);
    let roles = std::iter::once("system").chain(["user", "assistant"].into_iter().cycle());
    for role in roles {
        let left = room - text.len();
        let frame = format!("{{\"role\":\"{role}\",\"content\":\"\"}},").len();
        if left < frame + 1 {
            break;
        }
        let content = if left > 2 * MESSAGE_BYTES { MESSAGE_BYTES - frame } else { left - frame };
        text.extend([format!("{{\"role\":\"{role}\",\"content\":\"{}\"}},", words(content, &mut dice))]);
    }
    text
}

/// Exactly `bytes` bytes of JSON string content.
fn words(bytes: usize, dice: &mut Dice) -> String {
    let mut text = String::with_capacity(bytes);
    loop {
        let word = WORDS.get(dice.below(WORDS.len())).copied().unwrap_or("word");
        if text.len() + word.len() + 1 > bytes {
            break;
        }
        text += word;
        text.push(' ');
    }
    while text.len() < bytes {
        text.push((b'a' + dice.below(26) as u8) as char);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use serde_json::Value;

    fn body(template: &Template, number: u64) -> Vec<u8> {
        let all = [template.front.as_slice(), &nonce(number), &template.tail].concat();
        let head = crate::wire::head(&all).unwrap().unwrap();
        assert_eq!(
            head.framing,
            crate::wire::Framing::Length((all.len() - head.len) as u64),
            "the head tells the truth"
        );
        assert_eq!(all.len() as u64, template.wire_bytes());
        all[head.len..].to_vec()
    }

    #[test]
    fn sizes_are_exact_and_the_json_is_a_chat() {
        for (bytes, messages) in [(230, 2), (10_000, 10), (100_000, 95), (400_000, 380)] {
            let shape = Shape {
                bytes,
                prefixes: 3,
                model: "m".into(),
                max_tokens: 16,
                stream: true,
                interval_us: Some(5000),
                user: None,
                fields: "x-tidegate-class: batch\r\n".into(),
                is_usage_asked: true,
            };
            let made = templates(&shape, "/v1/chat/completions");
            let text = body(&made[1], 7);
            assert_eq!(text.len(), bytes);
            let json: Value = serde_json::from_slice(&text).unwrap();
            let list = json["messages"].as_array().unwrap();
            assert!(list.len() >= messages, "{bytes} bytes hold {} messages", list.len());
            assert_eq!(json["stream"], true);
            assert_eq!(json["interval_us"], 5000);
            assert_eq!(json["stream_options"]["include_usage"], true);
            assert_ne!(made[0].front, made[1].front, "prefixes differ");
            assert_ne!(text, body(&made[1], 8), "requests of one prefix differ");
        }
    }

    #[test]
    fn nonce_is_hex_of_the_number() {
        assert_eq!(&nonce(0xdead_beef), b"00000000deadbeef");
        assert_eq!(&nonce(u64::MAX), b"ffffffffffffffff");
    }
}
