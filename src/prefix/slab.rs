//! Where runs live: pieces of fixed size that never move, so that growing costs no copy of all that is there, and the map
//! from the first block of a run to the run, in parts for the same reason.
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::run::Run;

const CHUNK: usize = 512;
const SHARDS: usize = 64;

/// Block hashes are random already and hash as themselves; small numbers are spread.
#[derive(Default)]
pub(super) struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
    fn write_u32(&mut self, number: u32) {
        self.0 = u64::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }
}

/// Map from what is random already or small.
pub(super) type Map<K, V> = HashMap<K, V, BuildHasherDefault<AsIs>>;

/// All runs, by number.
#[derive(Debug, Default)]
pub(super) struct Slab {
    chunks: Vec<Box<[Run]>>,
    free: Vec<u32>,
    /// Numbers given so far.
    end: u32,
}

impl Slab {
    pub(super) fn get(&self, id: u32) -> Option<&Run> {
        self.chunks.get(id as usize / CHUNK)?.get(id as usize % CHUNK)
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut Run> {
        self.chunks.get_mut(id as usize / CHUNK)?.get_mut(id as usize % CHUNK)
    }

    /// Puts a run somewhere and returns its number.
    pub(super) fn add(&mut self, run: Run) -> u32 {
        let id = self.free.pop().unwrap_or_else(|| {
            self.end += 1;
            self.end - 1
        });
        if id as usize / CHUNK == self.chunks.len() {
            self.chunks.push((0..CHUNK).map(|_| Run::default()).collect());
        }
        if let Some(place) = self.get_mut(id) {
            *place = run;
        }
        id
    }

    /// Takes a run out; its number may be given again.
    pub(super) fn take(&mut self, id: u32) -> Run {
        let run = self.get_mut(id).map(std::mem::take).unwrap_or_default();
        self.free.push(id);
        run
    }

    /// Numbers are below this.
    pub(super) const fn end(&self) -> u32 {
        self.end
    }

    /// Runs there are.
    pub(super) const fn len(&self) -> usize {
        self.end as usize - self.free.len()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &Run)> {
        (0..self.end).filter(|id| !self.free.contains(id)).filter_map(|id| Some((id, self.get(id)?)))
    }
}

/// A run by its first block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) run: u32,
    /// Blocks of the run. Known here too, so that a walk can fetch the next run before this one has come from memory.
    pub(super) len: u16,
}

/// The run that begins with a block.
#[derive(Debug, Default)]
pub(super) struct Heads(Vec<Map<u64, Head>>);

impl Heads {
    // The map takes its bits from both ends of a hash.
    const fn shard(head: u64) -> usize {
        (head >> 40) as usize % SHARDS
    }

    pub(super) fn get(&self, head: u64) -> Option<Head> {
        self.0.get(Self::shard(head))?.get(&head).copied()
    }

    /// Enters a run, or its new length.
    pub(super) fn set(&mut self, id: u32, run: &Run) {
        if self.0.is_empty() {
            self.0.resize_with(SHARDS, Map::default);
        }
        let Some(head) = run.blocks.first() else { return };
        if let Some(shard) = self.0.get_mut(Self::shard(*head)) {
            shard.insert(*head, Head { run: id, len: run.len() });
        }
    }

    pub(super) fn remove(&mut self, head: u64) {
        if let Some(shard) = self.0.get_mut(Self::shard(head)) {
            shard.remove(&head);
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Map::len).sum()
    }
}
