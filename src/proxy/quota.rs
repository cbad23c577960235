//! The limits of tenants behind a lock: the pure machine is in `flow`; here it meets the clock and the way requests end.
use std::sync::Arc;

use parking_lot::Mutex;

use crate::base::Mono;
use crate::flow::{Bounds, Charge, Limits, Refusal, Used};

/// What tenants use.
#[derive(Debug, Default)]
pub struct Quotas(Mutex<Limits>);

impl Quotas {
    /// Asks for admission. The ticket gives back what it holds when it is dropped.
    pub(super) fn admit(
        self: &Arc<Self>,
        now: Mono,
        tenant: &Arc<str>,
        bounds: Bounds,
        tokens: u64,
    ) -> Result<Ticket, Refusal> {
        let charge = self.0.lock().admit(now, tenant, bounds, tokens)?;
        Ok(Ticket { quotas: Arc::clone(self), charge, used: Used::Unknown })
    }

    /// Requests a tenant with limits holds.
    pub fn concurrent(&self, tenant: &str) -> u64 {
        self.0.lock().concurrent(tenant)
    }

    /// Forgets tenants that are not kept and hold nothing.
    pub fn keep(&self, is_kept: impl Fn(&str) -> bool) {
        self.0.lock().keep(is_kept);
    }
}

/// An admitted request. If nobody says what it used, as when its task is gone, the estimate stands.
#[derive(Debug)]
pub(super) struct Ticket {
    quotas: Arc<Quotas>,
    charge: Charge,
    used: Used,
}

impl Ticket {
    /// The request ended and used this.
    pub(super) fn settle(mut self, used: Used) {
        self.used = used;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.quotas.0.lock().ended(&self.charge, self.used);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flow::TenantLimits;

    #[test]
    fn a_ticket_gives_back_on_every_way_out() {
        let (quotas, tenant) = (Arc::new(Quotas::default()), Arc::from("t"));
        let limits = TenantLimits { concurrent_max: Some(1), tokens_per_minute: Some(60), ..TenantLimits::default() };
        let bounds = Bounds { limits, gates: 1 };
        quotas.admit(Mono(0), &tenant, bounds, 60).unwrap().settle(Used::Nothing);
        let held = quotas.admit(Mono(0), &tenant, bounds, 60).unwrap();
        assert!(quotas.admit(Mono(0), &tenant, bounds, 0).is_err());
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _held = held;
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert_eq!((unwound.is_err(), quotas.concurrent("t")), (true, 0));
        assert!(quotas.admit(Mono(0), &tenant, bounds, 1).is_err(), "the estimate stands");
    }
}
