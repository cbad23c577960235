//! Takes the pod of least cost; among equals one at random.
//!
//! Reads: the offers' costs and the seeded generator.
//! Range: one of the cheapest offers.
//! Unknown: costs are never unknown here, the frame has settled that.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Rng;
use crate::scheduling::{Context, Offer, Picker};

/// Settings of `best`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct Best;

/// Makes the picker.
pub fn build(_: &Settings) -> Box<dyn Picker> {
    Box::new(Best)
}

impl Picker for Best {
    fn pick(&self, _: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize {
        let least = offers.iter().map(|offer| offer.cost).fold(f64::INFINITY, f64::min);
        let is_best = |offer: &Offer| offer.cost <= least;
        let equals = offers.iter().filter(|offer| is_best(offer)).count();
        let nth = rng.below(equals as u64) as usize;
        let mut best = offers.iter().enumerate().filter(|(_, offer)| is_best(offer));
        best.nth(nth).map_or(0, |(position, _)| position)
    }

    fn takes_best(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::scheduling::testing::picks;

    #[test]
    fn least_cost_and_fair_ties() {
        assert_eq!(picks(&Best, &[3.0, 1.0, 2.0], 100), [0, 100, 0]);
        let ties = picks(&Best, &[1.0, 5.0, 1.0], 1000);
        assert_eq!(ties[1], 0);
        assert!(ties[0] > 400 && ties[2] > 400, "{ties:?}");
    }
}
