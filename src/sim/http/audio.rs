//! `/v1/audio/transcriptions` and `/translations`: a form with a file, answered in words that tell what was in it
//! (`TranscriptionResponse` and `TranscriptionStreamResponse` of vLLM 0.32).
use serde_json::json;

use super::config::SimConfig;

/// Name, whether it is a file, value.
type Member = (String, bool, Vec<u8>);

/// What is asked.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) model: String,
    pub(super) is_stream: bool,
    bytes: usize,
}

/// The members of a form.
fn members(content_type: &str, body: &[u8]) -> Option<Vec<Member>> {
    let boundary = content_type.split("boundary=").nth(1)?.split(';').next()?.trim().trim_matches('"');
    let mark = format!("--{boundary}");
    let mut all = Vec::new();
    let starts: Vec<usize> =
        (0..body.len()).filter(|&at| body.get(at..).is_some_and(|rest| rest.starts_with(mark.as_bytes()))).collect();
    for pair in starts.windows(2) {
        let &[from, to] = pair else { continue };
        let part = body.get(from + mark.len() + 2..to - 2)?;
        let ends = part.windows(4).position(|four| four == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(part.get(..ends)?).into_owned();
        let name = head.split("; name=\"").nth(1)?.split('"').next()?.to_owned();
        all.push((name, head.contains("filename="), part.get(ends + 4..)?.to_vec()));
    }
    Some(all)
}

/// Reads the form; the text says what is wrong with it.
pub(super) fn read(content_type: Option<&str>, body: &[u8], config: &SimConfig) -> Result<Recording, (u16, String)> {
    let missing = |field: &str| {
        let text =
            format!("1 validation error:\n  {{'type': 'missing', 'loc': 'body.{field}', 'msg': 'Field required'}}");
        (400, text)
    };
    let members = content_type.and_then(|told| members(told, body)).ok_or_else(|| missing("file"))?;
    let value = |name: &str| {
        let found = members.iter().find(|(known, is_file, _)| known == name && !is_file);
        found.map(|(.., value)| String::from_utf8_lossy(value).into_owned())
    };
    if members.iter().any(|(name, ..)| name.contains("transfer_params")) {
        return Err((500, "transfer parameters reached the engine".to_owned()));
    }
    let file = members.iter().find(|(name, is_file, _)| name == "file" && *is_file).ok_or_else(|| missing("file"))?;
    let model = value("model").unwrap_or_else(|| config.models.first().cloned().unwrap_or_default());
    if !config.models.contains(&model) {
        return Err((404, format!("The model `{model}` does not exist.")));
    }
    Ok(Recording { model, is_stream: value("stream").is_some_and(|told| told == "true"), bytes: file.2.len() })
}

impl Recording {
    fn text(&self) -> String {
        format!("{} bytes were heard by {}", self.bytes, self.model)
    }

    /// The whole answer.
    pub(super) fn answer(&self) -> String {
        json!({"text": self.text(), "usage": {"type": "duration", "seconds": self.bytes.div_ceil(32_000)}}).to_string()
    }

    /// The events of a stream.
    pub(super) fn events(&self, id: &str, created: u64) -> Vec<String> {
        let text = self.text();
        let words: Vec<&str> = text.split_inclusive(' ').collect();
        let last = words.len().saturating_sub(1);
        let chunk = |(index, word): (usize, &&str)| {
            let end = if index == last { json!("stop") } else { json!(null) };
            let choice = json!({"delta": {"content": word}, "finish_reason": end, "stop_reason": null});
            json!({
                "id": format!("trsc-{id}"), "object": "transcription.chunk", "created": created, "model": self.model,
                "choices": [choice], "usage": null
            })
            .to_string()
        };
        words.iter().enumerate().map(chunk).collect()
    }
}
