//! Generates `conf/reference.yaml`: every field with its doc comment, kind and default, in the order of the source.
//!
//! Values come from the default tree, text from the schema, so neither can be out of date. Lists and mappings that are empty
//! by default show the fields of an entry as comments.
use std::fmt::Write as _;

use serde_json::Value;

use super::locate::Node;
use super::schema::{doc, kind, member, resolved, root};
use super::tree::Tree;

/// Width of a comment line.
const COLUMNS: usize = 110;

const HEAD: &str = "\
# Every setting of Tidegate with its default. Made by `tidegate config --reference`; a test keeps it true.
# Copy what you want to change: what is left out has the value shown here. Unknown fields are refused.
# The file is read again when it changes; a bad one is refused and the old one stays.
";

/// The text of `conf/reference.yaml`.
pub fn reference() -> String {
    let tree = Tree::default();
    let values = serde_json::to_value(&tree).unwrap_or_default();
    let order = serde_yaml::to_string(&tree).ok().and_then(|text| Node::read(&text)).unwrap_or(Node::Scalar);
    let mut out = HEAD.to_owned();
    mapping(&mut out, &values, &order, root(), 0);
    out
}

fn mapping(out: &mut String, values: &Value, order: &Node, schema: &Value, depth: usize) {
    let Node::Map(members) = order else { return };
    for (name, _, node) in members {
        let (Some(value), Some(schema)) = (values.get(name), member(schema, name)) else { continue };
        let indent = "  ".repeat(depth);
        if depth == 0 {
            out.push('\n');
        }
        let is_section = value.is_object() && resolved(schema).get("properties").is_some();
        let kind = kind(schema);
        let is_plain =
            is_section || !(value.is_null() || value.is_array() || value.is_object() || kind.starts_with("one of"));
        let text = if is_plain { doc(schema) } else { format!("{} ({kind})", doc(schema)) };
        comment(out, &indent, &text);
        out.push_str(&indent);
        out.push_str(name);
        match value {
            Value::Object(_) if is_section => {
                out.push_str(":\n");
                mapping(out, value, node, schema, depth + 1);
            }
            Value::Array(items) if !items.is_empty() => {
                out.push_str(":\n");
                for item in items {
                    let _infallible = writeln!(out, "{indent}  - {item}");
                }
            }
            _ => {
                let _infallible = writeln!(out, ": {value}");
                entry(out, value, schema, &indent);
            }
        }
    }
}

/// Shows what an entry of an empty list or mapping looks like.
fn entry(out: &mut String, value: &Value, schema: &Value, indent: &str) {
    let schema = resolved(schema);
    let (item, head, inner) = match value {
        Value::Array(_) => (schema.get("items"), "# each entry:", "#   "),
        Value::Object(_) => (schema.get("additionalProperties"), "# <name>:", "#   "),
        _ => return,
    };
    let Some(item) = item.filter(|item| resolved(item).get("properties").is_some()) else { return };
    let _infallible = writeln!(out, "{indent}{head}");
    fields(out, item, &format!("{indent}{inner}"));
    if !indent.is_empty() {
        out.push('\n');
    }
}

fn fields(out: &mut String, schema: &Value, prefix: &str) {
    let properties = resolved(schema).get("properties").and_then(Value::as_object);
    for (name, schema) in properties.into_iter().flatten() {
        let is_section = resolved(schema).get("properties").is_some();
        let kind = if is_section { String::new() } else { format!(" ({})", kind(schema)) };
        let _infallible = writeln!(out, "{prefix}{name}: {}{kind}", doc(schema));
        if is_section {
            fields(out, schema, &format!("{prefix}  "));
        }
    }
}

fn comment(out: &mut String, indent: &str, text: &str) {
    let mut line = format!("{indent}#");
    for word in text.split_whitespace() {
        if line.len() + 1 + word.len() > COLUMNS {
            out.push_str(&line);
            out.push('\n');
            line = format!("{indent}#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::path::Path;

    use super::super::shape::{check, parse};
    use super::*;

    fn conf() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("conf")
    }

    #[test]
    fn the_committed_reference_is_the_generated_one() {
        let committed = std::fs::read_to_string(conf().join("reference.yaml")).unwrap_or_default();
        let hint = "regenerate it with: cargo run -- config --reference > conf/reference.yaml";
        assert!(committed == reference(), "conf/reference.yaml is out of date; {hint}\n{}", reference());
    }

    #[test]
    fn the_reference_means_the_defaults() {
        assert_eq!(parse(&reference()), Ok(Tree::default()));
    }

    #[test]
    fn every_field_has_a_doc_comment() {
        fn walk(schema: &Value, path: &str) {
            for (name, schema) in resolved(schema)["properties"].as_object().into_iter().flatten() {
                let own = schema.get("description").and_then(Value::as_str).unwrap_or_default();
                assert!(own.len() > 8, "{path}.{name} needs a doc comment of its own");
                walk(schema, &format!("{path}.{name}"));
                for inner in ["items", "additionalProperties"] {
                    walk(resolved(schema).get(inner).unwrap_or(&Value::Null), &format!("{path}.{name}"));
                }
            }
        }
        walk(root(), "");
    }

    #[test]
    fn every_file_in_conf_is_good() {
        let mut seen = 0;
        for file in std::fs::read_dir(conf()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let problems = check(&std::fs::read_to_string(&path).unwrap());
                assert!(problems.is_empty(), "{}: {problems:#?}", path.display());
                seen += 1;
            }
        }
        assert!(seen >= 2);
    }
}
