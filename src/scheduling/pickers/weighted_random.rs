//! Draws a pod with a chance that falls linearly with its cost: the dearest gets `floor`, the cheapest 1.
//!
//! Reads: the offers' costs and the seeded generator.
//! Range: any offer.
//! Unknown: costs are never unknown here, the frame has settled that.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Rng;
use crate::scheduling::{Context, Offer, Picker};

/// Settings of `weighted-random`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Chance of the dearest pod against that of the cheapest, 0 to 1.
    pub floor: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { floor: 0.0 }
    }
}

#[derive(Debug)]
struct WeightedRandom(Settings);

/// Makes the picker.
pub fn build(settings: &Settings) -> Box<dyn Picker> {
    Box::new(WeightedRandom(settings.clone()))
}

impl Picker for WeightedRandom {
    fn pick(&self, _: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize {
        let (least, most) = offers.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), offer| {
            (least.min(offer.cost), most.max(offer.cost))
        });
        let (spread, floor) = ((most - least).max(f64::MIN_POSITIVE), self.0.floor.clamp(0.0, 1.0));
        let weight = |offer: &Offer| (1.0 - (offer.cost - least) / spread).max(floor);
        let mut left = rng.unit() * offers.iter().map(weight).sum::<f64>();
        let drawn = offers.iter().position(|offer| {
            left -= weight(offer);
            left < 0.0
        });
        drawn.unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::scheduling::testing::picks;

    #[test]
    fn chances_fall_with_the_cost() {
        let counts = picks(&WeightedRandom(Settings::default()), &[0.0, 10.0, 5.0], 3000);
        assert!(counts[1] == 0 && counts[0] > 1800 && counts[2] > 800, "{counts:?}");
        assert!(picks(&WeightedRandom(Settings { floor: 1.0 }), &[0.0, 10.0], 1000)[1] > 400);
    }
}
