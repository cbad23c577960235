//! What differs between the ways pods hand over KV blocks: one file per way in `connectors`.
//!
//! The legs always go one after the other: the prefill must have answered before the decode is sent. Ways that allow both at
//! once (Mooncake, NIXL push) work so too, and a decoder that waits for a prefill that failed is spared.
use std::net::SocketAddr;
use std::time::Duration;

use thiserror::Error;

/// What is known when the decode leg is made.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    /// `kv_transfer_params` of the prefill's answer, as it came; empty if it has none.
    pub params: &'a [u8],
    /// Name of this handover, as the prefill was told.
    pub transfer: &'a str,
    /// Where the prefill pod listens.
    pub prefiller: SocketAddr,
    /// Port of its side service, for ways in which the decode leg names it; 0 for others.
    pub port: u16,
    /// Name of its engine, for ways in which it is asked for it.
    pub engine: Option<&'a str>,
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
    /// Its side service does not answer, or not with an engine of this rank.
    #[error(
        "the prefill pod's side service names no engine; is its port right (`disaggregation.kv_port`, label `kv-port`)?"
    )]
    NoEngine,
}

/// One way of handing over.
pub trait Connector: Send + Sync {
    /// `kv_transfer_params` of the prefill leg, as JSON; `transfer` is a name no other handover has. `None`: there are none.
    fn prefill_params(&self, transfer: &str) -> Option<String>;

    /// `kv_transfer_params` of the decode leg, as JSON, if there is all that a decode pod relies on. `None`: there are none.
    fn decode_params(&self, handover: &Handover<'_>) -> Result<Option<Vec<u8>>, BadReply>;

    /// How long a prefill pod keeps blocks for a decoder, unless it was started otherwise.
    fn lease(&self) -> Duration;

    /// Port of the side service that the decode leg names, unless the pod was started otherwise; `None`: it names none.
    fn port(&self) -> Option<u16> {
        None
    }

    /// Whether pods pair both legs by their `X-Request-Id`.
    fn is_paired_by_request_id(&self) -> bool {
        false
    }

    /// Whether a decoder may read blocks that were let go, and the pod counts leases that ran out
    /// (`vllm:nixl_num_kv_expired_reqs_total`). With the other ways a decoder that comes too late is refused.
    fn counts_expired(&self) -> bool {
        false
    }

    /// Whether a prefill hands over only if it ended because of its length (`finish_reason`), and not with a token that ends
    /// answers.
    fn needs_capped(&self) -> bool {
        false
    }

    /// Path on the side service at which a pod tells the name of its engine; `None`: nobody has to know it.
    fn engine_path(&self) -> Option<&'static str> {
        None
    }

    /// The name of a rank's engine in what was found there.
    fn engine(&self, _page: &[u8], _rank: u32) -> Option<String> {
        None
    }
}
