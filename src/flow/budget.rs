//! Bounds all retries of one model, so that a failing fleet is not hit twice as hard.
//!
//! A bucket of tokens: every request adds `budget_share` (0.1), it holds at most that share of the requests in flight (never
//! less than `budget_min`, 3), a charged retry takes one. So while every pod fails, attempts <= 1.1 x requests + 3.
//!
//! Yet one pod's death under 500 requests must not cost 499 of them. So some retries are *free*, but only on proof that the
//! fleet lives: another pod answered (or was scraped, if it has not failed since its last answer) **after** this failure.
//! Free on proof are requests that were not delivered (A), and all requests that were in flight on a pod when it broke, but
//! for the first: the death is charged once. Without proof they take tokens on loan, given back when a pod answers; without
//! tokens they wait and ask again, at most [`PATIENCE`]. While every pod fails nobody answers, so nothing is free, no loan
//! comes back, and the bound holds. A pod that still answered after another one's death has vouched for its retries even if
//! it dies next: those, at most what was in flight on pods that died before the last, come on top.
use std::num::NonZeroUsize;
use std::time::Duration;

use lru::LruCache;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::retry::{Setback, Stop, Verdict};
use crate::base::{ModelName, Mono, PodId};

/// Longest wait for a proof that other pods live.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two questions while waiting for it.
pub const ASK_AGAIN: Duration = Duration::from_millis(10);
/// Failures on one pod within this time, of requests dispatched before the first of them, are one death.
pub const DEATH_WINDOW: Duration = Duration::from_secs(2);
/// Most pods remembered per model; beyond, the one unheard of for longest is forgotten.
pub const PODS_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();
/// Most models with a budget; beyond, the one unused for longest starts afresh.
pub const BUDGETS_MAX: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Settings under `retry`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RetrySettings {
    /// Attempts per request, the first included: 1 (no retries) or 2.
    pub attempts_max: u32,
    /// Whether a request that reached a pod may be sent to another when the pod broke before answering.
    pub retry_delivered: bool,
    /// Retries allowed per request, and at once per request in flight, over the model \[0 to 1\].
    pub budget_share: f64,
    /// Retries allowed at once however little is in flight \[retries\].
    pub budget_min: u32,
}

impl Default for RetrySettings {
    fn default() -> Self {
        Self { attempts_max: 2, retry_delivered: true, budget_share: 0.1, budget_min: 3 }
    }
}

/// What is known of one pod's life.
#[derive(Clone, Copy, Debug, Default)]
struct Signs {
    answered: Option<Mono>,
    seen: Option<Mono>,
    failed: Option<Mono>,
    death: Option<Death>,
}

/// When a pod broke under requests, and whether that was charged.
#[derive(Clone, Copy, Debug)]
struct Death {
    at: Mono,
    is_charged: bool,
}

impl Signs {
    /// Whether the pod showed life at or after `when`. A scrape counts only if no request failed since the last answer.
    fn lives_since(&self, when: Mono) -> bool {
        let is_failing = self.failed.is_some_and(|failed| self.answered.is_none_or(|answered| answered <= failed));
        !is_failing && (self.answered.is_some_and(|at| at >= when) || self.seen.is_some_and(|at| at >= when))
    }
}

/// The budget of one model.
#[derive(Debug)]
pub struct RetryBudget {
    settings: RetrySettings,
    in_flight: u64,
    tokens: f64,
    lent: f64,
    charged: u64,
    pods: LruCache<PodId, Signs>,
}

impl RetryBudget {
    /// A full budget.
    pub fn new(settings: RetrySettings) -> Self {
        let tokens = f64::from(settings.budget_min);
        Self { settings, in_flight: 0, tokens, lent: 0.0, charged: 0, pods: LruCache::new(PODS_MAX) }
    }

    /// The settings it follows.
    pub const fn settings(&self) -> &RetrySettings {
        &self.settings
    }

    /// Takes other settings; tokens over the new bound go with the next request.
    pub fn configure(&mut self, settings: RetrySettings) {
        self.settings = settings;
    }

    /// A request came. Once per request, not per attempt.
    pub fn arrived(&mut self) {
        self.in_flight += 1;
        self.tokens = (self.tokens + self.settings.budget_share).min(self.tokens_max());
    }

    /// A request ended, in whatever way.
    pub fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// A pod answered: an answer was committed, or ended well. Loans come back.
    pub fn answered(&mut self, pod: PodId, now: Mono) {
        let signs = self.pods.get_or_insert_mut(pod, Signs::default);
        signs.answered = signs.answered.max(Some(now));
        let lent = std::mem::take(&mut self.lent);
        self.tokens = (self.tokens + lent).min(self.tokens_max().max(self.tokens));
    }

    /// A pod was scraped with success.
    pub fn seen(&mut self, pod: PodId, now: Mono) {
        let signs = self.pods.get_or_insert_mut(pod, Signs::default);
        signs.seen = signs.seen.max(Some(now));
    }

    /// A request failed on a pod by the pod's fault, retried or not.
    pub fn failed(&mut self, pod: PodId, at: Mono) {
        let signs = self.signs(pod);
        signs.failed = signs.failed.max(Some(at));
    }

    /// Retries charged for good since the start.
    pub const fn charged(&self) -> u64 {
        self.charged
    }

    /// Tokens left \[retries\].
    pub const fn tokens(&self) -> f64 {
        self.tokens
    }

    /// Class A: free on proof, else on loan.
    pub(super) fn ask_undelivered(&mut self, now: Mono, setback: &Setback) -> Verdict {
        if self.is_vouched(setback) || self.lend() { Verdict::Retry } else { patience(now, setback) }
    }

    /// Class B: charged.
    pub(super) fn ask_refused(&mut self) -> Verdict {
        if self.charge() { Verdict::Retry } else { Verdict::Stop(Stop::BudgetSpent) }
    }

    /// Class C: the first of a death is charged, the others are free on proof, else on loan.
    pub(super) fn ask_unanswered(&mut self, now: Mono, setback: &Setback) -> Verdict {
        if !self.death_of(setback).is_charged {
            if !self.charge() {
                return patience(now, setback);
            }
            self.signs(setback.pod).death = Some(Death { is_charged: true, ..self.death_of(setback) });
            return Verdict::Retry;
        }
        self.ask_undelivered(now, setback)
    }

    /// The death this failure belongs to; a new one unless it was in flight when the last one began.
    fn death_of(&mut self, setback: &Setback) -> Death {
        let signs = self.signs(setback.pod);
        let belongs = |death: &Death| {
            let has_recovered = signs.answered.is_some_and(|answered| answered > death.at);
            setback.started <= death.at && setback.failed <= death.at.after(DEATH_WINDOW) && !has_recovered
        };
        let death = signs.death.filter(belongs).unwrap_or(Death { at: setback.failed, is_charged: false });
        signs.death = Some(death);
        death
    }

    /// Signs of a pod, without making it look fresh.
    fn signs(&mut self, pod: PodId) -> &mut Signs {
        if !self.pods.contains(&pod) {
            self.pods.put(pod, Signs::default());
        }
        self.pods.get_or_insert_mut(pod, Signs::default)
    }

    /// Whether another pod showed life after this failure. Pods heard of last are asked first.
    fn is_vouched(&self, setback: &Setback) -> bool {
        self.pods.iter().any(|(&pod, signs)| pod != setback.pod && signs.lives_since(setback.failed))
    }

    fn charge(&mut self) -> bool {
        let is_paid = self.tokens >= 1.0;
        if is_paid {
            self.tokens -= 1.0;
            self.charged += 1;
        }
        is_paid
    }

    fn lend(&mut self) -> bool {
        let is_lent = self.tokens >= 1.0;
        if is_lent {
            self.tokens -= 1.0;
            self.lent += 1.0;
        }
        is_lent
    }

    fn tokens_max(&self) -> f64 {
        f64::from(self.settings.budget_min).max(self.settings.budget_share * self.in_flight as f64)
    }
}

fn patience(now: Mono, setback: &Setback) -> Verdict {
    if now < setback.failed.after(PATIENCE) { Verdict::Wait(ASK_AGAIN) } else { Verdict::Stop(Stop::BudgetSpent) }
}

/// One budget per model: one model's failing fleet never spends another's.
#[derive(Debug)]
pub struct Budgets {
    settings: RetrySettings,
    models: LruCache<ModelName, RetryBudget>,
}

impl Budgets {
    /// No budgets yet; each model gets a full one when first asked for.
    pub fn new(settings: RetrySettings) -> Self {
        Self { settings, models: LruCache::new(BUDGETS_MAX) }
    }

    /// Takes other settings, for the budgets there are and those to come.
    pub fn configure(&mut self, settings: &RetrySettings) {
        self.settings = settings.clone();
        self.models.iter_mut().for_each(|(_, budget)| budget.configure(settings.clone()));
    }

    /// The budget of a model.
    pub fn of(&mut self, model: &ModelName) -> &mut RetryBudget {
        let settings = &self.settings;
        self.models.get_or_insert_mut(ModelName::clone(model), || RetryBudget::new(settings.clone()))
    }
}
