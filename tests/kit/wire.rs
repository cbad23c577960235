//! More of the kit: connections kept open, closings observed, what reached the pods, gates that stop by draining.
use std::net::SocketAddr;
use std::time::Duration;

use tidegate::sim::http::{Arrival, Fleet, SimPod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::{Answer, Gate, PATIENCE, parse, read_answer};

/// An open connection.
pub async fn connect(addr: SocketAddr) -> TcpStream {
    let io = TcpStream::connect(addr).await.unwrap();
    io.set_nodelay(true).unwrap();
    io
}

/// Sends on an open connection and reads one answer.
pub async fn ask(io: &mut TcpStream, request: &[u8]) -> Answer {
    io.write_all(request).await.unwrap();
    read_answer(io).await
}

/// Everything that comes until the other side closes; a reset counts as closing. Never ending is a failure.
pub async fn until_closed(io: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    let read = tokio::time::timeout(PATIENCE, async {
        while let Ok(read @ 1..) = io.read(&mut piece).await {
            bytes.extend_from_slice(&piece[..read]);
        }
    });
    assert!(read.await.is_ok(), "the connection stays open after {:?}", String::from_utf8_lossy(&bytes));
    bytes
}

/// Sends `request`, reads until the gate closes, and returns the answers in order.
pub async fn answers_until_closed(addr: SocketAddr, request: &[u8]) -> Vec<Answer> {
    let mut io = connect(addr).await;
    // The gate may refuse, and close, before all was sent.
    drop(io.write_all(request).await);
    answers(&until_closed(&mut io).await)
}

/// All answers in `bytes`.
pub fn answers(mut bytes: &[u8]) -> Vec<Answer> {
    let mut all = Vec::new();
    while let Some(answer) = parse(bytes, true) {
        let head = answer.head.len();
        let body = match answer.header("content-length") {
            Some(_) => answer.body.len(),
            None => bytes.len() - head,
        };
        bytes = &bytes[head + body..];
        all.push(answer);
    }
    all
}

/// A body in chunks of `size` bytes.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    for piece in body.chunks(size) {
        wire.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
        wire.extend_from_slice(piece);
        wire.extend_from_slice(b"\r\n");
    }
    wire.extend_from_slice(b"0\r\n\r\n");
    wire
}

/// What clients' requests looked like when they arrived at pods, over the whole fleet.
pub fn arrived(fleet: &Fleet) -> Vec<Arrival> {
    fleet.pods.iter().flat_map(SimPod::served).collect()
}

/// The one request that arrived; forgets it.
pub fn only_arrival(fleet: &Fleet) -> Arrival {
    let mut all = arrived(fleet);
    assert_eq!(all.len(), 1, "{all:?}");
    fleet.pods.iter().for_each(SimPod::clear_log);
    all.pop().unwrap()
}

impl Gate {
    /// POST to the admin listener.
    pub async fn tell(&self, path: &str, body: &str) -> Answer {
        let request = format!("POST {path} HTTP/1.1\r\nHost: admin\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        super::raw(self.app().admin_addr(), request.as_bytes()).await
    }

    /// Begins to drain; the handle ends when the gate has. Then [`Gate::lines`] may be called.
    pub fn drain(&mut self) -> JoinHandle<()> {
        let app = self.app.take().unwrap();
        tokio::task::spawn_blocking(move || app.drain())
    }

    /// Access lines of a gate that was drained.
    pub fn lines(self) -> Vec<serde_json::Value> {
        assert!(self.app.is_none(), "drain first");
        let log = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        std::fs::remove_dir_all(&self.dir).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// A file beside the configuration.
    pub fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.join(name)
    }

    /// Waits until a metric series has at least this value.
    #[allow(clippy::disallowed_methods, reason = "polls: a metric tells nobody that it has changed")]
    pub async fn metric_reaches(&self, series: &str, value: f64) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while self.metric(series).await < value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        assert!(waited.await.is_ok(), "{series} never reaches {value}");
    }
}

/// A gate in front of pods that differ, ready and with their models known.
pub async fn in_front_of(pods: &[&SimPod], yaml: &str) -> Gate {
    let addrs: Vec<_> = pods.iter().map(|pod| pod.addr()).collect();
    let gate = Gate::start(&addrs, yaml).await;
    gate.knows_models().await;
    gate
}

impl Gate {
    /// Waits until every pod has told its models.
    pub async fn knows_models(&self) {
        let known = || {
            let fleet = self.app().gate().table.fleet();
            !fleet.pods.is_empty() && fleet.unknown.is_empty()
        };
        self.eventually("models known", known).await;
    }
}

/// Posts and reads what has come until `is_enough` says so; the connection stays open.
pub async fn begin(addr: SocketAddr, request: &[u8], is_enough: impl Fn(&[u8]) -> bool) -> (TcpStream, Vec<u8>) {
    let mut io = connect(addr).await;
    io.write_all(request).await.unwrap();
    let bytes = more(&mut io, is_enough).await;
    (io, bytes)
}

/// Reads on until `is_enough` says so of what was read.
pub async fn more(io: &mut TcpStream, is_enough: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    while !is_enough(&bytes) {
        let read = tokio::time::timeout(PATIENCE, io.read(&mut piece)).await.expect("more in time").unwrap();
        assert!(read > 0, "closed early: {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..read]);
    }
    bytes
}

/// Reads the rest of an answer that began with `bytes`.
pub async fn rest(io: &mut TcpStream, mut bytes: Vec<u8>) -> Answer {
    let mut piece = vec![0; 64 * 1024];
    loop {
        if let Some(answer) = parse(&bytes, false) {
            return answer;
        }
        match tokio::time::timeout(PATIENCE, io.read(&mut piece)).await.expect("the rest in time") {
            Ok(read @ 1..) => bytes.extend_from_slice(&piece[..read]),
            _ => return parse(&bytes, true).expect("an answer"),
        }
    }
}

/// Whether `part` is in `bytes`.
pub fn has(bytes: &[u8], part: &str) -> bool {
    bytes.windows(part.len()).any(|window| window == part.as_bytes())
}

/// The next request that comes: its head and its body, which must have a length. `None` once the other side closes.
pub async fn read_request(io: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        if io.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    let length: usize = length.unwrap_or(0);
    while bytes.len() < end + length {
        if io.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    Some((head, bytes.split_off(end)))
}
