//! A client that reads an answer as it comes, leaves when it likes, and sees how the connection ends.
//!
//! Nothing here sleeps: every wait is for bytes, for an end, or for a pod's log, within `PATIENCE`.
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use tidegate::sim::http::{Arrival, Ended, Fleet, SimPod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{Answer, Gate, PATIENCE, events, parse, request};

/// How a client leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Closes: FIN.
    Close,
    /// Resets: RST.
    Reset,
    /// Stops writing and goes on reading.
    HalfClose,
}

/// A connection to the gate.
pub struct Line {
    io: TcpStream,
    seen: Vec<u8>,
}

impl Line {
    pub async fn open(addr: SocketAddr) -> Self {
        Self { io: TcpStream::connect(addr).await.unwrap(), seen: Vec::new() }
    }

    /// A connection with these bytes sent on it.
    pub async fn ask(addr: SocketAddr, bytes: &[u8]) -> Self {
        let mut line = Self::open(addr).await;
        line.send(bytes).await;
        line
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        self.io.write_all(bytes).await.unwrap();
    }

    /// Reads until `mark` is among the bytes.
    pub async fn until(&mut self, mark: &str) {
        while !self.seen.windows(mark.len()).any(|part| part == mark.as_bytes()) {
            assert!(self.more().await, "closed before {mark:?}: {:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Reads until this many events are there.
    pub async fn until_events(&mut self, count: usize) {
        while events(&self.seen).len() < count {
            assert!(self.more().await, "closed before event {count}: {:?}", String::from_utf8_lossy(&self.seen));
        }
    }

    /// Reads one answer, to its end or to the end of the connection.
    pub async fn answer(&mut self) -> Answer {
        loop {
            if let Some(answer) = parse(&self.seen, false) {
                self.seen.clear();
                return answer;
            }
            if !self.more().await {
                let nothing = Answer { status: 0, head: String::new(), body: Vec::new(), is_whole: false };
                return parse(&self.seen, true).unwrap_or(nothing);
            }
        }
    }

    /// Reads a chunked answer in pieces of this size, as a slow client does.
    pub async fn answer_in_sips(&mut self, size: usize) -> Answer {
        let mut piece = vec![0; size];
        while !self.seen.ends_with(b"\r\n0\r\n\r\n") {
            let read = tokio::time::timeout(PATIENCE, self.io.read(&mut piece)).await.expect("more bytes in time");
            let count = read.unwrap_or(0);
            self.seen.extend_from_slice(&piece[..count]);
            if count == 0 {
                break;
            }
        }
        parse(&self.seen, true).expect("an answer")
    }

    /// Whether what came so far begins with 200.
    pub fn is_good(&self) -> bool {
        self.seen.starts_with(b"HTTP/1.1 200")
    }

    /// Whether the gate closes the connection with nothing more on it.
    pub async fn is_closed(&mut self) -> bool {
        !self.more().await
    }

    /// Reads some bytes; false at the end of the connection.
    async fn more(&mut self) -> bool {
        let mut piece = vec![0; 64 * 1024];
        let read = tokio::time::timeout(PATIENCE, self.io.read(&mut piece)).await.expect("more bytes in time");
        let count = read.unwrap_or(0);
        self.seen.extend_from_slice(&piece[..count]);
        count > 0
    }

    /// Leaves. After a half-close the connection is still there.
    pub async fn leave(mut self, how: Leave) -> Option<Self> {
        match how {
            Leave::Close => None,
            Leave::Reset => {
                self.io.set_zero_linger().unwrap();
                None
            }
            Leave::HalfClose => {
                self.io.shutdown().await.unwrap();
                Some(self)
            }
        }
    }
}

/// A POST with a request id that the pods' logs can be searched for.
pub fn named_request(path: &str, body: &str) -> (String, Vec<u8>) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let id = format!("test-{}", NUMBER.fetch_add(1, Relaxed));
    let bytes = request(path, &format!("x-request-id: {id}\r\n"), body);
    (id, bytes)
}

/// The request with this id at a pod, once `is_met` holds for it.
pub async fn arrival(pod: &SimPod, id: &str, is_met: impl Fn(&Arrival) -> bool) -> Arrival {
    let of_id = |one: &&Arrival| one.header("x-request-id") == Some(id);
    let waited = pod.wait_for(|log| log.iter().filter(of_id).any(&is_met));
    let log = tokio::time::timeout(PATIENCE, waited).await.unwrap_or_else(|_| panic!("{id} never was so at the pod"));
    log.iter().filter(of_id).find(|one| is_met(one)).unwrap().clone()
}

/// How long after `left` the pod saw its client go.
pub async fn aborted(pod: &SimPod, id: &str, left: tidegate::base::Mono) -> Duration {
    let arrival = arrival(pod, id, |arrival| arrival.ended.is_some()).await;
    assert_eq!(arrival.ended, Some(Ended::ClientLeft), "{id}");
    arrival.ended_at.unwrap().since(left)
}

/// Requests that reached pods, without the gate's own questions.
pub fn attempts(fleet: &Fleet) -> usize {
    fleet.pods.iter().map(|pod| pod.served().len()).sum()
}

/// Sends requests with prompts of their own until `pod` got one; gives the answer to that one. All others must be good.
pub async fn until_hit(gate: &Gate, pod: &SimPod, path: &str, body: impl Fn(u32) -> String) -> Answer {
    let before = pod.served().len();
    let hit = async {
        for number in 0.. {
            let answer = super::post(gate.addr(), path, "", &body(number)).await;
            if pod.served().len() > before {
                return answer;
            }
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
        unreachable!()
    };
    tokio::time::timeout(PATIENCE, hit).await.expect("the pod gets a request")
}

/// Checks the one access line: cause and attempts.
pub fn assert_line(lines: &[serde_json::Value], cause: &str, attempts: u32) {
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!((lines[0]["cause"].as_str(), lines[0]["attempts"].as_u64()), (Some(cause), Some(attempts.into())));
}
