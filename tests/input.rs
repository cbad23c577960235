//! Bad input costs nobody but who sent it: it is answered as promised, reaches no pod, and good bodies arrive to the byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
#[path = "../loadtest/src/corpus.rs"]
mod corpus;
mod kit;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use corpus::{Case, Want};
use kit::wire::{answers_until_closed, arrived, ask, chunked, connect, only_arrival, until_closed};
use kit::{Answer, Gate, chat, parse, post, raw, read_answer, request};
use tidegate::sim::engine::EngineSettings;
use tidegate::sim::http::{Fleet, SimConfig};
use tokio::io::AsyncWriteExt;

const CHAT: &str = "/v1/chat/completions";
const SHORT: &str = "limits: {timeouts: {head_s: 1, body_s: 1, body_bytes_per_s: 1048576}}";

async fn start(yaml: &str) -> (Gate, Fleet) {
    let engine = EngineSettings { blocks: 200_000, ..EngineSettings::default() };
    let config = SimConfig { log_body_bytes_max: 16 << 20, max_model_len: 1 << 24, engine, ..SimConfig::default() };
    Gate::with_pods(1, config, yaml).await
}

/// A chat body of exactly `bytes` bytes.
fn chat_of(bytes: usize) -> String {
    let empty = chat("sim", "", false, 1);
    chat("sim", &"x".repeat(bytes - empty.len()), false, 1)
}

/// The good client beside bad ones is served.
async fn is_served(addr: SocketAddr) {
    let answer = post(addr, CHAT, "", &chat("sim", "good", false, 2)).await;
    assert_eq!((answer.status, answer.is_whole), (200, true), "{}", answer.text());
}

/// In the shape of its API.
fn is_refusal(answer: &Answer, path: &str, status: u16) {
    assert_eq!((answer.status, answer.is_whole), (status, true), "{path}: {}", answer.text());
    assert!(answer.header("x-request-id").is_some());
    let json = answer.json();
    if path.starts_with("/v1/messages") {
        assert_eq!(json["type"], "error", "{json}");
        assert!(json["error"]["type"].is_string() && json["error"]["message"].is_string(), "{json}");
    } else {
        assert_eq!(json["error"]["code"], status, "{json}");
        assert!(json["error"]["type"].is_string() && json["error"]["message"].is_string(), "{json}");
    }
}

fn bad_bodies() -> Vec<(&'static str, Vec<u8>)> {
    let good = chat("sim", "hello", false, 1);
    let deep = format!("{{\"model\":\"sim\",\"a\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    let open = format!("{{\"model\":\"sim\",\"a\":{}", "{\"a\":".repeat(100_000));
    let keys: Vec<_> = (0..1_000_000).map(|number| format!("\"k{number}\":0")).collect();
    let mut wrong_text = good.clone().into_bytes();
    let at = good.find("hello").unwrap();
    wrong_text[at] = 0xFF;
    vec![
        ("empty", Vec::new()),
        ("white space", b" \r\n\t".to_vec()),
        ("truncated", good.as_bytes()[..good.len() - 1].to_vec()),
        ("truncated in a string", good.as_bytes()[..at + 2].to_vec()),
        ("something after it", format!("{good}{good}").into_bytes()),
        ("100,000 deep", deep.into_bytes()),
        ("100,000 deep and open", open.into_bytes()),
        ("1,000,000 keys", format!("{{\"model\":\"sim\",{}}}", keys.join(",")).into_bytes()),
        ("invalid UTF-8", wrong_text),
        ("lone continuation", b"{\"model\":\"sim\",\"a\":\"\x80\"}".to_vec()),
        ("model twice", good.replacen('{', "{\"model\":\"other\",", 1).into_bytes()),
        ("model twice, escaped", good.replacen('{', "{\"mod\\u0065l\":\"other\",", 1).into_bytes()),
        ("array", b"[1]".to_vec()),
        ("string", b"\"x\"".to_vec()),
        ("number", b"1".to_vec()),
        ("null", b"null".to_vec()),
        ("not JSON", b"model=sim".to_vec()),
        ("single quotes", b"{'model':'sim'}".to_vec()),
        ("trailing comma", b"{\"model\":\"sim\",}".to_vec()),
        ("raw line end in a string", b"{\"model\":\"sim\",\"a\":\"\n\"}".to_vec()),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_bodies_are_refused_in_the_shape_of_the_api() {
    let (gate, fleet) = start("").await;
    let mut sent = 0;
    for path in [CHAT, "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings"] {
        for (name, body) in bad_bodies() {
            let head = format!("POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Length: {}\r\n\r\n", body.len());
            let answer = raw(gate.addr(), &[head.as_bytes(), &body].concat()).await;
            assert_eq!(answer.status, 400, "{name}");
            is_refusal(&answer, path, 400);
            sent += 1;
        }
    }
    assert_eq!(arrived(&fleet).len(), 0);
    is_served(gate.addr()).await;
    let lines = gate.finish().await;
    assert_eq!(lines.iter().filter(|line| line["cause"] == "bad_body" && line["status"] == 400).count(), sent);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hostile_body_costs_milliseconds() {
    let (gate, _fleet) = start("").await;
    for (name, body) in bad_bodies().into_iter().filter(|(_, body)| body.len() > 10_000) {
        let mut io = connect(gate.addr()).await;
        let text = String::from_utf8(body).unwrap();
        let answer = ask(&mut io, &request(CHAT, "", &text)).await;
        assert_eq!(answer.status, 400, "{name}");
    }
    let text = gate.admin("/metrics").await;
    let spent = text.lines().find(|line| line.contains("gate_overhead_seconds_sum{stage=\"anatomy\"}"));
    // Only good anatomies are timed; a hostile one ends before that.
    assert!(spent.is_none_or(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap() < 0.5), "{spent:?}");
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_over_the_limit_is_refused_before_it_is_read() {
    let (gate, fleet) = start("limits: {body_bytes_max: 100000}").await;
    for path in [CHAT, "/v1/messages"] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Length: 100001\r\n\r\n");
        let mut io = connect(gate.addr()).await;
        let answer = ask(&mut io, head.as_bytes()).await;
        is_refusal(&answer, path, 413);
        assert_eq!(answer.header("connection"), Some("close"));
        assert!(until_closed(&mut io).await.is_empty());
    }
    let answer = post(gate.addr(), CHAT, "", &chat_of(100_000)).await;
    assert_eq!(answer.status, 200, "the limit itself fits: {}", answer.text());
    only_arrival(&fleet);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_too_much_hears_413_all_the_same() {
    let (gate, fleet) = start("limits: {body_bytes_max: 100000}").await;
    let big = chat_of(2 << 20);
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gate\r\n";
    for (framing, body) in [
        (format!("Content-Length: {}", big.len()), big.clone().into_bytes()),
        ("Transfer-Encoding: chunked".to_owned(), chunked(big.as_bytes(), 60_000)),
        (format!("Expect: 100-continue\r\nContent-Length: {}", big.len()), big.clone().into_bytes()),
    ] {
        for _ in 0..5 {
            let bytes = [head.as_bytes(), framing.as_bytes(), b"\r\n\r\n", &body].concat();
            let answers = answers_until_closed(gate.addr(), &bytes).await;
            assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [413], "{framing}");
            is_refusal(&answers[0], CHAT, 413);
        }
    }
    assert_eq!(arrived(&fleet).len(), 0);
    is_served(gate.addr()).await;
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_that_lies_is_no_way_in() {
    let (gate, fleet) = start(SHORT).await;
    let body = chat("sim", "short", false, 1);
    let head = |length: usize| format!("POST {CHAT} HTTP/1.1\r\nHost: gate\r\nContent-Length: {length}\r\n\r\n");
    // Less than announced, and waiting.
    let answers = answers_until_closed(gate.addr(), (head(body.len() + 1) + &body).as_bytes()).await;
    is_refusal(&answers[0], CHAT, 408);
    // Less than announced, and gone: nobody is left to hear anything.
    let mut io = connect(gate.addr()).await;
    io.write_all((head(body.len() + 1) + &body).as_bytes()).await.unwrap();
    io.shutdown().await.unwrap();
    let late = until_closed(&mut io).await;
    assert!(parse(&late, true).is_none_or(|answer| answer.status == 400), "{}", String::from_utf8_lossy(&late));
    // The same in chunks.
    let mut io = connect(gate.addr()).await;
    io.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: gate\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"mo")
        .await
        .unwrap();
    io.shutdown().await.unwrap();
    until_closed(&mut io).await;
    assert_eq!(arrived(&fleet).len(), 0);
    // More than announced: the rest is no second request in disguise of the first.
    let tail = "GET /smuggled HTTP/1.1\r\nHost: gate\r\n\r\n";
    let answer = raw(gate.addr(), (head(body.len()) + &body + tail).as_bytes()).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let arrival = only_arrival(&fleet);
    assert_eq!((arrival.path.as_str(), arrival.body.as_deref()), (CHAT, Some(body.as_bytes())));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compressed_bodies_are_refused() {
    let (gate, fleet) = start("").await;
    for (path, coding, status) in [
        (CHAT, "gzip", 415),
        ("/v1/messages", "br", 415),
        (CHAT, "identity, gzip", 415),
        (CHAT, "zstd", 415),
        (CHAT, "identity", 200),
    ] {
        let fields = format!("Content-Encoding: {coding}\r\n");
        let answer = post(gate.addr(), path, &fields, &chat("sim", "x", false, 1)).await;
        if status == 200 {
            assert_eq!(answer.status, 200, "{coding}");
            only_arrival(&fleet);
        } else {
            is_refusal(&answer, path, status);
            assert_eq!(arrived(&fleet).len(), 0);
        }
    }
    // The connection stays in step.
    let mut io = connect(gate.addr()).await;
    let refused = ask(&mut io, &request(CHAT, "Content-Encoding: gzip\r\n", "GET /smuggled HTTP/1.1\r\n\r\n")).await;
    assert_eq!(refused.status, 415);
    if refused.header("connection") != Some("close") {
        let answer = ask(&mut io, &request(CHAT, "", &chat("sim", "x", false, 1))).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    gate.finish().await;
}

#[allow(clippy::disallowed_methods, reason = "drips bytes: the pace is what is tested")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_heads_and_bodies_end_at_their_deadlines() {
    let (gate, fleet) = start(SHORT).await;
    let head = "POST /v1/chat/completions HTTP/1.1\r\nHost: gate\r\n";
    let slow = |start: String, drip: &'static [u8]| {
        let addr = gate.addr();
        async move {
            let began = Instant::now();
            let (mut read, mut write) = connect(addr).await.into_split();
            write.write_all(start.as_bytes()).await.unwrap();
            let dripping = tokio::spawn(async move {
                while !drip.is_empty() && write.write_all(drip).await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                write
            });
            let mut bytes = Vec::new();
            let mut piece = [0; 4096];
            while let Ok(Ok(count @ 1..)) =
                tokio::time::timeout(kit::PATIENCE, tokio::io::AsyncReadExt::read(&mut read, &mut piece)).await
            {
                bytes.extend_from_slice(&piece[..count]);
            }
            drop(read);
            drop(dripping.await.unwrap());
            (parse(&bytes, true).unwrap_or_else(|| panic!("no answer to {start:?}")), began.elapsed())
        }
    };
    let (dripped, stopped, chunks, plain) = tokio::join!(
        slow(format!("{head}X-A: "), b"a"),
        slow("POS".to_owned(), b""),
        slow(format!("{head}Transfer-Encoding: chunked\r\n\r\n"), b"1\r\n \r\n"),
        slow(format!("{head}Content-Length: 1000\r\n\r\n"), b" "),
    );
    for (answer, took) in [dripped, stopped, chunks, plain] {
        is_refusal(&answer, CHAT, 408);
        assert!(took >= Duration::from_millis(900) && took < Duration::from_secs(5), "{took:?}");
    }
    assert_eq!(arrived(&fleet).len(), 0);
    is_served(gate.addr()).await;
    let lines = gate.finish().await;
    let count = |cause: &str| lines.iter().filter(|line| line["cause"] == cause).count();
    assert_eq!((count("head_timeout"), count("body_timeout"), count("ok")), (2, 2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_connection_is_closed_without_a_word() {
    let (gate, _fleet) = start(SHORT).await;
    let h2c = gate.app().h2c_addr().unwrap();
    let (mut fresh, mut fresh_h2c) = (connect(gate.addr()).await, connect(h2c).await);
    let (first, second) = tokio::join!(until_closed(&mut fresh), until_closed(&mut fresh_h2c));
    assert!(first.is_empty() && second.is_empty());
    assert_eq!(gate.finish().await.len(), 0, "no request, no line");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_outlives_the_head_deadline_but_not_its_own() {
    let yaml = "limits: {timeouts: {head_s: 1, keep_alive_s: 3}}";
    let (gate, _fleet) = start(yaml).await;
    let mut io = connect(gate.addr()).await;
    let body = chat("sim", "x", false, 1);
    assert_eq!(ask(&mut io, &request(CHAT, "", &body)).await.status, 200);
    let idle = Instant::now();
    assert!(until_closed(&mut io).await.is_empty());
    assert!(idle.elapsed() >= Duration::from_millis(2_500), "{:?}", idle.elapsed());
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_bounds() {
    let (gate, fleet) = start("limits: {head_bytes_max: 8192, head_fields_max: 20, target_bytes_max: 1000}").await;
    let post = |target: &str, fields: &str| {
        format!("POST {target} HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\n{fields}\r\n").into_bytes()
    };
    let field = |bytes: usize| format!("X: {}\r\n", "x".repeat(bytes));
    let fields = |count: usize| (0..count).map(|number| format!("X-{number}: a\r\n")).collect::<Vec<_>>().concat();
    for (bytes, status) in [
        (post(CHAT, &field(9_000)), 431),
        (post(CHAT, &field(100_000)), 431),
        (post(CHAT, &fields(19)), 431),
        (post(CHAT, &fields(18)), 400),
        (post(&format!("{CHAT}?{}", "a".repeat(1_000)), ""), 414),
        (post(&format!("{CHAT}?{}", "a".repeat(9_000)), ""), 431),
    ] {
        let mut io = connect(gate.addr()).await;
        drop(io.write_all(&bytes).await);
        let answer = read_answer(&mut io).await;
        is_refusal(&answer, CHAT, status);
        if status != 400 {
            assert!(until_closed(&mut io).await.is_empty());
        }
    }
    assert_eq!(arrived(&fleet).len(), 0);
    gate.finish().await;
}

/// The exact status where the corpus leaves a choice.
fn status_of(case: &Case) -> u16 {
    match (case.class, case.name.as_str()) {
        ("head size", _) | ("target", "70 kB") => 431,
        _ => 400,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_ambiguous_reaches_a_pod() {
    let (gate, fleet) = start("limits: {timeouts: {head_s: 1, body_s: 1, keep_alive_s: 1}}").await;
    let mut faults = Vec::new();
    for case in corpus::corpus("sim") {
        let answers = answers_until_closed(gate.addr(), &case.bytes).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        let seen = arrived(&fleet);
        fleet.pods[0].clear_log();
        let is_good = match case.want {
            Want::Refused(_) => seen.is_empty() && statuses == [status_of(&case)],
            Want::Harmless => seen.len() <= 1 && seen.iter().all(|arrival| arrival.path == CHAT),
        };
        if !is_good {
            let paths: Vec<_> = seen.iter().map(|arrival| arrival.path.clone()).collect();
            faults.push(format!("{}, {}: {statuses:?}, reached the pod: {paths:?}", case.class, case.name));
        }
    }
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
    is_served(gate.addr()).await;
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_arrive_to_the_byte() {
    let (gate, fleet) = start("").await;
    let mut io = connect(gate.addr()).await;
    let empty = chat_of(200).len();
    for bytes in [empty, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 1 << 20, 6 << 20] {
        let body = chat_of(bytes);
        let head = format!("POST {CHAT} HTTP/1.1\r\nHost: gate\r\n");
        let length = format!("Content-Length: {bytes}\r\n\r\n");
        let coded = "Transfer-Encoding: chunked\r\n\r\n";
        for (name, wire) in [
            ("length", [head.as_bytes(), length.as_bytes(), body.as_bytes()].concat()),
            ("one chunk", [head.as_bytes(), coded.as_bytes(), &chunked(body.as_bytes(), bytes)].concat()),
            ("chunks", [head.as_bytes(), coded.as_bytes(), &chunked(body.as_bytes(), 1_009)].concat()),
        ] {
            let answer = ask(&mut io, &wire).await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{bytes}, {name}: {}", answer.text());
            let arrival = only_arrival(&fleet);
            assert_eq!(arrival.header("content-length"), Some(bytes.to_string().as_str()));
            assert_eq!(arrival.header("transfer-encoding"), None);
            assert!(arrival.body.as_deref() == Some(body.as_bytes()), "{bytes}, {name}: another body arrived");
        }
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiny_bodies_arrive_where_the_gate_does_not_read_them() {
    let (gate, fleet) = start("listen: {paths: {allow: [/my/*]}}").await;
    let mut io = connect(gate.addr()).await;
    for body in ["", "x", "no JSON at all"] {
        ask(&mut io, &request("/my/api", "", body)).await;
        let arrival = only_arrival(&fleet);
        assert_eq!((arrival.path.as_str(), arrival.body.as_deref()), ("/my/api", Some(body.as_bytes())));
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_is_answered_before_the_body_is_sent() {
    let (gate, fleet) = start("").await;
    let body = chat_of(100_000);
    let mut io = connect(gate.addr()).await;
    for _ in 0..2 {
        let head = format!(
            "POST {CHAT} HTTP/1.1\r\nHost: gate\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        io.write_all(head.as_bytes()).await.unwrap();
        let mut go_on = [0; 25];
        tokio::time::timeout(kit::PATIENCE, tokio::io::AsyncReadExt::read_exact(&mut io, &mut go_on))
            .await
            .unwrap()
            .unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        let answer = ask(&mut io, body.as_bytes()).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let arrival = only_arrival(&fleet);
        assert_eq!((arrival.header("expect"), arrival.body.as_deref()), (None, Some(body.as_bytes())));
    }
    let refused = raw(
        gate.addr(),
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: gate\r\nExpect: tea\r\nContent-Length: 5\r\n\r\n",
    )
    .await;
    is_refusal(&refused, CHAT, 417);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_leaves_the_connection_in_step_or_ends_it() {
    let (gate, fleet) = start(SHORT).await;
    let hidden = "GET /smuggled HTTP/1.1\r\nHost: gate\r\n\r\n".repeat(2_000);
    let long = "x".repeat(3 << 20);
    for (path, fields) in [("/nope", ""), ("/sleep", ""), ("/health", ""), (CHAT, "Content-Encoding: gzip\r\n")] {
        for body in ["", "tiny", &hidden[..30_000], &hidden, &long] {
            let mut io = connect(gate.addr()).await;
            let mut wire = request(path, fields, body);
            if path == "/health" {
                wire.splice(..4, *b"GET");
            }
            drop(io.write_all(&wire).await);
            let refused = read_answer(&mut io).await;
            assert!(refused.status >= 200 && refused.is_whole, "{path}, {} bytes: {refused:?}", body.len());
            if refused.header("connection") == Some("close") {
                assert!(until_closed(&mut io).await.is_empty());
                assert!(body.len() > 30_000, "{path}: no need to close after {} bytes", body.len());
                continue;
            }
            let answer = ask(&mut io, &request(CHAT, "", &chat("sim", "x", false, 1))).await;
            assert_eq!(answer.status, 200, "{path}, {} bytes: {}", body.len(), answer.text());
            assert_eq!(only_arrival(&fleet).path, CHAT);
        }
    }
    gate.finish().await;
}

#[allow(clippy::disallowed_methods, reason = "drips bytes: the pace is what is tested")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unread_body_is_not_waited_for_without_end() {
    let (gate, fleet) = start(SHORT).await;
    let head = "POST /nope HTTP/1.1\r\nHost: gate\r\n";
    for framing in ["Transfer-Encoding: chunked", "Content-Length: 5", "Expect: 100-continue\r\nContent-Length: 5"] {
        let (mut read, mut write) = connect(gate.addr()).await.into_split();
        write.write_all(format!("{head}{framing}\r\n\r\n").as_bytes()).await.unwrap();
        let dripping = tokio::spawn(async move {
            while framing.starts_with('T') && write.write_all(b"1\r\nx\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            write
        });
        let mut bytes = Vec::new();
        let ended = tokio::io::AsyncReadExt::read_to_end(&mut read, &mut bytes);
        assert!(tokio::time::timeout(Duration::from_secs(8), ended).await.is_ok(), "{framing}: held open");
        assert_eq!(parse(&bytes, true).unwrap().status, 404, "{framing}");
        drop(read);
        drop(dripping.await.unwrap());
    }
    assert_eq!(arrived(&fleet).len(), 0);
    gate.finish().await;
}
