//! Handing KV blocks from one simulated pod to another, after vLLM 0.32's connectors, `NixlConnector` before all.
//!
//! A prefill pod keeps the blocks of an answered `do_remote_decode` request under a lease and tells where they are. A decode
//! pod asked with `do_remote_prefill` makes first contact, sends heartbeats, reads, and lets go. Reading blocks that were let go
//! and overwritten is no error: the answer has wrong text, and the decoder's prefix cache is poisoned under the right hashes.
//! The side channel of the real thing is ZMQ and RDMA; here it is HTTP on the pod's own port, below `/sim/kv/`.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::connection::Exchange;
use super::host;
use super::log::Ended;
use super::ranks::{Blocks, Rank, Run};
use super::transfer::{Asks, Peer, SimConnector};
use super::wire::Reply;
use crate::base::Mono;

/// Paths of the side channel.
pub(super) const SIDE_CHANNEL: &str = "/sim/kv/";
/// Leases that ended which are remembered, so that who comes late is counted.
const ENDED_MAX: usize = 4_096;
/// Time for one call of the side channel, and how long an unknown engine is waited for.
const CALL_WITHIN: Duration = Duration::from_secs(5);

/// Constants of handing over.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Handover {
    /// How long blocks are kept for a decoder that does not say anything (`kv_lease_duration`).
    pub lease: Duration,
    /// First contact of a decoder with a prefiller.
    pub contact: Duration,
    /// Tokens moved per second; infinite: at once.
    pub tokens_per_s: f64,
    /// What a decoder does that cannot read (`kv_load_failure_policy`): recompute, or fail.
    pub recomputes: bool,
    /// How they are handed over.
    pub connector: SimConnector,
}

/// What the simulated pods of this process have put into their common storage.
static STORED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

impl Default for Handover {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(30),
            contact: Duration::ZERO,
            tokens_per_s: f64::INFINITY,
            recomputes: false,
            connector: SimConnector::default(),
        }
    }
}

struct Held {
    rank: Arc<Rank>,
    job: u64,
    blocks: Blocks,
    until: Mono,
    is_over: bool,
}

/// What a prefill pod keeps for decoders, and a decode pod's contacts.
#[derive(Default)]
pub(super) struct Leases {
    held: Mutex<HashMap<String, Held>>,
    contacts: Mutex<HashSet<String>>,
    expired: AtomicU64,
    late: AtomicU64,
}

impl Leases {
    /// Ends what ran out.
    pub(super) fn settle(&self, now: Mono) {
        let mut held = self.held.lock();
        for lease in held.values_mut().filter(|lease| !lease.is_over && lease.until <= now) {
            lease.rank.release(lease.job);
            lease.is_over = true;
            self.expired.fetch_add(1, Relaxed);
        }
        if held.len() > ENDED_MAX {
            held.retain(|_, lease| !lease.is_over);
        }
    }

    /// Leases that ran out, and decoders that came too late.
    pub(super) fn counts(&self) -> (u64, u64) {
        self.settle(host::now());
        (self.expired.load(Relaxed), self.late.load(Relaxed))
    }

    /// Leases that are out.
    pub(super) fn open(&self) -> usize {
        self.settle(host::now());
        self.held.lock().values().filter(|lease| !lease.is_over).count()
    }

    /// Answers a call of the side channel, `ENGINE/REQUEST/VERB`.
    pub(super) fn called(&self, engine: &str, path: &str, config: &Handover) -> Option<Reply> {
        let now = host::now();
        self.settle(now);
        let mut parts = path.strip_prefix(SIDE_CHANNEL)?.splitn(3, '/');
        let (Some(asked), Some(request), Some(verb)) = (parts.next(), parts.next(), parts.next()) else { return None };
        if asked != engine && asked != "-" {
            return None;
        }
        let mut held = self.held.lock();
        let found = held.get_mut(request)?;
        match verb {
            "beat" if !found.is_over => found.until = found.until.max(now.after(config.lease * 2 / 3)),
            "beat" => {}
            "read" if found.is_over && !config.connector.reads_what_is_over() => return None,
            "read" | "drop" => {
                let is_intact = found.rank.is_intact(&found.blocks);
                self.late.fetch_add(u64::from(found.is_over), Relaxed);
                if !found.is_over {
                    found.rank.release(found.job);
                }
                held.remove(request);
                return Some(Reply::json(json!({ "intact": is_intact }).to_string()));
            }
            _ => return None,
        }
        Some(Reply::json("{}".to_owned()))
    }
}

/// Puts the blocks of a finished run under a lease, by this name, and tells where they are.
pub(super) fn keep(x: &Exchange<'_>, run: &mut Run, name: &str, tokens: u64) -> Value {
    let (fault, connector) = (x.plan.kv, x.pod.config.handover.connector);
    if fault.gives_nothing {
        return Value::Null;
    }
    let (lease, now) = (x.pod.config.handover.lease, host::now());
    let until = if fault.expires { now } else { now.after(lease) };
    let Some((rank, job, blocks)) = run.kept() else { return Value::Null };
    let ids: Vec<u32> = blocks.iter().map(|block| block.0).collect();
    if connector == SimConnector::SharedStorage {
        rank.release(job);
        STORED.lock().insert(name.to_owned());
        return Value::Null;
    }
    let held = Held { rank, job, blocks, until, is_over: false };
    x.life.leases.held.lock().insert(name.to_owned(), held);
    if !connector.tells() {
        return Value::Null;
    }
    let mut params = json!({
        "do_remote_prefill": true, "do_remote_decode": false, "remote_block_ids": [ids], "remote_engine_id": x.life.engine,
        "remote_request_id": x.id, "remote_host": x.pod.addr.ip().to_string(), "remote_port": x.pod.addr.port(),
        "tp_size": 1, "dcp_size": 1, "pp_size": 1, "remote_num_tokens": tokens, "remote_blocks_expiry_time": null,
        "transfer_mode": if connector == SimConnector::NixlPush { "push" } else { "pull" }, "remote_prefill_cached_tokens": run.cached(),
    });
    if fault.lacks_port
        && let Some(params) = params.as_object_mut()
    {
        params.remove("remote_port");
    }
    params
}

/// What a decode pod has after loading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loaded {
    /// The prompt's KV, right or wrong.
    Given {
        /// The blocks had been overwritten.
        is_wrong: bool,
    },
    /// Nothing; the request failed.
    Failed,
    /// Nothing; the prompt is computed here.
    Recomputes,
}

/// Loads the blocks that are elsewhere, as the decode pod of the request.
pub(super) async fn load(x: &mut Exchange<'_>, peer: &Peer, tokens: u64) -> Result<Loaded, Ended> {
    let fault = x.plan.kv;
    if let Some(stall) = fault.stalls {
        x.wire.wait(stall).await?;
    }
    let config = x.pod.config.handover;
    let is_soft = matches!(config.connector, SimConnector::Offloading | SimConnector::SharedStorage);
    let failed = if config.recomputes || is_soft { Loaded::Recomputes } else { Loaded::Failed };
    if config.connector == SimConnector::SharedStorage {
        let is_there = STORED.lock().contains(&peer.request);
        return Ok(if is_there && !fault.fails { Loaded::Given { is_wrong: fault.garbles } } else { failed });
    }
    if fault.fails {
        return Ok(failed);
    }
    if x.life.leases.contacts.lock().insert(peer.engine.clone()) {
        x.wire.wait(config.contact).await?;
    }
    let mut left = Duration::from_secs_f64((tokens as f64 / config.tokens_per_s).min(3_600.0));
    loop {
        if x.wire.until(peer.call("beat")).await?.is_err() {
            x.life.leases.contacts.lock().remove(&peer.engine);
            return Ok(failed);
        }
        let part = left.min(config.lease / 6);
        left -= part;
        if part > Duration::ZERO {
            x.wire.wait(part).await?;
        }
        if left.is_zero() {
            break;
        }
    }
    match x.wire.until(peer.call("read")).await? {
        Ok(told) => Ok(Loaded::Given { is_wrong: fault.garbles || told.get("intact") == Some(&json!(false)) }),
        Err(_) => Ok(failed),
    }
}

/// The decode pod refuses the request: it tells the prefiller to let go.
pub(super) async fn reject(x: &mut Exchange<'_>, asks: &Asks) -> Result<(), Ended> {
    if let Asks::Load(peer) = asks
        && x.pod.config.handover.connector.tells()
    {
        // A prefiller that is gone keeps nothing either.
        drop(x.wire.until(peer.call("drop")).await?);
    }
    Ok(())
}

/// Cached tokens as a decode pod tells them: the prefiller's.
pub(super) fn told_cached(body: &Value) -> Option<u64> {
    body.get("kv_transfer_params")?.get("remote_prefill_cached_tokens")?.as_u64()
}

impl Peer {
    async fn call(&self, verb: &str) -> io::Result<Value> {
        let called = async {
            let mut stream = TcpStream::connect(self.addr).await?;
            let request = format!(
                "GET {SIDE_CHANNEL}{}/{}/{verb} HTTP/1.1\r\nhost: p\r\nconnection: close\r\n\r\n",
                self.engine, self.request
            );
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            let text = String::from_utf8_lossy(&answer);
            let body = text.split_once("\r\n\r\n").filter(|_| text.starts_with("HTTP/1.1 200"));
            let body = body.and_then(|(_, body)| serde_json::from_str(body).ok());
            body.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        tokio::time::timeout(CALL_WITHIN, called).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}
