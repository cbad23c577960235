//! Reads a request body into what the simulated pod needs of it, and refuses what vLLM refuses.
//!
//! Prompts are rendered as a chat template would: per message `<|im_start|>`, role and newline, content, `<|im_end|>`,
//! newline, and at the end the opening of the answer. Each part is tokenized by itself, so an answer sent back as a message
//! has the tokens that were generated. Media parts enter as the bytes of their JSON.
use serde_json::Value;

use super::config::SimConfig;
use super::refuse::Refused;
use crate::sim::engine::content;
use crate::sim::engine::tokenizer::{MESSAGE_END, MESSAGE_START, VOCABULARY, tokenize};

/// Which API a body is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Face {
    /// `/v1/chat/completions`, and `/tokenize` with messages.
    Chat,
    /// `/v1/completions`.
    Completions,
    /// `/v1/responses`.
    Responses,
    /// `/v1/messages` and its token count.
    Messages,
    /// `/inference/v1/generate`.
    Generate,
}

/// One sequence to generate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Which prompt it continues.
    pub(super) prompt: usize,
    /// Seed of its content.
    pub(super) seed: u64,
    /// Its length.
    pub(super) tokens: u64,
    /// `length` if the client set the length, else `stop`.
    pub(super) is_cut_short: bool,
}

impl Wanted {
    /// `finish_reason`.
    pub(super) fn finish(&self) -> &'static str {
        if self.is_cut_short { "length" } else { "stop" }
    }
}

/// A request, read.
#[derive(Clone, Debug)]
pub(super) struct Ask {
    pub(super) model: String,
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) wanted: Vec<Wanted>,
    pub(super) output_max: Option<u64>,
    pub(super) is_streamed: bool,
    pub(super) is_usage_included: bool,
    pub(super) is_usage_continuous: bool,
    pub(super) are_ids_returned: bool,
    /// Number of alternatives to list, if log probabilities are asked for.
    pub(super) logprobs: Option<u64>,
    /// Function that must be called.
    pub(super) tool: Option<String>,
    pub(super) salt: Option<String>,
    pub(super) temperature: f64,
    /// Cached prompt tokens as another pod told them.
    pub(super) told_cached: Option<u64>,
    /// Its blocks are kept for another pod.
    pub(super) keeps: Option<String>,
}

/// Parses JSON, with vLLM's errors.
pub(super) fn parse(body: &[u8], content_type: Option<&str>) -> Result<Value, Refused> {
    if body.is_empty() {
        return Err(Refused::field("missing", "body", "Field required", "None"));
    }
    if content_type.is_some_and(|kind| !kind.to_ascii_lowercase().starts_with("application/json")) {
        return Err(Refused::content_type());
    }
    let value: Value = serde_json::from_slice(body).map_err(|error| Refused::json(offset_of(body, &error)))?;
    if value.is_object() {
        return Ok(value);
    }
    Err(Refused::field("dict_type", "body", "Input should be a valid dictionary", "<not a dict>"))
}

impl Ask {
    /// Reads a body for this API. `history` goes before the prompt (earlier turns of a stored response).
    pub(super) fn read(face: Face, body: &Value, history: &[u32], config: &SimConfig) -> Result<Self, Refused> {
        let prompts = match face {
            Face::Chat => vec![chat_prompt(body)?],
            Face::Messages => vec![messages_prompt(body)?],
            Face::Responses => vec![responses_prompt(body, history)?],
            Face::Completions => completion_prompts(required(body, "prompt")?)?,
            Face::Generate => vec![ids(required(body, "token_ids")?)?],
        };
        let output_max = output_max(face, body, config)?;
        let model = model_of(body, config)?;
        for prompt in &prompts {
            let (limit, length) = (config.max_model_len, prompt.len() as u64);
            if length >= limit {
                return Err(Refused::too_long(limit, length, None));
            }
            if let Some(asked) = output_max.filter(|asked| length + asked > limit) {
                return Err(Refused::too_long(limit, length, Some(asked)));
            }
        }
        let choices = whole(body, "n")?.map_or(1, |n| n.clamp(1, 128) as u64);
        let wanted = wanted(&prompts, choices, output_max);
        let options = body.get("stream_options");
        let option = |name: &str| options.and_then(|options| options.get(name)).and_then(Value::as_bool) == Some(true);
        let is_set = |name: &str| body.get(name).and_then(Value::as_bool) == Some(true);
        let logprobs = match face {
            Face::Chat => is_set("logprobs").then(|| body.get("top_logprobs").and_then(Value::as_u64).unwrap_or(0)),
            _ => body.get("logprobs").and_then(Value::as_u64),
        };
        Ok(Self {
            model,
            prompts,
            wanted,
            output_max,
            is_streamed: is_set("stream"),
            is_usage_included: option("include_usage"),
            is_usage_continuous: option("continuous_usage_stats"),
            are_ids_returned: is_set("return_token_ids"),
            logprobs,
            tool: tool_of(body),
            salt: body.get("cache_salt").and_then(Value::as_str).map(str::to_owned),
            temperature: body.get("temperature").and_then(Value::as_f64).unwrap_or(1.0),
            told_cached: None,
            keeps: None,
        })
    }

    /// Tokens of all prompts.
    pub(super) fn prompt_tokens(&self) -> u64 {
        self.prompts.iter().map(|prompt| prompt.len() as u64).sum()
    }

    /// Tokens of all answers.
    pub(super) fn output_tokens(&self) -> u64 {
        self.wanted.iter().map(|wanted| wanted.tokens).sum()
    }
}

/// The model asked for; the first one served if none is.
pub(super) fn model_of(body: &Value, config: &SimConfig) -> Result<String, Refused> {
    match body.get("model") {
        None | Some(Value::Null) => Ok(config.first_model().to_owned()),
        Some(Value::String(name)) if config.has_model(name) => Ok(name.clone()),
        Some(Value::String(name)) => Err(Refused::model(name, &config.models)),
        Some(other) => {
            Err(Refused::field("string_type", "body.model", "Input should be a valid string", &input_of(other)))
        }
    }
}

/// Token ids from JSON.
pub(super) fn ids(value: &Value) -> Result<Vec<u32>, Refused> {
    let items = value.as_array().map(Vec::as_slice).unwrap_or_default();
    items
        .iter()
        .map(|item| match item.as_u64() {
            Some(id) if id < VOCABULARY => Ok(id as u32),
            _ => Err(Refused::request(format!("Token id {item} is out of vocabulary"), None)),
        })
        .collect()
}

/// Tokens of one piece of text.
pub(super) fn text_tokens(text: &str) -> Vec<u32> {
    let mut out = Vec::with_capacity(text.len() / 4 + 1);
    tokenize(text.as_bytes(), &mut out);
    out
}

/// Tokens of a chat prompt, for generation and for `/tokenize`.
pub(super) fn chat_prompt(body: &Value) -> Result<Vec<u32>, Refused> {
    let messages = required(body, "messages")?;
    let mut out = Vec::new();
    tools(body, &mut out);
    messages_tokens(messages, "body.messages", &mut out)?;
    open_answer(&mut out);
    Ok(out)
}

/// Tokens of an Anthropic prompt.
pub(super) fn messages_prompt(body: &Value) -> Result<Vec<u32>, Refused> {
    let messages = required(body, "messages")?;
    let mut out = Vec::new();
    tools(body, &mut out);
    if let Some(system) = body.get("system").filter(|system| !system.is_null()) {
        message("system", system, &mut out);
    }
    messages_tokens(messages, "body.messages", &mut out)?;
    open_answer(&mut out);
    Ok(out)
}

fn responses_prompt(body: &Value, history: &[u32]) -> Result<Vec<u32>, Refused> {
    let input = required(body, "input")?;
    let mut out = history.to_vec();
    tools(body, &mut out);
    if let Some(instructions) = body.get("instructions").filter(|text| !text.is_null()) {
        message("system", instructions, &mut out);
    }
    if input.is_string() {
        message("user", input, &mut out);
    } else {
        messages_tokens(input, "body.input", &mut out)?;
    }
    open_answer(&mut out);
    Ok(out)
}

/// Closes an answer, so that a later turn can follow.
pub(super) fn close_answer(tokens: &mut Vec<u32>) {
    tokens.push(MESSAGE_END);
    tokenize(b"\n", tokens);
}

fn open_answer(out: &mut Vec<u32>) {
    out.push(MESSAGE_START);
    tokenize(b"assistant\n", out);
}

fn tools(body: &Value, out: &mut Vec<u32>) {
    if let Some(tools) = body.get("tools").filter(|tools| tools.as_array().is_some_and(|list| !list.is_empty())) {
        message("tools", tools, out);
    }
}

fn messages_tokens(messages: &Value, at: &str, out: &mut Vec<u32>) -> Result<(), Refused> {
    let Some(list) = messages.as_array() else {
        return Err(Refused::field("list_type", at, "Input should be a valid list", &input_of(messages)));
    };
    for entry in list {
        let role = entry.get("role").and_then(Value::as_str).unwrap_or("user");
        message(role, entry.get("content").unwrap_or(&Value::Null), out);
        if let Some(calls) = entry.get("tool_calls").filter(|calls| !calls.is_null()) {
            tokenize(calls.to_string().as_bytes(), out);
        }
    }
    Ok(())
}

fn message(role: &str, content: &Value, out: &mut Vec<u32>) {
    out.push(MESSAGE_START);
    tokenize(role.as_bytes(), out);
    tokenize(b"\n", out);
    match content {
        Value::String(text) => tokenize(text.as_bytes(), out),
        Value::Array(parts) => {
            for part in parts {
                match part.get("text").and_then(Value::as_str) {
                    Some(text) => tokenize(text.as_bytes(), out),
                    None => tokenize(part.to_string().as_bytes(), out),
                }
            }
        }
        Value::Null => {}
        other => tokenize(other.to_string().as_bytes(), out),
    }
    close_answer(out);
}

/// Prompts of a completion: text, texts, ids, or lists of ids.
pub(super) fn completion_prompts(prompt: &Value) -> Result<Vec<Vec<u32>>, Refused> {
    match prompt {
        Value::String(text) => Ok(vec![text_tokens(text)]),
        Value::Array(items) if items.first().is_some_and(Value::is_number) => Ok(vec![ids(prompt)?]),
        Value::Array(items) => items
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(text_tokens(text)),
                other => ids(other),
            })
            .collect(),
        other => Err(Refused::field("string_type", "body.prompt", "Input should be a valid string", &input_of(other))),
    }
}

fn wanted(prompts: &[Vec<u32>], choices: u64, output_max: Option<u64>) -> Vec<Wanted> {
    let one = |prompt: usize, choice: u64| {
        let seed = content::seed(prompts.get(prompt).map(Vec::as_slice).unwrap_or_default(), choice);
        let tokens = output_max.unwrap_or_else(|| content::natural_tokens(seed));
        Wanted { prompt, seed, tokens, is_cut_short: output_max.is_some() }
    };
    (0..prompts.len()).flat_map(|prompt| (0..choices).map(move |choice| one(prompt, choice))).collect()
}

fn output_max(face: Face, body: &Value, config: &SimConfig) -> Result<Option<u64>, Refused> {
    let (body, names): (&Value, &[&str]) = match face {
        Face::Responses => (body, &["max_output_tokens"]),
        Face::Chat => (body, &["max_completion_tokens", "max_tokens"]),
        Face::Generate => (body.get("sampling_params").unwrap_or(&Value::Null), &["max_tokens"]),
        Face::Completions | Face::Messages => (body, &["max_tokens"]),
    };
    for name in names {
        let Some(asked) = whole(body, name)? else { continue };
        if asked < 1 {
            let message = format!("max_tokens must be at least 1, got {asked}. (parameter=max_tokens, value={asked})");
            return Err(Refused::request(message, Some("max_tokens")));
        }
        let (asked, limit) = (asked as u64, config.max_model_len);
        if asked > limit {
            let message = format!(
                "max_tokens={asked} cannot be greater than max_model_len={limit}. Please request fewer output tokens. \
                 (parameter=max_tokens, value={asked})"
            );
            return Err(Refused::request(message, Some("max_tokens")));
        }
        return Ok(Some(asked));
    }
    Ok(None)
}

fn whole(body: &Value, name: &str) -> Result<Option<i64>, Refused> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Number(number)) if number.is_i64() => Ok(number.as_i64()),
        Some(other) => {
            let at = format!("body.{name}");
            let text = "Input should be a valid integer, unable to parse string as an integer";
            Err(Refused::field("int_parsing", &at, text, &input_of(other)))
        }
    }
}

fn required<'a>(body: &'a Value, name: &str) -> Result<&'a Value, Refused> {
    body.get(name).ok_or_else(|| {
        let at = format!("body.{name}");
        Refused::field("missing", &at, "Field required", &input_of(body))
    })
}

/// The function that the request forces to be called.
fn tool_of(body: &Value) -> Option<String> {
    let name =
        |tool: &Value| tool.get("function").unwrap_or(tool).get("name").and_then(Value::as_str).map(str::to_owned);
    match body.get("tool_choice")? {
        Value::String(how) if how == "required" => body.get("tools")?.get(0).and_then(name),
        choice @ Value::Object(_) => name(choice),
        _ => None,
    }
}

fn input_of(value: &Value) -> String {
    match value {
        Value::Object(members) => format!("<dict of {} items>", members.len()),
        Value::Array(items) => format!("<list of {} items>", items.len()),
        Value::String(text) => text.chars().take(64).collect(),
        other => other.to_string(),
    }
}

/// Byte offset of a JSON error.
fn offset_of(body: &[u8], error: &serde_json::Error) -> usize {
    let before: usize =
        body.split(|byte| *byte == b'\n').take(error.line().saturating_sub(1)).map(|l| l.len() + 1).sum();
    (before + error.column()).min(body.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn read(face: Face, body: &Value) -> Result<Ask, Refused> {
        Ask::read(face, body, &[], &SimConfig::default())
    }

    #[test]
    fn a_conversation_continues_with_the_tokens_that_were_generated() {
        let first = json!({"messages": [{"role": "user", "content": "Say it, again"}], "max_tokens": 9});
        let one = read(Face::Chat, &first).unwrap();
        let answer = content::text(one.wanted.first().unwrap().seed, 0, 9);
        let turns = json!([{"role": "user", "content": "Say it, again"}, {"role": "assistant", "content": answer},
            {"role": "user", "content": "and?"}]);
        let two = read(Face::Chat, &json!({"messages": turns})).unwrap();
        let mut grown = one.prompts.first().unwrap().clone();
        grown.extend((0..9).map(|index| content::token(one.wanted.first().unwrap().seed, index)));
        assert!(two.prompts.first().unwrap().starts_with(&grown));
    }

    #[test]
    fn prompts_of_completions_come_in_four_forms() {
        let count = |prompt: Value| completion_prompts(&prompt).unwrap().len();
        assert_eq!(count(json!("abcd")), 1);
        assert_eq!(count(json!(["a", "b"])), 2);
        assert_eq!(count(json!([1, 2, 3])), 1);
        assert_eq!(count(json!([[1], [2, 3]])), 2);
        assert!(completion_prompts(&json!([99_999_999])).is_err());
    }

    #[test]
    fn a_forced_tool_is_found() {
        let tools = json!([{"type": "function", "function": {"name": "look"}}]);
        let body = json!({"messages": [], "tools": tools, "tool_choice": "required"});
        assert_eq!(read(Face::Chat, &body).unwrap().tool.as_deref(), Some("look"));
    }
}
