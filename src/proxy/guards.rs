//! The bounds of `flow` behind locks: admission, retry budgets, poison. Each is a pure machine; here it meets the clock.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use parking_lot::Mutex;

use super::rules::Rules;
use crate::base::{ModelName, Mono, PodId};
use crate::flow::{
    Arrival, BodyKey, Budgets, Effect, Event, Gate as Admission, PoisonGuard, Refusal, Setback, TicketId, Verdict,
    may_retry,
};

/// What must be asked before, and told after, every attempt.
#[derive(Debug)]
pub struct Guards {
    admission: Mutex<Admission>,
    retry: Mutex<Budgets>,
    poison: Mutex<PoisonGuard>,
    quarantined: AtomicU64,
    /// Whether any body is under suspicion: only then must good answers be told to the poison guard.
    suspects: AtomicBool,
    tickets: AtomicU64,
}

impl Guards {
    /// Fresh guards.
    pub fn new(rules: &Rules) -> Self {
        Self {
            admission: Mutex::new(Admission::new(rules.bounds.clone())),
            retry: Mutex::new(Budgets::new(rules.retry.clone())),
            poison: Mutex::default(),
            quarantined: AtomicU64::new(0),
            suspects: AtomicBool::new(false),
            tickets: AtomicU64::new(1),
        }
    }

    /// Takes other bounds and retry rules; what is held or spent stays so.
    pub fn configure(&self, rules: &Rules) {
        self.admission.lock().configure(rules.bounds.clone());
        self.retry.lock().configure(&rules.retry);
    }

    /// Asks for admission. The ticket gives everything back when it is dropped.
    pub fn admit(self: &Arc<Self>, now: Mono, arrival: impl FnOnce(TicketId) -> Arrival) -> Result<Ticket, Refusal> {
        let id = TicketId(self.tickets.fetch_add(1, Relaxed));
        let arrival = arrival(id);
        let model = ModelName::clone(&arrival.model);
        let effects = self.admission.lock().on(now, Event::Arrived(arrival));
        for effect in effects {
            if let Effect::Refuse(refused, refusal) = effect
                && refused == id
            {
                return Err(refusal);
            }
        }
        self.retry.lock().of(&model).arrived();
        Ok(Ticket { guards: Arc::clone(self), id, model })
    }

    /// Whether a body is in quarantine. `key` is only computed when anything is; a request without a body has none.
    pub fn poisoned(&self, now: Mono, key: impl FnOnce() -> Option<BodyKey>) -> Option<Refusal> {
        if self.quarantined.load(Relaxed) == 0 {
            return None;
        }
        self.poison.lock().check(now, &key()?)
    }

    /// A connection broke under a request.
    pub fn broke(&self, now: Mono, pod: PodId, started: Mono, body: Option<BodyKey>) {
        let Some(body) = body else { return };
        self.poison.lock().broke(now, pod, started, body);
        self.suspects.store(true, Relaxed);
    }

    /// A request was served well. `key` is only computed when any body is under suspicion.
    pub fn served(&self, now: Mono, key: impl FnOnce() -> Option<BodyKey>) {
        if self.suspects.load(Relaxed)
            && let Some(key) = key()
        {
            let mut poison = self.poison.lock();
            poison.served(now, &key);
            self.suspects.store(poison.has_suspects(), Relaxed);
        }
    }

    /// A pod refused a connection or restarted.
    pub fn died(&self, now: Mono, pod: PodId) {
        let mut poison = self.poison.lock();
        poison.died(now, pod);
        self.quarantined.store(poison.quarantined() as u64, Relaxed);
    }

    /// Whether a failed request may go to another pod.
    pub fn may_retry(&self, now: Mono, model: &ModelName, setback: &Setback) -> Verdict {
        may_retry(now, setback, self.retry.lock().of(model))
    }

    /// A pod was scraped with success.
    pub fn seen<'a>(&self, now: Mono, models: impl IntoIterator<Item = &'a ModelName>, pod: PodId) {
        let mut budgets = self.retry.lock();
        for model in models {
            budgets.of(model).seen(pod, now);
        }
    }

    /// A pod answered.
    pub fn answered(&self, now: Mono, model: &ModelName, pod: PodId) {
        self.retry.lock().of(model).answered(pod, now);
    }
}

/// An admitted request.
#[derive(Debug)]
pub struct Ticket {
    guards: Arc<Guards>,
    id: TicketId,
    model: ModelName,
}

impl Ticket {
    /// Its name.
    pub const fn id(&self) -> TicketId {
        self.id
    }

    /// The answer is committed: the body is no longer held.
    pub fn committed(&self, now: Mono) {
        drop(self.guards.admission.lock().on(now, Event::Committed(self.id)));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        drop(self.guards.admission.lock().on(crate::runtime::now(), Event::Released(self.id)));
        self.guards.retry.lock().of(&self.model).ended();
    }
}
