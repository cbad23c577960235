//! The configuration as it may be shown: every setting, none of the secrets.
//!
//! Secrets are kept in files, whose paths are shown and whose contents are not. What is left are passwords in URLs.
use std::sync::Arc;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::tree::Tree;

/// Bits of the hash: as many as a float of a metric holds.
const HASH_BITS: u32 = 48;

/// What is shown of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    /// Hash of its meaning, secrets in URLs included.
    pub hash: u64,
    /// All settings, defaults too, as JSON without secrets.
    pub json: Arc<str>,
}

impl Shown {
    pub(super) fn of(tree: &Tree) -> Self {
        let mut value = serde_json::to_value(tree).unwrap_or_default();
        let hash = xxh3_64(value.to_string().as_bytes()) >> (u64::BITS - HASH_BITS);
        redact(&mut value);
        Self { hash, json: format!("{value:#}").into() }
    }
}

/// Takes user names and passwords out of every URL, wherever it is.
fn redact(value: &mut Value) {
    match value {
        Value::String(text) => {
            if let Some(cut) = without_userinfo(text) {
                *text = cut;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        Value::Object(members) => members.values_mut().for_each(redact),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn without_userinfo(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let (_secret, host) = authority.rsplit_once('@')?;
    Some(format!("{scheme}://***@{host}{path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn userinfo_is_taken_out_and_nothing_else() {
        assert_eq!(without_userinfo("http://u:p@ss@h:1/x@y").as_deref(), Some("http://***@h:1/x@y"));
        assert_eq!(without_userinfo("http://key@h").as_deref(), Some("http://***@h"));
        for plain in ["http://h:1/a@b", "http://h", "user@h", ""] {
            assert_eq!(without_userinfo(plain), None);
        }
        let mut value = serde_json::json!({"pods": {"list": [{"url": "http://canary@h:1"}]}, "n": 1});
        redact(&mut value);
        assert_eq!(value, serde_json::json!({"pods": {"list": [{"url": "http://***@h:1"}]}, "n": 1}));
    }

    #[test]
    fn the_hash_follows_the_meaning() {
        let tree = Tree::default();
        let same = Shown::of(&tree);
        assert_eq!(same, Shown::of(&tree.clone()));
        assert!(same.hash >> HASH_BITS == 0 && same.json.contains("\"drain_max_s\""));
        let mut other = tree;
        other.listen.drain_max_s += 1;
        assert_ne!(Shown::of(&other).hash, same.hash);
    }
}
