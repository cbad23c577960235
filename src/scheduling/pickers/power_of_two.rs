//! Draws two different pods and takes the cheaper one; equals by the draw. Spreads many gates that see the same picture.
//!
//! Reads: the offers' costs and the seeded generator.
//! Range: any offer but the dearest (unless it is alone or shares its cost).
//! Unknown: costs are never unknown here, the frame has settled that.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Rng;
use crate::scheduling::{Context, Offer, Picker};

/// Settings of `power-of-two`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct PowerOfTwo;

/// Makes the picker.
pub fn build(_: &Settings) -> Box<dyn Picker> {
    Box::new(PowerOfTwo)
}

impl Picker for PowerOfTwo {
    fn pick(&self, _: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize {
        let pods = offers.len() as u64;
        let first = rng.below(pods);
        let second = (first + 1 + rng.below(pods.saturating_sub(1))) % pods.max(1);
        let cost = |position: u64| offers.get(position as usize).map_or(f64::INFINITY, |offer| offer.cost);
        if cost(second) < cost(first) { second as usize } else { first as usize }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::scheduling::testing::picks;

    #[test]
    fn never_the_dearest_and_the_cheapest_most() {
        let counts = picks(&PowerOfTwo, &[3.0, 1.0, 2.0], 3000);
        assert_eq!(counts[0], 0);
        assert!(counts[1] > 1800 && counts[2] > 800, "{counts:?}");
        assert_eq!(picks(&PowerOfTwo, &[1.0], 10), [10]);
    }
}
