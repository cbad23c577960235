//! What a body asks of a simulated pod's KV connector: the keys that vLLM 0.32's own connectors read, and what becomes of a body
//! that lacks some.
use std::net::SocketAddr;

use serde_json::Value;

use super::config::SimRole;

/// Which connector pods of a role other than `Both` have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SimConnector {
    /// `NixlConnector`: the prefill's answer tells where blocks are; the decoder reads them.
    #[default]
    Nixl,
    /// `NixlPushConnector`: both legs are paired by their `X-Request-Id`.
    NixlPush,
    /// `MooncakeConnector`: paired by `transfer_id`; engines are told by `GET /query`.
    Mooncake,
    /// `OffloadingConnector` with its peer-to-peer tier: paired by `kv_request_id`.
    Offloading,
    /// Storage that all simulated pods of the process share.
    SharedStorage,
}

/// Where blocks are to be fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) addr: SocketAddr,
    /// `-`: whichever it is.
    pub(super) engine: String,
    pub(super) request: String,
}

/// What a body asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Asks {
    /// Nothing, or nothing that is heeded.
    Nothing,
    /// To keep the blocks under this name.
    Keep(String),
    /// To fetch them.
    Load(Peer),
    /// What the engine's core dies of.
    Death,
}

impl SimConnector {
    /// What a body asks a pod of a role; `id` is the request's own.
    pub(super) fn asks(self, role: SimRole, id: &str, body: &Value) -> Asks {
        let params = body.get("kv_transfer_params").unwrap_or(&Value::Null);
        let is_set = |name: &str| params.get(name).and_then(Value::as_bool) == Some(true);
        match self {
            _ if role == SimRole::Both => Asks::Nothing,
            Self::Nixl | Self::NixlPush if is_set("do_remote_prefill") => self.nixl(id, params),
            Self::Nixl | Self::NixlPush if is_set("do_remote_decode") => Asks::Keep(id.to_owned()),
            Self::Mooncake => mooncake(role, params),
            Self::Offloading => offloading(params),
            Self::Nixl | Self::NixlPush => Asks::Nothing,
            // Everything is stored, and everything is looked for.
            Self::SharedStorage if role == SimRole::Prefill => Asks::Keep(content(body)),
            Self::SharedStorage => {
                Asks::Load(Peer { addr: SocketAddr::from(([0; 4], 0)), engine: "-".to_owned(), request: content(body) })
            }
        }
    }

    /// Whether the answer of a prefill tells where its blocks are.
    pub(super) const fn tells(self) -> bool {
        matches!(self, Self::Nixl | Self::NixlPush)
    }

    /// Whether blocks of a lease that ran out are read all the same. The others refuse.
    pub(super) const fn reads_what_is_over(self) -> bool {
        matches!(self, Self::Nixl)
    }

    /// Keys whose lack is a `KeyError` or an assertion in the scheduler.
    fn nixl(self, id: &str, params: &Value) -> Asks {
        let is_there = |name: &&str| params.get(*name).is_some_and(|value| !value.is_null());
        let mut needed = ["remote_engine_id", "remote_host", "remote_port", "tp_size"].iter();
        let mut pulled = ["remote_block_ids", "remote_request_id"].iter();
        if !needed.all(is_there) || self == Self::Nixl && !pulled.all(is_there) {
            return Asks::Death;
        }
        let request = if self == Self::NixlPush { Some(id.to_owned()) } else { text(params, "remote_request_id") };
        peer(params, text(params, "remote_engine_id"), request).map_or(Asks::Nothing, Asks::Load)
    }
}

fn mooncake(role: SimRole, params: &Value) -> Asks {
    let is_set = |name: &str| params.get(name).and_then(Value::as_bool) == Some(true);
    let transfer = text(params, "transfer_id");
    match (is_set("do_remote_prefill"), is_set("do_remote_decode"), role) {
        // `assert not self.is_kv_producer`, `assert not self.is_kv_consumer`.
        (true, _, SimRole::Prefill) | (false, true, SimRole::Decode) => Asks::Death,
        (true, ..) => {
            let addr = text(params, "remote_bootstrap_addr");
            let addr = addr.as_deref().and_then(|addr| addr.strip_prefix("http://")?.parse().ok());
            let peer = addr.zip(text(params, "remote_engine_id")).zip(transfer);
            peer.map_or(Asks::Nothing, |((addr, engine), request)| Asks::Load(Peer { addr, engine, request }))
        }
        (_, true, _) => transfer.map_or(Asks::Nothing, Asks::Keep),
        _ => Asks::Nothing,
    }
}

fn offloading(params: &Value) -> Asks {
    if let Some(role) = params.get("remote_prefiller") {
        let found = peer(role, Some("-".to_owned()), text(role, "kv_request_id"));
        return found.map_or(Asks::Nothing, Asks::Load);
    }
    let kept = params.get("remote_decoder").and_then(|role| text(role, "kv_request_id"));
    kept.map_or(Asks::Nothing, Asks::Keep)
}

fn peer(params: &Value, engine: Option<String>, request: Option<String>) -> Option<Peer> {
    let port = u16::try_from(params.get("remote_port")?.as_u64()?).ok()?;
    let host: std::net::IpAddr = text(params, "remote_host")?.parse().ok()?;
    Some(Peer { addr: (host, port).into(), engine: engine?, request: request? })
}

fn text(params: &Value, name: &str) -> Option<String> {
    params.get(name).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// Stands for the hashes of a prompt's blocks.
fn content(body: &Value) -> String {
    let parts =
        ["model", "messages", "prompt", "input", "system", "token_ids", "cache_salt"].map(|name| body.get(name));
    let parts: Vec<String> = parts.into_iter().flatten().map(Value::to_string).collect();
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(parts.join("\n").as_bytes()))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(connector: SimConnector, role: SimRole, params: &Value, expected: &str) {
        let body = json!({ "kv_transfer_params": params });
        let asks = match connector.asks(role, "me", &body) {
            Asks::Nothing => "nothing".to_owned(),
            Asks::Keep(name) => format!("keep {name}"),
            Asks::Load(Peer { addr, engine, request }) => format!("load {addr} {engine} {request}"),
            Asks::Death => "death".to_owned(),
        };
        assert_eq!(asks, expected, "{connector:?} {role:?} {body}");
    }

    #[test]
    fn what_is_missing_is_met_as_the_real_connectors_meet_it() {
        use SimConnector::{Mooncake, Nixl, NixlPush, Offloading};
        use SimRole::{Both, Decode, Prefill};
        let nixl = json!({"do_remote_prefill":true,"remote_engine_id":"e","remote_host":"127.0.0.1","remote_port":9,"tp_size":1});
        check(NixlPush, Decode, &nixl, "load 127.0.0.1:9 e me");
        check(Nixl, Decode, &nixl, "death");
        check(NixlPush, Decode, &json!({"do_remote_prefill":true}), "death");
        check(Nixl, Both, &json!({"do_remote_prefill":true}), "nothing");
        check(Nixl, Prefill, &json!({"do_remote_decode":true}), "keep me");
        let fetch = json!({"do_remote_prefill":true,"transfer_id":"x","remote_engine_id":"e","remote_bootstrap_addr":"http://127.0.0.1:9"});
        check(Mooncake, Decode, &fetch, "load 127.0.0.1:9 e x");
        check(Mooncake, Prefill, &fetch, "death");
        check(Mooncake, Decode, &json!({"do_remote_prefill":true,"transfer_id":"x"}), "nothing");
        check(Mooncake, Prefill, &json!({"do_remote_decode":true}), "nothing");
        check(Mooncake, Prefill, &json!({"do_remote_decode":true,"transfer_id":"x"}), "keep x");
        check(Offloading, Prefill, &json!({"remote_decoder":{"kv_request_id":"x"}}), "keep x");
        check(
            Offloading,
            Decode,
            &json!({"remote_prefiller":{"kv_request_id":"x","remote_host":"127.0.0.1"}}),
            "nothing",
        );
        let fetch = json!({"remote_prefiller":{"kv_request_id":"x","remote_host":"127.0.0.1","remote_port":9}});
        check(Offloading, Decode, &fetch, "load 127.0.0.1:9 - x");
    }
}
