//! What usage teaches about one model: canonical bytes per token, and what part of an expected hit comes true. Both are
//! moving averages with a prior, bounded so that one odd prompt (media, a bug in a pod) cannot spoil them.

/// Bytes per token before anything is known: English text under current tokenizers.
pub(super) const PRIOR: f64 = 4.0;
/// Weight of a new sample once there are enough.
const WEIGHT: f64 = 0.05;

/// Averages of one model.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ratio {
    bytes_per_token: f64,
    samples: u32,
    /// Part of an expected hit that the pod confirms, 0 to 1.
    kept: f64,
}

impl Default for Ratio {
    fn default() -> Self {
        Self { bytes_per_token: PRIOR, samples: 0, kept: 1.0 }
    }
}

impl Ratio {
    /// Canonical bytes per token, 0.5 to 32.
    pub(super) const fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token
    }

    /// The same with another number of bytes per token.
    pub(super) const fn with_bytes_per_token(self, bytes_per_token: f64) -> Self {
        Self { bytes_per_token, ..self }
    }

    /// Part of an expected hit to believe in.
    pub(super) const fn kept(&self) -> f64 {
        self.kept
    }

    /// Learns from one prompt whose exact tokens are known.
    pub(super) fn learn(&mut self, bytes: u64, tokens: u64) {
        if tokens == 0 || bytes < 64 {
            return;
        }
        self.samples = self.samples.saturating_add(1);
        let weight = WEIGHT.max(1.0 / f64::from(self.samples.saturating_add(1)));
        let sample = (bytes as f64 / tokens as f64).clamp(0.5, 32.0);
        self.bytes_per_token += weight * (sample - self.bytes_per_token);
    }

    /// Learns how much of an expected hit the pod had.
    pub(super) fn learn_hit(&mut self, expected: u64, cached: u64) {
        if expected > 0 {
            let kept = (cached as f64 / expected as f64).min(1.0);
            self.kept += WEIGHT * (kept - self.kept);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn it_moves_to_what_it_sees_and_stays_in_bounds() {
        let mut ratio = Ratio::default();
        for _ in 0..100 {
            ratio.learn(3_000, 1_000);
            ratio.learn_hit(100, 50);
        }
        assert!((ratio.bytes_per_token() - 3.0).abs() < 0.1, "{ratio:?}");
        assert!((ratio.kept() - 0.5).abs() < 0.05, "{ratio:?}");
        for _ in 0..100 {
            ratio.learn(1_000, 1_000_000);
            ratio.learn_hit(1, 1_000_000);
        }
        assert!(ratio.bytes_per_token() >= 0.5 && ratio.kept() <= 1.0, "{ratio:?}");
        let before = ratio.bytes_per_token();
        ratio.learn(1_000, 0);
        ratio.learn(1, 1);
        assert_eq!(before.to_bits(), ratio.bytes_per_token().to_bits());
    }
}
