//! Draws a pod, the cheaper the likelier: `exp(-cost / temperature)` over costs scaled to 0..1.
//!
//! Reads: the offers' costs and the seeded generator.
//! Range: any offer; with a temperature of 0 one of the cheapest.
//! Unknown: costs are never unknown here, the frame has settled that.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Rng;
use crate::scheduling::{Context, Offer, Picker};

/// Settings of `softmax`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How evenly it draws: 0 takes the cheapest, 1 makes the dearest about a third as likely as the cheapest.
    pub temperature: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { temperature: 0.2 }
    }
}

#[derive(Debug)]
struct Softmax(Settings);

/// Makes the picker.
pub fn build(settings: &Settings) -> Box<dyn Picker> {
    Box::new(Softmax(settings.clone()))
}

impl Picker for Softmax {
    fn pick(&self, _: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize {
        let (least, most) = offers.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), offer| {
            (least.min(offer.cost), most.max(offer.cost))
        });
        let temperature = if self.0.temperature.is_finite() { self.0.temperature.max(1e-6) } else { 1e-6 };
        let scale = 1.0 / ((most - least).max(1e-100) * temperature);
        let weight = |offer: &Offer| (-(offer.cost - least) * scale).exp();
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
    fn cheaper_is_likelier() {
        let counts = picks(&Softmax(Settings { temperature: 1.0 }), &[0.0, 10.0, 5.0], 6000);
        assert!(counts[0] > counts[2] && counts[2] > counts[1] && counts[1] > 900, "{counts:?}");
        assert_eq!(picks(&Softmax(Settings { temperature: 0.0 }), &[3.0, 1.0, 2.0], 100), [0, 100, 0]);
        assert!(picks(&Softmax(Settings::default()), &[1.0, 1.0], 1000).iter().all(|&count| count > 400));
    }
}
