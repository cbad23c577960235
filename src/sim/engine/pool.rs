//! KV blocks and the prefix cache, as vLLM's block pool keeps them.
//!
//! A block is held by sequences (counted) or free; a free block may still carry content under its hash and is then found
//! again by `lookup`. Free blocks form one list: taken from the front, given back at the end, a sequence's last block
//! first, so that leaves go before the blocks they hang on (leaf-first LRU). All operations are O(1) per block.
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Hashes of blocks are already well mixed; hashing them again would be waste.
#[derive(Default)]
struct Mixed(u64);

impl Hasher for Mixed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = (self.0 << 8) | u64::from(byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    hash: Option<u64>,
    /// Counts up whenever the block is given to somebody new, who overwrites it.
    generation: u64,
    holders: u32,
    before: u32,
    after: u32,
}

/// All blocks of an engine. Slot 0 is the head of the ring of free blocks; blocks are numbered from 1.
pub(super) struct BlockPool {
    slots: Vec<Slot>,
    by_hash: HashMap<u64, u32, BuildHasherDefault<Mixed>>,
    free: u32,
    nowhere: Slot,
}

impl BlockPool {
    /// `count` free, empty blocks.
    pub(super) fn new(count: u32) -> Self {
        let ring = u64::from(count) + 1;
        let slots = (0..ring)
            .map(|at| Slot {
                hash: None,
                generation: 0,
                holders: 0,
                before: ((at + ring - 1) % ring) as u32,
                after: ((at + 1) % ring) as u32,
            })
            .collect();
        Self { slots, by_hash: HashMap::default(), free: count, nowhere: Slot::default() }
    }

    /// Blocks nobody holds.
    pub(super) fn free(&self) -> u32 {
        self.free
    }

    /// Blocks that carry content which can be found.
    #[cfg(test)]
    pub(super) fn findable(&self) -> usize {
        self.by_hash.len()
    }

    /// Takes the longest run of cached blocks for these hashes, if besides them `total - run` blocks can be had.
    /// Appends them to `held` and returns the length of the run; `None` (and no change) if there is no room.
    pub(super) fn take_cached(
        &mut self,
        hashes: impl Iterator<Item = u64>,
        total: usize,
        held: &mut Vec<u32>,
    ) -> Option<usize> {
        let mut idle = 0;
        let start = held.len();
        for hash in hashes {
            let Some(&block) = self.by_hash.get(&hash) else { break };
            idle += usize::from(self.slot(block).holders == 0);
            held.push(block);
        }
        let run = held.len() - start;
        if (self.free as usize) < idle + total.saturating_sub(run) {
            held.truncate(start);
            return None;
        }
        for &block in held.iter().skip(start) {
            if self.slot(block).holders == 0 {
                self.unlink(block);
            }
            self.slot_mut(block).holders += 1;
        }
        Some(run)
    }

    /// Takes `count` blocks, dropping the content of the least recently used. False (and no change) if there are too few.
    pub(super) fn take(&mut self, count: usize, held: &mut Vec<u32>) -> bool {
        if (self.free as usize) < count {
            return false;
        }
        for _ in 0..count {
            let block = self.slot(0).after;
            self.unlink(block);
            let slot = self.slot_mut(block);
            slot.holders = 1;
            slot.generation += 1;
            if let Some(hash) = slot.hash.take() {
                self.by_hash.remove(&hash);
            }
            held.push(block);
        }
        true
    }

    /// How often a block was overwritten.
    pub(super) fn generation(&self, block: u32) -> u64 {
        self.slot(block).generation
    }

    /// Length of the run of these hashes that is cached.
    pub(super) fn run(&self, hashes: &[u64]) -> usize {
        hashes.iter().take_while(|hash| self.by_hash.contains_key(hash)).count()
    }

    /// Makes a held block findable. A second block of the same content stays unfindable.
    pub(super) fn publish(&mut self, block: u32, hash: u64) {
        if self.slot(block).hash.is_none() && !self.by_hash.contains_key(&hash) {
            self.by_hash.insert(hash, block);
            self.slot_mut(block).hash = Some(hash);
        }
    }

    /// Gives blocks back, the last first.
    pub(super) fn give_back(&mut self, held: &mut Vec<u32>) {
        while let Some(block) = held.pop() {
            let slot = self.slot_mut(block);
            slot.holders = slot.holders.saturating_sub(1);
            if slot.holders == 0 {
                self.link_last(block);
            }
        }
    }

    fn slot(&self, at: u32) -> &Slot {
        self.slots.get(at as usize).unwrap_or(&self.nowhere)
    }

    fn slot_mut(&mut self, at: u32) -> &mut Slot {
        self.slots.get_mut(at as usize).unwrap_or(&mut self.nowhere)
    }

    fn unlink(&mut self, block: u32) {
        let Slot { before, after, .. } = *self.slot(block);
        self.slot_mut(before).after = after;
        self.slot_mut(after).before = before;
        self.free -= 1;
    }

    fn link_last(&mut self, block: u32) {
        let last = self.slot(0).before;
        self.slot_mut(last).after = block;
        self.slot_mut(0).before = block;
        let slot = self.slot_mut(block);
        slot.before = last;
        slot.after = 0;
        self.free += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn taken(pool: &mut BlockPool, hashes: &[u64]) -> Vec<u32> {
        let mut held = Vec::new();
        let run = pool.take_cached(hashes.iter().copied(), hashes.len(), &mut held).unwrap();
        assert!(pool.take(hashes.len() - run, &mut held));
        for (&block, &hash) in held.iter().zip(hashes) {
            pool.publish(block, hash);
        }
        held
    }

    #[test]
    fn leaves_are_dropped_before_the_blocks_they_hang_on() {
        let mut pool = BlockPool::new(4);
        let mut held = taken(&mut pool, &[11, 12, 13, 14]);
        assert_eq!(pool.free(), 0);
        pool.give_back(&mut held);
        let mut other = taken(&mut pool, &[21, 22]);
        pool.give_back(&mut other);
        let mut again = Vec::new();
        assert_eq!(pool.take_cached([11, 12, 13, 14].into_iter(), 2, &mut again), Some(2));
        assert_eq!(pool.findable(), 4);
    }

    #[test]
    fn no_room_changes_nothing() {
        let mut pool = BlockPool::new(3);
        let mut first = taken(&mut pool, &[1, 2]);
        pool.give_back(&mut first);
        let mut held = taken(&mut pool, &[9]);
        let mut none = Vec::new();
        assert_eq!(pool.take_cached([1, 2].into_iter(), 3, &mut none), None);
        assert!(!pool.take(3, &mut none) && none.is_empty());
        assert_eq!(pool.free(), 2);
        pool.give_back(&mut held);
        assert_eq!(pool.free(), 3);
    }

    #[test]
    fn shared_blocks_are_free_when_the_last_holder_leaves() {
        let mut pool = BlockPool::new(2);
        let mut one = taken(&mut pool, &[5, 6]);
        let mut two = taken(&mut pool, &[5, 6]);
        assert_eq!(one, two);
        pool.give_back(&mut one);
        assert_eq!(pool.free(), 0);
        pool.give_back(&mut two);
        assert_eq!(pool.free(), 2);
    }
}
