//! Reading the tree: the runs along a chain, and what the pods hold of them.
use crate::base::PodId;

use super::run::{Depths, NONE};
use super::tree::Tree;

/// A run along a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) run: u32,
    /// Blocks before the run.
    pub(super) start: u32,
    /// Blocks of the run that the chain shares.
    pub(super) matched: u16,
}

impl Step {
    /// Blocks of the chain up to here.
    pub(super) const fn end(&self) -> u32 {
        self.start + self.matched as u32
    }
}

/// What one pod holds of a chain.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    /// In blocks of the chain.
    pub(super) held: Depths<u32>,
    /// When the deepest of it that is ready was touched last.
    pub(super) touched: u64,
}

impl Depths<u32> {
    /// Takes what a run further up says: its depths count where nothing deeper did.
    pub(super) fn or_above(&mut self, start: u32, held: Depths<u16>) {
        let take = |own: &mut u32, above: u16| {
            if *own == 0 && above > 0 {
                *own = start + u32::from(above);
            }
        };
        take(&mut self.depth, held.depth);
        take(&mut self.ready, held.ready);
        take(&mut self.prompted, held.prompted);
        take(&mut self.proven, held.proven);
    }

    /// Is everything a lookup asks for known, so that runs further up add nothing?
    pub(super) const fn is_settled(&self) -> bool {
        self.ready > 0 && self.prompted > 0
    }
}

impl Tree {
    /// The runs along a chain, from its start, into `path`.
    pub(super) fn path(&self, chain: &[u64], path: &mut Vec<Step>) {
        path.clear();
        let (mut rest, mut parent) = (chain, NONE);
        let mut start = 0;
        while let Some(head) = rest.first().and_then(|head| self.heads.get(*head)) {
            let Some(run) = self.runs.get(head.run).filter(|run| run.parent == parent) else { break };
            // Mostly a run is shared whole. Nothing that the next turn needs then waits for the run's own memory.
            let last = usize::from(head.len).wrapping_sub(1);
            let is_whole = last < rest.len() && run.blocks.get(last) == rest.get(last);
            if !is_whole {
                path.push(Step { run: head.run, start, matched: run.common(rest) });
                break;
            }
            path.push(Step { run: head.run, start, matched: head.len });
            parent = head.run;
            start += u32::from(head.len);
            rest = rest.get(usize::from(head.len)..).unwrap_or_default();
        }
    }

    /// What one pod holds along a path.
    pub(super) fn place(&self, path: &[Step], pod: PodId) -> Place {
        let mut place = Place::default();
        for step in path.iter().rev() {
            let Some(holder) = self.runs.get(step.run).and_then(|run| run.holder(pod)) else { continue };
            let held = holder.held.within(step.matched);
            if place.held.ready == 0 && held.ready > 0 {
                place.touched = holder.touched;
            }
            place.held.or_above(step.start, held);
            if place.held.is_settled() && place.held.proven > 0 {
                break;
            }
        }
        place
    }
}
