//! `loadtest backend`: a pod that costs next to nothing, so that what is measured is the proxy in front of it.
//!
//! One thread, HTTP/1.1, the routes of a vLLM 0.32 server that a gate asks for. A chat answer is a fixed JSON text, or as many events as
//! `max_tokens` asks for, `interval_us` apart (both are looked for in the first and last 512 bytes of the body; nothing else of it is read).
//! `/__seen` counts what arrived. It must not be mistaken for a simulated engine: it has no queue, no cache and no faults.

use crate::wire::{self, Framing, Unchunk};
use bytes::{Buf, BytesMut};
use memchr::memmem;
use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};

/// A body that holds this text is counted apart in `/__seen`: it comes from the tool's own good client.
pub(crate) const GOOD_MARK: &str = "tidegate-good";
/// A target that holds this text must never arrive: it was hidden inside another request.
pub(crate) const SMUGGLED_MARK: &str = "smuggled";
const LOOK: usize = 512;

/// Arguments of `loadtest backend`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen (127.0.0.1 only)
    #[arg(long, value_parser = crate::target::loopback)]
    pub(crate) listen: SocketAddr,
    /// Name of the served model
    #[arg(long, default_value = crate::MODEL)]
    pub(crate) model: String,
    /// Events of a stream whose request does not say `max_tokens`
    #[arg(long, default_value_t = 16)]
    pub(crate) events: u64,
    /// Time between events when the request does not say `interval_us`; 0 sends as fast as the socket takes them
    #[arg(long, default_value_t = 0)]
    pub(crate) interval_us: u64,
    /// Stop by itself after this time
    #[arg(long, default_value_t = 7200)]
    pub(crate) max_secs: u64,
}

#[derive(Default)]
struct Seen {
    connections: Cell<u64>,
    good: Cell<u64>,
    other: Cell<u64>,
    probes: Cell<u64>,
    smuggled: Cell<u64>,
    broken: Cell<u64>,
    running: Cell<u64>,
    started_s: u64,
}

struct Pod {
    args: Args,
    seen: Seen,
    whole: Vec<u8>,
    stream_head: Vec<u8>,
    event: Vec<u8>,
}

/// Serves until its time is over.
pub(crate) async fn serve(args: Args) -> io::Result<()> {
    let listener = TcpListener::bind(args.listen).await?;
    let end = Instant::now() + Duration::from_secs(args.max_secs);
    let pod = Rc::new(Pod::new(args));
    tokio::task::LocalSet::new()
        .run_until(async {
            while let Ok(accepted) = tokio::time::timeout_at(end, listener.accept()).await {
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    continue;
                };
                add(&pod.seen.connections, 1);
                let pod = pod.clone();
                tokio::task::spawn_local(async move {
                    if stream.set_nodelay(true).is_err() || connection(&pod, stream).await.is_err() {
                        add(&pod.seen.broken, 1);
                    }
                });
            }
        })
        .await;
    Ok(())
}

fn add(cell: &Cell<u64>, number: u64) {
    cell.set(cell.get() + number);
}

async fn connection(pod: &Pod, mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    loop {
        let head = loop {
            if let Some(head) = wire::head(&buffer)? {
                break head;
            }
            if fill(&mut stream, &mut buffer).await? == 0 {
                return if buffer.is_empty() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        };
        if head.expects {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        buffer.advance(head.len);
        let ask = match head.framing {
            Framing::Chunked => Ask::of(&chunked(&mut stream, &mut buffer).await?),
            Framing::Length(length) => {
                let length = length as usize;
                buffer.reserve(length.saturating_sub(buffer.len()));
                while buffer.len() < length {
                    if fill(&mut stream, &mut buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                let ask = Ask::of(buffer.get(..length).unwrap_or_default());
                buffer.advance(length);
                ask
            }
            Framing::Close => Ask::default(),
        };
        pod.reply(&mut stream, &head.first, &ask).await?;
        if !head.keep {
            return Ok(());
        }
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<usize> {
    buffer.reserve(8 * 1024);
    stream.read_buf(buffer).await
}

async fn chunked(stream: &mut TcpStream, buffer: &mut BytesMut) -> io::Result<Vec<u8>> {
    let (mut unchunk, mut body) = (Unchunk::default(), Vec::new());
    loop {
        let used = unchunk.feed(buffer, |bytes| body.extend_from_slice(bytes))?;
        buffer.advance(used);
        if unchunk.is_end() {
            return Ok(body);
        }
        if fill(stream, buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// What a body asks for, as far as this pod looks.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ask {
    is_stream: bool,
    with_usage: bool,
    is_good: bool,
    max_tokens: Option<u64>,
    interval_us: Option<u64>,
}

impl Ask {
    fn of(body: &[u8]) -> Self {
        let first = body.get(..LOOK.min(body.len())).unwrap_or_default();
        let last = body.get(body.len().saturating_sub(LOOK)..).unwrap_or_default();
        let has =
            |text: &str| memmem::find(last, text.as_bytes()).or_else(|| memmem::find(first, text.as_bytes())).is_some();
        let is_true = |name: &str| has(&format!("\"{name}\":true")) || has(&format!("\"{name}\": true"));
        Self {
            is_stream: is_true("stream"),
            with_usage: is_true("include_usage"),
            is_good: has(GOOD_MARK),
            max_tokens: number(last, "max_tokens").or_else(|| number(first, "max_tokens")),
            interval_us: number(last, "interval_us").or_else(|| number(first, "interval_us")),
        }
    }
}

fn number(text: &[u8], name: &str) -> Option<u64> {
    let name = format!("\"{name}\":");
    let at = memmem::find(text, name.as_bytes())? + name.len();
    let rest = text.get(at..)?.trim_ascii_start();
    let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
    std::str::from_utf8(rest.get(..end)?).ok()?.parse().ok()
}

impl Pod {
    fn new(args: Args) -> Self {
        let model = &args.model;
        let started_s =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        let whole = answer(
            "200 OK",
            "application/json",
            &format!(
                r#"{{"id":"chatcmpl-5ad1a5e2c8b04b2f","object":"chat.completion","created":{started_s},"model":"{model}","choices":[{{"index":0,"message":{{"role":"assistant","content":"A short answer of a pod that does no work.","refusal":null,"tool_calls":[],"reasoning":null}},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":null}}],"service_tier":null,"system_fingerprint":null,"usage":{{"prompt_tokens":64,"total_tokens":80,"completion_tokens":16,"prompt_tokens_details":null}},"prompt_logprobs":null,"kv_transfer_params":null}}"#
            ),
        );
        let stream_head =
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        let event = chunk(&format!(
            "data: {{\"id\":\"chatcmpl-5ad1a5e2c8b04b2f\",\"object\":\"chat.completion.chunk\",\"created\":{started_s},\"model\":\"{model}\",\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\" token\"}},\"logprobs\":null,\"finish_reason\":null,\"token_ids\":null}}]}}\n\n"
        ));
        Self { args, seen: Seen { started_s, ..Seen::default() }, whole, stream_head, event }
    }

    async fn reply(&self, stream: &mut TcpStream, first: &str, ask: &Ask) -> io::Result<()> {
        let mut words = first.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default();
        if let Some(text) = self.probe(method, path) {
            return stream.write_all(&text).await;
        }
        if target.contains(SMUGGLED_MARK) {
            add(&self.seen.smuggled, 1);
        } else {
            add(if ask.is_good { &self.seen.good } else { &self.seen.other }, 1);
        }
        if method != "POST" {
            return stream.write_all(&answer("404 Not Found", "application/json", r#"{"detail":"Not Found"}"#)).await;
        }
        add(&self.seen.running, 1);
        let result = if ask.is_stream { self.stream(stream, ask).await } else { stream.write_all(&self.whole).await };
        self.seen.running.set(self.seen.running.get() - 1);
        result
    }

    async fn stream(&self, stream: &mut TcpStream, ask: &Ask) -> io::Result<()> {
        let events = ask.max_tokens.unwrap_or(self.args.events);
        let interval = Duration::from_micros(ask.interval_us.unwrap_or(self.args.interval_us));
        let start = Instant::now();
        let first = [self.stream_head.as_slice(), if events > 0 { &self.event } else { &[] }].concat();
        stream.write_all(&first).await?;
        for number in 1..events {
            if !interval.is_zero() {
                sleep_until(start + interval * u32::try_from(number).unwrap_or(u32::MAX)).await;
            }
            stream.write_all(&self.event).await?;
        }
        let mut end = Vec::new();
        if ask.with_usage {
            end = chunk(&format!(
                "data: {{\"id\":\"chatcmpl-5ad1a5e2c8b04b2f\",\"object\":\"chat.completion.chunk\",\"created\":{},\"model\":\"{}\",\"choices\":[],\"usage\":{{\"prompt_tokens\":64,\"total_tokens\":{},\"completion_tokens\":{events}}}}}\n\n",
                self.seen.started_s,
                self.args.model,
                events + 64
            ));
        }
        end.extend_from_slice(&chunk("data: [DONE]\n\n"));
        end.extend_from_slice(b"0\r\n\r\n");
        stream.write_all(&end).await
    }

    /// The answer to what gates, probes and this tool ask for on their own account.
    fn probe(&self, method: &str, path: &str) -> Option<Vec<u8>> {
        let text = match (method, path) {
            ("GET", "/__seen") => return Some(answer("200 OK", "application/json", &self.seen_json())),
            ("GET", "/health" | "/ping") => answer("200 OK", "text/plain", ""),
            ("GET", "/version") => answer("200 OK", "application/json", r#"{"version":"0.32.0"}"#),
            ("GET", "/v1/models") => {
                let (model, created) = (&self.args.model, self.seen.started_s);
                let list = format!(
                    r#"{{"object":"list","data":[{{"id":"{model}","object":"model","created":{created},"owned_by":"vllm","root":"{model}","parent":null,"max_model_len":262144,"permission":[]}}]}}"#
                );
                answer("200 OK", "application/json", &list)
            }
            ("GET", "/metrics") => answer("200 OK", "text/plain; version=0.0.4; charset=utf-8", &self.metrics()),
            _ => return None,
        };
        add(&self.seen.probes, 1);
        Some(text)
    }

    fn seen_json(&self) -> String {
        let seen = &self.seen;
        serde_json::json!({
            "connections": seen.connections.get(), "good": seen.good.get(), "other": seen.other.get(), "probes": seen.probes.get(),
            "smuggled": seen.smuggled.get(), "broken": seen.broken.get(), "running": seen.running.get(),
        })
        .to_string()
    }

    fn metrics(&self) -> String {
        let labels = format!("engine=\"0\",model_name=\"{}\"", self.args.model);
        let (running, done) = (self.seen.running.get(), self.seen.good.get() + self.seen.other.get());
        format!(
            "# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds {started}\n\
             # TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{{{labels}}} {running}.0\n\
             # TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{{{labels}}} 0.0\n\
             # TYPE vllm:num_requests_waiting_by_reason gauge\nvllm:num_requests_waiting_by_reason{{{labels},reason=\"capacity\"}} 0.0\n\
             vllm:num_requests_waiting_by_reason{{{labels},reason=\"deferred\"}} 0.0\n\
             # TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{{{labels}}} 0.1\n\
             # TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{{block_size=\"16\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",{labels},kv_cache_size_tokens=\"8000000\",num_gpu_blocks=\"500000\",prefix_caching_hash_algo=\"sha256\"}} 1.0\n\
             # TYPE vllm:prefix_cache_queries_total counter\nvllm:prefix_cache_queries_total{{{labels}}} {queries}.0\n\
             # TYPE vllm:prefix_cache_hits_total counter\nvllm:prefix_cache_hits_total{{{labels}}} 0.0\n\
             # TYPE vllm:request_success_total counter\nvllm:request_success_total{{{labels},finished_reason=\"stop\"}} {done}.0\n\
             # TYPE vllm:engine_sleep_state gauge\nvllm:engine_sleep_state{{{labels},sleep_state=\"awake\"}} 1.0\n",
            started = self.seen.started_s,
            queries = done * 64,
        )
    }
}

fn answer(status: &str, kind: &str, body: &str) -> Vec<u8> {
    format!(
        "HTTP/1.1 {status}\r\nserver: uvicorn\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn chunk(text: &str) -> Vec<u8> {
    format!("{:x}\r\n{text}\r\n", text.len()).into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::body::{Shape, nonce, templates};
    use crate::client::Connection;

    #[test]
    fn a_body_is_understood_at_both_ends() {
        let ask =
            Ask::of(br#"{"stream":true,"max_tokens": 12,"messages":[],"interval_us":5000,"user":"tidegate-good"}"#);
        let wanted =
            Ask { is_stream: true, with_usage: false, is_good: true, max_tokens: Some(12), interval_us: Some(5000) };
        assert_eq!(ask, wanted);
        assert_eq!(Ask::of(b"{}"), Ask::default());
    }

    #[test]
    fn client_and_backend_agree() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokio::task::LocalSet::new().run_until(async {
            let listen = crate::target::free_port().unwrap();
            let args = Args { listen, model: "m".into(), events: 3, interval_us: 0, max_secs: 60 };
            tokio::task::spawn_local(serve(args));
            tokio::task::yield_now().await;
            let mut shape = Shape {
                bytes: 100_000,
                prefixes: 1,
                model: "m".into(),
                max_tokens: 9,
                stream: true,
                interval_us: None,
                user: Some(GOOD_MARK.into()),
                ..Shape::default()
            };
            let mut connection = Connection::open(listen).await.unwrap();
            let answer =
                connection.ask(&templates(&shape, "/v1/chat/completions")[0], nonce(1), &mut ()).await.unwrap();
            assert_eq!(
                (answer.status, answer.events, answer.errors, answer.done, answer.keep),
                (200, 9, 0, true, true)
            );
            shape.stream = false;
            shape.user = None;
            let answer =
                connection.ask(&templates(&shape, "/v1/chat/completions")[0], nonce(2), &mut ()).await.unwrap();
            assert_eq!((answer.status, answer.done, answer.keep), (200, true, true));
            let (status, text) = Connection::get(listen, "/__seen").await.unwrap();
            let seen: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(
                (status, &seen["good"], &seen["other"], &seen["smuggled"]),
                (200, &1.into(), &1.into(), &0.into())
            );
            assert_eq!(Connection::get(listen, "/smuggled").await.unwrap().0, 404);
            let (_, text) = Connection::get(listen, "/__seen").await.unwrap();
            let seen: serde_json::Value = serde_json::from_slice(&text).unwrap();
            assert_eq!(seen["smuggled"], 1);
        }));
    }
}
