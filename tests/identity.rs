//! Who asks decides: keys, tenants, classes, limits, and whose cache is read. As clients and pods see it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod kit;

use std::fmt::Write as _;

use kit::keys::KeysFile;
use kit::line::Line;
use kit::wire::{begin, has, only_arrival};
use kit::{Answer, Gate, chat, heard, post, raw, request};
use serde_json::Value;
use tidegate::app::{key_line, new_key};
use tidegate::sim::http::{Arrival, Fault, Fleet, Rule, Script, SimConfig};

const CHAT: &str = "/v1/chat/completions";
const A: &str = "tg-canary-a-7d31";
const B: &str = "tg-canary-b-7d31";
const RELOADED: &str = "tidegate_config_reloads_total{result=\"ok\"}";
const NOT_RELOADED: &str = "tidegate_config_reloads_total{result=\"bad\"}";

async fn start(yaml: &str) -> (Gate, Fleet) {
    let config = SimConfig { adapters: vec!["tuned".into()], log_body_bytes_max: 1 << 20, ..SimConfig::default() };
    Gate::with_pods(1, config, yaml).await
}

fn bearer(key: &str) -> String {
    format!("Authorization: Bearer {key}\r\n")
}

/// A short request with this key and these further fields.
async fn ask(gate: &Gate, key: &str, fields: &str) -> Answer {
    post(gate.addr(), CHAT, &(bearer(key) + fields), &chat("sim", "x", false, 1)).await
}

async fn get_with(gate: &Gate, path: &str, fields: &str) -> Answer {
    raw(gate.addr(), format!("GET {path} HTTP/1.1\r\nHost: gate\r\n{fields}\r\n").as_bytes()).await
}

fn body_of(arrival: &Arrival) -> Value {
    serde_json::from_slice(arrival.body.as_deref().unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_served_without_a_key() {
    let keys = KeysFile::new(&[(A, "a"), (B, "a")]);
    let (gate, fleet) = start(&keys.yaml("", "listen: {paths: {allow: [/my/*]}}")).await;
    for (fields, reason) in [("", "key_missing"), ("x-api-key: nobody\r\n", "key_unknown")] {
        for (path, kind) in [(CHAT, "openai"), ("/v1/messages", "anthropic"), ("/my/own", "openai")] {
            let refused = post(gate.addr(), path, fields, &chat("sim", "x", false, 1)).await;
            let seen = (refused.status, refused.header("www-authenticate"), refused.header("x-tidegate-reason"));
            assert_eq!(seen, (401, Some("Bearer"), Some(reason)), "{path}");
            let body = refused.json();
            assert_eq!(body["error"]["type"], "authentication_error", "{path}");
            assert_eq!(body["error"]["code"] == "invalid_api_key", kind == "openai", "{body}");
            assert!(refused.header("x-request-id").is_some());
        }
    }
    for path in ["/v1/models", "/v1/responses/resp_1", "/my/own"] {
        assert_eq!(get_with(&gate, path, "").await.status, 401, "{path}");
    }
    for path in ["/health", "/ping", "/version"] {
        assert_eq!(get_with(&gate, path, "").await.status, 200, "{path}");
    }
    let preflight = "Origin: http://page\r\nAccess-Control-Request-Method: POST\r\n";
    let preflight = format!("OPTIONS {CHAT} HTTP/1.1\r\nHost: gate\r\n{preflight}\r\n");
    assert_eq!(raw(gate.addr(), preflight.as_bytes()).await.status, 200);
    fleet.pods[0].clear_log();
    // The head alone is enough to be refused.
    let mut line = Line::ask(gate.addr(), &request(CHAT, "", &"x".repeat(4_096))[..200]).await;
    line.until("invalid_api_key").await;
    assert!(fleet.pods[0].served().is_empty());
    for fields in [bearer(A), bearer(B), format!("x-api-key: {A}\r\n"), format!("Api-Key: {B}\r\n")] {
        assert_eq!(post(gate.addr(), CHAT, &fields, &chat("sim", "x", false, 1)).await.status, 200, "{fields}");
        assert_eq!(get_with(&gate, "/v1/models", &fields).await.status, 200, "{fields}");
    }
    drop(line);
    let lines = gate.finish().await;
    let denied: Vec<_> = lines.iter().filter(|line| line["cause"] == "refused_caller").collect();
    assert!(denied.len() == 10 && denied.iter().all(|line| line.get("tenant").is_none()), "{denied:?}");
    let served: Vec<_> = lines.iter().filter(|line| line["cause"] == "ok" && line["route"] == "chat").collect();
    assert!(served.len() == 4 && served.iter().all(|line| line["tenant"] == "a" && line["class"] == "standard"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_key_goes_no_further_than_the_gate() {
    let heard = heard::everything();
    let keys = KeysFile::new(&[(A, "a")]);
    let yaml = keys.yaml("", "listen: {paths: {allow: [/my/*]}}\nobserve: {explain: true}");
    let (gate, fleet) = start(&yaml).await;
    let all =
        format!("{}x-api-key: {A}\r\napi-key: {A}\r\nx-request-id: canary\r\nx-tidegate-explain: 1\r\n", bearer(A));
    let answer = post(gate.addr(), CHAT, &all, &chat("sim", "x", true, 2)).await;
    assert_eq!(answer.status, 200);
    let response = post(gate.addr(), "/v1/responses", &all, r#"{"model":"sim","input":"x"}"#).await.json();
    get_with(&gate, &format!("/v1/responses/{}", response["id"].as_str().unwrap()), &all).await;
    post(gate.addr(), "/my/own", &all, r#"{"model":"sim"}"#).await;
    raw(gate.addr(), format!("OPTIONS {CHAT} HTTP/1.1\r\nHost: gate\r\n{all}\r\n").as_bytes()).await;
    assert_eq!(ask(&gate, &format!("{A}-wrong"), "").await.status, 401);
    let arrived = fleet.pods[0].log();
    assert!(arrived.iter().filter(|one| one.header("x-request-id") == Some("canary")).count() == 5, "{arrived:?}");
    let mut seen = answer.head + &format!("{arrived:?}");
    for path in ["/metrics", "/pods", "/explain", "/explain/canary"] {
        let _infallible = write!(seen, "{}", gate.admin(path).await);
    }
    let _infallible = write!(seen, "{:?}", gate.finish().await);
    assert!(seen.contains("canary") && !seen.contains(A), "{seen}");
    heard.lacks(A);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_read_again_and_a_bad_file_changes_nothing() {
    let (keys, others) = (KeysFile::new(&[(A, "a")]), KeysFile::new(&[(A, "c")]));
    let (gate, _fleet) = start(&keys.yaml("", "")).await;
    assert_eq!((ask(&gate, A, "").await.status, ask(&gate, B, "").await.status), (200, 401));
    keys.write(&[(B, "b")]);
    gate.metric_reaches(RELOADED, 1.0).await;
    assert_eq!((ask(&gate, A, "").await.status, ask(&gate, B, "").await.status), (401, 200));
    std::fs::write(keys.path(), format!("{A} a\n")).unwrap();
    gate.metric_reaches(NOT_RELOADED, 1.0).await;
    std::fs::remove_file(keys.path()).unwrap();
    gate.metric_reaches(NOT_RELOADED, 2.0).await;
    assert_eq!((ask(&gate, A, "").await.status, ask(&gate, B, "").await.status), (401, 200));
    // A configuration that names a file which is not there would let everybody in or nobody.
    gate.configure("flow: {keys_file: /nowhere/keys}\n");
    gate.metric_reaches(NOT_RELOADED, 3.0).await;
    assert_eq!((ask(&gate, A, "").await.status, ask(&gate, B, "").await.status), (401, 200));
    gate.configure(&others.yaml("", ""));
    gate.metric_reaches(RELOADED, 2.0).await;
    assert_eq!((ask(&gate, A, "").await.status, ask(&gate, B, "").await.status), (200, 401));
    gate.configure("flow: {}\n");
    gate.metric_reaches(RELOADED, 3.0).await;
    assert_eq!(ask(&gate, "nobody", "").await.status, 200);
    let lines = gate.finish().await;
    let tenants: Vec<_> = lines.iter().filter_map(|line| line["tenant"].as_str()).collect();
    assert_eq!(tenants, ["a", "b", "b", "b", "c", "default"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_that_are_not_allowed_do_not_exist() {
    let keys = KeysFile::new(&[(A, "a"), (B, "b")]);
    let more = "models: {tuned: {aliases: [fast]}}\nlisten: {paths: {allow: [/my/*]}}";
    let yaml = keys.yaml("  tenants: {a: {models: [fast]}}", more);
    let (gate, fleet) = start(&yaml).await;
    let names = |answer: &Answer| {
        let list = answer.json();
        list["data"].as_array().unwrap().iter().map(|card| card["id"].to_string()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(names(&get_with(&gate, "/v1/models", &bearer(A)).await), "\"tuned\"");
    assert_eq!(names(&get_with(&gate, "/v1/models", &bearer(B)).await), "\"sim\" \"tuned\"");
    for (key, model, status) in
        [(A, "fast", 200), (A, "tuned", 200), (A, "sim", 404), (A, "nothing", 404), (B, "sim", 200), (B, "fast", 200)]
    {
        let answer = post(gate.addr(), CHAT, &bearer(key), &chat(model, "x", false, 1)).await;
        assert_eq!(answer.status, status, "{model}: {}", answer.text());
        if status == 404 {
            let error = &answer.json()["error"];
            assert_eq!(error["message"].as_str(), Some(format!("The model `{model}` does not exist.").as_str()));
        }
    }
    // Left to the pod, it might be one that is not allowed.
    let unnamed = r#"{"messages":[{"role":"user","content":"x"}],"max_tokens":1}"#;
    assert_eq!(post(gate.addr(), CHAT, &bearer(A), unnamed).await.status, 404);
    assert_eq!(post(gate.addr(), CHAT, &bearer(B), unnamed).await.status, 200);
    assert_eq!(fleet.pods[0].served().len(), 5);
    for body in [unnamed, "", "x", "[1]", r#"{"model":"sim"}"#, r#"{"model":"nothing"}"#] {
        assert_eq!(post(gate.addr(), "/my/own", &bearer(A), body).await.status, 404, "{body}");
        assert_ne!(
            post(gate.addr(), "/my/own", &bearer(B), body).await.header("x-tidegate-reason"),
            Some("model_unknown")
        );
    }
    assert_eq!(fleet.pods[0].served().len(), 5 + 6);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_make_itself_less_urgent() {
    let keys = KeysFile::new(&[(A, "a"), (B, "b")]);
    let tenants = "  tenants: {a: {class: interactive}}\n  class_headers: [x-own, x-tidegate-class, x-smg-priority]";
    let (gate, fleet) = start(&keys.yaml(tenants, "")).await;
    let low = |priority: i64| format!(r#"{{"model":"sim","prompt":"x","max_tokens":1,"priority": {priority}}}"#);
    for (key, fields, body, class) in [
        (A, "", None, "interactive"),
        (A, "x-own: batch\r\nx-tidegate-class: standard\r\n", None, "batch"),
        (A, "X-SMG-Priority: default\r\n", None, "standard"),
        (A, "", Some(3), "batch"),
        (B, "", None, "standard"),
        (B, "x-tidegate-class: interactive\r\n", None, "standard"),
        (B, "x-own: nonsense\r\n", Some(3), "standard"),
        (B, "", Some(-3), "standard"),
    ] {
        let body = body.map_or_else(|| chat("sim", "x", false, 1), low);
        let path = if body.contains("prompt") { "/v1/completions" } else { CHAT };
        let answer = post(gate.addr(), path, &(bearer(key) + fields), &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let arrived = only_arrival(&fleet);
        for field in ["x-own", "x-tidegate-class", "x-smg-priority", "x-vllm-priority"] {
            assert_eq!(arrived.header(field), None, "{field}");
        }
        assert_eq!(arrived.body.as_deref(), Some(body.as_bytes()), "the body stays as it was");
        let counted = format!(
            "tidegate_tenant_requests_total{{tenant=\"{}\",class=\"{class}\"}}",
            if key == A { "a" } else { "other" }
        );
        gate.metric_reaches(&counted, 1.0).await;
    }
    gate.metric_reaches("tidegate_class_ignored_total{kind=\"not_allowed\"}", 2.0).await;
    gate.metric_reaches("tidegate_class_ignored_total{kind=\"unknown\"}", 1.0).await;
    let lines = gate.finish().await;
    let classes: Vec<_> = lines.iter().map(|line| line["class"].as_str().unwrap()).collect();
    let expected = ["interactive", "batch", "standard", "batch", "standard", "standard", "standard", "standard"];
    assert_eq!(classes, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_trusted_caller_may_raise_its_class_and_pods_may_be_told() {
    let (gate, fleet) = start("trust: {callers: [127.0.0.0/8]}\nflow: {pods_use_priority: true}\n").await;
    for (fields, class, priority) in [
        ("", "standard", 10),
        ("x-llm-d-inference-objective: interactive\r\n", "interactive", 0),
        ("x-gateway-inference-objective: Batch\r\n", "batch", 20),
        ("x-vllm-priority: -1\r\n", "interactive", 0),
    ] {
        for (path, body) in [(CHAT, chat("sim", "x", false, 1)), ("/v1/messages", chat("sim", "x", false, 1))] {
            let answer = post(gate.addr(), path, fields, &body).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            let arrived = only_arrival(&fleet);
            assert_eq!(body_of(&arrived)["priority"], priority, "{class} {path}");
            assert_eq!(arrived.header("x-vllm-priority"), Some(priority.to_string().as_str()));
            assert!(arrived.header("x-llm-d-inference-objective").is_none());
        }
    }
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["tenant"] == "default"));
    assert_eq!(lines.iter().filter(|line| line["class"] == "interactive").count(), 4);
}

/// Cached tokens of two tenants that send the same prompt one after the other: first, the first again, second, second again.
async fn cached(yaml: &str) -> (Vec<u64>, Vec<Value>) {
    let keys = KeysFile::new(&[(A, "a"), (B, "b")]);
    let (gate, fleet) = start(&keys.yaml("", yaml)).await;
    let body = chat("sim", &"The tide gate opens twice a day. ".repeat(100), false, 1);
    let (mut cached, mut hits) = (Vec::new(), Vec::new());
    for key in [A, A, B, B] {
        let answer = post(gate.addr(), CHAT, &bearer(key), &body).await.json();
        cached.push(answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap());
    }
    let salts = fleet.pods[0].served().iter().map(|arrival| body_of(arrival)["cache_salt"].clone()).collect();
    for line in gate.finish().await {
        hits.push(line["hit_estimate_tokens"].as_u64().unwrap());
    }
    let is_hit = |list: &[u64]| list.iter().map(|tokens| *tokens > 0).collect::<Vec<_>>();
    assert_eq!(is_hit(&hits), is_hit(&cached), "the gate's index knows whose prompt it was");
    (cached, salts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_share_the_cache_only_if_they_are_to() {
    let (shared, salts) = cached("").await;
    assert!(shared[0] == 0 && shared[1..].iter().all(|tokens| *tokens > 0), "{shared:?}");
    assert!(salts.iter().all(Value::is_null));
    let (apart, salts) = cached("prefix: {cache_isolation: tenant}").await;
    assert!(apart[0] == 0 && apart[1] > 0 && apart[2] == 0 && apart[3] > 0, "{apart:?}");
    assert!(salts[0] == salts[1] && salts[2] == salts[3] && salts[0] != salts[2], "{salts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clients_own_salt_is_mixed_in_and_never_passed_on() {
    let (gate, fleet) = start("prefix: {cache_isolation: tenant}\n").await;
    let mut salts = Vec::new();
    for salt in ["mine", "mine", "yours"] {
        for (path, member) in [
            (CHAT, "messages"),
            ("/v1/messages", "messages"),
            ("/v1/completions", "prompt"),
            ("/v1/responses", "input"),
        ] {
            let prompt = if member == "messages" { r#"[{"role":"user","content":"x"}]"# } else { "\"x\"" };
            let body = format!(r#"{{"model":"sim","max_tokens":1,"cache_salt":"{salt}", "{member}":{prompt}}}"#);
            assert_eq!(post(gate.addr(), path, "", &body).await.status, 200, "{path}");
            salts.push(body_of(&only_arrival(&fleet))["cache_salt"].as_str().unwrap().to_owned());
        }
    }
    assert!(salts.iter().all(|salt| salt.len() == 64), "{salts:?}");
    assert_eq!(salts[0], salts[4]);
    assert_ne!(salts[0], salts[8]);
    // What runs no prompt through the model needs no salt.
    post(gate.addr(), "/tokenize", "", r#"{"model":"sim","prompt":"x"}"#).await;
    assert!(body_of(&only_arrival(&fleet)).get("cache_salt").is_none());
    gate.finish().await;
}

fn limited(answer: &Answer, reason: &str) -> u64 {
    assert_eq!((answer.status, answer.header("x-tidegate-reason")), (429, Some(reason)), "{}", answer.text());
    answer.header("retry-after").unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_held_to_the_end_of_its_stream() {
    let keys = KeysFile::new(&[(A, "a"), (B, "b")]);
    let (gate, fleet) = start(&keys.yaml("  tenants: {a: {limits: {concurrent_max: 2}}}", "")).await;
    fleet.pods[0].script(Rule::new(Fault::SilenceAtEvent(2)));
    let stream = request(CHAT, &bearer(A), &chat("sim", "x", true, 4));
    let first = begin(gate.addr(), &stream, |bytes| has(bytes, "data: ")).await;
    let second = begin(gate.addr(), &stream, |bytes| has(bytes, "data: ")).await;
    fleet.pods[0].script(Script::none());
    assert_eq!(limited(&ask(&gate, A, "").await, "tenant_concurrent_limit"), 1);
    assert_eq!(ask(&gate, B, "").await.status, 200);
    drop(first);
    gate.eventually("given back", || gate.app().gate().quotas.concurrent("a") == 1).await;
    assert_eq!(ask(&gate, A, "").await.status, 200);
    drop(second);
    gate.eventually("given back", || gate.app().gate().quotas.concurrent("a") == 0).await;
    // What fails, and what is refused, holds nothing either.
    fleet.pods[0].script(Rule::new(Fault::Status(500, None)));
    assert_eq!(ask(&gate, A, "").await.status, 500);
    assert_eq!(post(gate.addr(), CHAT, &bearer(A), &chat("none", "x", false, 1)).await.status, 404);
    gate.eventually("given back", || gate.app().gate().quotas.concurrent("a") == 0).await;
    gate.metric_reaches("tidegate_tenant_refused_total{tenant=\"a\",reason=\"tenant_concurrent_limit\"}", 1.0).await;
    gate.metric_reaches("tidegate_refused_total{reason=\"tenant_concurrent_limit\"}", 1.0).await;
    let lines = gate.finish().await;
    assert!(lines.iter().any(|line| line["cause"] == "refused_tenant" && line["reason"] == "tenant_concurrent_limit"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_and_tokens_per_minute_are_limited() {
    let keys = KeysFile::new(&[(A, "a"), (B, "b")]);
    let tenants =
        "  tenants: {a: {limits: {requests_per_minute: 4}}, b: {limits: {tokens_per_minute: 1000}}}\n  gates: 2";
    let (gate, _fleet) = start(&keys.yaml(tenants, "")).await;
    for _ in 0..2 {
        assert_eq!(ask(&gate, A, "").await.status, 200);
    }
    let wait = limited(&ask(&gate, A, "").await, "tenant_requests_limit");
    assert!((20..=30).contains(&wait), "{wait}");
    // A full bucket takes a request of any size; what it was too much is paid off at 500 a minute, here some 1,500 and the next.
    let large = chat("sim", "x", false, 2_000);
    let answer = post(gate.addr(), CHAT, &bearer(B), &large).await.json();
    let used = answer["usage"]["total_tokens"].as_u64().unwrap();
    gate.eventually("settled", || gate.app().gate().quotas.concurrent("b") == 0).await;
    let wait = limited(&ask(&gate, B, "").await, "tenant_tokens_limit");
    let owed = (used - 500) * 60 / 500;
    assert!((owed - 15..owed + 15).contains(&wait), "{wait} s, {used} tokens used");
    gate.metric_reaches("tidegate_tenant_tokens_total{tenant=\"b\",kind=\"completion\"}", 2_000.0).await;
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_reserved_in_vain_is_given_back() {
    let tenants = "flow: {tenants: {default: {limits: {tokens_per_minute: 1000}}}}\n";
    let (gate, fleet) = start(tenants).await;
    fleet.pods[0].script(Rule::new(Fault::Status(500, None)));
    for _ in 0..3 {
        let answer = post(gate.addr(), CHAT, "", &chat("sim", "x", false, 900)).await;
        assert_eq!(answer.status, 500, "{}", answer.text());
        gate.eventually("settled", || gate.app().gate().quotas.concurrent("default") == 0).await;
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_its_own_promises() {
    let keys = KeysFile::new(&[(A, "a"), (B, "b")]);
    let (gate, _fleet) = start(&keys.yaml("  tenants: {a: {slo: {ttft_ms: 86400000}}}", "")).await;
    for key in [A, B] {
        assert_eq!(post(gate.addr(), CHAT, &bearer(key), &chat("sim", "x", true, 2)).await.status, 200);
    }
    gate.metric_reaches("tidegate_slo_total{verdict=\"kept\"}", 1.0).await;
    assert!(gate.metric("tidegate_slo_total{verdict=\"kept\"}").await < 1.5);
    gate.finish().await;
}

#[test]
fn a_key_is_made_apart_from_its_line() {
    let tidegate = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tidegate"));
        let output = command.arg("key").args(args).stdin(std::process::Stdio::null()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (is_good, line, key) = tidegate(&["--tenant", "red", "--note", "of Ann"]);
    assert!(is_good && key.starts_with("tg-") && key.len() > 40 && !line.contains(&key));
    assert_eq!(line, key_line(&key, "red", "of Ann").unwrap());
    assert_ne!(key, new_key().unwrap());
    let (is_good, line, _) = tidegate(&["--tenant", "not a name"]);
    assert!(!is_good && line.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stated_class_weighs_the_first_token() {
    let yaml = "trust: {callers: [127.0.0.0/8]}\n";
    let mut costs = Vec::new();
    for class in ["interactive", "", "batch"] {
        // A gate of its own for each: nothing is learnt or cached in between.
        let (gate, _fleet) = start(yaml).await;
        let fields = format!("x-tidegate-explain: 1\r\nx-tidegate-class: {class}\r\n");
        let fields = if class.is_empty() { "x-tidegate-explain: 1\r\n" } else { &fields };
        let answer = post(gate.addr(), CHAT, fields, &chat("sim", &"tide ".repeat(2_000), false, 1)).await;
        let shown: Value = serde_json::from_str(answer.header("x-tidegate-decision").unwrap()).unwrap();
        costs.push(shown["rows"][0]["scores"][0]["terms"]["prefill"].as_f64().unwrap());
        gate.finish().await;
    }
    // The scorer's own setting, for requests that say nothing, is 4; the classes have 5 and 1.
    let shares: Vec<_> = costs.iter().map(|cost| (cost / costs[2]).round()).collect();
    assert_eq!(shares, [5.0, 4.0, 1.0], "{costs:?}");
}
