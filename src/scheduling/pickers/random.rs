//! Takes any pod, all with the same chance, whatever they cost. A baseline.
//!
//! Reads: the seeded generator.
//! Range: any offer.
//! Unknown: nothing is read that could be.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Rng;
use crate::scheduling::{Context, Offer, Picker};

/// Settings of `random`: none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {}

#[derive(Debug)]
struct Random;

/// Makes the picker.
pub fn build(_: &Settings) -> Box<dyn Picker> {
    Box::new(Random)
}

impl Picker for Random {
    fn pick(&self, _: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize {
        rng.below(offers.len() as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::scheduling::testing::picks;

    #[test]
    fn everybody_gets_some() {
        assert!(picks(&Random, &[3.0, 1.0, 2.0], 3000).iter().all(|&count| count > 900));
    }
}
