//! Weighted names: which of two models a conversation gets, that it keeps it, and what clients see of that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use kit::keys::KeysFile;
use kit::{Gate, post};
use tidegate::sim::http::{SimConfig, SimPod};

const CHAT: &str = "/v1/chat/completions";
const HALVES: &str =
    "models: {chat: {aliases: [other], targets: [{model: v1, weight: 50}, {model: v2, weight: 50}]}}\n";

async fn pod(model: &str) -> SimPod {
    SimPod::start(SimConfig { models: vec![model.into()], ..SimConfig::default() }).await.unwrap()
}

/// The model that answered.
async fn asked(gate: &Gate, fields: &str, body: &serde_json::Value) -> String {
    let path = if body.get("messages").is_some() { CHAT } else { "/v1/responses" };
    let answer = post(gate.addr(), path, fields, &body.to_string()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["model"].as_str().unwrap().to_owned()
}

fn chat(messages: &[(&str, &str)]) -> serde_json::Value {
    let messages: Vec<_> =
        messages.iter().map(|(role, text)| serde_json::json!({"role": role, "content": text})).collect();
    serde_json::json!({"model": "chat", "max_tokens": 1, "messages": messages})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_keeps_its_model() {
    let (old, new) = (pod("v1").await, pod("v2").await);
    let yaml = format!("{HALVES}routing: {{session_header: x-session}}\n");
    let gate = Gate::start(&[old.addr(), new.addr()], &yaml).await;
    gate.knows_models().await;
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for number in 0..60 {
        let (system, question) = (("system", "Be brief."), format!("Question {number}?"));
        let first = asked(&gate, "", &chat(&[system, ("user", &question)])).await;
        let second = chat(&[system, ("user", &question), ("assistant", "Yes."), ("user", "Why?")]);
        assert_eq!(asked(&gate, "", &second).await, first, "the second turn");
        let mut by_alias = second;
        by_alias["model"] = "other".into();
        assert_eq!(asked(&gate, "", &by_alias).await, first, "by another name");
        *seen.entry(first).or_default() += 1;
    }
    // 60 draws with one in two: fewer than 12 of either has a chance of one in a million.
    assert!(seen.len() == 2 && seen.values().all(|count| *count >= 12), "{seen:?}");
    // Whoever names a session has one model in it, whatever is said.
    for session in 0..8 {
        let fields = format!("x-session: s{session}\r\n");
        let first = asked(&gate, &fields, &chat(&[("user", "One thing")])).await;
        assert_eq!(asked(&gate, &fields, &chat(&[("user", "Another thing")])).await, first);
    }
    // What goes on with a response goes on where that is.
    for number in 0..8 {
        let body = serde_json::json!({"model": "chat", "max_output_tokens": 1, "input": format!("Say {number}")});
        let answer = post(gate.addr(), "/v1/responses", "", &body.to_string()).await.json();
        let next = serde_json::json!({"model": "chat", "max_output_tokens": 1, "input": format!("And {number}?"),
            "previous_response_id": answer["id"]});
        assert_eq!(asked(&gate, "", &next).await, answer["model"].as_str().unwrap());
    }
    for (pod, model) in [(&old, "v1"), (&new, "v2")] {
        assert!(pod.served().iter().all(|arrival| {
            let body: serde_json::Value = serde_json::from_slice(arrival.body.as_ref().unwrap()).unwrap();
            body["model"] == model
        }));
        // Both are to be compared, so each has series of its own.
        let text = gate.admin("/metrics").await;
        assert!(text.contains(&format!("tidegate_requests_total{{model=\"{model}\",")), "{model}");
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_canary_that_is_not_there_gets_nothing() {
    let (old, new) = (pod("v1").await, pod("v2").await);
    let listed = |pods: &[&SimPod]| {
        let urls: Vec<_> = pods.iter().map(|pod| format!("{{url: '{}'}}", pod.url())).collect();
        format!("{HALVES}pods: {{list: [{}]}}\n", urls.join(","))
    };
    let gate = Gate::start(&[], &listed(&[&old])).await;
    gate.knows_models().await;
    let question = |number: u32| chat(&[("user", &format!("Question {number}?"))]);
    for number in 0..20 {
        assert_eq!(asked(&gate, "", &question(number)).await, "v1");
    }
    gate.configure(&listed(&[&old, &new]));
    gate.eventually("the canary", || gate.app().gate().table.fleet().by_model.contains_key("v2")).await;
    let mut to_new = 0;
    for number in 0..40 {
        to_new += u32::from(asked(&gate, "", &question(number)).await == "v2");
    }
    assert!((6..=34).contains(&to_new), "{to_new} of 40");
    gate.configure(&listed(&[&new]));
    gate.eventually("the old one gone", || !gate.app().gate().table.fleet().by_model.contains_key("v1")).await;
    for number in 0..20 {
        assert_eq!(asked(&gate, "", &question(number)).await, "v2");
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_use_the_name_may_use_what_it_stands_for() {
    let (old, new) = (pod("v1").await, pod("v2").await);
    let keys = KeysFile::new(&[("key-a", "gold"), ("key-b", "poor"), ("key-c", "none")]);
    let yaml =
        keys.yaml("  tenants: {gold: {models: [chat]}, poor: {models: [v1]}, none: {models: [other-model]}}", HALVES);
    let gate = Gate::start(&[old.addr(), new.addr()], &yaml).await;
    gate.knows_models().await;
    let mut to_new = 0;
    for number in 0..30 {
        let body = chat(&[("user", &format!("Question {number}?"))]);
        let as_gold = asked(&gate, "Authorization: Bearer key-a\r\n", &body).await;
        to_new += u32::from(as_gold == "v2");
        assert_eq!(asked(&gate, "Authorization: Bearer key-b\r\n", &body).await, "v1", "the other is not for them");
        let refused = post(gate.addr(), CHAT, "Authorization: Bearer key-c\r\n", &body.to_string()).await;
        assert_eq!(refused.status, 404, "{}", refused.text());
    }
    assert!((4..=26).contains(&to_new), "{to_new} of 30");
    gate.finish().await;
}
