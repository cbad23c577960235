//! The text of an answer, as it will come back in the client's next request: taken from the events of a stream one by one,
//! or from a whole body. Shapes of vLLM 0.32 for one answer per request (`n` = 1).
//!
//! Only the first text counts. What follows it (calls of tools, a second part) is shown to the model in a form that only
//! its template knows. An answer that begins with reasoning has no text to foresee, because most templates leave reasoning
//! out of later turns.
use memchr::memmem::{self, Finder};

use super::json;
use super::kind::Api;

/// What one event adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delta<'a> {
    /// More text, between its quotes with escapes as written; often none.
    pub text: Option<&'a [u8]>,
    /// What to expect behind it.
    pub then: Then,
}

/// What to expect of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// More text.
    More,
    /// No more that counts.
    End,
    /// All text so far is void: the answer will not come back as it was generated.
    Void,
}

const NOTHING: Delta<'_> = Delta { text: None, then: Then::More };
const END: Delta<'_> = Delta { text: None, then: Then::End };
const VOID: Delta<'_> = Delta { text: None, then: Then::Void };

/// Finds the text in the events of one answer.
#[derive(Clone, Debug)]
pub struct AnswerScan {
    api: Api,
    /// What stands before the part of an event that is looked at. Quotes inside strings are escaped, so text cannot hold it.
    mark: Finder<'static>,
}

impl AnswerScan {
    /// For answers of this API; `None` if they hold no text that comes back.
    pub fn new(api: Api) -> Option<Self> {
        let mark: &[u8] = match api {
            Api::Chat => b"\"delta\":",
            Api::Completions => b"\"text\":",
            Api::Responses | Api::Messages => b"",
            _ => return None,
        };
        Some(Self { api, mark: Finder::new(mark) })
    }

    /// Reads one event, given its name (empty if it has none) and its data.
    pub fn event<'a>(&self, name: &[u8], data: &'a [u8]) -> Delta<'a> {
        match self.api {
            Api::Chat => self.behind_mark(data).map_or(NOTHING, chat_delta),
            Api::Completions => self.behind_mark(data).map_or(NOTHING, |value| more(string(value))),
            Api::Responses => responses_event(name, data),
            Api::Messages => messages_event(name, data),
            _ => END,
        }
    }

    fn behind_mark<'a>(&self, data: &'a [u8]) -> Option<&'a [u8]> {
        let at = self.mark.find(data)?;
        Some(data.get(at + self.mark.needle().len()..)?.trim_ascii_start())
    }

    /// Reads a whole answer.
    pub fn body<'a>(&self, body: &'a [u8]) -> Delta<'a> {
        let first = |list: Option<&'a [u8]>| list.and_then(|list| json::elements(list).next());
        let member = |name| json::member(body, name);
        match self.api {
            Api::Chat => {
                first(member("choices")).and_then(|choice| json::member(choice, "message")).map_or(END, chat_delta)
            }
            Api::Completions => {
                more(first(member("choices")).and_then(|choice| json::member(choice, "text")).and_then(string))
            }
            Api::Responses => first(member("output")).map_or(END, output_item),
            Api::Messages => first(member("content")).map_or(END, content_block),
            _ => END,
        }
    }
}

const fn more(text: Option<&[u8]>) -> Delta<'_> {
    Delta { text, then: Then::More }
}

/// The string that `value` begins with, between its quotes; nothing if it is empty or none.
fn string(value: &[u8]) -> Option<&[u8]> {
    // The walk over an array's elements ends a string where it ends, whatever follows.
    let rest = value.strip_prefix(b"\"")?;
    let mut end = 0;
    loop {
        end += memchr::memchr2(b'"', b'\\', rest.get(end..)?)?;
        if rest.get(end) == Some(&b'"') {
            break;
        }
        end += 2;
    }
    rest.get(..end).filter(|text| !text.is_empty())
}

fn is_nothing(value: &[u8]) -> bool {
    matches!(value, b"null" | b"[]" | b"{}" | b"\"\"")
}

/// A `delta` of a chat stream, or the `message` of a whole answer.
fn chat_delta(delta: &[u8]) -> Delta<'_> {
    let mut found = NOTHING;
    for member in json::members(delta) {
        match member.key {
            b"content" => found.text = string(member.value),
            b"reasoning" | b"reasoning_content" if !is_nothing(member.value) => return VOID,
            b"tool_calls" | b"function_call" | b"refusal" if !is_nothing(member.value) => found.then = Then::End,
            _ => {}
        }
    }
    found
}

fn first_member<'a>(object: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    json::members(object).find(|member| member.key == name).map(|member| member.value)
}

fn responses_event<'a>(name: &[u8], data: &'a [u8]) -> Delta<'a> {
    match name {
        b"response.output_text.delta" => more(first_member(data, b"delta").and_then(string)),
        b"response.output_text.done" => END,
        b"response.output_item.added" => {
            match first_member(data, b"item").and_then(|item| json::member(item, "type")) {
                Some(b"\"message\"") => NOTHING,
                Some(b"\"reasoning\"") => VOID,
                _ => END,
            }
        }
        _ if memmem::find(name, b"reasoning").is_some() => VOID,
        _ => NOTHING,
    }
}

fn output_item(item: &[u8]) -> Delta<'_> {
    match json::member(item, "type") {
        Some(b"\"message\"") => {
            let part = json::member(item, "content").and_then(|content| json::elements(content).next());
            let text = part.and_then(|part| json::member(part, "text")).and_then(string);
            Delta { text, then: Then::End }
        }
        Some(b"\"reasoning\"") => VOID,
        _ => END,
    }
}

fn messages_event<'a>(name: &[u8], data: &'a [u8]) -> Delta<'a> {
    match name {
        b"content_block_delta" => {
            let delta = first_member(data, b"delta").unwrap_or_default();
            match first_member(delta, b"type") {
                Some(b"\"text_delta\"") => more(first_member(delta, b"text").and_then(string)),
                Some(b"\"thinking_delta\"" | b"\"signature_delta\"") => VOID,
                _ => END,
            }
        }
        b"content_block_start" => {
            let block = first_member(data, b"content_block").unwrap_or_default();
            Delta { then: if content_block(block).then == Then::Void { Then::Void } else { Then::More }, text: None }
        }
        b"content_block_stop" => END,
        _ => NOTHING,
    }
}

fn content_block(block: &[u8]) -> Delta<'_> {
    match json::member(block, "type") {
        Some(b"\"text\"") => Delta { text: json::member(block, "text").and_then(string), then: Then::End },
        Some(b"\"thinking\"" | b"\"redacted_thinking\"") => VOID,
        _ => END,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::api::SseScan;

    /// The text of a stream; nothing if it was void.
    fn streamed(api: Api, stream: &str) -> Option<String> {
        let answer = AnswerScan::new(api).unwrap();
        let (mut text, mut then) = (String::new(), Then::More);
        SseScan::new(api).feed_to(stream.as_bytes(), &mut |event| {
            if then == Then::More {
                let delta = answer.event(event.name, event.data.unwrap());
                text += std::str::from_utf8(delta.text.unwrap_or_default()).unwrap();
                then = delta.then;
            }
        });
        (then != Then::Void).then_some(text)
    }

    #[track_caller]
    fn check_body(api: Api, body: &str, text: Option<&str>, then: Then) {
        let delta = AnswerScan::new(api).unwrap().body(body.as_bytes());
        assert_eq!((delta.text, delta.then), (text.map(str::as_bytes), then), "{body}");
    }

    #[test]
    fn text_of_real_streams() {
        let chat = include_str!("../../tests/fixtures/vllm/chat-stream-usage.sse");
        assert_eq!(streamed(Api::Chat, chat).unwrap(), "apARENTStreamWriter might");
        let responses = include_str!("../../tests/fixtures/vllm/responses-stream.sse");
        assert_eq!(streamed(Api::Responses, responses).unwrap(), "apARENTStreamWriter");
        let messages = include_str!("../../tests/fixtures/vllm/messages-stream.sse");
        assert_eq!(streamed(Api::Messages, messages).unwrap(), "quired'[ flags");
        let ids = "data: {\"choices\":[{\"index\":0,\"text\":\" a\\\"text\\\":\"}]}\n\ndata: {\"choices\":[]}\n\n";
        assert_eq!(streamed(Api::Completions, ids).unwrap(), " a\\\"text\\\":");
        assert!(AnswerScan::new(Api::Embeddings).is_none());
    }

    #[test]
    fn reasoning_voids_an_answer_and_calls_end_its_text() {
        let chat = |deltas: &[&str]| {
            let events = deltas.iter().map(|delta| format!("data: {{\"choices\":[{{\"delta\":{delta}}}]}}\n\n"));
            streamed(Api::Chat, &events.collect::<String>())
        };
        let text = r#"{"role":"assistant","content":"a","reasoning_content":null,"tool_calls":[]}"#;
        assert_eq!(chat(&[text, r#"{"tool_calls":[{"id":"1"}]}"#, text]).unwrap(), "a");
        assert_eq!(chat(&[text, r#"{"reasoning":"x"}"#]), None);
        let event = |name: &str, data: &str| format!("event: {name}\ndata: {data}\n\n");
        let block =
            |kind: &str| event("content_block_start", &format!("{{\"content_block\":{{\"type\":\"{kind}\"}}}}"));
        let text = event("content_block_delta", r#"{"delta":{"type":"text_delta","text":"b"}}"#);
        let stop = event("content_block_stop", "{}");
        assert_eq!(
            streamed(Api::Messages, &[&block("text"), &text, &stop, &text].map(|s| &**s).concat()).unwrap(),
            "b"
        );
        assert_eq!(streamed(Api::Messages, &(block("thinking") + &text)), None);
        let item = |kind: &str| event("response.output_item.added", &format!("{{\"item\":{{\"type\":\"{kind}\"}}}}"));
        let text = event("response.output_text.delta", r#"{"delta":"c"}"#);
        assert_eq!(streamed(Api::Responses, &(item("message") + &text + &item("function_call") + &text)).unwrap(), "c");
        assert_eq!(streamed(Api::Responses, &(item("reasoning") + &text)), None);
    }

    #[test]
    fn text_of_whole_answers() {
        let chat = r#"{"choices":[{"message":{"content":"a\"b","reasoning":null,"tool_calls":[]}}]}"#;
        check_body(Api::Chat, chat, Some("a\\\"b"), Then::More);
        check_body(Api::Chat, &chat.replace("null", "\"r\""), None, Then::Void);
        check_body(Api::Chat, "{\"error\":1}", None, Then::End);
        check_body(Api::Completions, r#"{"choices":[{"text":"t"}]}"#, Some("t"), Then::More);
        let responses = r#"{"output":[{"type":"message","content":[{"text":"r"}]}]}"#;
        check_body(Api::Responses, responses, Some("r"), Then::End);
        check_body(Api::Responses, &responses.replace("message", "reasoning"), None, Then::Void);
        check_body(Api::Messages, r#"{"content":[{"type":"text","text":"m"}]}"#, Some("m"), Then::End);
        check_body(Api::Messages, r#"{"content":[{"type":"thinking"}]}"#, None, Then::Void);
    }
}
