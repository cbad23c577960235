//! Thrash control over sockets: who comes back goes on, who is new waits while the caches are full of those who do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs
)]
mod kit;

use kit::wire::connect;
use kit::{Answer, Gate, post, request};
use tidegate::sim::engine::EngineSettings;
use tidegate::sim::http::{Fleet, SimConfig};
use tokio::io::AsyncWriteExt;

const COMPLETIONS: &str = "/v1/completions";
const CLASSES: &str = "tenants: {default: {class: standard, classes: [interactive, standard, batch]}}";
const WAITING: &str = "tidegate_sessions{model=\"sim\",state=\"waiting\"}";
const SESSIONS: u32 = 6;
const TURNS: u32 = 9;

/// What a session says in a turn: all it said before, and 64 tokens more.
fn body(session: u32, turn: u32) -> String {
    let prompt: Vec<u32> = (0..1_024 + 64 * turn).map(|at| 1_000 * session + at % 997).collect();
    serde_json::json!({"model": "sim", "prompt": prompt, "max_tokens": 2, "stream": true}).to_string()
}

async fn ask(gate: &Gate, fields: &str, session: u32, turn: u32) -> Answer {
    post(gate.addr(), COMPLETIONS, fields, &body(session, turn)).await
}

/// A gate before a pod whose cache of 10,000 tokens is full of six sessions that came back nine times.
async fn full() -> (Gate, Fleet) {
    let engine = EngineSettings { blocks: 625, ..EngineSettings::default() };
    // Near the times that the gate assumes of an engine it has not seen: what its caches are worth is reckoned in these.
    let config = SimConfig { engine, speed: 4.0, ..SimConfig::default() };
    let (gate, fleet) = Gate::with_pods(1, config, &format!("flow: {{{CLASSES}}}")).await;
    // Each comes back at once: those that fit would use much more of the pod than is served while they come one by one.
    for (session, turn) in (0..SESSIONS).flat_map(|session| (0..=TURNS).map(move |turn| (session, turn))) {
        let answer = ask(&gate, "", session, turn).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(gate.metric("tidegate_sessions{model=\"sim\",state=\"active\"}").await as u32, SESSIONS);
    assert!(gate.metric("tidegate_session_tokens{model=\"sim\",kind=\"room\"}").await as u32 == 9_000);
    (gate, fleet)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_session_waits_while_those_that_come_back_and_the_first_class_go_on() {
    let (gate, _fleet) = full().await;
    let addr = gate.addr();
    let held = tokio::spawn(async move { post(addr, COMPLETIONS, "", &body(20, 0)).await });
    gate.metric_reaches(WAITING, 1.0).await;
    for session in 0..SESSIONS {
        assert_eq!(ask(&gate, "", session, TURNS).await.status, 200, "an active session is never held");
    }
    let first = ask(&gate, "x-tidegate-class: interactive\r\n", 21, 0).await;
    assert_eq!(first.status, 200, "{}", first.text());
    let late = ask(&gate, "x-tidegate-deadline-ms: 1000\r\n", 22, 0).await;
    assert_eq!((late.status, late.header("x-tidegate-reason")), (429, Some("session_limit")), "{}", late.text());
    assert!(late.header("retry-after").is_some());
    assert!(!held.is_finished());
    gate.configure(&format!("flow: {{sessions: {{enabled: false}}, {CLASSES}}}"));
    let answer = held.await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(answer.header("x-tidegate-queue-ms").is_some(), "{}", answer.head);
    assert_eq!(gate.metric("tidegate_session_total{outcome=\"waited\"}").await as u32, 1);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_its_session_is_held_is_never_sent() {
    let (gate, fleet) = full().await;
    let before = fleet.pods[0].served().len();
    let mut line = connect(gate.addr()).await;
    line.write_all(&request(COMPLETIONS, "", &body(20, 0))).await.unwrap();
    gate.metric_reaches(WAITING, 1.0).await;
    drop(line);
    gate.metric_reaches("tidegate_session_total{outcome=\"left\"}", 1.0).await;
    assert_eq!(gate.metric(WAITING).await as u32, 0);
    assert_eq!(fleet.pods[0].served().len(), before);
    gate.finish().await;
}
