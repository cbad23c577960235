//! What a pod will answer to a body, for clients that check every byte.
use super::ask::{Ask, Face, parse};
use super::config::SimConfig;
use crate::sim::engine::content;

/// What to expect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Tokens of all prompts: `usage.prompt_tokens`.
    pub prompt_tokens: u64,
    /// Text of each choice, in order of `index`.
    pub texts: Vec<String>,
    /// Tokens of each choice; their sum is `usage.completion_tokens`.
    pub tokens: Vec<u64>,
}

/// The answer to `body` sent to `path` (a generate route) of a pod with these settings; `None` if the pod would refuse it.
/// Requests with `previous_response_id` cannot be foreseen, and forced tools wrap the text in arguments.
pub fn expected(path: &str, body: &[u8], config: &SimConfig) -> Option<Expected> {
    let face = match path {
        "/v1/chat/completions" => Face::Chat,
        "/v1/completions" => Face::Completions,
        "/v1/responses" => Face::Responses,
        "/v1/messages" => Face::Messages,
        "/inference/v1/generate" => Face::Generate,
        _ => return None,
    };
    let ask = Ask::read(face, &parse(body, None).ok()?, &[], config).ok()?;
    Some(Expected {
        prompt_tokens: ask.prompt_tokens(),
        texts: ask.wanted.iter().map(|wanted| content::text(wanted.seed, 0, wanted.tokens)).collect(),
        tokens: ask.wanted.iter().map(|wanted| wanted.tokens).collect(),
    })
}
