//! Fits non-negative constants to times, by cells of similar work.
//!
//! Samples are kept as one running mean per cell (work of similar size, on a scale of powers of two), so a cell that is not
//! visited keeps what it knew, a busy one cannot outvote the others, and work that never varies adds nothing to what is known
//! of its parts. The constants minimise relative errors over the cells, with a prior of the weight of one sample whose *scale*
//! is taken from the data: without variety all constants move together. Outliers are clipped to thrice or a third of a
//! cell's mean. Pure; a few kilobytes per fit.

/// Samples a cell remembers; older ones fade.
const MEMORY: f64 = 64.0;
/// Weight of the prior, in cells that were seen once.
const PRIOR_WEIGHT: f64 = 1.0;
/// Rounds of coordinate descent; three unknowns are exact to the last digit long before.
const SWEEPS: usize = 60;
/// How far a sample may be from the mean of its cell.
const CLIP: f64 = 3.0;
/// How far the first sample of a cell may be from what is expected there.
const CLIP_FIRST: f64 = 20.0;

/// One cell.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell<const N: usize> {
    seen: f64,
    work: [f64; N],
    time: f64,
}

/// Times of work with `N` features, in `CELLS` cells.
#[derive(Clone, Debug)]
pub(super) struct Fit<const N: usize, const CELLS: usize> {
    cells: Box<[Cell<N>; CELLS]>,
    prior: [f64; N],
    constants: [f64; N],
}

impl<const N: usize, const CELLS: usize> Fit<N, CELLS> {
    /// Nothing seen yet: the prior.
    pub(super) fn new(prior: [f64; N]) -> Self {
        let empty = Cell { seen: 0.0, work: [0.0; N], time: 0.0 };
        Self { cells: Box::new([empty; CELLS]), prior, constants: prior }
    }

    /// The constants now; each is 0 or more.
    pub(super) const fn constants(&self) -> [f64; N] {
        self.constants
    }

    /// The time these constants give to `work`.
    pub(super) fn expected(&self, work: &[f64; N]) -> f64 {
        dot(&self.constants, work)
    }

    /// Takes one sample into the cell of this number.
    pub(super) fn add(&mut self, cell: usize, work: [f64; N], time: f64) {
        let expected = self.expected(&work);
        let is_sane = time.is_finite() && time > 0.0 && work.iter().all(|part| part.is_finite() && *part >= 0.0);
        let Some(cell) = self.cells.get_mut(cell.min(CELLS - 1)).filter(|_| is_sane && expected > 0.0) else { return };
        let (middle, clip) = if cell.seen < 2.0 { (expected, CLIP_FIRST) } else { (cell.time, CLIP) };
        let time = time.clamp(middle / clip, middle * clip);
        cell.seen = (cell.seen + 1.0).min(MEMORY);
        let share = 1.0 / cell.seen;
        cell.time += (time - cell.time) * share;
        for (mean, part) in cell.work.iter_mut().zip(work) {
            *mean += (part - *mean) * share;
        }
    }

    /// Finds the constants anew.
    pub(super) fn solve(&mut self) {
        let Some(scale) = self.scale() else { return };
        let prior = self.prior.map(|constant| constant * scale);
        let (mut square, mut right) = ([[0.0; N]; N], [0.0; N]);
        for cell in self.cells.iter().filter(|cell| cell.seen > 0.0 && cell.time > 0.0) {
            let relative = cell.work.map(|part| part / cell.time);
            for ((row, right), part) in square.iter_mut().zip(&mut right).zip(relative) {
                *right += cell.seen * part;
                for (entry, other) in row.iter_mut().zip(relative) {
                    *entry += cell.seen * part * other;
                }
            }
        }
        for (place, constant) in prior.iter().enumerate().filter(|(_, constant)| **constant > 0.0) {
            let weight = PRIOR_WEIGHT / (constant * constant);
            if let (Some(entry), Some(right)) =
                (square.get_mut(place).and_then(|row| row.get_mut(place)), right.get_mut(place))
            {
                *entry += weight;
                *right += weight * constant;
            }
        }
        self.constants = descend(&square, &right, prior);
    }

    /// How much slower than the prior everything is: the weighted geometric mean over the cells.
    fn scale(&self) -> Option<f64> {
        let (mut sum, mut weight) = (0.0, 0.0);
        for cell in self.cells.iter().filter(|cell| cell.seen > 0.0 && cell.time > 0.0) {
            let ratio = cell.time / dot(&self.prior, &cell.work).max(f64::MIN_POSITIVE);
            sum += cell.seen * ratio.clamp(1e-6, 1e6).ln();
            weight += cell.seen;
        }
        (weight > 0.0).then(|| (sum / weight).exp())
    }
}

fn dot<const N: usize>(constants: &[f64; N], work: &[f64; N]) -> f64 {
    constants.iter().zip(work).map(|(constant, part)| constant * part).sum()
}

/// Least squares with constants of 0 or more, by coordinate descent on the normal equations.
fn descend<const N: usize>(square: &[[f64; N]; N], right: &[f64; N], mut found: [f64; N]) -> [f64; N] {
    for _ in 0..SWEEPS {
        for (place, (row, right)) in square.iter().zip(right).enumerate() {
            let Some(diagonal) = row.get(place).copied().filter(|entry| *entry > 0.0) else { continue };
            let Some(own) = found.get(place).copied() else { continue };
            let better = own + (right - dot(row, &found)) / diagonal;
            if let Some(slot) = found.get_mut(place).filter(|_| better.is_finite()) {
                *slot = better.max(0.0);
            }
        }
    }
    found
}

/// Cell of a number on a scale of powers of two: 0 below `first`, then one per doubling, `cells - 1` at most.
pub(super) fn octave(value: f64, first: f64, cells: usize) -> usize {
    if value < first { 0 } else { ((value / first).log2() as usize).saturating_add(1).min(cells - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    const TRUE: [f64; 3] = [0.01, 50e-6, 100e-9];

    fn fed(samples: u32, spread: bool, mut noise: impl FnMut(&mut Rng) -> f64) -> Fit<3, 64> {
        let (mut fit, mut rng) = (Fit::new([0.016, 20e-6, 76e-9]), Rng::new(1));
        for _ in 0..samples {
            let (n, context) = if spread { (rng.unit() * 200.0, rng.unit() * 400_000.0) } else { (10.0, 20_000.0) };
            let work = [1.0, n, context];
            let cell = octave(n, 1.0, 8) * 8 + octave(context, 4096.0, 8);
            fit.add(cell, work, dot(&TRUE, &work) * noise(&mut rng));
            fit.solve();
        }
        fit
    }

    #[test]
    fn constants_are_found_through_noise_and_outliers() {
        let noise = |rng: &mut Rng| if rng.below(20) == 0 { 50.0 } else { 0.95 + 0.1 * rng.unit() };
        for (found, is) in fed(3_000, true, noise).constants().into_iter().zip(TRUE) {
            assert!((found / is - 1.0).abs() < 0.35, "{found} is {is}");
        }
    }

    #[test]
    fn without_variety_only_the_scale_is_learnt() {
        let fit = fed(500, false, |_| 3.0);
        let [a, c, d] = fit.constants();
        assert!((a / c / (0.016 / 20e-6) - 1.0).abs() < 0.2, "{a} {c} {d}");
        let expected = fit.expected(&[1.0, 10.0, 20_000.0]) / (3.0 * dot(&TRUE, &[1.0, 10.0, 20_000.0]));
        assert!((expected - 1.0).abs() < 0.05, "{expected}");
    }

    #[test]
    fn nonsense_changes_nothing() {
        let mut fit = fed(10, true, |_| 1.0);
        let before = fit.constants();
        for time in [f64::NAN, f64::INFINITY, -1.0, 0.0] {
            fit.add(0, [1.0, 1.0, 1.0], time);
        }
        fit.add(0, [f64::NAN, 1.0, 1.0], 1.0);
        fit.solve();
        assert_eq!(fit.constants().map(f64::to_bits), before.map(f64::to_bits));
    }
}
