//! One connection: heads, bodies, answers, until it closes.
//!
//! Requests are served one after another. The connection closes when the client leaves, when either side said so, after
//! `keep_alive` of idleness following an answer, or when a fault cuts it.
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::net::TcpStream;

use super::body::{Chunked, Dechunk};
use super::faults::Plan;
use super::head::{BodyFraming, Head};
use super::host;
use super::log::{Arrival, Ended, Entry};
use super::pod::{Life, Shared};
use super::refuse::{Refused, Shape};
use super::routes;
use super::script::{Cut, Fault, Framing};
use super::wire::{Step, Wire, reset};

/// Bytes read at once.
const READ_BYTES: usize = 4 << 10;

/// After an early answer the body is never read, and the connection stays open so long.
const EARLY_ANSWER_OPEN: Duration = Duration::from_secs(5);

/// One request and the way to answer it.
pub(super) struct Exchange<'a> {
    pub(super) pod: &'a Arc<Shared>,
    pub(super) life: &'a Arc<Life>,
    pub(super) head: &'a Head,
    pub(super) body: Bytes,
    pub(super) plan: Plan,
    pub(super) wire: Wire<'a>,
    /// Id of the request without the API's prefix: the client's `x-request-id`, or made here.
    pub(super) id: String,
    /// Wall clock, whole seconds.
    pub(super) created: u64,
}

/// Serves a connection until it ends.
pub(super) async fn serve(pod: &Arc<Shared>, life: &Arc<Life>, stream: &TcpStream, number: u64) {
    match pod.connection_fault() {
        Some(Fault::Refuse) => return reset(stream),
        Some(_) => return std::future::pending().await,
        None => {}
    }
    let mut unread = BytesMut::new();
    let mut idle_limit = None;
    loop {
        let head = match read_head(stream, &mut unread, idle_limit).await {
            Read::Head(head) => head,
            Read::Closed => return,
            Read::Bad => {
                let text = "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\n\
                            connection: close\r\n\r\nInvalid HTTP request received.";
                // The client is wrong already; whether it hears so does not matter.
                drop(stream.try_write(text.as_bytes()));
                return;
            }
        };
        if !exchange(pod, life, stream, &mut unread, *head, number).await {
            return;
        }
        if unread.is_empty() {
            unread = BytesMut::new();
        }
        idle_limit = Some(pod.config.keep_alive);
    }
}

/// Serves one request; true if the connection may serve another.
async fn exchange(
    pod: &Arc<Shared>,
    life: &Arc<Life>,
    stream: &TcpStream,
    unread: &mut BytesMut,
    head: Head,
    connection: u64,
) -> bool {
    let (number, at) = (pod.next_request(), host::now());
    let mut entry = Entry::new(&pod.log, || Arrival {
        id: number,
        connection,
        at,
        method: head.method.clone(),
        path: head.path.clone(),
        query: head.query.clone(),
        headers: head.fields.clone(),
        body: None,
        status: None,
        bytes_sent: 0,
        ended: None,
        ended_at: None,
    });
    let mut plan = Plan::default();
    pod.plan(&head, None, &mut plan);
    if plan.is_refused {
        reset(stream);
        entry.end(Ended::Cut, None, 0);
        return false;
    }
    if let Some(status) = plan.early_answer {
        let mut wire = Wire::new(stream, unread, &head, None);
        wire.close_after();
        let result = wire.reply(&Refused::status(status).reply(shape_of(&head))).await;
        entry.end(result.err().unwrap_or(Ended::Complete), wire.status, wire.sent);
        tokio::time::sleep(EARLY_ANSWER_OPEN).await;
        return false;
    }
    let body = match read_body(stream, unread, &head, pod.config.body_bytes_max).await {
        Ok(body) => body,
        Err(ended) => {
            entry.end(ended, None, 0);
            return false;
        }
    };
    entry.body(&body);
    pod.plan(&head, Some(&body), &mut plan);
    let id = head.field("x-request-id").map(str::to_owned);
    let echo = pod.config.request_id_headers.then(|| id.clone().unwrap_or_else(|| format!("{:032x}", pod.fresh())));
    let mut wire = Wire::new(stream, unread, &head, echo);
    wire.follow(&plan);
    let id = id.unwrap_or_else(|| format!("{:016x}", pod.fresh()));
    let created = host::unix().as_secs();
    let mut x = Exchange { pod, life, head: &head, body, plan, wire, id, created };
    let result = respond(&mut x).await;
    let ended = result.err().unwrap_or(Ended::Complete);
    entry.end(ended, x.wire.status, x.wire.sent);
    ended == Ended::Complete && x.wire.is_kept_alive()
}

/// Follows the faults that need no answer, then answers.
async fn respond(x: &mut Exchange<'_>) -> Step {
    if x.plan.is_crash {
        x.pod.crash();
        return std::future::pending().await;
    }
    if x.plan.is_refused {
        return x.wire.cut(Cut::Reset);
    }
    if x.plan.is_silent {
        return x.wire.fall_silent().await;
    }
    if let Some(wait) = x.plan.slow_head {
        x.wire.wait(wait).await?;
    }
    for status in x.plan.interim.clone() {
        let phrase = super::wire::phrase(status);
        x.wire.raw(format!("HTTP/1.1 {status} {phrase}\r\n\r\n").as_bytes()).await?;
    }
    if let Some(bytes) = x.plan.raw.clone() {
        x.wire.raw(&bytes).await?;
        return x.wire.cut(Cut::Fin);
    }
    if let Some(framing) = x.plan.framing {
        x.wire.raw(broken(framing)).await?;
        return x.wire.cut(Cut::Fin);
    }
    if let Some((status, retry_after)) = x.plan.status {
        let mut reply = Refused::status(status).reply(shape_of(x.head));
        reply.fields.extend(retry_after.map(|seconds| ("retry-after", seconds.to_string())));
        return x.wire.reply(&reply).await;
    }
    routes::answer(x).await
}

/// Shape of errors on this path.
pub(super) fn shape_of(head: &Head) -> Shape {
    if head.path.starts_with("/v1/messages") { Shape::Anthropic } else { Shape::OpenAi }
}

fn broken(framing: Framing) -> &'static [u8] {
    match framing {
        Framing::Garbage => b"\x15\x03\x01\x00\x02\x02\x46\x00\xff\xfe\r\n\r\n",
        Framing::Http09 => b"{\"object\":\"chat.completion\",\"choices\":[]}",
        Framing::BadChunkSize => {
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-type: text/event-stream; charset=utf-8\r\n\
              transfer-encoding: chunked\r\n\r\n12\r\ndata: {\"a\":\"one\"}\n\r\nzz\r\ndata: {}\n\n\r\n0\r\n\r\n"
        }
        Framing::TwoContentLengths => {
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 2\r\ncontent-length: 9\r\n\
              content-type: application/json\r\n\r\n{}{\"a\":1}"
        }
        Framing::LengthAndChunked => {
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\
              content-type: application/json\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
        }
        Framing::ShortBody => {
            b"HTTP/1.1 200 OK\r\nserver: uvicorn\r\ncontent-length: 100\r\ncontent-type: application/json\r\n\r\n{\"id\":"
        }
    }
}

enum Read {
    Head(Box<Head>),
    Closed,
    Bad,
}

async fn read_head(stream: &TcpStream, unread: &mut BytesMut, idle_limit: Option<Duration>) -> Read {
    loop {
        if !unread.is_empty() {
            match Head::parse(unread) {
                Ok(Some((head, length))) => {
                    drop(unread.split_to(length));
                    return Read::Head(Box::new(head));
                }
                Ok(None) => {}
                Err(_) => return Read::Bad,
            }
        }
        let limit = idle_limit.filter(|_| unread.is_empty());
        let more = read_more(stream, unread);
        let is_open = match limit {
            None => more.await,
            Some(limit) => tokio::time::timeout(limit, more).await.unwrap_or(false),
        };
        if !is_open {
            return Read::Closed;
        }
    }
}

/// Reads some bytes; false if there are no more to come.
async fn read_more(stream: &TcpStream, into: &mut BytesMut) -> bool {
    loop {
        if stream.readable().await.is_err() {
            return false;
        }
        into.reserve(READ_BYTES);
        match stream.try_read_buf(into) {
            Ok(count) => return count > 0,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return false,
        }
    }
}

/// Reads the whole body, inviting it first if the client waits for that.
async fn read_body(stream: &TcpStream, unread: &mut BytesMut, head: &Head, most: usize) -> Result<Bytes, Ended> {
    if head.framing == BodyFraming::Length(0) {
        return Ok(Bytes::new());
    }
    if head.expects_continue {
        // A client that is gone shows below.
        drop(stream.try_write(b"HTTP/1.1 100 Continue\r\n\r\n"));
    }
    match head.framing {
        BodyFraming::Length(length) => {
            let length = usize::try_from(length).ok().filter(|length| *length <= most).ok_or(Ended::Cut)?;
            while unread.len() < length {
                unread.reserve((length - unread.len()).min(64 << 10));
                if !read_more(stream, unread).await {
                    return Err(Ended::ClientLeft);
                }
            }
            Ok(unread.split_to(length).freeze())
        }
        BodyFraming::Chunked => {
            let (mut state, mut body) = (Dechunk::default(), BytesMut::new());
            loop {
                match state.feed(unread, &mut body) {
                    Chunked::Whole => return Ok(body.freeze()),
                    Chunked::Partial if body.len() <= most => {}
                    Chunked::Partial | Chunked::Bad => return Err(Ended::Cut),
                }
                if !read_more(stream, unread).await {
                    return Err(Ended::ClientLeft);
                }
            }
        }
    }
}
