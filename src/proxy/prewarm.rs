//! First contact of a prefill pod and a decode pod, before a client waits for it: it takes seconds (13 s were measured with UCX over
//! TCP), longer than some leases last. Each new pair is sent a request of a few tokens.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::gate::Gate;
use super::prefill::rest;
use super::side::decode_params;
use super::upstream::{PodConn, PodFault};
use crate::base::{PodId, Tokens};
use crate::disagg::{Decider, connector, decode_body};
use crate::pods::{Fleet, Pod, Role};
use crate::runtime::{now, supervise};

/// How often new pairs are looked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// First contacts under way at once.
const AT_ONCE: usize = 4;
/// Time for one, and until it is tried again after a failure.
const WITHIN: Duration = Duration::from_mins(1);
const AGAIN_AFTER: Duration = Duration::from_secs(10);
const CONNECT_WITHIN: Duration = Duration::from_secs(2);
const REPLY_BYTES_MAX: usize = 1 << 20;
/// Length of the prompt: more than a cache block of most configurations.
const PROMPT_TOKENS: u32 = 40;

/// Makes first contacts for as long as it runs.
pub async fn run(gate: Arc<Gate>) {
    let under_way: Arc<Mutex<HashSet<(PodId, PodId)>>> = Arc::default();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let settings = gate.rules().disagg.clone();
        let fleet = gate.table.fleet();
        if !settings.prewarm || settings.decider == Decider::Never || !settings.can_split(&fleet) {
            continue;
        }
        for (prefiller, decoder, model) in unmet(&gate, &fleet, settings.pull_from_decoders) {
            let pair = (prefiller.id, decoder.id);
            {
                let mut under_way = under_way.lock();
                if under_way.len() >= AT_ONCE {
                    break;
                }
                if !under_way.insert(pair) {
                    continue;
                }
            }
            let (gate, under_way) = (Arc::clone(&gate), Arc::clone(&under_way));
            supervise("first contact", async move {
                let met = tokio::time::timeout(WITHIN, meet(&gate, &prefiller, &decoder, &model)).await;
                if let Ok(Some(took)) = met {
                    gate.pairs.handed_over(prefiller.id, decoder.id, Tokens(PROMPT_TOKENS.into()), None);
                    tracing::info!(prefill = %prefiller.id, decode = %decoder.id, took_ms = took.as_millis() as u64, "first contact of two pods made");
                } else {
                    gate.metrics.degradations.inc("first_contact_failed");
                    gate.pairs.failed(prefiller.id, decoder.id, now().after(AGAIN_AFTER));
                    tracing::warn!(prefill = %prefiller.id, decode = %decoder.id, "two pods could not hand over KV blocks");
                }
                under_way.lock().remove(&pair);
            })
            .detach();
        }
    }
}

/// Pairs that serve a model in common and never handed over.
fn unmet(gate: &Gate, fleet: &Fleet, pulls: bool) -> Vec<(Arc<Pod>, Arc<Pod>, Arc<str>)> {
    let mut found = Vec::new();
    let of = |role: Role| fleet.pods.iter().filter(move |pod| pod.spec.role == role);
    let decoders = || of(Role::Decode).chain(of(Role::Both));
    for prefiller in of(Role::Prefill).chain(decoders().filter(|_| pulls)) {
        for decoder in decoders().filter(|decoder| decoder.id != prefiller.id) {
            let wire = gate.pairs.wire(prefiller.id, decoder.id, now());
            if wire.is_wired || wire.is_suspect {
                continue;
            }
            let (one, other) = (prefiller.facts.load(), decoder.facts.load());
            let mut bases = one.served.iter().flatten().filter(|served| served.parent.is_none());
            let has = |name: &str| other.served.iter().flatten().any(|served| &*served.name == name);
            if let Some(common) = bases.find(|served| has(&served.name)) {
                found.push((Arc::clone(prefiller), Arc::clone(decoder), Arc::clone(&common.name)));
            }
        }
    }
    found
}

/// Sends the two legs; how long the second took, if both went well.
async fn meet(gate: &Gate, prefiller: &Pod, decoder: &Pod, model: &str) -> Option<Duration> {
    let settings = gate.rules().disagg.clone();
    let connector = connector(settings.connector);
    let ids: Vec<String> = (1..=PROMPT_TOKENS).map(|id| id.to_string()).collect();
    let body = format!(
        r#"{{"model":{},"prompt":[{}],"max_tokens":1,"temperature":0,"cache_salt":"first-contact-{:x}"}}"#,
        serde_json::Value::from(model),
        ids.join(","),
        // First contact may take longer than the lease lasts: what the decoder then holds must never be found.
        gate.draw()
    );
    let body = Bytes::from(body);
    // A decoder that is not there must not cost a lease.
    drop(connect(gate, decoder).await.ok()?);
    let transfer = format!("first-contact-{:x}", gate.draw());
    let params = connector.prefill_params(&transfer);
    let body_with = |params: Option<&[u8]>| decode_body(&body, params);
    let reply = post(gate, prefiller, &transfer, &body_with(params.as_deref().map(str::as_bytes))).await.ok()??;
    let params = decode_params(gate, &settings, prefiller, &transfer, &reply).await;
    let params = params.map_err(|error| tracing::warn!(pod = %prefiller.id, %error)).ok()?;
    let began = now();
    post(gate, decoder, &transfer, &body_with(params.as_deref())).await.ok()??;
    Some(now().since(began))
}

async fn connect(gate: &Gate, pod: &Pod) -> Result<PodConn, PodFault> {
    let dial = gate.pod_tls.dial(pod.spec.tls.as_ref()).map_err(PodFault::Connect)?;
    PodConn::connect(&gate.pod_tls, pod.spec.addr, dial, CONNECT_WITHIN).await
}

/// The body of a 200; `None` for another status.
async fn post(gate: &Gate, pod: &Pod, request_id: &str, body: &[u8]) -> Result<Option<Bytes>, PodFault> {
    let mut conn = connect(gate, pod).await?;
    let key = gate.credential().map(|key| format!("authorization: Bearer {}\r\n", key.expose())).unwrap_or_default();
    let rank = pod.spec.rank.map(|rank| format!("x-data-parallel-rank: {rank}\r\n")).unwrap_or_default();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: \
         close\r\nx-request-id: {request_id}\r\n{key}{rank}\r\n",
        pod.spec.authority,
        body.len()
    );
    conn.send(head.as_bytes(), body).await?;
    let head = conn.head(false).await?;
    let reply = rest(&mut conn, REPLY_BYTES_MAX).await?;
    Ok(head.status.is_success().then_some(reply))
}
