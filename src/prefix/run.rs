//! Runs of blocks: a path-compressed tree of prompts, and per pod how deep into each run it holds KV. Pure bookkeeping in
//! blocks; tokens, claims as the caller sees them and locks are in [`super::index`].
//!
//! Invariants, tested on random histories: a pod that holds any of a run holds all runs above it; a run exists only while
//! someone holds a part of it or has children; a pod's blocks never exceed its capacity after an insert. Eviction takes a
//! pod's least recently used run from its tail; since touching a run touches all above it, that is leaf first, as in vLLM.
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use crate::base::PodId;

/// Marks of exact usage kept per run; older ones make room.
const EXACT_MAX: usize = 4;
const NONE: u32 = u32::MAX;

/// Block hashes are random already: they hash as themselves.
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
}

/// Exact tokens of a prompt that ended in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exact {
    /// Blocks of the run it covers.
    depth: u32,
    /// Canonical bytes of that prompt.
    pub(super) bytes: u64,
    /// Its tokens.
    pub(super) tokens: u64,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    pod: PodId,
    /// Blocks of the run held or promised.
    depth: u32,
    /// Blocks of the run known to be there.
    confirmed: u32,
    /// Claims that reach beyond `confirmed`.
    claims: u32,
    /// When it was touched last, in inserts.
    touched: u64,
}

#[derive(Debug, Default)]
struct Run {
    blocks: Vec<u64>,
    /// Blocks above this run.
    start: u32,
    parent: u32,
    /// Place in the parent's list of children.
    slot: u32,
    children: Vec<u32>,
    holders: Vec<Holder>,
    exact: Vec<Exact>,
}

impl Run {
    fn len(&self) -> u32 {
        self.blocks.len() as u32
    }

    fn holder(&mut self, pod: PodId) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.pod == pod)
    }

    fn common(&self, blocks: &[u64]) -> u32 {
        self.blocks.iter().zip(blocks).take_while(|(own, other)| own == other).count() as u32
    }
}

/// What one pod holds.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Blocks, over all runs.
    pub(super) blocks: u64,
    /// Runs by recency, deeper first among equals.
    order: BTreeSet<(u64, Reverse<u32>, u32)>,
}

/// Is an insert a promise or a fact?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The request was dispatched.
    Claimed,
    /// The pod has answered.
    Confirmed,
}

/// The tree, and who holds what.
#[derive(Debug, Default)]
pub(super) struct Tree {
    runs: Vec<Run>,
    free: Vec<u32>,
    heads: HashMap<u64, u32, BuildHasherDefault<AsIs>>,
    pods: HashMap<PodId, Holding>,
    clock: u64,
    blocks: usize,
    entries: usize,
}

impl Tree {
    /// Distinct blocks.
    pub(super) const fn blocks(&self) -> usize {
        self.blocks
    }

    /// Estimated live bytes: blocks, runs with their place in the map, holders with their place in the order.
    pub(super) fn bytes(&self) -> usize {
        let runs = self.runs.len() - self.free.len();
        self.blocks * 8 + runs * (size_of::<Run>() + 32) + self.entries * (size_of::<Holder>() + 32)
    }

    /// What each pod holds.
    pub(super) const fn pods(&self) -> &HashMap<PodId, Holding> {
        &self.pods
    }

    /// Runs along a chain and how many blocks of each match.
    fn path(&self, chain: &[u64]) -> Vec<(u32, u32)> {
        let mut path = Vec::new();
        let (mut rest, mut parent) = (chain, NONE);
        while let Some(id) = rest.first().and_then(|head| self.heads.get(head)) {
            let Some(run) = self.runs.get(*id as usize).filter(|run| run.parent == parent) else { break };
            let matched = run.common(rest);
            path.push((*id, matched));
            if matched < run.len() {
                break;
            }
            parent = *id;
            rest = rest.get(matched as usize..).unwrap_or_default();
        }
        path
    }

    /// For every pod, sorted by pod: how many blocks of the chain it holds; and the deepest exact usage on the way.
    pub(super) fn depths(&self, chain: &[u64]) -> (Vec<(PodId, u32)>, Option<Exact>) {
        let mut depths: Vec<(PodId, u32)> = Vec::new();
        let mut exact = None;
        for (id, matched) in self.path(chain) {
            let Some(run) = self.runs.get(id as usize) else { break };
            for holder in &run.holders {
                let depth = run.start + holder.depth.min(matched);
                match depths.binary_search_by_key(&holder.pod, |(pod, _)| *pod) {
                    Ok(at) => depths.iter_mut().skip(at).take(1).for_each(|entry| entry.1 = depth),
                    Err(at) => depths.insert(at, (holder.pod, depth)),
                }
            }
            let here = run.exact.iter().filter(|exact| exact.depth <= matched).max_by_key(|exact| exact.depth);
            exact = here.copied().or(exact);
        }
        (depths, exact)
    }

    /// Makes `pod` hold the whole chain, as its most recently used.
    pub(super) fn insert(&mut self, chain: &[u64], pod: PodId, state: State) {
        self.clock += 1;
        let (mut rest, mut parent) = (chain, NONE);
        while let Some(head) = rest.first() {
            let (id, covered) = match self.heads.get(head).copied() {
                Some(id) if self.run(id).is_some_and(|run| run.parent == parent) => (id, self.fit(id, rest)),
                Some(_) => return,
                None => (self.branch(parent, rest), rest.len() as u32),
            };
            self.touch(id, pod, covered, state);
            rest = rest.get(covered.max(1) as usize..).unwrap_or_default();
            parent = id;
        }
    }

    fn run(&self, id: u32) -> Option<&Run> {
        self.runs.get(id as usize)
    }

    /// Makes a run and a chain that begin alike end alike: the run is split where they part, or, if nothing is below it,
    /// extended to the chain's end. Returns how many blocks they share now.
    fn fit(&mut self, id: u32, chain: &[u64]) -> u32 {
        let Some(run) = self.runs.get_mut(id as usize) else { return 0 };
        let common = run.common(chain);
        let beyond = chain.get(common as usize..).unwrap_or_default();
        if common < run.len() {
            if !beyond.is_empty() {
                self.split(id, common);
            }
            return common;
        }
        if run.children.is_empty() {
            run.blocks.extend_from_slice(beyond);
            self.blocks += beyond.len();
        }
        run.blocks.len().min(chain.len()) as u32
    }

    /// A new run below `parent`.
    fn branch(&mut self, parent: u32, blocks: &[u64]) -> u32 {
        self.blocks += blocks.len();
        let start = self.run(parent).map_or(0, |run| run.start + run.len());
        self.add(Run { blocks: blocks.to_vec(), start, parent, ..Run::default() })
    }

    fn add(&mut self, mut run: Run) -> u32 {
        let id = self.free.pop().unwrap_or(self.runs.len() as u32);
        if let Some(head) = run.blocks.first() {
            self.heads.insert(*head, id);
        }
        if let Some(parent) = self.runs.get_mut(run.parent as usize) {
            run.slot = parent.children.len() as u32;
            parent.children.push(id);
        }
        match self.runs.get_mut(id as usize) {
            Some(free) => *free = run,
            None => self.runs.push(run),
        }
        id
    }

    /// Cuts a run in two, so that another can branch off after `at` blocks. Who holds the rest keeps it, as recent as it was.
    fn split(&mut self, id: u32, at: u32) {
        let Some(run) = self.runs.get_mut(id as usize) else { return };
        let blocks = run.blocks.split_off(at as usize);
        run.blocks.shrink_to_fit();
        let start = run.start + at;
        let children = std::mem::take(&mut run.children);
        let mut holders = Vec::new();
        for holder in run.holders.iter_mut().filter(|holder| holder.depth > at) {
            let (depth, confirmed) = (holder.depth - at, holder.confirmed.saturating_sub(at));
            holders.push(Holder { depth, confirmed, ..*holder });
            holder.depth = at;
            holder.confirmed = holder.confirmed.min(at);
        }
        let (exact, kept): (Vec<Exact>, Vec<Exact>) = run.exact.drain(..).partition(|exact| exact.depth > at);
        run.exact = kept;
        let exact = exact.into_iter().map(|exact| Exact { depth: exact.depth - at, ..exact }).collect();
        self.entries += holders.len();
        let order: Vec<_> = holders.iter().map(|holder| (holder.pod, holder.touched)).collect();
        let tail = self.add(Run { blocks, start, parent: id, slot: 0, children, holders, exact });
        for (pod, touched) in order {
            self.pods.entry(pod).or_default().order.insert((touched, Reverse(start), tail));
        }
        let moved = self.run(tail).map(|run| run.children.clone()).unwrap_or_default();
        for child in moved {
            if let Some(child) = self.runs.get_mut(child as usize) {
                child.parent = tail;
            }
        }
    }

    fn touch(&mut self, id: u32, pod: PodId, depth: u32, state: State) {
        let clock = self.clock;
        let Some(run) = self.runs.get_mut(id as usize) else { return };
        let start = Reverse(run.start);
        let holding = self.pods.entry(pod).or_default();
        if run.holder(pod).is_none() {
            run.holders.push(Holder { pod, depth: 0, confirmed: 0, claims: 0, touched: clock });
            self.entries += 1;
        }
        let Some(holder) = run.holder(pod) else { return };
        holding.order.remove(&(holder.touched, start, id));
        holding.order.insert((clock, start, id));
        holding.blocks += u64::from(depth.saturating_sub(holder.depth));
        holder.touched = clock;
        holder.depth = holder.depth.max(depth);
        match state {
            State::Claimed => holder.claims += u32::from(depth > holder.confirmed),
            State::Confirmed => {
                holder.confirmed = holder.confirmed.max(depth);
                holder.claims = if holder.confirmed >= holder.depth { 0 } else { holder.claims.saturating_sub(1) };
            }
        }
    }

    /// Takes back one claim on the chain: what no other claim or fact covers is forgotten, deepest first.
    pub(super) fn withdraw(&mut self, chain: &[u64], pod: PodId) {
        for (id, matched) in self.path(chain).into_iter().rev() {
            let Some(holder) = self.runs.get_mut(id as usize).and_then(|run| run.holder(pod)) else { continue };
            if matched <= holder.confirmed {
                continue;
            }
            holder.claims = holder.claims.saturating_sub(1);
            let (claims, confirmed) = (holder.claims, holder.confirmed);
            if claims == 0 {
                self.forget_below(id, pod);
                self.shrink(id, pod, confirmed);
            }
        }
    }

    /// Drops what the pod holds in the runs below `id`.
    fn forget_below(&mut self, id: u32, pod: PodId) {
        let mut below = self.run(id).map(|run| run.children.clone()).unwrap_or_default();
        let mut held = Vec::new();
        while let Some(child) = below.pop() {
            let Some(run) = self.runs.get_mut(child as usize) else { continue };
            if run.holder(pod).is_some() {
                below.extend_from_slice(&run.children);
                held.push(child);
            }
        }
        for child in held.into_iter().rev() {
            self.shrink(child, pod, 0);
        }
    }

    /// Lessens what the pod holds of a run to `depth`, and drops what nobody holds any more. Nothing below may be held.
    fn shrink(&mut self, id: u32, pod: PodId, depth: u32) {
        let Some(run) = self.runs.get_mut(id as usize) else { return };
        let start = Reverse(run.start);
        let Some(at) = run.holders.iter().position(|holder| holder.pod == pod) else { return };
        let Some(holder) = run.holders.get_mut(at) else { return };
        let less = holder.depth.saturating_sub(depth);
        holder.depth -= less;
        holder.confirmed = holder.confirmed.min(depth);
        let (is_gone, key) = (holder.depth == 0, (holder.touched, start, id));
        if let Some(holding) = self.pods.get_mut(&pod) {
            holding.blocks -= u64::from(less);
            if is_gone {
                holding.order.remove(&key);
                self.entries -= 1;
                run.holders.swap_remove(at);
            }
        }
        self.tidy(id);
    }

    /// Drops blocks and runs that nobody holds, upwards from `id`.
    fn tidy(&mut self, mut id: u32) {
        while let Some(run) = self.runs.get_mut(id as usize).filter(|run| run.children.is_empty()) {
            let deepest = run.holders.iter().map(|holder| holder.depth).max().unwrap_or(0);
            self.blocks -= run.blocks.len() - deepest as usize;
            if deepest > 0 {
                run.blocks.truncate(deepest as usize);
                run.exact.retain(|exact| exact.depth <= deepest);
                return;
            }
            let run = std::mem::take(run);
            if let Some(head) = run.blocks.first() {
                self.heads.remove(head);
            }
            self.free.push(id);
            self.unlink(run.parent, run.slot);
            id = run.parent;
        }
    }

    fn unlink(&mut self, parent: u32, slot: u32) {
        let Some(parent) = self.runs.get_mut(parent as usize) else { return };
        parent.children.swap_remove(slot as usize);
        let moved = parent.children.get(slot as usize).copied();
        if let Some(child) = moved.and_then(|child| self.runs.get_mut(child as usize)) {
            child.slot = slot;
        }
    }

    /// Evicts a pod's least recently used blocks until it holds at most `keep`. Returns how many went.
    pub(super) fn evict(&mut self, pod: PodId, keep: u64) -> u64 {
        let mut evicted = 0;
        while let Some(holding) = self.pods.get(&pod) {
            let excess = holding.blocks.saturating_sub(keep);
            let Some((_, _, id)) = holding.order.first().copied().filter(|_| excess > 0) else { break };
            let Some(depth) = self.runs.get_mut(id as usize).and_then(|run| run.holder(pod)).map(|holder| holder.depth)
            else {
                break;
            };
            let less = u64::from(depth).min(excess);
            self.shrink(id, pod, depth - less as u32);
            evicted += less;
        }
        evicted
    }

    /// Forgets a pod.
    pub(super) fn wipe(&mut self, pod: PodId) {
        self.evict(pod, 0);
        self.pods.remove(&pod);
    }

    /// Notes the exact tokens of a prompt that ends with this chain, if the chain is known whole.
    pub(super) fn note(&mut self, chain: &[u64], bytes: u64, tokens: u64) {
        let Some((id, depth)) = self.path(chain).last().copied() else { return };
        let Some(run) = self.runs.get_mut(id as usize) else { return };
        if (run.start + depth) as usize != chain.len() {
            return;
        }
        run.exact.retain(|exact| exact.depth != depth);
        if run.exact.len() >= EXACT_MAX {
            run.exact.remove(0);
        }
        run.exact.push(Exact { depth, bytes, tokens });
    }
}
