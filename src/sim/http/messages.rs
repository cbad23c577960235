//! `/v1/messages` and `/v1/messages/count_tokens`: Anthropic's API as vLLM 0.32 speaks it.
use super::ask::Ask;
use super::dialect::{Dialect, Events, named};
use super::json::quote;
use crate::sim::engine::content;

fn stop_reason(ask: &Ask) -> &'static str {
    if ask.output_max.is_some() { "max_tokens" } else { "end_turn" }
}

/// `input_tokens` are without those read from the cache; a pod that does not report these leaves the cache fields out.
fn usage(ask: &Ask, cached: Option<u64>) -> String {
    let (input, output) = (ask.prompt_tokens().saturating_sub(cached.unwrap_or(0)), ask.output_tokens());
    let cache = cached
        .map(|cached| format!(r#","cache_creation_input_tokens":0,"cache_read_input_tokens":{cached}"#))
        .unwrap_or_default();
    format!(r#"{{"input_tokens":{input},"output_tokens":{output}{cache}}}"#)
}

/// A whole answer. `cached` is `None` when the pod does not report it.
pub(super) fn whole(ask: &Ask, id: &str, cached: Option<u64>) -> String {
    let text = ask.wanted.first().map(|wanted| content::text(wanted.seed, 0, wanted.tokens)).unwrap_or_default();
    format!(
        r#"{{"id":"chatcmpl-{id}","type":"message","role":"assistant","content":[{{"type":"text","text":{}}}],"model":{},"stop_reason":"{}","usage":{}}}"#,
        quote(&text),
        quote(&ask.model),
        stop_reason(ask),
        usage(ask, cached),
    )
}

/// A stream of message events.
pub(super) struct MessageStream<'a> {
    ask: &'a Ask,
    id: &'a str,
    has_details: bool,
    cached: Option<u64>,
}

impl<'a> MessageStream<'a> {
    /// A stream with this id; `has_details` reports cached tokens.
    pub(super) fn new(ask: &'a Ask, id: &'a str, has_details: bool) -> Self {
        Self { ask, id, has_details, cached: None }
    }
}

fn delta(text: &str) -> Vec<u8> {
    let json =
        format!(r#"{{"type":"content_block_delta","delta":{{"type":"text_delta","text":{}}},"index":0}}"#, quote(text));
    named("content_block_delta", &json)
}

impl Dialect for MessageStream<'_> {
    fn opening(&mut self, cached: u64, out: &mut Events) {
        self.cached = self.has_details.then_some(cached);
        let start = format!(
            r#"{{"type":"message_start","message":{{"id":"chatcmpl-{}","type":"message","role":"assistant","content":[],"model":{},"stop_reason":null,"stop_sequence":null,"usage":{{"input_tokens":{},"output_tokens":0}}}}}}"#,
            self.id,
            quote(&self.ask.model),
            self.ask.prompt_tokens(),
        );
        out.push(named("message_start", &start));
        let block = r#"{"type":"content_block_start","content_block":{"type":"text","text":""},"index":0}"#;
        out.push(named("content_block_start", block));
    }

    fn token(&mut self, place: usize, index: u64, _is_last: bool, out: &mut Events) {
        if let Some(wanted) = self.ask.wanted.get(place) {
            out.push(delta(&content::text(wanted.seed, index, index + 1)));
        }
    }

    fn filler(&mut self, text: &str, out: &mut Events) {
        out.push(delta(text));
    }

    fn closing(&mut self, out: &mut Events) {
        out.push(named("content_block_stop", r#"{"type":"content_block_stop","index":0}"#));
        let end = format!(
            r#"{{"type":"message_delta","delta":{{"stop_reason":"{}","stop_sequence":null}},"usage":{}}}"#,
            stop_reason(self.ask),
            usage(self.ask, self.cached),
        );
        out.push(named("message_delta", &end));
    }

    fn ending(&mut self, out: &mut Events) {
        out.push(named("message_stop", r#"{"type":"message_stop"}"#));
    }

    /// vLLM's converter sends this for any failure of the chat stream below it, and no `message_stop`.
    fn failure(&mut self, out: &mut Events) {
        let error = r#"{"type":"error","error":{"type":"internal_error","message":"Internal server error"}}"#;
        out.push(named("error", error));
    }
}
