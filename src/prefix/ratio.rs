//! What usage teaches about one model: canonical bytes per token, and what part of a believed hit comes true, by the kind
//! of boundary where it would end. All are moving averages with a prior, bounded so that one odd prompt (media, a bug in
//! a pod) cannot spoil them.
use super::fingerprint::Boundary;

/// Bytes per token before anything is known: English text under current tokenizers.
pub(super) const PRIOR: f64 = 4.0;
/// Weight of a new sample once there are enough.
const WEIGHT: f64 = 0.05;
/// Weight of a new sample of what comes true.
const KEPT_WEIGHT: f64 = 0.1;

/// Numbers that are saved: bytes per token, part of the tail, parts by boundary.
pub(super) const PARTS: usize = 2 + Boundary::ALL.len();

/// Averages of one model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Ratio {
    bytes_per_token: f64,
    samples: u32,
    /// Part of a believed hit that the pod confirms, 0 to 1, by boundary.
    kept: [f64; Boundary::ALL.len()],
    /// The same of what the pod has generated: templates change answers when they come back in the next turn.
    tail: f64,
}

impl Default for Ratio {
    fn default() -> Self {
        Self { bytes_per_token: PRIOR, samples: 0, kept: [1.0; Boundary::ALL.len()], tail: 1.0 }
    }
}

impl Ratio {
    /// Averages as they were saved; nothing if they are out of bounds.
    pub(super) fn saved(samples: u32, parts: [f64; PARTS]) -> Option<Self> {
        let [bytes_per_token, tail, kept @ ..] = parts;
        let are_parts = kept.iter().chain([&tail]).all(|part| (0.0..=1.0).contains(part));
        let is_good = (0.5..=32.0).contains(&bytes_per_token) && are_parts;
        is_good.then_some(Self { bytes_per_token, samples, kept, tail })
    }

    /// All that is kept over a restart.
    pub(super) const fn parts(&self) -> (u32, [f64; PARTS]) {
        let [middle, message, tools] = self.kept;
        (self.samples, [self.bytes_per_token, self.tail, middle, message, tools])
    }

    /// Canonical bytes per token, 0.5 to 32.
    pub(super) const fn bytes_per_token(&self) -> f64 {
        self.bytes_per_token
    }

    /// The same with another number of bytes per token.
    pub(super) const fn with_bytes_per_token(self, bytes_per_token: f64) -> Self {
        Self { bytes_per_token, ..self }
    }

    /// Part of a believed hit to count on, where it ends at such a boundary.
    pub(super) fn kept(&self, boundary: Boundary) -> f64 {
        self.kept.get(boundary as usize).copied().unwrap_or(1.0)
    }

    /// Part of generated text to count on.
    pub(super) const fn tail(&self) -> f64 {
        self.tail
    }

    /// Is nothing discounted?
    pub(super) fn is_plain(&self) -> bool {
        self.tail >= 1.0 && self.kept.iter().all(|kept| *kept >= 1.0)
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

    /// Learns what part of a hit came true.
    pub(super) fn learn_kept(&mut self, boundary: Boundary, solid: f64, tail: Option<f64>) {
        if let Some(kept) = self.kept.get_mut(boundary as usize) {
            approach(kept, solid);
        }
        if let Some(part) = tail {
            approach(&mut self.tail, part);
        }
    }
}

/// Moves an average towards a sample; what is as good as whole becomes whole.
fn approach(kept: &mut f64, sample: f64) {
    *kept += KEPT_WEIGHT * (sample.clamp(0.0, 1.0) - *kept);
    if *kept > 0.999 {
        *kept = 1.0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn it_moves_to_what_it_sees_and_stays_in_bounds() {
        let mut ratio = Ratio::default();
        assert!(ratio.is_plain());
        for _ in 0..100 {
            ratio.learn(3_000, 1_000);
            ratio.learn_kept(Boundary::Middle, 0.5, Some(0.0));
        }
        assert!((ratio.bytes_per_token() - 3.0).abs() < 0.1, "{ratio:?}");
        assert!((ratio.kept(Boundary::Middle) - 0.5).abs() < 0.01 && ratio.tail() < 0.01, "{ratio:?}");
        assert!(ratio.kept(Boundary::Message) >= 1.0 && !ratio.is_plain(), "{ratio:?}");
        for _ in 0..100 {
            ratio.learn(1_000, 1_000_000);
            ratio.learn_kept(Boundary::Middle, 7.0, Some(1.0));
        }
        assert!(ratio.bytes_per_token() >= 0.5 && ratio.is_plain(), "{ratio:?}");
        let before = ratio.bytes_per_token();
        ratio.learn(1_000, 0);
        ratio.learn(1, 1);
        assert_eq!(before.to_bits(), ratio.bytes_per_token().to_bits());
        let (samples, parts) = ratio.parts();
        assert_eq!(Ratio::saved(samples, parts), Some(ratio));
        assert!(Ratio::saved(samples, parts.map(|part| part * f64::NAN)).is_none());
    }
}
