//! The exact times at which an open loop sends, fixed before the first request leaves.
//!
//! Times are offsets from the start. A schedule depends on its arguments only, so the same seed gives the same load to every target.
//! It must not depend on how fast the target answers: that is the point of an open loop.

use std::time::Duration;

/// How requests are spread over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arrivals {
    /// Exponential gaps: independent users.
    Poisson,
    /// Equal gaps.
    Uniform,
}

/// SplitMix64: small, seeded, good enough to spread load (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// A generator that always yields the same numbers for the same seed.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 random bits.
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in [0, 1).
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number in [0, bound); 0 when the bound is 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        if bound == 0 { 0 } else { (self.bits() % bound as u64) as usize }
    }
}

/// Send times at `rate` requests per second over `span`, at most `most` of them.
pub(crate) fn plan(arrivals: Arrivals, rate: f64, span: Duration, most: usize, seed: u64) -> Vec<Duration> {
    let mut dice = Dice::new(seed);
    let mut times = Vec::new();
    let mut at = 0.0_f64;
    while rate > 0.0 && times.len() < most {
        at += match arrivals {
            Arrivals::Poisson => -(1.0 - dice.unit()).ln() / rate,
            Arrivals::Uniform => 1.0 / rate,
        };
        if at >= span.as_secs_f64() {
            break;
        }
        times.push(Duration::from_secs_f64(at));
    }
    times
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn uniform_gaps_are_equal() {
        let times = plan(Arrivals::Uniform, 100.0, Duration::from_secs(1), 1000, 1);
        assert_eq!(times.len(), 99, "one every 10 ms, the one at exactly 1 s is out");
        assert_eq!(times[0].as_millis(), 10);
        assert!((times[50].as_micros() - times[49].as_micros()).abs_diff(10_000) <= 1);
    }

    #[test]
    fn poisson_has_the_rate_and_the_spread() {
        let times = plan(Arrivals::Poisson, 1000.0, Duration::from_secs(20), usize::MAX, 7);
        let count = times.len() as f64;
        assert!((count - 20_000.0).abs() < 600.0, "seed 7 gave {count} arrivals, four sigma is 566");
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1].as_secs_f64() - pair[0].as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let var = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((var.sqrt() / mean - 1.0).abs() < 0.05, "exponential gaps have a deviation equal to their mean");
    }

    #[test]
    fn same_seed_same_schedule_and_the_count_is_bounded() {
        let one = plan(Arrivals::Poisson, 50.0, Duration::from_secs(10), 100, 3);
        assert_eq!(one, plan(Arrivals::Poisson, 50.0, Duration::from_secs(10), 100, 3));
        assert_ne!(one, plan(Arrivals::Poisson, 50.0, Duration::from_secs(10), 100, 4));
        assert_eq!(one.len(), 100);
        assert!(plan(Arrivals::Uniform, 0.0, Duration::from_secs(1), 10, 1).is_empty());
    }
}
