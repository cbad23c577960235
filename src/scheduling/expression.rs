//! Expressions of an operator's own (CEL, the Common Expression Language) over values of a pod and a request.
//!
//! Compiled when the configuration is read: an unknown name, or an operation that its types do not have, is found there and
//! not on the first request. **All numbers are doubles**: write `2.0`, not `2`; CEL does not mix kinds. A value that is not
//! known makes an expression that needs it unknown. Slower than a plug-in of the program (about half a microsecond per pod),
//! and it allocates.
use std::sync::{Arc, LazyLock};

use cel::common::value::CowVal;
use cel::context::VariableResolver;
use cel::{Context as CelContext, Env, Program, Value};

use super::plugin::drawn;
use super::request::{Context, Request};
use super::view::{PodView, Serves, Warm};
use crate::base::{PodId, Tokens};
use crate::pods::{Role, Standing};

/// Longest expression \[bytes\].
const BYTES_MAX: usize = 4_096;

static ENV: LazyLock<Arc<Env>> = LazyLock::new(|| Arc::new(Env::stdlib()));

/// Names an expression may use, with what they mean. Numbers are doubles.
pub const NAMES: &[(&str, &str)] = &[
    ("requests", "our requests in flight on the pod"),
    ("prefilling", "of these, in prefill"),
    ("decoding", "of these, past their prefill"),
    ("foreign_requests", "requests of others there, as much as the last reading is worth; 0 if unknown"),
    ("queued_tokens", "our uncached prompt tokens waiting there [tokens]"),
    ("wait_s", "predicted time until those are done [seconds]"),
    ("context_tokens", "context of our requests there, added up [tokens]"),
    ("pinned_tokens", "KV that our requests occupy there, shared prefixes once [tokens]"),
    ("hit_tokens", "tokens of the prompt believed to be cached there [tokens]"),
    ("uncached_tokens", "the rest of the prompt [tokens]"),
    ("prefill_s", "predicted time of the request's own prefill there [seconds]"),
    ("capacity_tokens", "KV capacity [tokens]; unknown before it was read"),
    ("running", "requests running by the last scrape; unknown without one"),
    ("waiting", "requests waiting by the last scrape; unknown without one"),
    ("kv_used", "share of the KV cache in use by the last scrape, 0 to 1; unknown without one"),
    ("reading_age_s", "age of the last scrape [seconds]; unknown without one"),
    ("idle_s", "time since we last sent anything there [seconds]; unknown if we never did"),
    ("is_ready", "whether the pod is in good standing"),
    ("is_adapter_loaded", "false if the request needs an adapter that we did not use there lately"),
    ("serves_model", "whether the pod is known to serve the model"),
    ("role", "\"both\", \"prefill\" or \"decode\""),
    ("chance", "a number from 0 to 1 drawn for this session (or prompt) and this pod, always the same"),
    ("prompt_tokens", "length of the prompt, an estimate [tokens]"),
    ("max_tokens", "the client's bound on the answer [tokens]; unknown if it set none"),
    ("model", "model or adapter asked for"),
    ("is_stream", "whether the answer is streamed"),
    ("generates", "whether the API generates tokens"),
];

/// A compiled expression.
#[derive(Debug)]
pub struct Expression(Program);

/// What is wrong with an expression; the text says what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadExpression(String);

/// What an expression must give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A cost.
    Number,
    /// A verdict.
    Bool,
}

impl Expression {
    /// Compiles `text`, or says what is wrong with it.
    pub fn compile(text: &str, kind: Kind) -> Result<Self, BadExpression> {
        if text.trim().is_empty() || text.len() > BYTES_MAX {
            return Err(BadExpression(format!("write a CEL expression of 1 to {BYTES_MAX} bytes")));
        }
        let program = ENV.compile(text).map_err(|errors| BadExpression(format!("not CEL: {errors}")))?;
        let references = program.references();
        let mut unknown: Vec<&str> = references.variables();
        unknown.retain(|name| !NAMES.iter().any(|(known, _)| known == name));
        unknown.sort_unstable();
        if let Some(name) = unknown.first() {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            return Err(BadExpression(format!("there is no value `{name}`; possible are {}", names.join(", "))));
        }
        let expression = Self(program);
        expression.try_out(kind)?;
        Ok(expression)
    }

    /// The number it gives for a pod; `None` if it needs something unknown, or gives something else.
    pub fn number(&self, cx: &Context<'_>, pod: &PodView) -> Option<f64> {
        match self.run(cx.request, pod, cx).ok()? {
            Value::Float(number) => Some(number),
            Value::Int(number) => Some(number as f64),
            Value::UInt(number) => Some(number as f64),
            _ => None,
        }
        .filter(|number| number.is_finite())
    }

    /// The truth it gives for a pod; `None` if it needs something unknown, or gives something else.
    pub fn truth(&self, cx: &Context<'_>, pod: &PodView) -> Option<bool> {
        match self.run(cx.request, pod, cx).ok()? {
            Value::Bool(truth) => Some(truth),
            _ => None,
        }
    }

    fn run(&self, request: &Request<'_>, pod: &PodView, cx: &Context<'_>) -> Result<Value, cel::ExecutionError> {
        let values = Values { request, pod, cx };
        let mut context = CelContext::with_env(Arc::clone(&ENV));
        context.set_variable_resolver(&values);
        self.0.execute(&context)
    }

    /// Runs it on a pod of which everything is known: what fails there would never work.
    fn try_out(&self, kind: Kind) -> Result<(), BadExpression> {
        let request = Request { max_tokens: Some(Tokens(100)), ..Request::new("m", Tokens(1_000)) };
        let pods = [sample()];
        let cx = Context::new(crate::base::Mono(9_000_000), &request, &pods);
        let [pod] = &pods;
        let value = self.run(&request, pod, &cx).map_err(|error| {
            BadExpression(format!("{error}; all numbers are doubles, so write 2.0 for 2, and compare like with like"))
        })?;
        match (kind, value) {
            (Kind::Number, Value::Float(_) | Value::Int(_) | Value::UInt(_)) | (Kind::Bool, Value::Bool(_)) => Ok(()),
            (Kind::Number, _) => Err(BadExpression("gives no number; a cost is one, lower is better".into())),
            (Kind::Bool, _) => Err(BadExpression("gives neither true nor false; write a comparison".into())),
        }
    }
}

struct Values<'a> {
    request: &'a Request<'a>,
    pod: &'a PodView,
    cx: &'a Context<'a>,
}

impl VariableResolver for Values<'_> {
    fn resolve<'b>(&'b self, name: &str) -> Option<CowVal<'b, 'b>> {
        let value = self.number(name).map(Value::Float).or_else(|| self.other(name))?;
        value.try_into().ok().map(CowVal::Owned)
    }
}

impl Values<'_> {
    fn number(&self, name: &str) -> Option<f64> {
        let (pod, request) = (self.pod, self.request);
        let reading = || pod.reading.as_ref();
        Some(match name {
            "requests" => pod.load.requests.into(),
            "prefilling" => pod.load.prefilling.into(),
            "decoding" => pod.load.decoding().into(),
            "foreign_requests" => pod.foreign,
            "queued_tokens" => pod.load.prefill_tokens.0 as f64,
            "wait_s" => pod.load.wait_s,
            "context_tokens" => pod.load.context_tokens.0 as f64,
            "pinned_tokens" => pod.load.pinned_tokens.0 as f64,
            "hit_tokens" => pod.hit.0 as f64,
            "uncached_tokens" => pod.uncached(request.prompt_tokens).0 as f64,
            "prefill_s" => pod.step.prefill(pod.uncached(request.prompt_tokens).0, pod.hit.0),
            "capacity_tokens" => pod.capacity?.0 as f64,
            "running" => reading()?.running?.into(),
            "waiting" => reading()?.waiting?.into(),
            "kv_used" => reading()?.kv_used.filter(|used| used.is_finite())?,
            "reading_age_s" => pod.age?.as_secs_f64(),
            "idle_s" => self.cx.now.since(pod.last_dispatch?).as_secs_f64(),
            "chance" => {
                let key = request.session.or(request.head).unwrap_or(0);
                (drawn(key, pod.id) >> 11) as f64 / (1_u64 << 53) as f64
            }
            "prompt_tokens" => request.prompt_tokens.0 as f64,
            "max_tokens" => request.max_tokens?.0 as f64,
            _ => return None,
        })
    }

    fn other(&self, name: &str) -> Option<Value> {
        let role = match self.pod.role {
            Role::Both => "both",
            Role::Prefill => "prefill",
            Role::Decode => "decode",
        };
        Some(match name {
            "is_ready" => Value::Bool(self.pod.standing == Standing::Ready),
            "is_adapter_loaded" => Value::Bool(self.pod.adapter != Warm::No),
            "serves_model" => Value::Bool(self.pod.serves == Serves::Yes),
            "is_stream" => Value::Bool(self.request.is_stream),
            "generates" => Value::Bool(self.request.generates),
            "role" => Value::String(Arc::new(role.to_owned())),
            "model" => Value::String(Arc::new(self.request.model.to_owned())),
            _ => return None,
        })
    }
}

/// A pod of which everything is known.
fn sample() -> PodView {
    let pod = crate::pods::Pod::new(
        PodId(0),
        crate::pods::PodSpec {
            addr: ([127, 0, 0, 1], 1).into(),
            authority: "".into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: std::collections::BTreeMap::new(),
        },
    );
    let now = crate::base::Mono(9_000_000);
    let reading = crate::pods::Reading {
        taken: now,
        running: Some(1),
        waiting: Some(1),
        kv_used: Some(0.5),
        ..crate::pods::Reading::default()
    };
    pod.read(reading);
    let view = PodView::of(&pod, &Request::new("m", Tokens(1_000)), &super::view::Belief::default(), now);
    PodView { capacity: Some(Tokens(100_000)), last_dispatch: Some(crate::base::Mono(1)), ..view }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::scheduling::testing::{context, loaded};

    #[test]
    fn every_documented_name_works() {
        for (name, meaning) in NAMES {
            assert!(meaning.len() > 8, "{name}");
            let text = format!("{name} == {name}");
            assert!(
                Expression::compile(&text, Kind::Bool).is_ok(),
                "{text}: {:?}",
                Expression::compile(&text, Kind::Bool)
            );
        }
    }

    #[test]
    fn mistakes_are_found_when_it_is_read() {
        let check = |text: &str, kind, words: &str| {
            let error = Expression::compile(text, kind).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        };
        check("requests +", Kind::Number, "not CEL");
        check("request + 1.0", Kind::Number, "no value `request`; possible are requests, ");
        check("requests + 1", Kind::Number, "write 2.0 for 2");
        check("requests", Kind::Bool, "neither true nor false");
        check("is_stream", Kind::Number, "no number");
        check("", Kind::Number, "write a CEL expression");
    }

    #[test]
    fn what_is_unknown_makes_it_unknown() {
        let request = Request::new("m", Tokens(100));
        let pods = [loaded(0, 7, 2, 30)];
        let cx = context(&request, &pods);
        let number = |text: &str| Expression::compile(text, Kind::Number).unwrap().number(&cx, &pods[0]);
        assert_eq!(number("requests * 2.0 + queued_tokens / 10.0"), Some(17.0));
        assert_eq!(number("is_stream ? 1.0 : 2.0"), Some(1.0));
        assert_eq!((number("kv_used + requests"), number("1.0 / (prefilling - 2.0)")), (None, None));
    }
}
