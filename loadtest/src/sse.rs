//! Counts what a stream of server-sent events holds, fed with chunks cut anywhere.
//!
//! It keeps at most the first bytes of an unfinished line; the payload is not copied or parsed beyond what tells events apart: data
//! events, the ending `[DONE]`, and error events (a line `event: error` or data that starts with an `error` member).

use memchr::memchr;

/// Longest part of a line that is looked at.
const KEEP: usize = 32;

/// Incremental scanner of one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct SseScan {
    line: Vec<u8>,
    has_data: bool,
    is_done: bool,
    is_error: bool,
    /// Data events that ended so far, without `[DONE]` and errors.
    pub(crate) events: u64,
    /// Error events that ended so far.
    pub(crate) errors: u64,
    /// Whether the stream said `[DONE]`.
    pub(crate) done: bool,
}

impl SseScan {
    /// Takes the next bytes and returns how many data events ended in them.
    pub(crate) fn feed(&mut self, mut chunk: &[u8]) -> u64 {
        let before = self.events;
        while let Some(end) = memchr(b'\n', chunk) {
            let (line, rest) = chunk.split_at(end);
            if self.line.is_empty() {
                self.line_ends(line);
            } else {
                self.keep(line);
                let kept = std::mem::take(&mut self.line);
                self.line_ends(&kept);
                self.line = kept;
                self.line.clear();
            }
            chunk = rest.get(1..).unwrap_or_default();
        }
        self.keep(chunk);
        self.events - before
    }

    fn keep(&mut self, part: &[u8]) {
        let room = KEEP.saturating_sub(self.line.len());
        self.line.extend_from_slice(part.get(..room.min(part.len())).unwrap_or_default());
    }

    fn line_ends(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            self.event_ends();
        } else if let Some(value) = line.strip_prefix(b"data:") {
            let value = value.strip_prefix(b" ").unwrap_or(value);
            self.has_data = true;
            self.is_done |= value.starts_with(b"[DONE]");
            self.is_error |= value.starts_with(br#"{"error""#);
        } else if let Some(value) = line.strip_prefix(b"event:") {
            self.is_error |= value.trim_ascii() == b"error";
        }
    }

    fn event_ends(&mut self) {
        if self.is_error {
            self.errors += 1;
        } else if self.is_done {
            self.done = true;
        } else if self.has_data {
            self.events += 1;
        }
        (self.has_data, self.is_done, self.is_error) = (false, false, false);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn check(stream: &str, events: u64, errors: u64, done: bool) {
        for step in 1..=stream.len() {
            let mut scan = SseScan::default();
            let counted: u64 = stream.as_bytes().chunks(step).map(|part| scan.feed(part)).sum();
            assert_eq!(
                (scan.events, scan.errors, scan.done),
                (events, errors, done),
                "cut every {step} bytes: {stream}"
            );
            assert_eq!(counted, events, "what feed returned adds up");
        }
    }

    #[test]
    fn events_are_counted_at_any_split() {
        check("data: {\"a\":1}\n\ndata: {\"a\":2}\n\ndata: [DONE]\n\n", 2, 0, true);
        check("data:{\"a\":1}\r\n\r\ndata:[DONE]\r\n\r\n", 1, 0, true);
    }

    #[test]
    fn comments_and_unfinished_events_do_not_count() {
        check(": ping\n\n: ping\n\n", 0, 0, false);
        check("data: {\"a\":1}\n\ndata: {\"a\":2}\n", 1, 0, false);
        check("data: a\ndata: b\n\n", 1, 0, false);
    }

    #[test]
    fn errors_are_told_apart() {
        check("data: {\"a\":1}\n\ndata: {\"error\":{\"message\":\"x\"}}\n\n", 1, 1, false);
        check("event: error\ndata: {\"type\":\"error\"}\n\n", 0, 1, false);
        check("event: message_start\ndata: {\"type\":\"message_start\"}\n\n", 1, 0, false);
    }
}
