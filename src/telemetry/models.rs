//! Reads `/v1/models` and `/version` of a pod (vLLM 0.32 and other servers of the OpenAI API).
//!
//! A LoRA adapter is an entry with a `parent`. Each entry's own JSON is kept as it came, because the gate's `/v1/models` is
//! the union of the pods' entries. Entries without a usable name are left out; what is no list of models is an error.
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::base::{MODEL_NAME_BYTES_MAX, Tokens};
use crate::pods::Served;

/// Most models and adapters of one pod that are kept.
const MODELS_MAX: usize = 10_000;
const CARD_BYTES_MAX: usize = 64 * 1024;
const VERSION_BYTES_MAX: usize = 64;

/// What is wrong with a `/v1/models` answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ModelsError {
    /// No JSON object with a list `data`.
    #[error("the answer of /v1/models is no list of models")]
    NotAList,
    /// More than [`MODELS_MAX`].
    #[error("the pod lists more than {MODELS_MAX} models")]
    TooMany,
}

/// Models and adapters of a `/v1/models` body.
pub(super) fn models(body: &[u8]) -> Result<Vec<Served>, ModelsError> {
    let list: List<'_> = serde_json::from_slice(body).map_err(|_| ModelsError::NotAList)?;
    if list.data.len() > MODELS_MAX {
        return Err(ModelsError::TooMany);
    }
    Ok(list.data.into_iter().filter_map(served).collect())
}

/// The version of a `/version` body.
pub(super) fn version(body: &[u8]) -> Option<String> {
    let told: Version = serde_json::from_slice(body).ok()?;
    let is_plain = told.version.len() <= VERSION_BYTES_MAX && told.version.bytes().all(|byte| byte.is_ascii_graphic());
    is_plain.then_some(told.version)
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Entry {
    id: String,
    #[serde(default)]
    parent: Option<String>,
    #[serde(default)]
    max_model_len: Option<u64>,
}

#[derive(Deserialize)]
struct Version {
    version: String,
}

fn served(card: &RawValue) -> Option<Served> {
    let entry: Entry = serde_json::from_str(card.get()).ok()?;
    let is_usable =
        |name: &str| !name.is_empty() && name.len() <= MODEL_NAME_BYTES_MAX && !name.contains(char::is_control);
    if !is_usable(&entry.id) || card.get().len() > CARD_BYTES_MAX {
        return None;
    }
    Some(Served {
        name: entry.id.into(),
        parent: entry.parent.filter(|name| is_usable(name)).map(Into::into),
        context_max: entry.max_model_len.filter(|length| *length > 0).map(Tokens),
        card: card.get().into(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    const TINY: &[u8] = include_bytes!("../../tests/fixtures/vllm/models-tiny.json");

    #[test]
    fn a_real_answer() {
        let models = models(TINY).unwrap();
        assert_eq!(models.len(), 1);
        assert_eq!((&*models[0].name, &models[0].parent, models[0].context_max), ("tiny", &None, Some(Tokens(8_192))));
        let text = std::str::from_utf8(TINY).unwrap();
        assert!(text.contains(&*models[0].card), "the card is the pod's own text");
        assert!(models[0].card.starts_with("{\"id\":\"tiny\""));
    }

    /// Names (and parents after `<`) read from entries.
    fn check(entries: &str, expected: &[&str]) {
        let body = format!("{{\"object\":\"list\",\"data\":[{entries}]}}");
        let names: Vec<String> = models(body.as_bytes())
            .unwrap()
            .iter()
            .map(|model| model.parent.iter().fold(model.name.to_string(), |name, parent| format!("{name}<{parent}")))
            .collect();
        assert_eq!(names, expected, "{entries}");
    }

    #[test]
    fn adapters_and_odd_entries() {
        check("", &[]);
        check(r#"{"id":"a"},{"id":"lora","parent":"a","max_model_len":null}"#, &["a", "lora<a"]);
        check(r#"{"id":""},{"id":"a\nb"},{"id":7},7,{"name":"x"},{"id":"ok","extra":[1,{}]}"#, &["ok"]);
        check(&format!(r#"{{"id":"{}"}},{{"id":"b","pad":"{}"}}"#, "x".repeat(2_000), "y".repeat(70_000)), &[]);
    }

    #[test]
    fn what_is_no_list_is_an_error() {
        let deep = format!("{{\"data\":{}", "[".repeat(100_000));
        let many = format!("{{\"data\":[{}1]}}", "1,".repeat(MODELS_MAX));
        for body in ["", "{}", "[]", "{\"data\":{}}", "{\"data\":[{]}", "<html>", "\u{fffd}", &deep] {
            assert_eq!(models(body.as_bytes()), Err(ModelsError::NotAList), "{body:.20}");
        }
        assert_eq!(models(many.as_bytes()), Err(ModelsError::TooMany));
    }

    #[test]
    fn versions() {
        assert_eq!(version(b"{\"version\":\"0.32.0\"}").as_deref(), Some("0.32.0"));
        for body in ["", "{}", "{\"version\":7}", "{\"version\":\"a b\"}", "{\"version\":\"a\\n\"}"] {
            assert_eq!(version(body.as_bytes()), None, "{body}");
        }
    }
}
