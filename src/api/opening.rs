//! How an answer begins: the first text or token of a stream's event or of a whole body, reasoning included, and what a pod
//! says of the likelihood of first tokens. Shapes of vLLM 0.32 for one answer per request.
use std::borrow::Cow;

use super::json;
use super::kind::Api;

/// What an event, or a body, says of the beginning of its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opening<'a> {
    /// Nothing yet.
    Nothing,
    /// Text, never empty.
    Text(Cow<'a, str>),
    /// A token id.
    Id(u64),
    /// The answer ends without text.
    End,
    /// Something that has been parsed, such as a call of a tool: its text is not known.
    Other,
}

/// A first token and how likely it was.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// Its text.
    pub text: String,
    /// Natural logarithm of its probability.
    pub logprob: f64,
}

/// What one event of a stream says, given its name (empty if it has none) and its data.
pub fn opening_of_event<'a>(api: Api, name: &[u8], data: &'a [u8]) -> Opening<'a> {
    match api {
        Api::Chat => choice(data).map_or(Opening::Nothing, |choice| {
            let delta = json::member(choice, "delta").map_or(Opening::Nothing, message);
            ended(delta, choice)
        }),
        Api::Completions | Api::GenerateTokens => choice(data).map_or(Opening::Nothing, completion),
        Api::Responses => responses_event(name, data),
        Api::Messages => messages_event(name, data),
        _ => Opening::Other,
    }
}

/// What a whole answer says.
pub fn opening_of_body(api: Api, body: &[u8]) -> Opening<'_> {
    let first = |name: &str| json::member(body, name).and_then(|list| json::elements(list).next());
    match api {
        Api::Chat => choice(body).map_or(Opening::Other, |choice| {
            ended(json::member(choice, "message").map_or(Opening::Other, message), choice)
        }),
        Api::Completions | Api::GenerateTokens => choice(body).map_or(Opening::Other, completion),
        Api::Responses => first("output").map_or(Opening::Other, |item| {
            let part = json::member(item, "content").and_then(|content| json::elements(content).next());
            part.and_then(|part| json::member(part, "text")).map_or(Opening::Other, text)
        }),
        Api::Messages => first("content").map_or(Opening::End, |block| {
            let value = json::member(block, "text").or_else(|| json::member(block, "thinking"));
            value.map_or(Opening::Other, text)
        }),
        _ => Opening::Other,
    }
}

/// The most likely first tokens, if the answer lists them.
pub fn alternatives(api: Api, body: &[u8]) -> Vec<Alternative> {
    let listed = choice(body).and_then(|choice| json::member(choice, "logprobs"));
    let Some(listed) = listed else { return Vec::new() };
    match api {
        Api::Chat => {
            let token = json::member(listed, "content").and_then(|content| json::elements(content).next());
            let top = token.and_then(|token| json::member(token, "top_logprobs"));
            let each = top.map(json::elements).into_iter().flatten();
            each.filter_map(|entry| {
                alternative(json::text(json::member(entry, "token")?)?, json::member(entry, "logprob")?)
            })
            .collect()
        }
        Api::Completions => {
            let top = json::member(listed, "top_logprobs").and_then(|list| json::elements(list).next());
            let each = top.map(json::members).into_iter().flatten();
            each.filter_map(|entry| {
                let mut key = vec![b'"'];
                key.extend_from_slice(entry.key);
                key.push(b'"');
                alternative(Cow::Owned(json::text(&key)?.into_owned()), entry.value)
            })
            .collect()
        }
        _ => Vec::new(),
    }
}

fn alternative(text: Cow<'_, str>, logprob: &[u8]) -> Option<Alternative> {
    let logprob = std::str::from_utf8(logprob).ok()?.parse().ok()?;
    Some(Alternative { text: text.into_owned(), logprob })
}

fn choice(data: &[u8]) -> Option<&[u8]> {
    json::elements(json::member(data, "choices")?).next()
}

fn text(value: &[u8]) -> Opening<'_> {
    match json::text(value) {
        Some(text) if !text.is_empty() => Opening::Text(text),
        _ => Opening::Nothing,
    }
}

/// A `delta`, or a `message`.
fn message(message: &[u8]) -> Opening<'_> {
    // Reasoning comes first, wherever it stands.
    let (mut found, mut reasoning) = (Opening::Nothing, Opening::Nothing);
    for member in json::members(message) {
        match member.key {
            b"content" => found = text(member.value),
            b"reasoning" | b"reasoning_content" if reasoning == Opening::Nothing => reasoning = text(member.value),
            b"tool_calls" | b"function_call" | b"refusal"
                if !matches!(member.value, b"null" | b"[]" | b"{}" | b"\"\"") =>
            {
                return Opening::Other;
            }
            _ => {}
        }
    }
    if reasoning == Opening::Nothing { found } else { reasoning }
}

/// `opening`, or the end, if the choice has ended without any text. An answer cut off at its length has tokens that show no
/// text: nothing is known of those.
fn ended<'a>(opening: Opening<'a>, choice: &[u8]) -> Opening<'a> {
    if opening != Opening::Nothing {
        return opening;
    }
    match json::member(choice, "finish_reason") {
        Some(b"\"stop\"") => Opening::End,
        Some(b"null") | None => Opening::Nothing,
        Some(_) => Opening::Other,
    }
}

fn completion(choice: &[u8]) -> Opening<'_> {
    if let Some(shown) = json::member(choice, "text") {
        return ended(text(shown), choice);
    }
    let id = json::member(choice, "token_ids").and_then(|ids| json::elements(ids).next());
    let id = id.and_then(|id| std::str::from_utf8(id).ok()?.parse().ok());
    ended(id.map_or(Opening::Nothing, Opening::Id), choice)
}

fn responses_event<'a>(name: &[u8], data: &'a [u8]) -> Opening<'a> {
    match name {
        b"response.output_text.delta" | b"response.reasoning_text.delta" | b"response.reasoning.delta" => {
            json::member(data, "delta").map_or(Opening::Nothing, text)
        }
        b"response.created"
        | b"response.in_progress"
        | b"response.output_item.added"
        | b"response.content_part.added" => Opening::Nothing,
        _ if name.starts_with(b"response.reasoning_part") => Opening::Nothing,
        _ => Opening::Other,
    }
}

fn messages_event<'a>(name: &[u8], data: &'a [u8]) -> Opening<'a> {
    match name {
        b"content_block_delta" => {
            let delta = json::member(data, "delta").unwrap_or_default();
            let shown = json::member(delta, "text").or_else(|| json::member(delta, "thinking"));
            shown.map_or(Opening::Other, text)
        }
        b"message_delta" => Opening::End,
        _ => Opening::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> Opening<'_> {
        Opening::Text(text.into())
    }

    #[test]
    fn events_tell_how_an_answer_begins() {
        let of = |api, name: &str, data: &'static str| opening_of_event(api, name.as_bytes(), data.as_bytes());
        let role = r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
        assert_eq!(of(Api::Chat, "", role), Opening::Nothing);
        for (data, expected) in [
            (r#"{"choices":[{"delta":{"content":"O\n"},"finish_reason":null}]}"#, shown("O\n")),
            (r#"{"choices":[{"delta":{"reasoning":"Hm"},"finish_reason":null}]}"#, shown("Hm")),
            (r#"{"choices":[{"delta":{"content":"A","reasoning":"Hm"},"finish_reason":null}]}"#, shown("Hm")),
            (r#"{"choices":[{"delta":{"tool_calls":[{"index":0}]},"finish_reason":null}]}"#, Opening::Other),
            (r#"{"choices":[{"delta":{"content":""},"finish_reason":"stop"}]}"#, Opening::End),
            (r#"{"choices":[{"delta":{"content":""},"finish_reason":"length"}]}"#, Opening::Other),
            (r#"{"choices":[],"usage":{}}"#, Opening::Nothing),
        ] {
            assert_eq!(of(Api::Chat, "", data), expected, "{data}");
        }
        let text = r#"{"choices":[{"index":0,"text":" NaN","finish_reason":null}]}"#;
        assert_eq!(of(Api::Completions, "", text), shown(" NaN"));
        assert_eq!(of(Api::GenerateTokens, "", r#"{"choices":[{"token_ids":[17,4]}]}"#), Opening::Id(17));
        assert_eq!(of(Api::Responses, "response.output_text.delta", r#"{"delta":"a"}"#), shown("a"));
        assert_eq!(of(Api::Responses, "response.created", r#"{"delta":"a"}"#), Opening::Nothing);
        let block = r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"b"}}"#;
        assert_eq!(of(Api::Messages, "content_block_delta", block), shown("b"));
        let json = r#"{"delta":{"type":"input_json_delta","partial_json":"{"}}"#;
        assert_eq!(of(Api::Messages, "content_block_delta", json), Opening::Other);
    }

    #[test]
    fn bodies_tell_how_an_answer_begins_and_what_else_was_likely() {
        let chat = br#"{"choices":[{"message":{"content":"move","reasoning":null,"function_call":null},"logprobs":{"content":[
            {"token":"move","logprob":-0.25,"bytes":[1],"top_logprobs":[{"token":"move","logprob":-0.25},{"token":" a\"","logprob":-3e0}]}]},
            "finish_reason":"length"}]}"#;
        assert_eq!(opening_of_body(Api::Chat, chat), shown("move"));
        let told: Vec<_> = alternatives(Api::Chat, chat).into_iter().map(|one| (one.text, one.logprob)).collect();
        assert_eq!(told, [("move".to_owned(), -0.25), (" a\"".to_owned(), -3.0)]);
        let completion = br#"{"choices":[{"text":" x","logprobs":{"top_logprobs":[{" x":-0.5,"\n":-2.0}]},"finish_reason":"length"}]}"#;
        assert_eq!(opening_of_body(Api::Completions, completion), shown(" x"));
        let told: Vec<_> = alternatives(Api::Completions, completion).into_iter().map(|one| one.text).collect();
        assert_eq!(told, [" x", "\n"]);
        let response = br#"{"output":[{"type":"message","content":[{"type":"output_text","text":"r"}]}]}"#;
        assert_eq!(opening_of_body(Api::Responses, response), shown("r"));
        assert_eq!(opening_of_body(Api::Messages, br#"{"content":[{"type":"text","text":"m"}]}"#), shown("m"));
        let ids = br#"{"choices":[{"index":0,"finish_reason":"length","token_ids":[9]}]}"#;
        assert_eq!(opening_of_body(Api::GenerateTokens, ids), Opening::Id(9));
        let stopped = br#"{"choices":[{"text":"","finish_reason":"stop"}]}"#;
        assert_eq!(opening_of_body(Api::Completions, stopped), Opening::End);
    }
}
