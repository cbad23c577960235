//! `/tokenize`, `/detokenize`, token counts and `render`: the tokenizer as a service. All pure functions of the body.
use serde_json::Value;

use super::ask::{Ask, chat_prompt, completion_prompts, ids, messages_prompt, model_of};
use super::config::SimConfig;
use super::json::{list, numbers, or_null, quote};
use super::refuse::Refused;
use crate::sim::engine::tokenizer::detokenize;

/// `/tokenize`, chat or prompt form.
pub(super) fn tokenize(body: &Value, config: &SimConfig) -> Result<String, Refused> {
    model_of(body, config)?;
    let tokens = if body.get("messages").is_some() {
        chat_prompt(body)?
    } else {
        let prompt = body.get("prompt").unwrap_or(&Value::Null);
        completion_prompts(prompt)?.into_iter().flatten().collect()
    };
    let with_text = body.get("return_token_strs").and_then(Value::as_bool) == Some(true);
    let strings = with_text.then(|| list(tokens.iter().map(|token| quote(&text_of([*token])))));
    Ok(format!(
        r#"{{"count":{},"max_model_len":{},"tokens":{},"token_strs":{}}}"#,
        tokens.len(),
        config.max_model_len,
        numbers(&tokens),
        or_null(strings),
    ))
}

/// `/detokenize`.
pub(super) fn to_text(body: &Value, config: &SimConfig) -> Result<String, Refused> {
    model_of(body, config)?;
    let tokens = ids(body.get("tokens").unwrap_or(&Value::Null))?;
    Ok(format!(r#"{{"prompt":{}}}"#, quote(&text_of(tokens))))
}

/// `/v1/messages/count_tokens`.
pub(super) fn count(body: &Value, config: &SimConfig) -> Result<String, Refused> {
    model_of(body, config)?;
    let count = messages_prompt(body)?.len();
    Ok(format!(r#"{{"input_tokens":{count},"context_management":{{"original_input_tokens":{count}}}}}"#))
}

/// `/v1/…/render`: one generate request, or for completions a list of them.
pub(super) fn render(ask: &Ask, id: &str, is_completion: bool) -> String {
    let one = |(index, prompt): (usize, &Vec<u32>)| {
        let name = if is_completion { format!("cmpl-{id}-{index}") } else { format!("chatcmpl-{id}") };
        format!(
            r#"{{"request_id":"{name}","token_ids":{},"token_offsets":null,"features":null,"content_parts":null,"sampling_params":{{"presence_penalty":0.0,"frequency_penalty":0.0,"repetition_penalty":1.0,"temperature":{:?},"top_p":1.0,"min_p":0.0,"stop":[],"stop_token_ids":[],"max_tokens":{},"output_kind":2,"skip_clone":true,"bad_words":[],"skip_reading_prefix_cache":false}},"model":{},"reasoning_ended":null,"reasoning_parser_kwargs":null,"return_token_ids":null,"output_mode":"tokens","stream":false,"stream_options":null,"cache_salt":{},"priority":0,"kv_transfer_params":null,"ec_transfer_params":null}}"#,
            numbers(prompt),
            ask.temperature,
            or_null(ask.output_max.map(|most| most.to_string())),
            quote(&ask.model),
            or_null(ask.salt.as_deref().map(quote)),
        )
    };
    let mut all = ask.prompts.iter().enumerate().map(one);
    if is_completion { list(all) } else { all.next().unwrap_or_default() }
}

fn text_of(tokens: impl IntoIterator<Item = u32>) -> String {
    let mut bytes = Vec::new();
    for token in tokens {
        detokenize(token, &mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
