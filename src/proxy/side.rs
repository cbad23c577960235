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

/// Time for one page.
const WITHIN: Duration = Duration::from_secs(2);
/// Largest page that is read.
const PAGE_BYTES_MAX: usize = 8 << 20;

/// Leases that have run out on the endpoint of a pod, asked now.
pub(super) async fn expired_now(pod: &Pod) -> Option<u64> {
    let page = page(pod.spec.addr, &pod.spec.authority, "/metrics").await?;
    kv_expired(&page, pod.spec.rank)
}

/// Name of a prefill pod's engine, where the decode leg has to name it and nobody has told it yet.
async fn engine_of(gate: &Gate, settings: &Settings, pod: &Pod) -> Option<Arc<str>> {
    let connector = connector(settings.connector);
    let path = connector.engine_path()?;
    if let Some(known) = gate.pairs.engine(pod.id) {
        return Some(known);
    }
    let addr = SocketAddr::new(pod.spec.addr.ip(), settings.port(&pod.spec));
    let page = page(addr, &addr.to_string(), path).await?;
    let name = connector.engine(&page, pod.spec.rank.unwrap_or(0))?;
    gate.pairs.told_engine(pod.id, &name);
    Some(name.into())
}

/// `kv_transfer_params` of the decode leg behind a prefill whose answer was `reply`.
pub(super) async fn decode_params(
    gate: &Gate,
    settings: &Settings,
    prefiller: &Pod,
    transfer: &str,
    reply: &[u8],
) -> Result<Option<Vec<u8>>, BadReply> {
    let engine = engine_of(gate, settings, prefiller).await;
    connector(settings.connector).decode_params(&Handover {
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

async fn page(addr: SocketAddr, authority: &str, path: &str) -> Option<Bytes> {
    let asked = async {
        let mut conn = PodConn::connect(addr, WITHIN).await.ok()?;
        let head = format!("GET {path} HTTP/1.1\r\nhost: {authority}\r\naccept: */*\r\nconnection: close\r\n\r\n");
        conn.send(head.as_bytes(), &[]).await.ok()?;
        conn.head(false).await.ok().filter(|head| head.status.is_success())?;
        rest(&mut conn, PAGE_BYTES_MAX).await.ok()
    };
    timeout(WITHIN, asked).await.ok().flatten()
}
