//! Raw bytes to a gate and what comes back; and what the pods say arrived.
//!
//! Reading goes on while bytes are still being written, because a refusal may come early and the connection may be reset right after it.

use crate::client::Connection;
use crate::wire::{self, Framing, Unchunk};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// After an answer, how long a gate may take to close.
const LINGER: Duration = Duration::from_millis(500);
const ANSWER_MAX: usize = 1 << 20;

/// The statuses that came back, in order, and whether the gate closed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Transcript {
    /// Status of every answer (100-continue left out).
    pub(crate) statuses: Vec<u16>,
    /// Whether the gate ended the connection.
    pub(crate) is_closed: bool,
}

impl Transcript {
    /// For clients that said nothing or left in the middle: a close without a word is as good as this status (RFC 9112 section 9.5).
    pub(crate) fn silence_is(&mut self, status: u16) {
        if self.is_closed && self.statuses.is_empty() {
            self.statuses.push(status);
        }
    }
}

/// What all pods counted together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// Requests that are neither the good client's nor probes.
    pub(crate) other: u64,
    /// Requests that were hidden inside another one.
    pub(crate) smuggled: u64,
}

/// Asks every pod.
pub(crate) async fn seen(pods: &[SocketAddr]) -> io::Result<Seen> {
    let mut sum = Seen::default();
    for pod in pods {
        let (status, body) = Connection::get(*pod, "/__seen").await?;
        let counts: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        let count = |name: &str| counts.get(name).and_then(serde_json::Value::as_u64);
        match (status, count("other"), count("smuggled")) {
            (200, Some(other), Some(smuggled)) => {
                sum.other += other;
                sum.smuggled += smuggled;
            }
            _ => return Err(io::Error::other(format!("{pod} is not a `loadtest backend`: /__seen answers {status}"))),
        }
    }
    Ok(sum)
}

/// Sends the bytes (then half-closes, if asked) and reads until the gate closes or is silent after an answer.
pub(crate) async fn exchange(target: SocketAddr, bytes: &[u8], half_close: bool, patience: Duration) -> Transcript {
    let Ok(stream) = TcpStream::connect(target).await else { return Transcript::default() };
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        if writer.write_all(bytes).await.is_ok() && half_close {
            drop(writer.shutdown().await);
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        transcript = listen(&mut reader, patience) => transcript,
        () = write => Transcript::default(),
    }
}

/// Sends a chunked body beyond the limit, as much as the gate takes.
pub(crate) async fn flood(target: SocketAddr, limit: usize) -> Transcript {
    let Ok(stream) = TcpStream::connect(target).await else { return Transcript::default() };
    let (mut reader, mut writer) = stream.into_split();
    let write = async {
        let head =
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let chunk = [b"10000\r\n".as_slice(), &vec![b' '; 0x10000], b"\r\n"].concat();
        let mut is_open = writer.write_all(head).await.is_ok();
        for _ in 0..limit / 0x10000 + 64 {
            is_open = is_open && writer.write_all(&chunk).await.is_ok();
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        transcript = listen(&mut reader, Duration::from_mins(1)) => transcript,
        () = write => Transcript::default(),
    }
}

/// Reads answers until close, or until nothing more comes after one.
pub(crate) async fn listen(reader: &mut (impl AsyncReadExt + Unpin), patience: Duration) -> Transcript {
    let end = tokio::time::Instant::now() + patience;
    let (mut bytes, mut transcript) = (Vec::new(), Transcript::default());
    loop {
        transcript.statuses = statuses(&bytes);
        let until = if transcript.statuses.is_empty() { end } else { end.min(tokio::time::Instant::now() + LINGER) };
        let mut part = [0u8; 4096];
        match tokio::time::timeout_at(until, reader.read(&mut part)).await {
            Ok(Ok(count)) if count > 0 && bytes.len() < ANSWER_MAX => {
                bytes.extend_from_slice(part.get(..count).unwrap_or_default());
            }
            Ok(_) => {
                transcript.is_closed = true;
                return transcript;
            }
            Err(_) => return transcript,
        }
    }
}

/// Statuses of the answers in these bytes; bodies are skipped by their framing.
fn statuses(mut bytes: &[u8]) -> Vec<u16> {
    let mut list = Vec::new();
    while let Ok(Some(head)) = wire::head(bytes) {
        if head.status / 100 != 1 {
            list.push(head.status);
        }
        bytes = bytes.get(head.len..).unwrap_or_default();
        let used = match head.framing {
            Framing::Length(length) => length as usize,
            Framing::Chunked => Unchunk::default().feed(bytes, |_| ()).unwrap_or(bytes.len()),
            Framing::Close => bytes.len(),
        };
        bytes = bytes.get(used..).unwrap_or_default();
    }
    list
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn statuses_of_several_answers() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\nHTTP/1.1 999 body\
            HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\nHTTP/1.1 400 Bad Request\r\n\r\ntext";
        assert_eq!(statuses(bytes), [200, 200, 400]);
        assert_eq!(statuses(b""), Vec::<u16>::new());
    }
}
