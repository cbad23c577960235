//! Every invariant of the tree, checked from outside of what keeps them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::BTreeMap;

use crate::base::PodId;
use crate::prefix::run::{Depths, NONE, Run};
use crate::prefix::slab::Head;
use crate::prefix::tree::Tree;

impl Tree {
    /// Panics where an invariant does not hold.
    pub(in crate::prefix) fn assert_sound(&self) {
        let mut held: BTreeMap<PodId, (u64, usize)> = BTreeMap::new();
        let mut charged: BTreeMap<u16, usize> = BTreeMap::new();
        let (mut blocks, mut entries, mut live) = (0, 0, 0);
        for (id, run) in self.runs.iter() {
            live += 1;
            blocks += run.blocks.len();
            entries += run.holders.len();
            *charged.entry(run.tenant).or_default() += run.blocks.len();
            self.assert_links(id, run);
            assert!(run.deepest() > 0, "a run that nobody holds");
            assert!(run.deepest() == run.len() || !run.is_leaf(), "nobody holds the end of a leaf");
            assert!(run.exact.is_sorted_by_key(|exact| exact.depth));
            assert!(run.exact.iter().all(|exact| exact.depth <= run.len()));
            assert!(run.holders.is_sorted_by_key(|holder| holder.pod));
            for holder in &run.holders {
                self.assert_holder(run, holder.pod);
                let sum = held.entry(holder.pod).or_default();
                *sum = (sum.0 + u64::from(holder.held.depth), sum.1 + 1);
            }
        }
        assert_eq!((blocks, live), (self.blocks(), self.heads.len()));
        assert_eq!(self.runs.len(), live);
        assert_eq!(entries, held.values().map(|(_, runs)| runs).sum::<usize>());
        for (tenant, blocks) in charged {
            assert_eq!(self.tenants.blocks(tenant), blocks);
        }
        for pod in self.pods.keys() {
            self.assert_order(*pod, held.get(pod).copied().unwrap_or_default());
        }
        assert!(held.keys().all(|pod| self.pods.contains_key(pod)));
    }

    fn assert_links(&self, id: u32, run: &Run) {
        let head = Head { run: id, len: run.len() };
        assert_eq!(run.blocks.first().and_then(|first| self.heads.get(*first)), Some(head));
        let above = self.runs.get(run.parent);
        assert_eq!(above.map_or(0, |above| above.start + u32::from(above.len())), run.start);
        match self.runs.get(run.prev) {
            Some(prev) => assert_eq!(prev.next, id),
            None => assert!(above.is_none_or(|above| above.child == id)),
        }
        if let Some(next) = self.runs.get(run.next) {
            assert_eq!((next.prev, next.parent), (id, run.parent));
        }
        if let Some(child) = self.runs.get(run.child) {
            assert_eq!((child.parent, child.prev), (id, NONE));
        }
    }

    fn assert_holder(&self, run: &Run, pod: PodId) {
        let holder = run.holder(pod).unwrap();
        let Depths { depth, ready, prompted, proven } = holder.held;
        assert!(
            depth > 0 && depth <= run.len() && ready <= depth && prompted <= ready && proven <= prompted,
            "{holder:?}"
        );
        assert!(holder.claims == 0 || ready < depth, "claims on what is there: {holder:?}");
        let Some(above) = self.runs.get(run.parent) else { return };
        let up = above.holder(pod).expect("a pod holds a run without what is above it");
        let whole = |own: u16, above_own: u16| own == 0 || above_own == above.len();
        assert!(whole(depth, up.held.depth) && whole(ready, up.held.ready), "a gap above {holder:?}: {up:?}");
        assert!(whole(prompted, up.held.prompted) && whole(proven, up.held.proven), "a gap above {holder:?}: {up:?}");
        assert!(up.touched >= holder.touched);
    }

    fn assert_order(&self, pod: PodId, expected: (u64, usize)) {
        let holding = &self.pods[&pod];
        let (mut at, mut newer, mut count) = (holding.newest, NONE, 0);
        let mut above = Vec::new();
        while let Some(run) = self.runs.get(at) {
            let holder = run.holder(pod).unwrap();
            assert_eq!(holder.newer, newer);
            assert!(run.parent == NONE || above.contains(&run.parent), "a run newer than what is above it");
            above.push(at);
            (newer, at) = (at, holder.older);
            count += 1;
        }
        assert_eq!((holding.oldest, holding.blocks, count), (newer, expected.0, expected.1));
    }
}
