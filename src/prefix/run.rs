//! What a run of blocks is made of: a stretch of prompts without a branch, who holds how much of it, and the exact tokens
//! of prompts that ended in it. Depths inside a run are counted in blocks from its start.
//!
//! Runs refer to each other by number, so that a run is one small piece of memory; [`super::tree`] keeps the numbers right.
use crate::base::PodId;

/// No run.
pub(super) const NONE: u32 = u32::MAX;
/// Marks of exact usage kept per run; older ones make room.
const EXACT_MAX: usize = 8;
/// Of these, at one depth: a prompt and its answer may end in the same block.
const EXACT_SAME: usize = 2;

/// Exact tokens of a prompt that ended in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Exact {
    /// Blocks of the run it covers.
    pub(super) depth: u16,
    /// Canonical bytes of that prompt.
    pub(super) bytes: u32,
    /// Its tokens.
    pub(super) tokens: u32,
    /// No prompt ended here: so much a pod reported to be cached of one that goes on otherwise.
    pub(super) is_told: bool,
    /// The last report that fell short of what was told; 0 if none has since.
    pub(super) doubt: u32,
}

/// How much of a run, or of a whole chain, a pod holds, in blocks: `proven <= prompted <= ready <= depth`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Depths<T> {
    /// Held, or promised by a request that is on its way.
    pub(super) depth: T,
    /// There: computed for a prompt, or generated.
    pub(super) ready: T,
    /// Computed for a prompt, so that the pod saw these very tokens.
    pub(super) prompted: T,
    /// The pod once reported a hit this deep.
    pub(super) proven: T,
}

impl<T: Copy + Ord> Depths<T> {
    fn map(self, cut: impl Fn(T) -> T) -> Self {
        Self { depth: cut(self.depth), ready: cut(self.ready), prompted: cut(self.prompted), proven: cut(self.proven) }
    }

    /// What is left of it within `most` blocks.
    pub(super) fn within(self, most: T) -> Self {
        self.map(|depth| depth.min(most))
    }
}

/// One pod's part of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Holder {
    pub(super) pod: PodId,
    /// The pod's next run towards its most recently used, and towards its least recently used.
    pub(super) newer: u32,
    pub(super) older: u32,
    /// Claims that reach beyond what is ready.
    pub(super) claims: u16,
    pub(super) held: Depths<u16>,
    /// When it was touched last, in inserts.
    pub(super) touched: u64,
}

/// A run.
#[derive(Debug, Default)]
pub(super) struct Run {
    pub(super) blocks: Vec<u64>,
    /// Sorted by pod.
    pub(super) holders: Vec<Holder>,
    /// Sorted by depth, then by bytes.
    pub(super) exact: Vec<Exact>,
    /// Blocks above this run.
    pub(super) start: u32,
    pub(super) parent: u32,
    /// The first run below, and this run's neighbours among the runs below its parent.
    pub(super) child: u32,
    pub(super) next: u32,
    pub(super) prev: u32,
    /// Who is charged for its memory.
    pub(super) tenant: u16,
    /// Touched since the sweep for memory came by.
    pub(super) is_used: bool,
}

impl Run {
    pub(super) const fn new(blocks: Vec<u64>, start: u32, parent: u32, tenant: u16) -> Self {
        Self {
            blocks,
            holders: Vec::new(),
            exact: Vec::new(),
            start,
            parent,
            child: NONE,
            next: NONE,
            prev: NONE,
            tenant,
            is_used: true,
        }
    }

    pub(super) const fn len(&self) -> u16 {
        self.blocks.len() as u16
    }

    pub(super) const fn is_leaf(&self) -> bool {
        self.child == NONE
    }

    pub(super) fn holder(&self, pod: PodId) -> Option<&Holder> {
        let at = self.holders.binary_search_by_key(&pod, |holder| holder.pod).ok()?;
        self.holders.get(at)
    }

    pub(super) fn holder_mut(&mut self, pod: PodId) -> Option<&mut Holder> {
        let at = self.holders.binary_search_by_key(&pod, |holder| holder.pod).ok()?;
        self.holders.get_mut(at)
    }

    /// Blocks of the run that anybody holds.
    pub(super) fn deepest(&self) -> u16 {
        self.holders.iter().map(|holder| holder.held.depth).max().unwrap_or(0)
    }

    /// Blocks that the run and a chain have in common. Hashes are chained: where two are equal, so is all before, and most
    /// often a run is either left at its end or not begun.
    pub(super) fn common(&self, chain: &[u64]) -> u16 {
        let most = self.blocks.len().min(chain.len());
        let is_same = |at: usize| self.blocks.get(at) == chain.get(at);
        if most == 0 || is_same(most - 1) {
            return most as u16;
        }
        let (mut low, mut high) = (0, most - 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if is_same(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low as u16
    }

    /// Puts more blocks at its end.
    pub(super) fn extend(&mut self, blocks: &[u64]) {
        self.blocks.reserve_exact(blocks.len());
        self.blocks.extend_from_slice(blocks);
    }

    /// Cuts the run after `at` blocks and returns its first part; the links of both are the caller's to mend.
    pub(super) fn cut(&mut self, at: u16) -> Self {
        let tail = self.blocks.split_off(usize::from(at));
        let mut head = Self::new(std::mem::replace(&mut self.blocks, tail), self.start, self.parent, self.tenant);
        head.blocks.shrink_to_fit();
        head.is_used = self.is_used;
        self.start += u32::from(at);
        let is_below = |exact: &Exact| exact.depth > at;
        head.exact = self.exact.iter().copied().filter(|exact| !is_below(exact)).collect();
        self.exact = self.exact.iter().filter(|exact| is_below(exact)).map(|exact| exact.less(at)).collect();
        head.holders = self.holders.iter().map(|holder| Holder { held: holder.held.within(at), ..*holder }).collect();
        self.holders.retain(|holder| holder.held.depth > at);
        self.holders.shrink_to_fit();
        for holder in &mut self.holders {
            holder.held = holder.held.map(|depth| depth.saturating_sub(at));
            // Which claims reach below the cut is not known. One at least does; a claim too few is mended when the
            // request it stood for answers, one too many would promise blocks for ever.
            holder.claims = holder.claims.min(1);
            if holder.held.ready == holder.held.depth {
                holder.claims = 0;
            }
        }
        for holder in &mut head.holders {
            if holder.held.ready == holder.held.depth {
                holder.claims = 0;
            }
        }
        head
    }

    /// Notes the exact tokens of a prompt that ends here. Returns how many notes more there are.
    pub(super) fn note(&mut self, exact: Exact) -> usize {
        let before = self.exact.len();
        let is_replaced = |other: &Exact| {
            other.depth == exact.depth && (other.bytes == exact.bytes || other.is_told && exact.is_told)
        };
        self.exact.retain(|other| !is_replaced(other));
        let same = |other: &Exact| other.depth == exact.depth;
        if self.exact.iter().filter(|other| same(other)).count() >= EXACT_SAME
            && let Some(at) = self.exact.iter().position(same)
        {
            self.exact.remove(at);
        }
        if self.exact.len() >= EXACT_MAX {
            self.exact.remove(0);
        }
        let at = self.exact.partition_point(|other| (other.depth, other.bytes) < (exact.depth, exact.bytes));
        self.exact.reserve_exact(1);
        self.exact.insert(at, exact);
        self.exact.len().saturating_sub(before)
    }

    /// A pod told anew of the length up to a depth where one is noted as told; false if none is. A shorter hit may be one
    /// that was cut short by eviction, and those differ: the length falls when two reports running agree.
    pub(super) fn tell_again(&mut self, depth: u16, tokens: u32) -> bool {
        let Some(known) = self.exact.iter_mut().find(|exact| exact.depth == depth && exact.is_told) else {
            return false;
        };
        if tokens < known.tokens && known.doubt != tokens {
            known.doubt = tokens;
        } else {
            (known.tokens, known.doubt) = (tokens, 0);
        }
        true
    }
}

impl Exact {
    const fn less(&self, at: u16) -> Self {
        Self { depth: self.depth - at, ..*self }
    }
}
