//! `/v1/responses`: whole answers, streams, and the bounded store that `GET` and `previous_response_id` read.
//!
//! Always stores (vLLM does with `VLLM_ENABLE_RESPONSES_API_STORE=1`) unless the request says `store: false`.
use std::collections::VecDeque;

use parking_lot::Mutex;

use super::ask::{Ask, close_answer};
use super::dialect::{Dialect, Events, named};
use super::json::{or_null, quote};
use crate::sim::engine::content;

/// Answers kept by id, the oldest dropped first.
pub(super) struct Store {
    kept: Mutex<VecDeque<Stored>>,
    capacity: usize,
}

/// One kept answer.
#[derive(Clone)]
pub(super) struct Stored {
    pub(super) id: String,
    /// The answer as it was sent.
    pub(super) body: String,
    /// Prompt and answer, as tokens, closed for a next turn.
    pub(super) tokens: Vec<u32>,
}

impl Store {
    pub(super) fn new(capacity: usize) -> Self {
        Self { kept: Mutex::default(), capacity }
    }

    pub(super) fn get(&self, id: &str) -> Option<Stored> {
        self.kept.lock().iter().find(|stored| stored.id == id).cloned()
    }

    pub(super) fn put(&self, stored: Stored) {
        let mut kept = self.kept.lock();
        kept.push_back(stored);
        while kept.len() > self.capacity {
            kept.pop_front();
        }
    }
}

/// What all objects of one response share.
pub(super) struct Frame<'a> {
    pub(super) ask: &'a Ask,
    /// With `resp_`.
    pub(super) id: String,
    pub(super) created: u64,
    pub(super) previous: Option<&'a str>,
    pub(super) output_max: u64,
    pub(super) has_details: bool,
}

impl Frame<'_> {
    fn item_id(&self) -> String {
        format!("msg_{}", self.id.trim_start_matches("resp_"))
    }

    fn text(&self) -> String {
        self.ask.wanted.first().map(|wanted| content::text(wanted.seed, 0, wanted.tokens)).unwrap_or_default()
    }

    fn part(&self) -> String {
        format!(r#"{{"annotations":[],"text":{},"type":"output_text","logprobs":null}}"#, quote(&self.text()))
    }

    fn item(&self, content: &str, status: &str) -> String {
        format!(
            r#"{{"id":"{}","content":[{content}],"role":"assistant","status":"{status}","type":"message","phase":null}}"#,
            self.item_id()
        )
    }

    fn object(&self, status: &str, incomplete: &str, output: &str, usage: &str) -> String {
        format!(
            r#"{{"id":"{}","created_at":{},"incomplete_details":{incomplete},"instructions":null,"metadata":null,"model":{},"object":"response","output":[{output}],"parallel_tool_calls":true,"temperature":{:?},"tool_choice":"none","tools":[],"top_p":1.0,"background":false,"max_output_tokens":{},"max_tool_calls":null,"previous_response_id":{},"prompt":null,"reasoning":null,"service_tier":"auto","status":"{status}","text":null,"top_logprobs":null,"truncation":"disabled","usage":{usage},"user":null,"presence_penalty":0.0,"frequency_penalty":0.0,"kv_transfer_params":null,"ec_transfer_params":null,"input_messages":null,"output_messages":null}}"#,
            self.id,
            self.created,
            quote(&self.ask.model),
            self.ask.temperature,
            self.output_max,
            or_null(self.previous.map(quote)),
        )
    }

    fn usage(&self, cached: u64) -> String {
        let (input, output) = (self.ask.prompt_tokens(), self.ask.output_tokens());
        let cached = if self.has_details { cached } else { 0 };
        format!(
            r#"{{"input_tokens":{input},"input_tokens_details":{{"cached_tokens":{cached},"cache_write_tokens":0,"input_tokens_per_turn":[],"cached_tokens_per_turn":[]}},"output_tokens":{output},"output_tokens_details":{{"reasoning_tokens":0,"tool_output_tokens":0,"output_tokens_per_turn":[],"tool_output_tokens_per_turn":[]}},"total_tokens":{}}}"#,
            input + output
        )
    }

    /// The finished response.
    pub(super) fn whole(&self, cached: u64) -> String {
        let is_cut_short = self.ask.wanted.first().is_some_and(|wanted| wanted.is_cut_short);
        let (status, incomplete) =
            if is_cut_short { ("incomplete", r#"{"reason":"max_output_tokens"}"#) } else { ("completed", "null") };
        self.object(status, incomplete, &self.item(&self.part(), "completed"), &self.usage(cached))
    }

    /// What the store keeps of it.
    pub(super) fn stored(&self, cached: u64) -> Stored {
        let mut tokens = self.ask.prompts.first().cloned().unwrap_or_default();
        if let Some(wanted) = self.ask.wanted.first() {
            tokens.extend((0..wanted.tokens).map(|index| content::token(wanted.seed, index)));
        }
        close_answer(&mut tokens);
        Stored { id: self.id.clone(), body: self.whole(cached), tokens }
    }
}

/// A stream of response events.
pub(super) struct ResponseStream<'a> {
    frame: &'a Frame<'a>,
    sequence: u64,
    cached: u64,
}

impl<'a> ResponseStream<'a> {
    /// A stream of this response.
    pub(super) fn new(frame: &'a Frame<'a>) -> Self {
        Self { frame, sequence: 0, cached: 0 }
    }

    /// `before`, the sequence number, `after`, the type: the members in vLLM's order.
    fn push(&mut self, kind: &str, before: &str, after: &str, out: &mut Events) {
        let sequence = self.sequence;
        self.sequence += 1;
        out.push(named(kind, &format!(r#"{{{before},"sequence_number":{sequence}{after},"type":"{kind}"}}"#)));
    }

    fn delta(&mut self, text: &str, out: &mut Events) {
        let before = format!(
            r#""content_index":0,"delta":{},"item_id":"{}","logprobs":[],"output_index":0"#,
            quote(text),
            self.frame.item_id()
        );
        self.push("response.output_text.delta", &before, "", out);
    }
}

impl Dialect for ResponseStream<'_> {
    fn early(&mut self, out: &mut Events) {
        let object = format!(r#""response":{}"#, self.frame.object("in_progress", "null", "", "null"));
        self.push("response.created", &object, "", out);
        self.push("response.in_progress", &object, "", out);
    }

    fn opening(&mut self, cached: u64, out: &mut Events) {
        self.cached = cached;
        let item = format!(r#""item":{},"output_index":0"#, self.frame.item("", "in_progress"));
        self.push("response.output_item.added", &item, "", out);
        let before = format!(
            r#""content_index":0,"item_id":"{}","output_index":0,"part":{{"annotations":[],"text":"","type":"output_text","logprobs":[]}}"#,
            self.frame.item_id()
        );
        self.push("response.content_part.added", &before, "", out);
    }

    fn token(&mut self, place: usize, index: u64, _is_last: bool, out: &mut Events) {
        if let Some(wanted) = self.frame.ask.wanted.get(place) {
            self.delta(&content::text(wanted.seed, index, index + 1), out);
        }
    }

    fn filler(&mut self, text: &str, out: &mut Events) {
        self.delta(text, out);
    }

    fn closing(&mut self, out: &mut Events) {
        let (id, text) = (self.frame.item_id(), quote(&self.frame.text()));
        let before = format!(r#""content_index":0,"item_id":"{id}","logprobs":[],"output_index":0"#);
        self.push("response.output_text.done", &before, &format!(r#","text":{text}"#), out);
        let part = self.frame.part();
        let before = format!(r#""content_index":0,"item_id":"{id}","output_index":0,"part":{part}"#);
        self.push("response.content_part.done", &before, "", out);
        let item = format!(r#""item":{},"output_index":0"#, self.frame.item(&part, "completed"));
        self.push("response.output_item.done", &item, "", out);
    }

    fn ending(&mut self, out: &mut Events) {
        let object = format!(r#""response":{}"#, self.frame.whole(self.cached));
        self.push("response.completed", &object, "", out);
    }

    /// The error event of OpenAI's API; vLLM 0.32 itself breaks the stream here.
    fn failure(&mut self, out: &mut Events) {
        let before = r#""code":"server_error","message":"Internal server error","param":null"#;
        self.push("error", before, "", out);
    }
}
