//! Which pod has seen which prompts, as far as the gate knows from its own traffic: an estimate, bounded per pod by what
//! the pod can hold and in all by memory.
//!
//! A prompt is claimed for a pod at dispatch (so that the next one like it goes there too), confirmed at the first token,
//! withdrawn if the pod failed, extended by its answer. What usage says at the end is learnt: exact tokens of that prompt,
//! bytes per token of the model, and whether the believed hit came true (`truth`). Readers share a lock; every
//! write is a few runs long.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;

use crate::base::{PodId, Tokens};

use super::extension::Answered;
use super::fingerprint::{BLOCK_BYTES, Fingerprint};
use super::hits::Hits;
use super::ratio::{PRIOR, Ratio};
use super::scale::Scale;
use super::slab::Map;
use super::tree::{State, Tree};
use super::truth::{Basis, Verdict, judge, told};

/// Most models whose ratios are kept; further ones use the prior.
const MODELS_MAX: usize = 1_024;
/// Most prompts of one request that are looked up; the others count as not held.
const LOOKED_UP_MAX: usize = 128;

/// Bounds of the index.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Most memory the index may use, in bytes (its own estimate of live bytes).
    pub bytes_max: usize,
    /// Capacity assumed for a pod that has not told its own.
    pub pod_tokens: Tokens,
    /// Part of the index's blocks above which one tenant's go first when room is needed, 0 to 1.
    pub tenant_share: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, pod_tokens: Tokens(1 << 20), tenant_share: 0.5 }
    }
}

/// A prompt booked on a pod at dispatch. Give it back with [`Index::confirm`] or [`Index::withdraw`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The pod.
    pub pod: PodId,
    /// What the pod was thought to hold before, undiscounted.
    pub expected: Tokens,
    basis: Basis,
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
    /// Blocks evicted so far, each pod's on its own: for room of the pod, or of the index, or because a pod said so.
    pub evicted_blocks: u64,
}

#[derive(Debug)]
struct Room {
    capacity: Tokens,
    /// The pod hits whole blocks of this many tokens; 1 if unknown.
    block: Tokens,
    /// Tokens of the capacity that other things than prompts take.
    pinned: AtomicU64,
    epoch: u64,
}

#[derive(Debug, Default)]
pub(super) struct Inner {
    pub(super) tree: Tree,
    rooms: Map<PodId, Room>,
    pub(super) ratios: HashMap<u64, Ratio>,
    wipes: u64,
    evicted: u64,
    /// Kept for its memory.
    scratch: Hits,
}

/// The index. Shared by all request tasks.
#[derive(Debug, Default)]
pub struct Index {
    limits: Limits,
    pub(super) inner: RwLock<Inner>,
}

impl Index {
    /// An empty index.
    pub fn new(limits: Limits) -> Self {
        Self { limits, inner: RwLock::default() }
    }

    /// Depth for every pod that holds any of the prompt, and the estimate of the prompt's tokens.
    pub fn lookup(&self, prompt: &Fingerprint) -> Hits {
        let mut hits = Hits::default();
        self.lookup_into(prompt, &mut hits);
        hits
    }

    /// The same into `hits`, whose memory is used again.
    pub fn lookup_into(&self, prompt: &Fingerprint, hits: &mut Hits) {
        let inner = self.inner.read();
        let ratio = inner.ratio(prompt);
        hits.clear();
        let mut total = Tokens(0);
        for (number, chain) in prompt.chains.iter().enumerate() {
            let looked_up = if number < LOOKED_UP_MAX { &chain.blocks[..] } else { &[] };
            inner.tree.path(looked_up, &mut hits.path);
            let bytes_per_token = ratio.bytes_per_token();
            hits.scale.set(&inner.tree, &hits.path, chain, bytes_per_token, prompt.exact_tokens.is_some());
            total += hits.scale.total();
            if prompt.skips_cache || hits.path.is_empty() {
                continue;
            }
            hits.gather(&inner.tree, number as u32);
            let scale = std::mem::take(&mut hits.scale);
            let mut last = None;
            for found in hits.found_mut().iter_mut().filter(|found| found.chain == number as u32) {
                let key = (found.held, inner.block(found.pod));
                // Most pods hold the same and have the same blocks.
                let (_, (hit, coming)) = last.filter(|(known, _)| *known == key).unwrap_or_else(|| {
                    let basis = Basis::new(chain, &scale, &key.0, key.1);
                    (key, basis.worth(&ratio))
                });
                last = Some((key, (hit, coming)));
                found.hit += hit;
                found.coming += coming;
            }
            hits.scale = scale;
        }
        hits.prompt_tokens = prompt.exact_tokens.map_or(total, Tokens);
    }

    /// Books the prompt on a pod at dispatch: lookups see it there from now on.
    pub fn claim(&self, prompt: &Fingerprint, pod: PodId) -> Claim {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        let epoch = inner.room(pod, &self.limits).epoch;
        let (expected, basis) = inner.basis(prompt, pod);
        let tenant = inner.tree.tenants.place(prompt.tenant);
        for chain in &prompt.chains {
            inner.tree.insert(&chain.blocks, pod, State::Claimed, tenant);
        }
        self.fit(inner, prompt, pod);
        Claim { pod, expected, basis, epoch }
    }

    /// The pod has the prompt: its first token was seen.
    pub fn confirm(&self, prompt: &Fingerprint, claim: Claim) {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        if inner.is_current(claim) {
            self.enter(inner, prompt, claim.pod);
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

    /// What the pod's usage said at the end; `cached` is `None` if it does not tell, or if it got KV from another pod. The
    /// prompt counts as used just now: this is when the pod lets go of it.
    pub fn learn(&self, prompt: &Fingerprint, claim: Claim, prompt_tokens: Tokens, cached: Option<Tokens>) {
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        let is_known = inner.ratios.len() < MODELS_MAX || inner.ratios.contains_key(&prompt.model);
        if is_known && prompt.exact_tokens.is_none() {
            inner.ratios.entry(prompt.model).or_default().learn(prompt.bytes, prompt_tokens.0);
        }
        if !inner.is_current(claim) {
            return;
        }
        self.enter(inner, prompt, claim.pod);
        let [chain] = prompt.chains.as_slice() else { return };
        inner.tree.note(&chain.blocks, chain.bytes, prompt_tokens.0);
        let Some(cached) = cached.filter(|_| !prompt.skips_cache) else { return };
        let part = cached.0 as f64 / prompt_tokens.0.max(1) as f64;
        let hit_blocks = (part * chain.bytes as f64 / BLOCK_BYTES as f64) as usize;
        let verdict = judge(&claim.basis, cached.0, inner.block(claim.pod));
        match verdict {
            Verdict::Evicted => {
                inner.evicted += inner.tree.evict_unused_since(claim.pod, claim.basis.touched);
            }
            Verdict::Kept { solid, tail } if is_known => {
                inner.ratios.entry(prompt.model).or_default().learn_kept(claim.basis.boundary, solid, tail);
            }
            _ => {}
        }
        if let Some(tokens) = told(&claim.basis, cached.0, inner.block(claim.pod))
            && let Some(shared) = chain.blocks.get(..claim.basis.solid_blocks as usize)
        {
            inner.tree.note_told(shared, chain.shared_bytes(shared.len() as u32), tokens);
        }
        inner.tree.prove(&chain.blocks, hit_blocks, claim.pod, verdict == Verdict::Evicted);
    }

    /// The answer ended well: the pod holds it behind its prompt. `tokens` are those of prompt and answer, if told.
    pub fn extend(&self, prompt: &Fingerprint, claim: Claim, answer: &Answered, tokens: Option<Tokens>) {
        let [chain] = prompt.chains.as_slice() else { return };
        let mut inner = self.inner.write();
        let inner = &mut *inner;
        if inner.is_current(claim) {
            let mut blocks = Vec::with_capacity(chain.blocks.len() + answer.blocks.len());
            blocks.extend_from_slice(&chain.blocks);
            blocks.extend_from_slice(&answer.blocks);
            let tenant = inner.tree.tenants.place(prompt.tenant);
            inner.tree.insert(&blocks, claim.pod, State::Generated, tenant);
            if let Some(tokens) = tokens {
                inner.tree.note(&blocks, answer.bytes, tokens.0);
            }
            self.fit(inner, prompt, claim.pod);
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
            inner.rooms.keys().copied().filter(|pod| !is_there(*pod)).collect()
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
        (room.capacity, room.block) = (capacity, Tokens(block.0.max(1)));
    }

    /// Sets what running requests take of a pod's capacity beside their prompts: the tokens they have generated so far.
    /// Counts from the next claim on. Nothing happens for a pod that was never claimed.
    pub fn set_pinned(&self, pod: PodId, pinned: Tokens) {
        if let Some(room) = self.inner.read().rooms.get(&pod) {
            room.pinned.store(pinned.0, Relaxed);
        }
    }

    /// Size now.
    pub fn stats(&self) -> Stats {
        let inner = self.inner.read();
        Stats {
            blocks: inner.tree.blocks(),
            bytes: inner.tree.bytes(),
            pods: inner.tree.pods.len(),
            evicted_blocks: inner.evicted,
        }
    }

    /// Blocks a pod is thought to hold, over all prompts.
    pub fn pod_blocks(&self, pod: PodId) -> u64 {
        self.inner.read().tree.pods.get(&pod).map_or(0, |holding| holding.blocks)
    }

    /// Enters the prompt as computed by the pod.
    pub(super) fn enter(&self, inner: &mut Inner, prompt: &Fingerprint, pod: PodId) {
        let tenant = inner.tree.tenants.place(prompt.tenant);
        for chain in &prompt.chains {
            inner.tree.insert(&chain.blocks, pod, State::Confirmed, tenant);
        }
        self.fit(inner, prompt, pod);
    }

    /// Evicts until the pod is within its capacity and the index within its memory.
    fn fit(&self, inner: &mut Inner, prompt: &Fingerprint, pod: PodId) {
        let bytes_per_token = inner.ratio(prompt).bytes_per_token();
        let room = inner.room(pod, &self.limits);
        // However much is pinned, what is dispatched now finds room or waits for it.
        let free = room.capacity.less(Tokens(room.pinned.load(Relaxed))).0.max(room.capacity.0 / 16);
        let keep = (free as f64 * bytes_per_token / BLOCK_BYTES as f64) as u64;
        inner.evicted += inner.tree.evict(pod, keep);
        self.fit_memory(inner);
    }

    pub(super) fn fit_memory(&self, inner: &mut Inner) {
        inner.evicted += inner.tree.reclaim(self.limits.bytes_max, self.limits.tenant_share);
    }
}

impl Inner {
    fn room(&mut self, pod: PodId, limits: &Limits) -> &mut Room {
        let epoch = self.wipes;
        self.rooms.entry(pod).or_insert_with(|| Room {
            capacity: limits.pod_tokens,
            block: Tokens(1),
            pinned: AtomicU64::new(0),
            epoch,
        })
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

    /// What the pod is believed to hold of the request's prompts; in detail if it is one.
    fn basis(&mut self, prompt: &Fingerprint, pod: PodId) -> (Tokens, Basis) {
        let (block, bytes_per_token) = (self.block(pod), self.ratio(prompt).bytes_per_token());
        let mut scratch = std::mem::take(&mut self.scratch);
        let (mut expected, mut basis) = (0, Basis::default());
        for chain in prompt.chains.iter().filter(|_| !prompt.skips_cache) {
            self.tree.path(&chain.blocks, &mut scratch.path);
            let place = self.tree.place(&scratch.path, pod);
            if place.held.depth == 0 {
                continue;
            }
            let scale: &mut Scale = &mut scratch.scale;
            scale.set(&self.tree, &scratch.path, chain, bytes_per_token, prompt.exact_tokens.is_some());
            let proven = scale.hit(place.held.proven, block);
            basis = Basis { proven, touched: place.touched, ..Basis::new(chain, scale, &place.held, block) };
            expected += basis.solid + basis.tail + basis.coming;
        }
        self.scratch = scratch;
        (Tokens(expected), basis)
    }
}

#[cfg(test)]
impl Index {
    /// Blocks of a prompt that a pod is thought to hold, whatever their length in tokens.
    pub(super) fn held_blocks(&self, prompt: &Fingerprint, pod: PodId) -> u32 {
        let (inner, mut path) = (self.inner.read(), Vec::new());
        prompt.chains.iter().fold(0, |sum, chain| {
            inner.tree.path(&chain.blocks, &mut path);
            sum + inner.tree.place(&path, pod).held.depth
        })
    }

    /// Checks every invariant of the tree inside.
    pub(super) fn assert_sound(&self) {
        self.inner.read().tree.assert_sound();
    }
}
