//! A bare HTTP/1.1 client: sends bytes, reads one answer, keeps everything.
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::SimPod;

/// No exchange of these tests takes so long; a test that waits longer has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// An answer, as it was framed.
#[derive(Clone, Debug, Default)]
pub(super) struct Answer {
    pub(super) status_line: String,
    pub(super) fields: Vec<(String, String)>,
    /// Without chunk framing.
    pub(super) body: Vec<u8>,
    /// Whether the framing said that the body is whole.
    pub(super) is_whole: bool,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.status_line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0)
    }

    pub(super) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The `data:` of every event.
    pub(super) fn events(&self) -> Vec<String> {
        let text = self.text();
        text.lines().filter_map(|line| line.strip_prefix("data: ")).map(str::to_owned).collect()
    }

    /// All text of a chat or completion stream's first choice.
    pub(super) fn streamed_text(&self) -> String {
        let events = self.events();
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<serde_json::Value>(event).ok());
        chunks
            .filter_map(|chunk| {
                let choice = chunk["choices"].get(0)?.clone();
                choice["delta"]["content"].as_str().or_else(|| choice["text"].as_str()).map(str::to_owned)
            })
            .collect()
    }
}

/// A connection.
pub(super) struct Client {
    stream: TcpStream,
    unread: Vec<u8>,
}

impl Client {
    pub(super) async fn connect(pod: &SimPod) -> Self {
        Self { stream: TcpStream::connect(pod.addr()).await.unwrap(), unread: Vec::new() }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Sends FIN and keeps reading.
    pub(super) async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    pub(super) async fn post(&mut self, path: &str, body: &str, more: &str) -> Answer {
        self.send(&request("POST", path, body, more)).await;
        self.answer().await
    }

    /// Reads some bytes; false at the end, whether FIN or RST.
    async fn read(&mut self) -> bool {
        let mut buffer = vec![0_u8; 64 << 10];
        let count = timeout(PATIENCE, self.stream.read(&mut buffer)).await.expect("the pod is silent").unwrap_or(0);
        self.unread.extend_from_slice(&buffer[..count]);
        count > 0
    }

    /// Reads until the connection ends.
    pub(super) async fn rest(&mut self) -> Vec<u8> {
        while self.read().await {}
        std::mem::take(&mut self.unread)
    }

    /// Reads until these bytes have come.
    pub(super) async fn until(&mut self, mark: &str) -> bool {
        while memchr::memmem::find(&self.unread, mark.as_bytes()).is_none() {
            if !self.read().await {
                return false;
            }
        }
        true
    }

    /// Reads one final answer, as far as it comes.
    pub(super) async fn answer(&mut self) -> Answer {
        if !self.until("\r\n\r\n").await {
            return Answer::default();
        }
        let end = memchr::memmem::find(&self.unread, b"\r\n\r\n").unwrap();
        let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default().to_owned();
        let split = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut answer = Answer { status_line, fields: lines.filter_map(split).collect(), ..Answer::default() };
        if answer.field("transfer-encoding") == Some("chunked") {
            answer.is_whole = self.chunks(&mut answer.body).await;
        } else {
            let length: usize = answer.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
            while self.unread.len() < length && self.read().await {}
            answer.is_whole = self.unread.len() >= length;
            let taken = length.min(self.unread.len());
            answer.body = self.unread.drain(..taken).collect();
        }
        answer
    }

    async fn chunks(&mut self, body: &mut Vec<u8>) -> bool {
        loop {
            if !self.until("\r\n").await {
                return false;
            }
            let end = memchr::memmem::find(&self.unread, b"\r\n").unwrap();
            let size = String::from_utf8_lossy(&self.unread[..end]).into_owned();
            let Ok(size) = usize::from_str_radix(&size, 16) else { return false };
            self.unread.drain(..end + 2);
            while self.unread.len() < size + 2 {
                if !self.read().await {
                    return false;
                }
            }
            body.extend(self.unread.drain(..size));
            self.unread.drain(..2);
            if size == 0 {
                return true;
            }
        }
    }
}

/// The bytes of a request.
pub(super) fn request(method: &str, path: &str, body: &str, more: &str) -> Vec<u8> {
    let kind = if more.contains("content-type") { "" } else { "content-type: application/json\r\n" };
    let framing = if method == "POST" { format!("{kind}content-length: {}\r\n", body.len()) } else { String::new() };
    format!("{method} {path} HTTP/1.1\r\nhost: pod\r\n{framing}{more}\r\n{body}").into_bytes()
}

/// One exchange on a connection of its own.
pub(super) async fn post(pod: &SimPod, path: &str, body: &str) -> Answer {
    Client::connect(pod).await.post(path, body, "").await
}

/// One `GET` on a connection of its own.
pub(super) async fn get(pod: &SimPod, path: &str) -> Answer {
    let mut client = Client::connect(pod).await;
    client.send(&request("GET", path, "", "")).await;
    client.answer().await
}
