//! A made-up tokenizer: about four bytes per token, reversible, deterministic, and cheap.
//!
//! Up to four consecutive bytes of a 64-letter alphabet (letters, digits, space, full stop) are one token; any other byte
//! is a token of its own. Appending text changes at most the last token, as with a real tokenizer. Text is tokenized in
//! segments (a message's content is one), so the text of an answer, sent back in the next turn, gives the very tokens the
//! engine generated. Ids: 0..16 special, 16..272 single bytes, from 1024 packed letters.

/// Ids are below this. vLLM refuses ids that are not.
pub const VOCABULARY: u64 = PACKED + 64 + 4_096 + 262_144 + 16_777_216;
/// `<|im_start|>`, the first token of a chat message.
pub const MESSAGE_START: u32 = 1;
/// `<|im_end|>`, the last token of a chat message, and the end of an answer.
pub const MESSAGE_END: u32 = 2;
const BYTES: u64 = 16;
const PACKED: u64 = 1_024;

/// Appends the tokens of one segment of text.
pub fn tokenize(segment: &[u8], into: &mut Vec<u32>) {
    let (mut code, mut held) = (0_u32, 0_u8);
    for &byte in segment {
        if let Some(letter) = letter_of(byte) {
            code = (code << 6) | u32::from(letter);
            held += 1;
            if held == 4 {
                into.push(packed(code, held));
                (code, held) = (0, 0);
            }
        } else {
            if held > 0 {
                into.push(packed(code, held));
                (code, held) = (0, 0);
            }
            into.push(BYTES as u32 + u32::from(byte));
        }
    }
    if held > 0 {
        into.push(packed(code, held));
    }
}

/// The token of four letters of the alphabet; a byte outside of it counts as the letter `a`.
pub(super) fn of_four(text: [u8; 4]) -> u32 {
    packed(text.iter().fold(0, |code, &byte| (code << 6) | u32::from(letter_of(byte).unwrap_or(0))), 4)
}

/// Appends the bytes of one token. Ids without a meaning append nothing.
pub fn detokenize(token: u32, into: &mut Vec<u8>) {
    match u64::from(token) {
        1 => into.extend_from_slice(b"<|im_start|>"),
        2 => into.extend_from_slice(b"<|im_end|>"),
        id @ BYTES..272 => into.push((id - BYTES) as u8),
        id if id >= PACKED => {
            let mut code = id - PACKED;
            for length in 1..=4_u32 {
                let count = 1_u64 << (6 * length);
                if code < count {
                    into.extend((0..length).rev().map(|at| byte_of(((code >> (6 * at)) & 63) as u8)));
                    return;
                }
                code -= count;
            }
        }
        _ => {}
    }
}

/// The id of `held` (1 to 4) letters packed in `code`.
fn packed(code: u32, held: u8) -> u32 {
    let offset = match held {
        1 => 0,
        2 => 64,
        3 => 64 + 4_096,
        _ => 64 + 4_096 + 262_144,
    };
    PACKED as u32 + offset + code
}

fn letter_of(byte: u8) -> Option<u8> {
    match byte {
        b'a'..=b'z' => Some(byte - b'a'),
        b'A'..=b'Z' => Some(byte - b'A' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b' ' => Some(62),
        b'.' => Some(63),
        _ => None,
    }
}

fn byte_of(letter: u8) -> u8 {
    match letter {
        0..=25 => b'a' + letter,
        26..=51 => b'A' + letter - 26,
        52..=61 => b'0' + letter - 52,
        62 => b' ',
        _ => b'.',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tokens(text: &[u8]) -> Vec<u32> {
        let mut out = Vec::new();
        tokenize(text, &mut out);
        out
    }

    #[test]
    fn english_takes_about_four_bytes_per_token() {
        let text = b"The quick brown fox jumps over the lazy dog and runs away into the forest.";
        let count = tokens(text).len();
        assert!((text.len() / 4..=text.len() / 3).contains(&count), "{count} tokens for {} bytes", text.len());
    }

    proptest! {
        #[test]
        fn any_bytes_come_back_and_appending_changes_only_the_last_token(head: Vec<u8>, tail: Vec<u8>) {
            let before = tokens(&head);
            let mut back = Vec::new();
            for &token in &before {
                prop_assert!(u64::from(token) < VOCABULARY);
                detokenize(token, &mut back);
            }
            prop_assert_eq!(&back, &head);
            let after = tokens(&[head, tail].concat());
            let stable = before.len().saturating_sub(1);
            prop_assert_eq!(before.get(..stable), after.get(..stable));
        }
    }
}
