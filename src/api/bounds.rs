//! What an operator lets one request ask of an engine. vLLM 0.32 takes far more than it survives: `n` in the millions, a grammar of
//! megabytes (CVE-2026-34756 and its like), so numbers are read here as leniently as Pydantic reads them there.
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::anatomy::{Anatomy, GRAMMARS};

/// Fewest bytes of an entry of an object: `"":0,`.
const ENTRY_BYTES_MIN: usize = 5;

/// The most of each; `None` bounds nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FieldBounds {
    /// Answers per prompt: `n`, `best_of`.
    pub answers: Option<u64>,
    /// Generated tokens asked for: `max_tokens`, `max_completion_tokens`, `max_output_tokens`, `min_tokens`.
    pub tokens: Option<u64>,
    /// Entries of `logit_bias`.
    pub logit_bias: Option<u64>,
    /// Bytes of what becomes a grammar, together.
    pub grammar_bytes: Option<u64>,
}

/// A member that asks for too much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{member} asks for more than this service allows: at most {most}{unit}")]
pub struct Exceeded {
    /// The member.
    pub member: &'static str,
    /// The bound.
    pub most: u64,
    unit: &'static str,
}

impl FieldBounds {
    /// The first member over its bound, at the top level or in `sampling_params`.
    pub fn exceeded(&self, anatomy: &Anatomy<'_>) -> Option<Exceeded> {
        let top = |name: &str| anatomy.value(name);
        let nested =
            anatomy.value("sampling_params").and_then(|value| serde_json::from_slice::<Members<'_>>(value).ok());
        let inner = |name: &str| nested.as_ref().and_then(|nested| nested.get(name));
        self.first(&top).or_else(|| nested.as_ref().and_then(|_| self.first(&inner)))
    }

    fn first<'a>(&self, value: &dyn Fn(&str) -> Option<&'a [u8]>) -> Option<Exceeded> {
        let numbers = [
            ("n", self.answers, ""),
            ("best_of", self.answers, ""),
            ("max_tokens", self.tokens, " tokens"),
            ("max_completion_tokens", self.tokens, " tokens"),
            ("max_output_tokens", self.tokens, " tokens"),
            ("min_tokens", self.tokens, " tokens"),
        ];
        for (member, most, unit) in numbers {
            if let Some(most) = most
                && value(member).and_then(number).is_some_and(|asked| asked > most as f64)
            {
                return Some(Exceeded { member, most, unit });
            }
        }
        if let Some(most) = self.logit_bias
            && value("logit_bias").is_some_and(|bias| entries_over(bias, most))
        {
            return Some(Exceeded { member: "logit_bias", most, unit: " entries" });
        }
        // The Responses API has its schema in `text`.
        let grammars = GRAMMARS.iter().chain(&["text"]).filter_map(|name| Some((*name, value(name)?.len() as u64)));
        let (bytes, largest) = grammars
            .fold((0, ("", 0)), |(sum, largest), one| (sum + one.1, if one.1 > largest.1 { one } else { largest }));
        let most = self.grammar_bytes.filter(|most| bytes > *most)?;
        Some(Exceeded { member: largest.0, most, unit: " bytes of schema or grammar" })
    }
}

/// The members of an object, unread.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn get(&self, name: &str) -> Option<&'a [u8]> {
        // Of a name that is there twice Python takes the last.
        self.0.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.get().as_bytes())
    }
}

impl<'de> serde::Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Members(all))
            }
        }
        from.deserialize_map(Reader)
    }
}

/// A number as Pydantic takes it: also as a float, or in a string.
fn number(value: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(value).ok()?;
    text.trim_matches('"').trim().replace('_', "").parse().ok()
}

/// Whether an object has more entries.
fn entries_over(object: &[u8], most: u64) -> bool {
    struct Count(u64);
    impl<'de> DeserializeSeed<'de> for Count {
        type Value = bool;
        fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
            from.deserialize_map(self)
        }
    }
    impl<'de> Visitor<'de> for Count {
        type Value = bool;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<bool, A::Error> {
            let mut count = 0;
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
                count += 1;
            }
            Ok(count > self.0)
        }
    }
    let could_be = (object.len() / ENTRY_BYTES_MIN) as u64 > most;
    could_be && Count(most).deserialize(&mut serde_json::Deserializer::from_slice(object)).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::api::Api;

    const BOUNDS: FieldBounds =
        FieldBounds { answers: Some(8), tokens: Some(1_000), logit_bias: Some(2), grammar_bytes: Some(40) };

    #[test]
    fn what_is_over_its_bound_is_named() {
        let long = format!(r#"{{"type":"json_schema","json_schema":"{}"}}"#, "x".repeat(40));
        let format = format!(r#"{{"response_format":{long}}}"#);
        let text = format!(r#"{{"text":{{"format":{long}}}}}"#);
        for (body, member) in [
            (r#"{"n":8,"max_tokens":1000,"logit_bias":{"1":1,"2":2},"response_format":{"type":"json_object"}}"#, None),
            (r#"{"n":null,"best_of":"many","max_tokens":-1}"#, None),
            (r#"{"n":9}"#, Some("n")),
            (r#"{"n":1e6}"#, Some("n")),
            (r#"{"n":" 1_000 "}"#, Some("n")),
            (r#"{"best_of":9.0}"#, Some("best_of")),
            (r#"{"n":123456789012345678901234567890}"#, Some("n")),
            (r#"{"max_completion_tokens":1001}"#, Some("max_completion_tokens")),
            (r#"{"logit_bias":{"1":1,"2":2,"3":3}}"#, Some("logit_bias")),
            (r#"{"sampling_params":{"n":1,"n":9}}"#, Some("n")),
            (r#"{"sampling_params":{"max_tokens":2000}}"#, Some("max_tokens")),
            (&format, Some("response_format")),
            (&text, Some("text")),
        ] {
            let anatomy = Anatomy::read(Api::Chat, body.as_bytes()).unwrap();
            assert_eq!(BOUNDS.exceeded(&anatomy).map(|exceeded| exceeded.member), member, "{body}");
            assert_eq!(FieldBounds::default().exceeded(&anatomy), None);
        }
        let anatomy = Anatomy::read(Api::Chat, br#"{"n":9}"#).unwrap();
        let told = BOUNDS.exceeded(&anatomy).unwrap().to_string();
        assert_eq!(told, "n asks for more than this service allows: at most 8");
    }
}
