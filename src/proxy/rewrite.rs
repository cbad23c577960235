//! What pods call a model that clients call otherwise: one name, or one of several by weight.
//!
//! The choice is a function of the conversation (weighted rendezvous hashing: each name draws a number from conversation and name, scaled
//! by its weight, and the highest wins; the logarithmic method of Schindelhauer and Schomaker, Weighted Distributed Hash Tables, 2005),
//! so that every turn goes to the same model through every gate, and a change of weights moves only as many conversations as it must.
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::base::ModelName;

/// Names that pods know, each with its weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Targets(Vec<(ModelName, f64)>);

impl Targets {
    /// One of these names. None with a weight of 0 is chosen.
    pub fn new(targets: impl IntoIterator<Item = (ModelName, u32)>) -> Self {
        Self(
            targets.into_iter().filter(|(_, weight)| *weight > 0).map(|(name, weight)| (name, weight.into())).collect(),
        )
    }

    /// Whether there is something to choose.
    pub fn are_several(&self) -> bool {
        self.0.len() > 1
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &ModelName> {
        self.0.iter().map(|(name, _)| name)
    }

    /// The name for the conversation `key`, of those that are served, else of all; `None` if there is no name.
    pub fn choose(&self, key: u64, is_served: impl Fn(&str) -> bool) -> Option<&ModelName> {
        if !self.are_several() {
            return self.names().next();
        }
        let best = |among: &dyn Fn(&str) -> bool| {
            let drawn =
                self.0.iter().filter(|(name, _)| among(name)).map(|(name, weight)| (name, draw(key, name, *weight)));
            drawn.max_by(|one, other| one.1.total_cmp(&other.1)).map(|(name, _)| name)
        };
        best(&is_served).or_else(|| best(&|_| true))
    }
}

/// Exponentially distributed with the weight as rate, negated: the highest of several is each one's with a probability in proportion to
/// its weight.
fn draw(key: u64, name: &str, weight: f64) -> f64 {
    let hash = xxh3_64_with_seed(name.as_bytes(), key);
    // The 53 bits a double holds, in the middle of their interval so that it is never 0.
    let uniform = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    uniform.ln() / weight
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn targets(weights: &[(&str, u32)]) -> Targets {
        Targets::new(weights.iter().map(|(name, weight)| ((*name).into(), *weight)))
    }

    fn chosen(targets: &Targets, key: u64, served: &[&str]) -> Option<String> {
        targets.choose(key, |name| served.contains(&name)).map(ToString::to_string)
    }

    const BOTH: &[&str] = &["v1", "v2"];

    #[test]
    fn shares_are_as_the_weights() {
        let canary = targets(&[("v1", 95), ("v2", 5)]);
        let mut counts: HashMap<String, u32> = HashMap::new();
        for key in 0..100_000 {
            *counts.entry(chosen(&canary, key, BOTH).unwrap_or_default()).or_default() += 1;
        }
        let share = f64::from(counts.get("v2").copied().unwrap_or(0)) / 100_000.0;
        // Standard deviation 0.0007.
        assert!((share - 0.05).abs() < 0.003, "{share}");
    }

    #[test]
    fn more_weight_moves_only_towards_it() {
        let (before, after) = (targets(&[("v1", 95), ("v2", 5)]), targets(&[("v1", 80), ("v2", 20)]));
        for key in 0..10_000 {
            if chosen(&before, key, BOTH).as_deref() == Some("v2") {
                assert_eq!(chosen(&after, key, BOTH).as_deref(), Some("v2"));
            }
        }
    }

    #[test]
    fn what_nobody_serves_is_passed_over_unless_nobody_serves_any() {
        let canary = targets(&[("v1", 1), ("v2", 1), ("v3", 0)]);
        for key in 0..100 {
            assert_eq!(chosen(&canary, key, &["v2", "v3"]).as_deref(), Some("v2"));
            assert!(chosen(&canary, key, &[]).is_some_and(|name| name != "v3"));
            assert_eq!(chosen(&canary, key, &[]), chosen(&canary, key, BOTH));
        }
        assert_eq!(chosen(&targets(&[("v1", 7)]), 1, &[]).as_deref(), Some("v1"));
        assert_eq!(chosen(&targets(&[]), 1, BOTH), None);
    }
}
