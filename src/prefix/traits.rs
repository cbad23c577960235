//! What else of a request decides how its prompt and the pod's cache meet: members that change every prompt of it without
//! being part of its text, members that make the pod ignore its cache, and whether its answer will come back as the
//! continuation of the prompt. Facts of vLLM 0.32.
//!
//! `tool_choice` is not among them: vLLM renders the tools whatever it says.
use xxhash_rust::xxh3::Xxh3;

use crate::api::json::{self, Sink as _};
use crate::api::{Anatomy, Api, lax};

use super::fingerprint::Joint;

/// What was found.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Traits {
    /// Goes into the seed of every prompt; 0 if nothing special was asked for.
    pub(super) salt: u64,
    pub(super) skips_cache: bool,
    /// `None` if the answer will not come back as a continuation that can be foreseen.
    pub(super) joint: Option<Joint>,
}

impl Traits {
    pub(super) fn of(api: Api, anatomy: &Anatomy<'_>) -> Self {
        let mut traits = Self { joint: joint(api, anatomy.n), ..Self::default() };
        let (mut echoes, mut has_logprobs) = (false, false);
        for member in &anatomy.members {
            let value = member.value;
            if value == b"null" {
                continue;
            }
            let is_true = || lax::boolean(value) == Some(true);
            match member.key.as_ref() {
                "prompt_logprobs" => traits.skips_cache = true,
                "sampling_params" => traits.skips_cache |= sampling_skips(value),
                "logprobs" => has_logprobs = value != b"false",
                "echo" => echoes = is_true(),
                "continue_final_message" if is_true() => traits.joint = None,
                "best_of" if value != b"1" => traits.joint = None,
                "suffix" if value != b"\"\"" => traits.joint = None,
                "previous_response_id" | "previous_input_messages" => {
                    // What came before is known to the pod only.
                    traits.joint = None;
                    traits.add(&member.key, value);
                }
                "add_special_tokens" if is_true() == is_chat(api) => traits.add(&member.key, value),
                "truncate_prompt_tokens" | "mm_processor_kwargs" | "media_io_kwargs" | "prompt_embeds" => {
                    traits.add(&member.key, value);
                }
                _ => {}
            }
        }
        traits.skips_cache |= echoes && has_logprobs;
        if echoes {
            traits.joint = None;
        }
        traits
    }

    fn add(&mut self, key: &str, value: &[u8]) {
        if matches!(value, b"{}" | b"[]" | b"\"\"") {
            return;
        }
        let mut hash = Xxh3::with_seed(xxhash_rust::xxh3::xxh3_64(key.as_bytes()));
        match json::raw_string(value) {
            Some(raw) => hash.decode(raw),
            None => json::flatten_into(value, &mut hash),
        }
        // Added, so that the order of members does not matter.
        self.salt = self.salt.wrapping_add(hash.digest());
    }
}

const fn is_chat(api: Api) -> bool {
    matches!(api, Api::Chat | Api::ChatBatch | Api::Responses | Api::Messages)
}

fn joint(api: Api, n: Option<u64>) -> Option<Joint> {
    if n.is_some_and(|n| n > 1) {
        return None;
    }
    match api {
        Api::Chat | Api::Responses | Api::Messages => Some(Joint::Message),
        Api::Completions => Some(Joint::Text),
        _ => None,
    }
}

fn sampling_skips(params: &[u8]) -> bool {
    json::members(params).any(|member| match member.key {
        b"prompt_logprobs" => member.value != b"null",
        b"skip_reading_prefix_cache" => lax::boolean(member.value) == Some(true),
        _ => false,
    })
}
