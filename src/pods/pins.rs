//! Which parts of prompts are pinned in a pod's KV cache by requests of this gate, so that a prefix shared by two running
//! requests is counted once, as the engine holds it once.
//!
//! A prompt leaves a mark for every [`STRIDE`] blocks (about 1,000 tokens); marks are chained hashes, so a mark stands for all
//! before it. Beside it, the last uses of things that a pod has to load before it can serve (adapters, grammars). All of it is
//! bounded by what is in flight, or by `USES_MAX`.
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::num::NonZeroUsize;

use lru::LruCache;

use crate::base::Tokens;

/// Blocks of a prompt for which it leaves one mark.
pub const STRIDE: usize = 16;
/// Most marks of one prompt; blocks beyond are taken as not shared.
pub const MARKS_MAX: usize = 512;
/// Adapters and grammars remembered per pod.
const USES_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();

/// Hashes are random already: they hash as themselves.
#[derive(Default)]
struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Marks of one prompt. Empty if it is short, or if nothing is known of its blocks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Marks {
    hashes: Box<[u64]>,
    /// Tokens from one mark to the next.
    tokens: u64,
}

impl Marks {
    /// Marks of a prompt with these chained block hashes, of which each stands for `block_tokens` tokens.
    pub fn of(blocks: &[u64], block_tokens: f64) -> Self {
        let hashes = blocks.chunks_exact(STRIDE).filter_map(|blocks| blocks.last().copied());
        Self { hashes: hashes.take(MARKS_MAX).collect(), tokens: (block_tokens * STRIDE as f64).max(0.0) as u64 }
    }
}

#[derive(Clone, Copy, Debug)]
struct Pin {
    requests: u32,
    tokens: u64,
}

/// What is pinned on one pod.
#[derive(Debug)]
pub(super) struct Pins {
    requests: HashMap<u64, Pin, BuildHasherDefault<AsIs>>,
    shared: u64,
    uses: LruCache<u64, (), BuildHasherDefault<AsIs>>,
}

impl Default for Pins {
    fn default() -> Self {
        Self {
            requests: HashMap::default(),
            shared: 0,
            uses: LruCache::with_hasher(USES_MAX, BuildHasherDefault::default()),
        }
    }
}

impl Pins {
    /// A request with these marks was dispatched.
    pub(super) fn add(&mut self, marks: &Marks) {
        for hash in &marks.hashes {
            let pin = self.requests.entry(*hash).or_insert(Pin { requests: 0, tokens: marks.tokens });
            if pin.requests > 0 {
                self.shared += pin.tokens;
            }
            pin.requests += 1;
        }
    }

    /// It ended.
    pub(super) fn remove(&mut self, marks: &Marks) {
        for hash in &marks.hashes {
            let Some(pin) = self.requests.get_mut(hash) else { continue };
            pin.requests = pin.requests.saturating_sub(1);
            if pin.requests > 0 {
                self.shared = self.shared.saturating_sub(pin.tokens);
            } else {
                self.requests.remove(hash);
            }
        }
    }

    /// Tokens counted more than once if requests are added up.
    pub(super) const fn shared(&self) -> Tokens {
        Tokens(self.shared)
    }

    /// Tokens of a prompt with these marks that are pinned already.
    pub(super) fn pinned(&self, marks: &Marks) -> Tokens {
        let depth = marks.hashes.partition_point(|hash| self.requests.contains_key(hash));
        Tokens(depth as u64 * marks.tokens)
    }

    /// The pod is going to need `key`.
    pub(super) fn uses(&mut self, key: u64) {
        self.uses.put(key, ());
    }

    /// Whether it needed `key` not long ago.
    pub(super) fn has_used(&self, key: u64) -> bool {
        self.uses.contains(&key)
    }

    /// A new process: nothing was loaded.
    pub(super) fn forget_uses(&mut self) {
        self.uses.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(shared: u64, own: u64, name: u64) -> Marks {
        let blocks: Vec<u64> = (0..shared).chain((0..own).map(|block| name << 32 | block)).collect();
        Marks::of(&blocks, 64.0)
    }

    #[test]
    fn a_shared_prefix_counts_once_while_anybody_needs_it() {
        let mut pins = Pins::default();
        let (one, two) = (marks(64, 32, 1), marks(64, 40, 2));
        pins.add(&one);
        assert_eq!((pins.shared(), pins.pinned(&two)), (Tokens(0), Tokens(4_096)));
        pins.add(&two);
        assert_eq!(pins.shared(), Tokens(4_096));
        pins.remove(&one);
        assert_eq!((pins.shared(), pins.pinned(&one)), (Tokens(0), Tokens(4_096)));
        pins.remove(&two);
        assert_eq!((pins.pinned(&one), pins.requests.len()), (Tokens(0), 0));
        pins.remove(&two);
        assert_eq!(pins.pinned(&marks(0, 0, 3)), Tokens(0));
    }

    #[test]
    fn uses_are_remembered_within_bounds() {
        let mut pins = Pins::default();
        (0..1_000).for_each(|key| pins.uses(key));
        assert_eq!((pins.has_used(999), pins.has_used(1)), (true, false));
        pins.forget_uses();
        assert!(!pins.has_used(999));
    }
}
