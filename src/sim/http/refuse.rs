//! Errors in vLLM 0.32's words and shapes.
use super::json::{or_null, quote};
use super::wire::{Reply, phrase};

/// Shape of error bodies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Shape {
    /// `{"error":{"message","type","param","code"}}`.
    #[default]
    OpenAi,
    /// `{"type":"error","error":{"type","message"}}`.
    Anthropic,
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) status: u16,
    pub(super) kind: &'static str,
    pub(super) message: String,
    pub(super) param: Option<String>,
}

impl Refused {
    /// 400 of the engine's own checks.
    pub(super) fn request(message: String, param: Option<&str>) -> Self {
        Self { status: 400, kind: "BadRequestError", message, param: param.map(str::to_owned) }
    }

    /// 400 of the request model: `kind` and `text` as pydantic names them.
    pub(super) fn field(kind: &str, at: &str, text: &str, input: &str) -> Self {
        let message =
            format!("1 validation error:\n  {{'type': '{kind}', 'loc': '{at}', 'msg': '{text}', 'input': '{input}'}}");
        Self { status: 400, kind: "Bad Request", message, param: Some(at.to_owned()) }
    }

    /// 400 for a body that is not JSON, at this byte.
    pub(super) fn json(offset: usize) -> Self {
        let at = format!("body.{offset}");
        let message = format!(
            "1 validation error:\n  {{'type': 'json_invalid', 'loc': '{at}', 'msg': 'JSON decode error', \
             'input': '<dict of 0 items>', 'ctx': {{'error': 'Expecting value'}}}}"
        );
        Self { status: 400, kind: "Bad Request", message, param: Some(at) }
    }

    /// 400 for another content type.
    pub(super) fn content_type() -> Self {
        let message = "1 validation error:\n  Unsupported Media Type: Only 'application/json' is allowed".to_owned();
        Self { status: 400, kind: "Bad Request", message, param: None }
    }

    /// 404 for a model that is not served.
    pub(super) fn model(asked: &str, served: &[String]) -> Self {
        let message = format!("The model `{asked}` does not exist. Valid aliases: {}.", served.join(", "));
        Self { status: 404, kind: "NotFoundError", message, param: Some("model".to_owned()) }
    }

    /// 400 for a prompt that leaves no room for an answer, or with `asked` output tokens exceeds the model's length.
    pub(super) fn too_long(limit: u64, prompt: u64, asked: Option<u64>) -> Self {
        let head = format!("This model's maximum context length is {limit} tokens. However, ");
        let message = match asked {
            None => format!(
                "{head}your prompt contains {prompt} input tokens, which exceeds this limit even without any output \
                 tokens. Please reduce the length of the input prompt. (parameter=input_tokens, value={prompt})"
            ),
            Some(asked) => format!(
                "{head}you requested {asked} output tokens and your prompt contains {prompt} input tokens, for a total \
                 of {} tokens. Please reduce the length of the input prompt or the number of requested output tokens. \
                 (parameter=input_tokens, value={prompt})",
                prompt + asked
            ),
        };
        Self::request(message, Some("input_tokens"))
    }

    /// 503 of a full queue.
    pub(super) fn busy() -> Self {
        let message = "The engine is currently busy and cannot accept new requests. Please try again later or on a \
                       different instance.";
        Self { status: 503, kind: "Service Unavailable", message: message.to_owned(), param: None }
    }

    /// 500 of a failed engine.
    pub(super) fn internal() -> Self {
        let message = "Internal server error".to_owned();
        Self { status: 500, kind: "InternalServerError", message, param: None }
    }

    /// Any status, for scripted faults.
    pub(super) fn status(status: u16) -> Self {
        match status {
            500 => Self::internal(),
            503 => Self::busy(),
            _ => Self { status, kind: phrase(status), message: format!("{} (scripted)", phrase(status)), param: None },
        }
    }

    /// The error body. Validation errors have the OpenAI shape on every route.
    pub(super) fn body(&self, shape: Shape) -> String {
        let (kind, message) = (quote(self.kind), quote(&self.message));
        if shape == Shape::Anthropic && self.kind != "Bad Request" {
            return format!(r#"{{"type":"error","error":{{"type":{kind},"message":{message}}}}}"#);
        }
        let param = or_null(self.param.as_deref().map(quote));
        let status = self.status;
        format!(r#"{{"error":{{"message":{message},"type":{kind},"param":{param},"code":{status}}}}}"#)
    }

    /// The answer.
    pub(super) fn reply(&self, shape: Shape) -> Reply {
        Reply::with(self.status, Some("application/json"), self.body(shape).into_bytes())
    }
}

/// `{"detail":…}`: what the web framework itself answers.
pub(super) fn detail(status: u16) -> Reply {
    Reply::with(status, Some("application/json"), format!(r#"{{"detail":"{}"}}"#, phrase(status)).into_bytes())
}
