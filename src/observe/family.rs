//! A counter with one label whose values are words of the source code.
//!
//! Only `&'static str` is taken, so a value from a socket cannot become a label. Meant for rare events (refusals, retries,
//! dropped headers): one lookup is a short walk under a read lock. At most [`WORDS_MAX`] words; more count as `other`.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;

/// Most words of one family, `other` not counted.
pub const WORDS_MAX: usize = 64;

/// Word that takes what has no room.
pub const OTHER: &str = "other";

/// Counts by word.
#[derive(Debug, Default)]
pub struct Family(RwLock<Vec<(&'static str, AtomicU64)>>);

impl Family {
    /// A family in which `words` are present from the start, at zero.
    pub fn with(words: &[&'static str]) -> Self {
        Self(RwLock::new(words.iter().map(|word| (*word, AtomicU64::new(0))).collect()))
    }

    /// Counts one.
    pub fn inc(&self, word: &'static str) {
        self.add(word, 1);
    }

    /// Counts `amount`.
    pub fn add(&self, word: &'static str, amount: u64) {
        if let Some((_, count)) = self.0.read().iter().find(|(known, _)| *known == word) {
            count.fetch_add(amount, Relaxed);
            return;
        }
        let mut words = self.0.write();
        let word = if words.len() < WORDS_MAX { word } else { OTHER };
        match words.iter().find(|(known, _)| *known == word) {
            Some((_, count)) => {
                count.fetch_add(amount, Relaxed);
            }
            None => words.push((word, AtomicU64::new(amount))),
        }
    }

    /// Count of one word; zero if never seen.
    pub fn value(&self, word: &str) -> u64 {
        self.0.read().iter().find(|(known, _)| *known == word).map_or(0, |(_, count)| count.load(Relaxed))
    }

    /// All words with their counts, by name.
    pub fn all(&self) -> Vec<(&'static str, u64)> {
        let mut all: Vec<_> = self.0.read().iter().map(|(word, count)| (*word, count.load(Relaxed))).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_word_and_folds_the_overflow() {
        let family = Family::with(&["b"]);
        family.inc("a");
        family.add("a", 2);
        assert_eq!(family.all(), [("a", 3), ("b", 0)]);
        for number in 0..WORDS_MAX + 10 {
            let word: &'static str = Box::leak(format!("w{number}").into_boxed_str());
            family.inc(word);
        }
        assert_eq!(family.all().len(), WORDS_MAX + 1);
        assert_eq!(family.value(OTHER), 12);
        assert_eq!(family.value("never"), 0);
    }
}
