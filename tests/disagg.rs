//! Prefill on one pod, decode on another: every API, and everything that can go wrong on the way. Whatever happens, a client
//! gets the text that one pod would have given.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::too_many_lines,
    missing_docs
)]
mod kit;

use std::net::SocketAddr;
use std::time::Duration;

use kit::{Answer, Gate, events, post};
use serde_json::{Value, json};
use tidegate::sim::http::expect::expected;
use tidegate::sim::http::{Ended, Fault, Handover, KvFault, Rule, Script, SimConfig, SimConnector, SimPod, SimRole};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const CHAT: &str = "/v1/chat/completions";
const ALWAYS: &str = "disaggregation: {decider: always, prewarm: false}\n";

/// Prefill pods and decode pods behind a gate.
struct Trio {
    gate: Gate,
    prefill: Vec<SimPod>,
    decode: Vec<SimPod>,
}

fn config(role: SimRole) -> SimConfig {
    SimConfig { role, scale_out: true, ..SimConfig::default() }
}

impl Trio {
    async fn new(prefill: usize, decode: usize, yaml: &str) -> Self {
        Self::with(prefill, decode, yaml, |config| config).await
    }

    async fn with(prefill: usize, decode: usize, yaml: &str, change: impl Fn(SimConfig) -> SimConfig) -> Self {
        let mut pods = (Vec::new(), Vec::new());
        for _ in 0..prefill {
            pods.0.push(SimPod::start(change(config(SimRole::Prefill))).await.unwrap());
        }
        for _ in 0..decode {
            pods.1.push(SimPod::start(change(config(SimRole::Decode))).await.unwrap());
        }
        let addrs = |pods: &[SimPod]| pods.iter().map(SimPod::addr).collect::<Vec<SocketAddr>>();
        let gate = Gate::with_roles(&addrs(&pods.0), &addrs(&pods.1), yaml).await;
        Self { gate, prefill: pods.0, decode: pods.1 }
    }

    async fn ask(&self, path: &str, body: &Value) -> Answer {
        post(self.gate.addr(), path, "", &body.to_string()).await
    }

    /// Asks, and holds the answer to be what one pod would have given.
    async fn ask_well(&self, path: &str, body: &Value) -> Answer {
        let answer = self.ask(path, body).await;
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
        let wanted = expected(path, body.to_string().as_bytes(), &config(SimRole::Both)).unwrap();
        assert_eq!(text_of(path, body, &answer), wanted.texts[0], "{path} {body}: {}", answer.text());
        answer
    }

    async fn count(&self, series: &str) -> u64 {
        self.gate.metric(&format!("tidegate_disagg_{series}")).await as u64
    }
}

/// The generated text, or the ids as text for the token API.
fn text_of(path: &str, body: &Value, answer: &Answer) -> String {
    let string = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let is_stream = body["stream"] == json!(true);
    let pieces: Vec<Value> = if is_stream {
        events(&answer.body).iter().filter_map(|event| serde_json::from_str(event).ok()).collect()
    } else {
        vec![answer.json()]
    };
    let of = |piece: &Value| match (path, is_stream) {
        (CHAT, true) => string(&piece["choices"][0]["delta"]["content"]),
        (CHAT, false) => string(&piece["choices"][0]["message"]["content"]),
        ("/v1/completions", _) => string(&piece["choices"][0]["text"]),
        ("/v1/responses", true) => {
            if piece["type"] == "response.output_text.delta" {
                string(&piece["delta"])
            } else {
                String::new()
            }
        }
        ("/v1/responses", false) => string(&piece["output"][0]["content"][0]["text"]),
        ("/v1/messages", true) => string(&piece["delta"]["text"]),
        ("/v1/messages", false) => string(&piece["content"][0]["text"]),
        _ => {
            let ids = piece["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default();
            ids.iter().flat_map(|id| (id.as_u64().unwrap() as u32).to_le_bytes()).map(char::from).collect()
        }
    };
    let text: String = pieces.iter().map(of).collect();
    if path == "/inference/v1/generate" {
        // Ids are the tokenizer's of the text: hold their count and the first against the rule instead.
        let wanted = expected(path, body.to_string().as_bytes(), &config(SimRole::Both)).unwrap();
        assert_eq!(text.chars().count() as u64, 4 * wanted.tokens[0]);
        return wanted.texts[0].clone();
    }
    text
}

fn bodies() -> Vec<(&'static str, Value)> {
    let words = "some words of a prompt that is longer than a block or two of the cache ".repeat(8);
    vec![
        (CHAT, json!({"model":"sim","messages":[{"role":"user","content":words}],"max_tokens":7})),
        ("/v1/completions", json!({"model":"sim","prompt":words,"max_tokens":7,"temperature":0})),
        ("/v1/completions", json!({"model":"sim","prompt":[5,6,7,8],"max_tokens":7})),
        ("/v1/responses", json!({"model":"sim","input":words,"max_output_tokens":7})),
        ("/v1/messages", json!({"model":"sim","messages":[{"role":"user","content":words}],"max_tokens":7})),
        (
            "/inference/v1/generate",
            json!({"model":"sim","token_ids":(1..90).collect::<Vec<u32>>(),"sampling_params":{"max_tokens":7,"temperature":0}}),
        ),
    ]
}

fn json_of(body: Option<&[u8]>) -> Value {
    serde_json::from_slice(body.unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prefix_is_pulled_from_a_warm_decode_pod_only_where_that_is_wanted() {
    let words = "a beginning that many prompts share, longer than a block or two of the cache ".repeat(40);
    let body = |end: &str| json!({"model":"sim","prompt":format!("{words}{end}"),"max_tokens":7,"temperature":0,"stream":true});
    for pulls in [true, false] {
        let yaml = format!("disaggregation: {{decider: always, prewarm: false, pull_from_decoders: {pulls}}}\n");
        let trio = Trio::new(0, 2, &yaml).await;
        for end in ["one", "two", "three"] {
            trio.ask_well("/v1/completions", &body(end)).await;
        }
        let remote = if pulls { 3 } else { 0 };
        assert_eq!(trio.count("remote_total{reason=\"always\"}").await, remote);
        assert_eq!(trio.count("sentinel_total{verdict=\"agrees\"}").await, remote);
        let lines = trio.gate.finish().await;
        assert_eq!(lines.iter().filter(|line| line["prefill_pod"].is_string()).count() as u64, remote);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_api_is_prefilled_on_one_pod_and_decoded_on_another() {
    let trio = Trio::new(1, 2, ALWAYS).await;
    let mut asked = 0;
    for (path, body) in bodies() {
        for is_stream in [false, true] {
            let mut body = body.clone();
            if is_stream {
                body["stream"] = json!(true);
                body["stream_options"] = json!({"include_usage": true});
            }
            trio.prefill[0].clear_log();
            trio.decode.iter().for_each(SimPod::clear_log);
            trio.ask_well(path, &body).await;
            asked += 1;
            let prefill = trio.prefill[0].served();
            assert_eq!(prefill.len(), 1, "{path}");
            let sent = json_of(prefill[0].body.as_deref());
            assert_eq!(sent["kv_transfer_params"]["do_remote_decode"], json!(true));
            assert!(sent["stream"] != json!(true) && sent.get("stream_options").is_none(), "{sent}");
            let most = ["max_tokens", "max_output_tokens"].map(|name| sent[name].clone());
            assert!(most.contains(&json!(1)) || sent["sampling_params"]["max_tokens"] == json!(1), "{sent}");
            let decode: Vec<_> = trio.decode.iter().flat_map(SimPod::served).collect();
            assert_eq!(decode.len(), 1, "{path}");
            let mut sent = json_of(decode[0].body.as_deref());
            let params = sent.as_object_mut().unwrap().remove("kv_transfer_params").unwrap();
            assert_eq!(params["do_remote_prefill"], json!(true));
            assert_eq!(sent, body, "the rest is the client's");
            assert_eq!(trio.prefill[0].leases(), 0, "the blocks are let go");
        }
    }
    assert_eq!(trio.count("remote_total{reason=\"always\"}").await, asked);
    assert_eq!(trio.count("leases_total{end=\"used\"}").await, asked);
    let checked = trio.count("sentinel_total{verdict=\"agrees\"}").await;
    assert!(checked >= asked - 4, "{checked} of {asked} were checked");
    let text = trio.gate.admin("/metrics").await;
    assert!(text.contains("tidegate_disagg_prefill_seconds_count{model=\"sim\"} 12"), "{text}");
    let lines = trio.gate.finish().await;
    assert!(lines.iter().all(|line| line["prefill_pod"].is_string() && line["pod"] != line["prefill_pod"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_second_turn_is_cached_on_the_prefill_pod_and_told_so() {
    let trio = Trio::new(1, 1, ALWAYS).await;
    let body = |more: &str| {
        let words = "a prompt of many words that fills some blocks ".repeat(20);
        json!({"model":"sim","messages":[{"role":"user","content":format!("{words}{more}")}],"max_tokens":3})
    };
    let first = trio.ask_well(CHAT, &body("")).await.json();
    assert_eq!(first["usage"]["prompt_tokens_details"]["cached_tokens"], json!(0));
    let second = trio.ask_well(CHAT, &body("and more")).await.json();
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 100, "{second}");
    trio.gate.finish().await;
}

/// A pod's part in a fault.
#[derive(Clone, Copy, Debug)]
enum On {
    Prefill,
    Decode,
}

/// A chat that was opened and has ended, without a word between.
fn mute() -> bytes::Bytes {
    let role = json!({"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"sim",
        "choices":[{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]});
    let events = format!("data: {role}\n\ndata: [DONE]\n\n");
    let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    format!("{head}{:x}\r\n{events}\r\n0\r\n\r\n", events.len()).into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_handovers_that_fail_together_are_one_failure() {
    let trio = Trio::new(1, 2, ALWAYS).await;
    for pod in &trio.decode {
        pod.script(Rule::new(Fault::Kv(KvFault::Fails)).path("/v1/chat"));
    }
    let bodies: Vec<Value> = (0..24)
        .map(|number| {
            json!({"model":"sim","messages":[{"role":"user","content":format!("once upon a time {number}")}],
            "max_tokens":5,"stream":number % 2 == 0,"temperature":0})
        })
        .collect();
    let addr = trio.gate.addr();
    let ask = |body: Value| async move { (post(addr, CHAT, "", &body.to_string()).await, body) };
    let asked: Vec<_> = bodies.into_iter().map(|body| tokio::spawn(ask(body))).collect();
    for one in asked {
        let (answer, body) = one.await.unwrap();
        let wanted = expected(CHAT, body.to_string().as_bytes(), &config(SimRole::Both)).unwrap();
        assert_eq!((answer.status, text_of(CHAT, &body, &answer)), (200, wanted.texts[0].clone()), "{body}");
    }
    for line in trio.gate.finish().await {
        assert_eq!(line["cause"], "ok", "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_fails_before_the_first_token_the_client_gets_its_text() {
    let slow = Duration::from_millis(1);
    let faults: Vec<(On, Fault, &str)> = vec![
        (On::Prefill, Fault::Refuse, "prefill_lost"),
        (On::Prefill, Fault::Status(503, Some(1)), "prefill_refused"),
        (On::Prefill, Fault::Status(500, None), "prefill_lost"),
        (On::Prefill, Fault::Status(400, None), "prefill_judged"),
        (On::Prefill, Fault::Crash, "prefill_lost"),
        (On::Prefill, Fault::Kv(KvFault::Nothing), "prefill_lost"),
        (On::Prefill, Fault::Kv(KvFault::LacksPort), "prefill_lost"),
        (On::Prefill, Fault::CutAtByte(300, tidegate::sim::http::Cut::Reset), "prefill_lost"),
        (On::Decode, Fault::Refuse, "decoder_died"),
        (On::Decode, Fault::Status(503, Some(1)), "decoder_refused"),
        (On::Decode, Fault::Crash, "decoder_died"),
        (On::Decode, Fault::Kv(KvFault::Fails), "kv_load_failed"),
        (On::Decode, Fault::Kv(KvFault::Garbles), "wrong_token"),
        (On::Decode, Fault::ErrorEvent(0), "kv_load_failed"),
        (On::Decode, Fault::Raw(mute()), "kv_load_failed"),
        (On::Decode, Fault::SlowBody(slow), ""),
    ];
    for (on, fault, cause) in faults {
        for is_stream in [false, true] {
            if !is_stream && matches!(fault, Fault::ErrorEvent(_) | Fault::Raw(_)) {
                continue;
            }
            let trio = Trio::new(2, 2, ALWAYS).await;
            let pods = match on {
                On::Prefill => &trio.prefill,
                On::Decode => &trio.decode,
            };
            pods[0].script(Rule::new(fault.clone()).path("/v1/chat").nth(1));
            for round in 0..40 {
                let body = json!({"model":"sim","messages":[{"role":"user","content":format!("once upon a time {round}")}],
                    "max_tokens":5,"stream":is_stream,"temperature":0});
                trio.ask_well(CHAT, &body).await;
                if pods[0].served().len() > 1 || !pods[0].is_up() {
                    break;
                }
            }
            assert!(!pods[0].log().is_empty(), "never asked");
            let replans = if cause.is_empty() {
                0
            } else {
                let count = trio.count(&format!("replans_total{{cause=\"{cause}\"}}")).await;
                assert!(count >= 1, "{on:?} {fault:?}: {}", trio.gate.admin("/metrics").await);
                count
            };
            let asked = trio.gate.metric("tidegate_attempts_total{model=\"sim\"}").await;
            let answered = trio.gate.metric("tidegate_disagg_leases_total{end=\"used\"}").await;
            assert!(asked <= answered + 2.0, "{on:?} {fault:?}: {asked} attempts");
            assert!(replans <= 3);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decoder_that_read_something_else_is_caught_and_its_cache_not_used_again() {
    let trio = Trio::new(1, 1, ALWAYS).await;
    trio.decode[0].script(Rule::new(Fault::Kv(KvFault::Garbles)).nth(1));
    let words = "a prompt of many words that fills some blocks of the cache ".repeat(20);
    let body = json!({"model":"sim","messages":[{"role":"user","content":words}],"max_tokens":5,"temperature":0});
    trio.ask_well(CHAT, &body).await;
    assert_eq!(trio.count("sentinel_total{verdict=\"differs\"}").await, 1);
    // The pair is suspect, so the same pod does it alone; its poisoned blocks are not found under the new salt.
    let last = trio.decode[0].served().pop().unwrap();
    let sent = json_of(last.body.as_deref());
    assert!(sent["cache_salt"].as_str().is_some_and(|salt| salt.starts_with('+')), "{sent}");
    assert_eq!(sent.get("kv_transfer_params"), None);
    trio.ask_well(CHAT, &body).await;
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_sentinel_wrong_text_gets_through() {
    let trio = Trio::new(1, 1, "disaggregation: {decider: always, sentinel: false, prewarm: false}\n").await;
    trio.decode[0].script(Rule::new(Fault::Kv(KvFault::Garbles)).nth(1));
    let body = json!({"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":5,"temperature":0});
    let answer = trio.ask(CHAT, &body).await;
    let wanted = expected(CHAT, body.to_string().as_bytes(), &config(SimRole::Both)).unwrap();
    assert_ne!(text_of(CHAT, &body, &answer), wanted.texts[0], "then the sentinel is not what catches it");
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_decoder_that_stalls_past_the_lease_is_not_believed() {
    let yaml = "disaggregation: {decider: always, lease_s: 6, prewarm: false}\ntelemetry: {interval_ms: 100}\n";
    let change = |config: SimConfig| SimConfig {
        handover: Handover { lease: Duration::from_millis(300), ..Handover::default() },
        ..config
    };
    // The pods' leases are far shorter than the gate is told: the case that no check of ages can see.
    let trio = Trio::with(1, 1, yaml, change).await;
    warm(&trio);
    let stall = Fault::Kv(KvFault::Stalls(Duration::from_secs(6)));
    trio.decode[0].script(Rule::new(stall).marker("stall"));
    // What was not overwritten is still right: the sentinel agrees, and only the pod's counters tell.
    let body =
        json!({"model":"sim","messages":[{"role":"user","content":"please stall"}],"max_tokens":5,"temperature":0});
    trio.ask_well(CHAT, &body).await;
    assert_eq!(trio.count("sentinel_total{verdict=\"expired\"}").await, 1);
    assert_eq!(trio.count("replans_total{cause=\"lease_expired\"}").await, 1);
    assert_eq!(trio.prefill[0].leases_ended(), (1, 1));
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_the_sentinel_asks_nobody() {
    let yaml = "disaggregation: {decider: always, lease_s: 5, sentinel: false, prewarm: false}\n";
    let change = |config: SimConfig| SimConfig {
        handover: Handover { lease: Duration::from_millis(300), ..Handover::default() },
        ..config
    };
    let trio = Trio::with(1, 1, yaml, change).await;
    warm(&trio);
    trio.decode[0].script(Rule::new(Fault::Kv(KvFault::Stalls(Duration::from_secs(6)))));
    let body =
        json!({"model":"sim","messages":[{"role":"user","content":"please stall"}],"max_tokens":5,"temperature":0});
    trio.ask_well(CHAT, &body).await;
    assert_eq!(trio.prefill[0].leases_ended(), (1, 1));
    assert_eq!(trio.count("sentinel_total{verdict=\"expired\"}").await, 0);
    assert_eq!(trio.count("replans_total{cause=\"lease_expired\"}").await, 0);
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_takes_longer_than_the_lease_is_not_doubted() {
    let yaml = "disaggregation: {decider: always, lease_s: 5, prewarm: false}\n";
    let trio = Trio::new(1, 1, yaml).await;
    warm(&trio);
    trio.decode[0].script(Rule::new(Fault::SlowBody(Duration::from_secs(6))).path(CHAT));
    let body =
        json!({"model":"sim","messages":[{"role":"user","content":"take your time"}],"max_tokens":5,"temperature":0});
    trio.ask_well(CHAT, &body).await;
    assert_eq!(trio.count("sentinel_total{verdict=\"agrees\"}").await, 1);
    let asked = trio.prefill[0].log().iter().filter(|arrival| arrival.path == "/metrics").count();
    assert!(asked >= 1, "the prefill pod was asked when the lease would have ended");
    assert_eq!(trio.count("replans_total{cause=\"lease_expired\"}").await, 0);
    trio.gate.finish().await;
}

/// First contact, so that a short lease suffices.
fn warm(trio: &Trio) {
    let pairs = &trio.gate.app().gate().pairs;
    let fleet = trio.gate.app().gate().table.fleet();
    for one in &fleet.pods {
        for other in &fleet.pods {
            pairs.handed_over(one.id, other.id, tidegate::base::Tokens(1), None);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_during_the_prefill_aborts_it() {
    let trio = Trio::new(1, 1, ALWAYS).await;
    trio.prefill[0].script(Rule::new(Fault::SlowTokens(Duration::from_mins(1))));
    let body = json!({"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":5}).to_string();
    let mut io = TcpStream::connect(trio.gate.addr()).await.unwrap();
    io.write_all(&kit::request(CHAT, "", &body)).await.unwrap();
    trio.prefill[0].wait_for(|log| log.iter().any(|arrival| arrival.path == CHAT && arrival.body.is_some())).await;
    drop(io);
    let left =
        |log: &[tidegate::sim::http::Arrival]| log.iter().any(|arrival| arrival.ended == Some(Ended::ClientLeft));
    trio.prefill[0].wait_for(left).await;
    trio.gate.eventually("aborted", || trio.prefill[0].running() == 0).await;
    assert_eq!((trio.prefill[0].leases(), trio.decode[0].served().len()), (0, 0));
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_split_stays_on_one_pod() {
    let trio = Trio::new(1, 1, ALWAYS).await;
    for (path, body, reason) in [
        (CHAT, json!({"model":"sim","messages":[{"role":"user","content":"x"}],"n":2}), "several_answers"),
        ("/v1/completions", json!({"model":"sim","prompt":["a","b"],"max_tokens":2}), "batch"),
        ("/v1/completions", json!({"model":"sim","prompt":"a","max_tokens":1}), "one_token"),
    ] {
        assert_eq!(trio.ask(path, &body).await.status, 200);
        assert_eq!(trio.count(&format!("local_total{{reason=\"{reason}\"}}")).await, 1, "{reason}");
    }
    assert!(trio.prefill[0].served().is_empty());
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pairs_meet_before_a_client_waits_for_it() {
    let change = |config: SimConfig| SimConfig {
        handover: Handover { contact: Duration::from_millis(200), ..Handover::default() },
        ..config
    };
    // With a lease this short a pair that never met is not used.
    let trio = Trio::with(1, 2, "disaggregation: {decider: always, lease_s: 10}\n", change).await;
    let gate = trio.gate.app().gate();
    let fleet = gate.table.fleet();
    let is_met = |decoder| {
        let prefiller = fleet.pods.iter().find(|pod| pod.spec.addr == trio.prefill[0].addr()).unwrap();
        gate.pairs.wire(prefiller.id, decoder, tidegate::base::Mono::ZERO).is_wired
    };
    let decoders = || fleet.pods.iter().filter(|pod| pod.spec.addr != trio.prefill[0].addr());
    trio.gate.eventually("all pairs met", || decoders().all(|pod| is_met(pod.id))).await;
    let body = json!({"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":5});
    trio.ask_well(CHAT, &body).await;
    assert_eq!(trio.count("remote_total{reason=\"always\"}").await, 1);
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_prefill_is_an_error_if_so_configured() {
    let trio = Trio::new(1, 1, "disaggregation: {decider: always, on_prefill_failure: fail, prewarm: false}\n").await;
    trio.prefill[0].script(Rule::new(Fault::Status(500, None)));
    let body = json!({"model":"sim","messages":[{"role":"user","content":"x"}],"max_tokens":3});
    let answer = trio.ask(CHAT, &body).await;
    assert_eq!((answer.status, trio.decode[0].served().len()), (502, 0), "{}", answer.text());
    trio.gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_good_requests_raise_no_alarm() {
    let trio = Trio::new(2, 2, ALWAYS).await;
    let addr = trio.gate.addr();
    let client = |client: u32| async move {
        for round in 0..250_u32 {
            let number = client * 250 + round;
            let temperature = [json!(0), json!(0.7), json!(1), Value::Null][number as usize % 4].clone();
            let body = json!({"model":"sim","messages":[{"role":"user","content":format!("request {number}")}],
                "max_tokens":3,"stream":number.is_multiple_of(3),"temperature":temperature});
            assert_eq!(post(addr, CHAT, "", &body.to_string()).await.status, 200, "{number}");
        }
    };
    tokio::join!(client(0), client(1), client(2), client(3), client(4), client(5), client(6), client(7));
    let agrees = trio.count("sentinel_total{verdict=\"agrees\"}").await;
    let alarms = trio.count("sentinel_total{verdict=\"differs\"}").await
        + trio.count("sentinel_total{verdict=\"expired\"}").await;
    assert!(agrees >= 1_990 && alarms <= 2, "{agrees} agree, {alarms} alarms");
    trio.gate.finish().await;
}

/// One prefill pod and two decode pods with another connector; the gate is told the port of the side service.
async fn with_connector(connector: SimConnector, name: &str, prewarm: bool) -> Trio {
    let of = |role| {
        let handover = Handover { connector, ..Handover::default() };
        SimPod::start(SimConfig { handover, ..config(role) })
    };
    let prefill = vec![of(SimRole::Prefill).await.unwrap()];
    let decode = vec![of(SimRole::Decode).await.unwrap(), of(SimRole::Decode).await.unwrap()];
    let port = prefill[0].addr().port();
    let yaml = format!("disaggregation: {{connector: {name}, decider: always, kv_port: {port}, prewarm: {prewarm}}}\n");
    let addrs = |pods: &[SimPod]| pods.iter().map(SimPod::addr).collect::<Vec<SocketAddr>>();
    let gate = Gate::with_roles(&addrs(&prefill), &addrs(&decode), &yaml).await;
    Trio { gate, prefill, decode }
}

const CONNECTORS: [(SimConnector, &str); 4] = [
    (SimConnector::NixlPush, "nixl-push"),
    (SimConnector::Mooncake, "mooncake"),
    (SimConnector::Offloading, "offloading"),
    (SimConnector::SharedStorage, "shared-storage"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_connector_hands_over_what_its_pods_read() {
    for (connector, name) in CONNECTORS {
        let trio = with_connector(connector, name, true).await;
        let asked = tokio::time::timeout(Duration::from_secs(30), async {
            // The pairs meet within a second or so; until then one pod serves.
            for round in 0_u64.. {
                for (path, mut body) in bodies() {
                    body["cache_salt"] = json!(format!("{name} {round}"));
                    trio.ask_well(path, &body).await;
                }
                if trio.count("remote_total{reason=\"always\"}").await >= 20 {
                    break;
                }
            }
        });
        assert!(asked.await.is_ok(), "{name}: no pair is used");
        // Decoders were given what they asked for: they computed next to nothing of those prompts.
        let given = given_tokens(&trio.decode[0]).await + given_tokens(&trio.decode[1]).await;
        assert!(given > 0, "{name}: nothing was handed over");
        assert_eq!(trio.count("replans_total{cause=\"kv_load_failed\"}").await, 0, "{name}");
        let asked = trio.prefill[0].log().iter().filter(|arrival| arrival.path == "/query").count();
        assert_eq!(asked > 0, connector == SimConnector::Mooncake, "{name}: {asked}");
        assert!(asked <= 4, "{name}: the engine's name is asked for again and again: {asked}");
        trio.gate.finish().await;
    }
}

/// Prompt tokens that a pod got from another one, by its own count.
async fn given_tokens(pod: &SimPod) -> u64 {
    let text = kit::get(pod.addr(), "/metrics").await.text();
    let line = text.lines().find(|line| line.contains("source=\"external_kv_transfer\""));
    line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).unwrap_or(0.0) as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_cannot_speak_to_any_connector() {
    for (connector, name) in CONNECTORS {
        let trio = with_connector(connector, name, false).await;
        for params in [
            json!({"do_remote_prefill": true}),
            json!({"do_remote_prefill": true, "transfer_id": "x", "remote_engine_id": "e", "remote_bootstrap_addr": "http://127.0.0.1:1"}),
            json!({"remote_prefiller": {"kv_request_id": "x", "remote_host": "127.0.0.1", "remote_port": 1}}),
        ] {
            let mut body = json!({"model":"sim","messages":[{"role":"user","content":"hello"}],"max_tokens":4});
            let wanted = expected(CHAT, body.to_string().as_bytes(), &config(SimRole::Both)).unwrap();
            body["kv_transfer_params"] = params;
            let answer = trio.ask(CHAT, &body).await;
            assert_eq!(answer.status, 200, "{name}: {}", answer.text());
            assert_eq!(text_of(CHAT, &body, &answer), wanted.texts[0], "{name}");
        }
        assert_eq!(trio.count("remote_total{reason=\"always\"}").await, 3, "{name}");
        trio.gate.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promise_is_judged_and_a_client_cannot_tighten_it() {
    let yaml = "disaggregation: {prewarm: false}\nflow: {slo: {ttft_ms: 60000, itl_ms: 60000}}\n";
    let trio = Trio::new(1, 1, yaml).await;
    let body = json!({"model":"sim","messages":[{"role":"user","content":"hello there"}],"max_tokens":5,"stream":true});
    let ask = async |trio: &Trio, fields: &str| {
        assert_eq!(post(trio.gate.addr(), CHAT, fields, &body.to_string()).await.status, 200);
    };
    let verdict = |name: &str| format!("tidegate_slo_total{{verdict=\"{name}\"}}");
    for fields in ["", "x-tidegate-ttft-slo-ms: 0.1\r\n", "x-llm-d-slo-tpot-ms: 0.1\r\n", "x-slo-ttft-ms: soon\r\n"] {
        ask(&trio, fields).await;
    }
    trio.gate.metric_reaches(&verdict("kept"), 4.0).await;
    trio.gate.finish().await;

    // Where nothing is promised a client's own word counts.
    let trio = Trio::new(1, 1, "disaggregation: {prewarm: false}\n").await;
    for fields in ["", "x-tidegate-ttft-slo-ms: 0.1\r\n", "x-slo-ttft-ms: 60000\r\n"] {
        ask(&trio, fields).await;
    }
    trio.gate.metric_reaches(&verdict("late"), 1.0).await;
    trio.gate.metric_reaches(&verdict("kept"), 1.0).await;
    assert_eq!(trio.gate.metric(&verdict("slow")).await as u64, 0);
    trio.gate.finish().await;
}

#[test]
fn scripts_are_rules() {
    // `nth` and scripts of one rule are what the table above relies on.
    let script: Script = Rule::new(Fault::Crash).nth(1).into();
    assert_eq!(script.rules.len(), 1);
}
