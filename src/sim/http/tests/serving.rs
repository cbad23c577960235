//! Serving: content that can be foreseen, cache hits, connections, aborts, restarts, limits, many streams.
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::super::{Cut, Ended, Fault, Fleet, Rule, SimArgs, SimConfig, SimPod, SimRole, expect::expected, run};
use super::client::{Client, get, post, request};
use crate::sim::engine::EngineSettings;

const CHAT: &str = "/v1/chat/completions";

fn chat(text: &str, max_tokens: u64, stream: bool) -> String {
    json!({"model": "sim", "messages": [{"role": "user", "content": text}], "max_tokens": max_tokens, "stream": stream})
        .to_string()
}

async fn pod(config: SimConfig) -> SimPod {
    SimPod::start(config).await.unwrap()
}

#[tokio::test]
async fn every_byte_of_an_answer_can_be_foreseen() {
    let pod = pod(SimConfig::default()).await;
    for stream in [false, true] {
        let body = chat("foresee me", 12, stream);
        let expected = expected(CHAT, body.as_bytes(), pod.config()).unwrap();
        let answer = post(&pod, CHAT, &body).await;
        let text = if stream {
            answer.streamed_text()
        } else {
            assert_eq!(answer.json()["usage"]["prompt_tokens"], expected.prompt_tokens);
            answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        assert_eq!(text, expected.texts[0]);
    }
    let natural = json!({"messages": [{"role": "user", "content": "as long as you like"}]}).to_string();
    let answer = post(&pod, CHAT, &natural).await.json();
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn a_second_turn_hits_the_cache_and_a_salt_does_not() {
    let pod = pod(SimConfig::default()).await;
    let first = chat(&"long ".repeat(100), 40, false);
    let cached = |answer: Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(post(&pod, CHAT, &first).await.json()), 0);
    assert!(cached(post(&pod, CHAT, &first).await.json()) > 100);
    let mut salted: Value = serde_json::from_str(&first).unwrap();
    salted["cache_salt"] = "tenant".into();
    assert_eq!(cached(post(&pod, CHAT, &salted.to_string()).await.json()), 0);
    let page = get(&pod, "/metrics").await.text();
    assert!(page.contains("vllm:prefix_cache_hits_total"), "{page}");
}

#[tokio::test]
async fn responses_are_kept_and_continued() {
    let pod = pod(SimConfig { responses_max: 2, ..SimConfig::default() }).await;
    let body = json!({"input": "one", "max_output_tokens": 3}).to_string();
    let first = post(&pod, "/v1/responses", &body).await.json();
    let id = first["id"].as_str().unwrap();
    assert_eq!(get(&pod, &format!("/v1/responses/{id}")).await.json(), first);
    let next = json!({"input": "two", "previous_response_id": id}).to_string();
    let second = post(&pod, "/v1/responses", &next).await.json();
    assert!(second["usage"]["input_tokens"].as_u64() > first["usage"]["input_tokens"].as_u64());
    assert_eq!(post(&pod, &format!("/v1/responses/{id}/cancel"), "").await.status(), 400);
    post(&pod, "/v1/responses", &body).await;
    assert_eq!(get(&pod, &format!("/v1/responses/{id}")).await.status(), 404);
}

#[tokio::test]
async fn a_half_close_aborts_and_gives_everything_back() {
    let pod = pod(SimConfig { speed: 1.0, ..SimConfig::default() }).await;
    for stream in [true, false] {
        let mut client = Client::connect(&pod).await;
        client.send(&request("POST", CHAT, &chat("never ends", 100_000, stream), "")).await;
        let left =
            |all: &[super::super::Arrival]| all.iter().filter(|one| one.ended == Some(Ended::ClientLeft)).count();
        if stream {
            assert!(client.until("assistant").await);
        } else {
            pod.wait_for(|all| all.iter().any(|one| one.body.is_some() && one.ended.is_none())).await;
        }
        client.half_close().await;
        let want = if stream { 1 } else { 2 };
        timeout(Duration::from_secs(10), pod.wait_for(|all| left(all) == want)).await.expect("the abort is not seen");
        client.rest().await;
    }
    assert_eq!(pod.running(), 0);
    let page = get(&pod, "/metrics").await.text();
    assert!(page.contains("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} 0.0"), "{page}");
}

#[tokio::test]
async fn connections_are_kept_closed_when_asked_and_closed_when_idle() {
    let pod = pod(SimConfig { keep_alive: Duration::from_millis(700), ..SimConfig::default() }).await;
    let mut client = Client::connect(&pod).await;
    let body = chat("again", 2, false);
    for _ in 0..3 {
        assert_eq!(client.post(CHAT, &body, "").await.field("connection"), None);
    }
    assert_eq!(pod.connections_accepted(), 1);
    assert!(client.rest().await.is_empty(), "closed after the idle time");
    let mut client = Client::connect(&pod).await;
    assert_eq!(client.post(CHAT, &body, "Connection: close\r\n").await.field("connection"), Some("close"));
    assert!(client.rest().await.is_empty());
}

#[tokio::test]
async fn bodies_may_be_chunked_and_invited() {
    let pod = pod(SimConfig::default()).await;
    let mut client = Client::connect(&pod).await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: p\r\ntransfer-encoding: chunked\r\nexpect: 100-continue\r\n\r\n");
    client.send(head.as_bytes()).await;
    assert_eq!(client.answer().await.status(), 100);
    let body = chat("chunked", 2, false);
    let (left, right) = body.split_at(20);
    for part in [left, right, ""] {
        client.send(format!("{:x}\r\n{part}\r\n", part.len()).as_bytes()).await;
    }
    assert_eq!(client.answer().await.status(), 200);
    assert_eq!(pod.log()[0].body.as_deref(), Some(body.as_bytes()));
}

#[tokio::test]
async fn a_stopped_pod_resets_refuses_and_comes_back_empty() {
    let pod = pod(SimConfig::default()).await;
    pod.script(Rule::new(Fault::SilenceAtEvent(2)));
    let mut client = Client::connect(&pod).await;
    client.send(&request("POST", CHAT, &chat("cut", 5, true), "")).await;
    assert!(client.until("assistant").await);
    pod.stop().await;
    assert!(!client.rest().await.ends_with(b"0\r\n\r\n"));
    assert_eq!(pod.log()[0].ended, Some(Ended::PodStopped));
    assert!(tokio::net::TcpStream::connect(pod.addr()).await.is_err());
    pod.restart().await.unwrap();
    assert_eq!(get(&pod, "/health").await.status(), 200);
    assert_eq!(pod.running(), 0);
}

#[tokio::test]
async fn a_query_of_death_kills_and_so_does_a_stray_transfer() {
    let decode = pod(SimConfig { role: SimRole::Decode, ..SimConfig::default() }).await;
    decode.script(Rule::new(Fault::Crash).marker("poison"));
    assert_eq!(post(&decode, CHAT, &chat("fine", 2, false)).await.status(), 200);
    assert_eq!(post(&decode, CHAT, &chat("poison", 2, false)).await.status(), 0);
    decode.wait_down().await;
    decode.restart().await.unwrap();
    let mut body: Value = serde_json::from_str(&chat("stray", 2, false)).unwrap();
    body["kv_transfer_params"] = json!({"do_remote_prefill": true});
    post(&decode, CHAT, &body.to_string()).await;
    timeout(Duration::from_secs(10), decode.wait_down()).await.expect("the stray transfer does not kill");
}

#[tokio::test]
async fn a_full_queue_is_busy_and_ranks_are_addressed() {
    let engine = EngineSettings { sequences_max: 1, queue_max: Some(0), ..EngineSettings::default() };
    let pod = pod(SimConfig { engine, ranks: 2, speed: 1.0, ..SimConfig::default() }).await;
    let mut held = Vec::new();
    for rank in ["0", "1"] {
        let mut client = Client::connect(&pod).await;
        let more = format!("x-data-parallel-rank: {rank}\r\n");
        client.send(&request("POST", CHAT, &chat("hold", 10_000, true), &more)).await;
        assert!(client.until("assistant").await);
        held.push(client);
    }
    let refused = post(&pod, CHAT, &chat("no", 2, true)).await;
    assert_eq!((refused.status(), refused.json()["error"]["type"].as_str()), (503, Some("Service Unavailable")));
    let page = get(&pod, "/metrics").await.text();
    for rank in 0..2 {
        let line = format!("vllm:num_requests_running{{engine=\"{rank}\",model_name=\"sim\"}} 1.0");
        assert!(page.contains(&line), "{page}");
    }
}

#[tokio::test]
async fn a_thousand_slow_streams_are_whole() {
    let pod = pod(SimConfig::default()).await;
    pod.script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))));
    let body = chat("slow", 5, true);
    let text = expected(CHAT, body.as_bytes(), pod.config()).unwrap().texts[0].clone();
    let mut clients = Vec::new();
    for _ in 0..1_000 {
        let mut client = Client::connect(&pod).await;
        client.send(&request("POST", CHAT, &body, "")).await;
        clients.push(client);
    }
    for mut client in clients {
        let answer = client.answer().await;
        assert_eq!((answer.is_whole, answer.streamed_text()), (true, text.clone()));
    }
    pod.wait_for(|all| all.iter().all(|one| one.ended.is_some())).await;
    assert_eq!(pod.running(), 0);
}

#[tokio::test]
async fn the_engine_takes_its_time_at_speed_one() {
    let pod = pod(SimConfig { speed: 4.0, ..SimConfig::default() }).await;
    let started = crate::runtime::now();
    let answer = post(&pod, CHAT, &chat("timed", 20, true)).await;
    let took = crate::runtime::now().since(started);
    assert!(answer.is_whole && took >= Duration::from_millis(20 * 6 / 4), "{took:?}");
    pod.script(Rule::new(Fault::CutAtEvent(3, Cut::Fin)));
    assert!(!post(&pod, CHAT, &chat("cut", 20, true)).await.is_whole);
    assert_eq!(pod.running(), 0);
}

#[derive(clap::Parser)]
struct Line {
    #[command(flatten)]
    sim: SimArgs,
}

#[tokio::test]
async fn the_command_line_starts_pods_with_their_faults() {
    let line = "sim --listen 127.0.0.1:0 --pods 2 --model a --model b --adapter c --speed 0 --fault status=503";
    let args = <Line as clap::Parser>::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{error}")).sim;
    let fleet = run(args).await.unwrap();
    assert_eq!(fleet.addrs().len(), 2);
    for pod in &fleet.pods {
        let models = get(pod, "/v1/models").await.json();
        let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|card| card["id"].clone()).collect();
        assert_eq!((names, &models["data"][2]["parent"]), (vec![json!("a"), json!("b"), json!("c")], &json!("a")));
        assert_eq!(post(pod, CHAT, &chat("x", 1, false)).await.status(), 503);
    }
    let wrong = <Line as clap::Parser>::try_parse_from(["sim", "--fault", "what"]);
    assert!(wrong.is_err_and(|error| error.to_string().contains("slow-tokens=50")));
    let demo = Fleet::start(3, SimConfig::default()).await.unwrap();
    demo.stop().await;
    assert!(demo.pods.iter().all(|pod| !pod.is_up()));
}
