//! `MooncakeConnector` of vLLM: the decoder fetches the blocks from the prefiller by a transfer's name.
//!
//! Keys as vLLM 0.32's `mooncake_connector.py` reads them: `do_remote_decode` and `transfer_id` for the prefill; for the decode
//! `do_remote_prefill`, `transfer_id`, `remote_engine_id` and `remote_bootstrap_addr`. Whatever is missing is a warning there,
//! and the decoder computes the prompt itself. Engines are named by the prefiller's bootstrap server, `GET /query`:
//! `{"<dp rank>": {"engine_id": ...}}` (`VLLM_MOONCAKE_BOOTSTRAP_PORT`, 8998). The answer of the prefill tells nothing.
use std::time::Duration;

use serde_json::{Value, json};

use crate::disagg::connector::{BadReply, Connector, Handover};

/// See the file.
pub(super) struct Mooncake;

impl Connector for Mooncake {
    fn prefill_params(&self, transfer: &str) -> Option<String> {
        Some(json!({"do_remote_decode": true, "do_remote_prefill": false, "transfer_id": transfer}).to_string())
    }

    fn decode_params(&self, handover: &Handover<'_>) -> Result<Option<Vec<u8>>, BadReply> {
        let engine = handover.engine.ok_or(BadReply::NoEngine)?;
        let service = std::net::SocketAddr::new(handover.prefiller.ip(), handover.port);
        let params = json!({
            "do_remote_decode": false,
            "do_remote_prefill": true,
            "transfer_id": handover.transfer,
            "remote_engine_id": engine,
            "remote_bootstrap_addr": format!("http://{service}"),
        });
        Ok(Some(params.to_string().into_bytes()))
    }

    /// `VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT`.
    fn lease(&self) -> Duration {
        Duration::from_mins(8)
    }

    fn port(&self) -> Option<u16> {
        Some(8998)
    }

    /// `request_finished` there drops the transfer of any other, and the decoder would wait for minutes.
    fn needs_capped(&self) -> bool {
        true
    }

    fn engine_path(&self) -> Option<&'static str> {
        Some("/query")
    }

    fn engine(&self, page: &[u8], rank: u32) -> Option<String> {
        let page: Value = serde_json::from_slice(page).ok()?;
        let name = page.get(rank.to_string())?.get("engine_id")?.as_str()?;
        (!name.is_empty()).then(|| name.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_engine_is_that_of_the_rank() {
        let page = br#"{"0":{"engine_id":"a","worker_addr":{"0":{"0":"tcp://x:1"}}},"1":{"engine_id":"b","worker_addr":{}},"2":{}}"#;
        let of = |rank| Mooncake.engine(page, rank);
        assert_eq!(
            [of(0).as_deref(), of(1).as_deref(), of(2).as_deref(), of(3).as_deref()],
            [Some("a"), Some("b"), None, None]
        );
        assert_eq!(Mooncake.engine(b"<html>", 0), None);
    }
}
