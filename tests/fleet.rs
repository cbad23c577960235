//! Where pods come from besides the configuration: files that are swapped, and operators who add, drain and take away.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;

use kit::wire::{ask, begin, connect, has, rest};
use kit::{Gate, chat, post, raw, request};
use tidegate::sim::http::{Fault, Rule, SimConfig, SimPod};
use tokio::task::JoinHandle;

const CHAT: &str = "/v1/chat/completions";

async fn pod() -> SimPod {
    SimPod::start(SimConfig::default()).await.unwrap()
}

fn listed(pods: &[&SimPod]) -> String {
    let entries: Vec<String> = pods.iter().map(|pod| format!("- url: {}\n", pod.url())).collect();
    if entries.is_empty() { "[]".to_owned() } else { entries.concat() }
}

/// Asks again and again until told to stop; how many were answered.
fn load(addr: SocketAddr, name: usize, is_over: &Arc<AtomicBool>) -> JoinHandle<usize> {
    let is_over = Arc::clone(is_over);
    tokio::spawn(async move {
        let (mut io, mut count) = (connect(addr).await, 0);
        while !is_over.load(SeqCst) {
            let body = chat("sim", &format!("{name} {count}"), count % 2 == 0, 3);
            let answer = ask(&mut io, &request(CHAT, "", &body)).await;
            assert!(answer.status == 200 && answer.is_whole, "{name} {count}: {} {}", answer.status, answer.text());
            count += 1;
        }
        count
    })
}

fn addrs(gate: &Gate) -> Vec<SocketAddr> {
    let mut all: Vec<_> = gate.app().gate().table.fleet().pods.iter().map(|pod| pod.spec.addr).collect();
    all.sort_unstable();
    all
}

fn sorted(pods: &[&SimPod]) -> Vec<SocketAddr> {
    let mut all: Vec<_> = pods.iter().map(|pod| pod.addr()).collect();
    all.sort_unstable();
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_of_pods_is_swapped_under_load_and_nothing_fails() {
    let (first, second, third) = (pod().await, pod().await, pod().await);
    let dir = std::env::temp_dir().join(format!("tidegate-fleet-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let link = dir.join("pods.yaml");
    let swap = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).unwrap();
        std::os::unix::fs::symlink(dir.join(name), dir.join("next")).unwrap();
        std::fs::rename(dir.join("next"), &link).unwrap();
    };
    swap("1", &listed(&[&first, &second]));
    let gate = Gate::start(&[], &format!("pods: {{files: ['{}']}}", link.display())).await;
    gate.knows_models().await;
    assert_eq!(addrs(&gate), sorted(&[&first, &second]));
    let is_over = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4).map(|name| load(gate.addr(), name, &is_over)).collect();
    swap("2", &listed(&[&second, &third]));
    gate.eventually("the second file", || addrs(&gate) == sorted(&[&second, &third])).await;
    swap("3", "- url: nonsense\n");
    let failing = format!("tidegate_discovery_failing{{source=\"file/{}\"}}", link.display());
    gate.metric_reaches(&failing, 1.0).await;
    assert_eq!(addrs(&gate), sorted(&[&second, &third]), "a bad file changes nothing");
    swap("4", &listed(&[&third]));
    gate.eventually("the last file", || addrs(&gate) == sorted(&[&third])).await;
    let are_good = || gate.app().gate().metrics.sources.load().iter().all(|source| !source.is_failing);
    gate.eventually("the file is good again", are_good).await;
    is_over.store(true, SeqCst);
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    let lines = gate.finish().await;
    assert_eq!(lines.len(), answered);
    assert!(lines.iter().all(|line| line["cause"] == "ok"));
    std::fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_is_drained_for_maintenance_and_comes_back() {
    let (first, second) = (pod().await, pod().await);
    let gate = Gate::start(&[first.addr(), second.addr()], "").await;
    gate.knows_models().await;
    for pod in [&first, &second] {
        pod.script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))).marker("long"));
    }
    let long = request(CHAT, "", &chat("sim", "long", true, 40));
    let (mut io, begun) = begin(gate.addr(), &long, |bytes| has(bytes, "data: ")).await;
    let (busy, idle) = if first.served().is_empty() { (&second, &first) } else { (&first, &second) };
    let drained = gate.tell(&format!("/pods/{}/drain", busy.addr()), "").await;
    assert_eq!((drained.status, drained.json()["shut"].as_str()), (200, Some("drained")), "{}", drained.text());
    assert_eq!(drained.json()["load"]["requests"], 1, "what it has runs on");
    for number in 0..20 {
        assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", &format!("new {number}"), false, 1)).await.status, 200);
    }
    assert_eq!((busy.served().len(), idle.served().len()), (1, 20));
    let answer = rest(&mut io, begun).await;
    assert!(answer.is_whole && has(&answer.body, "[DONE]"));
    // With the other one gone too there is nobody left; that is told, not hidden.
    gate.tell(&format!("/pods/{}/drain", idle.addr()), "").await;
    let refused = post(gate.addr(), CHAT, "", &chat("sim", "nobody", false, 1)).await;
    assert_eq!(refused.status, 503, "{}", refused.text());
    assert_eq!(gate.tell(&format!("/pods/{}/undrain", busy.addr()), "").await.json()["shut"], serde_json::Value::Null);
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "back", false, 1)).await.status, 200);
    assert_eq!(busy.served().len(), 2);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_added_and_taken_away_and_a_restart_forgets_nothing() {
    let (first, second) = (pod().await, pod().await);
    let state = std::env::temp_dir().join(format!("tidegate-fleet-{}.json", std::process::id()));
    let yaml = format!("pods: {{state_file: '{}'}}", state.display());
    let gate = Gate::start(&[first.addr()], &yaml).await;
    let added = gate.tell("/pods", &format!(r#"{{"url":"{}","labels":{{"rack":"b"}}}}"#, second.url())).await;
    assert_eq!(added.status, 202, "{}", added.text());
    gate.eventually("two pods", || addrs(&gate) == sorted(&[&first, &second])).await;
    gate.knows_models().await;
    assert_eq!(gate.tell("/pods", &format!(r#"{{"url":"{}"}}"#, first.url())).await.status, 409, "it is listed");
    let bad = gate.tell("/pods", r#"{"url":"http://user:secret@a:1"}"#).await;
    assert!(bad.status == 400 && !has(&bad.body, "secret"), "{}", bad.text());
    assert_eq!(gate.tell(&format!("/pods/{}/drain", first.addr()), "").await.status, 200);
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    assert_eq!((first.served().len(), second.served().len()), (0, 1));
    gate.eventually("saved", || {
        std::fs::read_to_string(&state).is_ok_and(|text| text.contains(&first.addr().to_string()))
    })
    .await;
    gate.finish().await;

    let gate = Gate::start(&[first.addr()], &yaml).await;
    gate.knows_models().await;
    let shown: serde_json::Value = serde_json::from_str(&gate.admin("/pods").await).unwrap();
    let of = |pod: &SimPod, key: &str| {
        let addr = pod.addr().to_string();
        shown["pods"].as_array().unwrap().iter().find(|one| one["addr"] == addr.as_str()).unwrap()[key].clone()
    };
    assert_eq!((of(&first, "source"), of(&first, "shut")), ("list".into(), "drained".into()), "{shown}");
    assert_eq!((of(&second, "source"), of(&second, "labels")["rack"].clone()), ("added".into(), "b".into()));
    let delete = |addr: SocketAddr| {
        let request = format!("DELETE /pods/{addr} HTTP/1.1\r\nHost: admin\r\n\r\n");
        let admin = gate.app().admin_addr();
        async move { raw(admin, request.as_bytes()).await }
    };
    let refused = delete(first.addr()).await;
    assert!(refused.status == 409 && has(&refused.body, "source `list`"), "{}", refused.text());
    assert_eq!(delete(second.addr()).await.status, 200);
    gate.eventually("one pod", || addrs(&gate) == [first.addr()]).await;
    assert_eq!(delete(second.addr()).await.status, 404);
    gate.finish().await;
    std::fs::remove_file(&state).unwrap();
}
