//! Times in a fixed amount of memory: a log-linear histogram of nanoseconds with 256 steps per power of two.
//!
//! Relative error of a percentile is below 0.4 %; minimum, maximum, count and sum are exact. It must not grow with the number of samples.

use serde_json::{Value, json};
use std::time::Duration;

const STEP_BITS: u32 = 8;
const STEPS: u64 = 1 << STEP_BITS;

/// A bounded record of durations.
#[derive(Clone, Debug, Default)]
pub(crate) struct Histogram {
    counts: Vec<u32>,
    count: u64,
    sum_ns: u128,
    max_ns: u64,
}

impl Histogram {
    /// Adds one duration.
    pub(crate) fn add(&mut self, time: Duration) {
        let ns = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        let slot = slot(ns);
        if self.counts.len() <= slot {
            self.counts.resize(slot + 1, 0);
        }
        if let Some(count) = self.counts.get_mut(slot) {
            *count = count.saturating_add(1);
        }
        self.count += 1;
        self.sum_ns += u128::from(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// The duration below or at which the share `q` (0 to 1) of the samples lies, in microseconds; `None` without samples.
    pub(crate) fn quantile_us(&self, q: f64) -> Option<f64> {
        if self.count == 0 {
            return None;
        }
        let rank = ((q * self.count as f64).ceil() as u64).clamp(1, self.count);
        let mut seen = 0;
        for (slot, count) in self.counts.iter().enumerate() {
            let count = u64::from(*count);
            if count > 0 && seen + count >= rank {
                let (low, width) = bounds(slot);
                let inside = (rank - seen) as f64 - 0.5;
                let ns = (low as f64 + width as f64 * inside / count as f64).min(self.max_ns as f64);
                return Some(ns / 1000.0);
            }
            seen += count;
        }
        Some(self.max_ns as f64 / 1000.0)
    }

    /// Mean in microseconds; `None` without samples.
    pub(crate) fn mean_us(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum_ns as f64 / self.count as f64 / 1000.0)
    }

    /// Count, mean, percentiles and maximum in microseconds.
    pub(crate) fn json(&self) -> Value {
        json!({
            "count": self.count, "mean_us": self.mean_us(), "p50_us": self.quantile_us(0.5), "p90_us": self.quantile_us(0.9),
            "p99_us": self.quantile_us(0.99), "p999_us": self.quantile_us(0.999), "max_us": (self.count > 0).then_some(self.max_ns as f64 / 1000.0),
        })
    }

    /// The same on one line, in milliseconds.
    pub(crate) fn line(&self) -> String {
        let ms = |us: Option<f64>| us.map_or_else(|| "-".to_owned(), |us| format!("{:.3}", us / 1000.0));
        let at = |q| ms(self.quantile_us(q));
        let (mean, max) = (ms(self.mean_us()), ms((self.count > 0).then_some(self.max_ns as f64 / 1000.0)));
        format!(
            "mean {mean}  p50 {}  p90 {}  p99 {}  p99.9 {}  max {max}  ({} samples)",
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            self.count
        )
    }
}

fn slot(ns: u64) -> usize {
    let shift = (u64::BITS - ns.leading_zeros()).saturating_sub(STEP_BITS + 1);
    (u64::from(shift) * STEPS + (ns >> shift)) as usize
}

/// Lowest value of a slot and its width.
fn bounds(slot: usize) -> (u64, u64) {
    let slot = slot as u64;
    if slot < 2 * STEPS {
        return (slot, 1);
    }
    let shift = slot / STEPS - 1;
    ((slot - shift * STEPS) << shift, 1 << shift)
}

/// Middle of a list of numbers (mean of the two middle ones for an even count); `None` for an empty list.
pub(crate) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    if sorted.len() % 2 == 1 {
        return Some(*upper);
    }
    sorted.get(sorted.len() / 2 - 1).map(|lower| f64::midpoint(*lower, *upper))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::schedule::Dice;

    #[test]
    fn slots_cover_every_value_once() {
        for ns in (0..3000).chain([1 << 20, (1 << 20) + 4097, 123_456_789_012, u64::MAX]) {
            let (low, width) = bounds(slot(ns));
            assert!(low <= ns && ns - low < width, "{ns} is not in [{low}, {low}+{width})");
            assert!(width == 1 || width as f64 / low as f64 <= 1.0 / 256.0, "{ns} lies in a slot too wide");
        }
    }

    #[test]
    fn percentiles_match_a_sorted_list() {
        let mut dice = Dice::new(11);
        let mut histogram = Histogram::default();
        let mut all: Vec<u64> = (0..50_000).map(|_| (dice.unit().powi(4) * 1e9) as u64 + 50_000).collect();
        for ns in &all {
            histogram.add(Duration::from_nanos(*ns));
        }
        all.sort_unstable();
        for q in [0.01, 0.5, 0.9, 0.99, 0.999, 1.0] {
            let rank = ((q * all.len() as f64).ceil() as usize).max(1);
            let exact = all[rank - 1] as f64 / 1000.0;
            let got = histogram.quantile_us(q).unwrap();
            assert!((got / exact - 1.0).abs() < 0.004, "q {q}: exact {exact} got {got}");
        }
    }

    #[test]
    fn nothing_measured_is_unknown_and_not_zero() {
        assert_eq!(Histogram::default().quantile_us(0.5), None);
        assert_eq!(Histogram::default().mean_us(), None);
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }
}
