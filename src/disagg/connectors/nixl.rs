//! `NixlConnector` of vLLM: the decoder reads the blocks out of the prefiller's memory.
//!
//! The prefill's answer names blocks, engine and side channel; it goes to the decoder as it came. vLLM 0.32 takes its word: a
//! decoder told `do_remote_prefill` without the rest dies on an assertion, so every member it reads is checked here. Keys:
//! since 0.16 `remote_engine_id`, `remote_request_id`, `remote_host`, `remote_port`, `remote_block_ids`, `tp_size`; what later
//! versions add is handed on unread.
use std::time::Duration;

use crate::api::json;
use crate::disagg::connector::{BadReply, Connector, Handover};

/// See the file.
pub(super) struct Nixl;

impl Connector for Nixl {
    fn prefill_params(&self, _transfer: &str) -> Option<String> {
        let params = r#"{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,"remote_block_ids":null,"remote_host":null,"remote_port":null}"#;
        Some(params.to_owned())
    }

    fn decode_params(&self, handover: &Handover<'_>) -> Result<Option<Vec<u8>>, BadReply> {
        let params = handover.params;
        if !params.starts_with(b"{") {
            return Err(BadReply::Nothing);
        }
        check(params)?;
        let mut out = Vec::with_capacity(params.len() + handover.prompt_token_ids.map_or(0, <[u8]>::len) + 64);
        let mut at = 0;
        if handover.rewrite_host
            && let Some(host) = json::members(params).find(|member| member.key == b"remote_host")
        {
            out.extend_from_slice(params.get(..host.value_start).unwrap_or_default());
            out.extend_from_slice(format!("\"{}\"", handover.prefiller.ip()).as_bytes());
            at = host.end();
        }
        let close = params.iter().rposition(|byte| *byte == b'}').ok_or(BadReply::Nothing)?;
        out.extend_from_slice(params.get(at..close).unwrap_or_default());
        if let Some(ids) = handover.prompt_token_ids.filter(|ids| ids.starts_with(b"[")) {
            out.extend_from_slice(b",\"prompt_token_ids\":");
            out.extend_from_slice(ids);
        }
        out.push(b'}');
        Ok(Some(out))
    }

    fn counts_expired(&self) -> bool {
        true
    }

    /// `kv_lease_duration`.
    fn lease(&self) -> Duration {
        Duration::from_secs(30)
    }
}

/// Whether a member has a value that will do.
type Test = fn(&[u8]) -> bool;

fn is_text(value: &[u8]) -> bool {
    value.len() > 2 && value.starts_with(b"\"")
}

fn is_number(value: &[u8]) -> bool {
    value.first().is_some_and(u8::is_ascii_digit)
}

fn is_list(value: &[u8]) -> bool {
    json::elements(value).next().is_some()
}

fn is_true(value: &[u8]) -> bool {
    value == b"true"
}

/// Looks at every member once: a long prompt has thousands of blocks.
fn check(params: &[u8]) -> Result<(), BadReply> {
    let checks: [(&'static str, Test); 7] = [
        ("do_remote_prefill", is_true),
        ("remote_engine_id", is_text),
        ("remote_request_id", is_text),
        ("remote_host", is_text),
        ("remote_port", is_number),
        ("remote_block_ids", is_list),
        ("tp_size", is_number),
    ];
    let mut good = [false; 7];
    for member in json::members(params) {
        let known = checks.iter().zip(&mut good).find(|((name, _), _)| json::key_is(member.key, name));
        if let Some(((_, is_good), good)) = known {
            *good = is_good(member.value);
        }
    }
    match checks.iter().zip(good).find(|(_, good)| !good) {
        Some(((name, _), _)) => Err(BadReply::Lacks(name)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    /// As vLLM 0.32 answers.
    fn told() -> Value {
        json!({"do_remote_prefill":true,"do_remote_decode":false,"remote_block_ids":[[1,2,3]],"remote_engine_id":"prefill-1",
            "remote_request_id":"cmpl-a-0-97cfdab7","remote_host":"localhost","remote_port":5600,"tp_size":1,"dcp_size":1,
            "pp_size":1,"remote_num_tokens":66,"remote_blocks_expiry_time":null,"transfer_mode":"pull",
            "remote_prefill_cached_tokens":0})
    }

    fn made(told: &Value, rewrite_host: bool, ids: Option<&[u8]>) -> Result<Value, BadReply> {
        let text = told.to_string();
        let prefiller = ([10, 0, 0, 7], 8_000).into();
        let handover = Handover {
            params: text.as_bytes(),
            transfer: "",
            prefiller,
            port: 0,
            engine: None,
            rewrite_host,
            prompt_token_ids: ids,
        };
        Nixl.decode_params(&handover).map(|made| serde_json::from_slice(&made.unwrap()).unwrap())
    }

    #[test]
    fn a_whole_answer_goes_on_as_it_came() {
        assert_eq!(made(&told(), false, None), Ok(told()));
        let mut expected = told();
        expected["remote_host"] = json!("10.0.0.7");
        expected["prompt_token_ids"] = json!([5, 6]);
        assert_eq!(made(&told(), true, Some(b"[5,6]")), Ok(expected));
        assert_eq!(made(&told(), false, Some(b"null")), Ok(told()));
    }

    #[test]
    fn a_half_filled_answer_never_reaches_a_decoder() {
        assert_eq!(made(&Value::Null, false, None), Err(BadReply::Nothing));
        let needed = [
            "do_remote_prefill",
            "remote_engine_id",
            "remote_request_id",
            "remote_host",
            "remote_port",
            "remote_block_ids",
            "tp_size",
        ];
        for name in needed {
            let (mut absent, mut null) = (told(), told());
            absent.as_object_mut().unwrap().remove(name);
            null[name] = Value::Null;
            for broken in [absent, null] {
                assert_eq!(made(&broken, true, None), Err(BadReply::Lacks(name)), "{broken}");
            }
        }
        let mut empty = told();
        empty["remote_block_ids"] = json!([]);
        assert_eq!(made(&empty, false, None), Err(BadReply::Lacks("remote_block_ids")));
    }
}
