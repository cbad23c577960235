//! The queue: which request goes to which pod, and when. A machine without clock or sockets: events in, effects out.
//!
//! ```text
//! Asks ──► room on its best pod, and nobody before it? ── yes ──► Grant
//!            │ no: too many wait, or it would be too late ──────► Refuse
//!            ▼
//!          waits: pool → class (first strictly, the others by weight, floors for all) → tenant (start-time fair queueing by cost)
//!            │                → earliest deadline, or the cheapest while most are late
//!            ▼ a pod has room again: first token, end, reading, time
//!          the head, if this is its best pod or it has waited for that long enough; else the best match of the oldest 64 ──► Grant
//! ```
//! Whether a pod has room is asked of [`Rooms`] and judged by its valve (`room`); what was granted counts there until it is `Booked`.
//! A ticket waits for its best pod no longer than computing its prefix again would take, a quarter of its time, or 8 younger ones
//! that were taken before it; a pod without work takes anybody. One that needs more KV than is free anywhere has a pod kept for it.
//!
//! Every granted ticket must be `Over` once, or `Left`. Events of unknown tickets change nothing.
mod line;
mod pool;
mod room;
mod settings;
#[cfg(test)]
mod tests;
mod wish;
mod yard;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use line::Waiting;

use pool::{Key, Lines};
pub use room::{EngineState, Room};
use room::{LOOK_EVERY, Shut};
pub use settings::{ClassRules, ClassSettings, Classes, QueueSettings, WhenFull};

pub use wish::{Backlog, Effect, Event, Pool, Rooms, Wish};
use yard::{Look, Yard};

use super::{Class, Reason, Refusal, TicketId};
use crate::base::{Mono, PodId, Rng, Tokens};

/// Part of a ticket's time that it may be passed over.
const SKIP_SHARE: f64 = 0.25;
/// Pods that a ticket looks at when it comes, beside its best.
const LOOKS: usize = 8;
/// One that needs more than this part of a pod's KV, and lacks it for so long, has a pod kept for it.
const LARGE: f64 = 0.25;
const KEEP_AFTER: Duration = Duration::from_secs(2);
/// The look at half of a ticket's time may be late by so much.
const LATE_LOOK: Duration = Duration::from_millis(10);
/// Bounds of a `Retry-After` \[seconds\].
const RETRY_AFTER_S: (f64, f64) = (1.0, 600.0);

#[derive(Debug)]
struct Granted {
    pool: Pool,
    class: Class,
    tenant: Arc<str>,
    weight: f64,
    pod: PodId,
    cost_us: u64,
    wait_s: f64,
    kv: Tokens,
    is_booked: bool,
    is_committed: bool,
    is_long: bool,
}

#[derive(Debug)]
enum Place {
    Waits(Pool, Class),
    Granted(Box<Granted>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Pod(PodId),
    Ticket(TicketId),
}

/// See the file.
#[derive(Debug)]
pub struct Queue {
    yard: Yard,
    pools: HashMap<Pool, Lines>,
    backlogged: BTreeSet<Pool>,
    places: HashMap<TicketId, Place>,
    /// Granted ones of the last class that are not committed.
    recallable: BTreeSet<TicketId>,
    timers: BTreeSet<(Mono, Timer)>,
    numbers: u64,
    effects: Vec<Effect>,
}

impl Queue {
    /// An empty queue.
    pub fn new(settings: QueueSettings, classes: Classes) -> Self {
        Self {
            yard: Yard::new(settings, classes),
            pools: HashMap::new(),
            backlogged: BTreeSet::new(),
            places: HashMap::new(),
            recallable: BTreeSet::new(),
            timers: BTreeSet::new(),
            numbers: 0,
            effects: Vec::new(),
        }
    }

    /// Takes other settings; who waits goes on waiting by them.
    pub fn configure(&mut self, settings: QueueSettings, classes: Classes) {
        (self.yard.settings, self.yard.classes) = (settings, classes);
    }

    /// Takes one event; returns what must be done now, in order.
    pub fn on(&mut self, now: Mono, event: Event, rooms: &dyn Rooms) -> Vec<Effect> {
        match event {
            Event::Asks(wish) => self.asks(now, wish, rooms),
            Event::Booked(ticket) => self.booked(ticket),
            Event::Committed(ticket) => self.committed(now, ticket, rooms),
            Event::Left(ticket) => self.left(now, ticket, rooms),
            Event::Over(ticket, cost_us) => self.over(now, ticket, cost_us, rooms),
            Event::Eased(pod) => self.fill(now, pod, rooms),
            Event::Read(pod, engine) => {
                if let Some(room) = rooms.room(pod, now) {
                    self.yard.read(pod, engine, &room);
                }
                self.fill(now, pod, rooms);
            }
            Event::Pods(pool, pods) => self.pods_changed(now, pool, pods, rooms),
            Event::Tick => self.tick(now, rooms),
        }
        std::mem::take(&mut self.effects)
    }

    /// When a [`Event::Tick`] is wanted; `None`: not until something else happens.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Pools that are known.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.pools.keys()
    }

    /// Tickets that wait.
    pub fn waiting(&self) -> u64 {
        self.pools.values().flat_map(|lines| &lines.by_class).map(|line| line.len() as u64).sum()
    }

    /// What waits, by pool and class.
    pub fn backlogs(&self, now: Mono) -> impl Iterator<Item = (&Pool, Class, Backlog)> {
        self.pools.iter().flat_map(move |(name, lines)| {
            Class::ALL.into_iter().filter_map(move |class| {
                let line = lines.line(class)?;
                let oldest_s = line.oldest().next().map_or(0.0, |one| now.since(one.since).as_secs_f64());
                let backlog = Backlog {
                    requests: line.len() as u64,
                    body_bytes: line.bytes(),
                    cost_s: line.cost_us() as f64 / 1e6,
                    oldest_s,
                    wait_s: lines.time_for(lines.ahead_us(class)),
                };
                Some((name, class, backlog))
            })
        })
    }

    fn asks(&mut self, now: Mono, wish: Wish, rooms: &dyn Rooms) {
        if self.places.contains_key(&wish.ticket) {
            return;
        }
        let best = wish.places.first().map(|(pod, _)| *pod);
        if let Some(pod) = best.filter(|pod| self.goes_at_once(now, &wish, *pod, rooms)) {
            if let Some(lines) = self.pools.get_mut(&wish.pool) {
                lines.granted(wish.class, wish.cost_us, now);
            }
            return self.grant(&wish, pod);
        }
        if let Some(refusal) = self.objection(now, &wish) {
            return self.effects.push(Effect::Refuse(wish.ticket, refusal));
        }
        let ticket = wish.ticket;
        let looks: Vec<PodId> = wish.places.iter().map(|(pod, _)| *pod).collect();
        let others = self.enqueue(now, wish);
        for pod in looks.into_iter().chain(others) {
            if !matches!(self.places.get(&ticket), Some(Place::Waits(..))) {
                break;
            }
            if self.is_wanted(now, ticket, pod, rooms) {
                self.fill(now, pod, rooms);
            }
        }
    }

    /// Whether nobody is before it and its best pod has room.
    fn goes_at_once(&mut self, now: Mono, wish: &Wish, pod: PodId, rooms: &dyn Rooms) -> bool {
        if !self.yard.settings.enabled {
            return true;
        }
        if self.backlogged.contains(&wish.pool) {
            return false;
        }
        let Some(room) = rooms.room(pod, now) else { return self.is_out(&wish.pool, now, rooms) };
        let lines = self.pools.entry(Pool::clone(&wish.pool)).or_insert_with(Lines::new);
        self.yard.fits(&Look { now, pod, room, rooms }, wish, lines).is_ok()
    }

    /// Whether a pod has room for one that just came. Those before it were offered to the pod when it last changed; if it has none it
    /// is looked at again.
    fn is_wanted(&mut self, now: Mono, ticket: TicketId, pod: PodId, rooms: &dyn Rooms) -> bool {
        let Some(Place::Waits(pool, class)) = self.places.get(&ticket) else { return false };
        let Some(lines) = self.pools.get(pool) else { return false };
        let Some(waiting) = lines.line(*class).and_then(|line| line.get(ticket)) else { return false };
        let Some(room) = rooms.room(pod, now) else { return false };
        match self.yard.wants(&Look { now, pod, room, rooms }, &waiting.wish, lines) {
            Ok(()) => true,
            Err(shut) => {
                self.look_later(pod, now.after(shut.look_after()));
                false
            }
        }
    }

    /// Puts it into its line; pods beside its best ones that it may look at.
    fn enqueue(&mut self, now: Mono, wish: Wish) -> Vec<PodId> {
        self.numbers += 1;
        let saves = Duration::from_micros(wish.cold_us.saturating_sub(wish.best_us()));
        let due = now.after(saves.min(wish.slack().mul_f64(SKIP_SHARE)));
        let (ticket, name, class) = (wish.ticket, Pool::clone(&wish.pool), wish.class);
        let last = wish.arrived.after(self.yard.classes.of(class).wait_max());
        let check = wish.check_at(now, now, last);
        self.timers.insert((check, Timer::Ticket(ticket)));
        let lines = self.pools.entry(Pool::clone(&name)).or_insert_with(Lines::new);
        let mark = lines.served_us(class) + lines.ahead_us(class);
        if let Some(line) = lines.line_mut(class) {
            line.push(Waiting { number: self.numbers, since: now, skips: 0, due, mark, check, wish });
        }
        lines.note_backlog(now);
        let count = lines.pods.len();
        let others = (0..count.min(LOOKS)).map(|step| (self.numbers as usize * LOOKS + step) % count);
        let others = others.filter_map(|at| lines.pods.get(at).copied()).collect();
        self.backlogged.insert(Pool::clone(&name));
        self.places.insert(ticket, Place::Waits(name, class));
        others
    }

    /// Why one more must not wait.
    fn objection(&mut self, now: Mono, wish: &Wish) -> Option<Refusal> {
        let limits = self.yard.classes.of(wish.class);
        let lines = self.pools.get(&wish.pool)?;
        let line = lines.line(wish.class)?;
        let ahead_us = lines.ahead_us(wish.class);
        let wait_s = lines.time_for(ahead_us);
        let is_full = line.len() as u64 >= u64::from(limits.requests_max)
            || line.bytes() + wish.body_bytes > limits.body_bytes_max
            || (line.cost_us() + wish.cost_us) as f64 / 1e6 > limits.cost_s_max && !line.is_empty();
        let is_late = !wish.is_again && {
            let waited_s = now.since(wish.arrived).as_secs_f64();
            let first_s = waited_s + wait_s + wish.best_us() as f64 / 1e6;
            let bound_s = self.yard.settings.refuse_beyond * wish.slack().as_secs_f64();
            let misses = wish.is_promised && self.yard.settings.refuse_beyond > 0.0 && first_s > bound_s;
            misses || waited_s + wait_s > limits.wait_max_s
        };
        let retry_after = Some(retry_after(wish.ticket, wait_s));
        if is_late && ahead_us > 0 {
            return Some(Refusal { reason: Reason::PredictedLate, retry_after });
        }
        if !is_full {
            return None;
        }
        let last = line.last().filter(|last| last.wish.deadline > wish.deadline).map(|last| last.wish.ticket);
        if let Some(last) = last.filter(|_| limits.when_full == WhenFull::EvictLast) {
            self.refuse(now, last, Reason::QueueFull);
            return self.objection(now, wish);
        }
        Some(Refusal { reason: Reason::QueueFull, retry_after })
    }

    /// Gives a pod what there is for it, as long as it has room.
    fn fill(&mut self, now: Mono, pod: PodId, rooms: &dyn Rooms) {
        while !self.backlogged.is_empty() {
            let Some(room) = rooms.room(pod, now) else { return self.look_later(pod, now.after(LOOK_EVERY)) };
            match self.pick(&Look { now, pod, room, rooms }) {
                Ok(Some((name, key))) => self.send(now, &name, key, pod),
                Ok(None) => return,
                Err(shut) => {
                    return self.look_later(pod, now.after(shut.look_after()));
                }
            }
        }
    }

    /// The next one for a pod, from the pool that was served least. `Err`: somebody would go there if there were room.
    fn pick(&mut self, look: &Look<'_>) -> Result<Option<(Pool, Key)>, Shut> {
        let pools = &self.pools;
        let serves = |name: &&Pool| pools.get(*name).is_some_and(|lines| lines.pods.binary_search(&look.pod).is_ok());
        let mut names: Vec<&Pool> = self.backlogged.iter().filter(serves).collect();
        names.sort_by_key(|name| pools.get(*name).map_or(0, |lines| lines.tag));
        let mut shut = None;
        for name in names {
            let Some(lines) = pools.get(name) else { continue };
            for class in lines.order() {
                let Some(line) = lines.line(class) else { continue };
                match self.yard.pick(look, line, lines) {
                    Ok(Some(ticket)) => return Ok(Some((Pool::clone(name), Key { class, ticket }))),
                    Ok(None) => {}
                    Err(why) => shut = shut.or(Some(why)),
                }
            }
        }
        shut.map_or(Ok(None), Err)
    }

    /// Takes a ticket out of its line and grants it.
    fn send(&mut self, now: Mono, name: &Pool, key: Key, pod: PodId) {
        let Some(lines) = self.pools.get_mut(name) else { return };
        if let Some(line) = lines.line_mut(key.class)
            && line.head().is_some_and(|head| head.wish.ticket != key.ticket)
        {
            line.skip_before(key.ticket, pod);
        }
        let Some(served) = lines.serve(&key, now, &self.yard.classes) else { return };
        self.unlisted(now, name, &served);
        self.grant(&served.wish, pod);
    }

    /// A ticket has left its line.
    fn unlisted(&mut self, now: Mono, name: &Pool, gone: &Waiting) {
        self.places.remove(&gone.wish.ticket);
        self.timers.remove(&(gone.check, Timer::Ticket(gone.wish.ticket)));
        if let Some(lines) = self.pools.get_mut(name) {
            lines.note_backlog(now);
            if lines.is_empty() {
                self.backlogged.remove(name);
            }
        }
    }

    fn grant(&mut self, wish: &Wish, pod: PodId) {
        let wait_s = wish.prefill_us(pod) as f64 / 1e6;
        let is_long = self.yard.is_long(wish, pod);
        if let Some(lines) = self.pools.get_mut(&wish.pool) {
            lines.long += u32::from(is_long);
        }
        self.yard.promise(pod, wish.ticket, wait_s, wish.kv);
        let granted = Granted {
            pool: Pool::clone(&wish.pool),
            class: wish.class,
            tenant: Arc::clone(&wish.tenant),
            weight: wish.weight,
            pod,
            cost_us: wish.cost_us,
            wait_s,
            kv: wish.kv,
            is_booked: false,
            is_committed: false,
            is_long,
        };
        if wish.class == Class::Batch {
            self.recallable.insert(wish.ticket);
        }
        self.places.insert(wish.ticket, Place::Granted(Box::new(granted)));
        self.effects.push(Effect::Grant(wish.ticket, pod));
    }

    fn booked(&mut self, ticket: TicketId) {
        if let Some(Place::Granted(granted)) = self.places.get_mut(&ticket)
            && !std::mem::replace(&mut granted.is_booked, true)
        {
            self.yard.unpromise(granted.pod, granted.wait_s, granted.kv);
        }
    }

    fn committed(&mut self, now: Mono, ticket: TicketId, rooms: &dyn Rooms) {
        self.recallable.remove(&ticket);
        if let Some(Place::Granted(granted)) = self.places.get_mut(&ticket) {
            granted.is_committed = true;
            if std::mem::take(&mut granted.is_long)
                && let Some(lines) = self.pools.get_mut(&granted.pool)
            {
                lines.long = lines.long.saturating_sub(1);
            }
            let pod = granted.pod;
            if let Some(room) = rooms.room(pod, now) {
                self.yard.answered(pod, &room);
            }
            self.fill(now, pod, rooms);
        }
    }

    fn left(&mut self, now: Mono, ticket: TicketId, rooms: &dyn Rooms) {
        if let Some(Place::Waits(name, class)) = self.places.get(&ticket) {
            let (name, class) = (Pool::clone(name), *class);
            if let Some(gone) = self.pools.get_mut(&name).and_then(|lines| lines.line_mut(class)?.remove(ticket)) {
                self.unlisted(now, &name, &gone);
            }
            if let Some(pod) = self.yard.let_go(ticket) {
                self.fill(now, pod, rooms);
            }
        } else {
            self.over(now, ticket, Some(0), rooms);
        }
    }

    fn over(&mut self, now: Mono, ticket: TicketId, cost_us: Option<u64>, rooms: &dyn Rooms) {
        if !matches!(self.places.get(&ticket), Some(Place::Granted(_))) {
            return;
        }
        self.booked(ticket);
        self.recallable.remove(&ticket);
        let Some(Place::Granted(granted)) = self.places.remove(&ticket) else { return };
        if let Some(lines) = self.pools.get_mut(&granted.pool) {
            lines.long = lines.long.saturating_sub(u32::from(granted.is_long));
            if let Some((line, really_us)) = lines.line_mut(granted.class).zip(cost_us) {
                let more = (really_us as f64 - granted.cost_us as f64) / granted.weight.max(1e-6);
                line.correct(&granted.tenant, more as i64);
            }
        }
        self.fill(now, granted.pod, rooms);
    }

    fn refuse(&mut self, now: Mono, ticket: TicketId, reason: Reason) {
        let Some(Place::Waits(name, class)) = self.places.get(&ticket) else { return };
        let (name, class) = (Pool::clone(name), *class);
        let Some(lines) = self.pools.get_mut(&name) else { return };
        let wait_s = lines.time_for(lines.ahead_us(class));
        if let Some(gone) = lines.line_mut(class).and_then(|line| line.remove(ticket)) {
            self.unlisted(now, &name, &gone);
        }
        self.yard.let_go(ticket);
        self.effects.push(Effect::Refuse(ticket, Refusal { reason, retry_after: Some(retry_after(ticket, wait_s)) }));
    }

    fn pods_changed(&mut self, now: Mono, name: Pool, pods: Vec<PodId>, rooms: &dyn Rooms) {
        if pods.is_empty() && self.pools.get(&name).is_none_or(Lines::is_empty) {
            self.pools.remove(&name);
            return;
        }
        self.pools.entry(name).or_insert_with(Lines::new).pods.clone_from(&pods);
        let pools = &self.pools;
        self.yard.forget(|pod| pools.values().any(|lines| lines.pods.binary_search(&pod).is_ok()));
        for pod in pods {
            self.fill(now, pod, rooms);
        }
    }

    fn look_later(&mut self, pod: PodId, at: Mono) {
        let look = self.yard.look(pod);
        if look.is_none_or(|before| before > at) {
            if let Some(before) = look.replace(at) {
                self.timers.remove(&(before, Timer::Pod(pod)));
            }
            self.timers.insert((at, Timer::Pod(pod)));
        }
    }

    /// Whether no pod of a pool takes anything: then nothing is won by waiting.
    fn is_out(&self, pool: &Pool, now: Mono, rooms: &dyn Rooms) -> bool {
        let lines = self.pools.get(pool);
        lines.is_none_or(|lines| !lines.pods.iter().any(|pod| rooms.room(*pod, now).is_some()))
    }

    /// Lets all go who wait for pods that are all out.
    fn release(&mut self, now: Mono, pool: &Pool) {
        while let Some(lines) = self.pools.get(pool) {
            let next = lines.order().find_map(|class| Some((class, lines.line(class)?.head()?)));
            let Some((class, head)) = next else { return };
            let pod = head.wish.places.first().map(|(pod, _)| *pod).or_else(|| lines.pods.first().copied());
            let key = Key { class, ticket: head.wish.ticket };
            self.send(now, pool, key, pod.unwrap_or(PodId(0)));
        }
    }

    fn tick(&mut self, now: Mono, rooms: &dyn Rooms) {
        let out: Vec<Pool> = self.backlogged.iter().filter(|pool| self.is_out(pool, now, rooms)).cloned().collect();
        for pool in &out {
            self.release(now, pool);
        }
        while let Some(&(at, timer)) = self.timers.first() {
            if at > now {
                return;
            }
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Pod(pod) => {
                    *self.yard.look(pod) = None;
                    self.fill(now, pod, rooms);
                }
                Timer::Ticket(ticket) => self.check(now, ticket, rooms),
            }
        }
    }

    /// The time of a waiting ticket: is there still hope, and is it the last?
    fn check(&mut self, now: Mono, ticket: TicketId, rooms: &dyn Rooms) {
        let Some(Place::Waits(name, class)) = self.places.get(&ticket) else { return };
        let (class, settings) = (*class, &self.yard.settings);
        let Some(lines) = self.pools.get_mut(name) else { return };
        let Some(waiting) = lines.line(class).and_then(|line| line.get(ticket)) else { return };
        let wish = &waiting.wish;
        let until = wish.arrived.after(self.yard.classes.of(class).wait_max());
        if now >= until {
            return self.refuse(now, ticket, Reason::QueueTimeout);
        }
        let left_s = lines.time_for(waiting.mark.saturating_sub(lines.served_us(class)));
        let first_s = now.since(wish.arrived).as_secs_f64() + left_s + wish.best_us() as f64 / 1e6;
        let bound_s = settings.refuse_beyond * wish.slack().as_secs_f64();
        // Who waited for more than half of his time has not been told to come back, and is not any more.
        let is_early = now.since(wish.arrived) <= wish.slack() / 2 + LATE_LOOK;
        let may_refuse = is_early && wish.is_promised && !wish.is_again && settings.refuse_beyond > 0.0;
        let is_hopeless = may_refuse && first_s > bound_s;
        if is_hopeless {
            return self.refuse(now, ticket, Reason::PredictedLate);
        }
        let (lacks_room, kept) = (now.since(waiting.since) >= KEEP_AFTER, wish.places.first().map(|(pod, _)| *pod));
        let is_large = |room: Room| wish.kv.0 as f64 + room.occupied > room.capacity;
        let (next, is_top) =
            (wish.check_at(now, waiting.since, until), class == Class::Interactive && wish.is_promised);
        let is_large = |room: Room| wish.kv.0 as f64 > LARGE * room.capacity && is_large(room);
        let keeps = lacks_room && kept.and_then(|pod| rooms.room(pod, now)).is_some_and(is_large);
        let pool = Pool::clone(&wish.pool);
        if let Some(line) = lines.line_mut(class) {
            line.check_again(ticket, next);
            self.timers.insert((next, Timer::Ticket(ticket)));
        }
        if let Some(pod) = kept.filter(|_| keeps) {
            self.yard.keep(pod, ticket, class);
        }
        // The last that was granted of the last class makes room, if nothing of it was committed.
        let is_here =
            |ticket: &&TicketId| matches!(self.places.get(*ticket), Some(Place::Granted(one)) if one.pool == pool);
        let victim = self.recallable.iter().rev().take(LOOKS * LOOKS).find(is_here).copied();
        if let Some(ticket) = victim.filter(|_| is_top) {
            self.recallable.remove(&ticket);
            self.effects.push(Effect::Recall(ticket));
        }
    }

    /// What must hold after every event; the words say what does not. For tests: it looks at everything.
    pub fn invariants(&self) -> Result<(), &'static str> {
        let lines = self.pools.values().flat_map(|lines| &lines.by_class);
        lines.clone().try_for_each(line::Line::invariants)?;
        let waits = self.places.values().filter(|place| matches!(place, Place::Waits(..))).count();
        let promised = |granted: &Granted| !granted.is_booked;
        let granted =
            self.places.values().filter(|place| matches!(place, Place::Granted(one) if promised(one))).count();
        let checks = [
            (lines.map(line::Line::len).sum::<usize>() == waits, "a ticket waits that is granted, or is lost"),
            (self.yard.promised_requests() == granted, "promises and grants that are not booked differ"),
            (
                self.pools.values().filter(|lines| !lines.is_empty()).count() == self.backlogged.len(),
                "a pool with work is not listed",
            ),
            (self.timers.len() <= waits + self.yard.len(), "timers are left over"),
        ];
        checks.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }
}

/// Time after which trying again makes sense: what is ahead will be taken by then. Spread, so that the refused do not come back
/// together.
fn retry_after(ticket: TicketId, wait_s: f64) -> Duration {
    let spread = 0.9 + 0.3 * Rng::new(ticket.0).unit();
    Duration::from_secs_f64((wait_s * spread).clamp(RETRY_AFTER_S.0, RETRY_AFTER_S.1).ceil())
}
