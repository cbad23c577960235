//! The gate serves what pods serve: every API, streamed or not, and its own routes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod kit;

use kit::{Gate, chat, events, get, post, raw};
use tidegate::sim::content::expected;
use tidegate::sim::http::SimConfig;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_reaches_a_pod_and_comes_back_to_the_byte() {
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
    for is_stream in [false, true] {
        let body = chat("sim", "What is a tide gate?", is_stream, 12);
        let answer = post(gate.addr(), "/v1/chat/completions", "", &body).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert!(answer.is_whole);
        let wanted = expected("/v1/chat/completions", body.as_bytes(), fleet.pods[0].config()).unwrap();
        let text = if is_stream {
            let events = events(&answer.body);
            assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
            let pieces = events.iter().filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok());
            pieces.filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
        } else {
            answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
        };
        assert_eq!(text, wanted.texts[0], "stream: {is_stream}");
    }
    let lines = gate.finish().await;
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| line["cause"] == "ok" && line["attempts"] == 1 && line["completion_tokens"] != 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn own_routes_answer_and_pods_routes_are_closed() {
    let (gate, _fleet) =
        Gate::with_pods(2, SimConfig { adapters: vec!["tuned".into()], ..SimConfig::default() }, "").await;
    let models = get(gate.addr(), "/v1/models").await.json();
    let names: Vec<_> = models["data"].as_array().unwrap().iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["sim", "tuned"]);
    for (path, status) in
        [("/health", 200), ("/ping", 200), ("/version", 200), ("/metrics", 403), ("/sleep", 403), ("/nope", 404)]
    {
        assert_eq!(get(gate.addr(), path).await.status, status, "{path}");
    }
    assert_eq!(get(gate.addr(), "/v1/chat/completions").await.status, 405);
    for (path, fields, origin) in [
        ("/v1/models", "origin: https://page.example\r\n", Some("*")),
        ("/nope", "origin: https://page.example\r\n", Some("*")),
        ("/v1/models", "", None),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: gate\r\n{fields}connection: close\r\n\r\n");
        let answer = raw(gate.addr(), request.as_bytes()).await;
        assert_eq!(answer.header("access-control-allow-origin"), origin, "{path}");
    }
    let unknown = post(gate.addr(), "/v1/chat/completions", "", &chat("nobody", "x", false, 1)).await;
    assert_eq!((unknown.status, unknown.json()["error"]["type"].as_str()), (404, Some("NotFoundError")));
    gate.finish().await;
}
