//! What of the API cannot be prefilled on one pod and decoded on another (vLLM 0.32, NIXL): more than one sequence strands
//! blocks until their lease ends, and what is computed over the prompt itself is not handed over.
use super::connector::Connector;
use crate::api::{Anatomy, Api, json, lax};

/// Why a request must stay on one pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its API is not one whose answers are generated from one prompt.
    Api,
    /// Several answers, or candidates for one (`n`, `best_of`).
    SeveralAnswers,
    /// Several prompts.
    Batch,
    /// The prompt comes as embeddings.
    PromptEmbeds,
    /// The prompt is part of the answer.
    Echo,
    /// Log probabilities of the prompt.
    PromptLogprobs,
    /// Beam search.
    BeamSearch,
    /// It is stored, runs in the background, or continues a stored response.
    Stored,
    /// One token is asked for: nothing is left to decode.
    OneToken,
    /// It must go to a certain pod.
    Pinned,
    /// The gate is in safe mode.
    SafeMode,
}

impl Obstacle {
    /// Its name in metrics and decisions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Api => "api",
            Self::SeveralAnswers => "several_answers",
            Self::Batch => "batch",
            Self::PromptEmbeds => "prompt_embeds",
            Self::Echo => "echo",
            Self::PromptLogprobs => "prompt_logprobs",
            Self::BeamSearch => "beam_search",
            Self::Stored => "stored",
            Self::OneToken => "one_token",
            Self::Pinned => "pinned",
            Self::SafeMode => "safe_mode",
        }
    }
}

/// What keeps a request on one pod; `None` if it can be split.
pub fn obstacle(anatomy: &Anatomy<'_>, connector: &dyn Connector) -> Option<Obstacle> {
    // Only of these is it known that the engine's name for a request is the `X-Request-Id`, and how their answers tell why
    // they ended.
    let is_plain = matches!(anatomy.api, Api::Chat | Api::Completions);
    if !is_plain && (connector.is_paired_by_request_id() || connector.needs_capped()) {
        return Some(Obstacle::Api);
    }
    let sampling = anatomy.value("sampling_params");
    let value = |name: &str| anatomy.value(name).or_else(|| sampling.and_then(|object| json::member(object, name)));
    let is_set = |name: &str| value(name).is_some_and(|value| !matches!(value, b"null" | b"false" | b"0"));
    let is_many = |name: &str| value(name).and_then(lax::unsigned).is_some_and(|count| count > 1);
    let is_stored = anatomy.leaves_something() || anatomy.previous_response_id.is_some();
    let checks = [
        (!is_split(anatomy.api), Obstacle::Api),
        (is_many("n") || is_many("best_of"), Obstacle::SeveralAnswers),
        (anatomy.api == Api::Completions && is_batch(anatomy.value("prompt")), Obstacle::Batch),
        (is_set("prompt_embeds"), Obstacle::PromptEmbeds),
        (is_set("echo"), Obstacle::Echo),
        // 0 asks for the prompt's own tokens.
        (value("prompt_logprobs").is_some_and(|value| !matches!(value, b"null" | b"false")), Obstacle::PromptLogprobs),
        (is_set("use_beam_search"), Obstacle::BeamSearch),
        (is_stored, Obstacle::Stored),
        (anatomy.max_tokens.is_some_and(|most| most <= 1), Obstacle::OneToken),
    ];
    checks.into_iter().find(|(is_so, _)| *is_so).map(|(_, obstacle)| obstacle)
}

const fn is_split(api: Api) -> bool {
    matches!(api, Api::Chat | Api::Completions | Api::Responses | Api::Messages | Api::GenerateTokens)
}

/// Whether a completion's `prompt` is more than one: an array of anything but numbers.
fn is_batch(prompt: Option<&[u8]>) -> bool {
    let mut elements = prompt.map(json::elements).into_iter().flatten();
    elements.next().is_some_and(|first| !first.first().is_some_and(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::{ConnectorName, connector};
    use super::*;

    #[test]
    fn what_cannot_be_split_is_known_by_its_body() {
        for (api, body, expected) in [
            (Api::Chat, r#"{"messages":[],"n":1,"max_tokens":9}"#, None),
            (Api::Chat, r#"{"messages":[],"n":2}"#, Some(Obstacle::SeveralAnswers)),
            (Api::Completions, r#"{"prompt":[1,2,3],"echo":false,"prompt_logprobs":null}"#, None),
            (Api::Completions, r#"{"prompt":["a","b"]}"#, Some(Obstacle::Batch)),
            (Api::Completions, r#"{"prompt":[[1],[2]]}"#, Some(Obstacle::Batch)),
            (Api::Completions, r#"{"prompt":"a","best_of":3}"#, Some(Obstacle::SeveralAnswers)),
            (Api::Completions, r#"{"prompt_embeds":"abc"}"#, Some(Obstacle::PromptEmbeds)),
            (Api::Completions, r#"{"prompt":"a","echo":true}"#, Some(Obstacle::Echo)),
            (Api::Completions, r#"{"prompt":"a","prompt_logprobs":0}"#, Some(Obstacle::PromptLogprobs)),
            (Api::Completions, r#"{"prompt":"a","use_beam_search":true}"#, Some(Obstacle::BeamSearch)),
            (Api::Completions, r#"{"prompt":"a","max_tokens":1}"#, Some(Obstacle::OneToken)),
            (Api::Responses, r#"{"input":"a","store":true}"#, Some(Obstacle::Stored)),
            (Api::Responses, r#"{"input":"a","previous_response_id":"resp_1"}"#, Some(Obstacle::Stored)),
            (Api::GenerateTokens, r#"{"token_ids":[1],"sampling_params":{"n":2}}"#, Some(Obstacle::SeveralAnswers)),
            (Api::Embeddings, r#"{"input":"a"}"#, Some(Obstacle::Api)),
        ] {
            let anatomy = Anatomy::read(api, body.as_bytes()).unwrap();
            assert_eq!(obstacle(&anatomy, connector(ConnectorName::Nixl)), expected, "{body}");
            for name in [ConnectorName::NixlPush, ConnectorName::Mooncake] {
                let is_plain = matches!(api, Api::Chat | Api::Completions);
                let expected = if is_plain { expected } else { Some(Obstacle::Api) };
                assert_eq!(obstacle(&anatomy, connector(name)), expected, "{name:?} {body}");
            }
        }
    }
}
