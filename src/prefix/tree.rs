//! A path-compressed tree of prompts, and per pod how deep into each run of it the pod holds KV. Pure bookkeeping in
//! blocks; tokens, claims as the caller sees them and locks are in [`super::index`].
//!
//! Invariants, tested on random histories: a pod that holds any of a run holds all runs above it; what is ready, computed
//! or proven reaches from the start of a chain without a gap; a run exists only while someone holds a part of it or it
//! leads to others; a pod's list has all its runs, each newer than those below it.
use crate::base::PodId;

use super::order::Holding;
use super::run::{Exact, Holder, NONE, Run};
use super::slab::{Head, Heads, Map, Slab};
use super::tenants::Tenants;

/// Memory of a run beside its blocks and holders: the run and its place among the heads.
const RUN_BYTES: usize = size_of::<Run>() + 24;
/// Room at the end of a run's blocks that is not worth a copy to give back.
const SLACK_BLOCKS: usize = 32;

/// What an insert says of the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The request was dispatched.
    Claimed,
    /// The pod has computed the prompt.
    Confirmed,
    /// The end of the chain is what the pod generated.
    Generated,
}

/// The tree, and who holds what.
#[derive(Debug, Default)]
pub(super) struct Tree {
    pub(super) runs: Slab,
    pub(super) heads: Heads,
    pub(super) pods: Map<PodId, Holding>,
    pub(super) tenants: Tenants,
    clock: u64,
    blocks: usize,
    entries: usize,
    exacts: usize,
    /// Where the sweep for memory goes on.
    hand: u32,
    /// Kept for its memory.
    path: Vec<(u32, u16)>,
}

impl Tree {
    /// Distinct blocks.
    pub(super) const fn blocks(&self) -> usize {
        self.blocks
    }

    /// Estimated live bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.blocks * size_of::<u64>()
            + self.runs.len() * RUN_BYTES
            + self.entries * size_of::<Holder>()
            + self.exacts * size_of::<Exact>()
    }

    /// Makes `pod` hold the whole chain, as its most recently used. New runs are charged to the tenant at `tenant`.
    pub(super) fn insert(&mut self, chain: &[u64], pod: PodId, state: State, tenant: u16) {
        self.clock += 1;
        let mut path = std::mem::take(&mut self.path);
        path.clear();
        let mut rest = chain.get(..chain.len().min(usize::from(u16::MAX))).unwrap_or_default();
        let mut parent = NONE;
        while let Some(head) = rest.first() {
            let (id, covered) = match self.heads.get(*head) {
                Some(Head { run, .. }) if self.runs.get(run).is_some_and(|run| run.parent == parent) => {
                    self.fit(run, rest, tenant)
                }
                // Two blocks of the same hash: what is below is not known.
                Some(_) => break,
                None => (self.branch(parent, rest, tenant), rest.len() as u16),
            };
            path.push((id, covered));
            rest = rest.get(usize::from(covered.max(1))..).unwrap_or_default();
            parent = id;
        }
        for (id, covered) in path.iter().rev() {
            self.touch(*id, pod, *covered, state);
        }
        self.path = path;
    }

    /// Makes a run and a chain that begin alike end alike: the run is split where they part, or, if nothing is below it,
    /// extended to the chain's end. Returns the run that is the beginning of both, and how many blocks that is.
    fn fit(&mut self, id: u32, chain: &[u64], tenant: u16) -> (u32, u16) {
        let Some(run) = self.runs.get_mut(id) else { return (id, 0) };
        let common = run.common(chain);
        let beyond = chain.get(usize::from(common)..).unwrap_or_default();
        if common < run.len() {
            // Also where the chain ends, so that what is touched is what is used, and not what others have behind it.
            return (self.split(id, common), common);
        }
        if !beyond.is_empty() && run.is_leaf() && run.tenant == tenant {
            run.extend(beyond);
            self.heads.set(id, run);
            self.blocks += beyond.len();
            self.tenants.add(tenant, beyond.len());
            return (id, chain.len() as u16);
        }
        (id, common)
    }

    /// A new run below `parent`.
    fn branch(&mut self, parent: u32, blocks: &[u64], tenant: u16) -> u32 {
        self.blocks += blocks.len();
        self.tenants.add(tenant, blocks.len());
        let above = self.runs.get(parent);
        let start = above.map_or(0, |run| run.start + u32::from(run.len()));
        let first = above.map_or(NONE, |run| run.child);
        let mut run = Run::new(blocks.to_vec(), start, parent, tenant);
        run.next = first;
        let id = self.runs.add(run);
        if let Some(sibling) = self.runs.get_mut(first) {
            sibling.prev = id;
        }
        if let Some(above) = self.runs.get_mut(parent) {
            above.child = id;
        }
        if let Some(run) = self.runs.get(id) {
            self.heads.set(id, run);
        }
        id
    }

    /// Cuts a run in two, so that another can branch off after `at` blocks. Who holds the rest keeps it, as recent as it was.
    /// The rest keeps its number, and so its children need no change. Returns the number of the first part.
    fn split(&mut self, id: u32, at: u16) -> u32 {
        let Some(run) = self.runs.get_mut(id) else { return id };
        let mut head = run.cut(at);
        (head.prev, head.next, head.child) = (run.prev, run.next, id);
        let (parent, prev, next) = (run.parent, run.prev, run.next);
        self.entries += run.holders.len();
        let head_id = self.runs.add(head);
        if let Some(run) = self.runs.get_mut(id) {
            (run.parent, run.prev, run.next) = (head_id, NONE, NONE);
        }
        if let Some(next) = self.runs.get_mut(next) {
            next.prev = head_id;
        }
        if let Some(prev) = self.runs.get_mut(prev) {
            prev.next = head_id;
        } else if let Some(parent) = self.runs.get_mut(parent) {
            parent.child = head_id;
        }
        for id in [head_id, id] {
            if let Some(run) = self.runs.get(id) {
                self.heads.set(id, run);
            }
        }
        let mut index = 0;
        while let Some(pod) = self.runs.get(head_id).and_then(|head| head.holders.get(index)).map(|holder| holder.pod) {
            self.link_head(head_id, id, pod);
            index += 1;
        }
        head_id
    }

    fn touch(&mut self, id: u32, pod: PodId, covered: u16, state: State) {
        let touched = self.clock;
        let Some(run) = self.runs.get_mut(id) else { return };
        run.is_used = true;
        let found = run.holders.binary_search_by_key(&pod, |holder| holder.pod);
        if let Err(at) = found {
            if run.holders.len() < 8 {
                run.holders.reserve_exact(1);
            }
            let holder =
                Holder { pod, newer: NONE, older: NONE, claims: 0, held: super::run::Depths::default(), touched };
            run.holders.insert(at, holder);
            self.entries += 1;
        }
        let Some(holder) = run.holders.get_mut(found.unwrap_or_else(|at| at)) else { return };
        let more = covered.saturating_sub(holder.held.depth);
        holder.touched = touched;
        let held = &mut holder.held;
        held.depth = held.depth.max(covered);
        match state {
            State::Claimed => holder.claims = holder.claims.saturating_add(u16::from(covered > held.ready)),
            State::Confirmed | State::Generated => {
                held.ready = held.ready.max(covered);
                if state == State::Confirmed {
                    held.prompted = held.prompted.max(covered);
                    holder.claims = holder.claims.saturating_sub(1);
                }
                if held.ready >= held.depth {
                    holder.claims = 0;
                }
            }
        }
        let is_linked = found.is_ok();
        self.pods.entry(pod).or_default().blocks += u64::from(more);
        if is_linked {
            if self.pods.get(&pod).is_some_and(|holding| holding.newest == id) {
                return;
            }
            self.unlink_order(id, pod);
        }
        self.link_newest(id, pod);
    }

    /// Takes back one claim on the chain: what no other claim or fact covers is forgotten, deepest first.
    pub(super) fn withdraw(&mut self, chain: &[u64], pod: PodId) {
        let mut path = Vec::new();
        self.path(chain, &mut path);
        for step in path.into_iter().rev() {
            let Some(holder) = self.runs.get_mut(step.run).and_then(|run| run.holder_mut(pod)) else { continue };
            if step.matched <= holder.held.ready {
                continue;
            }
            holder.claims = holder.claims.saturating_sub(1);
            let (claims, ready) = (holder.claims, holder.held.ready);
            if claims == 0 {
                self.forget_below(step.run, pod);
                self.shrink(step.run, pod, ready);
            }
        }
    }

    /// Drops what the pod holds in the runs below `id`.
    fn forget_below(&mut self, id: u32, pod: PodId) {
        for below in self.held_below(id, pod).into_iter().rev() {
            self.shrink(below, pod, 0);
        }
    }

    /// The runs below `id` that the pod holds, each before those below it.
    fn held_below(&self, id: u32, pod: PodId) -> Vec<u32> {
        let mut next = self.runs.get(id).map_or(NONE, |run| run.child);
        let mut held = Vec::new();
        let mut level = 0;
        loop {
            while let Some(run) = self.runs.get(next) {
                if run.holder(pod).is_some() {
                    held.push(next);
                }
                next = run.next;
            }
            let Some(above) = held.get(level) else { return held };
            next = self.runs.get(*above).map_or(NONE, |run| run.child);
            level += 1;
        }
    }

    /// Lessens what the pod holds of a run to `depth`, and drops what nobody holds any more. Nothing below may be held.
    /// Returns how many blocks went.
    fn shrink(&mut self, id: u32, pod: PodId, depth: u16) -> u64 {
        let Some(holder) = self.runs.get_mut(id).and_then(|run| run.holder_mut(pod)) else { return 0 };
        let less = u64::from(holder.held.depth.saturating_sub(depth));
        holder.held = holder.held.within(depth);
        if holder.held.ready == holder.held.depth {
            holder.claims = 0;
        }
        let is_gone = holder.held.depth == 0;
        if let Some(holding) = self.pods.get_mut(&pod) {
            holding.blocks -= less;
        }
        if is_gone {
            self.unlink_order(id, pod);
            if let Some(run) = self.runs.get_mut(id) {
                run.holders.retain(|holder| holder.pod != pod);
                self.entries -= 1;
            }
        }
        self.tidy(id);
        less
    }

    /// Drops blocks and runs that nobody holds, upwards from `id`.
    fn tidy(&mut self, mut id: u32) {
        while let Some(run) = self.runs.get_mut(id).filter(|run| run.is_leaf()) {
            let deepest = run.deepest();
            let less = run.blocks.len() - usize::from(deepest);
            self.blocks -= less;
            self.tenants.less(run.tenant, less);
            if deepest > 0 {
                run.blocks.truncate(usize::from(deepest));
                self.heads.set(id, run);
                if run.blocks.capacity() - run.blocks.len() > SLACK_BLOCKS {
                    run.blocks.shrink_to_fit();
                }
                let before = run.exact.len();
                run.exact.retain(|exact| exact.depth <= deepest);
                self.exacts -= before - run.exact.len();
                return;
            }
            let run = self.runs.take(id);
            self.exacts -= run.exact.len();
            if let Some(head) = run.blocks.first() {
                self.heads.remove(*head);
            }
            if let Some(next) = self.runs.get_mut(run.next) {
                next.prev = run.prev;
            }
            if let Some(prev) = self.runs.get_mut(run.prev) {
                prev.next = run.next;
            } else if let Some(parent) = self.runs.get_mut(run.parent) {
                parent.child = run.next;
            }
            id = run.parent;
        }
    }

    /// Evicts a pod's least recently used blocks until it holds at most `keep`. Returns how many went.
    pub(super) fn evict(&mut self, pod: PodId, keep: u64) -> u64 {
        let mut evicted = 0;
        while let Some(holding) = self.pods.get(&pod) {
            let excess = holding.blocks.saturating_sub(keep);
            let id = holding.oldest;
            let Some(holder) = self.runs.get(id).and_then(|run| run.holder(pod)).filter(|_| excess > 0) else { break };
            let depth = u64::from(holder.held.depth);
            evicted += self.shrink(id, pod, depth.saturating_sub(excess) as u16);
        }
        evicted
    }

    /// Evicts what a pod has not used since `touched`. Returns how many blocks went.
    pub(super) fn evict_unused_since(&mut self, pod: PodId, touched: u64) -> u64 {
        let mut evicted = 0;
        while let Some(id) = self.pods.get(&pod).map(|holding| holding.oldest) {
            let holder = self.runs.get(id).and_then(|run| run.holder(pod));
            if holder.is_none_or(|holder| holder.touched > touched) {
                break;
            }
            evicted += self.shrink(id, pod, 0);
        }
        evicted
    }

    /// Evicts runs that were not used lately, each with all its holders, until the tree is well within `bytes_max`: those
    /// of a tenant that has more than its `share` of all blocks before any other's. Approximate: a clock with one hand.
    pub(super) fn reclaim(&mut self, bytes_max: usize, share: f64) -> u64 {
        if self.bytes() <= bytes_max {
            return 0;
        }
        let target = bytes_max - bytes_max / 64;
        let (mut evicted, mut left) = (0, 3 * u64::from(self.runs.end()) + 3);
        let mut victim = self.tenants.largest_over(share * self.blocks as f64);
        while self.bytes() > target && left > 0 {
            left -= 1;
            let most = share * self.blocks as f64;
            if victim.is_some_and(|victim| self.tenants.blocks(victim) as f64 <= most) {
                victim = self.tenants.largest_over(most);
            }
            let id = self.hand;
            self.hand = (id + 1) % self.runs.end().max(1);
            let is_next = |run: &&mut Run| {
                run.is_leaf() && !run.blocks.is_empty() && victim.is_none_or(|victim| victim == run.tenant)
            };
            let Some(run) = self.runs.get_mut(id).filter(is_next) else { continue };
            if !std::mem::take(&mut run.is_used) {
                evicted += self.drop_leaf(id);
            }
        }
        evicted
    }

    fn drop_leaf(&mut self, id: u32) -> u64 {
        let mut evicted = 0;
        while let Some(pod) = self.runs.get(id).and_then(|run| run.holders.last()).map(|holder| holder.pod) {
            evicted += self.shrink(id, pod, 0);
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
        self.note_as(chain, bytes, tokens, false);
    }

    /// Notes that prompts which share this chain and no more have so many tokens in common, as a pod told. What is exact stays.
    pub(super) fn note_told(&mut self, chain: &[u64], bytes: u64, tokens: u64) {
        self.note_as(chain, bytes, tokens, true);
    }

    fn note_as(&mut self, chain: &[u64], bytes: u64, tokens: u64, is_told: bool) {
        let mut path = Vec::new();
        self.path(chain, &mut path);
        let Some(step) = path.last().filter(|step| step.end() as usize == chain.len()) else { return };
        let Some(run) = self.runs.get_mut(step.run) else { return };
        let (Ok(bytes), Ok(tokens)) = (u32::try_from(bytes), u32::try_from(tokens)) else { return };
        if is_told && run.tell_again(step.matched, tokens) {
            return;
        }
        let exact = Exact { depth: step.matched, bytes, tokens, is_told, doubt: 0 };
        let is_there = |known: &Exact| (known.depth, known.bytes) == (exact.depth, exact.bytes) && !known.is_told;
        if is_told && run.exact.iter().any(is_there) {
            return;
        }
        self.exacts += run.note(exact);
    }

    /// Notes that the pod reported a hit of the first `blocks` of the chain; if `is_less`, of no more than these, and so of
    /// nothing behind them either, on this chain or on one that branches off.
    pub(super) fn prove(&mut self, chain: &[u64], blocks: usize, pod: PodId, is_less: bool) {
        let mut path = Vec::new();
        self.path(chain, &mut path);
        let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
        for step in path {
            let Some(run) = self.runs.get_mut(step.run) else { return };
            let len = run.len();
            let Some(holder) = run.holder_mut(pod) else { return };
            let reported = blocks.saturating_sub(step.start).min(u32::from(step.matched)) as u16;
            let kept = if is_less { 0 } else { holder.held.proven };
            holder.held.proven = reported.min(holder.held.prompted).max(kept);
            if is_less && holder.held.proven < len {
                return self.doubt_below(step.run, pod);
            }
        }
    }

    /// Nothing below `id` counts as reported by the pod any more.
    fn doubt_below(&mut self, id: u32, pod: PodId) {
        for below in self.held_below(id, pod) {
            if let Some(holder) = self.runs.get_mut(below).and_then(|run| run.holder_mut(pod)) {
                holder.held.proven = 0;
            }
        }
    }
}
