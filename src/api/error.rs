//! Builds what a client gets when something failed: an error body, or one error event inside a stream, in the shape of the
//! API it called. Shapes: vLLM 0.32 (`{"error":{"message","type","param","code"}}`, code = status) and Anthropic's.
//! Texts come from the caller and must never hold a prompt, a key or a body.
use bytes::Bytes;
use serde::Serialize;
use serde_json::json;

use super::kind::{Api, DoneMark, Shape};

/// What is said about one failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ErrorText<'a> {
    /// For a person: what is wrong and what to do.
    pub message: &'a str,
    /// OpenAI `type`, such as `BadRequestError`; Anthropic's is derived from `code`.
    pub kind: &'a str,
    /// The member at fault, if it is one.
    pub param: Option<&'a str>,
    /// HTTP status, also inside a stream whose real status was 200.
    pub code: u16,
    /// Word in place of the status as OpenAI's `code`, where clients look for one.
    pub name: Option<&'a str>,
}

/// `error` of the OpenAI shape; members in vLLM's order.
#[derive(Serialize)]
struct OpenAiError<'a> {
    message: &'a str,
    r#type: &'a str,
    param: Option<&'a str>,
    code: Code<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Code<'a> {
    Status(u16),
    Name(&'a str),
}

/// The whole body in Anthropic's shape; members in vLLM's order.
#[derive(Serialize)]
struct AnthropicBody<'a> {
    r#type: &'static str,
    error: AnthropicError<'a>,
}

#[derive(Serialize)]
struct AnthropicError<'a> {
    r#type: &'static str,
    message: &'a str,
}

impl ErrorText<'_> {
    fn open_ai(&self) -> OpenAiError<'_> {
        let code = self.name.map_or(Code::Status(self.code), Code::Name);
        OpenAiError { message: self.message, r#type: self.kind, param: self.param, code }
    }

    /// Text of the error in the shape's JSON.
    fn json(&self, shape: Shape) -> String {
        let text = match shape {
            Shape::OpenAi => serde_json::to_string(&self.open_ai()).map(|error| format!("{{\"error\":{error}}}")),
            Shape::Anthropic => serde_json::to_string(&AnthropicBody {
                r#type: "error",
                error: AnthropicError { r#type: anthropic_kind(self.code), message: self.message },
            }),
        };
        text.unwrap_or_default()
    }
}

/// Anthropic's error type for a status (docs.anthropic.com, "Errors").
const fn anthropic_kind(code: u16) -> &'static str {
    match code {
        400 | 405 | 415 | 422 => "invalid_request_error",
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 | 529 => "overloaded_error",
        504 => "timeout_error",
        _ => "api_error",
    }
}

/// The body of an error answer.
pub fn error_body(shape: Shape, text: &ErrorText<'_>) -> Bytes {
    Bytes::from(text.json(shape))
}

/// One whole SSE event that tells a client its stream failed, blank line included. It is not a good ending: the caller
/// ends the body after it, without `[DONE]` or its like. For the Responses API the event is typed (`type`, `code`,
/// `message`, `param`, `sequence_number`) and also holds `error`, which is what OpenAI's own clients raise on.
pub fn error_event(api: Api, text: &ErrorText<'_>) -> Bytes {
    let event = match api.done_mark() {
        DoneMark::Done => format!("data: {}\n\n", text.json(Shape::OpenAi)),
        DoneMark::MessageStop => format!("event: error\ndata: {}\n\n", text.json(Shape::Anthropic)),
        DoneMark::Response => {
            let value = json!({
                "type": "error", "code": text.code.to_string(), "message": text.message, "param": text.param,
                "sequence_number": 0, "error": text.open_ai(),
            });
            format!("event: error\ndata: {value}\n\n")
        }
    };
    Bytes::from(event)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use serde_json::Value;

    use super::*;

    const TEXT: ErrorText<'_> =
        ErrorText { message: "pod \"broke\"\nlate", kind: "InternalServerError", param: None, code: 502, name: None };

    #[test]
    fn bodies_have_the_shape_of_the_api() {
        let open: Value = serde_json::from_slice(&error_body(Shape::OpenAi, &TEXT)).unwrap();
        assert_eq!(
            open,
            json!({"error":{"message":"pod \"broke\"\nlate","type":"InternalServerError","param":null,"code":502}})
        );
        let other: Value = serde_json::from_slice(&error_body(Shape::Anthropic, &TEXT)).unwrap();
        assert_eq!(other, json!({"type":"error","error":{"type":"api_error","message":"pod \"broke\"\nlate"}}));
    }

    #[test]
    fn members_come_in_the_order_of_vllm() {
        let missing = ErrorText { message: "gone", kind: "NotFoundError", param: Some("model"), code: 404, name: None };
        let wanted = r#"{"error":{"message":"gone","type":"NotFoundError","param":"model","code":404}}"#;
        assert_eq!(error_body(Shape::OpenAi, &missing), wanted);
        let wanted = r#"{"type":"error","error":{"type":"not_found_error","message":"gone"}}"#;
        assert_eq!(error_body(Shape::Anthropic, &missing), wanted);
    }

    #[test]
    fn an_event_is_one_event_on_every_api() {
        for api in Api::ALL {
            let event = String::from_utf8(error_event(api, &TEXT).to_vec()).unwrap();
            assert!(event.ends_with("\n\n"), "{api:?}");
            assert_eq!(event.matches("\n\n").count(), 1, "{api:?}");
            assert_eq!(event.starts_with("event: error\n"), api.done_mark() != DoneMark::Done, "{api:?}");
            let data = event.split("data: ").nth(1).unwrap();
            let value: Value = serde_json::from_str(data).unwrap();
            assert_eq!(value["error"]["message"], TEXT.message, "{api:?}");
        }
    }
}
