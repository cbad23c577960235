//! What a client must not do: fill memory with names, reach a pod's dangerous members by a side door, hold a connection with
//! half a head; and what an operator must be able to rely on: no access line is lost, a reload says what it does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use std::net::{SocketAddr, TcpListener};

use kit::wire::{connect, only_arrival, until_closed};
use kit::{Gate, chat, get, post, raw};
use tidegate::sim::http::{Cut, Fault, Fleet, Rule, SimConfig};
use tokio::io::AsyncWriteExt;

const CHAT: &str = "/v1/chat/completions";

async fn start(yaml: &str) -> (Gate, Fleet) {
    Gate::with_pods(1, SimConfig { log_body_bytes_max: 1 << 20, ..SimConfig::default() }, yaml).await
}

/// An address at which nobody listens.
fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_without_end_is_refused_and_told_back_short() {
    let (gate, fleet) = start("").await;
    let answer = post(gate.addr(), CHAT, "", &chat(&"m".repeat(1 << 20), "x", false, 1)).await;
    assert_eq!((answer.status, answer.body.len() < 1_024), (404, true), "{} bytes", answer.body.len());
    assert!(answer.text().contains(&format!("`{}…`", "m".repeat(256))), "{}", answer.text());
    assert!(fleet.pods[0].served().is_empty());
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn made_up_names_are_in_no_metric_and_no_line() {
    // The models of a pod that never answered are not known, so any name may be one of its.
    let gate = Gate::start(&[nobody()], "").await;
    for number in 0..20 {
        let answer = post(gate.addr(), CHAT, "", &chat(&format!("made-up-{number}"), "x", false, 1)).await;
        assert_eq!(answer.status, 503, "{}", answer.text());
    }
    let long = post(gate.addr(), CHAT, "", &chat(&"m".repeat(257), "x", false, 1)).await;
    assert_eq!(long.status, 404, "{}", long.text());
    assert!(!gate.admin("/metrics").await.contains("made-up"));
    let lines = gate.finish().await;
    assert_eq!(lines.len(), 21);
    assert!(lines.iter().all(|line| line.get("model").is_none()), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_opened_path_is_no_side_door_to_pods() {
    let (gate, fleet) = start("listen: {paths: {allow: [/my/*]}}").await;
    let body = r#"{"model":"sim","kv_transfer_params":{"a":1},"b":[ 2]}"#;
    post(gate.addr(), "/my/api", "", body).await;
    assert_eq!(only_arrival(&fleet).body.as_deref(), Some(&br#"{"model":"sim","b":[ 2]}"#[..]));
    // A pod might read it otherwise than we do.
    let twice = r#"{"model":"sim","model":"other","kv_transfer_params":{}}"#;
    assert_eq!(post(gate.addr(), "/my/api", "", twice).await.status, 400);
    assert!(fleet.pods[0].served().is_empty());
    // What is no JSON passes as it is.
    let head = "POST /my/api HTTP/1.1\r\nHost: gate\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\n{{{";
    raw(gate.addr(), head.as_bytes()).await;
    assert_eq!(only_arrival(&fleet).body.as_deref(), Some(&b"{{{"[..]));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http2_head_that_never_ends_ends_the_connection() {
    let (gate, _fleet) = start("limits: {timeouts: {head_s: 1}}").await;
    let mut wire = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    // HEADERS of stream 1 without END_HEADERS, and then nothing.
    wire.extend_from_slice(b"\0\0\x01\x01\0\0\0\0\x01\x82");
    let mut io = connect(gate.app().h2c_addr().unwrap()).await;
    io.write_all(&wire).await.unwrap();
    until_closed(&mut io).await;
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stored_response_is_not_made_twice() {
    for (store, expected) in [(true, 1), (false, 2)] {
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
        fleet.pods.iter().for_each(|pod| pod.script(Rule::new(Fault::CutAtByte(0, Cut::Fin))));
        let body = format!(r#"{{"model":"sim","input":"x","max_output_tokens":1,"store":{store}}}"#);
        assert_eq!(post(gate.addr(), "/v1/responses", "", &body).await.status, 502);
        let lines = gate.finish().await;
        assert_eq!(lines[0]["attempts"], expected, "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_access_line_is_lost_at_the_end_and_clients_are_named_if_wished() {
    for (yaml, client) in [("", Some("127.0.0.1")), ("observe: {is_client_logged: false}", None)] {
        let (gate, _fleet) = start(yaml).await;
        raw(gate.addr(), b"GET / HTTP/1.1\nHost: gate\n\n").await;
        let mut io = connect(gate.addr()).await;
        for _ in 0..300 {
            let answer = kit::wire::ask(&mut io, b"GET /health HTTP/1.1\r\nHost: gate\r\n\r\n").await;
            assert_eq!(answer.status, 200);
        }
        drop(io);
        let lines = gate.finish().await;
        assert_eq!(lines.len(), 301);
        assert!(lines.iter().all(|line| line.get("client").and_then(|told| told.as_str()) == client), "{:?}", lines[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_stage_is_timed() {
    let (gate, _fleet) = start("").await;
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    for stage in ["head", "body", "anatomy", "fingerprint", "admit", "plan", "connect", "settle"] {
        gate.metric_reaches(&format!("tidegate_gate_overhead_seconds_count{{stage=\"{stage}\"}}"), 1.0).await;
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_takes_safe_mode_and_retries() {
    let (gate, fleet) = start("").await;
    let reloads = "tidegate_config_reloads_total{result=\"ok\"}";
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", &"x".repeat(4_096), false, 1)).await.status, 200);
    gate.configure("routing: {safe_mode: true}\nretry: {attempts_max: 1}\n");
    gate.metric_reaches(reloads, 1.0).await;
    gate.metric_reaches("tidegate_safe_mode", 1.0).await;
    fleet.pods[0].script(Rule::new(Fault::CutAtByte(0, Cut::Fin)));
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 502);
    // What an operator switched stays as long as the file does not change its mind.
    assert_eq!(gate.tell("/safe-mode", "off").await.status, 200);
    gate.configure("routing: {safe_mode: true}\nretry: {attempts_max: 1}\nobserve: {explain: true}\n");
    gate.metric_reaches(reloads, 2.0).await;
    assert!(gate.metric("tidegate_safe_mode").await < 0.5);
    assert_eq!(get(gate.addr(), "/health").await.status, 200);
    let lines = gate.finish().await;
    assert_eq!(lines[1]["reason"], "attempts_spent", "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_kill_an_engine_is_refused_before_it() {
    let (gate, fleet) = start("limits: {fields: {generated_tokens_max: 500}}\n").await;
    let many: Vec<_> = (0..1_025).map(|token| format!("\"{token}\":1")).collect();
    for (path, body, member) in [
        (CHAT, r#"{"model":"sim","messages":[],"n":1000000}"#.to_owned(), "n"),
        (
            CHAT,
            r#"{"model":"sim","messages":[],"max_completion_tokens":1000000000}"#.to_owned(),
            "max_completion_tokens",
        ),
        (CHAT, format!(r#"{{"model":"sim","messages":[],"logit_bias":{{{}}}}}"#, many.join(",")), "logit_bias"),
        ("/inference/v1/generate", r#"{"model":"sim","token_ids":[1],"sampling_params":{"n":1e9}}"#.to_owned(), "n"),
    ] {
        let answer = post(gate.addr(), path, "", &body).await;
        let error = &answer.json()["error"];
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(member)), "{}", answer.text());
        assert!(error["message"].as_str().unwrap().contains("at most"), "{}", answer.text());
    }
    assert!(fleet.pods.iter().all(|pod| pod.served().is_empty()));
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 500)).await.status, 200);
    gate.finish().await;
}
