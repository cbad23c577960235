//! What a plug-in is: the three traits, what they return, and how the registry describes one.
//!
//! Plug-ins are pure and keep no state between decisions: same context, same answer. They must not allocate when asked to
//! judge, cost or pick, and must not depend on the order of pods.
use std::fmt;

use super::candidates::Candidates;
use super::decision::Nobody;
use super::marginal::Rates;
use super::request::Context;
use crate::base::{PodId, Rng};

/// A filter's word on one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Verdict {
    /// May be chosen.
    #[default]
    Keep,
    /// May not; the words say why, from a fixed set per filter. Shown by explain.
    Drop(&'static str),
}

impl Verdict {
    /// Whether the pod stays.
    pub const fn keeps(self) -> bool {
        matches!(self, Self::Keep)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("keep"),
            Self::Drop(why) => write!(f, "drop: {why}"),
        }
    }
}

impl serde::Serialize for Verdict {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Keeps or drops pods.
pub trait Filter: fmt::Debug + Send + Sync {
    /// Writes one verdict per candidate, in their order. `verdicts` has the length of `pods` and starts as all `Keep`.
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]);

    /// What to tell the client if this filter dropped the last pod.
    fn nobody(&self) -> Nobody {
        Nobody::Filtered
    }

    /// Whether a pod that it drops is wrong for the request as long as both are what they are, and not only at this moment: then no
    /// queue may send it there later either.
    fn is_lasting(&self) -> bool {
        false
    }

    /// Whether a pinned pod is used even if this filter dropped it. True where the pinned pod, though bad, is the only one
    /// that can answer.
    fn yields_to_pin(&self) -> bool {
        false
    }
}

/// The bounds within which a scorer's costs lie, both included, and their unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// Least cost.
    pub low: f64,
    /// Greatest cost; may be infinite when the unit is a count, the costs themselves never are.
    pub high: f64,
    /// Unit in words: `ratio`, `tokens`, `requests`.
    pub unit: &'static str,
}

/// Puts a cost on pods. **Lower is better**, for every scorer.
pub trait Scorer: fmt::Debug + Send + Sync {
    /// Where its costs lie, before the weight.
    fn range(&self) -> Range;

    /// Writes one cost per candidate, in their order; `costs` has the length of `pods` and starts as all `None`. `None` is
    /// "unknown": the frame then uses the mean of the known costs (or nothing, if no pod's is known), so a pod without a
    /// reading neither wins by it nor loses by it.
    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]);

    /// Tells of what its costs are made, for explain: calls `tell` with the position of the candidate, the name of a term and
    /// its value. The terms of a candidate add up to its cost. Nothing for a scorer whose cost is one thing.
    fn terms(&self, _: &Context<'_>, _: &Candidates<'_>, _: &mut dyn FnMut(usize, &'static str, f64)) {}

    /// What it counts a second that the request waits as; `None` if its costs are no times.
    fn second(&self, _: &super::Request<'_>) -> Option<f64> {
        None
    }

    /// The constants by which it goes, if its cost is that of [`super::marginal`] and nothing else: lets the survey of a large
    /// fleet leave out the pods that can't be best.
    fn marginal(&self) -> Option<&Rates> {
        None
    }
}

/// One candidate with its total cost, as pickers see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Offer {
    /// Which pod.
    pub pod: PodId,
    /// Weighted sum of the scorers' costs; finite; lower is better.
    pub cost: f64,
    /// Where the pod is in the context's pods.
    pub at: u32,
}

/// Takes one of the pods left.
pub trait Picker: fmt::Debug + Send + Sync {
    /// The position of its choice in `offers`, which are sorted by pod id and never empty. Any randomness comes from `rng`.
    fn pick(&self, cx: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize;

    /// Whether it always takes one of the cheapest. False keeps large fleets whole: any pod may be taken.
    fn takes_best(&self) -> bool {
        false
    }
}

/// What the registry knows of one plug-in `P` (boxed trait object) with its settings `S`.
#[derive(Clone, Copy, Debug)]
pub struct Plugin<S> {
    /// Name in configuration, metrics and explain: the file's name with `-` for `_`.
    pub name: &'static str,
    /// Its settings with all defaults.
    pub default: fn() -> S,
    /// Text of its file, for the conformance suite and generated documents.
    pub source: &'static str,
}

impl<S> Plugin<S> {
    /// The `//!` header of the file, without the marks.
    pub fn header(&self) -> String {
        let lines = self.source.lines().map_while(|line| line.strip_prefix("//!"));
        lines.map(str::trim).collect::<Vec<_>>().join("\n")
    }
}

/// A draw between a key and a pod that follows from both alone, for rendezvous hashing: the pod with the highest draw has the key.
pub(super) const fn drawn(key: u64, pod: PodId) -> u64 {
    Rng::new(key ^ (pod.0 as u64 + 1).wrapping_mul(0xD6E8_FEB8_6659_FD93)).bits()
}

/// Scales known costs so that the least is 0 and the most 1; all 0 if they are equal.
pub(super) fn spread(costs: &mut [Option<f64>]) {
    let known = costs.iter().flatten();
    let (least, most) =
        known.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), cost| (low.min(*cost), high.max(*cost)));
    for cost in costs.iter_mut().flatten() {
        *cost = if most > least { (*cost - least) / (most - least) } else { 0.0 };
    }
}
