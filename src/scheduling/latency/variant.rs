//! What is known of one variant: its step time, one factor per pod, and how good the predictions are.
//!
//! A pod's factor moves slowly and leans back to 1, so that it takes what the variant cannot explain and no more. With a single
//! pod there is nothing to compare: the variant takes all.
use std::collections::HashMap;

use super::fit::{Fit, octave};
use super::meter::{Sample, predicted};
use crate::base::PodId;
use crate::pods::{STEP_TOKENS, StepTime};

/// What a prediction was about: a first token without and with a wait before it, a gap without and with prefills of ours.
pub const REGIMES: [&str; 4] = ["first_idle", "first_queued", "gap_decode", "gap_mixed"];

const GAP_ROWS: usize = 10;
const GAP_COLUMNS: usize = 11;
const FIRST_ROWS: usize = 12;
const FIRST_COLUMNS: usize = 6;
/// Samples between two solutions.
const SOLVE_EVERY: u32 = 8;
/// Fixed time of a request before its first token (network, HTTP, scheduling), as far as is known beforehand \[seconds\].
const OVERHEAD_PRIOR_S: f64 = 0.003;
/// How quickly a pod's factor moves, and how strongly it leans back.
const FACTOR_RATE: f64 = 0.02;
const FACTOR_LEAN: f64 = 0.000_5;
const FACTOR_MAX: f64 = 5.0;
/// How quickly the error forgets.
const ERROR_RATE: f64 = 0.02;

/// The model of one variant.
#[derive(Debug)]
pub struct Variant {
    gaps: Fit<3, { GAP_ROWS * GAP_COLUMNS }>,
    firsts: Fit<3, { FIRST_ROWS * FIRST_COLUMNS }>,
    factors: HashMap<PodId, f64>,
    seen: [u64; 2],
    unsolved: u32,
    errors: [Option<f64>; 4],
}

/// What a variant has learnt.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Constants of a pod with factor 1.
    pub step: StepTime,
    /// Fixed time before a first token \[seconds\].
    pub overhead_s: f64,
    /// First tokens and gaps learnt from.
    pub seen: [u64; 2],
    /// Mean relative error by regime, in the order of [`REGIMES`]; `None` before the first sample.
    pub errors: [Option<f64>; 4],
}

impl Default for Variant {
    fn default() -> Self {
        let prior = StepTime::PRIOR;
        Self {
            gaps: Fit::new([prior.a, prior.c, prior.d]),
            firsts: Fit::new([OVERHEAD_PRIOR_S, prior.b, prior.e]),
            factors: HashMap::new(),
            seen: [0; 2],
            unsolved: 0,
            errors: [None; 4],
        }
    }
}

impl Variant {
    /// Constants of a pod.
    pub fn step(&self, pod: PodId) -> StepTime {
        self.shared().scaled(self.factor(pod))
    }

    /// What has been learnt.
    pub fn report(&self) -> Report {
        let [overhead_s, ..] = self.firsts.constants();
        Report { step: self.shared(), overhead_s, seen: self.seen, errors: self.errors }
    }

    /// Takes a sample of one of its pods.
    pub fn observe(&mut self, pod: PodId, sample: &Sample) {
        let factor = self.factor(pod);
        let seconds = match *sample {
            Sample::First { seconds, .. } | Sample::Gap { seconds, .. } => seconds,
        };
        let [overhead_s, ..] = self.firsts.constants();
        let expected = predicted(sample, &self.shared().scaled(factor), overhead_s);
        if !(seconds.is_finite() && seconds > 0.0 && expected > 0.0) {
            return;
        }
        self.err(sample, (seconds - expected).abs() / seconds);
        let own = seconds / factor;
        match *sample {
            Sample::Gap { batch, is_clean: true, .. } => {
                let cell =
                    octave(batch.sequences, 1.5, GAP_ROWS) * GAP_COLUMNS + octave(batch.context, 2048.0, GAP_COLUMNS);
                self.gaps.add(cell, [1.0, batch.sequences, batch.context], own);
                self.seen = [self.seen[0], self.seen[1] + 1];
            }
            Sample::First { uncached, hit, batch, is_clean: true, .. } => {
                let (new, before) = (uncached.max(1) as f64, hit as f64);
                let steps = uncached.max(1).div_ceil(STEP_TOKENS) as f64;
                let [a, c, d] = self.gaps.constants();
                let known = steps * (a + c * batch.sequences + d * batch.context);
                let cell = octave(new, 64.0, FIRST_ROWS) * FIRST_COLUMNS + octave(before, 1024.0, FIRST_COLUMNS);
                // What is left is at least a little: a step that is taken for longer than it is must not hide the prefill.
                self.firsts.add(cell, [1.0, new, new * (before + 0.5 * new)], (own - known).max(own * 0.02));
                self.seen = [self.seen[0] + 1, self.seen[1]];
            }
            _ => return,
        }
        self.lean(pod, seconds / expected);
        self.unsolved += 1;
        if self.unsolved >= SOLVE_EVERY || self.seen.iter().sum::<u64>() < u64::from(SOLVE_EVERY) {
            self.unsolved = 0;
            self.gaps.solve();
            self.firsts.solve();
        }
    }

    /// Forgets the pods that are not to be kept.
    pub fn keep(&mut self, is_kept: impl Fn(PodId) -> bool) {
        self.factors.retain(|pod, _| is_kept(*pod));
    }

    fn shared(&self) -> StepTime {
        let ([a, c, d], [_, b, e]) = (self.gaps.constants(), self.firsts.constants());
        StepTime { a, b, c, d, e }
    }

    fn factor(&self, pod: PodId) -> f64 {
        if self.factors.len() < 2 { 1.0 } else { self.factors.get(&pod).copied().unwrap_or(1.0) }
    }

    fn lean(&mut self, pod: PodId, ratio: f64) {
        let factor = self.factors.entry(pod).or_insert(1.0);
        let moved = factor.ln() * (1.0 - FACTOR_LEAN) + FACTOR_RATE * ratio.ln().clamp(-1.0, 1.0);
        *factor = moved.exp().clamp(1.0 / FACTOR_MAX, FACTOR_MAX);
        if self.factors.len() < 2 {
            self.factors.insert(pod, 1.0);
        }
    }

    fn err(&mut self, sample: &Sample, error: f64) {
        let regime = match sample {
            Sample::First { is_clean, .. } => usize::from(!is_clean),
            Sample::Gap { is_clean, .. } => 2 + usize::from(!is_clean),
        };
        let error = error.min(10.0);
        if let Some(mean) = self.errors.get_mut(regime) {
            *mean = Some(mean.map_or(error, |mean| mean + ERROR_RATE * (error - mean)));
        }
    }
}
