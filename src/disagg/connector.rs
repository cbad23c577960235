//! What differs between the ways pods hand over KV blocks: one file per way in `connectors`.
use std::net::SocketAddr;

use thiserror::Error;

/// What is known when the decode leg is made.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    /// `kv_transfer_params` of the prefill's answer, as it came.
    pub params: &'a [u8],
    /// Where the prefill pod listens.
    pub prefiller: SocketAddr,
    /// Put the prefill pod's own address in place of the host it tells.
    pub rewrite_host: bool,
    /// Token ids of the prompt as the prefiller told them, to be handed on; `None`: not.
    pub prompt_token_ids: Option<&'a [u8]>,
}

/// Why a prefill's answer cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadReply {
    /// It hands over nothing: the pod has no connector, or the request was aborted.
    #[error("the prefill pod handed over no blocks; is it started with a --kv-transfer-config?")]
    Nothing,
    /// A member is missing, null or of another type: a decode pod may die of it.
    #[error("the prefill pod's kv_transfer_params lack `{0}`")]
    Lacks(&'static str),
}

/// One way of handing over, in which the decode leg needs the prefill's answer.
pub trait Connector: Send + Sync {
    /// `kv_transfer_params` of the prefill leg, as JSON.
    fn prefill_params(&self) -> String;

    /// `kv_transfer_params` of the decode leg, as JSON, if the answer has all that a decode pod relies on.
    fn decode_params(&self, handover: &Handover<'_>) -> Result<Vec<u8>, BadReply>;
}
