//! What each tenant uses against its limits: requests at once, requests and tokens per minute. A machine without clock.
//!
//! Rates are token buckets that hold a minute's worth and start full. At admission a request takes one request and an estimate of
//! its tokens; when it ends the difference to what it really used is given back or charged, so a bucket may go below zero and
//! then nobody is admitted until it has refilled. A request larger than the whole bucket is admitted when the bucket is full, since
//! it could never be otherwise. All is exact: integers in units of which a token has so many that a microsecond refills whole ones.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::refusal::{Reason, Refusal};
use super::tenant::TenantLimits;
use crate::base::Mono;

/// Microseconds of a minute.
const MINUTE_US: i128 = 60_000_000;
/// Advice to a tenant that has as many requests in flight as it may: nobody knows when one of them ends.
const CONCURRENT_RETRY: Duration = Duration::from_secs(1);

/// What a tenant may use on one of `gates` gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Over all gates.
    pub limits: TenantLimits,
    /// Gates that share them, at least 1.
    pub gates: u32,
}

impl Bounds {
    fn gates(&self) -> u64 {
        u64::from(self.gates.max(1))
    }

    /// Requests at once; rounded down, but never 0, since a tenant that is allowed any is served by every gate.
    pub fn concurrent_max(&self) -> Option<u64> {
        self.limits.concurrent_max.map(|all| (all / self.gates()).max(1))
    }
}

/// A bucket. One of what it holds is `MINUTE_US * gates` units, and `per_minute` of these flow in each microsecond.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    units: i128,
    /// Units of one token or request; the level is kept when the number of gates changes.
    scale: i128,
    at: Mono,
}

impl Bucket {
    /// Brings it up to `now` under the limit in force; a new bucket is full.
    fn filled(bucket: Option<Self>, now: Mono, per_minute: u64, gates: u64) -> Self {
        let scale = MINUTE_US * i128::from(gates);
        let full = i128::from(per_minute) * MINUTE_US;
        let Some(old) = bucket else { return Self { units: full, scale, at: now } };
        let level = if old.scale == scale { old.units } else { old.units * scale / old.scale };
        let flowed = i128::from(now.0.saturating_sub(old.at.0)) * i128::from(per_minute);
        Self { units: level.saturating_add(flowed).min(full), scale, at: old.at.max(now) }
    }

    /// Time until `amount` may be taken; zero if it may now.
    fn wait(&self, amount: u64, per_minute: u64) -> Duration {
        let full = i128::from(per_minute) * MINUTE_US;
        let missing = (i128::from(amount) * self.scale).min(full) - self.units;
        if missing <= 0 {
            return Duration::ZERO;
        }
        let micros = (missing + i128::from(per_minute) - 1) / i128::from(per_minute.max(1));
        Duration::from_micros(u64::try_from(micros).unwrap_or(u64::MAX))
    }

    fn take(&mut self, amount: u64) {
        self.units = self.units.saturating_sub(i128::from(amount) * self.scale);
    }

    fn give(&mut self, amount: u64) {
        self.units = self.units.saturating_add(i128::from(amount) * self.scale);
    }
}

/// What one tenant uses.
#[derive(Debug, Default)]
struct Account {
    concurrent: u64,
    requests: Option<Bucket>,
    tokens: Option<Bucket>,
}

/// What was taken for one request; given back by [`Limits::ended`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Charge {
    tenant: Arc<str>,
    tokens: u64,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Used {
    /// It never reached a pod: it counts for nothing.
    Nothing,
    /// It used so many tokens.
    Tokens(u64),
    /// Nobody knows; the estimate stands.
    Unknown,
}

/// The machine. Accounts exist for tenants with limits that have asked, whose names come from configuration and the file of keys.
#[derive(Debug, Default)]
pub struct Limits {
    accounts: HashMap<Arc<str>, Account>,
}

impl Limits {
    /// Takes a request and an estimate of its tokens from a tenant's buckets, or nothing at all.
    pub fn admit(&mut self, now: Mono, tenant: &Arc<str>, bounds: Bounds, tokens: u64) -> Result<Charge, Refusal> {
        let account = self.accounts.entry(Arc::clone(tenant)).or_default();
        let refused = |reason, wait: Duration| Err(Refusal { reason, retry_after: Some(wait) });
        if bounds.concurrent_max().is_some_and(|most| account.concurrent >= most) {
            return refused(Reason::TenantConcurrentLimit, CONCURRENT_RETRY);
        }
        let filled = |bucket, limit: Option<u64>| {
            limit.map(|per_minute| (Bucket::filled(bucket, now, per_minute, bounds.gates()), per_minute))
        };
        let mut requests = filled(account.requests, bounds.limits.requests_per_minute);
        let mut budget = filled(account.tokens, bounds.limits.tokens_per_minute);
        for (bucket, amount, reason) in
            [(&requests, 1, Reason::TenantRequestsLimit), (&budget, tokens, Reason::TenantTokensLimit)]
        {
            let wait = bucket.map_or(Duration::ZERO, |(bucket, per_minute)| bucket.wait(amount, per_minute));
            if !wait.is_zero() {
                return refused(reason, wait);
            }
        }
        for (bucket, amount) in [(&mut requests, 1), (&mut budget, tokens)] {
            if let Some((bucket, _)) = bucket {
                bucket.take(amount);
            }
        }
        account.requests = requests.map(|(bucket, _)| bucket);
        account.tokens = budget.map(|(bucket, _)| bucket);
        account.concurrent += 1;
        Ok(Charge { tenant: Arc::clone(tenant), tokens })
    }

    /// A request that was admitted ended. Once per charge; what it takes back is exactly what was taken.
    pub fn ended(&mut self, charge: &Charge, used: Used) {
        let Some(account) = self.accounts.get_mut(&charge.tenant) else { return };
        account.concurrent = account.concurrent.saturating_sub(1);
        let tokens = match used {
            Used::Unknown => return,
            Used::Nothing => 0,
            Used::Tokens(tokens) => tokens,
        };
        if let (Used::Nothing, Some(bucket)) = (used, &mut account.requests) {
            bucket.give(1);
        }
        if let Some(bucket) = &mut account.tokens {
            bucket.give(charge.tokens);
            bucket.take(tokens);
        }
    }

    /// Requests a tenant holds.
    pub fn concurrent(&self, tenant: &str) -> u64 {
        self.accounts.get(tenant).map_or(0, |account| account.concurrent)
    }

    /// Forgets tenants that are not kept and hold nothing.
    pub fn keep(&mut self, is_kept: impl Fn(&str) -> bool) {
        self.accounts.retain(|tenant, account| account.concurrent > 0 || is_kept(tenant));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    fn bounds(concurrent: Option<u64>, requests: Option<u64>, tokens: Option<u64>, gates: u32) -> Bounds {
        let limits =
            TenantLimits { concurrent_max: concurrent, requests_per_minute: requests, tokens_per_minute: tokens };
        Bounds { limits, gates }
    }

    fn check(got: Result<Charge, Refusal>, expected: Result<(), (Reason, u64)>) -> Option<Charge> {
        let seen = got
            .as_ref()
            .map(|_| ())
            .map_err(|refusal| (refusal.reason, u64::try_from(refusal.retry_after.unwrap().as_micros()).unwrap()));
        assert_eq!(seen, expected);
        got.ok()
    }

    #[test]
    fn a_refusal_says_exactly_when_it_may_go() {
        let (mut limits, tenant) = (Limits::default(), Arc::from("t"));
        let bounds = bounds(None, Some(7), None, 1);
        for _ in 0..7 {
            check(limits.admit(Mono(0), &tenant, bounds, 0), Ok(()));
        }
        // One of seven per minute comes every 8.571428... s.
        check(limits.admit(Mono(SECOND), &tenant, bounds, 0), Err((Reason::TenantRequestsLimit, 7_571_429)));
        check(limits.admit(Mono(8_571_428), &tenant, bounds, 0), Err((Reason::TenantRequestsLimit, 1)));
        check(limits.admit(Mono(8_571_429), &tenant, bounds, 0), Ok(()));
    }

    #[test]
    fn tokens_are_settled_and_a_bucket_may_go_below_zero() {
        let (mut limits, tenant) = (Limits::default(), Arc::from("t"));
        let bounds = bounds(None, None, Some(600), 1);
        let charge = check(limits.admit(Mono(0), &tenant, bounds, 100), Ok(())).unwrap();
        limits.ended(&charge, Used::Tokens(900));
        // 300 below zero and 10 wanted, at 10 a second.
        check(limits.admit(Mono(0), &tenant, bounds, 10), Err((Reason::TenantTokensLimit, 31 * SECOND)));
        let charge = check(limits.admit(Mono(31 * SECOND), &tenant, bounds, 10), Ok(())).unwrap();
        limits.ended(&charge, Used::Nothing);
        check(limits.admit(Mono(31 * SECOND), &tenant, bounds, 10), Ok(()));
        // Larger than the bucket: when it is full.
        check(limits.admit(Mono(31 * SECOND), &tenant, bounds, 5_000), Err((Reason::TenantTokensLimit, 60 * SECOND)));
        check(limits.admit(Mono(91 * SECOND), &tenant, bounds, 5_000), Ok(()));
        check(limits.admit(Mono(91 * SECOND), &tenant, bounds, 1), Err((Reason::TenantTokensLimit, 440_100_000)));
    }

    #[test]
    fn gates_share_limits() {
        let (mut limits, tenant) = (Limits::default(), Arc::from("t"));
        let shared = bounds(Some(5), Some(4), None, 2);
        let held: Vec<_> = (0..2).map(|_| check(limits.admit(Mono(0), &tenant, shared, 0), Ok(())).unwrap()).collect();
        check(limits.admit(Mono(0), &tenant, shared, 0), Err((Reason::TenantConcurrentLimit, SECOND)));
        for charge in &held {
            limits.ended(charge, Used::Tokens(0));
        }
        check(limits.admit(Mono(0), &tenant, shared, 0), Err((Reason::TenantRequestsLimit, 30 * SECOND)));
        assert_eq!(bounds(Some(1), None, None, 3).concurrent_max(), Some(1));
        // Alone it has the whole rate at once.
        let alone = bounds(None, Some(4), None, 1);
        check(limits.admit(Mono(15 * SECOND), &tenant, alone, 0), Ok(()));
        check(limits.admit(Mono(15 * SECOND), &tenant, alone, 0), Err((Reason::TenantRequestsLimit, 15 * SECOND)));
    }

    #[test]
    fn who_left_is_forgotten() {
        let (mut limits, tenant) = (Limits::default(), Arc::from("t"));
        let charge = limits.admit(Mono(0), &tenant, bounds(Some(1), None, None, 1), 0).unwrap();
        limits.keep(|_| false);
        assert_eq!(limits.concurrent("t"), 1);
        limits.ended(&charge, Used::Unknown);
        limits.keep(|_| false);
        assert!(limits.accounts.is_empty());
    }

    #[derive(Clone, Debug)]
    enum Step {
        Ask { tenant: usize, tokens: u64 },
        End { which: usize, used: Option<u64> },
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_usize..3, 0_u64..400).prop_map(|(tenant, tokens)| Step::Ask { tenant, tokens }),
            3 => (any::<usize>(), proptest::option::of(0_u64..400)).prop_map(|(which, used)| Step::End { which, used }),
            2 => (0_u64..20 * SECOND).prop_map(Step::Wait),
        ]
    }

    /// What is admitted in the time since the start is at most a minute's worth and what has flown in since.
    fn within(admitted: u64, per_minute: u64, since_us: u64, gates: u64) -> bool {
        u128::from(admitted) * 60_000_000 * u128::from(gates)
            <= u128::from(per_minute) * (60_000_000 + u128::from(since_us))
    }

    proptest! {
        #[test]
        fn no_limit_is_ever_exceeded_and_nothing_leaks(steps in vec(step(), 1..200), gates in 1_u32..4) {
            let bounds = bounds(Some(6), Some(30), Some(1_200), gates);
            let names: [Arc<str>; 3] = ["a", "b", "c"].map(Arc::from);
            let (mut limits, mut now) = (Limits::default(), 0);
            let mut held: Vec<(usize, u64, Charge)> = Vec::new();
            // Requests admitted, tokens settled for good.
            let mut sums = [(0_u64, 0_u64); 3];
            for step in steps {
                match step {
                    Step::Wait(time) => now += time,
                    Step::Ask { tenant, tokens } => match limits.admit(Mono(now), &names[tenant], bounds, tokens) {
                        Ok(charge) => {
                            sums[tenant].0 += 1;
                            held.push((tenant, tokens, charge));
                        }
                        Err(refusal) => {
                            let wait = refusal.retry_after.unwrap();
                            prop_assert!(!wait.is_zero());
                            if refusal.reason != Reason::TenantConcurrentLimit {
                                // One microsecond before is too early for this reason.
                                let early = Mono(now).after(wait.saturating_sub(Duration::from_micros(1)));
                                let mut copy = Limits::default();
                                copy.accounts.insert(Arc::clone(&names[tenant]), Account {
                                    concurrent: 0,
                                    requests: limits.accounts[&names[tenant]].requests,
                                    tokens: limits.accounts[&names[tenant]].tokens,
                                });
                                prop_assert!(copy.admit(early, &names[tenant], bounds, tokens).is_err());
                            }
                        }
                    },
                    Step::End { which, used } if !held.is_empty() => {
                        let (tenant, tokens, charge) = held.swap_remove(which % held.len());
                        // An honest estimate is an upper bound.
                        let used = used.map_or(Used::Nothing, |used| Used::Tokens(used.min(tokens)));
                        limits.ended(&charge, used);
                        match used {
                            Used::Tokens(used) => sums[tenant].1 += used,
                            _ => sums[tenant].0 -= 1,
                        }
                    }
                    Step::End { .. } => {}
                }
                for (tenant, name) in names.iter().enumerate() {
                    let own: Vec<_> = held.iter().filter(|(owner, ..)| *owner == tenant).collect();
                    prop_assert_eq!(limits.concurrent(name), own.len() as u64);
                    prop_assert!(own.len() as u64 <= (6 / u64::from(gates)).max(1));
                    let in_flight: u64 = own.iter().map(|(_, tokens, _)| tokens).sum();
                    let gates = u64::from(gates);
                    prop_assert!(within(sums[tenant].0, 30, now, gates));
                    prop_assert!(within(sums[tenant].1 + in_flight, 1_200, now, gates));
                }
            }
            for (_, _, charge) in &held {
                limits.ended(charge, Used::Unknown);
            }
            prop_assert!(names.iter().all(|name| limits.concurrent(name) == 0));
        }
    }
}
