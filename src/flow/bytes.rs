//! A bound on the memory of request bodies, shared by all connections: take before reading, give back by dropping.
//!
//! Lock-free; a body that grows while it is read takes more as it grows. The bound is exact: what is held never exceeds it.
//! Which model's bodies these are is known only after reading; shares per model are the gate's business.
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire};

/// The budget.
#[derive(Debug)]
pub struct ByteBudget {
    bytes_max: u64,
    held: AtomicU64,
}

impl ByteBudget {
    /// A budget of `bytes_max`.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes_max, held: AtomicU64::new(0) })
    }

    /// Bytes held now.
    pub fn held(&self) -> u64 {
        self.held.load(Acquire)
    }

    /// Takes `bytes`, or nothing if they do not fit.
    pub fn take(self: &Arc<Self>, bytes: u64) -> Option<Held> {
        let mut held = Held { budget: Arc::clone(self), bytes: 0 };
        held.grow(bytes).then_some(held)
    }
}

/// Bytes taken from a budget; dropping it gives them back.
#[derive(Debug)]
pub struct Held {
    budget: Arc<ByteBudget>,
    bytes: u64,
}

impl Held {
    /// Takes `more`; false, and nothing taken, if they do not fit.
    #[must_use]
    pub fn grow(&mut self, more: u64) -> bool {
        let most = self.budget.bytes_max;
        let fits = |held: u64| held.checked_add(more).filter(|&sum| sum <= most);
        let is_taken = self.budget.held.fetch_update(AcqRel, Acquire, fits).is_ok();
        if is_taken {
            self.bytes += more;
        }
        is_taken
    }

    /// Bytes held by this one.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.bytes, AcqRel);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn exact_bound_and_everything_comes_back() {
        let budget = ByteBudget::new(100);
        let mut first = budget.take(60).unwrap();
        assert!(budget.take(41).is_none());
        assert!(first.grow(40) && !first.grow(1));
        assert_eq!((budget.held(), first.bytes()), (100, 100));
        drop(first);
        assert_eq!(budget.held(), 0);
        assert!(budget.take(u64::MAX).is_none() && budget.take(0).is_some());
    }
}
