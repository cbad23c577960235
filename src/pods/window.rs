//! Success ratio over a sliding window, exact to one bucket: ten buckets, each a tenth of the window.
//!
//! Ten buckets of one second are what Linkerd's success-rate breaker uses. Memory is fixed, and an idle pod costs nothing:
//! old buckets are cleared when the next sample comes.
use std::time::Duration;

use crate::base::Mono;

const BUCKETS: usize = 10;

/// Good and bad ends of the last window.
#[derive(Clone, Debug)]
pub(super) struct Window {
    bucket_us: u64,
    newest: u64,
    buckets: [Bucket; BUCKETS],
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    good: u32,
    bad: u32,
}

impl Window {
    /// An empty window of this length (at least ten microseconds).
    pub(super) fn new(length: Duration) -> Self {
        let bucket_us = u64::try_from(length.as_micros()).unwrap_or(u64::MAX) / BUCKETS as u64;
        Self { bucket_us: bucket_us.max(1), newest: 0, buckets: [Bucket::default(); BUCKETS] }
    }

    /// Books one end.
    pub(super) fn add(&mut self, now: Mono, good: bool) {
        let tick = now.0 / self.bucket_us;
        // A sample that comes late, after a newer one, is booked on the newest bucket.
        let steps = usize::try_from(tick.saturating_sub(self.newest)).unwrap_or(usize::MAX).min(BUCKETS);
        self.buckets.rotate_right(steps);
        self.buckets.iter_mut().take(steps).for_each(|bucket| *bucket = Bucket::default());
        self.newest = self.newest.max(tick);
        if let Some(bucket) = self.buckets.first_mut() {
            let count = if good { &mut bucket.good } else { &mut bucket.bad };
            *count = count.saturating_add(1);
        }
    }

    /// (good, all) ends of the window as of the last sample.
    pub(super) fn sums(&self) -> (u64, u64) {
        let (good, bad) = self
            .buckets
            .iter()
            .fold((0, 0), |(good, bad), bucket| (good + u64::from(bucket.good), bad + u64::from(bucket.bad)));
        (good, good + bad)
    }

    /// Forgets everything.
    pub(super) fn clear(&mut self) {
        self.buckets = [Bucket::default(); BUCKETS];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    #[test]
    fn agrees_with_a_plain_list_of_samples() {
        let seed = 11;
        let mut rng = Rng::new(seed);
        let mut window = Window::new(Duration::from_secs(10));
        let (mut now, mut samples) = (Mono::ZERO, Vec::new());
        for step in 0..5_000 {
            let pause_ms_max = if rng.below(50) == 0 { 20_000 } else { 400 };
            now = now.after(Duration::from_millis(rng.below(pause_ms_max)));
            let good = rng.below(3) > 0;
            window.add(now, good);
            samples.push((now.0 / 1_000_000, good));
            let recent = samples.iter().filter(|(second, _)| second + 10 > now.0 / 1_000_000);
            let expected = recent.fold((0, 0), |(good, all), sample| (good + u64::from(sample.1), all + 1));
            assert_eq!(window.sums(), expected, "seed {seed} step {step}");
        }
    }
}
