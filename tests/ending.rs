//! How requests end when something ends them: the gate's own end, a pod that breaks inside an event, a pod that freezes;
//! and what such ends say of a pod.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod kit;

use std::sync::Arc;
use std::time::Duration;

use kit::line::{Line, arrival, named_request};
use kit::wire::{begin, has, rest};
use kit::{Gate, PATIENCE, chat, events, get, post, request};
use tidegate::pods::{Pod, Standing};
use tidegate::runtime::now;
use tidegate::sim::http::{Cut, Fault, Fleet, MetricsFault, Rule, Script, SimConfig};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_end_of_a_drain_every_client_is_told() {
    let (mut gate, fleet) =
        Gate::with_pods(1, SimConfig::default(), "listen: {drain_accept_s: 0, drain_max_s: 1}").await;
    let slow = Fault::SlowTokens(Duration::from_millis(20));
    fleet.pods[0]
        .script(Script::none().rule(Rule::new(slow).marker("long")).rule(Rule::new(Fault::Silent).marker("mute")));
    let (mut stream, begun) =
        begin(gate.addr(), &request(CHAT, "", &chat("sim", "long", true, 10_000)), |bytes| has(bytes, "data: ")).await;
    let (id, mute) = named_request(CHAT, &chat("sim", "mute", false, 4));
    let mut waiting = Line::ask(gate.addr(), &mute).await;
    arrival(&fleet.pods[0], &id, |one| one.body.is_some()).await;
    let drained = gate.drain();
    let answer = rest(&mut stream, begun).await;
    let told: serde_json::Value = serde_json::from_str(events(&answer.body).last().unwrap()).unwrap();
    assert!(answer.is_whole && told["error"]["message"].as_str().unwrap().contains("shutting down"), "{told}");
    assert!(!has(&answer.body, "[DONE]"));
    let answer = waiting.answer().await;
    assert_eq!((answer.status, answer.header("x-tidegate-reason")), (503, Some("shutting_down")), "{}", answer.text());
    tokio::time::timeout(PATIENCE, drained).await.expect("the drain ends").unwrap();
    let lines = gate.lines();
    assert!(lines.len() == 2 && lines.iter().all(|line| line["cause"] == "shutting_down"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_breaks_inside_an_event_ends_between_events() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let mut inside = 0;
    for at in (700..1_500).step_by(37) {
        fleet.pods[0].script(Script::always(Fault::CutAtByte(at, Cut::Fin)));
        let answer = post(gate.addr(), CHAT, "", &chat("sim", "broken off", true, 40)).await;
        if answer.status != 200 {
            continue;
        }
        let told = events(&answer.body);
        let parsed: Vec<serde_json::Value> = told
            .iter()
            .map(|event| serde_json::from_str(event).unwrap_or_else(|error| panic!("{at}: {error}")))
            .collect();
        assert!(parsed.len() > 1 && parsed.last().unwrap()["error"].is_object(), "{at}: {told:?}");
        inside += 1;
    }
    assert!(inside >= 10, "only {inside} cuts came after the first event");
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_pod_gets_no_more_requests() {
    let yaml = "telemetry: {interval_ms: 50, timeout_ms: 100}";
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), yaml).await;
    let frozen = Script::none().rule(Rule::new(Fault::Metrics(MetricsFault::Hang))).rule(Rule::new(Fault::Silent));
    fleet.pods[0].script(frozen);
    let mut stuck = Vec::new();
    for number in 0.. {
        let (id, bytes) = named_request(CHAT, &chat("sim", &format!("anyone there? {number}"), true, 2));
        let mut line = Line::ask(gate.addr(), &bytes).await;
        let has_it =
            || fleet.pods.iter().any(|pod| pod.served().iter().any(|one| one.header("x-request-id") == Some(&id)));
        gate.eventually("at a pod", has_it).await;
        if fleet.pods[0].served().is_empty() {
            assert_eq!(line.answer().await.status, 200);
        } else {
            stuck.push(line);
            break;
        }
    }
    let seen = gate.app().gate().table.fleet();
    let pod = seen.pods.iter().find(|pod| pod.spec.addr == fleet.pods[0].addr()).unwrap();
    gate.eventually("out", || matches!(pod.sign(now()).standing, Standing::Ejected(_))).await;
    let before = fleet.pods[0].served().len();
    for number in 0..20 {
        let answer = post(gate.addr(), CHAT, "", &chat("sim", &format!("others {number}"), true, 2)).await;
        assert_eq!(answer.status, 200);
    }
    assert_eq!(fleet.pods[0].served().len(), before, "a frozen pod looks idle and must not draw requests");
    drop(stuck);
    gate.finish().await;
}

/// A gate in front of one pod of `script`, and what it knows of the pod after `count` requests.
async fn pod_after(script: Script, count: usize, status: u16) -> (Gate, Fleet, Arc<Pod>) {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "pods: {health: {ejection_s: 1}}").await;
    fleet.pods[0].script(script);
    for _ in 0..count {
        let answer = post(gate.addr(), CHAT, "", &chat("sim", "well?", true, 2)).await;
        assert_eq!(answer.status, status, "{}", answer.text());
    }
    let pod = Arc::clone(&gate.app().gate().table.fleet().pods[0]);
    gate.eventually("all accounted for", || pod.load.now().requests == 0).await;
    (gate, fleet, pod)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_answers_its_probe_with_500_stays_out() {
    let (gate, _fleet, pod) = pod_after(Script::always(Fault::Status(500, None)), 5, 500).await;
    assert!(!matches!(pod.standing(now()), Standing::Ramp(_) | Standing::Ready), "out after five");
    gate.eventually("probe", || pod.standing(now()) == Standing::Probe).await;
    let answer = post(gate.addr(), CHAT, "", &chat("sim", "well?", true, 2)).await;
    assert_eq!(answer.status, 500, "{}", answer.text());
    gate.eventually("all accounted for", || pod.load.now().requests == 0).await;
    let standing = pod.standing(now());
    assert!(!matches!(standing, Standing::Ramp(_) | Standing::Ready), "{standing:?}");
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_of_clients_told_in_a_stream_are_not_the_pods() {
    for (event, status) in [
        (r#"{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}"#, 200),
        (r#"{"type":"error","error":{"type":"invalid_request_error","message":"too long"}}"#, 200),
    ] {
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {}\r\n\r\ndata: {event}\n\n",
            event.len() + 8
        );
        let (gate, _fleet, pod) = pod_after(Script::always(Fault::Raw(answer.into())), 8, status).await;
        assert_eq!(pod.standing(now()), Standing::Ready, "{event}");
        let lines = gate.finish().await;
        assert!(lines.iter().all(|line| line["attempts"] == 1), "{lines:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_is_found_while_it_still_streams() {
    let (gate, fleet) = Gate::with_pods(3, SimConfig::default(), "").await;
    for pod in &fleet.pods {
        pod.script(Script::always(Fault::SlowTokens(Duration::from_millis(20))));
    }
    let body = serde_json::json!({"model": "sim", "input": "a long story", "stream": true, "max_output_tokens": 300});
    let asked = request("/v1/responses", "", &body.to_string());
    let (stream, begun) = begin(gate.addr(), &asked, |bytes| has(bytes, "\"id\":\"resp_")).await;
    let text = String::from_utf8_lossy(&begun).into_owned();
    let id = text.split("\"id\":\"").nth(1).unwrap().split('"').next().unwrap().to_owned();
    let maker = fleet.pods.iter().position(|pod| !pod.served().is_empty()).unwrap();
    for _ in 0..6 {
        get(gate.addr(), &format!("/v1/responses/{id}")).await;
    }
    let path = format!("/v1/responses/{id}");
    for (number, pod) in fleet.pods.iter().enumerate() {
        let count = pod.served().iter().filter(|one| one.path == path).count();
        assert_eq!(count, if number == maker { 6 } else { 0 }, "pod {number}");
    }
    drop(stream);
    gate.finish().await;
}
