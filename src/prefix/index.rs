//! Which pod has seen which prompts, as far as the gate knows from its own traffic: an estimate, bounded per pod by what
//! the pod can hold and in all by memory.
//!
//! A prompt is claimed for a pod at dispatch (so that the next one like it goes there too), confirmed at the first token,
//! withdrawn if the pod failed. What usage says at the end is learnt: exact tokens of that prompt, bytes per token of the
//! model, and what part of an expected hit the pod really had. Readers share a lock; every write is a few runs long.
use std::collections::HashMap;

use parking_lot::RwLock;

use crate::base::{PodId, Tokens};

use super::Fingerprint;
use super::fingerprint::{BLOCK_BYTES, Chain};
use super::ratio::{PRIOR, Ratio};
use super::run::{Exact, State, Tree};

/// Most models whose ratios are kept; further ones use the prior.
const MODELS_MAX: usize = 1_024;

/// Bounds of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most memory the index may use, in bytes (its own estimate of live bytes).
    pub bytes_max: usize,
    /// Capacity assumed for a pod that has not told its own.
    pub pod_tokens: Tokens,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, pod_tokens: Tokens(1 << 20) }
    }
}

/// How much of a prompt each pod is thought to hold. Pods that hold nothing are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Pod and depth in tokens, sorted by pod.
    pub depths: Vec<(PodId, Tokens)>,
    /// Estimated tokens of the whole request's prompts; exact for token ids and for a prompt seen before.
    pub prompt_tokens: Tokens,
}

impl Hits {
    /// Depth for one pod; 0 if it holds nothing.
    pub fn depth(&self, pod: PodId) -> Tokens {
        let found = self.depths.binary_search_by_key(&pod, |(holder, _)| *holder);
        found.ok().and_then(|at| self.depths.get(at)).map_or(Tokens(0), |(_, depth)| *depth)
    }
}

/// A prompt booked on a pod at dispatch. Give it back with [`Index::confirm`] or [`Index::withdraw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The pod.
    pub pod: PodId,
    /// What the pod was thought to hold before, undiscounted.
    pub expected: Tokens,
    /// Which life of the pod's entry this belongs to: a wipe ends it.
    epoch: u64,
}

/// Size of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Distinct blocks.
    pub blocks: usize,
    /// Estimated live bytes.
    pub bytes: usize,
    /// Pods with entries.
    pub pods: usize,
    /// Blocks evicted so far, each pod's on its own: for room of the pod, or of the index.
    pub evicted_blocks: u64,
}

#[derive(Clone, Copy, Debug)]
struct Room {
    capacity: Tokens,
    /// The pod hits whole blocks of this many tokens; 1 if unknown.
    block: Tokens,
    epoch: u64,
}

#[derive(Debug, Default)]
struct Inner {
    tree: Tree,
    rooms: HashMap<PodId, Room>,
    ratios: HashMap<u64, Ratio>,
    wipes: u64,
    evicted: u64,
}

/// The index. Shared by all request tasks.
#[derive(Debug, Default)]
pub struct Index {
    limits: Limits,
    inner: RwLock<Inner>,
}

impl Index {
    /// An empty index.
    pub fn new(limits: Limits) -> Self {
        Self { limits, inner: RwLock::default() }
    }

    /// Depth for every pod that holds any of the prompt, and the estimate of the prompt's tokens.
    pub fn lookup(&self, prompt: &Fingerprint) -> Hits {
        let inner = self.inner.read();
        let ratio = inner.ratio(prompt);
        let mut hits = Hits::default();
        for chain in &prompt.chains {
            let (depths, exact) = inner.tree.depths(&chain.blocks);
            let tokens = estimate(prompt, chain, exact, ratio);
            hits.prompt_tokens += tokens;
            for (pod, depth) in depths {
                let kept = held(chain, tokens, depth, inner.block(pod)).0 as f64 * ratio.kept();
                match hits.depths.binary_search_by_key(&pod, |(known, _)| *known) {
                    Ok(at) => hits.depths.iter_mut().skip(at).take(1).for_each(|hit| hit.1 += Tokens(kept as u64)),
                    Err(at) => hits.depths.insert(at, (pod, Tokens(kept as u64))),
                }
            }
        }
        if let Some(exact) = prompt.exact_tokens {
            hits.prompt_tokens = Tokens(exact);
        }
        hits
    }

    /// Books the prompt on a pod at dispatch: lookups see it there from now on.
    pub fn claim(&self, prompt: &Fingerprint, pod: PodId) -> Claim {
        let mut inner = self.inner.write();
        let epoch = inner.room(pod, &self.limits).epoch;
        let ratio = inner.ratio(prompt);
        let mut expected = Tokens(0);
        for chain in &prompt.chains {
            let (depths, exact) = inner.tree.depths(&chain.blocks);
            let depth = depths.binary_search_by_key(&pod, |(known, _)| *known).ok().and_then(|at| depths.get(at));
            let tokens = estimate(prompt, chain, exact, ratio);
            expected += depth.map_or(Tokens(0), |(_, depth)| held(chain, tokens, *depth, inner.block(pod)));
            inner.tree.insert(&chain.blocks, pod, State::Claimed);
        }
        self.fit(&mut inner, prompt, pod);
        Claim { pod, expected, epoch }
    }

    /// The pod has the prompt: its first token was seen.
    pub fn confirm(&self, prompt: &Fingerprint, claim: Claim) {
        let mut inner = self.inner.write();
        if inner.is_current(claim) {
            for chain in &prompt.chains {
                inner.tree.insert(&chain.blocks, claim.pod, State::Confirmed);
            }
            self.fit(&mut inner, prompt, claim.pod);
        }
    }

    /// The pod failed before its first token: what only this claim promised is forgotten.
    pub fn withdraw(&self, prompt: &Fingerprint, claim: Claim) {
        let mut inner = self.inner.write();
        if inner.is_current(claim) {
            for chain in &prompt.chains {
                inner.tree.withdraw(&chain.blocks, claim.pod);
            }
        }
    }

    /// What the pod's usage said at the end; `cached` is `None` if it does not tell.
    pub fn learn(&self, prompt: &Fingerprint, claim: Claim, prompt_tokens: Tokens, cached: Option<Tokens>) {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        if inner.ratios.len() < MODELS_MAX || inner.ratios.contains_key(&prompt.model) {
            let ratio = inner.ratios.entry(prompt.model).or_default();
            if prompt.exact_tokens.is_none() {
                ratio.learn(prompt.bytes, prompt_tokens.0);
            }
            if let Some(cached) = cached {
                ratio.learn_hit(claim.expected.0, cached.0);
            }
        }
        if let [chain] = prompt.chains.as_slice() {
            inner.tree.note(&chain.blocks, chain.bytes, prompt_tokens.0);
        }
    }

    /// Forgets what a pod holds: it restarted, slept or left. Open claims on it come to nothing.
    pub fn wipe(&self, pod: PodId) {
        let mut inner = self.inner.write();
        inner.wipes += 1;
        let epoch = inner.wipes;
        inner.tree.wipe(pod);
        if let Some(room) = inner.rooms.get_mut(&pod) {
            room.epoch = epoch;
        }
    }

    /// Forgets pods that left for good, their capacities included. An open claim of such a pod comes to nothing.
    pub fn keep(&self, is_there: impl Fn(PodId) -> bool) {
        let gone: Vec<PodId> = {
            let inner = self.inner.read();
            let known = inner.rooms.keys().chain(inner.tree.pods().keys());
            known.copied().filter(|pod| !is_there(*pod)).collect()
        };
        for pod in gone {
            self.wipe(pod);
            self.inner.write().rooms.remove(&pod);
        }
    }

    /// Sets what a pod can hold and its cache block size, both in tokens (`vllm:cache_config_info`).
    pub fn set_capacity(&self, pod: PodId, capacity: Tokens, block: Tokens) {
        let mut inner = self.inner.write();
        let room = inner.room(pod, &self.limits);
        *room = Room { capacity, block: Tokens(block.0.max(1)), epoch: room.epoch };
    }

    /// Size now.
    pub fn stats(&self) -> Stats {
        let inner = self.inner.read();
        Stats {
            blocks: inner.tree.blocks(),
            bytes: inner.tree.bytes(),
            pods: inner.tree.pods().len(),
            evicted_blocks: inner.evicted,
        }
    }

    /// Blocks a pod is thought to hold, over all prompts.
    pub fn pod_blocks(&self, pod: PodId) -> u64 {
        self.inner.read().tree.pods().get(&pod).map_or(0, |holding| holding.blocks)
    }

    /// Evicts until the pod is within its capacity and the index within its memory.
    fn fit(&self, inner: &mut Inner, prompt: &Fingerprint, pod: PodId) {
        let bytes_per_token = inner.ratio(prompt).bytes_per_token();
        let capacity = inner.room(pod, &self.limits).capacity.0 as f64;
        let keep = (capacity * bytes_per_token / BLOCK_BYTES as f64) as u64;
        inner.evicted += inner.tree.evict(pod, keep);
        while inner.tree.bytes() > self.limits.bytes_max {
            let largest = inner.tree.pods().iter().max_by_key(|(pod, holding)| (holding.blocks, **pod));
            let Some((pod, blocks)) = largest.map(|(pod, holding)| (*pod, holding.blocks)) else { break };
            let evicted = inner.tree.evict(pod, blocks - blocks.div_ceil(16));
            inner.evicted += evicted;
            if evicted == 0 {
                break;
            }
        }
    }
}

impl Inner {
    fn room(&mut self, pod: PodId, limits: &Limits) -> &mut Room {
        let epoch = self.wipes;
        self.rooms.entry(pod).or_insert(Room { capacity: limits.pod_tokens, block: Tokens(1), epoch })
    }

    fn is_current(&self, claim: Claim) -> bool {
        self.rooms.get(&claim.pod).is_some_and(|room| room.epoch == claim.epoch)
    }

    fn block(&self, pod: PodId) -> Tokens {
        self.rooms.get(&pod).map_or(Tokens(1), |room| room.block)
    }

    /// What is known of the model; a prompt of token ids has exactly four bytes per token.
    fn ratio(&self, prompt: &Fingerprint) -> Ratio {
        let known = self.ratios.get(&prompt.model).copied().unwrap_or_default();
        if prompt.exact_tokens.is_some() { known.with_bytes_per_token(PRIOR) } else { known }
    }
}

/// Tokens of one prompt: counted from the deepest exact usage on its way, if there is one.
fn estimate(prompt: &Fingerprint, chain: &Chain, exact: Option<Exact>, ratio: Ratio) -> Tokens {
    let by_bytes = |bytes: f64| bytes / ratio.bytes_per_token();
    let tokens = match exact.filter(|_| prompt.exact_tokens.is_none()) {
        Some(exact) => exact.tokens as f64 + by_bytes(chain.bytes as f64 - exact.bytes as f64),
        None => by_bytes(chain.bytes as f64),
    };
    Tokens(tokens.max(1.0) as u64)
}

/// Tokens of a hit of `depth` blocks, in whole blocks of the pod; the last token of a prompt is always computed.
fn held(chain: &Chain, tokens: Tokens, depth: u32, block: Tokens) -> Tokens {
    let part = f64::from(depth) * BLOCK_BYTES as f64 / (chain.bytes.max(1)) as f64;
    let hit = ((tokens.0 as f64 * part) as u64).min(tokens.0.saturating_sub(1));
    Tokens(hit - hit % block.0.max(1))
}

#[cfg(test)]
impl Index {
    /// Checks every invariant of the tree inside.
    pub(super) fn assert_sound(&self) {
        self.inner.read().tree.assert_sound();
    }
}
