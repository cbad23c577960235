//! What prefill pods say beside their answers: leases that ran out, and the names of their engines.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;

use super::gate::Gate;
use super::prefill::rest;
use super::upstream::PodConn;
use crate::api::json;
use crate::disagg::{BadReply, Handover, Settings, connector, kv_expired};
use crate::pods::Pod;
use crate::runtime::now;
use crate::tls::Dial;

/// Time for one page.
const WITHIN: Duration = Duration::from_secs(2);
/// A pod that does not tell the name of its engine is asked again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(10);
/// Largest page that is read.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Leases that have run out on the endpoint of a pod, asked now.
pub(super) async fn expired_now(gate: &Gate, pod: &Pod) -> Option<u64> {
    let dial = gate.pod_tls.dial(pod.spec.tls.as_ref()).ok()?;
    let page = page(gate, (pod.spec.addr, dial), &pod.spec.authority, "/metrics").await?;
    kv_expired(&page, pod.spec.rank)
}

/// Name of a prefill pod's engine, where the decode leg has to name it and nobody has told it yet.
async fn engine_of(gate: &Gate, settings: &Settings, pod: &Pod) -> Option<Arc<str>> {
    let connector = connector(settings.connector);
    let path = connector.engine_path()?;
    if let Some(known) = gate.pairs.engine(pod.id, now()) {
        return known;
    }
    let addr = SocketAddr::new(pod.spec.addr.ip(), settings.port(&pod.spec));
    // A server of its own beside the pod, that speaks no TLS.
    let page = page(gate, (addr, None), &addr.to_string(), path).await;
    let name = page.and_then(|page| connector.engine(&page, pod.spec.rank.unwrap_or(0)));
    gate.pairs.told_engine(pod.id, name.as_deref(), now().after(AGAIN_AFTER))
}

/// Whether a prefill on this pod could be used: its engine has a name, where one is needed. Asked before the pod computes and keeps
/// blocks for nothing.
pub(super) async fn can_hand_over(gate: &Gate, settings: &Settings, pod: &Pod) -> bool {
    connector(settings.connector).engine_path().is_none() || engine_of(gate, settings, pod).await.is_some()
}

/// Whether the answer of a prefill (chat or completion) ended because of its length.
fn is_capped(reply: &[u8]) -> bool {
    let choice = json::member(reply, "choices").and_then(|choices| json::elements(choices).next());
    choice.and_then(|choice| json::member(choice, "finish_reason")) == Some(b"\"length\"")
}

/// `kv_transfer_params` of the decode leg behind a prefill whose answer was `reply`.
pub(super) async fn decode_params(
    gate: &Gate,
    settings: &Settings,
    prefiller: &Pod,
    transfer: &str,
    reply: &[u8],
) -> Result<Option<Vec<u8>>, BadReply> {
    let connector = connector(settings.connector);
    if connector.needs_capped() && !is_capped(reply) {
        return Err(BadReply::Nothing);
    }
    let engine = engine_of(gate, settings, prefiller).await;
    connector.decode_params(&Handover {
        params: json::member(reply, "kv_transfer_params").unwrap_or_default(),
        transfer,
        prefiller: prefiller.spec.addr,
        port: settings.port(&prefiller.spec),
        engine: engine.as_deref(),
        rewrite_host: settings.rewrite_host,
        prompt_token_ids: settings.pass_token_ids.then(|| token_ids(reply)).flatten(),
    })
}

/// Token ids of the prompt: at the top of a chat's answer, in the choice of a completion's.
fn token_ids(reply: &[u8]) -> Option<&[u8]> {
    let is_list = |ids: &&[u8]| ids.starts_with(b"[");
    let choice = || json::elements(json::member(reply, "choices")?).next();
    let own = json::member(reply, "prompt_token_ids").filter(is_list);
    own.or_else(|| json::member(choice()?, "prompt_token_ids").filter(is_list))
}

async fn page(gate: &Gate, (addr, dial): (SocketAddr, Option<Dial>), authority: &str, path: &str) -> Option<Bytes> {
    let asked = async {
        let mut conn = PodConn::connect(&gate.pod_tls, addr, dial, WITHIN).await.ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\naccept: */*\r\nconnection: close\r\n\r\n");
        conn.send(head.as_bytes(), &[]).await.ok()?;
        conn.head(false).await.ok().filter(|head| head.status.is_success())?;
        rest(&mut conn, PAGE_BYTES_MAX).await.ok()
    };
    timeout(WITHIN, asked).await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefill_that_ended_with_a_stop_hands_nothing_over() {
        assert!(is_capped(br#"{"choices":[{"index":0,"finish_reason":"length"}],"usage":{}}"#));
        for ended in [&br#"{"choices":[{"finish_reason":"stop"}]}"#[..], br#"{"choices":[]}"#, b"{}", b""] {
            assert!(!is_capped(ended));
        }
    }
}
