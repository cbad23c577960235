//! The dashboard over sockets: the page and its headers, who is answered, and that what happens is told within a second or so.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod kit;

use std::net::SocketAddr;
use std::time::Duration;

use kit::{Gate, PATIENCE, chat, get, post, raw};
use serde_json::Value;
use tidegate::sim::http::{Fleet, SimConfig, SimRole};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

/// Somebody who looks at the dashboard.
struct Viewer(BufReader<TcpStream>);

impl Viewer {
    async fn open(admin: SocketAddr) -> Self {
        let mut io = TcpStream::connect(admin).await.unwrap();
        io.write_all(b"GET /dashboard/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept-Language: en\r\n\r\n")
            .await
            .unwrap();
        Self(BufReader::new(io))
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        tokio::time::timeout(PATIENCE, self.0.read_line(&mut line)).await.unwrap().unwrap();
        line
    }

    /// The next event: name and data.
    async fn event(&mut self) -> (String, Value) {
        loop {
            if let Some(name) = self.line().await.strip_prefix("event: ") {
                let data = self.line().await;
                return (name.trim().to_owned(), serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap());
            }
        }
    }

    /// The decision of a request once it has ended.
    async fn ended(&mut self, id: &str) -> Value {
        loop {
            let (_, data) = self.event().await;
            let lines = data["decisions"].as_array().unwrap();
            if let Some(line) = lines.iter().find(|line| line["id"] == id && !line["end"].is_null()) {
                return line.clone();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_told_and_no_prompt_is() {
    let (gate, _fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
    let mut viewer = Viewer::open(gate.app().admin_addr()).await;
    let (name, whole) = viewer.event().await;
    assert_eq!((&*name, whole["cards"].as_array().unwrap().len()), ("whole", 2));
    assert_eq!((&whole["now"]["gate"]["missing"], &whole["now"]["gate"]["safe_mode"]), (&Value::Null, &false.into()));
    let body = chat("sim", "canary-prompt", true, 5);
    let answer = post(
        gate.addr(),
        "/v1/chat/completions",
        "x-request-id: seen/1\r\nauthorization: Bearer canary-key\r\n",
        &body,
    )
    .await;
    assert_eq!(answer.status, 200);
    let line = viewer.ended("seen/1").await;
    assert_eq!((&line["model"], &line["end"][0], &line["end"][2]), (&"sim".into(), &"ok".into(), &200.into()));
    assert!(line["cost"].is_number() && line["pod"].as_str().unwrap().starts_with("pod-"), "{line}");
    assert!(!line.to_string().contains("canary"));
    let (name, tick) = viewer.event().await;
    assert_eq!(name, "tick");
    assert!(tick["pods"].as_array().unwrap().len() <= 2 && !tick.to_string().contains("canary"));
    // As a browser writes an id with a slash.
    let kept = get(gate.app().admin_addr(), "/explain/seen%2F1").await;
    assert_eq!((kept.status, &kept.json()["decision"]["chosen"]), (200, &line["pod"]));
    drop(viewer);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_two_pods_tells_what_both_ways_would_cost() {
    let start = |role| Fleet::start(1, SimConfig { role, ..SimConfig::default() });
    let (prefill, decode) = (start(SimRole::Prefill).await.unwrap(), start(SimRole::Decode).await.unwrap());
    let gate =
        Gate::with_roles(&prefill.addrs(), &decode.addrs(), "disaggregation: {decider: always, prewarm: false}").await;
    let mut viewer = Viewer::open(gate.app().admin_addr()).await;
    let body = chat("sim", &"word ".repeat(400), true, 5);
    post(gate.addr(), "/v1/chat/completions", "x-request-id: two\r\n", &body).await;
    let line = viewer.ended("two").await;
    assert_eq!((&line["prefill_pod"], &line["pod"]), (&"pod-0".into(), &"pod-1".into()), "{line}");
    let split = get(gate.app().admin_addr(), "/explain/two").await.json()["split"].clone();
    for way in ["local", "remote"] {
        let parts = split[way].as_object().unwrap();
        let sum: f64 = parts.values().map(|part| part.as_f64().unwrap()).sum();
        assert!(
            (sum - split[format!("{way}_s")].as_f64().unwrap()).abs() < 1e-6,
            "{way} is the sum of its parts: {split}"
        );
    }
    assert!(split["remote"]["transfer_s"].as_f64().unwrap() > 0.0 && split["local"]["transfer_s"] == 0.0, "{split}");
    drop(viewer);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_keeps_to_itself_and_foreign_names_are_not_answered() {
    let gate = Gate::start(&[], "admin: {hosts: [gate.example.com]}").await;
    let admin = gate.app().admin_addr();
    let ask = |path: &'static str, fields: &'static str| async move {
        raw(admin, format!("GET {path} HTTP/1.1\r\n{fields}\r\n\r\n").as_bytes()).await
    };
    let page = ask("/", "Host: localhost:9901\r\nAccept: text/html,*/*\r\nAccept-Language: en").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';") && policy.contains("frame-ancestors 'none'"));
    assert!(page.header("access-control-allow-origin").is_none());
    assert!(ask("/", "Host: x").await.text().starts_with("tidegate admin"), "tools get text");
    for path in ["/dashboard", "/dashboard/events", "/pods", "/metrics", "/explain/x"] {
        let foreign = ask(path, "Host: evil.example:9901\r\nAccept-Language: en").await;
        assert_eq!((foreign.status, foreign.text().contains("admin.hosts")), (421, true), "{path}");
    }
    assert_eq!(ask("/pods", "Host: evil.example\r\nOrigin: http://evil.example").await.status, 421);
    assert_eq!(ask("/pods", "Host: gate.example.com\r\nAccept-Language: en").await.status, 200);
    assert_eq!(ask("/metrics", "Host: gate.elsewhere.example").await.status, 200, "Prometheus is no browser");
    let refused = raw(admin, b"POST /dashboard/events HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").await;
    assert_eq!(refused.status, 404);

    let mut viewers = Vec::new();
    for _ in 0..16 {
        let mut viewer = Viewer::open(admin).await;
        viewer.event().await;
        viewers.push(viewer);
    }
    assert_eq!(ask("/dashboard/events", "Host: localhost").await.status, 503, "places are bounded");
    assert_eq!(ask("/healthz", "Host: x").await.status, 200, "and others are served meanwhile");
    viewers.pop();
    let has_room = async {
        while ask("/dashboard", "Host: x").await.status == 200 {
            let mut viewer = Viewer::open(admin).await;
            if viewer.line().await.starts_with("HTTP/1.1 200") {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), has_room).await.unwrap();
    gate.finish().await;
}
