//! Traces: what a collector gets of a request, and that it agrees with what the client and the pods saw.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs
)]
mod kit;

use std::time::{SystemTime, UNIX_EPOCH};

use kit::collector::{Collector, words};
use kit::line::Line;
use kit::tls::{Ca, Folder, wrap};
use kit::{Gate, chat, post, request};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use tidegate::sim::engine::EngineSettings;
use tidegate::sim::http::{Fault, Rule, SimConfig, SimPod, SimRole};

const CHAT: &str = "/v1/chat/completions";
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn traces(collector: &Collector, more: &str) -> String {
    format!(
        "trust: {{callers: [127.0.0.1/32]}}\nobserve: {{traces: {{endpoint: 'http://{}'{more}}}}}\n",
        collector.addr
    )
}

fn hex(id: &[u8]) -> String {
    id.iter().fold(String::new(), |all, byte| format!("{all}{byte:02x}"))
}

fn named<'a>(spans: &'a [Span], name: &str) -> Vec<&'a Span> {
    spans.iter().filter(|span| span.name == name).collect()
}

fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found = named(spans, name);
    let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
    assert_eq!(found.len(), 1, "{name} in {names:?}");
    found[0]
}

/// The spans of all calls, once the gate has ended.
fn all(collector: &Collector) -> Vec<Span> {
    collector.take().into_iter().flat_map(|call| call.spans).collect()
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64
}

/// Each lies in its parent; those of one parent follow each other.
fn assert_in_order(parent: &Span, parts: &[&Span]) {
    for part in parts {
        assert_eq!(part.parent_span_id, parent.span_id, "{}", part.name);
        assert_eq!(part.trace_id, parent.trace_id, "{}", part.name);
        assert!(part.start_time_unix_nano >= parent.start_time_unix_nano, "{}", part.name);
        assert!(part.end_time_unix_nano <= parent.end_time_unix_nano, "{}", part.name);
    }
    for pair in parts.windows(2) {
        assert!(pair[0].end_time_unix_nano <= pair[1].start_time_unix_nano, "{} before {}", pair[0].name, pair[1].name);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_two_pods_is_one_trace_that_agrees_with_its_client() {
    let collector = Collector::start(&[]).await;
    let pod = |role| SimPod::start(SimConfig { role, speed: 1.0, ..SimConfig::default() });
    let (prefill, decode) = (pod(SimRole::Prefill).await.unwrap(), pod(SimRole::Decode).await.unwrap());
    let yaml = traces(&collector, ", sample: 0") + "disaggregation: {decider: always, prewarm: false}\n";
    let gate = Gate::with_roles(&[prefill.addr()], &[decode.addr()], &yaml).await;
    let fields = format!("traceparent: 00-{TRACE}-{PARENT}-01\r\n");
    let asked = wall_ns();
    let body = chat("sim", &"canary words ".repeat(400), true, 16);
    let body = body.replacen('{', r#"{"stream_options":{"include_usage":true},"#, 1);
    let mut line = Line::ask(gate.addr(), &request(CHAT, &fields, &body)).await;
    line.until_events(1).await;
    let first = wall_ns();
    let answer = line.answer().await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let parent_at = |pod: &SimPod| pod.served().pop().unwrap().header("traceparent").unwrap().to_owned();
    let (at_prefill, at_decode) = (parent_at(&prefill), parent_at(&decode));
    let ended = wall_ns();
    let pods = [prefill.addr().to_string(), decode.addr().to_string()];
    let lines = gate.finish().await;
    let calls = collector.take();
    let spans: Vec<Span> = calls.iter().flat_map(|call| call.spans.clone()).collect();
    let root = one(&spans, "chat sim");
    let [receive, plan, prefill, decode] = ["receive", "plan", "prefill", "decode"].map(|name| one(&spans, name));
    let [first_token, stream] = ["first_token", "stream"].map(|name| one(&spans, name));
    assert_eq!(spans.len(), 7);
    // Whose parts they are.
    assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_in_order(root, &[receive, plan, prefill, decode]);
    assert_in_order(decode, &[first_token, stream]);
    let kinds = [root, prefill, stream].map(Span::kind);
    assert_eq!(kinds, [SpanKind::Server, SpanKind::Client, SpanKind::Internal]);
    for (leg, at_pod) in [(prefill, at_prefill), (decode, at_decode)] {
        assert_eq!(at_pod, format!("00-{TRACE}-{}-01", hex(&leg.span_id)), "{}", leg.name);
    }
    // The client's times.
    assert!(asked <= root.start_time_unix_nano + 1_000 && stream.start_time_unix_nano <= first);
    assert_eq!(first_token.start_time_unix_nano, decode.start_time_unix_nano);
    assert_eq!(first_token.end_time_unix_nano, stream.start_time_unix_nano);
    assert_eq!(stream.end_time_unix_nano, decode.end_time_unix_nano);
    let long = |span: &Span| span.end_time_unix_nano - span.start_time_unix_nano;
    let parts: u64 = [receive, plan, prefill, decode].map(long).iter().sum();
    assert!(parts <= long(root));
    println!("client {} us, root {} us, parts {} us", (ended - asked) / 1_000, long(root) / 1_000, parts / 1_000);
    assert_eq!(lines[0]["trace_id"], TRACE);
    // What it tells, and what not.
    let told = words(&root.attributes);
    for (key, value) in [
        ("gen_ai.operation.name", "chat"),
        ("gen_ai.request.model", "sim"),
        ("gen_ai.usage.output_tokens", "16"),
        ("http.response.status_code", "200"),
        ("http.request.method", "POST"),
        ("tidegate.cause", "ok"),
        ("tidegate.request_id", lines[0]["request_id"].as_str().unwrap()),
        ("tidegate.prefill_pod", lines[0]["prefill_pod"].as_str().unwrap()),
    ] {
        assert_eq!(told.get(key).map(String::as_str), Some(value), "{key} in {told:?}");
    }
    assert_eq!(calls[0].resource["service.name"], "tidegate");
    assert!(calls[0].head.starts_with("POST /v1/traces HTTP/1.1"), "{}", calls[0].head);
    for call in &calls {
        let text = String::from_utf8_lossy(&call.body);
        assert!(!text.contains("canary") && !pods.iter().any(|pod| text.contains(pod)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_and_failed_attempts_are_seen() {
    let collector = Collector::start(&[]).await;
    let engine = EngineSettings { sequences_max: 1, ..EngineSettings::default() };
    let config = SimConfig { engine, speed: 1.0, ..SimConfig::default() };
    let (gate, fleet) = Gate::with_pods(2, config, &traces(&collector, ", sample: 1")).await;
    for pod in &fleet.pods {
        pod.script(Rule::new(Fault::Status(503, None)).header("x-marker", "once").times(1));
    }
    let answer = post(gate.addr(), CHAT, "x-marker: once\r\n", &chat("sim", "x", false, 2)).await;
    assert_eq!(answer.status, 503, "both refuse");
    let addr = gate.addr();
    let ask = move |number| async move { post(addr, CHAT, "", &chat("sim", &format!("{number}"), true, 30)).await };
    let asked: Vec<_> = (0..12).map(|number| tokio::spawn(ask(number))).collect();
    for one in asked {
        assert_eq!(one.await.unwrap().status, 200);
    }
    let lines = gate.finish().await;
    let spans = all(&collector);
    let roots = named(&spans, "chat sim");
    assert_eq!(roots.len(), 13);
    let failed = roots.iter().find(|root| words(&root.attributes)["http.response.status_code"] == "503").unwrap();
    assert_eq!(failed.status.as_ref().unwrap().code(), StatusCode::Error);
    let legs: Vec<_> =
        spans.iter().filter(|span| span.parent_span_id == failed.span_id && span.name == "serve").collect();
    assert_eq!(legs.len(), 2);
    assert!(legs.iter().all(|leg| words(&leg.attributes).contains_key("error.type")));
    let waited = lines.iter().filter(|line| line["queue_ms"].is_number()).count();
    assert!(waited > 0);
    let queued = named(&spans, "queue");
    assert_eq!(queued.len(), waited);
    for queue in queued {
        let root = roots.iter().find(|root| root.span_id == queue.parent_span_id).unwrap();
        let told: u64 = words(&root.attributes)["tidegate.queue_us"].parse().unwrap();
        let span_us = (queue.end_time_unix_nano - queue.start_time_unix_nano) / 1_000;
        assert!(span_us >= told, "{span_us} {told}");
    }
    let of_lines: std::collections::BTreeSet<_> =
        lines.iter().map(|line| line["trace_id"].as_str().unwrap().to_owned()).collect();
    let of_spans: std::collections::BTreeSet<_> = roots.iter().map(|root| hex(&root.trace_id)).collect();
    assert_eq!(of_lines, of_spans);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_fails_gets_the_spans_again_and_holds_nobody_up() {
    let collector = Collector::start(&[503]).await;
    let (gate, _fleet) = Gate::with_pods(1, SimConfig::default(), &traces(&collector, ", sample: 1")).await;
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", true, 4)).await.status, 200);
    gate.eventually("sent again", || collector.calls() == 2).await;
    let mut calls = collector.take();
    let ids = |spans: &[Span]| spans.iter().map(|span| span.span_id.clone()).collect::<Vec<_>>();
    let (again, first) = (calls.pop().unwrap(), calls.pop().unwrap());
    assert_eq!(ids(&again.spans), ids(&first.spans));
    let exported = "tidegate_spans_total{result=\"exported\"}";
    let count = again.spans.len() as u64;
    gate.eventually("counted", || gate.app().gate().metrics.spans.value("exported") == count).await;
    assert_eq!(gate.metric(exported).await as u64, count);
    gate.finish().await;
    // Nobody listens there at all.
    let yaml = "observe: {traces: {endpoint: 'http://127.0.0.1:9', sample: 1}}\n";
    let (gate, _fleet) = Gate::with_pods(1, SimConfig::default(), yaml).await;
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", true, 4)).await.status, 200);
    assert_eq!(gate.finish().await.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_inside_tls_is_verified_and_shown_the_key() {
    let (folder, ca) = (Folder::new(), Ca::new());
    std::fs::write(folder.path("ca.pem"), ca.pem()).unwrap();
    std::fs::write(folder.path("key"), "Bearer collector-canary\n").unwrap();
    let collector = Collector::start(&[]).await;
    for (pair, is_good) in [(ca.issue(&["127.0.0.1"]), true), (Ca::new().issue(&["127.0.0.1"]), false)] {
        let outside = wrap(collector.addr, &pair, None).await;
        let yaml = format!(
            "observe: {{traces: {{endpoint: 'https://{outside}', sample: 1, ca_file: {}, authorization_file: {}}}}}\n",
            folder.path("ca.pem").display(),
            folder.path("key").display()
        );
        let (gate, _fleet) = Gate::with_pods(1, SimConfig::default(), &yaml).await;
        assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", true, 4)).await.status, 200);
        assert!(!gate.admin("/config").await.contains("collector-canary"));
        gate.finish().await;
        let calls = collector.take();
        assert_eq!(calls.len(), usize::from(is_good));
        assert!(calls.iter().all(|call| call.head.contains("uthorization: Bearer collector-canary")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_sampled_goes_on_unrecorded() {
    let collector = Collector::start(&[]).await;
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), &traces(&collector, ", sample: 0")).await;
    let fields = format!("traceparent: 00-{TRACE}-{PARENT}-00\r\n");
    for sent in [fields.as_str(), ""] {
        assert_eq!(post(gate.addr(), CHAT, sent, &chat("sim", "x", true, 4)).await.status, 200);
        let at_pod = fleet.pods[0].served().pop().unwrap().header("traceparent").unwrap().to_owned();
        assert!(at_pod.ends_with("-00") && at_pod.contains(TRACE) != sent.is_empty(), "{at_pod}");
    }
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["trace_id"].is_null()));
    assert_eq!(collector.calls(), 0);
}
