//! WebSockets: both ends are those of another implementation, the gate is between them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs
)]
mod kit;

use std::net::SocketAddr;

use futures_util::{SinkExt, StreamExt};
use kit::wire::read_request;
use kit::{Gate, raw};
use tidegate::sim::http::{SimConfig, SimPod};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};

/// A pod with `/v1/realtime`, which says everything back and names itself; all else is answered by a simulated pod.
async fn pod(sim: SocketAddr, name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((io, _)) = listener.accept().await {
            tokio::spawn(serve(io, sim, name));
        }
    });
    addr
}

async fn serve(mut io: TcpStream, sim: SocketAddr, name: &'static str) {
    let Some((head, body)) = read_request(&mut io).await else { return };
    if head.starts_with("GET /v1/realtime") {
        return talk(io, &head, name).await;
    }
    let mut inner = TcpStream::connect(sim).await.unwrap();
    let head = head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    inner.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    drop(tokio::io::copy(&mut inner, &mut io).await);
}

async fn talk(mut io: TcpStream, head: &str, name: &str) {
    let value = |key: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(": "));
        lines.find(|(name, _)| name.eq_ignore_ascii_case(key)).map(|(_, value)| value.to_owned())
    };
    assert_eq!(value("upgrade").as_deref(), Some("websocket"));
    assert!(value("connection").unwrap().eq_ignore_ascii_case("upgrade"));
    let accept = derive_accept_key(value("sec-websocket-key").unwrap().as_bytes());
    let switch = format!(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\nsec-websocket-accept: {accept}\r\n\r\n"
    );
    io.write_all(switch.as_bytes()).await.unwrap();
    let mut socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
    socket.send(Message::text(format!("{name} {}", head.lines().next().unwrap()))).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        if message.is_text() && message.to_text().unwrap() == "break" {
            return;
        }
        if message.is_text() || message.is_binary() {
            socket.send(message).await.unwrap();
        }
    }
}

async fn open(gate: &Gate, query: &str) -> Result<WebSocketStream<TcpStream>, u16> {
    let io = TcpStream::connect(gate.addr()).await.unwrap();
    let request = format!("ws://{}/v1/realtime{query}", gate.addr()).into_client_request().unwrap();
    match tokio_tungstenite::client_async(request, io).await {
        Ok((socket, answer)) => {
            assert!(answer.headers().contains_key("x-request-id"));
            Ok(socket)
        }
        Err(Error::Http(answer)) => Err(answer.status().as_u16()),
        Err(other) => panic!("{other}"),
    }
}

fn config(model: &str) -> SimConfig {
    SimConfig { models: vec![model.to_owned()], ..SimConfig::default() }
}

async fn ready(addrs: &[SocketAddr], yaml: &str) -> Gate {
    let gate = Gate::start(addrs, yaml).await;
    gate.eventually("models known", || gate.app().gate().table.fleet().unknown.is_empty()).await;
    gate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_hear_each_other_until_one_closes() {
    let sims = [SimPod::start(config("talk")).await.unwrap(), SimPod::start(config("org/other")).await.unwrap()];
    let pods = [pod(sims[0].addr(), "first").await, pod(sims[1].addr(), "second").await];
    let gate = ready(&pods, "models: {talk: {aliases: [voice]}}\n").await;
    for (query, greeting) in [
        ("?model=talk", "first GET /v1/realtime?model=talk HTTP/1.1"),
        ("?model=voice", "first GET /v1/realtime?model=voice HTTP/1.1"),
        ("?model=org%2Fother", "second GET /v1/realtime?model=org%2Fother HTTP/1.1"),
    ] {
        let mut socket = open(&gate, query).await.unwrap();
        assert_eq!(socket.next().await.unwrap().unwrap(), Message::text(greeting));
        assert_eq!(gate.metric("tidegate_connections").await as u64, 1);
        for size in [1, 100, 70_000, 2 << 20] {
            let message = Message::binary(vec![size as u8; size]);
            socket.send(message.clone()).await.unwrap();
            assert_eq!(socket.next().await.unwrap().unwrap(), message);
        }
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    }
    let mut socket = open(&gate, "?model=talk").await.unwrap();
    socket.send(Message::text("break")).await.unwrap();
    while let Some(Ok(_)) = socket.next().await {}
    for (query, status) in [("", 400), ("?model=nobody's", 404), ("?model=talk&model=talk", 400)] {
        assert_eq!(open(&gate, query).await.err(), Some(status), "{query}");
    }
    for plain in ["GET /v1/realtime?model=talk", "POST /v1/realtime"] {
        let answer =
            raw(gate.addr(), format!("{plain} HTTP/1.1\r\nhost: g\r\ncontent-length: 0\r\n\r\n").as_bytes()).await;
        assert_eq!(answer.status, if plain.starts_with("GET") { 426 } else { 405 });
    }
    let lines = gate.finish().await;
    assert_eq!((lines[0]["route"].as_str(), lines[0]["status"].as_u64()), (Some("realtime"), Some(101)));
    assert!(lines[..4].iter().all(|line| line["cause"] == "ok"), "{lines:?}");
    assert!(lines[0]["bytes_in"].as_u64() > Some(2 << 20) && lines[0]["bytes_out"].as_u64() > Some(2 << 20));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_cannot_is_passed_over_and_the_only_model_needs_no_name() {
    let sims = [SimPod::start(config("talk")).await.unwrap(), SimPod::start(config("talk")).await.unwrap()];
    let good = pod(sims[1].addr(), "good").await;
    let gate = ready(&[sims[0].addr(), good], "").await;
    sims[0].stop().await;
    for _ in 0..4 {
        let mut socket = open(&gate, "").await.unwrap();
        assert!(socket.next().await.unwrap().unwrap().to_text().unwrap().starts_with("good"));
        drop(socket);
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_that_stops_closes_what_still_talks() {
    let sim = SimPod::start(config("talk")).await.unwrap();
    let mut gate = ready(&[pod(sim.addr(), "pod").await], "listen: {drain_accept_s: 0, drain_max_s: 1}\n").await;
    let mut socket = open(&gate, "").await.unwrap();
    assert!(socket.next().await.unwrap().is_ok());
    let stopped = gate.drain();
    while let Some(Ok(_)) = socket.next().await {}
    stopped.await.unwrap();
    assert_eq!(gate.lines().len(), 1);
}
