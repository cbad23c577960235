//! The JSON schema of the tree, and what it says in words about one field.
use std::sync::LazyLock;

use serde_json::Value;

use super::locate::{Segment, segments};
use super::tree::Tree;

static SCHEMA: LazyLock<Value> = LazyLock::new(|| schemars::schema_for!(Tree).to_value());

/// JSON schema of the configuration file, for editors.
pub fn schema() -> String {
    let mut text = serde_json::to_string_pretty(&*SCHEMA).unwrap_or_default();
    text.push('\n');
    text
}

/// The whole schema.
pub(super) fn root() -> &'static Value {
    &SCHEMA
}

/// What belongs at `path`, in words: its kind and its doc comment.
pub(super) fn describe(path: &str) -> Option<String> {
    let mut schema = root();
    for segment in segments(path) {
        schema = match segment {
            Segment::Index(_) => resolved(schema).get("items")?,
            Segment::Key(name) => member(schema, &name)?,
        };
    }
    if path.is_empty() {
        return None;
    }
    let doc = doc(schema);
    Some(if doc.is_empty() { kind(schema) } else { format!("{} ({})", kind(schema), doc.trim_end_matches('.')) })
}

/// Schema of a member of a mapping.
pub(super) fn member<'a>(schema: &'a Value, name: &str) -> Option<&'a Value> {
    let schema = resolved(schema);
    let named = schema.get("properties").and_then(|properties| properties.get(name));
    named.or_else(|| schema.get("additionalProperties").filter(|schema| schema.is_object()))
}

/// Doc comment of a field on one line, else of its type.
pub(super) fn doc(schema: &Value) -> String {
    let own = schema.get("description").or_else(|| resolved(schema).get("description"));
    let words = own.and_then(Value::as_str).unwrap_or_default().split_whitespace();
    words.collect::<Vec<_>>().join(" ").replace("\\[", "[").replace("\\]", "]")
}

/// Follows references and looks through "or null".
pub(super) fn resolved(schema: &Value) -> &Value {
    let mut schema = schema;
    for _ in 0..8 {
        let target = schema.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix('#'));
        let variants = schema.get("anyOf").or_else(|| schema.get("allOf")).and_then(Value::as_array);
        let next = match (target, variants) {
            (Some(pointer), _) => root().pointer(pointer),
            (None, Some(variants)) => variants.iter().find(|variant| !is_null(variant)),
            (None, None) => None,
        };
        match next {
            Some(next) => schema = next,
            None => break,
        }
    }
    schema
}

fn is_null(schema: &Value) -> bool {
    schema.get("type").is_some_and(|kind| kind == "null")
}

/// Kind of a value in words.
pub(super) fn kind(schema: &Value) -> String {
    let target = resolved(schema);
    let words = words(target);
    if !words.is_empty() {
        return format!("one of {}", words.join(", "));
    }
    let named = match target.get("type") {
        Some(Value::Array(kinds)) => kinds.iter().find(|kind| *kind != "null"),
        named => named,
    };
    match named.and_then(Value::as_str) {
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("boolean") => "true or false",
        Some("array") => "a list",
        Some("object") => "a mapping",
        Some("string") => "text",
        _ => "a value",
    }
    .to_owned()
}

/// Words of an enumeration.
fn words(schema: &Value) -> Vec<&str> {
    let plain = schema.get("enum").and_then(Value::as_array).into_iter().flatten();
    let variants = schema.get("oneOf").and_then(Value::as_array).into_iter().flatten();
    plain.chain(variants.filter_map(|variant| variant.get("const"))).filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn fields_are_described_in_words() {
        for (path, start) in [
            ("limits.body_bytes_max", "a whole number (Largest request body, in bytes"),
            ("observe.log", "one of off, error, warn, info, debug, trace (Level"),
            ("pods.list[3].url", "text (`http://host:port`"),
            ("models.\"org/m.1\".timeouts.answer_s", "a whole number (Until the end"),
            ("listen.threads", "a whole number (Worker threads"),
            ("pods.list", "a list (The pods"),
        ] {
            let described = describe(path).unwrap_or_default();
            assert!(described.starts_with(start), "{path}: {described}");
        }
        assert_eq!(describe("no.such"), None);
    }

    #[test]
    fn the_schema_refuses_unknown_fields_everywhere() {
        let value: Value = serde_json::from_str(&schema()).unwrap();
        let structs = value["$defs"].as_object().unwrap().values().chain([&value]);
        for object in structs.filter(|schema| schema.get("properties").is_some()) {
            assert_eq!(object.get("additionalProperties"), Some(&Value::Bool(false)), "{object}");
        }
    }
}
