//! What missed SLOs say of the choice between one pod and two.
//!
//! Prefill on a decode pod delays those that decode there; prefill on another pod makes the request itself wait there, and for the
//! KV to come. How many seconds of the one are worth a second of the other follows from what clients were promised, and from
//! which promise breaks: a queue of the misses, clamped, which forgets (drift plus penalty, Neely 2010, as in the EDPP study
//! of llm-d; there the queues are of seconds, here of misses, so that no scale has to be chosen).
//!
//! The constants were chosen on `conf/lab/disagg-tuning.yaml`; goodput hardly changes within a factor of two of each.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::RwLock;

use crate::base::{ModelName, Slo};

/// What a second that decoding loses is worth before anything was missed, against one before the first token.
const WEIGHT: f64 = 2.0;
/// Doublings of it per miss.
const GAIN: f64 = 0.3;
/// Halvings of it per request that was late on a prefill pod: fewer, since where all is overloaded that is no reason to load
/// the decode pods as well.
const GAIN_BACK: f64 = 0.15;
/// Part of the doublings that each request forgets.
const LEAK: f64 = 0.003;
/// Bounds of the doublings.
const LEAN: (f64, f64) = (-2.0, 3.0);

/// What a client got.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Got {
    /// Time to the first token \[seconds\].
    pub ttft_s: f64,
    /// Mean time between tokens \[seconds\]; `None` if there was one token, or if it was not seen.
    pub itl_s: Option<f64>,
    /// Part of the time to the first token until the prefill pod had answered \[seconds\]; 0 if one pod did it all.
    pub prefill_pod_s: f64,
}

/// How far the choice leans towards two pods.
#[derive(Debug, Default)]
pub struct Balance {
    /// Doublings of the weight, as bits of an `f64`.
    lean: AtomicU64,
}

impl Balance {
    /// What a second that decoding loses is worth, against one before the first token.
    pub fn weight(&self) -> f64 {
        WEIGHT * f64::from_bits(self.lean.load(Relaxed)).exp2()
    }

    /// A request ended. What it waited for on a prefill pod speaks against two pods; a slow stream, and what it waited for
    /// elsewhere, speak for them. Two that end at once may count as one.
    pub fn ended(&self, slo: &Slo, got: &Got) {
        let (is_late, is_slow) = slo.missed(got.ttft_s, got.itl_s);
        let slow = if is_slow { GAIN } else { 0.0 };
        let is_prefill_pods = got.prefill_pod_s > 0.5 * got.ttft_s;
        let late = match (is_late, is_prefill_pods) {
            (false, _) => 0.0,
            (true, true) => -GAIN_BACK,
            (true, false) => GAIN,
        };
        let lean = f64::from_bits(self.lean.load(Relaxed)) * (1.0 - LEAK) + slow + late;
        self.lean.store(lean.clamp(LEAN.0, LEAN.1).to_bits(), Relaxed);
    }
}

/// Most models with a balance of their own.
const MODELS_MAX: usize = 1_024;
/// Classes of urgency.
const CLASSES: usize = 3;

/// A balance for each model and class: what one class is promised says nothing of another.
#[derive(Debug, Default)]
pub struct Balances {
    by_model: RwLock<HashMap<ModelName, [Arc<Balance>; CLASSES]>>,
    others: Arc<Balance>,
}

impl Balances {
    /// That of a model and a class, by its place among the classes. Made at first use.
    pub fn of(&self, model: &ModelName, class: usize) -> Arc<Balance> {
        if let Some(balance) = self.by_model.read().get(model).and_then(|classes| classes.get(class)) {
            return Arc::clone(balance);
        }
        let mut all = self.by_model.write();
        if all.len() >= MODELS_MAX && !all.contains_key(model) {
            return Arc::clone(&self.others);
        }
        let classes = all.entry(ModelName::clone(model)).or_default();
        Arc::clone(classes.get(class).unwrap_or(&self.others))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_and_classes_do_not_share_one() {
        let balances = Balances::default();
        let late = Got { ttft_s: 9.0, itl_s: None, prefill_pod_s: 0.0 };
        balances.of(&"a".into(), 0).ended(&SLO, &late);
        let leans = |model: &str, class| (balances.of(&model.into(), class).weight() - WEIGHT).abs() > 1e-9;
        assert_eq!([leans("a", 0), leans("a", 1), leans("b", 0), leans("b", 9)], [true, false, false, false]);
        for number in 0..2 * MODELS_MAX {
            balances.of(&number.to_string().into(), 0);
        }
        assert!(balances.by_model.read().len() <= MODELS_MAX);
    }

    const SLO: Slo = Slo { ttft_s: Some(1.0), itl_s: Some(0.05) };
    const GOOD: Got = Got { ttft_s: 0.5, itl_s: Some(0.04), prefill_pod_s: 0.0 };

    fn after(gots: impl IntoIterator<Item = Got>) -> f64 {
        let balance = Balance::default();
        gots.into_iter().for_each(|got| balance.ended(&SLO, &got));
        balance.weight()
    }

    #[test]
    fn misses_lean_away_from_what_caused_them_within_bounds_and_are_forgotten() {
        let slow = Got { itl_s: Some(0.06), ..GOOD };
        let late = Got { ttft_s: 2.0, ..GOOD };
        let late_on_two = Got { prefill_pod_s: 1.5, ..late };
        assert!((after([GOOD, GOOD]) - WEIGHT).abs() < 1e-9);
        assert!(after([slow]) > WEIGHT && after([late]) > WEIGHT && after([late_on_two]) < WEIGHT);
        let is_times = |weight: f64, times: f64| (weight / WEIGHT / times - 1.0).abs() < 1e-9;
        assert!(is_times(after([slow; 100]), 8.0) && is_times(after([late_on_two; 100]), 0.25));
        let calm = after([slow; 100].into_iter().chain(std::iter::repeat_n(GOOD, 3_000)));
        assert!((calm / WEIGHT - 1.0).abs() < 0.01, "{calm}");
    }

    #[test]
    fn without_a_promise_nothing_is_missed() {
        let balance = Balance::default();
        balance.ended(&Slo::default(), &Got { ttft_s: 900.0, itl_s: Some(9.0), prefill_pod_s: 900.0 });
        assert!((balance.weight() - WEIGHT).abs() < 1e-9);
    }
}
