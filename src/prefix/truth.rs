//! What a pod's `cached_tokens` says about our belief. A hit that was shorter than believed has two very different
//! causes: the pod has evicted blocks (then the belief is stale and must go), or its template, its cache or our bytes do
//! not match there (then the same happens next time, and such hits are worth less). Told apart by history: only where the
//! same pod once reported a deeper hit of the same lineage have blocks gone.
//!
//! A third cause is ours: the length of a prefix that no prompt ended with, such as a shared system prompt, is estimated from
//! bytes. There the first report is taken as the length ([`told`]), and only later ones are judged.
use super::fingerprint::{Boundary, Chain};
use super::ratio::Ratio;
use super::run::Depths;
use super::scale::{Known, Scale};
use crate::base::Tokens;

/// What was believed of one pod when a prompt was sent there, in tokens and undiscounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Basis {
    /// Computed for earlier prompts.
    pub(super) solid: u64,
    /// Generated behind that.
    pub(super) tail: u64,
    /// On its way behind that.
    pub(super) coming: u64,
    /// Where the solid part ends.
    pub(super) boundary: Boundary,
    /// The longest hit that the pod has reported here.
    pub(super) proven: u64,
    /// When the deepest run of it was touched.
    pub(super) touched: u64,
    /// The solid part in blocks.
    pub(super) solid_blocks: u32,
    /// How well its tokens are known.
    pub(super) known: Known,
}

impl Basis {
    /// The belief in a prompt, of which the pod holds `held` blocks.
    pub(super) fn new(chain: &Chain, scale: &Scale, held: &Depths<u32>, block: Tokens) -> Self {
        let depth = scale.hit(held.depth, block);
        let same = |blocks| if blocks == held.depth { depth } else { scale.hit(blocks, block) };
        let (ready, solid) = (same(held.ready), same(held.prompted));
        Self {
            solid,
            tail: ready.saturating_sub(solid),
            coming: depth.saturating_sub(ready),
            boundary: chain.boundary(if held.prompted > 0 { held.prompted } else { held.depth }),
            proven: 0,
            touched: 0,
            solid_blocks: held.prompted,
            known: scale.known_at(held.prompted),
        }
    }

    /// Believed and coming tokens, discounted by what is known of the model.
    pub(super) fn worth(&self, ratio: &Ratio) -> (u64, u64) {
        if ratio.is_plain() {
            return (self.solid + self.tail + self.coming, self.coming);
        }
        let kept = ratio.kept(self.boundary);
        let coming = self.coming as f64 * kept;
        let hit = self.solid as f64 * kept + self.tail as f64 * ratio.tail() + coming;
        (hit as u64, coming as u64)
    }
}

/// Tokens of a block of ours, about.
const BLOCK_TOKENS: u64 = 64;

/// What follows from a report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Verdict {
    /// Nothing was believed, or nothing can be said.
    Nothing,
    /// The pod has evicted blocks.
    Evicted,
    /// What part of hits of this kind comes true: of the solid part, and of what was generated.
    Kept { solid: f64, tail: Option<f64> },
}

/// What a report of `cached` tokens says about the length of the solid part \[tokens\], if the belief ended there: hits are
/// whole blocks, so the true length is up to a block more. `None` where the report is too far off to be about that, and where
/// the length is known. What was told before is corrected downwards, and upwards by little: a hit that is much deeper than
/// believed is one of something else.
pub(super) fn told(basis: &Basis, cached: u64, block: Tokens) -> Option<u64> {
    let is_about_it = basis.tail == 0 && basis.coming == 0 && basis.solid_blocks > 0;
    let most = match basis.known {
        Known::Estimated => 2 * (basis.solid + block.0),
        Known::Told => basis.solid + BLOCK_TOKENS,
        Known::Exact => 0,
    };
    (is_about_it && cached > basis.solid / 2 && cached < most).then(|| cached + block.0 / 2)
}

/// Judges a report of `cached` tokens by a pod with cache blocks of `block` tokens.
pub(super) fn judge(basis: &Basis, cached: u64, block: Tokens) -> Verdict {
    let ready = basis.solid + basis.tail;
    // Depths are estimated from bytes.
    let slack = block.0.max(16) + ready / 32;
    if ready == 0 || basis.known == Known::Estimated && told(basis, cached, block).is_some() {
        return Verdict::Nothing;
    }
    if cached + slack < basis.solid {
        if basis.proven > cached + slack {
            return Verdict::Evicted;
        }
        if told(basis, cached, block).is_some() {
            return Verdict::Nothing;
        }
        return Verdict::Kept { solid: cached as f64 / basis.solid as f64, tail: None };
    }
    let beyond = cached.saturating_sub(basis.solid) as f64 / basis.tail.max(1) as f64;
    let tail = if cached + slack >= ready { 1.0 } else { beyond.min(1.0) };
    Verdict::Kept { solid: 1.0, tail: (basis.tail > slack).then_some(tail) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check((solid, tail, proven): (u64, u64, u64), cached: u64, expected: Verdict) {
        let basis = Basis { solid, tail, proven, coming: 5_000, known: Known::Exact, ..Basis::default() };
        assert_eq!(judge(&basis, cached, Tokens(16)), expected);
    }

    #[test]
    fn a_short_hit_is_an_eviction_only_where_a_deeper_one_was_reported() {
        check((0, 0, 0), 900, Verdict::Nothing);
        check((1_000, 0, 0), 990, Verdict::Kept { solid: 1.0, tail: None });
        check((1_000, 0, 0), 1_500, Verdict::Kept { solid: 1.0, tail: None });
        check((1_000, 0, 0), 500, Verdict::Kept { solid: 0.5, tail: None });
        check((1_000, 0, 500), 500, Verdict::Kept { solid: 0.5, tail: None });
        check((1_000, 0, 900), 500, Verdict::Evicted);
        check((1_000, 0, 1_000), 0, Verdict::Evicted);
    }

    #[test]
    fn the_first_report_of_a_prefix_is_its_length() {
        let basis = Basis { solid: 1_000, solid_blocks: 20, ..Basis::default() };
        for (cached, expected) in [(1_400, Some(1_408)), (700, Some(708)), (400, None), (2_100, None)] {
            assert_eq!(told(&basis, cached, Tokens(16)), expected, "{cached}");
        }
        assert_eq!(judge(&basis, 700, Tokens(16)), Verdict::Nothing);
        assert_eq!(told(&Basis { tail: 5, ..basis }, 700, Tokens(16)), None);
    }

    #[test]
    fn an_answer_that_the_template_changes_costs_the_tail_only() {
        check((1_000, 1_000, 0), 1_000, Verdict::Kept { solid: 1.0, tail: Some(0.0) });
        check((1_000, 1_000, 0), 1_500, Verdict::Kept { solid: 1.0, tail: Some(0.5) });
        check((1_000, 1_000, 1_000), 1_990, Verdict::Kept { solid: 1.0, tail: Some(1.0) });
        check((1_000, 10, 0), 1_000, Verdict::Kept { solid: 1.0, tail: None });
    }
}
