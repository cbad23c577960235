//! Streams whose answer has not begun: a comment now and then, so that nobody between gate and client gives them up.
//!
//! The first comment takes the status with it, 200. What goes wrong afterwards is told by an event, as pods tell it once a stream has
//! begun. A comment is a line that begins with a colon (WHATWG HTML, "Interpreting an event stream"); clients pass over it.
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{StatusCode, Version};
use pingora::http::ResponseHeader;

use super::{Client, Lost};
use crate::api::{Api, DoneMark};
use crate::base::Mono;
use crate::proxy::headers::{Frame, to_client};
use crate::runtime::now;

const COMMENT: &[u8] = b": keep-alive\n\n";

/// The comments of one stream.
#[derive(Debug)]
pub(super) struct Warm {
    every: Duration,
    /// When the next is due.
    pub(super) at: Mono,
    api: Api,
    /// Goes before the first.
    head: Option<Box<ResponseHeader>>,
    /// One is being written. If it is left at that, the client has not read for long, and what comes next would be put into it.
    is_writing: bool,
}

impl Client {
    /// Sends comments from now on until the answer begins.
    pub(in crate::proxy) fn keep_warm(&mut self, api: Api, every: Duration, request_id: &str) {
        // What is older knows no end of such a body but that of the connection.
        if self.warm.is_some() || !self.is_http2() && self.head().version != Version::HTTP_11 {
            return;
        }
        let fields = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        ];
        let build = || {
            let mut head = to_client(StatusCode::OK, HeaderMap::from_iter(fields), Frame::Open, self.is_http11())?;
            head.insert_header("x-request-id", request_id)?;
            self.open(&mut head)?;
            Ok::<_, Box<pingora::Error>>(head)
        };
        let Ok(head) = build() else { return };
        let at = now().after(every);
        self.warm = Some(Box::new(Warm { every, at, api, head: Some(head), is_writing: false }));
    }

    /// The API of a stream of which nothing but comments was sent, if some were.
    pub(in crate::proxy) fn warmed(&self) -> Option<Api> {
        self.warm.as_ref().filter(|warm| warm.head.is_none() && !self.has_begun).map(|warm| warm.api)
    }

    /// Sends the next comment.
    pub(super) async fn comfort(&mut self) -> Result<(), Lost> {
        let Some(warm) = &mut self.warm else { return Ok(()) };
        if std::mem::replace(&mut warm.is_writing, true) {
            return Err(Lost::Stalled);
        }
        warm.at = now().after(warm.every);
        if let Some(head) = warm.head.take() {
            self.send_head(head).await?;
        }
        self.write(Bytes::from_static(COMMENT)).await?;
        if let Some(warm) = &mut self.warm {
            warm.is_writing = false;
        }
        Ok(())
    }

    /// Whether a comment was left half written.
    pub(super) fn is_torn(&self) -> bool {
        self.warm.as_ref().is_some_and(|warm| warm.is_writing)
    }
}

/// An answer that is not a stream as the event of one.
pub(in crate::proxy) fn as_event(api: Api, body: &[u8]) -> Bytes {
    let mut event = BytesMut::with_capacity(body.len() + 32);
    if api.done_mark() != DoneMark::Done {
        event.put_slice(b"event: error\n");
    }
    for line in body.split(|byte| matches!(byte, b'\n' | b'\r')).filter(|line| !line.is_empty()) {
        event.put_slice(b"data: ");
        event.put_slice(line);
        event.put_u8(b'\n');
    }
    event.put_u8(b'\n');
    event.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_several_lines_is_one_event() {
        let body = b"{\"error\":{\r\n \"code\": 400\n}}\n";
        assert_eq!(as_event(Api::Chat, body), "data: {\"error\":{\ndata:  \"code\": 400\ndata: }}\n\n");
        assert_eq!(as_event(Api::Messages, b"{}"), "event: error\ndata: {}\n\n");
    }
}
