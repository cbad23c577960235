//! W3C trace context towards pods: a client's `traceparent` goes on with a span of the gate's own.
use http::HeaderMap;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::base::Rng;

struct Fields<'a>(&'a HeaderMap);

impl Extractor for Fields<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}

struct Parent(Option<String>);

impl Injector for Parent {
    fn set(&mut self, key: &str, value: String) {
        if key == "traceparent" {
            self.0 = Some(value);
        }
    }
}

/// `traceparent` for a call to a pod; `None` if the client sent none that is valid.
pub(super) fn child(fields: &HeaderMap, mut rng: Rng) -> Option<String> {
    fields.get("traceparent")?;
    let propagator = TraceContextPropagator::new();
    let parent = propagator.extract(&Fields(fields));
    let context = parent.span().span_context().clone();
    if !context.is_valid() {
        return None;
    }
    let span = SpanId::from_bytes((rng.bits() | 1).to_be_bytes());
    let own = SpanContext::new(context.trace_id(), span, context.trace_flags(), true, context.trace_state().clone());
    let mut out = Parent(None);
    propagator.inject_context(&parent.with_remote_span_context(own), &mut out);
    out.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_trace_goes_on_with_another_span() {
        let mut fields = HeaderMap::new();
        assert_eq!(child(&fields, Rng::new(1)), None);
        fields.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap());
        let own = child(&fields, Rng::new(1)).unwrap();
        assert!(own.starts_with("00-0af7651916cd43dd8448eb211c80319c-") && own.ends_with("-01"), "{own}");
        assert!(!own.contains("b7ad6b7169203331"));
        fields.insert("traceparent", "00-zz-b7-01".parse().unwrap());
        assert_eq!(child(&fields, Rng::new(1)), None);
    }
}
