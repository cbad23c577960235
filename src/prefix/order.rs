//! What a pod would evict next: per pod a list through its runs from the most to the least recently used. A chain is
//! touched from its end to its start, so a run is always newer than what the pod holds below it, and the oldest run of a
//! pod is a leaf of what it holds. vLLM frees the blocks of a request in the same order.
use crate::base::PodId;

use super::run::NONE;
use super::tree::Tree;

/// What one pod holds.
#[derive(Debug)]
pub(super) struct Holding {
    /// Blocks, over all runs.
    pub(super) blocks: u64,
    pub(super) newest: u32,
    pub(super) oldest: u32,
}

impl Default for Holding {
    fn default() -> Self {
        Self { blocks: 0, newest: NONE, oldest: NONE }
    }
}

impl Tree {
    /// Puts `id` behind `newer` in the pod's list, or at its front.
    fn set_older(&mut self, newer: u32, pod: PodId, id: u32) {
        if newer == NONE {
            self.pods.entry(pod).or_default().newest = id;
        } else if let Some(holder) = self.runs.get_mut(newer).and_then(|run| run.holder_mut(pod)) {
            holder.older = id;
        }
    }

    /// Puts `id` before `older` in the pod's list, or at its end.
    fn set_newer(&mut self, older: u32, pod: PodId, id: u32) {
        if older == NONE {
            self.pods.entry(pod).or_default().oldest = id;
        } else if let Some(holder) = self.runs.get_mut(older).and_then(|run| run.holder_mut(pod)) {
            holder.newer = id;
        }
    }

    /// Takes a run out of the pod's list.
    pub(super) fn unlink_order(&mut self, id: u32, pod: PodId) {
        let Some(holder) = self.runs.get(id).and_then(|run| run.holder(pod)) else { return };
        let (newer, older) = (holder.newer, holder.older);
        self.set_older(newer, pod, older);
        self.set_newer(older, pod, newer);
    }

    /// Puts a run that is in no list at the front of the pod's.
    pub(super) fn link_newest(&mut self, id: u32, pod: PodId) {
        let holding = self.pods.entry(pod).or_default();
        let older = std::mem::replace(&mut holding.newest, id);
        self.set_newer(older, pod, id);
        if let Some(holder) = self.runs.get_mut(id).and_then(|run| run.holder_mut(pod)) {
            (holder.newer, holder.older) = (NONE, older);
        }
    }

    /// Gives `head`, the first part of `tail`, its place in the pod's list: just newer than the rest of it, or in its place
    /// if the pod holds none of the rest. The links in `head` are those that `tail` had.
    pub(super) fn link_head(&mut self, head: u32, tail: u32, pod: PodId) {
        let Some(holder) = self.runs.get(head).and_then(|run| run.holder(pod)) else { return };
        let (newer, older) = (holder.newer, holder.older);
        self.set_older(newer, pod, head);
        let holds_rest = self.runs.get(tail).is_some_and(|run| run.holder(pod).is_some());
        if holds_rest {
            self.set_newer(tail, pod, head);
            self.set_older(head, pod, tail);
        } else {
            self.set_newer(older, pod, head);
        }
    }
}
