//! What a request body says, read in one pass: the members the gate acts on, and where every top-level member lies so that
//! [`super::splice()`] can change some and keep every other byte.
//!
//! Refuses only what is ambiguous or dangerous: malformed JSON, invalid UTF-8, more than 64 levels, more than 10,000 keys
//! in one object, a body that is no object, a member that matters given twice. Wrong types are the pod's to report: they
//! read as absent here. Nothing in an error quotes the body.
use std::borrow::Cow;
use std::ops::Range;

use thiserror::Error;

use super::json;
use super::kind::Api;
use super::lax;
use super::scan::{DEPTH_MAX, Fault, KEYS_MAX, Scan};
use super::splice::{self, DANGEROUS};

/// Members whose meaning would differ between readers if given twice, so that twice is refused. Those of [`DANGEROUS`]
/// are not among them: they are removed, however often they come.
const ONCE: [&str; 38] = [
    "model",
    "stream",
    "stream_options",
    "max_tokens",
    "max_completion_tokens",
    "max_output_tokens",
    "sampling_params",
    "n",
    "best_of",
    "messages",
    "prompt",
    "prompt_embeds",
    "input",
    "inputs",
    "instructions",
    "system",
    "tools",
    "chat_template",
    "chat_template_kwargs",
    "documents",
    "query",
    "queries",
    "text_1",
    "text_2",
    "data_1",
    "data_2",
    "items",
    "texts",
    "token_ids",
    "tokens",
    "priority",
    "cache_salt",
    "previous_response_id",
    "request_id",
    "session_id",
    "vllm_xargs",
    "extra_args",
    "background",
];

/// Members that make the engine compile a grammar (vLLM 0.32 and the older `guided_*` of its 0.11).
pub const GRAMMARS: [&str; 7] = [
    "response_format",
    "structured_outputs",
    "guided_json",
    "guided_regex",
    "guided_grammar",
    "guided_choice",
    "structural_tag",
];

/// One top-level member, in the order of the body. Offsets are into the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member<'a> {
    /// The key with its escapes resolved.
    pub key: Cow<'a, str>,
    /// The value as written, without surrounding white space.
    pub value: &'a [u8],
    /// Offset of the key's opening quote.
    pub start: usize,
    /// Offset of the value.
    pub value_start: usize,
    /// Offset of the comma behind the value; `None` for the last member.
    pub comma: Option<usize>,
}

impl Member<'_> {
    /// Offset just behind the value.
    pub const fn end(&self) -> usize {
        self.value_start + self.value.len()
    }
}

/// What a body says. `None` means absent, null, or of a type the pod will refuse.
#[derive(Clone, Debug)]
pub struct Anatomy<'a> {
    /// The API the body was read as.
    pub api: Api,
    /// Name of the model or adapter asked for.
    pub model: Option<Cow<'a, str>>,
    /// Does the client want an event stream?
    pub stream: bool,
    /// Does the client want usage at the end of its stream (`stream_options.include_usage`)?
    pub stream_usage: bool,
    /// Most tokens to generate, whichever name the API has for it.
    pub max_tokens: Option<u64>,
    /// Number of answers per prompt.
    pub n: Option<u64>,
    /// vLLM's priority: lower is earlier.
    pub priority: Option<i64>,
    /// Salt of the pod's prefix cache.
    pub cache_salt: Option<Cow<'a, str>>,
    /// Responses API: the answer this request continues.
    pub previous_response_id: Option<Cow<'a, str>>,
    /// All top-level members, in order.
    pub members: Vec<Member<'a>>,
    /// Byte ranges of dangerous members below the top level, each with the comma that joined it.
    pub(super) nested: Vec<Range<usize>>,
    /// Offset just behind the opening brace.
    pub(super) inside: usize,
}

/// Why a body is refused with 400. The text is for the client and never quotes the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadBody {
    /// No body, or only white space.
    #[error("1 validation error:\n  {{'type': 'missing', 'loc': 'body', 'msg': 'Field required', 'input': 'None'}}")]
    Missing,
    /// Not JSON; `at` counts characters as Python does, `what` is Python's text.
    #[error(
        "1 validation error:\n  {{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', 'ctx': \
         {{'error': '{what}'}}}}"
    )]
    Syntax {
        /// Offset in characters.
        at: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// Not UTF-8 from this byte on.
    #[error("the body is not valid UTF-8 (byte {at}): send JSON encoded as UTF-8")]
    Utf8 {
        /// Offset in bytes.
        at: usize,
    },
    /// JSON, but not an object.
    #[error(
        "1 validation error:\n  {{'type': 'dict_type', 'loc': 'body', 'msg': 'Input should be a valid dictionary'}}"
    )]
    NotObject,
    /// Nested too deep.
    #[error("the body is nested more than {DEPTH_MAX} levels deep: flatten it")]
    TooDeep,
    /// Too many keys in one object.
    #[error("one object of the body has more than {KEYS_MAX} keys: split it")]
    TooManyKeys,
    /// A member that matters is there twice.
    #[error("the body has the member '{member}' more than once: send it once")]
    Duplicate {
        /// Which.
        member: &'static str,
    },
}

impl BadBody {
    /// `param` of the error body, as vLLM 0.32 gives it.
    pub fn param(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::Syntax { at, .. } => Some(Cow::Owned(format!("body.{at}"))),
            Self::Duplicate { member } => Some(Cow::Borrowed(member)),
            _ => Some(Cow::Borrowed("body")),
        }
    }

    /// `type` of the error body: vLLM's for a body it cannot read, with the space.
    pub const fn kind(&self) -> &'static str {
        "Bad Request"
    }

    fn from_fault(fault: Fault, body: &[u8]) -> Self {
        match fault {
            Fault::TooDeep => Self::TooDeep,
            Fault::TooManyKeys => Self::TooManyKeys,
            Fault::Syntax { at, what } => {
                let before = body.get(..at).unwrap_or(body);
                Self::Syntax { at: before.iter().filter(|&&byte| byte & 0xC0 != 0x80).count(), what }
            }
        }
    }
}

impl<'a> Anatomy<'a> {
    /// Reads a body in one pass. A leading UTF-8 byte order mark is skipped, as Python does.
    pub fn read(api: Api, body: &'a [u8]) -> Result<Self, BadBody> {
        let mut scan = Scan::new(body);
        let read = Self::scanned(api, &mut scan);
        // Only strings may hold other than ASCII, and the scan has seen whether any does.
        if (read.is_err() || !scan.is_ascii) && simdutf8::basic::from_utf8(body).is_err() {
            let at = std::str::from_utf8(body).map_or_else(|error| error.valid_up_to(), str::len);
            return Err(BadBody::Utf8 { at });
        }
        read
    }

    fn scanned(api: Api, scan: &mut Scan<'a>) -> Result<Self, BadBody> {
        let body = scan.bytes;
        scan.at = if body.starts_with(b"\xEF\xBB\xBF") { 3 } else { 0 };
        scan.space();
        match scan.peek() {
            None => return Err(BadBody::Missing),
            Some(b'{') => scan.at += 1,
            Some(_) => {
                scan.value(0).map_err(|fault| BadBody::from_fault(fault, body))?;
                return Err(end_of_body(scan).map_or_else(|bad| bad, |()| BadBody::NotObject));
            }
        }
        let mut anatomy = Self::empty(api, scan.at);
        anatomy.read_members(scan)?;
        end_of_body(scan)?;
        anatomy.settle();
        Ok(anatomy)
    }

    const fn empty(api: Api, inside: usize) -> Self {
        Self {
            api,
            model: None,
            stream: false,
            stream_usage: false,
            max_tokens: None,
            n: None,
            priority: None,
            cache_salt: None,
            previous_response_id: None,
            members: Vec::new(),
            nested: Vec::new(),
            inside,
        }
    }

    fn read_members(&mut self, scan: &mut Scan<'a>) -> Result<(), BadBody> {
        let body = scan.bytes;
        let bad = |fault| BadBody::from_fault(fault, body);
        let mut seen = 0_u64;
        scan.space();
        if scan.peek() == Some(b'}') {
            scan.at += 1;
            return Ok(());
        }
        loop {
            if self.members.len() >= KEYS_MAX as usize {
                return Err(BadBody::TooManyKeys);
            }
            let start = scan.at;
            let (key_end, has_escape) = scan.key().map_err(bad)?;
            let key = key_of(body.get(start + 1..key_end - 1).unwrap_or_default(), has_escape);
            if let Some(index) = ONCE.iter().position(|name| *name == key) {
                if seen & (1 << index) != 0 {
                    return Err(BadBody::Duplicate { member: ONCE.get(index).copied().unwrap_or_default() });
                }
                seen |= 1 << index;
            }
            let value_start = scan.at;
            scan.value(1).map_err(bad)?;
            let value = body.get(value_start..scan.at).unwrap_or_default();
            scan.space();
            let comma = (scan.peek() == Some(b',')).then_some(scan.at);
            self.members.push(Member { key, value, start, value_start, comma });
            match scan.peek() {
                Some(b',') => scan.at += 1,
                Some(b'}') => {
                    scan.at += 1;
                    return Ok(());
                }
                _ => return scan.fault("Expecting ',' delimiter").map_err(bad),
            }
            scan.space();
        }
    }

    /// Fills the fields from the member list.
    fn settle(&mut self) {
        self.model = self.text("model");
        self.cache_salt = self.text("cache_salt");
        self.previous_response_id = self.text("previous_response_id");
        self.stream = self.value("stream").and_then(lax::boolean).unwrap_or(false);
        self.stream_usage = self
            .value("stream_options")
            .and_then(|options| json::member(options, "include_usage"))
            .and_then(lax::boolean)
            .unwrap_or(false);
        self.priority = self.value("priority").and_then(lax::integer);
        let sampling = self.value("sampling_params");
        let number = |name| self.value(name).and_then(lax::unsigned);
        let sampled = |name| sampling.and_then(|object| json::member(object, name)).and_then(lax::unsigned);
        let max_tokens = match self.api {
            Api::Responses => number("max_output_tokens"),
            Api::GenerateTokens => sampled("max_tokens"),
            _ => number("max_completion_tokens").or_else(|| number("max_tokens")),
        };
        let n = number("n").or_else(|| sampled("n"));
        (self.max_tokens, self.n) = (max_tokens, n);
        self.nested = splice::nested_dangers(&self.members);
    }

    /// The value of a top-level member as written; the last one if there are several, as Python reads it.
    pub fn value(&self, name: &str) -> Option<&'a [u8]> {
        self.members.iter().rev().find(|member| member.key == name).map(|member| member.value)
    }

    /// The text of a top-level string member.
    pub fn text(&self, name: &str) -> Option<Cow<'a, str>> {
        self.value(name).and_then(json::text)
    }

    /// Does the request ask the pod to keep something, so that sending it twice would leave two? That is a response that is
    /// stored or made in the background (vLLM 0.32; without a store it ignores `store`, which its default relies on, so
    /// only a client that says so counts).
    pub fn leaves_something(&self) -> bool {
        let asks = |name| self.value(name).and_then(lax::boolean).unwrap_or(false);
        self.api == Api::Responses && (asks("store") || asks("background"))
    }

    /// Does the body hold members that can harm a pod, under any spelling of their keys? See [`DANGEROUS`].
    pub fn dangerous(&self) -> bool {
        !self.nested.is_empty() || self.members.iter().any(|member| DANGEROUS.contains(&member.key.as_ref()))
    }
}

fn key_of(raw: &[u8], has_escape: bool) -> Cow<'_, str> {
    if has_escape {
        let mut decoded = Vec::with_capacity(raw.len());
        json::decode_into(raw, &mut decoded);
        return Cow::Owned(String::from_utf8_lossy(&decoded).into_owned());
    }
    String::from_utf8_lossy(raw)
}

fn end_of_body(scan: &mut Scan<'_>) -> Result<(), BadBody> {
    scan.space();
    if scan.at < scan.bytes.len() {
        return scan.fault("Extra data").map_err(|fault| BadBody::from_fault(fault, scan.bytes));
    }
    Ok(())
}
