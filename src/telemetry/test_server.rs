//! A small HTTP server on a port of its own, for the tests of this room: answers what a closure says, at a given pace.
//!
//! It reads heads only (telemetry sends no bodies) and knows how many connections it was given.
#![allow(clippy::unwrap_used)]
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::runtime::{Task, supervise};

/// How a server treats its connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pace {
    /// Keeps them open.
    Keep,
    /// Closes after an answer.
    Close,
    /// Writes byte by byte, then closes.
    Drip,
    /// Stays silent after the answer's bytes.
    Hang,
}

/// A server on a port of its own; gone when dropped.
pub(super) struct Server {
    pub(super) addr: SocketAddr,
    connections: Arc<AtomicU32>,
    task: Task,
}

impl Server {
    /// `answer` gets the request's head and its number (from 0).
    pub(super) async fn start<F>(pace: Pace, answer: F) -> Self
    where
        F: Fn(&str, u32) -> Vec<u8> + Send + Sync + 'static,
    {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicU32::new(0));
        let (count, answer, asked) = (Arc::clone(&connections), Arc::new(answer), Arc::new(AtomicU32::new(0)));
        let task = supervise("test server", async move {
            let mut open = Vec::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, SeqCst);
                let (answer, asked, open_token) = (Arc::clone(&answer), Arc::clone(&asked), Arc::clone(&count));
                open.push(supervise("test connection", async move {
                    serve(stream, pace, |head| answer(head, asked.fetch_add(1, SeqCst))).await;
                    drop(open_token);
                }));
            }
        });
        Self { addr, connections, task }
    }

    /// Ends it; after this every connection is closed and new ones are refused.
    pub(super) async fn stop(self) {
        drop(self.task);
        while Arc::strong_count(&self.connections) > 1 {
            tokio::task::yield_now().await;
        }
    }

    pub(super) fn connections(&self) -> u32 {
        self.connections.load(SeqCst)
    }
}

async fn serve(mut stream: TcpStream, pace: Pace, answer: impl Fn(&str) -> Vec<u8>) {
    stream.set_nodelay(true).unwrap();
    let mut head = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        head.push(byte);
        if !head.ends_with(b"\r\n\r\n") {
            continue;
        }
        let bytes = answer(std::str::from_utf8(&head).unwrap());
        head.clear();
        let step = if pace == Pace::Drip { 1 } else { bytes.len().max(1) };
        for part in bytes.chunks(step) {
            if stream.write_all(part).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        match pace {
            Pace::Keep => {}
            Pace::Close | Pace::Drip => return,
            Pace::Hang => return std::future::pending().await,
        }
    }
}
