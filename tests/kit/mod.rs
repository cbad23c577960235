//! What the end-to-end tests share: a gate in this process in front of simulated pods, and a client that sees every byte.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::missing_panics_doc
)]
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tidegate::app::App;
use tidegate::config::ServeArgs;
use tidegate::proxy::Hook;
use tidegate::sim::http::{Fleet, SimConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Longest wait for anything that must happen; a test that reaches it has failed.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A gate with its configuration and log in a folder of its own.
pub struct Gate {
    app: Option<App>,
    dir: PathBuf,
}

impl Gate {
    /// A gate in front of `pods`; `yaml` is added to its configuration.
    pub async fn start(pods: &[SocketAddr], yaml: &str) -> Self {
        Self::with_hook(pods, yaml, None).await
    }

    /// A gate in front of pods that only prefill and pods that decode.
    pub async fn with_roles(prefill: &[SocketAddr], decode: &[SocketAddr], yaml: &str) -> Self {
        let gate = Self::launch((&[], prefill, decode), yaml, None).await;
        let are_known = || gate.app().gate().table.fleet().unknown.is_empty();
        gate.eventually("models known", are_known).await;
        gate
    }

    /// The same with a hook that is called at each phase of each request.
    pub async fn with_hook(pods: &[SocketAddr], yaml: &str, hook: Option<Hook>) -> Self {
        Self::launch((pods, &[], &[]), yaml, hook).await
    }

    async fn launch(pods: (&[SocketAddr], &[SocketAddr], &[SocketAddr]), yaml: &str, hook: Option<Hook>) -> Self {
        let gate = Self::started(pods, yaml, hook).await;
        gate.eventually("ready", || gate.app().is_ready()).await;
        gate
    }

    async fn started(pods: (&[SocketAddr], &[SocketAddr], &[SocketAddr]), yaml: &str, hook: Option<Hook>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let urls = |addrs: &[SocketAddr]| addrs.iter().map(|addr| format!("http://{addr}")).collect::<Vec<_>>();
        let name = format!("tidegate-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("gate.yaml"), yaml).unwrap();
        let args = ServeArgs {
            config: Some(dir.join("gate.yaml")),
            listen: Some("127.0.0.1:0".parse().unwrap()),
            listen_h2c: Some("127.0.0.1:0".parse().unwrap()),
            admin: Some("127.0.0.1:0".parse().unwrap()),
            pod: urls(pods.0),
            prefill: urls(pods.1),
            decode: urls(pods.2),
            threads: Some(1),
            access_log: Some(dir.join("access.log").display().to_string()),
            ..ServeArgs::default()
        };
        let app = tokio::task::spawn_blocking(move || App::start(args, hook)).await.unwrap().expect("the gate starts");
        Self { app: Some(app), dir }
    }

    /// A gate of this configuration that need not be ready when this returns.
    pub async fn unready(yaml: &str) -> Self {
        Self::started((&[], &[], &[]), yaml, None).await
    }

    /// A gate in front of `count` simulated pods of `config`, which is ready when this returns.
    pub async fn with_pods(count: usize, config: SimConfig, yaml: &str) -> (Self, Fleet) {
        let fleet = Fleet::start(count, config).await.unwrap();
        let gate = Self::start(&fleet.addrs(), yaml).await;
        let are_known = || gate.app().gate().table.fleet().unknown.is_empty();
        gate.eventually("models known", are_known).await;
        (gate, fleet)
    }

    pub fn app(&self) -> &App {
        self.app.as_ref().unwrap()
    }

    pub fn addr(&self) -> SocketAddr {
        self.app().addr()
    }

    /// Rewrites the configuration file.
    pub fn configure(&self, yaml: &str) {
        std::fs::write(self.dir.join("gate.yaml"), yaml).unwrap();
    }

    /// Waits until `is_so`, polling: the gate offers no notification for what tests look at.
    #[allow(clippy::disallowed_methods, reason = "the one place that polls; tests wait for states, not for times")]
    pub async fn eventually(&self, what: &str, is_so: impl Fn() -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !is_so() {
                tokio::task::yield_now().await;
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(waited.await.is_ok(), "never: {what}");
    }

    /// Text of the admin listener's answer.
    pub async fn admin(&self, path: &str) -> String {
        let answer = get(self.app().admin_addr(), path).await;
        String::from_utf8(answer.body).unwrap()
    }

    /// Value of a metric series as written, e.g. `tidegate_requests_in_flight{model="sim"}`; 0 if it is not there.
    pub async fn metric(&self, series: &str) -> f64 {
        let text = self.admin("/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(series).filter(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    /// The end of every test: nothing in flight, nothing held; then stops the gate and returns its access lines.
    pub async fn finish(mut self) -> Vec<serde_json::Value> {
        let idle = || {
            let gate = self.app().gate();
            let loads = gate.table.fleet().pods.iter().all(|pod| {
                let load = pod.load.now();
                load.requests == 0 && load.prefilling == 0 && load.prefill_tokens.0 == 0 && load.context_tokens.0 == 0
            });
            loads
                && gate.metrics.body_held.value() == 0
                && gate.waitroom.tickets() + gate.lobby.tickets() == 0
                && gate.metrics.models().iter().all(|model| model.in_flight.value() == 0)
        };
        self.eventually("nothing in flight", idle).await;
        let app = self.app.take().unwrap();
        tokio::task::spawn_blocking(move || app.close(Duration::from_secs(5))).await.unwrap();
        let log = std::fs::read_to_string(self.dir.join("access.log")).unwrap_or_default();
        std::fs::remove_dir_all(&self.dir).unwrap();
        log.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

/// An answer, head split and body as it came (chunked coding undone).
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
    /// Whether the body ended as its framing says.
    pub is_whole: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {:?}", self.text()))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Sends raw bytes and reads one answer.
pub async fn raw(addr: SocketAddr, request: &[u8]) -> Answer {
    let mut io = TcpStream::connect(addr).await.unwrap();
    io.write_all(request).await.unwrap();
    read_answer(&mut io).await
}

/// A POST of JSON on a connection of its own, with further header lines (each ending in CR LF).
pub async fn post(addr: SocketAddr, path: &str, fields: &str, body: &str) -> Answer {
    raw(addr, &request(path, fields, body)).await
}

/// Bytes of such a POST.
pub fn request(path: &str, fields: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: gate\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n{fields}\r\n{body}")
        .into_bytes()
}

/// A GET.
pub async fn get(addr: SocketAddr, path: &str) -> Answer {
    raw(addr, format!("GET {path} HTTP/1.1\r\nHost: gate\r\n\r\n").as_bytes()).await
}

/// Body of a chat request.
pub fn chat(model: &str, content: &str, is_stream: bool, max_tokens: u32) -> String {
    serde_json::json!({
        "model": model, "stream": is_stream, "max_tokens": max_tokens, "messages": [{"role": "user", "content": content}],
    })
    .to_string()
}

/// Reads one answer to its end, or to the end of the connection.
pub async fn read_answer<S: AsyncRead + Unpin>(io: &mut S) -> Answer {
    let mut bytes = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        if let Some(answer) = parse(&bytes, false) {
            return answer;
        }
        let read = tokio::time::timeout(PATIENCE, io.read(&mut piece)).await.expect("an answer in time");
        match read {
            Ok(0) | Err(_) => {
                return parse(&bytes, true).unwrap_or(Answer {
                    status: 0,
                    head: String::new(),
                    body: Vec::new(),
                    is_whole: false,
                });
            }
            Ok(read) => bytes.extend_from_slice(&piece[..read]),
        }
    }
}

/// The answer in `bytes`, if it is whole or nothing more comes.
pub fn parse(bytes: &[u8], is_end: bool) -> Option<Answer> {
    let end = bytes.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let status: u16 = head.split(' ').nth(1)?.parse().ok()?;
    if (100..200).contains(&status) {
        return parse(&bytes[end..], is_end);
    }
    let rest = &bytes[end..];
    let mut answer = Answer { status, head, body: Vec::new(), is_whole: false };
    if answer.header("transfer-encoding").is_some() {
        (answer.body, answer.is_whole) = dechunk(rest);
    } else {
        let length: usize = answer.header("content-length").map_or(usize::MAX, |length| length.parse().unwrap());
        answer.body = rest[..rest.len().min(length)].to_vec();
        answer.is_whole = rest.len() >= length || (is_end && length == usize::MAX);
    }
    (answer.is_whole || is_end).then_some(answer)
}

fn dechunk(mut wire: &[u8]) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let Some(line) = wire.windows(2).position(|part| part == b"\r\n") else { return (body, false) };
        let size = usize::from_str_radix(std::str::from_utf8(&wire[..line]).unwrap().trim(), 16).unwrap();
        wire = &wire[line + 2..];
        if size == 0 {
            return (body, wire.starts_with(b"\r\n"));
        }
        if wire.len() < size + 2 {
            body.extend_from_slice(&wire[..wire.len().min(size)]);
            return (body, false);
        }
        body.extend_from_slice(&wire[..size]);
        wire = &wire[size + 2..];
    }
}

/// The `data:` payloads of an event stream.
pub fn events(body: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(body);
    text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
}

pub mod collector;
pub mod heard;
pub mod keys;
pub mod line;
pub mod tls;
pub mod wire;
