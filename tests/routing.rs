//! Requests find their pod: by model, adapter, alias, rank, by who made a response, by what the operator opened.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod kit;

use std::collections::BTreeSet;

use kit::wire::{begin, has, in_front_of, rest};
use kit::{Gate, chat, get, post, raw, request};
use serde_json::{Value, json};
use tidegate::sim::http::{Arrival, Fault, Rule, Serves, SimConfig, SimPod};

const CHAT: &str = "/v1/chat/completions";

async fn pod(models: &[&str], adapters: &[&str]) -> SimPod {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    SimPod::start(SimConfig { models: names(models), adapters: names(adapters), ..SimConfig::default() }).await.unwrap()
}

fn body_of(arrival: &Arrival) -> Value {
    serde_json::from_slice(arrival.body.as_deref().unwrap()).unwrap()
}

/// Paths that arrived at a pod since the last call.
fn taken(pod: &SimPod) -> Vec<Arrival> {
    let served = pod.served();
    pod.clear_log();
    served
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_model_and_adapter_has_its_pods() {
    let (first, second) = (pod(&["one"], &["tuned"]).await, pod(&["two", "also-two"], &[]).await);
    let gate = in_front_of(&[&first, &second], "").await;
    for (model, owner) in [("one", &first), ("tuned", &first), ("two", &second), ("also-two", &second)] {
        for _ in 0..4 {
            let answer = post(gate.addr(), CHAT, "", &chat(model, "x", false, 1)).await;
            assert_eq!((answer.status, answer.json()["model"].as_str()), (200, Some(model)), "{}", answer.text());
        }
        assert_eq!(taken(owner).len(), 4, "{model}");
    }
    assert!(first.served().is_empty() && second.served().is_empty());
    for path in [CHAT, "/v1/messages"] {
        let unknown = post(gate.addr(), path, "", &chat("three", "x", false, 1)).await;
        assert_eq!(unknown.status, 404);
        assert!(unknown.json()["error"]["message"].as_str().unwrap().contains("three"), "{}", unknown.text());
    }
    let list = get(gate.addr(), "/v1/models").await.json();
    let names: Vec<_> = list["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["also-two", "one", "two", "tuned"]);
    assert!(first.served().is_empty() && second.served().is_empty());
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn aliases_and_rewrites_change_the_name_and_nothing_else() {
    let pod = pod(&["org/real-8b"], &[]).await;
    let yaml = "models: {org/real-8b: {aliases: [gpt-4o, fast]}, public: {rewrite_to: org/real-8b, aliases: [shown]}}";
    let gate = in_front_of(&[&pod], yaml).await;
    for name in ["gpt-4o", "fast", "public", "shown", "org/real-8b", "g\\u0070t-4o"] {
        let body = |name: &str| {
            format!(
                "{{ \"temperature\":0.70 ,\"model\" : \"{name}\",\"messages\":[{{\"role\":\"user\",\"content\":\"\\u00e9\"}}], \"max_tokens\":1e0, \"x\":[ ] }}"
            )
        };
        let answer = post(gate.addr(), CHAT, "", &body(name)).await;
        assert_ne!(answer.status, 404, "{name}: {}", answer.text());
        let arrived = taken(&pod).pop().unwrap();
        assert_eq!(String::from_utf8_lossy(arrived.body.as_deref().unwrap()), body("org/real-8b"), "{name}");
    }
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["model"] == "org/real-8b"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_model_the_only_one_is_meant_else_a_pod_judges() {
    let only = pod(&["one"], &[]).await;
    let body = r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":1}"#;
    let gate = in_front_of(&[&only], "").await;
    assert_eq!(post(gate.addr(), CHAT, "", body).await.status, 200);
    assert_eq!(taken(&only)[0].body.as_deref(), Some(body.as_bytes()), "the body stays as it was");
    let lines = gate.finish().await;
    assert_eq!(lines[0]["model"], "one");

    let other = pod(&["two"], &[]).await;
    let gate = in_front_of(&[&only, &other], "").await;
    for _ in 0..4 {
        assert_eq!(post(gate.addr(), CHAT, "", body).await.status, 200);
    }
    assert_eq!(taken(&only).len() + taken(&other).len(), 4);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranks_are_pods_of_their_own() {
    let pod = SimPod::start(SimConfig { ranks: 2, ..SimConfig::default() }).await.unwrap();
    let gate = in_front_of(&[&pod], "").await;
    gate.eventually("two ranks", || gate.app().gate().table.fleet().pods.len() == 2).await;
    gate.knows_models().await;
    pod.script(Rule::new(Fault::SilenceAtEvent(2)));
    let ask = |number: u32| request(CHAT, "", &chat("sim", &format!("{number}"), true, 4));
    let mut open = Vec::new();
    for number in 0..4 {
        open.push(begin(gate.addr(), &ask(number), |bytes| has(bytes, "data: ")).await);
    }
    let ranks: Vec<_> =
        pod.served().iter().map(|arrival| arrival.header("x-data-parallel-rank").unwrap().to_owned()).collect();
    assert_eq!(ranks.iter().filter(|rank| *rank == "0").count(), 2, "{ranks:?}");
    assert_eq!(ranks.iter().filter(|rank| *rank == "1").count(), 2, "{ranks:?}");
    drop(open);
    pod.script(tidegate::sim::http::Script::none());
    pod.clear_log();
    // A stranger's choice is not obeyed.
    let answer = post(gate.addr(), CHAT, "X-Data-Parallel-Rank: 7\r\n", &chat("sim", "x", false, 1)).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let arrived = taken(&pod);
    assert!(matches!(arrived[0].header("x-data-parallel-rank"), Some("0" | "1")));
    assert!(gate.metric("tidegate_dropped_headers_total{kind=\"routing\"}").await >= 1.0);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_callers_rank_is_kept() {
    let pod = SimPod::start(SimConfig { ranks: 3, ..SimConfig::default() }).await.unwrap();
    let single = SimPod::start(SimConfig { models: vec!["single".into()], ..SimConfig::default() }).await.unwrap();
    let gate = in_front_of(&[&pod, &single], "trust: {callers: [127.0.0.0/8]}").await;
    gate.eventually("three ranks", || gate.app().gate().table.fleet().pods.len() == 4).await;
    gate.knows_models().await;
    for rank in ["0", "1", "2", "1", "2", "0"] {
        let fields = format!("X-data-parallel-rank: {rank}\r\n");
        assert_eq!(post(gate.addr(), CHAT, &fields, &chat("sim", "x", false, 1)).await.status, 200);
        assert_eq!(taken(&pod)[0].header("x-data-parallel-rank"), Some(rank));
    }
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    assert!(taken(&pod)[0].header("x-data-parallel-rank").is_some());
    assert_eq!(
        post(gate.addr(), CHAT, "X-data-parallel-rank: 0\r\n", &chat("single", "x", false, 1)).await.status,
        200
    );
    assert_eq!(taken(&single)[0].header("x-data-parallel-rank"), Some("0"));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_is_found_at_the_pod_that_made_it() {
    let pods = [pod(&["sim"], &[]).await, pod(&["sim"], &[]).await, pod(&["sim"], &[]).await];
    let gate = in_front_of(&[&pods[0], &pods[1], &pods[2]], "").await;
    let ask = |input: &str, is_stream: bool, previous: Option<&str>| {
        let mut body = json!({"model": "sim", "input": input, "stream": is_stream, "max_output_tokens": 4});
        if let Some(previous) = previous {
            body["previous_response_id"] = previous.into();
        }
        body.to_string()
    };
    let mut makers = BTreeSet::new();
    for number in 0..12 {
        let is_stream = number % 2 == 0;
        let answer = post(gate.addr(), "/v1/responses", "", &ask(&format!("{number}"), is_stream, None)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let text = answer.text();
        let id = text.split('"').find(|part| part.starts_with("resp_")).unwrap().to_owned();
        let maker = pods.iter().position(|pod| !pod.served().is_empty()).unwrap();
        makers.insert(maker);
        for (bytes, path) in [
            (
                format!("GET /v1/responses/{id} HTTP/1.1\r\nHost: gate\r\n\r\n").into_bytes(),
                format!("/v1/responses/{id}"),
            ),
            (request(&format!("/v1/responses/{id}/cancel"), "", ""), format!("/v1/responses/{id}/cancel")),
            (request("/v1/responses", "", &ask("and then?", false, Some(&id))), "/v1/responses".to_owned()),
        ] {
            pods.iter().for_each(SimPod::clear_log);
            let answer = raw(gate.addr(), &bytes).await;
            assert_ne!(answer.status, 404, "{path}: {}", answer.text());
            let seen: Vec<_> = pods.iter().map(|pod| pod.served().len()).collect();
            assert_eq!((seen.iter().sum::<usize>(), seen[maker]), (1, 1), "{path}");
            assert_eq!(pods[maker].served()[0].path, path);
        }
        pods.iter().for_each(SimPod::clear_log);
    }
    assert!(makers.len() > 1, "one pod made all: {makers:?}");
    let unknown = get(gate.addr(), "/v1/responses/resp_nobody").await;
    assert_eq!(unknown.status, 404, "{}", unknown.text());
    let query = get(gate.addr(), "/v1/responses/resp_nobody?include=a&stream=true").await;
    assert_eq!(query.status, 404);
    assert!(pods.iter().flat_map(SimPod::served).any(|arrival| arrival.query == "include=a&stream=true"));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pooling_and_generation_live_side_by_side() {
    let generator = pod(&["sim"], &[]).await;
    let config = SimConfig { models: vec!["embedder".into()], serves: Serves::Pooling, ..SimConfig::default() };
    let pooler = SimPod::start(config).await.unwrap();
    let gate = in_front_of(&[&generator, &pooler], "").await;
    for (path, body) in [
        ("/v1/embeddings", json!({"model": "embedder", "input": ["a", "b"]})),
        ("/pooling", json!({"model": "embedder", "input": "a"})),
        ("/classify", json!({"model": "embedder", "input": "a"})),
        ("/score", json!({"model": "embedder", "text_1": "a", "text_2": ["b", "c"]})),
        ("/v1/rerank", json!({"model": "embedder", "query": "a", "documents": ["b", "c"]})),
        ("/v2/rerank", json!({"model": "embedder", "query": "a", "documents": ["b", "c"]})),
    ] {
        let answer = post(gate.addr(), path, "", &body.to_string()).await;
        assert_eq!((answer.status, answer.is_whole), (200, true), "{path}: {}", answer.text());
        let arrived = taken(&pooler);
        assert_eq!((arrived.len(), body_of(&arrived[0])), (1, body), "{path}");
    }
    for (path, body) in [
        ("/tokenize", json!({"model": "sim", "prompt": "hello"})),
        ("/detokenize", json!({"model": "sim", "tokens": [1, 2]})),
        ("/v1/messages/count_tokens", json!({"model": "sim", "messages": [{"role": "user", "content": "x"}]})),
    ] {
        let answer = post(gate.addr(), path, "", &body.to_string()).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        assert_eq!(taken(&generator).len(), 1, "{path}");
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_pod_gets_nothing() {
    let (awake, asleep) = (pod(&["sim"], &[]).await, pod(&["sim"], &[]).await);
    let text = "# TYPE vllm:engine_sleep_state gauge\n\
        vllm:engine_sleep_state{engine=\"0\",model_name=\"sim\",sleep_state=\"awake\"} 0.0\n\
        vllm:engine_sleep_state{engine=\"0\",model_name=\"sim\",sleep_state=\"weights_offloaded\"} 1.0\n\
        vllm:engine_sleep_state{engine=\"0\",model_name=\"sim\",sleep_state=\"discard_all\"} 0.0\n\
        vllm:num_requests_running{engine=\"0\",model_name=\"sim\"} 0.0\n\
        vllm:num_requests_waiting{engine=\"0\",model_name=\"sim\"} 0.0\n\
        vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} 0.0\n";
    let answer = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain; version=1.0.0\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    );
    asleep.script(Rule::new(Fault::Raw(answer.into())).path("/metrics"));
    let gate = in_front_of(&[&awake, &asleep], "").await;
    let is_asleep = || {
        let fleet = gate.app().gate().table.fleet();
        fleet.pods.iter().any(|pod| pod.facts.load().sleep == tidegate::pods::Sleep::Asleep)
    };
    gate.eventually("asleep", is_asleep).await;
    for number in 0..8 {
        assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", &format!("{number}"), false, 1)).await.status, 200);
    }
    assert_eq!((awake.served().len(), asleep.served().len()), (8, 0));
    asleep.script(tidegate::sim::http::Script::none());
    gate.eventually("awake", || !is_asleep()).await;
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn paths_are_open_that_the_operator_opened() {
    let pod = pod(&["sim"], &[]).await;
    let gate = in_front_of(&[&pod], "listen: {paths: {allow: [/reset_prefix_cache, '/my/*']}}").await;
    assert_eq!(post(gate.addr(), "/reset_prefix_cache", "", "").await.status, 200);
    assert_eq!(taken(&pod)[0].path, "/reset_prefix_cache");
    assert_eq!(get(gate.addr(), "/my/own?a=b").await.status, 404, "the pod's own 404");
    let arrived = taken(&pod);
    assert_eq!((arrived[0].path.as_str(), arrived[0].query.as_str()), ("/my/own", "a=b"));
    for path in ["/sleep", "/wake_up", "/collective_rpc", "/v1/load_lora_adapter", "/abort_requests", "/pause"] {
        let refused = post(gate.addr(), path, "", "{}").await;
        assert_eq!((refused.status, refused.header("x-tidegate-reason")), (403, Some("route_refused")), "{path}");
    }
    for path in ["/my", "/my/../sleep", "/my/%2e%2e/sleep", "/%6dy/own", "/my//own", "/reset_prefix_cache/"] {
        assert_eq!(post(gate.addr(), path, "", "{}").await.status, 404, "{path}");
    }
    assert!(pod.served().is_empty());
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_preflight_is_the_pods_to_answer() {
    let pod = pod(&["sim"], &[]).await;
    let gate = in_front_of(&[&pod], "").await;
    let ask = |path: &str| {
        format!(
            "OPTIONS {path} HTTP/1.1\r\nHost: gate\r\nOrigin: http://page\r\nAccess-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
    };
    for path in [CHAT, "/v1/models"] {
        let answer = raw(gate.addr(), ask(path).as_bytes()).await;
        assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some("*")), "{path}");
    }
    let arrived = pod.log();
    assert!(
        arrived.iter().any(|arrival| arrival.method == "OPTIONS" && arrival.header("origin") == Some("http://page"))
    );
    let refused = raw(gate.addr(), ask("/sleep").as_bytes()).await;
    assert_eq!(refused.status, 403);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_model_is_found_after_a_while_and_a_dead_pod_is_avoided() {
    let (first, second) = (pod(&["sim"], &[]).await, pod(&["sim"], &[]).await);
    let gate: Gate = in_front_of(&[&first, &second], "").await;
    first.stop().await;
    for number in 0..6 {
        let (mut io, begun) =
            begin(gate.addr(), &request(CHAT, "", &chat("sim", &format!("{number}"), true, 3)), |bytes| {
                has(bytes, "data: ")
            })
            .await;
        let answer = rest(&mut io, begun).await;
        assert!(answer.is_whole && has(&answer.body, "[DONE]"), "{}", answer.text());
    }
    assert_eq!(second.served().len(), 6);
    gate.finish().await;
}
