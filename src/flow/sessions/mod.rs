//! Thrash control: how many sessions may be active, so that what they reuse stays in the pods' caches. A machine without clock or
//! sockets, before the queue: events in, effects out.
//!
//! Sessions come back with all they said before. While the distinct tokens of those that are active fit into the fleet's KV, nearly
//! nothing of it is computed twice; a few sessions more, and with LRU caches nearly everything is (on eight pods with sessions of 35k
//! tokens, throughput falls by 30 % at twice as many as fit). So a session that is new, or was away for too long, waits here until
//! those that are active leave room for it:
//!
//! - **Who is active**: has a request under way, or was there within the time after which 95 % of those come back that do. The coldest
//!   loses its place when, by what was used since, its blocks are evicted. Nobody is interrupted, and the first class never waits.
//! - **Room**: a share of the fleet's KV (feed-forward), trimmed by what returning sessions found cached of their own past: much less
//!   than when there is room, and the share shrinks by a factor; as much, while somebody waits, and it grows by a step.
//! - **Only where it pays**: if the fleet could compute every turn of everybody from nothing, nobody is held, and neither if those that
//!   fit come back so seldom that the fleet would do more work with everybody and cold caches. Sessions that never come back count for
//!   nothing.
//!
//! Who waits is let in by tenant and class that hold the fewest tokens by weight, among these the session that first came. A session is
//! known by its name, if it has one, or by its prompts: the next begins with the one before. Limits: [`SESSIONS_MAX`] per model.
mod habit;
mod pool;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::queue::Classes;
use super::{Class, Reason, Refusal, TicketId};
use crate::base::{ModelName, Mono, Tokens};
use pool::Pool;
use session::SessionId;

/// Most sessions that are known of one model; what comes beyond is not held.
pub const SESSIONS_MAX: usize = 65_536;
/// Blocks of a prompt below which it is left alone: it takes next to no room.
const BLOCKS_MIN: usize = 4;
/// Sessions are told apart by every so many blocks of their prompts.
const STRIDE: usize = 16;
/// Longest `Retry-After`: who comes back keeps his place in the line.
const RETRY_AFTER_MAX_S: f64 = 60.0;

/// Settings under `flow.sessions`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SessionSettings {
    /// Sessions that would push others' blocks out of the pods' caches wait until there is room. Needs pods that tell the size of their
    /// KV cache.
    pub enabled: bool,
    /// Part of the fleet's KV that active sessions may fill to begin with; it adapts.
    pub kv_share: f64,
}

impl Default for SessionSettings {
    fn default() -> Self {
        Self { enabled: true, kv_share: 0.9 }
    }
}

impl SessionSettings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let is_bad = !(0.05..=10.0).contains(&self.kv_share);
        let problem = || ("kv_share", format!("{} is out of range; write 0.05 to 10", self.kv_share));
        is_bad.then(problem).into_iter().collect()
    }
}

/// A request that belongs to a session, new or known.
#[derive(Clone, Debug)]
pub struct Ask<'a> {
    /// Its name.
    pub ticket: TicketId,
    /// What it is for.
    pub model: ModelName,
    /// How urgent it is; the first class never waits here.
    pub class: Class,
    /// Who is charged.
    pub tenant: Arc<str>,
    /// The tenant's weight.
    pub weight: f64,
    /// Hash of the session's name and its tenant, if the client named one.
    pub named: Option<u64>,
    /// Chained hashes of the prompt's blocks.
    pub blocks: &'a [u64],
    /// Bytes of its body.
    pub body_bytes: u64,
    /// What its prefill takes on a pod if nothing is cached \[s\].
    pub prefill_s: f64,
    /// What its answer takes, as far as is known \[s of a pod\].
    pub answer_s: f64,
    /// How long its answer takes if nobody else asks anything \[s\].
    pub stream_s: f64,
    /// When it came.
    pub arrived: Mono,
    /// When its first token is of no use any more, if that was promised: it is told after half of the time.
    pub due: Option<Mono>,
}

/// What a pod told of a request at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Told {
    /// Tokens of the prompt.
    pub prompt: Tokens,
    /// Of these, not computed.
    pub cached: Tokens,
    /// Of these, known to have come through this gate before.
    pub believed: Tokens,
    /// Tokens of the answer.
    pub generated: Tokens,
}

/// The pods of a model.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Crew {
    /// KV capacity of those that prefill; 0 if it is not known \[tokens\].
    pub capacity: Tokens,
    /// How many they are; a part of that if other gates use them too.
    pub pods: f64,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event<'a> {
    /// A request comes.
    Asks(Ask<'a>),
    /// It is over, or went away before it might go. What was told of it, if it ended well.
    Over(TicketId, Option<Told>),
    /// The pods of a model changed.
    Pods(ModelName, Crew),
    /// Nobody is to wait any more.
    Release,
    /// The time of [`Sessions::next_deadline`] has come.
    Tick,
}

/// What must be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// It may go.
    Grant(TicketId),
    /// It may not.
    Refuse(TicketId, Refusal),
}

/// What one model's sessions are, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Census {
    /// Sessions that are active.
    pub active: u64,
    /// Requests that wait for their session to be let in.
    pub waiting: u64,
    /// Tokens that active sessions are expected to reuse.
    pub tokens: u64,
    /// Room for these \[tokens\]; `None` while nobody is held.
    pub room: Option<u64>,
    /// Part of the fleet's KV that they may fill now.
    pub kv_share: f64,
}

#[derive(Debug)]
struct Ticket {
    model: ModelName,
    session: SessionId,
    class: Class,
    /// While it waits.
    waits: Option<Wait>,
    /// What of its prompt its session had left in a cache \[tokens\].
    expected: Option<u64>,
}

#[derive(Debug)]
struct Wait {
    group: GroupKey,
    /// When its session first came.
    first: Mono,
    last: Mono,
    body_bytes: u64,
}

/// Who shares: a class and a tenant.
type GroupKey = (Class, Arc<str>);

/// See the file.
#[derive(Debug)]
pub struct Sessions {
    settings: SessionSettings,
    classes: Classes,
    pools: BTreeMap<ModelName, Pool>,
    tickets: HashMap<TicketId, Ticket>,
    /// When those that wait have waited for long enough.
    timers: BTreeSet<(Mono, TicketId)>,
    effects: Vec<Effect>,
}

impl Sessions {
    /// Without any session.
    pub fn new(settings: SessionSettings, classes: Classes) -> Self {
        Self {
            settings,
            classes,
            pools: BTreeMap::new(),
            tickets: HashMap::new(),
            timers: BTreeSet::new(),
            effects: Vec::new(),
        }
    }

    /// Takes other settings.
    pub fn configure(&mut self, settings: SessionSettings, classes: Classes) {
        (self.settings, self.classes) = (settings, classes);
        self.pools.values_mut().for_each(|pool| pool.configure(self.settings.kv_share));
    }

    /// Takes one event; returns what must be done now, in order.
    pub fn on(&mut self, now: Mono, event: Event<'_>) -> Vec<Effect> {
        match event {
            Event::Asks(ask) => self.asks(now, &ask),
            Event::Over(ticket, told) => self.over(now, ticket, told),
            Event::Pods(model, crew) => {
                let share = self.settings.kv_share;
                self.pools.entry(ModelName::clone(&model)).or_insert_with(|| Pool::new(share)).crew = crew;
                self.let_in(now, &model);
            }
            Event::Release => self.release(now),
            Event::Tick => self.tick(now),
        }
        std::mem::take(&mut self.effects)
    }

    /// When a [`Event::Tick`] is wanted; `None`: not until something else happens.
    pub fn next_deadline(&self) -> Option<Mono> {
        let timeout = self.timers.first().map(|(at, _)| *at);
        let cold = self.pools.values().filter(|pool| pool.waiting() > 0).filter_map(Pool::next_cold);
        timeout.into_iter().chain(cold).min()
    }

    /// Requests that wait or were let go and are not over.
    pub fn tickets(&self) -> usize {
        self.tickets.len()
    }

    /// Requests that wait.
    pub fn waiting(&self) -> usize {
        self.timers.len()
    }

    /// Models that are known.
    pub fn models(&self) -> Vec<ModelName> {
        self.pools.keys().map(ModelName::clone).collect()
    }

    /// What there is, by model.
    pub fn census(&self) -> impl Iterator<Item = (&ModelName, Census)> {
        self.pools.iter().map(move |(model, pool)| (model, pool.census()))
    }

    fn asks(&mut self, now: Mono, ask: &Ask<'_>) {
        let ticket = ask.ticket;
        if self.tickets.contains_key(&ticket) {
            return;
        }
        let is_on = self.settings.enabled;
        let known = self.pools.get_mut(&ask.model).filter(|pool| is_on && pool.crew.capacity.0 > 0);
        let Some(pool) = known else { return self.effects.push(Effect::Grant(ticket)) };
        pool.cool(now);
        let Some(session) = pool.meet(now, ask) else { return self.effects.push(Effect::Grant(ticket)) };
        let mut entry =
            Ticket { model: ModelName::clone(&ask.model), session, class: ask.class, waits: None, expected: None };
        let group = (ask.class, Arc::clone(&ask.tenant));
        let rules = self.classes.of(ask.class);
        let weight = rules.weight * ask.weight;
        let is_free = ask.class == Class::Interactive || !pool.is_holding;
        let is_next = || pool.waiting() == 0 && pool.fits(session);
        if pool.is_active(session) || is_free || is_next() {
            entry.expected = pool.starts(now, session, &group, weight);
            self.tickets.insert(ticket, entry);
            self.effects.push(Effect::Grant(ticket));
            let siblings = pool.siblings(session);
            for sibling in siblings {
                self.call(now, sibling);
            }
            return;
        }
        let wait_s = pool.wait_s(now, &group, session);
        let last = ask.arrived.after(rules.wait_max());
        let half = |due: Mono| ask.arrived.after(due.since(ask.arrived).mul_f64(0.5));
        let last = ask.due.map_or(last, |due| half(due).min(last));
        // Of all classes together: they hold bodies that others would need the room for.
        let is_full = pool.waiting() >= rules.requests_max as usize
            || pool.waiting_bytes() + ask.body_bytes > rules.body_bytes_max;
        if is_full || now.after(Duration::from_secs_f64(wait_s)) > last {
            pool.stays_out(now, session);
            return self.refuse(ticket, wait_s);
        }
        let first = pool.wait(ticket, session, &group, weight, ask.body_bytes);
        entry.waits = Some(Wait { group, first, last, body_bytes: ask.body_bytes });
        self.timers.insert((last, ticket));
        self.tickets.insert(ticket, entry);
        let model = ModelName::clone(&ask.model);
        self.let_in(now, &model);
    }

    fn refuse(&mut self, ticket: TicketId, wait_s: f64) {
        let spread = 0.8 + 0.4 * crate::base::Rng::new(ticket.0).unit();
        let after_s = (wait_s.min(RETRY_AFTER_MAX_S) * spread).max(1.0);
        let refusal = Refusal { reason: Reason::SessionLimit, retry_after: Some(Duration::from_secs_f64(after_s)) };
        self.effects.push(Effect::Refuse(ticket, refusal));
    }

    fn over(&mut self, now: Mono, ticket: TicketId, told: Option<Told>) {
        let Some(gone) = self.tickets.remove(&ticket) else { return };
        let Some(pool) = self.pools.get_mut(&gone.model) else { return };
        match &gone.waits {
            Some(wait) => {
                self.timers.remove(&(wait.last, ticket));
                pool.unwait(now, ticket, gone.session, wait);
            }
            None => pool.ends(now, &gone, told),
        }
        self.let_in(now, &gone.model);
    }

    /// Lets those in for whom there is room.
    fn let_in(&mut self, now: Mono, model: &ModelName) {
        if let Some(pool) = self.pools.get_mut(model) {
            pool.cool(now);
        }
        while let Some((pool, ticket)) = self.pools.get(model).and_then(|pool| Some((pool, pool.next()?))) {
            let Some(session) = self.tickets.get(&ticket).map(|entry| entry.session) else { return };
            let is_on = self.settings.enabled && pool.crew.capacity.0 > 0;
            let is_open = !is_on || !pool.is_holding || pool.is_active(session);
            if !is_open && !pool.fits(session) {
                return;
            }
            // All that wait for it: a session that is active holds nobody.
            let siblings = pool.siblings(session);
            for sibling in siblings {
                self.call(now, sibling);
            }
        }
    }

    fn release(&mut self, now: Mono) {
        for ticket in self.timers.iter().map(|(_, ticket)| *ticket).collect::<Vec<_>>() {
            self.call(now, ticket);
        }
    }

    /// Lets one in that waits.
    fn call(&mut self, now: Mono, ticket: TicketId) {
        let Some(entry) = self.tickets.get_mut(&ticket) else { return };
        let Some((pool, wait)) = self.pools.get_mut(&entry.model).zip(entry.waits.take()) else { return };
        self.timers.remove(&(wait.last, ticket));
        let weight = pool.called(now, ticket, entry.session, &wait);
        entry.expected = pool.starts(now, entry.session, &wait.group, weight);
        self.effects.push(Effect::Grant(ticket));
    }

    fn tick(&mut self, now: Mono) {
        let models: Vec<ModelName> = self
            .pools
            .iter()
            .filter(|(_, pool)| pool.waiting() > 0)
            .map(|(model, _)| ModelName::clone(model))
            .collect();
        for model in models {
            self.let_in(now, &model);
        }
        while let Some(&(at, ticket)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, ticket));
            let Some(gone) = self.tickets.remove(&ticket) else { continue };
            let Some((pool, wait)) = self.pools.get_mut(&gone.model).zip(gone.waits) else { continue };
            let wait_s = pool.wait_s(now, &wait.group, gone.session);
            pool.unwait(now, ticket, gone.session, &wait);
            self.refuse(ticket, wait_s);
        }
    }

    /// What must hold after every event; the words say what does not. For tests: it looks at everything.
    pub fn invariants(&self) -> Result<(), &'static str> {
        let waits = self.tickets.values().filter(|ticket| ticket.waits.is_some()).count();
        if self.timers.len() != waits {
            return Err("who waits has no end of it, or it has an end and nobody waits");
        }
        if self.pools.values().map(Pool::waiting).sum::<usize>() != waits {
            return Err("lines and those who wait differ");
        }
        if self.tickets.values().any(|one| one.waits.is_some() && one.class == Class::Interactive) {
            return Err("one of the first class waits");
        }
        for (model, pool) in &self.pools {
            let under_way = self.tickets.values().filter(|one| one.waits.is_none() && one.model == *model);
            pool.invariants(under_way.count())?;
        }
        Ok(())
    }
}

/// What a session may be known by, each with the blocks of the prompt that it stands for: this prompt first, which the next one
/// begins with, then the prompts it begins with itself, the longest first. Nothing for what is too short to matter.
fn names<'a>(ask: &'a Ask<'_>) -> impl Iterator<Item = (u64, usize)> + 'a {
    let all = ask.blocks.len();
    let tenant = xxhash_rust::xxh3::xxh3_64(ask.tenant.as_bytes());
    let lengths = (STRIDE..=all / STRIDE * STRIDE).rev().step_by(STRIDE).chain([STRIDE / 2, BLOCKS_MIN]);
    let known = lengths.filter_map(move |length| Some((tenant ^ *ask.blocks.get(length - 1)?, length)));
    let is_named = ask.named.is_some();
    ask.named.map(|name| (name, all)).into_iter().chain(known.filter(move |_| !is_named))
}
