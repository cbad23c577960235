//! What a request asks of an engine beside tokens: answers, grammars, a computation of the whole prompt. Hashes and counts only.
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::api::{Anatomy, GRAMMARS};

/// Facts for the planner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Asks {
    /// Answers per prompt.
    pub(super) answers: u32,
    /// The whole prompt is computed, whatever is cached.
    pub(super) skips_cache: bool,
    /// Hash of the grammar; `None` without one.
    pub(super) grammar: Option<u64>,
}

impl Default for Asks {
    fn default() -> Self {
        Self { answers: 1, skips_cache: false, grammar: None }
    }
}

impl Asks {
    /// Reads them from a body.
    pub(super) fn of(anatomy: &Anatomy<'_>) -> Self {
        let grammars = GRAMMARS.iter().filter_map(|name| anatomy.value(name)).filter(|value| is_grammar(value));
        let grammar = grammars.fold(None, |hash, value| Some(xxh3_64_with_seed(value, hash.unwrap_or(0))));
        let logprobs = anatomy.value("prompt_logprobs");
        Self {
            answers: anatomy.n.map_or(1, |n| u32::try_from(n.clamp(1, 1_024)).unwrap_or(1)),
            skips_cache: logprobs.is_some_and(|value| !matches!(value, b"null" | b"false")),
            grammar,
        }
    }
}

/// `{"type": "text"}` asks for nothing.
fn is_grammar(value: &[u8]) -> bool {
    let is_text = value.len() < 64 && memchr::memmem::find(value, b"\"text\"").is_some();
    value != b"null" && !is_text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::Api;

    #[test]
    fn facts_are_read_from_the_body() {
        let of = |body: &str| Asks::of(&Anatomy::read(Api::Chat, body.as_bytes()).unwrap());
        assert_eq!(of(r#"{"model":"m","response_format":{"type":"text"},"prompt_logprobs":null}"#), Asks::default());
        let asks = of(r#"{"n":3,"prompt_logprobs":1,"response_format":{"type":"json_object"}}"#);
        assert_eq!((asks.answers, asks.skips_cache, asks.grammar.is_some()), (3, true, true));
        let other = of(r#"{"guided_regex":"[ab]+"}"#);
        assert!(other.grammar.is_some() && other.grammar != asks.grammar);
    }
}
