//! What a request that is traced leaves: named and timed spans, for whoever exports them.
//!
//! Names and attributes follow the semantic conventions of OpenTelemetry (HTTP 1.23, GenAI as of 1.37) where there is one, and
//! begin with `tidegate.` otherwise. As in the access line there is no prompt, key, body, query or address.
use std::borrow::Cow;
use std::sync::Arc;

use crate::base::Mono;

/// On which side of a call a span is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Serves a client.
    Server,
    /// Waits for a pod.
    Client,
    /// Neither.
    Internal,
}

/// Value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SpanValue {
    /// A word from a closed list.
    Word(&'static str),
    /// Other text.
    Text(Arc<str>),
    /// A count.
    Count(u64),
    /// Yes or no.
    Flag(bool),
}

/// One span.
#[derive(Clone, Debug)]
pub struct SpanRecord {
    /// What was done.
    pub name: Cow<'static, str>,
    /// Which side.
    pub kind: SpanKind,
    /// Its id; never 0.
    pub id: u64,
    /// Id of the span it is part of; 0 if it is the root of its trace.
    pub parent: u64,
    /// When it began.
    pub began: Mono,
    /// When it ended.
    pub ended: Mono,
    /// Name and value.
    pub attributes: Vec<(&'static str, SpanValue)>,
    /// Whether it failed.
    pub is_error: bool,
}

/// The spans of one request.
#[derive(Clone, Debug)]
pub struct TraceRecord {
    /// Id of the trace; never 0.
    pub id: u128,
    /// Whether the first span's parent is in another process.
    pub is_continued: bool,
    /// An instant, and what the wall clock showed at it \[microseconds since 1970\].
    pub anchor: (Mono, u64),
    /// The request itself, then its parts in the order in which they began to be recorded.
    pub spans: Vec<SpanRecord>,
}
