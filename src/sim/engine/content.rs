//! What the engine writes: a rule by which a client can check every byte of an answer.
//!
//! `seed(prompt tokens, choice)` = XXH3-64 of the prompt's token ids (u32, little endian), seeded with the choice number.
//! Piece `i` of an answer is four bytes: consonant, vowel, consonant, space, picked by SplitMix64's mix of
//! `seed + i·golden`. One piece is one token and one stream event. Nothing else enters: not the pod, model, time or cache.
//! With `max_tokens` the answer has exactly that many pieces ("length"), else `natural_tokens(seed)` of them ("stop").
use xxhash_rust::xxh3::Xxh3;

use super::tokenizer;
use crate::base::Rng;

const CONSONANTS: &[u8; 16] = b"bcdfghjklmnprstv";
const VOWELS: &[u8; 4] = b"aeio";

/// The seed of one answer: choice 0 is the only one unless `n` asks for more.
pub fn seed(prompt: &[u32], choice: u64) -> u64 {
    let mut hasher = Xxh3::with_seed(choice);
    for token in prompt {
        hasher.update(&token.to_le_bytes());
    }
    hasher.digest()
}

/// Piece `index` of the answer with this seed.
pub fn piece(seed: u64, index: u64) -> [u8; 4] {
    let bits = Rng::new(seed.wrapping_add(index.wrapping_mul(0x9E37_79B9_7F4A_7C15))).bits();
    let consonant = |shift: u32| CONSONANTS.get((bits >> shift) as usize & 15).copied().unwrap_or(b'b');
    let vowel = VOWELS.get((bits >> 8) as usize & 3).copied().unwrap_or(b'a');
    [consonant(0), vowel, consonant(16), b' ']
}

/// Pieces `from..to` as text.
pub fn text(seed: u64, from: u64, to: u64) -> String {
    (from..to).flat_map(|index| piece(seed, index)).map(char::from).collect()
}

/// The token id of piece `index`: what the tokenizer makes of its text.
pub fn token(seed: u64, index: u64) -> u32 {
    tokenizer::of_four(piece(seed, index))
}

/// Length of an answer without `max_tokens`: 8 to 64 tokens.
pub fn natural_tokens(seed: u64) -> u64 {
    8 + seed % 57
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_sent_back_gives_the_tokens_that_were_generated() {
        let seed = seed(&[1, 2, 3], 0);
        let mut again = Vec::new();
        tokenizer::tokenize(text(seed, 0, 50).as_bytes(), &mut again);
        let generated: Vec<u32> = (0..50).map(|index| token(seed, index)).collect();
        assert_eq!(again, generated);
    }

    #[test]
    fn prompts_choices_and_positions_differ() {
        assert_ne!(seed(&[1, 2], 0), seed(&[1, 3], 0));
        assert_ne!(seed(&[1, 2], 0), seed(&[1, 2], 1));
        assert_ne!(text(9, 0, 8), text(9, 8, 16));
        assert!((8..=64).contains(&natural_tokens(u64::MAX)));
    }
}
