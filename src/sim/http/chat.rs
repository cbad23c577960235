//! `/v1/chat/completions`: whole answers and streams, in vLLM 0.32's key order.
use super::ask::{Ask, Wanted};
use super::dialect::{Dialect, Events, data};
use super::json::{list, numbers, or_null, quote};
use super::refuse::{Refused, Shape};
use crate::sim::engine::content;

/// `system_fingerprint` of every answer.
pub(super) const FINGERPRINT: &str = "vllm-0.32.0-51000000";

/// `usage` of a whole answer. `created` is what the API puts under `created_cache_tokens`.
pub(super) fn usage(ask: &Ask, cached: Option<u64>, created: &str) -> String {
    let (prompt, output) = (ask.prompt_tokens(), ask.output_tokens());
    let details = or_null(cached.map(|cached| {
        format!(r#"{{"cached_tokens":{cached},"created_cache_tokens":{created},"multimodal_tokens":null}}"#)
    }));
    format!(
        r#"{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{output},"prompt_tokens_details":{details},"completion_tokens_details":null}}"#,
        prompt + output
    )
}

/// `usage` inside a stream: counts so far and whatever `more` adds.
pub(super) fn usage_so_far(prompt: u64, output: u64, more: &str) -> String {
    format!(r#"{{"prompt_tokens":{prompt},"total_tokens":{},"completion_tokens":{output}{more}}}"#, prompt + output)
}

/// Arguments of a forced function call: the answer's text in one string member.
const ARGUMENTS: (&str, &str) = (r#"{"text":""#, r#""}"#);

/// A whole answer.
pub(super) fn whole(ask: &Ask, id: &str, created: u64, cached: Option<u64>) -> String {
    let choices = list(ask.wanted.iter().enumerate().map(|(index, wanted)| choice(ask, index, wanted, id)));
    let prompt_ids = ask.are_ids_returned.then(|| numbers(ask.prompts.iter().flatten()));
    format!(
        r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":{created},"model":{},"choices":{choices},"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{},"prompt_logprobs":null,"prompt_token_ids":{},"prompt_text":null,"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        quote(&ask.model),
        usage(ask, cached, "0"),
        or_null(prompt_ids),
    )
}

fn choice(ask: &Ask, index: usize, wanted: &Wanted, id: &str) -> String {
    let text = content::text(wanted.seed, 0, wanted.tokens);
    let (content, calls, finish) = match &ask.tool {
        None => (quote(&text), String::new(), wanted.finish()),
        Some(name) => {
            let arguments = quote(&format!("{}{text}{}", ARGUMENTS.0, ARGUMENTS.1));
            let call = format!(
                r#""tool_calls":[{{"id":"chatcmpl-tool-{id}{index}","type":"function","function":{{"name":{},"arguments":{arguments}}}}}],"#,
                quote(name)
            );
            ("null".to_owned(), call, "tool_calls")
        }
    };
    let logprobs = or_null(ask.logprobs.map(|top| logprobs(wanted, 0, wanted.tokens, top)));
    let ids = ask.are_ids_returned.then(|| numbers((0..wanted.tokens).map(|at| content::token(wanted.seed, at))));
    format!(
        r#"{{"index":{index},"message":{{"role":"assistant","content":{content},"refusal":null,"annotations":null,"audio":null,"function_call":null,{calls}"reasoning":null}},"logprobs":{logprobs},"finish_reason":"{finish}","stop_reason":null,"token_ids":{},"routed_experts":null}}"#,
        or_null(ids),
    )
}

/// `logprobs` of tokens `from..to`: every token has the same made-up value.
fn logprobs(wanted: &Wanted, from: u64, to: u64, top: u64) -> String {
    let entries = (from..to).map(|at| {
        let piece = content::piece(wanted.seed, at);
        let token = quote(&String::from_utf8_lossy(&piece));
        let entry = format!(r#""token":{token},"logprob":-0.5,"bytes":{}"#, numbers(piece));
        let tops = list((0..top.min(20)).map(|_| format!("{{{entry}}}")));
        format!(r#"{{{entry},"top_logprobs":{tops}}}"#)
    });
    format!(r#"{{"content":{}}}"#, list(entries))
}

/// A stream of chat chunks.
pub(super) struct ChatStream<'a> {
    ask: &'a Ask,
    id: &'a str,
    start: String,
    cached: Option<u64>,
    has_details: bool,
    produced: u64,
}

impl<'a> ChatStream<'a> {
    /// A stream with this id; `has_details` reports cached tokens.
    pub(super) fn new(ask: &'a Ask, id: &'a str, created: u64, has_details: bool) -> Self {
        let model = quote(&ask.model);
        let start =
            format!(r#"{{"id":"chatcmpl-{id}","object":"chat.completion.chunk","created":{created},"model":{model},"#);
        Self { ask, id, start, cached: None, has_details, produced: 0 }
    }

    fn continuous(&self) -> String {
        if !self.ask.is_usage_continuous {
            return String::new();
        }
        let usage = usage_so_far(self.ask.prompt_tokens(), self.produced, r#","completion_tokens_details":null"#);
        format!(r#","usage":{usage}"#)
    }

    fn delta(&self, place: usize, index: u64, is_last: bool, text: &str) -> String {
        let Some(name) = &self.ask.tool else { return format!(r#"{{"content":{}}}"#, quote(text)) };
        let opening = if index == 0 { ARGUMENTS.0 } else { "" };
        let closing = if is_last { ARGUMENTS.1 } else { "" };
        let arguments = quote(&format!("{opening}{text}{closing}"));
        if index > 0 {
            return format!(r#"{{"tool_calls":[{{"index":0,"function":{{"arguments":{arguments}}}}}]}}"#);
        }
        format!(
            r#"{{"tool_calls":[{{"id":"chatcmpl-tool-{}{place}","type":"function","index":0,"function":{{"name":{},"arguments":{arguments}}}}}]}}"#,
            self.id,
            quote(name)
        )
    }
}

impl Dialect for ChatStream<'_> {
    fn opening(&mut self, cached: u64, out: &mut Events) {
        self.cached = self.has_details.then_some(cached);
        for place in 0..self.ask.wanted.len() {
            let ids = self.ask.are_ids_returned.then(|| numbers(self.ask.prompts.iter().flatten()));
            out.push(data(&format!(
                r#"{}"choices":[{{"index":{place},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}]{},"prompt_token_ids":{},"prompt_text":null}}"#,
                self.start,
                self.continuous(),
                or_null(ids),
            )));
        }
    }

    fn token(&mut self, place: usize, index: u64, is_last: bool, out: &mut Events) {
        let Some(wanted) = self.ask.wanted.get(place) else { return };
        self.produced += 1;
        let finish = match (is_last, &self.ask.tool) {
            (false, _) => r#""finish_reason":null"#.to_owned(),
            (true, None) => format!(r#""finish_reason":"{}","stop_reason":null"#, wanted.finish()),
            (true, Some(_)) => r#""finish_reason":"tool_calls","stop_reason":null"#.to_owned(),
        };
        let ids = self.ask.are_ids_returned.then(|| numbers([content::token(wanted.seed, index)]));
        let delta = self.delta(place, index, is_last, &content::text(wanted.seed, index, index + 1));
        let logprobs = or_null(self.ask.logprobs.map(|top| logprobs(wanted, index, index + 1, top)));
        let is_signed = is_last && !self.ask.is_usage_included;
        let signature = if is_signed { format!(r#","system_fingerprint":"{FINGERPRINT}""#) } else { String::new() };
        out.push(data(&format!(
            r#"{}"choices":[{{"index":{place},"delta":{delta},"logprobs":{logprobs},{finish},"token_ids":{}}}]{}{signature}}}"#,
            self.start,
            or_null(ids),
            self.continuous(),
        )));
    }

    fn filler(&mut self, text: &str, out: &mut Events) {
        out.push(data(&format!(
            r#"{}"choices":[{{"index":0,"delta":{{"content":{}}},"logprobs":null,"finish_reason":null,"token_ids":null}}]}}"#,
            self.start,
            quote(text)
        )));
    }

    fn closing(&mut self, out: &mut Events) {
        if !self.ask.is_usage_included {
            return;
        }
        let details = self
            .cached
            .map(|cached| format!(r#","prompt_tokens_details":{{"cached_tokens":{cached},"created_cache_tokens":0}}"#));
        let usage = usage_so_far(self.ask.prompt_tokens(), self.produced, &details.unwrap_or_default());
        out.push(data(&format!(
            r#"{}"choices":[],"usage":{usage},"system_fingerprint":"{FINGERPRINT}"}}"#,
            self.start
        )));
    }

    fn ending(&mut self, out: &mut Events) {
        out.push(data("[DONE]"));
    }

    fn failure(&mut self, out: &mut Events) {
        out.push(data(&Refused::internal().body(Shape::OpenAi)));
        out.push(data("[DONE]"));
    }
}
