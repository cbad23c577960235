//! What a lookup finds: per pod the tokens of a prompt that it is believed to hold. Made to be used again for the next
//! request, so that a lookup allocates nothing; asking it for one pod costs a few nanoseconds.
use crate::base::{PodId, Tokens};

use super::run::Depths;
use super::scale::Scale;
use super::tree::Tree;
use super::walk::Step;

/// How much of a prompt each pod is believed to hold.
#[derive(Clone, Debug, Default)]
pub struct Hits {
    /// Estimated tokens of the whole request's prompts; exact for token ids and for a prompt seen before.
    pub prompt_tokens: Tokens,
    found: Vec<Found>,
    /// Places in `found` plus one, by hash of the pod; as many as a power of two.
    slots: Vec<u32>,
    pub(super) path: Vec<Step>,
    pub(super) scale: Scale,
}

/// One pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) pod: PodId,
    pub(super) hit: u64,
    pub(super) coming: u64,
    /// Blocks of the chain that was looked up last.
    pub(super) held: Depths<u32>,
    /// Which chain that was.
    pub(super) chain: u32,
}

impl Hits {
    /// Hits said outright instead of found: what a test or an exercise says the pods hold, each pod once.
    pub fn with(prompt_tokens: Tokens, depths: &[(PodId, Tokens)]) -> Self {
        let mut hits = Self { prompt_tokens, ..Self::default() };
        for (pod, depth) in depths {
            hits.entry(*pod).hit = depth.0;
        }
        hits
    }

    /// Tokens believed to be in this pod's cache when the request gets there, those included that are on their way; 0 if
    /// it holds nothing.
    pub fn depth(&self, pod: PodId) -> Tokens {
        Tokens(self.find(pod).map_or(0, |found| found.hit))
    }

    /// The part of [`Hits::depth`] that is not there yet: another request with the same prefix was sent to this pod and
    /// has not been answered, so the pod is computing these tokens now, or will.
    pub fn coming(&self, pod: PodId) -> Tokens {
        Tokens(self.find(pod).map_or(0, |found| found.coming))
    }

    /// [`Hits::depth`] and [`Hits::coming`] at once.
    pub fn of(&self, pod: PodId) -> (Tokens, Tokens) {
        self.find(pod).map_or((Tokens(0), Tokens(0)), |found| (Tokens(found.hit), Tokens(found.coming)))
    }

    /// Pods that hold something, with what [`Hits::depth`] and [`Hits::coming`] say of them; in no order.
    pub fn iter(&self) -> impl Iterator<Item = (PodId, Tokens, Tokens)> {
        self.found.iter().map(|found| (found.pod, Tokens(found.hit), Tokens(found.coming)))
    }

    /// Number of pods that hold something.
    pub const fn len(&self) -> usize {
        self.found.len()
    }

    /// Does no pod hold anything?
    pub const fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Forgets the last request.
    pub(super) fn clear(&mut self) {
        self.found.clear();
        self.slots.fill(0);
        self.prompt_tokens = Tokens(0);
    }

    /// What was found for the pods, to be valued.
    pub(super) const fn found_mut(&mut self) -> &mut [Found] {
        self.found.as_mut_slice()
    }

    /// Finds what pods hold along `path`, as chain number `chain`.
    ///
    /// From the deepest run up: the first run where a pod occurs says how deep it holds the chain, and whoever holds a run
    /// holds all above it, so a run with no more holders than were found below adds nothing.
    pub(super) fn gather(&mut self, tree: &Tree, chain: u32) {
        let path = std::mem::take(&mut self.path);
        let (mut known, mut unsettled) = (0, 0);
        for step in path.iter().rev() {
            let Some(run) = tree.runs.get(step.run) else { continue };
            if run.holders.len() == known && unsettled == 0 {
                continue;
            }
            for holder in &run.holders {
                let held = holder.held.within(step.matched);
                let found = self.entry(holder.pod);
                if found.chain != chain {
                    (found.chain, found.held) = (chain, Depths::default());
                    found.held.or_above(step.start, held);
                    known += 1;
                    unsettled += usize::from(!found.held.is_settled());
                } else if !found.held.is_settled() {
                    found.held.or_above(step.start, held);
                    unsettled -= usize::from(found.held.is_settled());
                }
            }
        }
        self.path = path;
    }

    fn find(&self, pod: PodId) -> Option<&Found> {
        let mask = self.slots.len().wrapping_sub(1);
        let mut at = spread(pod);
        loop {
            let place = *self.slots.get(at & mask)? as usize;
            let found = self.found.get(place.checked_sub(1)?)?;
            if found.pod == pod {
                return Some(found);
            }
            at += 1;
        }
    }

    /// The entry of a pod, a new one if it has none.
    fn entry(&mut self, pod: PodId) -> &mut Found {
        if self.slots.len() < 2 * (self.found.len() + 1) {
            self.grow();
        }
        let mask = self.slots.len() - 1;
        let mut at = spread(pod) & mask;
        let place = loop {
            let place = self.slots.get(at).copied().unwrap_or_default() as usize;
            match place.checked_sub(1) {
                Some(index) if self.found.get(index).is_some_and(|found| found.pod == pod) => break index,
                Some(_) => at = (at + 1) & mask,
                None => {
                    let new = Found { pod, hit: 0, coming: 0, held: Depths::default(), chain: u32::MAX };
                    self.found.push(new);
                    if let Some(slot) = self.slots.get_mut(at) {
                        *slot = self.found.len() as u32;
                    }
                    break self.found.len() - 1;
                }
            }
        };
        // The place was just found or made.
        #[expect(clippy::indexing_slicing, reason = "an entry is at this place")]
        &mut self.found[place]
    }

    fn grow(&mut self) {
        let size = (self.slots.len() * 2).max(64);
        self.slots.clear();
        self.slots.resize(size, 0);
        for (place, found) in self.found.iter().enumerate() {
            let mut at = spread(found.pod) & (size - 1);
            while self.slots.get(at).is_some_and(|slot| *slot != 0) {
                at = (at + 1) & (size - 1);
            }
            if let Some(slot) = self.slots.get_mut(at) {
                *slot = place as u32 + 1;
            }
        }
    }
}

/// Pods have small numbers; these are spread over 32 bits.
const fn spread(pod: PodId) -> usize {
    (pod.0.wrapping_mul(0x9E37_79B9) >> 7) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pod_is_found_and_no_other() {
        let mut hits = Hits::default();
        assert_eq!((hits.depth(PodId(0)), hits.is_empty()), (Tokens(0), true));
        for round in 1..3_u32 {
            for pod in (0..3_000).step_by(3) {
                hits.entry(PodId(pod)).hit = u64::from(pod * round);
            }
            for pod in 0..3_000 {
                let expected = if pod % 3 == 0 { pod * round } else { 0 };
                assert_eq!(hits.depth(PodId(pod)), Tokens(u64::from(expected)));
            }
            assert_eq!(hits.len(), 1_000);
            hits.clear();
            assert_eq!(hits.depth(PodId(3)), Tokens(0));
        }
    }
}
