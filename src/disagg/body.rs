//! The bodies of the two legs, made from the body that would go to one pod.
use bytes::{Bytes, BytesMut};

use crate::api::{Anatomy, Api, Edit, json, splice};

/// Alternatives asked of the prefiller for the sentinel, where the client's own settings leave the first token to chance.
/// vLLM allows 20 by default (`--max-logprobs`).
const ALTERNATIVES: u32 = 20;

/// Longest `cache_salt` that vLLM 0.32 takes.
const SALT_BYTES_MAX: usize = 128;

/// What is asked of the prefill leg.
#[derive(Clone, Copy, Debug)]
pub struct Legs<'a> {
    /// `kv_transfer_params`, as JSON; `None`: there are none.
    pub params: Option<&'a str>,
    /// Ask for the most likely first tokens.
    pub alternatives: bool,
    /// Ask for the prompt's token ids.
    pub token_ids: bool,
}

/// The body of the prefill leg: the client's, for one token, not streamed. `None` if the body cannot be read again.
pub fn prefill_body(api: Api, body: &Bytes, legs: &Legs<'_>) -> Option<Bytes> {
    let anatomy = Anatomy::read(api, body).ok()?;
    let has = |name: &str| anatomy.value(name).is_some();
    let ids = legs.token_ids.then_some(&b"true"[..]);
    let top = ALTERNATIVES.to_string();
    let mut edits = vec![
        Edit { key: "kv_transfer_params", value: legs.params.map(str::as_bytes) },
        Edit { key: "stream_options", value: None },
        Edit { key: "min_tokens", value: None },
        Edit { key: "return_token_ids", value: ids },
    ];
    let sampling = (api == Api::GenerateTokens).then(|| one_token(anatomy.value("sampling_params"), legs.alternatives));
    match (&sampling, api) {
        (Some(sampling), _) => edits.push(Edit { key: "sampling_params", value: Some(sampling) }),
        (None, Api::Responses) => {
            edits.push(Edit { key: "max_output_tokens", value: Some(b"1") });
            // A pod that keeps responses would keep this one too.
            edits.push(Edit { key: "store", value: Some(b"false") });
        }
        (None, _) => edits.push(Edit { key: "max_tokens", value: Some(b"1") }),
    }
    for (name, value) in [("stream", &b"false"[..]), ("max_completion_tokens", b"1"), ("n", b"1")] {
        if has(name) {
            edits.push(Edit { key: name, value: Some(value) });
        }
    }
    match api {
        Api::Chat if legs.alternatives => {
            edits.push(Edit { key: "logprobs", value: Some(b"true") });
            edits.push(Edit { key: "top_logprobs", value: Some(top.as_bytes()) });
        }
        Api::Completions if legs.alternatives => edits.push(Edit { key: "logprobs", value: Some(top.as_bytes()) }),
        _ => {}
    }
    Some(splice(body, &anatomy, &edits))
}

/// The body of the decode leg: every byte of the client's, and `params` before them, if there are any.
pub fn decode_body(body: &Bytes, params: Option<&[u8]>) -> Bytes {
    let Some(params) = params else { return body.clone() };
    let brace = body.iter().position(|byte| *byte == b'{').map_or(body.len(), |at| at + 1);
    let (head, rest) = body.split_at(brace);
    let is_empty = rest.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'}');
    let mut out = BytesMut::with_capacity(body.len() + params.len() + 32);
    out.extend_from_slice(head);
    out.extend_from_slice(b"\"kv_transfer_params\":");
    out.extend_from_slice(params);
    if !is_empty {
        out.extend_from_slice(b",");
    }
    out.extend_from_slice(rest);
    out.freeze()
}

/// The body for a pod whose prefix cache must not be read any further back than `epoch`: with another `cache_salt`, none of
/// its old blocks is found.
pub fn salted(api: Api, body: &Bytes, epoch: u64) -> Bytes {
    let Ok(anatomy) = Anatomy::read(api, body) else { return body.clone() };
    let own = anatomy.cache_salt.as_deref().unwrap_or_default();
    let mut salt = format!("{own}+{epoch:x}");
    if salt.len() > SALT_BYTES_MAX {
        salt = format!("{:016x}+{epoch:x}", xxhash_rust::xxh3::xxh3_64(own.as_bytes()));
    }
    let salt = serde_json::Value::from(salt).to_string();
    splice(body, &anatomy, &[Edit { key: "cache_salt", value: Some(salt.as_bytes()) }])
}

/// `sampling_params` for one token.
fn one_token(sampling: Option<&[u8]>, alternatives: bool) -> Vec<u8> {
    let mut out = b"{\"max_tokens\":1,\"n\":1".to_vec();
    if alternatives {
        out.extend_from_slice(format!(",\"logprobs\":{ALTERNATIVES}").as_bytes());
    }
    for member in sampling.map(json::members).into_iter().flatten() {
        let is_ours = ["max_tokens", "n", "min_tokens"].iter().any(|name| json::key_is(member.key, name));
        if !(is_ours || alternatives && json::key_is(member.key, "logprobs")) {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(member.key);
            out.extend_from_slice(b"\":");
            out.extend_from_slice(member.value);
        }
    }
    out.push(b'}');
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    const LEGS: Legs<'static> = Legs { params: Some(r#"{"a":1}"#), alternatives: false, token_ids: false };

    fn prefill(api: Api, body: &Value, legs: &Legs<'_>) -> Value {
        let made = prefill_body(api, &body.to_string().into(), legs).unwrap();
        serde_json::from_slice(&made).unwrap()
    }

    #[test]
    fn a_prefill_makes_one_token_and_is_not_streamed() {
        let body = json!({"model":"m","messages":[1.50],"stream":true,"stream_options":{"include_usage":true},"max_tokens":9,
            "max_completion_tokens":8,"n":1,"min_tokens":3,"return_token_ids":true,"cache_salt":"s"});
        let made = prefill(Api::Chat, &body, &LEGS);
        let expected = json!({"model":"m","messages":[1.50],"stream":false,"max_tokens":1,"max_completion_tokens":1,"n":1,
            "cache_salt":"s","kv_transfer_params":{"a":1}});
        assert_eq!(made, expected);
        let all = Legs { alternatives: true, token_ids: true, ..LEGS };
        let made = prefill(Api::Completions, &json!({"prompt":"x"}), &all);
        let expected =
            json!({"prompt":"x","max_tokens":1,"logprobs":20,"return_token_ids":true,"kv_transfer_params":{"a":1}});
        assert_eq!(made, expected);
        let made = prefill(Api::Chat, &json!({"messages":[],"top_logprobs":3}), &all);
        assert_eq!((&made["logprobs"], &made["top_logprobs"]), (&json!(true), &json!(20)));
        let made = prefill(Api::Responses, &json!({"input":"x","max_output_tokens":7,"stream":true}), &LEGS);
        assert_eq!(
            made,
            json!({"input":"x","max_output_tokens":1,"stream":false,"store":false,"kv_transfer_params":{"a":1}})
        );
        let sampled =
            json!({"token_ids":[1],"sampling_params":{"temperature":0.5,"max_tokens":7,"n":1,"min_tokens":2}});
        let made = prefill(Api::GenerateTokens, &sampled, &all);
        let expected = json!({"max_tokens":1,"n":1,"logprobs":20,"temperature":0.5});
        assert_eq!((&made["sampling_params"], made.get("max_tokens")), (&expected, None));
    }

    #[test]
    fn a_decode_has_every_byte_of_the_client() {
        for (body, expected) in [
            (r#" { "b": 1.0, "a":2}"#, r#" {"kv_transfer_params":{"x":1}, "b": 1.0, "a":2}"#),
            ("{ }", r#"{"kv_transfer_params":{"x":1} }"#),
        ] {
            assert_eq!(decode_body(&Bytes::from_static(body.as_bytes()), Some(br#"{"x":1}"#)), expected);
        }
    }

    #[test]
    fn a_new_epoch_has_another_salt() {
        let of = |body: &'static str| salted(Api::Chat, &Bytes::from_static(body.as_bytes()), 3);
        assert_eq!(of(r#"{"messages":[]}"#), r#"{"messages":[],"cache_salt":"+3"}"#);
        assert_eq!(of(r#"{"cache_salt":"a","messages":[]}"#), r#"{"cache_salt":"a+3","messages":[]}"#);
        let long = format!(r#"{{"cache_salt":"{}"}}"#, "x".repeat(127));
        assert!(salted(Api::Chat, &long.into(), 3).len() < 60);
    }
}
