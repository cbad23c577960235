//! Scans an event stream while it passes: where events end, whether the first one is an error, usage, response id, and
//! whether the API's good ending was seen. Fed with chunks cut at any byte; the result does not depend on the cuts.
//!
//! The payload is not parsed and, while events lie whole in a chunk, not copied. Of an event cut between chunks at most
//! 32 KiB are kept (its first and last 16 KiB), and of a longer event only these are looked at. Lines end in LF or CR LF,
//! as vLLM and everyone writes them; the bare CR that the standard also allows is not recognised.
use memchr::{memchr, memchr_iter, memmem};

use super::json;
use super::kind::{Api, DoneMark};
use super::usage::Usage;

/// Bytes kept of each end of an event that is cut between chunks.
const KEEP: usize = 16 * 1024;
/// Longest response id kept, in bytes.
pub const ID_MAX: usize = 256;

/// What the first data event of a stream was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum First {
    /// Data: the pod has begun to answer.
    Good,
    /// An error event: nothing of an answer was sent.
    Error,
}

/// What one chunk brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// Data events that ended in this chunk, error events included.
    pub events: u64,
    /// Offset in the chunk just behind the last event that ended in it.
    pub boundary: Option<usize>,
    /// An error event ended in this chunk.
    pub error: bool,
}

/// Where the scan is in the current line; a line with nothing but a CR is empty, and an empty line ends an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    Start,
    Cr,
    Text,
}

/// Incremental scanner of one stream.
#[derive(Debug)]
pub struct SseScan {
    api: Api,
    line: Line,
    /// Of the current event, what earlier chunks brought: its first bytes.
    head: Vec<u8>,
    /// Its last bytes, once `head` is full.
    tail: Vec<u8>,
    /// Bytes of the current event seen so far, in all chunks.
    seen: usize,
    events: u64,
    first: Option<First>,
    has_error: bool,
    is_done: bool,
    usage: Option<Usage>,
    response_id: Option<String>,
}

/// An event as it went by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventView<'a> {
    /// Its name; empty if it has none.
    pub name: &'a [u8],
    /// From its first `data` line to its end; `None` if it was too long to be kept whole.
    pub data: Option<&'a [u8]>,
}

/// One whole event, or both ends of one that is longer than `2 * KEEP`.
struct Event<'a> {
    head: &'a [u8],
    tail: &'a [u8],
}

impl SseScan {
    /// A scanner for an answer of this API.
    pub const fn new(api: Api) -> Self {
        Self {
            api,
            line: Line::Start,
            head: Vec::new(),
            tail: Vec::new(),
            seen: 0,
            events: 0,
            first: None,
            has_error: false,
            is_done: false,
            usage: None,
            response_id: None,
        }
    }

    /// Takes the next bytes of the stream.
    pub fn feed(&mut self, chunk: &[u8]) -> Marks {
        self.feed_to(chunk, &mut |_| {})
    }

    /// Takes the next bytes of the stream and shows each data event that is no error when it has ended.
    pub fn feed_to(&mut self, chunk: &[u8], listener: &mut impl FnMut(EventView<'_>)) -> Marks {
        let (events, mut marks) = (self.events, Marks::default());
        let mut start = 0;
        let mut line_start = 0;
        for newline in memchr_iter(b'\n', chunk) {
            let line = self.line_after(chunk.get(line_start..newline).unwrap_or_default());
            self.line = Line::Start;
            line_start = newline + 1;
            if line != Line::Text {
                marks.error |= self.end_event(chunk.get(start..line_start).unwrap_or_default(), listener);
                start = line_start;
                marks.boundary = Some(start);
            }
        }
        self.line = self.line_after(chunk.get(line_start..).unwrap_or_default());
        self.hold(chunk.get(start..).unwrap_or_default());
        marks.events = self.events - events;
        marks
    }

    /// What the first data event was. Known when that event has ended, or when 16 KiB of it are there; comments do not count.
    pub const fn first(&self) -> Option<First> {
        self.first
    }

    /// Was there an error event, first or later?
    pub const fn has_error(&self) -> bool {
        self.has_error
    }

    /// Was the API's good ending seen ([`DoneMark`])? vLLM also sends `[DONE]` after an error event.
    pub const fn is_done(&self) -> bool {
        self.is_done
    }

    /// The last usage seen, completed by earlier ones.
    pub const fn usage(&self) -> Option<Usage> {
        self.usage
    }

    /// Responses API: id of the answer, from `response.created`.
    pub fn response_id(&self) -> Option<&str> {
        self.response_id.as_deref()
    }

    /// Data events so far. Not a count of tokens: vLLM bundles several into one.
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// Is the stream between two events, so that an event of the gate's own may follow?
    pub const fn at_boundary(&self) -> bool {
        self.seen == 0
    }

    /// Bytes kept of a cut event, for the accounting of memory.
    pub const fn kept_bytes(&self) -> usize {
        self.head.capacity() + self.tail.capacity()
    }

    fn line_after(&self, text: &[u8]) -> Line {
        match (self.line, text) {
            (line, []) => line,
            (Line::Start, b"\r") => Line::Cr,
            _ => Line::Text,
        }
    }

    /// Keeps the bytes of an event that has not ended, within bounds.
    fn hold(&mut self, part: &[u8]) {
        self.seen += part.len();
        let (first, rest) = part.split_at(part.len().min(KEEP - self.head.len()));
        self.head.extend_from_slice(first);
        let last = rest.get(rest.len().saturating_sub(KEEP)..).unwrap_or_default();
        let over = (self.tail.len() + last.len()).saturating_sub(KEEP);
        self.tail.drain(..over);
        self.tail.extend_from_slice(last);
        if self.first.is_none() && self.head.len() == KEEP {
            self.first = verdict(&self.head);
        }
    }

    /// Ends the current event, whose last part is `part`; true if it was an error event.
    fn end_event(&mut self, part: &[u8], listener: &mut impl FnMut(EventView<'_>)) -> bool {
        if self.seen == 0 && part.len() <= 2 * KEEP {
            return self.judge(&Event { head: part, tail: &[] }, listener);
        }
        self.hold(part);
        let (mut head, tail) = (std::mem::take(&mut self.head), std::mem::take(&mut self.tail));
        let is_error = if self.seen <= 2 * KEEP {
            head.extend_from_slice(&tail);
            self.judge(&Event { head: &head, tail: &[] }, listener)
        } else {
            self.judge(&Event { head: &head, tail: &tail }, listener)
        };
        self.seen = 0;
        if head.capacity() <= KEEP {
            // Kept, so that a stream whose every event is cut does not allocate for each.
            head.clear();
            self.head = head;
        }
        is_error
    }

    fn judge(&mut self, event: &Event<'_>, listener: &mut impl FnMut(EventView<'_>)) -> bool {
        let lines = Lines::of(event.head);
        let Some(data) = lines.data else { return false };
        self.events += 1;
        let is_error = lines.is_error();
        self.has_error |= is_error;
        self.first = self.first.or(Some(if is_error { First::Error } else { First::Good }));
        self.is_done |= match self.api.done_mark() {
            DoneMark::Done => data.starts_with(b"[DONE]"),
            DoneMark::MessageStop => lines.name == b"message_stop",
            DoneMark::Response => {
                matches!(lines.name, b"response.completed" | b"response.incomplete" | b"response.failed")
            }
        };
        if self.api == Api::Responses && self.response_id.is_none() && lines.name == b"response.created" {
            self.response_id = response_id(data);
        }
        if let Some(usage) = last_usage(event.tail).or_else(|| last_usage(data)) {
            self.usage = Some(usage.over(self.usage));
        }
        if !is_error {
            listener(EventView { name: lines.name, data: Some(data).filter(|_| event.tail.is_empty()) });
        }
        is_error
    }
}

/// The lines of an event that matter.
#[derive(Default)]
struct Lines<'a> {
    name: &'a [u8],
    /// From the first `data` line to the end of the event.
    data: Option<&'a [u8]>,
}

impl<'a> Lines<'a> {
    fn of(event: &'a [u8]) -> Self {
        let mut lines = Self::default();
        let mut rest = event;
        while !rest.is_empty() {
            if let Some(data) = field(rest, b"data:") {
                lines.data = Some(data);
                break;
            }
            let end = memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, next) = rest.split_at(end);
            if let Some(name) = field(line, b"event:") {
                lines.name = name.trim_ascii_end();
            }
            rest = next.get(1..).unwrap_or_default();
        }
        lines
    }

    /// `event: error`, or data that is an object whose first member is a non-null `error` (vLLM) or `"type":"error"`.
    fn is_error(&self) -> bool {
        if self.name == b"error" {
            return true;
        }
        let start = self.data.unwrap_or_default();
        let Some(object) = start.strip_prefix(b"{") else { return false };
        let object = object.trim_ascii_start();
        let (key, expected) = if object.starts_with(b"\"error\"") {
            (&b"\"error\""[..], None)
        } else {
            (&b"\"type\""[..], Some(&b"\"error\""[..]))
        };
        let Some(value) = object.strip_prefix(key).map(<[u8]>::trim_ascii_start) else { return false };
        let Some(value) = value.strip_prefix(b":").map(<[u8]>::trim_ascii_start) else { return false };
        expected.map_or_else(|| !value.starts_with(b"null"), |expected| value.starts_with(expected))
    }
}

/// The value of a field line, without the one space that may follow the colon.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let value = line.strip_prefix(name)?;
    Some(value.strip_prefix(b" ").unwrap_or(value))
}

/// Judges an event by its first bytes; `None` if they hold no data line.
fn verdict(head: &[u8]) -> Option<First> {
    let lines = Lines::of(head);
    lines.data?;
    Some(if lines.is_error() { First::Error } else { First::Good })
}

fn response_id(data: &[u8]) -> Option<String> {
    let id = json::text(json::member(json::member(data, "response")?, "id")?)?;
    (id.len() <= ID_MAX).then(|| id.into_owned())
}

/// The last object behind a `"usage"` key that counts tokens. Text that quotes such a key is escaped and does not match.
fn last_usage(data: &[u8]) -> Option<Usage> {
    let mut end = data.len();
    while let Some(found) = memmem::rfind(data.get(..end)?, b"\"usage\":") {
        if let Some(usage) = Usage::read(data.get(found + 8..)?) {
            return Some(usage);
        }
        end = found;
    }
    None
}
