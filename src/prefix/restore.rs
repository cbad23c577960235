//! Puts a snapshot back, pod by pod as they are met again. Only through the ways that traffic uses too, so a snapshot can
//! bring the tree into no state that requests could not.
use std::collections::{HashMap, HashSet};

use crate::base::PodId;

use super::index::Index;
use super::snapshot::{PodName, SavedHold, Snapshot};
use super::tree::State;

/// A chain that a pod held to its end.
struct Restored {
    blocks: Vec<u64>,
    /// How many of them were computed for a prompt.
    prompted: usize,
    tenant: u64,
    /// Runs it goes through, from its end, each with the blocks before it.
    runs: Vec<(u32, usize)>,
}

impl Index {
    /// Takes what a snapshot knows of models.
    pub fn begin_with(&self, snapshot: &Snapshot) {
        self.inner.write().ratios.extend(snapshot.ratios.iter().copied());
    }

    /// Gives a pod what it held when the snapshot was made, if it is still the same process. Returns how many blocks.
    pub fn adopt(&self, snapshot: &mut Snapshot, name: &PodName, pod: PodId) -> u64 {
        let Some(mut holds) = snapshot.take(name) else { return 0 };
        holds.retain(|hold| hold.ready > 0);
        // The order in which they were used. Of what was used at once the deeper part was first.
        holds.sort_by_key(|hold| (hold.touched, std::cmp::Reverse(hold.run)));
        let by_run: HashMap<u32, SavedHold> = holds.iter().map(|hold| (hold.run, *hold)).collect();
        // A chain touches every run on its way, so only the ends of what was used at once are entered.
        let above = |hold: &SavedHold| by_run.get(&snapshot.runs.get(hold.run as usize)?.parent);
        let leads_on: HashSet<u32> = holds
            .iter()
            .filter_map(|hold| above(hold).filter(|above| above.touched == hold.touched))
            .map(|above| above.run)
            .collect();
        let before = self.pod_blocks(pod);
        for hold in holds.iter().filter(|hold| !leads_on.contains(&hold.run)) {
            let prompted = |run| by_run.get(&run).map_or(0, |hold| hold.prompted);
            if let Some(chain) = chain(snapshot, hold, prompted) {
                self.enter_restored(snapshot, &chain, pod);
            }
        }
        self.pod_blocks(pod).saturating_sub(before)
    }

    fn enter_restored(&self, snapshot: &mut Snapshot, chain: &Restored, pod: PodId) {
        let mut inner = self.inner.write();
        let tenant = inner.tree.tenants.place(chain.tenant);
        let prompted = chain.blocks.get(..chain.prompted).unwrap_or_default();
        inner.tree.insert(prompted, pod, State::Confirmed, tenant);
        if chain.prompted < chain.blocks.len() {
            inner.tree.insert(&chain.blocks, pod, State::Generated, tenant);
        }
        for (run, start) in &chain.runs {
            let Some(run) = snapshot.runs.get_mut(*run as usize) else { continue };
            // Noted once: whoever holds the run finds it there.
            run.exact.retain(|exact| {
                let Some(blocks) = chain.blocks.get(..start + usize::from(exact.depth)) else { return true };
                inner.tree.note(blocks, exact.bytes.into(), exact.tokens.into());
                false
            });
        }
        self.fit_memory(&mut inner);
    }
}

/// The blocks from the start of a prompt to the end of what is held of its last run.
fn chain(snapshot: &Snapshot, hold: &SavedHold, prompted: impl Fn(u32) -> u16) -> Option<Restored> {
    let last = snapshot.runs.get(hold.run as usize)?;
    let mut runs = Vec::new();
    let (mut at, mut above) = (hold.run, 0);
    while let Some(run) = snapshot.runs.get(at as usize) {
        if at != hold.run {
            above += run.blocks.len();
        }
        runs.push((at, above));
        at = run.parent;
    }
    // Counted from the end so far.
    for (_, start) in &mut runs {
        *start = above - *start;
    }
    let mut blocks = Vec::with_capacity(above + usize::from(hold.ready));
    for (run, _) in runs.iter().skip(1).rev() {
        blocks.extend_from_slice(&snapshot.runs.get(*run as usize)?.blocks);
    }
    blocks.extend_from_slice(last.blocks.get(..usize::from(hold.ready))?);
    let deepest = runs.iter().find(|(run, _)| prompted(*run) > 0);
    let prompted = deepest.map_or(0, |(run, start)| start + usize::from(prompted(*run)));
    Some(Restored { prompted: prompted.min(blocks.len()), blocks, tenant: last.tenant, runs })
}
