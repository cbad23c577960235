//! What one pooled cache could have hit for the same requests in the same order: least recently used, clairvoyant (Belady),
//! and without bound. The pool has the fleet's KV less what running requests held when each request arrived. A prompt is in
//! the pool from its arrival on, an answer from its end on, and only if it is sent back.
//!
//! Blocks are looked at in strides, so a hit is a multiple of [`GRAIN_TOKENS`]: at most that much per request too low.
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use super::record::{Log, Record};

/// Tokens of the blocks that oracles look at.
pub(crate) const GRAIN_TOKENS: u32 = 64;

/// Hit rates of the oracles: hit prompt tokens over prompt tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Oracle {
    pub(crate) lru: f64,
    pub(crate) belady: f64,
    pub(crate) infinite: f64,
}

/// Every so many-th block hash: what oracles keep of a prompt.
pub(crate) fn strided(blocks: &[u64], block_tokens: u32) -> Arc<[u64]> {
    let stride = stride(block_tokens);
    blocks.iter().skip(stride - 1).step_by(stride).copied().collect()
}

fn stride(block_tokens: u32) -> usize {
    (GRAIN_TOKENS / block_tokens.max(1)).max(1) as usize
}

/// One use of the pool: blocks by number, and how many blocks it may hold then.
struct Use {
    blocks: Vec<u32>,
    room: usize,
    /// Prompt tokens; `None` for an answer, which is only put in.
    prompt_tokens: Option<u64>,
}

impl Oracle {
    /// Oracles over the requests of a log.
    pub(crate) fn of(log: &Log, block_tokens: u32) -> Self {
        let grain = u64::from(block_tokens.max(1)) * stride(block_tokens) as u64;
        let (uses, blocks) = uses(log, stride(block_tokens) as u64);
        let prompts: u64 = uses.iter().filter_map(|one| one.prompt_tokens).sum();
        let rate = |hits: u64| hits as f64 / prompts.max(1) as f64;
        Self {
            lru: rate(lru(&uses, blocks, grain)),
            belady: rate(belady(&uses, blocks, grain)),
            infinite: rate(infinite(&uses, blocks, grain)),
        }
    }
}

/// All uses in order of time, with blocks numbered from 0.
fn uses(log: &Log, stride: u64) -> (Vec<Use>, usize) {
    let mut order: Vec<(u64, u8, usize)> = Vec::new();
    for (at, record) in log.records.iter().enumerate().filter(|(_, record)| !record.is_foreign) {
        order.push((record.arrived, 1, at));
        if record.after.is_some() {
            order.push((record.ended, 0, at));
        }
    }
    order.sort_unstable();
    let mut numbers: HashMap<u64, u32> = HashMap::new();
    let mut pinned = 0;
    let uses = order.into_iter().filter_map(|(_, kind, at)| {
        let record: &Record = log.records.get(at)?;
        pinned = if kind == 1 { record.pinned } else { pinned };
        let after = if kind == 0 { record.after.as_deref() } else { None };
        let all = record.blocks.iter().flat_map(|blocks| blocks.iter()).chain(after.into_iter().flatten());
        let blocks = all.map(|hash| {
            let next = numbers.len() as u32;
            *numbers.entry(*hash).or_insert(next)
        });
        let blocks = blocks.collect();
        let room = (log.totals.blocks.saturating_sub(pinned) / stride) as usize;
        Some(Use { blocks, room, prompt_tokens: (kind == 1).then_some(record.prompt_tokens) })
    });
    let uses = uses.collect();
    (uses, numbers.len())
}

/// Tokens hit by a run of blocks; the last token is always computed.
fn hit(one: &Use, run: usize, grain: u64) -> u64 {
    one.prompt_tokens.map_or(0, |tokens| (run as u64 * grain).min(tokens.saturating_sub(1)))
}

fn run(one: &Use, is_in: impl Fn(u32) -> bool) -> usize {
    one.blocks.iter().take_while(|block| is_in(**block)).count()
}

fn infinite(uses: &[Use], blocks: usize, grain: u64) -> u64 {
    let mut seen = vec![false; blocks];
    let mut hits = 0;
    for one in uses {
        hits += hit(one, run(one, |block| seen.get(block as usize) == Some(&true)), grain);
        for block in &one.blocks {
            if let Some(seen) = seen.get_mut(*block as usize) {
                *seen = true;
            }
        }
    }
    hits
}

/// Evicts by the least value of `rank`, which only a later use of the block changes; stale entries of the heap are skipped.
struct Cache {
    rank: Vec<Option<u64>>,
    heap: BinaryHeap<Reverse<(u64, u32)>>,
    held: usize,
}

impl Cache {
    fn new(blocks: usize) -> Self {
        Self { rank: vec![None; blocks], heap: BinaryHeap::new(), held: 0 }
    }

    fn has(&self, block: u32) -> bool {
        self.rank.get(block as usize).is_some_and(Option::is_some)
    }

    fn put(&mut self, block: u32, rank: u64) {
        let Some(place) = self.rank.get_mut(block as usize) else { return };
        self.held += usize::from(place.is_none());
        *place = Some(rank);
        self.heap.push(Reverse((rank, block)));
    }

    fn shrink(&mut self, room: usize) {
        while self.held > room {
            let Some(Reverse((rank, block))) = self.heap.pop() else { return };
            let Some(place) = self.rank.get_mut(block as usize).filter(|place| **place == Some(rank)) else { continue };
            *place = None;
            self.held -= 1;
        }
    }
}

fn lru(uses: &[Use], blocks: usize, grain: u64) -> u64 {
    let mut cache = Cache::new(blocks);
    let (mut hits, mut clock) = (0, 0);
    for one in uses {
        hits += hit(one, run(one, |block| cache.has(block)), grain);
        for block in one.blocks.iter().rev() {
            clock += 1;
            cache.put(*block, clock);
        }
        cache.shrink(one.room);
    }
    hits
}

/// Evicts what is used again last; of equals the deepest.
fn belady(uses: &[Use], blocks: usize, grain: u64) -> u64 {
    const NEVER: u64 = u32::MAX as u64;
    let mut next = vec![NEVER; blocks];
    let mut later: Vec<Vec<u32>> = Vec::with_capacity(uses.len());
    for (at, one) in uses.iter().enumerate().rev() {
        let mut nexts = Vec::with_capacity(one.blocks.len());
        for block in &one.blocks {
            if let Some(place) = next.get_mut(*block as usize) {
                nexts.push(*place as u32);
                *place = at as u64;
            }
        }
        later.push(nexts);
    }
    let mut cache = Cache::new(blocks);
    let mut hits = 0;
    for (one, nexts) in uses.iter().zip(later.iter().rev()) {
        hits += hit(one, run(one, |block| cache.has(block)), grain);
        for (depth, (block, next)) in one.blocks.iter().zip(nexts).enumerate() {
            // The heap gives the least first: later use and greater depth rank lower.
            let rank = ((NEVER - u64::from(*next)) << 32) | (NEVER - (depth as u64).min(NEVER));
            cache.put(*block, rank);
        }
        cache.shrink(one.room);
    }
    hits
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::lab::record::Totals;

    fn oracle(prompts: &[&[u64]], room: u64) -> Oracle {
        let records = prompts.iter().enumerate().map(|(at, blocks)| Record {
            arrived: at as u64,
            prompt_tokens: 1 + 64 * blocks.len() as u64,
            blocks: Some((*blocks).into()),
            ..Record::default()
        });
        let totals = Totals { blocks: room, ..Totals::default() };
        Oracle::of(&Log { records: records.collect(), totals, ..Log::default() }, 64)
    }

    #[test]
    fn the_clairvoyant_keeps_what_comes_back_and_the_unbounded_everything() {
        let prompts: [&[u64]; 6] = [&[1, 2], &[3, 4], &[5, 6], &[1, 2], &[3, 4], &[1, 2]];
        let tokens = 6.0 * 129.0;
        let all = oracle(&prompts, 100);
        assert!((all.infinite - 6.0 * 64.0 / tokens).abs() < 1e-9);
        assert!((all.lru - all.infinite).abs() < 1e-9 && (all.belady - all.infinite).abs() < 1e-9);
        let tight = oracle(&prompts, 4);
        assert!(tight.lru < 1e-9 + 2.0 * 64.0 / tokens, "{tight:?}");
        assert!((tight.belady - 6.0 * 64.0 / tokens).abs() < 1e-9, "{tight:?}");
    }
}
