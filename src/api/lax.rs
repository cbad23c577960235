//! Reads booleans and integers as pydantic's lax mode does, because that is how vLLM reads a body: `"true"` and 1 are
//! true, `"5"` and 5.0 are 5. Anything else is `None`: the gate does not judge types, the pod does.
use super::json;

/// A boolean: `true`, 1, and the words pydantic 2 accepts in a string.
pub fn boolean(value: &[u8]) -> Option<bool> {
    let word = json::text(value).map(|text| text.to_ascii_lowercase());
    match word.as_deref().map_or(value, str::as_bytes) {
        b"true" | b"1" | b"1.0" => Some(true),
        b"false" | b"0" | b"0.0" => Some(false),
        b"t" | b"y" | b"yes" | b"on" if word.is_some() => Some(true),
        b"f" | b"n" | b"no" | b"off" if word.is_some() => Some(false),
        _ => None,
    }
}

/// An integer: digits, digits in a string, or a number without a fraction.
pub fn integer(value: &[u8]) -> Option<i64> {
    let digits = match json::text(value) {
        Some(text) => text.trim().to_owned(),
        None => std::str::from_utf8(value).ok()?.to_owned(),
    };
    if let Ok(whole) = digits.parse() {
        return Some(whole);
    }
    let number: f64 = digits.parse().ok()?;
    (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64)
}

/// An integer that is not negative.
pub fn unsigned(value: &[u8]) -> Option<u64> {
    integer(value).and_then(|number| u64::try_from(number).ok())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn as_pydantic_reads_them() {
        for (text, expected) in
            [("true", Some(true)), ("\"True\"", Some(true)), ("1", Some(true)), ("\"off\"", Some(false)), ("t", None)]
        {
            assert_eq!(boolean(text.as_bytes()), expected, "{text}");
        }
        for (text, expected) in
            [("5", Some(5)), ("\"5\"", Some(5)), ("5.0", Some(5)), ("5.5", None), ("-1", Some(-1)), ("null", None)]
        {
            assert_eq!(integer(text.as_bytes()), expected, "{text}");
        }
        assert_eq!(unsigned(b"-1"), None);
        assert_eq!(integer(b"1e400"), None);
    }
}
