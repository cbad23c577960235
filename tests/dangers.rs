//! What endangers pods never arrives: members, headers, identities. Everything else does, to the byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod kit;

use std::path::PathBuf;

use kit::wire::{ask, connect, in_front_of, only_arrival};
use kit::{Gate, chat, get, post, raw, request};
use tidegate::sim::http::{Arrival, SimConfig, SimPod, SimRole};

const CHAT: &str = "/v1/chat/completions";
/// What kills a decode pod.
const DEADLY: &str = "{\"do_remote_prefill\":true,\"x\":[{\"a\":\"}\\\"{\"}]}";

/// Every API that generates, with what it needs besides a model.
const APIS: [(&str, &str); 12] = [
    (CHAT, r#""messages":[{"role":"user","content":"hi"}],"max_tokens":1"#),
    ("/v1/completions", r#""prompt":"hi","max_tokens":1"#),
    ("/v1/responses", r#""input":"hi","max_output_tokens":1"#),
    ("/v1/messages", r#""messages":[{"role":"user","content":"hi"}],"max_tokens":1"#),
    ("/inference/v1/generate", r#""token_ids":[1,2,3],"max_tokens":1"#),
    ("/v1/chat/completions/batch", r#""messages":[[{"role":"user","content":"hi"}]],"max_tokens":1"#),
    ("/invocations", r#""prompt":"hi","max_tokens":1"#),
    ("/v1/chat/completions/render", r#""messages":[{"role":"user","content":"hi"}]"#),
    ("/v1/completions/render", r#""prompt":"hi""#),
    ("/generative_scoring", r#""query":"hi","items":["a"]"#),
    ("/v1/messages/count_tokens", r#""messages":[{"role":"user","content":"hi"}]"#),
    ("/v1/embeddings", r#""input":"hi""#),
];

/// Bodies with dangerous members, and what shall arrive. `REST` is what the API needs, `BAD` the member's value.
const BODIES: [(&str, &str); 19] = [
    (r#"{"kv_transfer_params":BAD,"model":"sim",REST}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim",REST,"kv_transfer_params":BAD}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim","kv_transfer_params":BAD,REST}"#, r#"{"model":"sim",REST}"#),
    ("{\"model\":\"sim\"\t,\r\n\"kv_transfer_params\" \n:\t BAD ,  REST }", "{\"model\":\"sim\"\t\r\n ,  REST }"),
    (r#"{"model":"sim","kv_transfer\u005fparams":BAD,REST}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim","kv_transfer\u005Fparams":BAD,REST}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim","\u006b\u0076_transfer_param\u0073":BAD,REST}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim","ec_transfer_params":BAD,REST}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim","\u0065c_transfer_params":null,REST}"#, r#"{"model":"sim",REST}"#),
    (
        r#"{"kv_transfer_params":1,"kv_transfer_params":BAD,"model":"sim",REST,"kv_transfer_params":""}"#,
        r#"{"model":"sim",REST}"#,
    ),
    (r#"{"ec_transfer_params":[],"model":"sim",REST,"kv_transfer\u005fparams":BAD}"#, r#"{"model":"sim",REST}"#),
    (r#"{"model":"sim",REST,"vllm_xargs":{"kv_transfer_params":BAD}}"#, r#"{"model":"sim",REST,"vllm_xargs":{}}"#),
    (
        r#"{"model":"sim",REST,"vllm_xargs":{"a":1, "kv_transfer\u005fparams" : BAD,"b":[2]}}"#,
        r#"{"model":"sim",REST,"vllm_xargs":{"a":1 ,"b":[2]}}"#,
    ),
    (
        r#"{"model":"sim",REST,"vllm\u005fxargs":{"ec_transfer_params":BAD,"b":2}}"#,
        r#"{"model":"sim",REST,"vllm\u005fxargs":{"b":2}}"#,
    ),
    (
        r#"{"model":"sim",REST,"sampling_params":{"extra_args":{"kv_transfer_params":BAD,"c":1}}}"#,
        r#"{"model":"sim",REST,"sampling_params":{"extra_args":{"c":1}}}"#,
    ),
    (
        r#"{"model":"sim",REST,"sampling_params":{"n":1,"extra\u005fargs":{"c":1,"kv_transfer_params":BAD}}}"#,
        r#"{"model":"sim",REST,"sampling_params":{"n":1,"extra\u005fargs":{"c":1}}}"#,
    ),
    // These only look alike and stay.
    (
        r#"{"model":"sim",REST,"user":"\"kv_transfer_params\":{}","x":{"kv_transfer_params":BAD}}"#,
        r#"{"model":"sim",REST,"user":"\"kv_transfer_params\":{}","x":{"kv_transfer_params":BAD}}"#,
    ),
    (r#"{"model":"sim",REST,"KV_TRANSFER_PARAMS":BAD}"#, r#"{"model":"sim",REST,"KV_TRANSFER_PARAMS":BAD}"#),
    (
        r#"{ "model" : "sim", REST , "seed":1.50e+1, "big":123456789012345678901234567890, "é":"\u00e9\/" }"#,
        r#"{ "model" : "sim", REST , "seed":1.50e+1, "big":123456789012345678901234567890, "é":"\u00e9\/" }"#,
    ),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dangerous_members_never_reach_a_pod() {
    let config = SimConfig { role: SimRole::Decode, scale_out: true, ..SimConfig::default() };
    let (gate, fleet) = Gate::with_pods(1, config, "").await;
    let mut io = connect(gate.addr()).await;
    for (path, rest) in APIS {
        for (sent, wanted) in BODIES {
            let fill = |text: &str| text.replace("REST", rest).replace("BAD", DEADLY);
            let answer = ask(&mut io, &request(path, "", &fill(sent))).await;
            assert!(answer.is_whole && answer.status < 500, "{path}: {sent}: {}", answer.text());
            let arrival = only_arrival(&fleet);
            assert_eq!(arrival.path, path);
            assert_eq!(String::from_utf8_lossy(arrival.body.as_deref().unwrap()), fill(wanted), "{path}: {sent}");
        }
    }
    assert!(fleet.pods[0].is_up());
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stripped_members_are_counted_by_what_they_were() {
    let (gate, _fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let kv = "tidegate_stripped_members_total{kind=\"kv_transfer_params\"}";
    let ec = "tidegate_stripped_members_total{kind=\"ec_transfer_params\"}";
    let good = chat("sim", "x", false, 1);
    post(gate.addr(), CHAT, "", &good).await;
    assert_eq!((gate.metric(kv).await, gate.metric(ec).await), (0.0, 0.0));
    post(gate.addr(), CHAT, "", &good.replacen('{', "{\"kv_transfer_params\":{},", 1)).await;
    assert_eq!((gate.metric(kv).await, gate.metric(ec).await), (1.0, 0.0));
    post(gate.addr(), CHAT, "", &good.replacen('{', "{\"vllm_xargs\":{\"ec_transfer_params\":1},", 1)).await;
    assert_eq!((gate.metric(kv).await, gate.metric(ec).await), (1.0, 1.0));
    gate.finish().await;
}

/// Fields of what arrived, those of every call aside.
fn fields(arrival: &Arrival) -> Vec<(&str, &str)> {
    let usual = ["host", "content-length", "content-type", "x-request-id", "x-forwarded-proto", "x-forwarded-host"];
    let all = arrival.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    all.filter(|(name, _)| !usual.contains(name)).collect()
}

/// What arrives of these request fields.
async fn check(gate: &Gate, pod: &SimPod, sent: &[&str], wanted: &[(&str, &str)]) {
    let lines: String = sent.iter().flat_map(|line| [*line, "\r\n"]).collect();
    pod.clear_log();
    let answer = post(gate.addr(), CHAT, &lines, &chat("sim", "x", false, 1)).await;
    assert_eq!(answer.status, 200, "{sent:?}: {}", answer.text());
    let arrival = pod.served().pop().unwrap();
    let mut seen = fields(&arrival);
    let mut wanted = wanted.to_vec();
    seen.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(seen, wanted, "{sent:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routing_and_underscore_headers_are_dropped_and_counted() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    let gate = in_front_of(&[&pod], "").await;
    let own = ("x-forwarded-for", "127.0.0.1");
    let routing = [
        "X-Data-Parallel-Rank: 0",
        "x-prefiller-host-port: 127.0.0.1:1",
        "X-Prefiller-Hosts-Ports: 127.0.0.1:1",
        "x-encoder-hosts-ports: 127.0.0.1:1",
        "X-Gateway-Destination-Endpoint: 127.0.0.1:1",
        "x-gateway-model-name: other",
        "x-tidegate-pod: pod-1",
        "x-envoy-upstream-rq-timeout-ms: 1",
        "x-smg-target-worker: 1",
        "x-dynamo-worker: 1",
        "target-pod: 127.0.0.1:1",
        "routing-strategy: random",
    ];
    check(&gate, &pod, &routing, &[own]).await;
    let counted = gate.metric("tidegate_dropped_headers_total{kind=\"routing\"}").await;
    assert!((counted - routing.len() as f64).abs() < 0.1, "{counted}");
    check(&gate, &pod, &["x_data_parallel_rank: 0", "A_b: 1", "X-Fine: 1", "x_: "], &[own, ("x-fine", "1")]).await;
    assert!((gate.metric("tidegate_dropped_headers_total{kind=\"underscore\"}").await - 3.0).abs() < 0.1);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_the_hop_stays_there() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    let gate = in_front_of(&[&pod], "").await;
    let own = ("x-forwarded-for", "127.0.0.1");
    let sent = [
        "Connection: X-Mine, keep-alive, x-other",
        "X-Mine: 1",
        "X-Other: 2",
        "Keep-Alive: timeout=5",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eA==",
        "TE: trailers",
        "Trailer: X-After",
        "Upgrade: websocket",
        "Accept-Encoding: gzip, br",
        "Accept: text/event-stream",
        "X-Fine: 3",
        "X-Fine: 4",
        "Cookie: a=1; b=2",
    ];
    let kept = [own, ("accept", "text/event-stream"), ("x-fine", "3"), ("x-fine", "4"), ("cookie", "a=1; b=2")];
    check(&gate, &pod, &sent, &kept).await;
    // Identity can't be nominated away from the gate's own fields.
    let sent = ["Connection: x-request-id, x-forwarded-for, content-length, host, content-type", "X-Request-Id: mine"];
    check(&gate, &pod, &sent, &[own]).await;
    assert_eq!(pod.served()[0].header("x-request-id"), Some("mine"));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_configured_proxies_are_believed() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    let sent = [
        "X-Forwarded-For: 1.2.3.4",
        "X-Forwarded-For: 5.6.7.8",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: api.example",
        "Forwarded: for=1.2.3.4",
        "X-Real-IP: 1.2.3.4",
    ];
    let gate = in_front_of(&[&pod], "trust: {proxies: [10.0.0.0/8, '::1']}").await;
    check(&gate, &pod, &sent, &[("x-forwarded-for", "127.0.0.1")]).await;
    assert_eq!(pod.served()[0].header("x-forwarded-proto"), Some("http"));
    assert_eq!(pod.served()[0].header("x-forwarded-host"), Some("gate"));
    gate.finish().await;
    let gate = in_front_of(&[&pod], "trust: {proxies: [127.0.0.1]}").await;
    let believed = [("x-forwarded-for", "1.2.3.4, 5.6.7.8, 127.0.0.1"), ("forwarded", "for=1.2.3.4")];
    check(&gate, &pod, &sent, &believed).await;
    assert_eq!(pod.served()[0].header("x-forwarded-proto"), Some("https"));
    assert_eq!(pod.served()[0].header("x-forwarded-host"), Some("api.example"));
    gate.finish().await;
}

/// A file with this text, in the test's own place.
fn file(name: &str, text: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("tidegate-test-{name}-{}", std::process::id()));
    std::fs::write(&path, text).unwrap();
    path
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_key_passes_unless_the_gate_has_one() {
    let pod = SimPod::start(SimConfig { api_key: Some("client-key".into()), ..SimConfig::default() }).await.unwrap();
    let gate = Gate::start(&[pod.addr()], "").await;
    let body = chat("sim", "x", false, 1);
    assert_eq!(post(gate.addr(), CHAT, "", &body).await.status, 401, "the pod's own answer");
    assert_eq!(post(gate.addr(), CHAT, "Authorization: Bearer client-key\r\n", &body).await.status, 200);
    gate.finish().await;

    let key = file("key", "pod-key\n");
    let pod = SimPod::start(SimConfig { api_key: Some("pod-key".into()), ..SimConfig::default() }).await.unwrap();
    let gate = in_front_of(&[&pod], &format!("pods: {{credential_file: '{}'}}", key.display())).await;
    for fields in
        ["", "Authorization: Bearer client-key\r\n", "Connection: authorization\r\nAuthorization: Bearer x\r\n"]
    {
        assert_eq!(post(gate.addr(), CHAT, fields, &body).await.status, 200, "{fields}");
        let arrival = pod.served().pop().unwrap();
        let keys: Vec<_> = arrival.headers.iter().filter(|(name, _)| name == "authorization").collect();
        assert_eq!(keys.len(), 1);
        assert_eq!(keys[0].1, "Bearer pod-key");
    }
    let scrape = pod.wait_for(|log| log.iter().any(|arrival| arrival.path == "/metrics")).await;
    let scrapes = scrape.iter().filter(|arrival| matches!(arrival.path.as_str(), "/metrics" | "/v1/models"));
    assert!(scrapes.into_iter().all(|arrival| arrival.header("authorization") == Some("Bearer pod-key")));
    // A new key is taken without a restart.
    std::fs::write(&key, "next-key\n").unwrap();
    let seen = pod.wait_for(|log| {
        log.iter()
            .any(|arrival| arrival.path == "/metrics" && arrival.header("authorization") == Some("Bearer next-key"))
    });
    tokio::time::timeout(kit::PATIENCE, seen).await.expect("the new key is used");
    std::fs::remove_file(&key).unwrap();
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_ids_are_echoed_or_made() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    let gate = in_front_of(&[&pod], "").await;
    let made = |id: &str| id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    let long = "x".repeat(129);
    for (sent, is_kept) in [
        (Some("my-id_1.2:3/4"), true),
        (Some("two words"), false),
        (Some("caf\u{e9}"), false),
        (Some(""), false),
        (Some(long.as_str()), false),
        (None, false),
    ] {
        let fields = sent.map(|id| format!("X-Request-ID: {id}\r\n")).unwrap_or_default();
        let answer = post(gate.addr(), CHAT, &fields, &chat("sim", "x", false, 1)).await;
        let id = answer.header("x-request-id").unwrap();
        assert_eq!(Some(id) == sent, is_kept, "{sent:?} became {id}");
        assert!(is_kept || made(id), "{sent:?} became {id}");
        assert_eq!(pod.served().pop().unwrap().header("x-request-id"), Some(id));
    }
    let local = raw(gate.addr(), b"GET /health HTTP/1.1\r\nHost: gate\r\nX-Request-Id: abc\r\n\r\n").await;
    assert_eq!(local.header("x-request-id"), Some("abc"));
    assert!(made(get(gate.addr(), "/nope").await.header("x-request-id").unwrap()));
    let ids: Vec<_> = gate.finish().await.iter().map(|line| line["request_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!((ids.len(), ids[0].as_str(), ids[6].as_str()), (8, "my-id_1.2:3/4", "abc"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trace_goes_on() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    let gate = in_front_of(&[&pod], "").await;
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let fields = format!("traceparent: {trace}\r\ntracestate: vendor=1\r\n");
    assert_eq!(post(gate.addr(), CHAT, &fields, &chat("sim", "x", false, 1)).await.status, 200);
    let arrival = pod.served().pop().unwrap();
    // The gate exports no spans here, so it puts none between.
    assert_eq!(arrival.header("traceparent"), Some(trace));
    assert_eq!(arrival.header("tracestate"), Some("vendor=1"));
    for bad in ["", "traceparent: nonsense\r\n"] {
        assert_eq!(post(gate.addr(), CHAT, bad, &chat("sim", "x", false, 1)).await.status, 200);
        assert_eq!(pod.served().pop().unwrap().header("traceparent"), None);
    }
    gate.finish().await;
}
