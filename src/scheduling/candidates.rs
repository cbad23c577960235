//! The pods a plug-in is given: those not yet dropped, always in order of their ids.
//!
//! The fixed order makes float sums and picks independent of the order in which pods arrive. A plug-in answers by position
//! in this list, so it cannot name a pod that it was not given.
use super::view::PodView;

/// A view of some of the pods of a context, sorted by id.
#[derive(Clone, Copy, Debug)]
pub struct Candidates<'a> {
    pods: &'a [PodView],
    kept: &'a [u32],
}

impl<'a> Candidates<'a> {
    /// The pods of `pods` at the positions `kept`, which must be sorted by pod id. Positions out of range are skipped.
    pub const fn new(pods: &'a [PodView], kept: &'a [u32]) -> Self {
        Self { pods, kept }
    }

    /// How many.
    pub const fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// All of them, by id.
    pub fn iter(&self) -> impl Iterator<Item = &'a PodView> + use<'a> {
        let pods = self.pods;
        self.kept.iter().filter_map(move |&position| pods.get(position as usize))
    }
}
