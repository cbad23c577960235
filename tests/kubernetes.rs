//! Pods found in Kubernetes, against an API server that speaks the real protocol: they come, are not ready, go; the server goes away,
//! forgets versions and changes tokens; requests notice nothing of it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
#[path = "kit/cluster.rs"]
mod cluster;
mod kit;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use cluster::Cluster;
use kit::wire::{begin, has, rest};
use kit::{Gate, chat, post, request};
use serde_json::{Value, json};
use tidegate::pods::Shut;
use tidegate::sim::http::{Fleet, SimConfig, SimPod};

const CHAT: &str = "/v1/chat/completions";
const PODS: &str = "/api/v1/namespaces/ai/pods";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/ai/endpointslices";
const POOLS: &str = "/apis/inference.networking.k8s.io/v1/namespaces/ai/inferencepools";

/// A folder of a test.
fn folder() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("tidegate-cluster-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
    let dir = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

fn pod(addr: SocketAddr, is_ready: bool) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "namespace": "ai", "labels": { "app": "vllm" }, "annotations": { "tidegate.io/ports": addr.port().to_string() } },
        "spec": { "containers": [{ "name": "vllm" }] },
        "status": {
            "phase": "Running",
            "podIP": addr.ip().to_string(),
            "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
        },
    })
}

fn terminating(addr: SocketAddr) -> Value {
    let mut pod = pod(addr, true);
    pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    pod
}

fn slice(addrs: &[SocketAddr]) -> Value {
    let endpoint = |addr: &SocketAddr| json!({ "addresses": [addr.ip().to_string()], "conditions": { "ready": true } });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": { "namespace": "ai", "labels": { "kubernetes.io/service-name": "vllm" } },
        "addressType": "IPv4",
        "ports": [{ "name": "http", "port": addrs[0].port() }],
        "endpoints": addrs.iter().map(endpoint).collect::<Vec<_>>(),
    })
}

/// The gate's configuration for these sources (a YAML list).
fn following(cluster: &Cluster, sources: &str) -> String {
    format!("pods: {{kubernetes: {{kubeconfig: '{}', sources: {sources}}}}}", cluster.kubeconfig().display())
}

/// Ports of the fleet with why each is shut.
fn fleet(gate: &Gate) -> Vec<(u16, Option<Shut>)> {
    let fleet = gate.app().gate().table.fleet();
    let mut all: Vec<_> = fleet.pods.iter().map(|pod| (pod.spec.addr.port(), pod.load.shuts.first())).collect();
    all.sort_unstable();
    all
}

async fn fleet_becomes(gate: &Gate, expected: &[(SocketAddr, Option<Shut>)]) {
    let mut expected: Vec<_> = expected.iter().map(|(addr, shut)| (addr.port(), *shut)).collect();
    expected.sort_unstable();
    gate.eventually(&format!("fleet {expected:?}"), || fleet(gate) == expected).await;
}

async fn is_served(gate: &Gate) {
    let answer = post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// Nothing but get, list and watch was asked for.
fn only_reads(cluster: &Cluster) {
    let asked = cluster.asked();
    assert!(!asked.is_empty());
    assert!(asked.iter().all(|line| line.starts_with("GET ")), "{asked:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_are_not_ready_and_go_without_a_failed_request() {
    let dir = folder();
    let cluster = Cluster::start(&dir).await;
    let sims = Fleet::start(3, SimConfig::default()).await.unwrap();
    let [a, b, c] = sims.addrs()[..] else { panic!() };
    cluster.put(PODS, "m-a", Some(pod(a, true)));
    cluster.put(PODS, "m-b", Some(pod(b, false)));
    let other = json!({ "metadata": { "labels": { "app": "other" } }, "status": { "podIP": "127.0.0.9" } });
    cluster.put(PODS, "other", Some(other));
    let gate = Gate::start(&[], &following(&cluster, "[{selector: app=vllm}]")).await;
    fleet_becomes(&gate, &[(a, None)]).await;
    is_served(&gate).await;
    cluster.put(PODS, "m-b", Some(pod(b, true)));
    cluster.put(PODS, "m-c", Some(pod(c, true)));
    fleet_becomes(&gate, &[(a, None), (b, None), (c, None)]).await;
    let id_of = |addr: SocketAddr| gate.app().gate().table.fleet().endpoint(&addr).next().unwrap().id;
    let before = id_of(a);
    cluster.put(PODS, "m-a", Some(pod(a, false)));
    fleet_becomes(&gate, &[(a, Some(Shut::NotReady)), (b, None), (c, None)]).await;
    for _ in 0..8 {
        is_served(&gate).await;
    }
    cluster.put(PODS, "m-a", Some(pod(a, true)));
    fleet_becomes(&gate, &[(a, None), (b, None), (c, None)]).await;
    assert_eq!(id_of(a), before, "it is the same pod, with what is known of its cache");
    cluster.put(PODS, "m-b", None);
    fleet_becomes(&gate, &[(a, None), (c, None)]).await;
    is_served(&gate).await;
    only_reads(&cluster);
    gate.finish().await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_terminates_gets_nothing_new_and_keeps_its_streams() {
    let dir = folder();
    let cluster = Cluster::start(&dir).await;
    let sims = [SimPod::start(SimConfig::default()).await.unwrap(), SimPod::start(SimConfig::default()).await.unwrap()];
    let addrs = [sims[0].addr(), sims[1].addr()];
    cluster.put(PODS, "m-0", Some(pod(addrs[0], true)));
    let gate = Gate::start(&[], &following(&cluster, "[{selector: app=vllm}]")).await;
    fleet_becomes(&gate, &[(addrs[0], None)]).await;
    let first = request(CHAT, "", &chat("sim", "one", true, 400));
    let (mut stream, got) = begin(gate.addr(), &first, |got| has(got, "data: ")).await;
    cluster.put(PODS, "m-1", Some(pod(addrs[1], true)));
    cluster.put(PODS, "m-0", Some(terminating(addrs[0])));
    fleet_becomes(&gate, &[(addrs[0], Some(Shut::Terminating)), (addrs[1], None)]).await;
    for _ in 0..5 {
        is_served(&gate).await;
    }
    let sent = sims[0].served().len();
    assert_eq!(sent, 1, "nothing new after the stream");
    let answer = rest(&mut stream, got).await;
    assert!(has(&answer.body, "data: [DONE]"), "the stream ran on to its end");
    cluster.put(PODS, "m-0", None);
    fleet_becomes(&gate, &[(addrs[1], None)]).await;
    gate.finish().await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn losing_the_api_server_changes_nothing_and_it_is_found_again() {
    let dir = folder();
    let cluster = Cluster::start(&dir).await;
    let sims = Fleet::start(3, SimConfig::default()).await.unwrap();
    let [a, b, c] = sims.addrs()[..] else { panic!() };
    cluster.put(PODS, "m-a", Some(pod(a, true)));
    cluster.put(PODS, "m-b", Some(pod(b, true)));
    let gate = Gate::start(&[], &following(&cluster, "[{selector: app=vllm}]")).await;
    fleet_becomes(&gate, &[(a, None), (b, None)]).await;
    cluster.stop().await;
    gate.metric_reaches("tidegate_discovery_failing{source=\"selector/app=vllm\"}", 1.0).await;
    for _ in 0..5 {
        is_served(&gate).await;
    }
    fleet_becomes(&gate, &[(a, None), (b, None)]).await;
    // What happens meanwhile is caught up with: here the versions are forgotten, so all is listed again.
    cluster.put(PODS, "m-b", None);
    cluster.put(PODS, "m-c", Some(pod(c, true)));
    cluster.compact();
    cluster.restart().await;
    fleet_becomes(&gate, &[(a, None), (c, None)]).await;
    gate.metric_reaches("tidegate_discovery_failing{source=\"selector/app=vllm\"}", 0.0).await;
    // A watch that runs is told that its version is gone.
    let lists = || cluster.asked().iter().filter(|line| !line.contains("watch=")).count();
    let before = lists();
    cluster.compact();
    gate.eventually("listed again", || lists() > before).await;
    cluster.put(PODS, "m-b", Some(pod(b, true)));
    fleet_becomes(&gate, &[(a, None), (b, None), (c, None)]).await;
    // A token that is replaced, and the old one not accepted any more.
    cluster.rotate("second");
    cluster.stop().await;
    cluster.put(PODS, "m-b", None);
    cluster.restart().await;
    fleet_becomes(&gate, &[(a, None), (c, None)]).await;
    only_reads(&cluster);
    gate.finish().await;
    std::fs::remove_dir_all(dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_and_an_inference_pool_are_sources_too_and_can_be_exchanged() {
    let dir = folder();
    let cluster = Cluster::start(&dir).await;
    let sims = Fleet::start(2, SimConfig::default()).await.unwrap();
    let [a, b] = sims.addrs()[..] else { panic!() };
    cluster.put(SLICES, "vllm-x", Some(slice(&[a])));
    let pool = |app: &str, port: u16| {
        json!({
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": { "namespace": "ai" },
            "spec": { "selector": { "matchLabels": { "app": app } }, "targetPorts": [{ "number": port }] },
        })
    };
    let mut bare = pod(b, true);
    bare["metadata"]["annotations"] = json!({});
    cluster.put(PODS, "m-b", Some(bare));
    cluster.put(POOLS, "pool", Some(pool("nobody", 1)));
    let both = following(&cluster, "[{service: vllm}, {inference_pool: pool}]");
    let gate = Gate::start(&[], &both).await;
    fleet_becomes(&gate, &[(a, None)]).await;
    cluster.put(POOLS, "pool", Some(pool("vllm", b.port())));
    fleet_becomes(&gate, &[(a, None), (b, None)]).await;
    is_served(&gate).await;
    gate.configure(&following(&cluster, "[{inference_pool: pool}]"));
    fleet_becomes(&gate, &[(b, None)]).await;
    is_served(&gate).await;
    only_reads(&cluster);
    gate.finish().await;
    std::fs::remove_dir_all(dir).unwrap();
}

/// Five hundred pods in pages, a hundred changes: the fleet ends as the API server has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_pods_and_many_changes_end_in_the_right_fleet() {
    let dir = folder();
    let cluster = Cluster::start(&dir).await;
    let addr = |number: u32| SocketAddr::from(([127, 1, (number / 250) as u8, (number % 250) as u8 + 1], 9));
    for number in 0..1_100 {
        cluster.put(PODS, &format!("m-{number:05}"), Some(pod(addr(number), true)));
    }
    let table = std::sync::Arc::new(tidegate::pods::Table::default());
    let source = tidegate::discovery::kubernetes::Source { selector: Some("app=vllm".into()), ..Default::default() };
    let settings = tidegate::discovery::Settings {
        kubernetes: tidegate::discovery::kubernetes::Settings {
            sources: vec![source],
            kubeconfig: Some(cluster.kubeconfig()),
            context: None,
        },
        ..Default::default()
    };
    let publisher = std::sync::Arc::new(tidegate::discovery::Publisher::new(std::sync::Arc::clone(&table)));
    let roster = std::sync::Arc::new(tidegate::discovery::Roster::open(publisher, None).unwrap());
    let (_sources, seen) = tokio::sync::watch::channel(Vec::new());
    let (_settings, settings_seen) = tokio::sync::watch::channel(settings);
    let (tried, mut is_tried) = tokio::sync::watch::channel(false);
    #[allow(clippy::disallowed_methods, reason = "the test ends the task itself")]
    let running = tokio::spawn(tidegate::discovery::run(seen, settings_seen, roster, tried));
    tokio::time::timeout(kit::PATIENCE, is_tried.wait_for(|tried| *tried)).await.unwrap().unwrap();
    assert_eq!(table.fleet().pods.len(), 1_100);
    let generation = table.fleet().generation;
    for number in 0..100 {
        cluster.put(PODS, &format!("m-{number:05}"), None);
        cluster.put(PODS, &format!("n-{number:05}"), Some(pod(addr(2_000 + number), true)));
    }
    #[allow(clippy::disallowed_methods, reason = "polls: the table tells nobody that it has changed")]
    let ends = async {
        let is_right = |fleet: &tidegate::pods::Fleet| {
            let last = fleet.endpoint(&addr(2_099)).next().is_some();
            last && fleet.endpoint(&addr(99)).next().is_none() && fleet.pods.len() == 1_100
        };
        while !is_right(&table.fleet()) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(kit::PATIENCE, ends).await.expect("the fleet follows");
    let fleets = table.fleet().generation - generation;
    assert!(fleets <= 20, "{fleets} fleets for 200 changes");
    running.abort();
    std::fs::remove_dir_all(dir).unwrap();
}
