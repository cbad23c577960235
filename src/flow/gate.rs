//! Admission: may this request go now? A machine without clock or sockets: events in, effects out.
//!
//! Its interface is that of a queue: a ticket arrives and is granted or refused, at once or later, in an effect of any event;
//! [`Gate::next_deadline`] says when it wants a `Tick`. Today nobody waits: what is within the bounds is granted at once. The
//! bounds are requests and body bytes, in all and per model (see `share`), and hold exactly after every event.
//!
//! Every granted ticket must be `Released` once; events of unknown tickets change nothing, so releasing twice is harmless.
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::asked::CLASS_HEADERS;
use super::caller::Caller;
use super::queue::{Classes, QueueSettings};
use super::refusal::{Reason, Refusal};
use super::sessions::SessionSettings;
use super::share::may_take;
use super::slo::SloSettings;
use super::tenant::TenantSettings;
use super::zero::ZeroSettings;
use crate::base::{ModelName, Mono, Tokens};

/// Most models that are accounted for apart; the rest share one account.
pub const MODELS_MAX: usize = 1024;
/// Bounds of a `Retry-After`.
const RETRY_AFTER: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// Share of the past that stays in the mean time between releases, per release.
const RELEASE_MEMORY: f64 = 0.95;

/// Settings under `limits`: what the gate holds at once.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct GateSettings {
    /// Requests held at once, waiting or in flight \[requests\].
    pub requests_max: u64,
    /// Of these, for one model; also bounded so that one model never takes everything while others are active \[requests\].
    pub requests_per_model_max: u64,
    /// Bytes of request bodies held at once; a body is held until its answer is committed \[bytes\].
    pub body_bytes_held_max: u64,
    /// What requests are promised about time, for models without their own promise. What is spent on them follows from it.
    pub slo: SloSettings,
    /// How requests wait for room on a pod.
    pub queue: QueueSettings,
    /// How sessions are kept from pushing each other out of the pods' caches.
    pub sessions: SessionSettings,
    /// Whether requests wait for the first pod of their model.
    pub from_zero: ZeroSettings,
    /// What each class gets, for each model.
    pub classes: Classes,
    /// File with the hashes of clients' API keys, a line for each: SHA-256 in hex, tenant, note (`tidegate key` makes one). Read
    /// again when it changes. If set, nobody is served without a key; else everybody is, as the tenant `default`.
    pub keys_file: Option<PathBuf>,
    /// What tenants may do, by their name in the file of keys. One without an entry has that of `default`.
    pub tenants: BTreeMap<String, TenantSettings>,
    /// Request headers that may name a class: `interactive`, `standard`, `batch`, a name SMG has, or a number as vLLM's
    /// `priority`. The first that is there counts, before the body's `priority`. They never reach a pod.
    pub class_headers: Vec<String>,
    /// Tell pods the class as vLLM's `priority` (0, 10, 20), for pods run with `--scheduling-policy priority`. Pods without it
    /// ignore a priority (vLLM 0.32), or refuse it (older ones). If false, a client's `priority` stays as it is.
    pub pods_use_priority: bool,
    /// Gates that share the tenants' limits evenly.
    pub gates: u32,
}

impl Default for GateSettings {
    fn default() -> Self {
        Self {
            requests_max: 65_536,
            requests_per_model_max: 65_536,
            body_bytes_held_max: 1 << 30,
            slo: SloSettings::default(),
            queue: QueueSettings::default(),
            sessions: SessionSettings::default(),
            from_zero: ZeroSettings::default(),
            classes: Classes::default(),
            keys_file: None,
            tenants: BTreeMap::new(),
            class_headers: CLASS_HEADERS.map(str::to_owned).to_vec(),
            pods_use_priority: false,
            gates: 1,
        }
    }
}

/// Name of one request at the gate, given by the caller; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TicketId(pub u64);

/// Facts of a request that asks to be admitted.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Its name.
    pub ticket: TicketId,
    /// Model it is for, after aliases: the bulkhead it belongs to.
    pub model: ModelName,
    /// Who is charged and how urgent it is.
    pub caller: Caller,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// Length of its prompt, an estimate.
    pub prompt_tokens: Tokens,
    /// When waiting any longer is pointless; `None`: no such time.
    pub deadline: Option<Mono>,
}

/// What happens to the gate.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request asks to be admitted.
    Arrived(Arrival),
    /// Its client went away before it was granted.
    Left(TicketId),
    /// The answer is committed: its body is no longer held, and it can no longer be taken back.
    Committed(TicketId),
    /// A granted request ended, in whatever way.
    Released(TicketId),
    /// The number of pods that can serve a model changed; 0 when there are none left.
    CapacityChanged {
        /// Which model.
        model: ModelName,
        /// How many pods are ready for it.
        pods: u32,
    },
    /// The time of [`Gate::next_deadline`] has come.
    Tick,
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Dispatch this one now.
    Grant(TicketId),
    /// Refuse this one.
    Refuse(TicketId, Refusal),
}

/// Effects of one event, in order.
pub type Effects = Vec<Effect>;

/// What one model holds.
#[derive(Debug, Default)]
struct Account {
    requests: u64,
    bytes: u64,
    pods: u32,
}

#[derive(Debug)]
struct Ticket {
    model: ModelName,
    bytes: u64,
}

/// The machine.
#[derive(Debug)]
pub struct Gate {
    settings: GateSettings,
    tickets: HashMap<TicketId, Ticket>,
    models: HashMap<ModelName, Account>,
    rest: ModelName,
    bytes: u64,
    released_at: Option<Mono>,
    release_gap_s: f64,
    /// Requests and bytes held when the settings changed: they may be over the new bounds until they end.
    inherited: (u64, u64),
}

impl Gate {
    /// A gate that holds nothing.
    pub fn new(settings: GateSettings) -> Self {
        Self {
            settings,
            tickets: HashMap::new(),
            models: HashMap::new(),
            rest: ModelName::from(""),
            bytes: 0,
            released_at: None,
            release_gap_s: 1.0,
            inherited: (0, 0),
        }
    }

    /// Takes other bounds. What is held over them stays; nothing more is admitted before enough of it has ended.
    pub fn configure(&mut self, settings: GateSettings) {
        self.settings = settings;
        self.inherited = (self.requests(), self.bytes);
    }

    /// Takes one event; returns what must be done now.
    pub fn on(&mut self, now: Mono, event: Event) -> Effects {
        match event {
            Event::Arrived(arrival) => vec![self.arrived(arrival)],
            Event::Left(ticket) => self.gone(ticket),
            Event::Released(ticket) => {
                if self.tickets.contains_key(&ticket) {
                    self.note_release(now);
                }
                self.gone(ticket)
            }
            Event::Committed(ticket) => self.committed(ticket),
            Event::CapacityChanged { model, pods } => self.capacity_changed(&model, pods),
            Event::Tick => Effects::new(),
        }
    }

    /// When the gate wants a [`Event::Tick`]; `None`: not until something else happens.
    pub const fn next_deadline(&self) -> Option<Mono> {
        None
    }

    /// Requests held: granted and not released.
    pub fn requests(&self) -> u64 {
        self.tickets.len() as u64
    }

    /// Bytes of bodies held.
    pub const fn body_bytes(&self) -> u64 {
        self.bytes
    }

    fn arrived(&mut self, arrival: Arrival) -> Effect {
        let ticket = arrival.ticket;
        if self.tickets.contains_key(&ticket) {
            return Effect::Grant(ticket);
        }
        let model = self.account_name(arrival.model);
        if let Some(reason) = self.objection(&model, arrival.body_bytes) {
            let retry_after = (reason != Reason::BodyTooLarge).then(|| self.retry_after(ticket));
            self.forget_if_idle(&model);
            return Effect::Refuse(ticket, Refusal { reason, retry_after });
        }
        let account = self.models.entry(ModelName::clone(&model)).or_default();
        account.requests += 1;
        account.bytes += arrival.body_bytes;
        self.bytes += arrival.body_bytes;
        self.tickets.insert(ticket, Ticket { model, bytes: arrival.body_bytes });
        debug_assert_eq!(self.invariants(), Ok(()));
        Effect::Grant(ticket)
    }

    /// The account a model is held in: its own, or the common one when there are too many models.
    fn account_name(&self, model: ModelName) -> ModelName {
        let has_own = self.models.len() < MODELS_MAX || self.models.contains_key(&model);
        if has_own { model } else { ModelName::clone(&self.rest) }
    }

    fn objection(&self, model: &ModelName, body_bytes: u64) -> Option<Reason> {
        let limits = &self.settings;
        let (own_requests, own_bytes) =
            self.models.get(model).map_or((0, 0), |account| (account.requests, account.bytes));
        // An account exists while it holds something or has pods, so this counts the other active models.
        let others = self.models.len() - usize::from(self.models.contains_key(model));
        let are_several = others > 0;
        if body_bytes > limits.body_bytes_held_max {
            Some(Reason::BodyTooLarge)
        } else if self.requests() >= limits.requests_max {
            Some(Reason::RequestsLimit)
        } else if own_requests >= limits.requests_per_model_max
            || !may_take(limits.requests_max, self.requests(), own_requests, 1, are_several)
        {
            Some(Reason::ModelRequestsLimit)
        } else if self.bytes + body_bytes > limits.body_bytes_held_max {
            Some(Reason::BytesLimit)
        } else if !may_take(limits.body_bytes_held_max, self.bytes, own_bytes, body_bytes, are_several) {
            Some(Reason::ModelBytesLimit)
        } else {
            None
        }
    }

    fn gone(&mut self, id: TicketId) -> Effects {
        if let Some(ticket) = self.tickets.remove(&id) {
            self.bytes -= ticket.bytes;
            if let Some(account) = self.models.get_mut(&ticket.model) {
                account.requests -= 1;
                account.bytes -= ticket.bytes;
            }
            self.forget_if_idle(&ticket.model);
        }
        debug_assert_eq!(self.invariants(), Ok(()));
        Effects::new()
    }

    fn committed(&mut self, id: TicketId) -> Effects {
        if let Some(ticket) = self.tickets.get_mut(&id) {
            let bytes = std::mem::take(&mut ticket.bytes);
            self.bytes -= bytes;
            if let Some(account) = self.models.get_mut(&ticket.model) {
                account.bytes -= bytes;
            }
        }
        Effects::new()
    }

    fn capacity_changed(&mut self, model: &ModelName, pods: u32) -> Effects {
        if self.models.len() < MODELS_MAX || self.models.contains_key(model) {
            self.models.entry(ModelName::clone(model)).or_default().pods = pods;
            self.forget_if_idle(model);
        }
        Effects::new()
    }

    fn forget_if_idle(&mut self, model: &ModelName) {
        if self.models.get(model).is_some_and(|account| account.requests == 0 && account.pods == 0) {
            self.models.remove(model);
        }
    }

    fn note_release(&mut self, now: Mono) {
        if let Some(before) = self.released_at.replace(now) {
            let gap_s = now.since(before).as_secs_f64();
            self.release_gap_s = RELEASE_MEMORY * self.release_gap_s + (1.0 - RELEASE_MEMORY) * gap_s;
        }
    }

    /// The time in which a hundredth of what is held will have ended, at the recent pace, spread by ±20 % so that the refused
    /// do not come back together.
    fn retry_after(&self, ticket: TicketId) -> Duration {
        let spread = 0.8 + 0.4 * crate::base::Rng::new(ticket.0).unit();
        let wait_s = self.release_gap_s * (self.tickets.len() as f64 / 100.0).max(1.0) * spread;
        let (least, most) = RETRY_AFTER;
        Duration::from_secs_f64(wait_s.clamp(least.as_secs_f64(), most.as_secs_f64()))
    }

    /// What must hold after every event; the words say what does not.
    pub fn invariants(&self) -> Result<(), &'static str> {
        let requests: u64 = self.models.values().map(|account| account.requests).sum();
        let bytes: u64 = self.models.values().map(|account| account.bytes).sum();
        let checks = [
            (requests == self.requests(), "requests per model do not add up"),
            (bytes == self.bytes, "bytes per model do not add up"),
            (self.requests() <= self.settings.requests_max.max(self.inherited.0), "more requests than the bound"),
            (self.bytes <= self.settings.body_bytes_held_max.max(self.inherited.1), "more bytes than the bound"),
            (self.models.len() <= MODELS_MAX + 1, "more models than the bound"),
        ];
        checks.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::flow::Trust;

    fn arrival(number: u64) -> Event {
        Event::Arrived(Arrival {
            ticket: TicketId(number),
            model: "m".into(),
            caller: Caller::open(Trust::Open),
            body_bytes: 10,
            prompt_tokens: Tokens(1),
            deadline: None,
        })
    }

    #[test]
    fn tighter_bounds_wait_for_what_is_held() {
        let settings = |requests_max| GateSettings { requests_max, ..GateSettings::default() };
        let mut gate = Gate::new(settings(10));
        let is_granted =
            |gate: &mut Gate, number| matches!(gate.on(Mono(1), arrival(number)).first(), Some(Effect::Grant(_)));
        assert!((0..6).all(|number| is_granted(&mut gate, number)));
        gate.configure(settings(4));
        assert_eq!(gate.invariants(), Ok(()));
        assert!(!is_granted(&mut gate, 6));
        (0..3).for_each(|number| drop(gate.on(Mono(2), Event::Released(TicketId(number)))));
        assert!(is_granted(&mut gate, 7) && !is_granted(&mut gate, 8));
        gate.configure(settings(5));
        assert!(is_granted(&mut gate, 9));
    }
}
