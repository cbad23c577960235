//! The pod's answers against recordings of a real vLLM 0.32: status line, header names in order, every JSON key in order,
//! every value's type, every event in order. Errors must be equal to the byte.
use std::path::PathBuf;

use super::super::{Serves, SimConfig, SimPod};
use super::client::{Answer, Client, request};
use crate::sim::engine::EngineSettings;

fn fixture(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/vllm").join(format!("sim-{name}"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A recording, in parts.
fn recorded(name: &str) -> Answer {
    let text = fixture(&format!("{name}.txt"));
    let text = text.replace("\r\n", "\n");
    let (head, body) = text.split_once("\n\n").unwrap();
    let mut lines = head.lines();
    let status_line = lines.next().unwrap().trim_end().to_owned();
    let fields = lines.filter_map(|line| line.split_once(": ")).map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
    let body = body.trim_end_matches('\n').as_bytes().to_vec();
    Answer { status_line, fields, body, is_whole: true }
}

/// A text with JSON in it, with values replaced by the letter of their type and lists of equal entries shortened to one.
/// Keys keep their names and order.
fn skeleton(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text.chars().peekable();
    while let Some(letter) = rest.next() {
        match letter {
            '"' => {
                let mut word = String::new();
                let mut is_escaped = false;
                for next in rest.by_ref() {
                    if next == '"' && !is_escaped {
                        break;
                    }
                    is_escaped = next == '\\' && !is_escaped;
                    word.push(next);
                }
                if rest.peek() == Some(&':') { out.push_str(&word) } else { out.push('S') }
            }
            '0'..='9' | '-' => {
                while rest.next_if(|next| next.is_ascii_digit() || ".eE+-".contains(*next)).is_some() {}
                out.push('N');
            }
            other => out.push(other),
        }
    }
    for entry in ["N", "S"] {
        let (pair, one) = (format!("{entry},{entry}"), entry);
        while out.contains(&pair) {
            out = out.replace(&pair, one);
        }
    }
    out
}

fn config() -> SimConfig {
    SimConfig {
        models: vec!["tiny".to_owned()],
        max_model_len: 8_192,
        request_id_headers: true,
        scale_out: true,
        engine: EngineSettings { block_tokens: 32, blocks: 512, ..EngineSettings::default() },
        ..SimConfig::default()
    }
}

fn names(answer: &Answer) -> Vec<&str> {
    answer.fields.iter().map(|(name, _)| name.as_str()).collect()
}

/// Sends a request and compares with the recording `name`. `exact` compares the body to the byte.
async fn check(pod: &SimPod, name: &str, request: Vec<u8>, exact: bool) {
    let mut client = Client::connect(pod).await;
    client.send(&request).await;
    let (ours, theirs) = (client.answer().await, recorded(name));
    assert!(ours.is_whole, "{name}");
    assert_eq!(ours.status_line, theirs.status_line, "{name}");
    assert_eq!(names(&ours), names(&theirs), "{name}");
    assert_eq!(ours.field("content-type"), theirs.field("content-type"), "{name}");
    let (ours, theirs) = (ours.text(), theirs.text());
    if exact {
        assert_eq!(ours, theirs, "{name}");
    }
    let (mut ours, mut theirs) = (skeleton(ours.trim_end_matches('\n')), skeleton(&theirs));
    if name == "compl-batch-stream" {
        // How the choices of a batch interleave is a matter of timing.
        (ours, theirs) = (sorted(&ours), sorted(&theirs));
    }
    assert_eq!(ours, theirs, "{name}");
}

fn sorted(events: &str) -> String {
    let mut events: Vec<&str> = events.split("\n\n").collect();
    events.sort_unstable();
    events.join("\n\n")
}

#[tokio::test]
async fn answers_have_the_shape_of_recorded_ones() {
    let pod = SimPod::start(config()).await.unwrap();
    let recordings = [
        ("/v1/chat/completions", "chat chat-n2 chat-logprobs chat-max1 chat-stream chat-stream-usage"),
        ("/v1/chat/completions", "chat-stream-usage-continuous chat-token-ids chat-token-ids-stream"),
        ("/v1/completions", "compl-string compl-ids compl-batch compl-batch-ids compl-batch-stream compl-stream-ids"),
        ("/v1/responses", "responses responses-stream"),
        ("/v1/messages", "messages messages-stream"),
        ("/v1/messages/count_tokens", "messages-count"),
        ("/tokenize", "tokenize-chat tokenize-prompt"),
        ("/inference/v1/generate", "generate generate-stream"),
        ("/v1/chat/completions/render", "render-chat"),
        ("/v1/completions/render", "render-compl"),
    ];
    for (path, names) in recordings {
        for name in names.split(' ') {
            let body = fixture(&format!("{name}.request.json"));
            check(&pod, name, request("POST", path, body.trim_end(), ""), false).await;
        }
    }
    let compl = fixture("compl-string.request.json").replace("\"max_tokens\":4", "\"max_tokens\":1");
    for format in ["TEXT", "JSON"] {
        let more = format!("endpoint-load-metrics-format: {format}\r\n");
        check(&pod, &format!("orca-{format}"), request("POST", "/v1/completions", &compl, &more), false).await;
    }
    for (name, path) in [("get-health", "/health"), ("get-ping", "/ping"), ("get-v1_models", "/v1/models")] {
        check(&pod, name, request("GET", path, "", ""), false).await;
    }
    for (name, path) in [("get-version", "/version"), ("get-load", "/load")] {
        check(&pod, name, request("GET", path, "", ""), true).await;
    }
}

#[tokio::test]
async fn errors_are_the_recorded_ones_to_the_byte() {
    let pod = SimPod::start(config()).await.unwrap();
    let recordings = [
        ("/v1/chat/completions", "err-bad-json err-empty-body err-neg-max-tokens err-no-messages err-unknown-model"),
        ("/v1/chat/completions", "err-wrong-type"),
        ("/v1/completions", "err-max0 err-max-tokens-too-big err-token-id-range"),
        ("/v1/embeddings", "embeddings"),
    ];
    for (path, names) in recordings {
        for name in names.split(' ') {
            let body = fixture(&format!("{name}.request.json"));
            check(&pod, name, request("POST", path, body.trim_end_matches('\n'), ""), true).await;
        }
    }
    let body = fixture("err-dp-rank.request.json");
    let more = "X-data-parallel-rank: 7\r\n";
    check(&pod, "err-dp-rank", request("POST", "/v1/completions", &body, more), true).await;
    let long: Vec<String> = (0..9_000).map(|id| (100 + id % 900).to_string()).collect();
    let body = format!(r#"{{"model":"tiny","prompt":[{}],"max_tokens":1}}"#, long.join(","));
    check(&pod, "err-too-long", request("POST", "/v1/completions", &body, ""), true).await;
    let body = r#"{"model":"tiny","messages":[{"role":"user","content":"x"}],"max_tokens":1}"#;
    let more = "content-type: text/plain\r\n";
    check(&pod, "err-wrong-ctype", request("POST", "/v1/chat/completions", body, more), true).await;
    check(&pod, "err-get", request("GET", "/v1/chat/completions", "", ""), true).await;
    check(&pod, "err-404", request("GET", "/nope", "", ""), true).await;
}

#[tokio::test]
async fn a_pooling_server_has_pooling_routes_only() {
    let config = SimConfig { serves: Serves::Pooling, request_id_headers: false, ..config() };
    let pod = SimPod::start(config).await.unwrap();
    let body = r#"{"model":"tiny","input":["import os","class A"]}"#;
    let mut client = Client::connect(&pod).await;
    let ours = client.post("/v1/embeddings", body, "").await;
    let theirs = recorded("embeddings-pooling-server.abridged");
    assert_eq!(names(&ours), names(&theirs));
    let shorten = |text: String| skeleton(&text.replace(",...", ""));
    assert_eq!(shorten(ours.text()), shorten(theirs.text()));
    let body = r#"{"model":"tiny","query":"x","documents":["import os","class A"]}"#;
    check(&pod, "rerank", request("POST", "/v1/rerank", body, ""), false).await;
    let chat = fixture("chat.request.json");
    assert_eq!(client.post("/v1/chat/completions", &chat, "").await.text(), r#"{"detail":"Not Found"}"#);
}

/// Name and labels of every sample of the families that a router reads, without the values.
fn series(page: &str) -> Vec<String> {
    let is_read = |line: &&str| !line.starts_with('#') && !line.contains("_bucket") && !line.contains("_created");
    let mut all: Vec<String> = page
        .lines()
        .filter(is_read)
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(name, _)| {
            if name.starts_with("vllm:cache_config_info") { "vllm:cache_config_info" } else { name }.into()
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn metrics_have_the_recorded_names_and_labels() {
    let pod = SimPod::start(config()).await.unwrap();
    let mut client = Client::connect(&pod).await;
    client.send(&request("GET", "/metrics", "", "")).await;
    let ours = client.answer().await;
    let theirs = fixture("metrics.txt");
    let known = series(&theirs);
    for name in series(&ours.text()) {
        assert!(known.contains(&name), "vLLM has no such series: {name}");
    }
    let page = ours.text();
    for name in ["process_start_time_seconds", "vllm:num_requests_running{", "vllm:kv_cache_usage_perc{"] {
        assert!(page.contains(name), "{name}");
    }
    assert!(page.contains(r#"kv_cache_size_tokens="16384""#));
}
