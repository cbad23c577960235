//! `/v1/completions` (text, ids, batches) and `/inference/v1/generate` (tokens in, tokens out).
use super::ask::{Ask, Wanted};
use super::chat::{FINGERPRINT, usage, usage_so_far};
use super::dialect::{Dialect, Events, data};
use super::json::{list, numbers, or_null, quote};
use super::refuse::{Refused, Shape};
use crate::sim::engine::content;

fn ids(wanted: &Wanted, from: u64, to: u64) -> String {
    numbers((from..to).map(|at| content::token(wanted.seed, at)))
}

fn prompt_ids(ask: &Ask, wanted: &Wanted) -> Option<String> {
    ask.prompts.get(wanted.prompt).filter(|_| ask.are_ids_returned).map(numbers)
}

fn logprobs(wanted: &Wanted, from: u64, to: u64, top: u64) -> String {
    let tokens: Vec<String> = (from..to).map(|at| quote(&content::text(wanted.seed, at, at + 1))).collect();
    let tops = tokens.iter().map(|token| if top == 0 { "null".to_owned() } else { format!("{{{token}:-0.5}}") });
    let offsets = numbers((from..to).map(|at| at * 4));
    format!(
        r#"{{"text_offset":{offsets},"token_logprobs":{},"tokens":{},"top_logprobs":{}}}"#,
        list(tokens.iter().map(|_| "-0.5".to_owned())),
        list(tokens.iter().cloned()),
        list(tops),
    )
}

/// A whole answer.
pub(super) fn whole(ask: &Ask, id: &str, created: u64, cached: Option<u64>) -> String {
    let choice = |(index, wanted): (usize, &Wanted)| {
        let token_ids = ask.are_ids_returned.then(|| ids(wanted, 0, wanted.tokens));
        format!(
            r#"{{"index":{index},"text":{},"logprobs":{},"finish_reason":"{}","stop_reason":null,"token_ids":{},"prompt_logprobs":null,"prompt_token_ids":{},"routed_experts":null}}"#,
            quote(&content::text(wanted.seed, 0, wanted.tokens)),
            or_null(ask.logprobs.map(|top| logprobs(wanted, 0, wanted.tokens, top))),
            wanted.finish(),
            or_null(token_ids),
            or_null(prompt_ids(ask, wanted)),
        )
    };
    format!(
        r#"{{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":{},"choices":{},"service_tier":null,"system_fingerprint":"{FINGERPRINT}","usage":{},"kv_transfer_params":null,"ec_transfer_params":null,"metrics":null}}"#,
        quote(&ask.model),
        list(ask.wanted.iter().enumerate().map(choice)),
        usage(ask, cached, "null"),
    )
}

/// A stream of text completion chunks.
pub(super) struct CompletionStream<'a> {
    ask: &'a Ask,
    start: String,
    cached: Option<u64>,
    has_details: bool,
    produced: u64,
}

impl<'a> CompletionStream<'a> {
    /// A stream with this id; `has_details` reports cached tokens.
    pub(super) fn new(ask: &'a Ask, id: &str, created: u64, has_details: bool) -> Self {
        let model = quote(&ask.model);
        let start = format!(r#"{{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":{model},"#);
        Self { ask, start, cached: None, has_details, produced: 0 }
    }
}

impl Dialect for CompletionStream<'_> {
    fn opening(&mut self, cached: u64, _out: &mut Events) {
        self.cached = self.has_details.then_some(cached);
    }

    fn token(&mut self, place: usize, index: u64, is_last: bool, out: &mut Events) {
        let Some(wanted) = self.ask.wanted.get(place) else { return };
        self.produced += 1;
        let finish = if is_last { quote(wanted.finish()) } else { "null".to_owned() };
        let usage = if self.ask.is_usage_continuous {
            format!(r#","usage":{}"#, usage_so_far(self.ask.prompt_tokens(), self.produced, ""))
        } else {
            String::new()
        };
        let is_signed = is_last && !self.ask.is_usage_included;
        let signature = if is_signed { format!(r#","system_fingerprint":"{FINGERPRINT}""#) } else { String::new() };
        let prompt = prompt_ids(self.ask, wanted).filter(|_| index == 0);
        let token_ids = self.ask.are_ids_returned.then(|| ids(wanted, index, index + 1));
        out.push(data(&format!(
            r#"{}"choices":[{{"index":{place},"text":{},"logprobs":{},"finish_reason":{finish},"stop_reason":null,"prompt_token_ids":{},"token_ids":{}}}]{usage}{signature}}}"#,
            self.start,
            quote(&content::text(wanted.seed, index, index + 1)),
            or_null(self.ask.logprobs.map(|top| logprobs(wanted, index, index + 1, top))),
            or_null(prompt),
            or_null(token_ids),
        )));
    }

    fn filler(&mut self, text: &str, out: &mut Events) {
        out.push(data(&format!(
            r#"{}"choices":[{{"index":0,"text":{},"logprobs":null,"finish_reason":null,"stop_reason":null,"prompt_token_ids":null,"token_ids":null}}]}}"#,
            self.start,
            quote(text)
        )));
    }

    fn closing(&mut self, out: &mut Events) {
        if self.ask.is_usage_included {
            let details = self.cached.map(|cached| format!(r#","prompt_tokens_details":{{"cached_tokens":{cached}}}"#));
            let usage = usage_so_far(self.ask.prompt_tokens(), self.produced, &details.unwrap_or_default());
            out.push(data(&format!(
                r#"{}"choices":[],"usage":{usage},"system_fingerprint":"{FINGERPRINT}"}}"#,
                self.start
            )));
        }
    }

    fn ending(&mut self, out: &mut Events) {
        out.push(data("[DONE]"));
    }

    fn failure(&mut self, out: &mut Events) {
        out.push(data(&Refused::internal().body(Shape::OpenAi)));
        out.push(data("[DONE]"));
    }
}

fn generate_choice(index: usize, wanted: &Wanted, from: u64, to: u64) -> String {
    let is_last = to == wanted.tokens;
    let finish = if is_last { quote(wanted.finish()) } else { "null".to_owned() };
    let versions =
        if is_last { format!(r#"[{{"version":"default","start":0,"end":{to}}}]"#) } else { "null".to_owned() };
    format!(
        r#"{{"index":{index},"finish_reason":{finish},"stop_reason":null,"token_ids":{},"routed_experts":null,"sampling_mask":null,"weight_versions":{versions},"logprobs":null}}"#,
        ids(wanted, from, to),
    )
}

/// A whole answer of `/inference/v1/generate`.
pub(super) fn generated(ask: &Ask, id: &str, created: u64, cached: Option<u64>) -> String {
    let choices = ask.wanted.iter().enumerate().map(|(at, wanted)| generate_choice(at, wanted, 0, wanted.tokens));
    format!(
        r#"{{"request_id":"generate-tokens-{id}","model":{},"created":{created},"usage":{},"prompt_logprobs":null,"prompt_token_id_logprobs":null,"prompt_token_ids":{},"mm_placeholders":null,"metrics":null,"kv_transfer_params":null,"ec_transfer_params":null,"output_mode":"tokens","choices":{}}}"#,
        quote(&ask.model),
        usage(ask, cached, "null"),
        or_null(ask.are_ids_returned.then(|| numbers(ask.prompts.iter().flatten()))),
        list(choices),
    )
}

/// A stream of `/inference/v1/generate`.
pub(super) struct GenerateStream<'a> {
    ask: &'a Ask,
    start: String,
}

impl<'a> GenerateStream<'a> {
    /// A stream with this id.
    pub(super) fn new(ask: &'a Ask, id: &str) -> Self {
        let start = format!(r#"{{"request_id":"generate-tokens-{id}","usage":null,"output_mode":"tokens","#);
        Self { ask, start }
    }
}

impl Dialect for GenerateStream<'_> {
    fn opening(&mut self, _cached: u64, _out: &mut Events) {}

    fn token(&mut self, place: usize, index: u64, _is_last: bool, out: &mut Events) {
        let Some(wanted) = self.ask.wanted.get(place) else { return };
        let choice = generate_choice(place, wanted, index, index + 1);
        out.push(data(&format!(r#"{}"choices":[{choice}]}}"#, self.start)));
    }

    fn filler(&mut self, text: &str, out: &mut Events) {
        out.push(data(&format!(r#"{}"choices":[],"filler":{}}}"#, self.start, quote(text))));
    }

    fn closing(&mut self, _out: &mut Events) {}

    fn ending(&mut self, out: &mut Events) {
        out.push(data("[DONE]"));
    }

    fn failure(&mut self, out: &mut Events) {
        out.push(data(&Refused::internal().body(Shape::OpenAi)));
        out.push(data("[DONE]"));
    }
}
