//! Token counts and response ids out of a pod's answer, without parsing it whole. Shapes of vLLM 0.32: OpenAI `usage`
//! (`prompt_tokens`, `completion_tokens`, `prompt_tokens_details.cached_tokens`), Responses (`input_tokens`,
//! `output_tokens`, `input_tokens_details.cached_tokens`), Anthropic (`cache_read_input_tokens`).
use super::json;
use super::kind::Api;
use super::lax;

/// What the pod says the request cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt, cached ones included.
    pub prompt_tokens: u64,
    /// Tokens generated; 0 for APIs that generate none.
    pub completion_tokens: u64,
    /// Prompt tokens that were in the pod's cache; `None` if the pod does not tell.
    pub cached_tokens: Option<u64>,
}

impl Usage {
    /// Reads one `usage` object; nothing unless it counts prompt tokens or generated ones.
    pub fn read(object: &[u8]) -> Option<Self> {
        let (mut prompt, mut completion, mut cached) = (None, None, None);
        for member in json::members(object) {
            match member.key {
                b"prompt_tokens" | b"input_tokens" => prompt = lax::unsigned(member.value),
                b"completion_tokens" | b"output_tokens" => completion = lax::unsigned(member.value),
                b"cache_read_input_tokens" => cached = lax::unsigned(member.value),
                b"prompt_tokens_details" | b"input_tokens_details" => {
                    cached = json::member(member.value, "cached_tokens").and_then(lax::unsigned);
                }
                _ => {}
            }
        }
        prompt.or(completion)?;
        Some(Self {
            prompt_tokens: prompt.unwrap_or(0),
            completion_tokens: completion.unwrap_or(0),
            cached_tokens: cached,
        })
    }

    /// This, where it lacks something completed by what was known before.
    #[must_use]
    pub fn over(self, before: Option<Self>) -> Self {
        let Some(before) = before else { return self };
        Self {
            prompt_tokens: if self.prompt_tokens == 0 { before.prompt_tokens } else { self.prompt_tokens },
            completion_tokens: self.completion_tokens.max(before.completion_tokens),
            cached_tokens: self.cached_tokens.or(before.cached_tokens),
        }
    }
}

/// Usage of a whole (non-streamed) answer; `None` if it tells none or is not JSON.
pub fn usage_of_body(api: Api, body: &[u8]) -> Option<Usage> {
    match api {
        Api::CountTokens | Api::Tokenize | Api::Detokenize | Api::Render | Api::RenderMessages => None,
        _ => Usage::read(json::member(body, "usage")?),
    }
}

/// Id of a whole answer of the Responses API, which later requests name; `None` on other APIs.
pub fn response_id_of_body(api: Api, body: &[u8]) -> Option<String> {
    if api != Api::Responses {
        return None;
    }
    json::text(json::member(body, "id")?).filter(|id| id.len() <= super::sse::ID_MAX).map(std::borrow::Cow::into_owned)
}
