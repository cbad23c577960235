//! Histograms of durations with fixed bounds in microseconds; exported in seconds.
//!
//! [`Histogram`] is shared and costs two relaxed additions per observation. [`LocalHistogram`] belongs to one stream and
//! costs none: it counts on the stack of its owner and adds up into the shared one every [`FLUSH_EVERY`] observations and
//! when dropped. Bounds are upper and inclusive, as Prometheus wants them; the last bucket has no bound.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Most finite bounds of a histogram.
pub const BOUNDS_MAX: usize = 24;

/// Observations a [`LocalHistogram`] keeps to itself at most.
pub const FLUSH_EVERY: u32 = 64;

/// Upper bounds of time to first token \[µs\].
pub const TTFT_US: &[u64] = &[
    1_000,
    5_000,
    10_000,
    20_000,
    40_000,
    80_000,
    100_000,
    250_000,
    500_000,
    750_000,
    1_000_000,
    2_500_000,
    5_000_000,
    7_500_000,
    10_000_000,
    20_000_000,
    40_000_000,
    80_000_000,
    160_000_000,
    320_000_000,
];

/// Upper bounds of the gap between two events of a stream \[µs\].
pub const GAP_US: &[u64] = &[
    1_000, 2_500, 5_000, 10_000, 15_000, 20_000, 30_000, 40_000, 50_000, 75_000, 100_000, 150_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 60_000_000,
];

/// Upper bounds of a whole request \[µs\].
pub const E2E_US: &[u64] = &[
    10_000,
    50_000,
    100_000,
    300_000,
    500_000,
    1_000_000,
    2_000_000,
    5_000_000,
    10_000_000,
    20_000_000,
    30_000_000,
    60_000_000,
    120_000_000,
    240_000_000,
    480_000_000,
    960_000_000,
    1_920_000_000,
    3_600_000_000,
];

/// Upper bounds of the gate's own work \[µs\].
pub const OVERHEAD_US: &[u64] = &[
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 10_000_000,
];

/// Counts by bucket, shared.
#[derive(Debug)]
pub struct Histogram {
    bounds_us: &'static [u64],
    counts: [AtomicU64; BOUNDS_MAX + 1],
    sum_us: AtomicU64,
}

/// One look at a histogram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Upper bounds \[µs\].
    pub bounds_us: &'static [u64],
    /// Observations per bucket, not cumulative; one more than bounds, the last is unbounded.
    pub counts: Vec<u64>,
    /// Sum of all observations \[µs\].
    pub sum_us: u64,
}

impl Histogram {
    /// An empty histogram over `bounds_us`, which must ascend; bounds past [`BOUNDS_MAX`] are cut off.
    pub fn new(bounds_us: &'static [u64]) -> Self {
        let bounds_us = bounds_us.get(..BOUNDS_MAX).unwrap_or(bounds_us);
        Self { bounds_us, counts: [const { AtomicU64::new(0) }; BOUNDS_MAX + 1], sum_us: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        self.observe_us(micros(duration));
    }

    /// Counts one duration in microseconds.
    pub fn observe_us(&self, duration_us: u64) {
        if let Some(count) = self.counts.get(bucket(self.bounds_us, duration_us)) {
            count.fetch_add(1, Relaxed);
        }
        self.sum_us.fetch_add(duration_us, Relaxed);
    }

    /// The counts now. Sum and counts may be a few observations apart.
    pub fn snapshot(&self) -> Snapshot {
        let counts = self.counts.iter().take(self.bounds_us.len() + 1).map(|count| count.load(Relaxed)).collect();
        Snapshot { bounds_us: self.bounds_us, counts, sum_us: self.sum_us.load(Relaxed) }
    }
}

/// Counts of one stream on their way into a shared histogram.
#[derive(Debug)]
pub struct LocalHistogram {
    shared: Arc<Histogram>,
    counts: [u32; BOUNDS_MAX + 1],
    pending: u32,
    sum_us: u64,
}

impl LocalHistogram {
    /// Starts with nothing; adds up into `shared`.
    pub fn new(shared: Arc<Histogram>) -> Self {
        Self { shared, counts: [0; BOUNDS_MAX + 1], pending: 0, sum_us: 0 }
    }

    /// Counts one duration in microseconds.
    pub fn observe_us(&mut self, duration_us: u64) {
        if let Some(count) = self.counts.get_mut(bucket(self.shared.bounds_us, duration_us)) {
            *count += 1;
        }
        self.sum_us += duration_us;
        self.pending += 1;
        if self.pending >= FLUSH_EVERY {
            self.flush();
        }
    }

    /// Adds everything kept so far to the shared histogram.
    pub fn flush(&mut self) {
        for (local, shared) in self.counts.iter_mut().zip(&self.shared.counts).filter(|(local, _)| **local > 0) {
            shared.fetch_add(u64::from(std::mem::take(local)), Relaxed);
        }
        self.shared.sum_us.fetch_add(std::mem::take(&mut self.sum_us), Relaxed);
        self.pending = 0;
    }
}

impl Drop for LocalHistogram {
    fn drop(&mut self) {
        self.flush();
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn bucket(bounds_us: &[u64], duration_us: u64) -> usize {
    bounds_us.iter().position(|bound| duration_us <= *bound).unwrap_or(bounds_us.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    #[test]
    fn bounds_ascend_and_fit() {
        for bounds in [TTFT_US, GAP_US, E2E_US, OVERHEAD_US] {
            assert!(bounds.len() <= BOUNDS_MAX);
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]), "{bounds:?}");
        }
    }

    #[test]
    fn local_and_shared_count_the_same() {
        let (direct, shared) = (Histogram::new(GAP_US), Arc::new(Histogram::new(GAP_US)));
        let mut local = LocalHistogram::new(Arc::clone(&shared));
        for number in 0..u64::from(FLUSH_EVERY) + 7 {
            direct.observe(Duration::from_micros(number * 1_700_000));
            local.observe_us(number * 1_700_000);
        }
        assert_eq!(shared.snapshot().counts.iter().sum::<u64>(), u64::from(FLUSH_EVERY));
        drop(local);
        assert_eq!(shared.snapshot(), direct.snapshot());
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let histogram = Histogram::new(&[10, 20]);
        for value in [0, 10, 11, 20, 21, u64::MAX / 2] {
            histogram.observe_us(value);
        }
        assert_eq!(histogram.snapshot().counts, [2, 2, 2]);
    }
}
