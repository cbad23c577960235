//! Time of one engine step, `a + b·prefill + c·sequences + d·Σcontext + e·Σ(new·before)`, in seconds.
//!
//! The form is the one that published engine models share. The constants of a pod are published here by the latency model
//! (`scheduling::latency`) and read by every decision: five relaxed atomics, so that a look at a thousand pods takes no lock.
//! A reader may see constants of two publications mixed; they differ by little. Before the first sample they are the prior.
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::base::Tokens;

/// Tokens that one step takes at most; what vLLM calls `max_num_batched_tokens`, with a usual value.
pub const STEP_TOKENS: u64 = 8_192;

/// Constants of the step time. All in seconds, none negative.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepTime {
    /// A step by itself.
    pub a: f64,
    /// Per prompt token computed.
    pub b: f64,
    /// Per sequence that decodes one token.
    pub c: f64,
    /// Per token of context of a decoding sequence.
    pub d: f64,
    /// Per pair of a prompt token computed and a token before it.
    pub e: f64,
}

impl StepTime {
    /// What is taken until a pod has been observed: Qwen3-32B on two H100 (fitted against llm-d's published peaks).
    pub const PRIOR: Self = Self { a: 0.016, b: 44e-6, c: 20e-6, d: 76e-9, e: 2.1e-9 };

    /// Seconds to prefill `uncached` tokens behind `hit` cached ones, alone on the pod.
    #[inline]
    pub fn prefill(&self, uncached: u64, hit: u64) -> f64 {
        let (new, before) = (uncached as f64, hit as f64);
        let steps = (uncached.saturating_add(STEP_TOKENS - 1) / STEP_TOKENS) as f64;
        self.b * new + self.e * new * (before + 0.5 * new) + steps * self.a
    }

    /// Seconds of a step in which `sequences` with `context` tokens in all take one token each.
    #[inline]
    pub fn decode(&self, sequences: f64, context: f64) -> f64 {
        self.a + self.c * sequences + self.d * context
    }

    /// Seconds of a pod that a whole request takes: its prefill, and the part of the steps that `output` tokens are decoded in.
    pub fn request(&self, prompt: Tokens, cached: Tokens, output: f64) -> f64 {
        self.prefill(prompt.less(cached).0, cached.0) + output * (self.c + self.d * prompt.0 as f64)
    }

    /// The constants of a pod that takes `factor` times as long.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        Self { a: self.a * factor, b: self.b * factor, c: self.c * factor, d: self.d * factor, e: self.e * factor }
    }

    /// Constants with their names, in order.
    pub const fn terms(&self) -> [(&'static str, f64); 5] {
        [("a", self.a), ("b", self.b), ("c", self.c), ("d", self.d), ("e", self.e)]
    }
}

impl Default for StepTime {
    fn default() -> Self {
        Self::PRIOR
    }
}

/// Published constants of one pod.
#[derive(Debug)]
pub struct StepCell([AtomicU32; 5]);

impl StepCell {
    /// The constants now.
    #[inline]
    pub fn get(&self) -> StepTime {
        let value = |index: usize| self.0.get(index).map_or(0.0, |cell| f64::from(f32::from_bits(cell.load(Relaxed))));
        StepTime { a: value(0), b: value(1), c: value(2), d: value(3), e: value(4) }
    }

    /// Publishes new constants.
    pub fn set(&self, step: StepTime) {
        for (cell, (_, value)) in self.0.iter().zip(step.terms()) {
            cell.store((value as f32).to_bits(), Relaxed);
        }
    }
}

impl Default for StepCell {
    fn default() -> Self {
        Self(StepTime::PRIOR.terms().map(|(_, value)| AtomicU32::new((value as f32).to_bits())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_follow_the_formula() {
        let step = StepTime { a: 1.0, b: 0.1, c: 0.01, d: 0.001, e: 1e-6 };
        assert!((step.prefill(10_000, 0) - (1000.0 + 50.0 + 2.0)).abs() < 1e-9);
        assert!((step.prefill(100, 1_000) - (10.0 + 0.105 + 1.0)).abs() < 1e-9);
        assert!((step.decode(10.0, 1000.0) - 2.1).abs() < 1e-9);
        assert!(step.prefill(0, 9).abs() < 1e-9, "nothing to compute takes no step");
    }

    #[test]
    fn a_cell_gives_back_what_was_set() {
        let cell = StepCell::default();
        assert!((cell.get().b / StepTime::PRIOR.b - 1.0).abs() < 1e-6);
        cell.set(StepTime::PRIOR.scaled(2.0));
        assert!((cell.get().e / StepTime::PRIOR.e - 2.0).abs() < 1e-6);
    }
}
