//! Gauges and the guards that give back what they booked, a panic included, so that no gauge can drift or underflow.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A number that goes up and down. Cloning shares it.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// The value now.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Overwrites it. Not for gauges that are also held by guards.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Books `amount` until the guard is dropped.
    pub fn hold(&self, amount: u64) -> Held {
        self.0.fetch_add(amount, Relaxed);
        Held { gauge: Arc::clone(&self.0), amount }
    }
}

/// An amount booked on a gauge. Dropping it gives the amount back.
#[derive(Debug)]
#[must_use = "dropping the guard gives the amount back"]
pub struct Held {
    gauge: Arc<AtomicU64>,
    amount: u64,
}

impl Held {
    /// What is booked.
    pub const fn amount(&self) -> u64 {
        self.amount
    }

    /// Books `more` on top.
    pub fn grow(&mut self, more: u64) {
        self.gauge.fetch_add(more, Relaxed);
        self.amount += more;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gauge.fetch_sub(self.amount, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    #[test]
    fn a_guard_gives_back_also_while_unwinding() {
        let gauge = Gauge::default();
        let mut held = gauge.hold(2);
        held.grow(3);
        assert_eq!((gauge.value(), held.amount()), (5, 5));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _held = gauge.hold(7);
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(unwound.is_err());
        assert_eq!(gauge.value(), 5);
        drop(held);
        assert_eq!(gauge.value(), 0);
    }
}
