//! `OffloadingConnector` of vLLM with its peer-to-peer tier: the decoder fetches the blocks from the prefiller's CPU memory.
//!
//! Keys as vLLM 0.32's `v1/kv_offload/tiering/p2p/manager.py` reads them: `remote_decoder.kv_request_id` for the prefill,
//! `remote_prefiller.{kv_request_id, remote_host, remote_port}` for the decode. A prefiller keeps blocks that nobody asks for during
//! `unbound_store_timeout_s` (60 s); a rank listens on the tier's port (7777) plus its number. A decoder that cannot fetch
//! computes.
use std::time::Duration;

use serde_json::json;

use crate::disagg::connector::{BadReply, Connector, Handover};

/// See the file.
pub(super) struct Offloading;

impl Connector for Offloading {
    fn prefill_params(&self, transfer: &str) -> Option<String> {
        Some(json!({"remote_decoder": {"kv_request_id": transfer}}).to_string())
    }

    fn decode_params(&self, handover: &Handover<'_>) -> Result<Option<Vec<u8>>, BadReply> {
        let params = json!({"remote_prefiller": {
            "kv_request_id": handover.transfer,
            "remote_host": handover.prefiller.ip().to_string(),
            "remote_port": handover.port,
        }});
        Ok(Some(params.to_string().into_bytes()))
    }

    fn lease(&self) -> Duration {
        Duration::from_mins(1)
    }

    fn port(&self) -> Option<u16> {
        Some(7777)
    }
}
