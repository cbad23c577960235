//! `NixlPushConnector` of vLLM (`transfer_mode: "push"`), experimental there: the prefiller writes into the decoder's memory once the
//! decoder has told it where.
//!
//! The prefill's answer is that of NIXL pull, and goes to the decoder as it came: the decoder reads the engine's name and its
//! side channel from it and not the blocks. vLLM 0.32 pairs both legs by their `X-Request-Id` less the suffix it adds itself.
//! Prefill first was run against it, and works; a decoder that is there long before the prefill was seen to hang both.
use std::time::Duration;

use super::nixl::Nixl;
use crate::disagg::connector::{BadReply, Connector, Handover};

/// See the file.
pub(super) struct NixlPush;

impl Connector for NixlPush {
    fn prefill_params(&self, transfer: &str) -> Option<String> {
        Nixl.prefill_params(transfer)
    }

    fn decode_params(&self, handover: &Handover<'_>) -> Result<Option<Vec<u8>>, BadReply> {
        Nixl.decode_params(handover)
    }

    fn lease(&self) -> Duration {
        Nixl.lease()
    }

    fn counts_expired(&self) -> bool {
        true
    }

    fn is_paired_by_request_id(&self) -> bool {
        true
    }
}
