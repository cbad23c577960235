//! Traces: which requests are traced, what is recorded of them, and the `traceparent` of calls to pods (W3C Trace Context).
//!
//! Spans of a request: the request itself; `receive` (head and body), `plan`, `queue`, one of `prefill`, `decode` or `serve` for
//! each call to a pod, and in the call that answers a stream `first_token` and `stream`. Without an exporter nothing is
//! recorded, and what a client sent goes on as it is.
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use super::exchange::{Exchange, Note};
use crate::api::Api;
use crate::base::{Mono, PodId, Rng};
use crate::observe::{Cause, SpanKind, SpanRecord, SpanValue, TraceRecord};
use crate::runtime::{now, unix_us};

/// Most spans of one request; those that come later are left out.
const SPANS_MAX: usize = 64;

struct Fields<'a>(&'a HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

/// What a client says of its trace, if that is valid.
fn told(fields: &HeaderMap) -> Option<SpanContext> {
    fields.get("traceparent")?;
    let context = TraceContextPropagator::new().extract(&Fields(fields)).span().span_context().clone();
    context.is_valid().then_some(context)
}

/// Attributes of a span.
pub(super) type Attributes = Vec<(&'static str, SpanValue)>;

/// A request in its trace.
#[derive(Debug)]
pub(super) struct Trace {
    id: u128,
    /// Span of the client, or 0.
    parent: u64,
    /// Span of the request.
    root: u64,
    is_sampled: bool,
    rng: Rng,
    spans: Vec<SpanRecord>,
    /// The call to a pod that is under way, and its stream: where they are in `spans`.
    leg: Option<usize>,
    stream: Option<usize>,
}

impl Trace {
    fn begin(fields: &HeaderMap, is_trusted: bool, share: f64, mut rng: Rng) -> Self {
        let told = told(fields);
        // Whoever may say so for each request decides what tracing costs.
        let is_sampled = match &told {
            Some(context) if is_trusted => context.is_sampled(),
            _ => rng.unit() < share,
        };
        let mut made = || u128::from(rng.bits()) << 64 | u128::from(rng.bits() | 1);
        let id = told.as_ref().map_or_else(&mut made, |context| u128::from_be_bytes(context.trace_id().to_bytes()));
        let parent = told.map_or(0, |context| u64::from_be_bytes(context.span_id().to_bytes()));
        let root = rng.bits() | 1;
        Self { id, parent, root, is_sampled, rng, spans: Vec::new(), leg: None, stream: None }
    }

    /// Adds a span that is part of `parent`; where it is.
    fn add(&mut self, parent: u64, kind: SpanKind, name: &'static str, began: Mono, ended: Mono) -> Option<usize> {
        if !self.is_sampled || self.spans.len() >= SPANS_MAX {
            return None;
        }
        let (id, attributes) = (self.rng.bits() | 1, Attributes::new());
        self.spans.push(SpanRecord { name: name.into(), kind, id, parent, began, ended, attributes, is_error: false });
        Some(self.spans.len() - 1)
    }

    fn leg_id(&self) -> Option<u64> {
        self.spans.get(self.leg?).map(|span| span.id)
    }

    fn leg_ends(&mut self, error: Option<&'static str>, at: Mono) {
        for place in [self.stream.take(), self.leg.take()].into_iter().flatten() {
            let Some(span) = self.spans.get_mut(place) else { continue };
            span.ended = at;
            if let Some(error) = error {
                span.is_error = true;
                span.attributes.push(("error.type", SpanValue::Word(error)));
            }
        }
    }

    fn traceparent(&self) -> String {
        let span = self.leg_id().unwrap_or(self.root);
        format!("00-{:032x}-{span:016x}-{:02x}", self.id, u8::from(self.is_sampled))
    }
}

impl Exchange {
    /// Decides whether this request is traced.
    pub(super) fn trace_begins(&mut self) {
        if self.gate.spans.is_none() {
            return;
        }
        let rng = Rng::new(self.rng.bits());
        let fields = &self.client.head().headers;
        self.trace = Some(Box::new(Trace::begin(fields, self.is_trusted, self.rules.trace_share, rng)));
    }

    /// A part of the request is over that began at `began`.
    pub(super) fn traced(&mut self, name: &'static str, began: Mono, attribute: Option<(&'static str, &'static str)>) {
        let Some(trace) = &mut self.trace else { return };
        let place = trace.add(trace.root, SpanKind::Internal, name, began, now());
        if let Some((span, (key, word))) = place.and_then(|place| trace.spans.get_mut(place)).zip(attribute) {
            span.attributes.push((key, SpanValue::Word(word)));
        }
    }

    /// A call to a pod begins.
    pub(super) fn leg_begins(&mut self, name: &'static str, pod: PodId) {
        let Some(trace) = &mut self.trace else { return };
        let at = now();
        trace.leg_ends(None, at);
        trace.leg = trace.add(trace.root, SpanKind::Client, name, at, at);
        if let Some(span) = trace.leg.and_then(|leg| trace.spans.get_mut(leg)) {
            span.attributes.push(("tidegate.pod", SpanValue::Text(pod.to_string().into())));
        }
    }

    /// The call to a pod ended, with an error or without.
    pub(super) fn leg_ends(&mut self, error: Option<&'static str>) {
        if let Some(trace) = &mut self.trace {
            trace.leg_ends(error, now());
        }
    }

    /// The first data of a stream came.
    pub(super) fn stream_begins(&mut self, at: Mono) {
        let Some(trace) = &mut self.trace else { return };
        let Some(leg) = trace.leg.and_then(|leg| trace.spans.get(leg)) else { return };
        let (parent, began) = (leg.id, leg.began);
        trace.add(parent, SpanKind::Internal, "first_token", began, at);
        trace.stream = trace.add(parent, SpanKind::Internal, "stream", at, at);
    }

    /// `traceparent` of the call to a pod that is under way; `None` if there is nothing to say.
    pub(super) fn traceparent(&self) -> Option<String> {
        let fields = &self.client.head().headers;
        match &self.trace {
            Some(trace) => Some(trace.traceparent()),
            // The gate has no part in the trace: the client's span is the parent of the pod's.
            None => told(fields).and(fields.get("traceparent")).and_then(|sent| Some(sent.to_str().ok()?.to_owned())),
        }
    }

    /// Id of the trace, if its spans go anywhere.
    pub(super) fn trace_id(&self) -> Option<u128> {
        self.trace.as_ref().filter(|trace| trace.is_sampled).map(|trace| trace.id)
    }

    /// The request is over: what was recorded goes to the exporter.
    pub(super) fn trace_ends(&mut self, at: Mono, cause: Cause) {
        let Some(mut trace) = self.trace.take().filter(|trace| trace.is_sampled) else { return };
        let Some(export) = &self.gate.spans else { return };
        let is_error = cause != Cause::Ok && self.client.status().is_none_or(|code| code >= 500 || self.note.committed);
        trace.leg_ends(is_error.then_some(cause.as_str()), at);
        let operation = self.note.api.map(operation);
        let model = self.note.model.as_deref();
        let mut root = SpanRecord {
            name: format!("{} {}", operation.unwrap_or(self.note.route), model.unwrap_or(""))
                .trim_end()
                .to_owned()
                .into(),
            kind: SpanKind::Server,
            id: trace.root,
            parent: trace.parent,
            began: self.note.started,
            ended: at,
            attributes: attributes(&self.note, cause),
            is_error,
        };
        let mut add = |key, value| root.attributes.push((key, value));
        if let Some(operation) = operation {
            add("gen_ai.operation.name", SpanValue::Word(operation));
            add("gen_ai.provider.name", SpanValue::Word("vllm"));
        }
        let head = self.client.head();
        add("http.request.method", SpanValue::Text(head.method.as_str().into()));
        add("network.protocol.version", SpanValue::Word(if self.client.is_http2() { "2" } else { "1.1" }));
        if let Some(status) = self.client.status() {
            add("http.response.status_code", SpanValue::Count(status.into()));
        }
        for (key, word) in [("tidegate.tenant", self.identity.tenant()), ("tidegate.class", self.identity.class())] {
            if let Some(word) = word {
                add(key, SpanValue::Text(word.into()));
            }
        }
        let anchor = (now(), unix_us());
        let mut spans = Vec::with_capacity(1 + trace.spans.len());
        spans.push(root);
        spans.append(&mut trace.spans);
        export(TraceRecord { id: trace.id, is_continued: trace.parent != 0, anchor, spans });
    }
}

/// `gen_ai.operation.name` (GenAI semantic conventions), or the name of the API where they have none.
fn operation(api: Api) -> &'static str {
    match api {
        Api::Chat | Api::ChatBatch | Api::Responses | Api::Messages => "chat",
        Api::Completions | Api::GenerateTokens => "text_completion",
        Api::Embeddings | Api::EmbedV2 | Api::Pooling => "embeddings",
        other => other.name(),
    }
}

fn attributes(note: &Note, cause: Cause) -> Attributes {
    let mut all = vec![
        ("tidegate.request_id", SpanValue::Text(note.request_id.clone())),
        ("http.route", SpanValue::Word(note.route)),
        ("tidegate.cause", SpanValue::Word(cause.as_str())),
        ("tidegate.attempts", SpanValue::Count(note.attempts.into())),
        ("gen_ai.request.stream", SpanValue::Flag(note.is_stream)),
    ];
    let mut count = |key, value: Option<u64>| all.extend(value.map(|value| (key, SpanValue::Count(value))));
    let usage = note.usage;
    count("gen_ai.usage.input_tokens", usage.map(|usage| usage.prompt_tokens));
    count("gen_ai.usage.output_tokens", usage.map(|usage| usage.completion_tokens));
    count("gen_ai.usage.cache_read.input_tokens", usage.and_then(|usage| usage.cached_tokens));
    count("tidegate.hit_estimate_tokens", note.plan_us.map(|_| note.hit.0));
    count("tidegate.queue_us", (note.queued_us > 0).then_some(note.queued_us));
    let mut text = |key, value: Option<String>| all.extend(value.map(|value| (key, SpanValue::Text(value.into()))));
    text("gen_ai.request.model", note.model.as_deref().map(str::to_owned));
    text("tidegate.pod", note.pod.map(|pod| pod.to_string()));
    text("tidegate.prefill_pod", note.prefill_pod.map(|pod| pod.to_string()));
    let words = [("tidegate.mode", note.mode), ("tidegate.reason", note.reason)];
    all.extend(words.into_iter().filter_map(|(key, word)| Some((key, SpanValue::Word(word?)))));
    if !matches!(cause, Cause::Ok | Cause::Local) {
        all.push(("error.type", SpanValue::Word(cause.as_str())));
    }
    all
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn with(value: &str) -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert("traceparent", value.parse().unwrap());
        fields
    }

    #[test]
    fn a_trace_goes_on_or_begins() {
        let goes_on = Trace::begin(&with(SENT), false, 1.0, Rng::new(1));
        assert_eq!((goes_on.id, goes_on.parent), (0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c, 0xb7ad_6b71_6920_3331));
        let own = goes_on.traceparent();
        assert!(own.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && own.ends_with("-01"), "{own}");
        assert!(!own.contains("b7ad6b7169203331"));
        for other in [HeaderMap::new(), with("00-zz-b7-01")] {
            let begins = Trace::begin(&other, false, 1.0, Rng::new(2));
            assert!(begins.id != 0 && begins.parent == 0 && begins.is_sampled);
        }
    }

    #[test]
    fn only_trusted_callers_say_what_is_traced() {
        let unsampled = SENT.replace("-01", "-00");
        for (sent, is_trusted, share, is_sampled) in [
            (SENT, true, 0.0, true),
            (SENT, false, 0.0, false),
            (unsampled.as_str(), true, 1.0, false),
            (unsampled.as_str(), false, 1.0, true),
        ] {
            let trace = Trace::begin(&with(sent), is_trusted, share, Rng::new(3));
            assert_eq!(trace.is_sampled, is_sampled, "{sent} {is_trusted} {share}");
            assert!(trace.traceparent().ends_with(if is_sampled { "-01" } else { "-00" }));
        }
        let sampled =
            (0..10_000).filter(|&seed| Trace::begin(&HeaderMap::new(), false, 0.1, Rng::new(seed)).is_sampled);
        assert!((800..1_200).contains(&sampled.count()));
    }

    #[test]
    fn spans_have_a_limit_and_calls_end_once() {
        let mut trace = Trace::begin(&HeaderMap::new(), false, 1.0, Rng::new(4));
        let (from, to) = (Mono(5), Mono(9));
        trace.leg = trace.add(trace.root, SpanKind::Client, "serve", from, from);
        assert!(trace.leg_id().is_some_and(|id| trace.traceparent().contains(&format!("{id:016x}"))));
        trace.leg_ends(Some("pod_error"), to);
        trace.leg_ends(None, Mono(11));
        assert_eq!((trace.spans[0].ended, trace.spans[0].is_error), (to, true));
        (0..2 * SPANS_MAX).for_each(|_| _ = trace.add(trace.root, SpanKind::Internal, "plan", from, to));
        assert_eq!(trace.spans.len(), SPANS_MAX);
        trace.is_sampled = false;
        trace.spans.clear();
        assert_eq!(trace.add(1, SpanKind::Internal, "plan", from, to), None);
    }
}
