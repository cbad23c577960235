//! HTTP/2 without TLS on its own listener: served as HTTP/1.1 is, bounded as HTTP/1.1 is, and HTTP/1.1 beside it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use kit::keys::KeysFile;
use kit::wire::{connect, has, only_arrival, until_closed};
use kit::{Gate, PATIENCE, chat, events, post, raw};
use tidegate::sim::content::expected;
use tidegate::sim::engine::EngineSettings;
use tidegate::sim::http::{Ended, Fault, Fleet, Rule, Script, SimConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn start(yaml: &str) -> (Gate, Fleet, SocketAddr) {
    let engine = EngineSettings { blocks: 200_000, ..EngineSettings::default() };
    let config = SimConfig { log_body_bytes_max: 16 << 20, max_model_len: 1 << 24, engine, ..SimConfig::default() };
    let (gate, fleet) = Gate::with_pods(1, config, yaml).await;
    let addr = gate.app().h2c_addr().unwrap();
    (gate, fleet, addr)
}

async fn h2(addr: SocketAddr) -> SendRequest<Bytes> {
    let (send, connection) = h2::client::handshake(connect(addr).await).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    send
}

fn to(path: &str) -> http::request::Builder {
    Request::builder().uri(format!("http://gate{path}"))
}

/// Sends one request and reads its whole answer.
async fn exchange(send: &SendRequest<Bytes>, request: Request<()>, body: &str) -> (http::response::Parts, Vec<u8>) {
    let mut send = send.clone().ready().await.unwrap();
    let (answer, mut stream) = send.send_request(request, body.is_empty()).unwrap();
    let mut left = Bytes::copy_from_slice(body.as_bytes());
    while !left.is_empty() {
        stream.reserve_capacity(left.len());
        // An early answer ends the upload.
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
        let piece = left.split_to(room.min(left.len()));
        if stream.send_data(piece, left.is_empty()).is_err() {
            break;
        }
    }
    let (parts, mut body) = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap().into_parts();
    let mut bytes = Vec::new();
    while let Some(piece) = tokio::time::timeout(PATIENCE, body.data()).await.unwrap() {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    (parts, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_comes_back_to_the_byte() {
    let (gate, fleet, addr) = start("").await;
    let send = h2(addr).await;
    for is_stream in [false, true, false] {
        let body = chat("sim", "over h2", is_stream, 9);
        let (parts, bytes) = exchange(&send, to(CHAT).method("POST").body(()).unwrap(), &body).await;
        assert_eq!(parts.status, 200, "{}", String::from_utf8_lossy(&bytes));
        assert!(parts.headers.contains_key("x-request-id") && !parts.headers.contains_key("transfer-encoding"));
        let wanted = expected(CHAT, body.as_bytes(), fleet.pods[0].config()).unwrap();
        if is_stream {
            let events = events(&bytes);
            assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
            let json = events.iter().filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok());
            let text: String =
                json.filter_map(|event| event["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect();
            assert_eq!(text, wanted.texts[0]);
        } else {
            let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(json["choices"][0]["message"]["content"], wanted.texts[0].as_str());
        }
        let arrival = only_arrival(&fleet);
        assert_eq!(arrival.header("x-forwarded-host"), Some("gate"));
        assert_eq!(arrival.body.as_deref(), Some(body.as_bytes()));
    }
    let (parts, bytes) = exchange(&send, to("/v1/models").body(()).unwrap(), "").await;
    assert!(parts.status == 200 && has(&bytes, "\"sim\""));
    let lines = gate.finish().await;
    assert!(lines.len() == 4 && lines.iter().all(|line| line["http"] == "2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_streams_share_a_connection_and_large_bodies_pass() {
    let (gate, fleet, addr) = start("").await;
    let send = h2(addr).await;
    let mut tasks = Vec::new();
    for number in 0..40 {
        let send = send.clone();
        tasks.push(tokio::spawn(async move {
            let body = chat("sim", &format!("{number}"), number % 2 == 0, 5);
            exchange(&send, to(CHAT).method("POST").body(()).unwrap(), &body).await.0.status
        }));
    }
    for task in tasks {
        assert_eq!(task.await.unwrap(), 200);
    }
    fleet.pods[0].clear_log();
    let body = chat("sim", &"x".repeat(3 << 20), false, 1);
    let (parts, _) = exchange(&send, to(CHAT).method("POST").body(()).unwrap(), &body).await;
    assert_eq!(parts.status, 200);
    assert!(only_arrival(&fleet).body.as_deref() == Some(body.as_bytes()));
    let request = to(CHAT).method("POST").header("x-sim-fault", "huge-event").body(()).unwrap();
    let (parts, bytes) = exchange(&send, request, &chat("sim", "x", true, 3)).await;
    assert!(parts.status == 200 && bytes.len() > 4 << 20 && has(&bytes[bytes.len() - 20..], "[DONE]"));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_those_of_http1() {
    let (gate, fleet, addr) = start("limits: {body_bytes_max: 100000}").await;
    let send = h2(addr).await;
    for (path, body, status) in [
        (CHAT, "{".to_owned(), 400),
        (CHAT, chat("nobody", "x", false, 1), 404),
        ("/sleep", "{}".to_owned(), 403),
        ("/nope", "{}".to_owned(), 404),
    ] {
        let (parts, _) = exchange(&send, to(path).method("POST").body(()).unwrap(), &body).await;
        assert_eq!(parts.status, status, "{path}");
        assert!(parts.headers.contains_key("x-request-id") && !parts.headers.contains_key("connection"));
    }
    let request = to(CHAT).method("POST").header("content-encoding", "gzip").body(()).unwrap();
    assert_eq!(exchange(&send, request, "x").await.0.status, 415);
    // Over the limit, announced and not; the connection and its other streams live on.
    for length in [Some("100001"), None] {
        let mut request = to(CHAT).method("POST");
        if let Some(length) = length {
            request = request.header("content-length", length);
        }
        let mut ready = send.clone().ready().await.unwrap();
        let (answer, mut stream) = ready.send_request(request.body(()).unwrap(), false).unwrap();
        if length.is_none() {
            stream.send_data(Bytes::from(vec![b' '; 100_001]), true).unwrap();
        }
        let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 413, "{length:?}");
    }
    assert!(fleet.pods[0].served().is_empty());
    let (parts, _) = exchange(&send, to(CHAT).method("POST").body(()).unwrap(), &chat("sim", "x", false, 1)).await;
    assert_eq!(parts.status, 200);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_aborts_the_pods_request() {
    let (gate, fleet, addr) = start("").await;
    let send = h2(addr).await;
    for fault in [Fault::Silent, Fault::SilenceAfterHead, Fault::SilenceAtEvent(2)] {
        fleet.pods[0].clear_log();
        fleet.pods[0].script(Rule::new(fault.clone()));
        let mut ready = send.clone().ready().await.unwrap();
        let request = to(CHAT).method("POST").body(()).unwrap();
        let (answer, mut stream) = ready.send_request(request, false).unwrap();
        stream.send_data(Bytes::from(chat("sim", "x", true, 5)), true).unwrap();
        let arrived =
            fleet.pods[0].wait_for(|log| log.iter().any(|arrival| arrival.path == CHAT && arrival.body.is_some()));
        tokio::time::timeout(PATIENCE, arrived).await.unwrap();
        let mut reading = None;
        if fault == Fault::SilenceAtEvent(2) {
            let mut body = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap().into_body();
            assert!(body.data().await.unwrap().is_ok());
            reading = Some(body);
        }
        stream.send_reset(h2::Reason::CANCEL);
        let left = |log: &[tidegate::sim::http::Arrival]| {
            log.iter().any(|arrival| arrival.path == CHAT && arrival.ended == Some(Ended::ClientLeft))
        };
        tokio::time::timeout(PATIENCE, fleet.pods[0].wait_for(left)).await.expect("the pod's request is aborted");
        drop(reading);
    }
    fleet.pods[0].script(Script::none());
    let (parts, _) = exchange(&send, to(CHAT).method("POST").body(()).unwrap(), &chat("sim", "x", false, 1)).await;
    assert_eq!(parts.status, 200, "the connection lives on");
    let lines = gate.finish().await;
    assert_eq!(lines.iter().filter(|line| line["cause"] == "client_gone").count(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_is_spoken_beside_it() {
    let (gate, _fleet, addr) = start("").await;
    assert_eq!(post(addr, CHAT, "", &chat("sim", "x", false, 2)).await.status, 200);
    // Shorter than the preface of HTTP/2, and beginning as it does.
    assert_eq!(raw(addr, b"GET /ping HTTP/1.0\r\n\r\n").await.status, 200);
    assert_eq!(raw(addr, b"P /a HTTP/1.0\r\n\r\n").await.status, 404);
    assert_eq!(raw(addr, b"PRI * HTTP/1.1\r\nHost: gate\r\n\r\n").await.status, 400);
    // One byte at a time.
    let mut io = connect(addr).await;
    for byte in b"POST /nope HTTP/1.1\r\nHost: gate\r\nContent-Length: 0\r\n\r\n" {
        io.write_all(&[*byte]).await.unwrap();
    }
    assert_eq!(kit::read_answer(&mut io).await.status, 404);
    // HTTP/2 on the listener of HTTP/1.1 is not spoken.
    let mut io = connect(gate.addr()).await;
    io.write_all(PREFACE).await.unwrap();
    assert!(!has(&until_closed(&mut io).await, " 200 "));
    gate.finish().await;
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// Header fields as HPACK literals without indexing.
fn literals(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// What became of stream 1: its status as HPACK's static table has it, or 0 if it was reset or the connection closed.
async fn fate_of(addr: SocketAddr, fields: &[(&str, &str)]) -> u16 {
    let mut io = connect(addr).await;
    let headers = frame(1, 0x5, 1, &literals(fields));
    io.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &headers].concat()).await.unwrap();
    loop {
        let mut head = [0; 9];
        let read = tokio::time::timeout(PATIENCE, io.read_exact(&mut head)).await.expect("a fate");
        if read.is_err() {
            return 0;
        }
        let mut payload = vec![0; usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2])];
        io.read_exact(&mut payload).await.unwrap();
        match head[3] {
            1 => {
                return [200, 204, 206, 304, 400, 404, 500]
                    .get(usize::from(payload[0] & 0x7F) - 8)
                    .copied()
                    .unwrap_or(1);
            }
            3 | 7 => return 0,
            _ => {}
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ambiguous_requests_are_refused() {
    let (gate, fleet, addr) = start("").await;
    let base = [(":method", "GET"), (":scheme", "http"), (":path", "/v1/responses/resp_x")];
    let with = |more: &[(&'static str, &'static str)]| [&base[..], more].concat();
    assert_eq!(fate_of(addr, &with(&[(":authority", "gate")])).await, 404, "the good one");
    assert_eq!(only_arrival(&fleet).path, "/v1/responses/resp_x");
    assert_eq!(fate_of(addr, &with(&[("host", "gate")])).await, 404, "Host in place of :authority");
    only_arrival(&fleet);
    assert_eq!(fate_of(addr, &with(&[])).await, 400, "neither");
    let authority = (":authority", "gate");
    for bad in [
        with(&[authority, ("host", "other")]),
        with(&[authority, ("host", "gate"), ("host", "gate")]),
        with(&[authority, ("connection", "close")]),
        with(&[authority, ("keep-alive", "1")]),
        with(&[authority, ("proxy-connection", "close")]),
        with(&[authority, ("transfer-encoding", "chunked")]),
        with(&[authority, ("upgrade", "h2c")]),
        with(&[authority, ("content-length", "5")]),
        with(&[authority, ("content-length", "0"), ("content-length", "0")]),
        with(&[authority, ("Upper-Case", "1")]),
        with(&[authority, ("x-y", "a\r\nb: c")]),
        with(&[authority, ("x-y", "a\0")]),
        with(&[authority, (":path", "/other")]),
        vec![(":method", "GET"), (":scheme", "http"), (":path", ""), authority],
        vec![(":method", "GET"), (":scheme", "http"), (":path", "v1/responses/resp_x"), authority],
        vec![(":method", "GET"), (":path", "/v1/responses/resp_x"), authority],
    ] {
        let fate = fate_of(addr, &bad).await;
        assert!(matches!(fate, 0 | 400 | 404), "{bad:?}: {fate}");
        assert!(fleet.pods[0].served().is_empty(), "{bad:?} reached the pod");
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn floods_of_control_frames_end_the_connection() {
    let (gate, _fleet, addr) = start("").await;
    let good = h2(addr).await;
    let reset = |number: u32| {
        let fields = [(":method", "POST"), (":scheme", "http"), (":path", CHAT), (":authority", "gate")];
        [frame(1, 0x4, number * 2 + 1, &literals(&fields)), frame(3, 0, number * 2 + 1, &[0, 0, 0, 8])].concat()
    };
    let floods: [(&str, Vec<u8>); 3] = [
        ("PING", frame(6, 0, 0, &[0; 8]).repeat(20_000)),
        ("SETTINGS", frame(4, 0, 0, &[]).repeat(10_000)),
        ("RST_STREAM", (0..5_000).flat_map(reset).collect()),
    ];
    for (name, frames) in floods {
        let (mut read, mut write) = connect(addr).await.into_split();
        let writing = tokio::spawn(async move {
            drop(write.write_all(&[PREFACE, &frame(4, 0, 0, &[]), &frames].concat()).await);
            write
        });
        let mut piece = vec![0; 64 * 1024];
        let closed = tokio::time::timeout(PATIENCE, async { while let Ok(1..) = read.read(&mut piece).await {} });
        assert!(closed.await.is_ok(), "{name}");
        drop(writing.await.unwrap());
        let (parts, _) = exchange(&good, to(CHAT).method("POST").body(()).unwrap(), &chat("sim", "x", false, 1)).await;
        assert_eq!(parts.status, 200, "beside {name}");
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_limits_count_for_every_stream_of_a_connection() {
    let keys = KeysFile::new(&[("canary-key", "a")]);
    let (gate, fleet, addr) = start(&keys.yaml("  tenants: {a: {limits: {concurrent_max: 1}}}", "")).await;
    let send = h2(addr).await;
    let with = |key: &str| to(CHAT).method("POST").header("x-api-key", key).body(()).unwrap();
    let nobody_waits = || gate.app().gate().quotas.concurrent("a") == 0;
    let short = chat("sim", "x", false, 1);
    let (refused, _) = exchange(&send, with("none"), &short).await;
    assert_eq!((refused.status.as_u16(), refused.headers["www-authenticate"].as_bytes()), (401, &b"Bearer"[..]));
    assert_eq!(exchange(&send, with("canary-key"), &short).await.0.status, 200);
    assert!(!format!("{:?}", only_arrival(&fleet)).contains("canary-key"));
    gate.eventually("given back", nobody_waits).await;
    fleet.pods[0].script(Rule::new(Fault::SilenceAtEvent(2)));
    let (answer, mut body) = send.clone().ready().await.unwrap().send_request(with("canary-key"), false).unwrap();
    body.send_data(chat("sim", "x", true, 4).into(), true).unwrap();
    let held = answer.await.unwrap();
    fleet.pods[0].script(Script::none());
    let (limited, _) = exchange(&send, with("canary-key"), &short).await;
    assert_eq!(limited.headers["x-tidegate-reason"], "tenant_concurrent_limit");
    drop((held, body));
    gate.eventually("given back", nobody_waits).await;
    assert_eq!(exchange(&send, with("canary-key"), &short).await.0.status, 200);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_tells_the_connection_and_ends_its_streams() {
    let (mut gate, fleet, addr) = start("listen: {drain_accept_s: 1, drain_max_s: 20}").await;
    fleet.pods[0].script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))).marker("long"));
    let (send, connection) = h2::client::handshake(connect(addr).await).await.unwrap();
    let over = tokio::spawn(connection);
    let mut ready = send.clone().ready().await.unwrap();
    let (answer, mut stream) = ready.send_request(to(CHAT).method("POST").body(()).unwrap(), false).unwrap();
    stream.send_data(Bytes::from(chat("sim", "long", true, 100)), true).unwrap();
    let mut body = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap().into_body();
    let mut bytes = body.data().await.unwrap().unwrap().to_vec();
    let drained = gate.drain();
    // GOAWAY: nothing new may be sent on this connection.
    let told = async {
        while send.clone().ready().await.is_ok() {
            let piece = body.data().await.expect("told before the stream ends").unwrap();
            body.flow_control().release_capacity(piece.len()).unwrap();
            bytes.extend_from_slice(&piece);
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("GOAWAY");
    while let Some(piece) = tokio::time::timeout(PATIENCE, body.data()).await.unwrap() {
        let piece = piece.unwrap();
        body.flow_control().release_capacity(piece.len()).unwrap();
        bytes.extend_from_slice(&piece);
    }
    assert!(bytes.ends_with(b"data: [DONE]\n\n"), "{}", String::from_utf8_lossy(&bytes));
    tokio::time::timeout(PATIENCE, drained).await.unwrap().unwrap();
    assert!(tokio::time::timeout(PATIENCE, over).await.unwrap().unwrap().is_ok(), "closed in good order");
    assert!(gate.lines().iter().all(|line| line["cause"] == "ok"));
}
