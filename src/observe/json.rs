//! JSON written by hand where a serialiser would cost too much: the access line and explained decisions.
use std::fmt::Write as _;

/// Appends `text` as a JSON string with its quotes. Control characters, quotes, backslashes and the two line separators
/// that some log viewers break at are escaped.
pub fn string(out: &mut String, text: &str) {
    out.push('"');
    let mut plain = 0;
    for (at, character) in text.char_indices() {
        if !matches!(character, '"' | '\\' | '\0'..='\x1f' | '\x7f' | '\u{2028}' | '\u{2029}') {
            continue;
        }
        out.push_str(text.get(plain..at).unwrap_or_default());
        plain = at + character.len_utf8();
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            other => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(other));
            }
        }
    }
    out.push_str(text.get(plain..).unwrap_or_default());
    out.push('"');
}

/// Appends `number` in decimal.
pub fn integer(out: &mut String, number: u64) {
    let mut digits = [0_u8; 20];
    let (mut start, mut rest) = (digits.len(), number);
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (rest % 10) as u8;
        start -= 1;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.push_str(digits.get(start..).and_then(|digits| std::str::from_utf8(digits).ok()).unwrap_or("0"));
}

/// Appends microseconds as milliseconds with up to three decimals.
pub fn millis(out: &mut String, micros: u64) {
    integer(out, micros / 1_000);
    let rest = micros % 1_000;
    if rest > 0 {
        let _infallible = write!(out, ".{rest:03}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn strings_survive_a_round_trip() {
        for text in ["", "plain", "quo\"te\\", "nl\nrt\r\ttab\0\x1b\x7f", "é\u{2028}\u{2029}🦀", "\"", "a\u{1}b"] {
            let mut out = String::new();
            string(&mut out, text);
            assert_eq!(serde_json::from_str::<String>(&out).unwrap(), text);
            assert!(!out.bytes().any(|byte| byte < 0x20), "{out:?}");
        }
    }

    #[test]
    fn numbers_are_exact() {
        for number in [0, 7, 10, 999, 1_000, u64::MAX] {
            let mut out = String::new();
            integer(&mut out, number);
            assert_eq!(out, number.to_string());
        }
        let mut out = String::new();
        millis(&mut out, 1_500_050);
        assert_eq!(out, "1500.050");
    }
}
