//! Keeps secrets out of everything that is written: a type that cannot show itself, and checks of what may be echoed.
//!
//! Prompts and bodies have no type here on purpose: no interface of this room takes one.
use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest request id taken from a client \[bytes\].
pub const REQUEST_ID_BYTES_MAX: usize = 128;

/// What stands where a secret would.
pub const REDACTED: &str = "[redacted]";

/// A key or password. It has no `Display`, its `Debug` and serialised forms say [`REDACTED`], and it is compared in
/// constant time only.
#[derive(Clone)]
pub struct Secret(Box<str>);

impl Secret {
    /// Takes a secret in.
    pub fn new(secret: impl Into<Box<str>>) -> Self {
        Self(secret.into())
    }

    /// The secret itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Whether `candidate` is this secret. Takes the same time wherever they first differ; the length is not hidden.
    pub fn matches(&self, candidate: &[u8]) -> bool {
        let own = self.0.as_bytes();
        own.len() == candidate.len()
            && own.iter().zip(candidate).fold(0_u8, |differences, (a, b)| std::hint::black_box(differences | (a ^ b)))
                == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(REDACTED)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// The id if it may be echoed and logged: 1 to [`REQUEST_ID_BYTES_MAX`] visible ASCII characters. Anything else gets a
/// new id from the gate.
pub fn printable_id(id: &[u8]) -> Option<&str> {
    let fits = (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    if fits { std::str::from_utf8(id).ok() } else { None }
}

/// Whether a header's value must never be written anywhere but to the pod it is meant for.
pub fn is_sensitive_header(name: &str) -> bool {
    const NAMES: [&str; 8] = [
        "authorization",
        "proxy-authorization",
        "cookie",
        "set-cookie",
        "x-api-key",
        "api-key",
        "x-goog-api-key",
        "x-amz-security-token",
    ];
    NAMES.iter().any(|sensitive| name.eq_ignore_ascii_case(sensitive))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_secret_never_shows() {
        let canary = "sk-canary-0123456789";
        let secret = Secret::new(canary);
        let wrapped = Some(vec![secret.clone()]);
        for shown in
            [format!("{secret:?}"), format!("{wrapped:#?}"), serde_json::to_string(&wrapped).unwrap(), secret_error()]
        {
            assert!(!shown.contains("canary"), "{shown}");
        }
        assert_eq!(secret.expose(), canary);
    }

    fn secret_error() -> String {
        serde_json::from_str::<Secret>("[\"sk-canary\"]").unwrap_err().to_string()
    }

    #[test]
    fn secrets_compare_whole() {
        let secret = Secret::new("abc");
        for (candidate, same) in [("abc", true), ("abd", false), ("ab", false), ("abcd", false), ("", false)] {
            assert_eq!(secret.matches(candidate.as_bytes()), same, "{candidate}");
        }
    }

    #[test]
    fn only_short_visible_ids_are_echoed() {
        let longest = "x".repeat(REQUEST_ID_BYTES_MAX);
        assert_eq!(printable_id(longest.as_bytes()), Some(longest.as_str()));
        assert_eq!(printable_id(b"req-1_~!"), Some("req-1_~!"));
        for bad in [&b""[..], b"a b", b"a\nb", b"\xc3\xa9", b"a\x7f", "x".repeat(129).as_bytes()] {
            assert_eq!(printable_id(bad), None, "{bad:?}");
        }
        assert!(is_sensitive_header("Authorization") && !is_sensitive_header("accept"));
    }
}
