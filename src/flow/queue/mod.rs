//! The queue: which request goes to which pod, and when. A machine without clock or sockets: events in, effects out.
//!
//! ```text
//! Asks ──► room on its best pod, and nobody before it? ── yes ──► Grant
//!            │ no: too many wait, or it would be too late ──────► Refuse
//!            ▼
//!          waits in its lane: a pool, or one pod of it if it may go nowhere else
//!            │   class (first strictly, the others by weight, floors for all) → lane (turns by cost)
//!            │                → tenant (start-time fair queueing by cost) → earliest due, or the cheapest while most are late
//!            ▼ a pod has room again: first token, end, reading, time
//!          the head, if this is its best pod or it has waited for that long enough; else the best match of the next 64 ──► Grant
//! ```
//! Whether a pod has room is asked of [`Rooms`] and judged by its valve (`room`); what was granted counts there until it is `Booked`.
//! A ticket goes to a worse pod once it has waited for as long as its best pod was expected to need for room and the other is worse by,
//! or for a quarter of its time, or 8 others were taken before it; a pod without work takes who would lose no time there. A pod takes the
//! best match of the next 64 whose turn it is, of tenants that are no more than the largest request ahead of the first. One that needs more KV than is
//! free anywhere has a pod kept for it.
//!
//! Every granted ticket must be `Over` once, or `Left`. Events of unknown tickets change nothing.
mod arrival;
mod line;
mod patience;
mod pool;
mod room;
mod settings;
#[cfg(test)]
mod tests;
mod timers;
mod wish;
mod yard;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rustc_hash::FxHashMap;

use line::{Line, Waiting};
use pool::{Key, Lines, Rank};
pub use room::{EngineState, Room};
use room::{LOOK_EVERY, Shut};
pub use settings::{ClassRules, ClassSettings, Classes, QueueSettings, WhenFull};
use timers::{Timer, Timers};
use wish::Lane;
pub use wish::{Backlog, Bound, Effect, Event, Held, Pool, Rooms, Spot, Toll, Wish};
use yard::{Look, Yard};

use super::{Class, TicketId};
use crate::base::{Mono, PodId, Tokens};

/// Part of a ticket's time that it may be passed over.
const SKIP_SHARE: f64 = 0.25;
/// Pods that a ticket looks at when it comes, beside its best.
const LOOKS: usize = 8;
/// One that needs more than this part of a pod's KV, and lacks it for so long, has a pod kept for it.
const LARGE: f64 = 0.25;
const KEEP_AFTER: Duration = Duration::from_secs(2);
/// Who may use some pods only is looked at this often: they may be gone.
const CHOOSY_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct Granted {
    lane: Lane,
    class: Class,
    tenant: Arc<str>,
    weight: f64,
    pod: PodId,
    cost_us: u64,
    /// When its first token is too late, if that was promised and it waited.
    due: Option<Mono>,
    wait_s: f64,
    kv: Tokens,
    /// Its tenant was charged.
    is_charged: bool,
    is_booked: bool,
    is_committed: bool,
    is_long: bool,
}

#[derive(Debug)]
enum Place {
    /// And when it is looked at.
    Waits(Lane, Class, Mono),
    Granted(Box<Granted>),
}

/// See the file.
#[derive(Debug)]
pub struct Queue {
    yard: Yard,
    /// Of all pools, and of single pods while somebody waits for them.
    lanes: BTreeMap<Lane, Lines>,
    backlogged: BTreeSet<Lane>,
    places: FxHashMap<TicketId, Place>,
    /// Granted ones of the last class that are not committed.
    recallable: BTreeSet<TicketId>,
    timers: Timers,
    numbers: u64,
    /// Why the pod that was asked last was shut.
    shut: Option<Shut>,
    effects: Vec<Effect>,
}

impl Queue {
    /// An empty queue.
    pub fn new(settings: QueueSettings, classes: Classes) -> Self {
        Self {
            yard: Yard::new(settings, classes),
            lanes: BTreeMap::new(),
            backlogged: BTreeSet::new(),
            places: FxHashMap::default(),
            recallable: BTreeSet::new(),
            timers: Timers::default(),
            numbers: 0,
            shut: None,
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
                    self.yard.read(now, pod, engine, &room);
                }
                self.fill(now, pod, rooms);
            }
            Event::Pods(pool, pods) => self.pods_changed(now, pool, pods, rooms),
            Event::Release => {
                self.release_if(now, |_| true);
                self.tick(now, rooms);
            }
            Event::Tick => self.tick(now, rooms),
        }
        let Self { timers, places, yard, .. } = self;
        timers.clean(places.len() + yard.len(), |at, timer| counts(places, yard, at, timer));
        std::mem::take(&mut self.effects)
    }

    /// When a [`Event::Tick`] is wanted; `None`: not until something else happens.
    pub fn next_deadline(&self) -> Option<Mono> {
        self.timers.first()
    }

    /// Pools that are known.
    pub fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.lanes.keys().filter(|lane| lane.bound.is_none()).map(|lane| &lane.pool)
    }

    /// Tickets that wait or were let go and are not over.
    pub fn tickets(&self) -> usize {
        self.places.len()
    }

    /// Tickets that wait.
    pub fn waiting(&self) -> u64 {
        self.lanes.values().flat_map(|lines| &lines.by_class).map(|line| line.len() as u64).sum()
    }

    /// What waits, by pool and class.
    pub fn backlogs(&self, now: Mono) -> impl Iterator<Item = (Pool, Class, Backlog)> {
        let mut all: BTreeMap<(Pool, Class), Backlog> = BTreeMap::new();
        for (lane, lines) in &self.lanes {
            for class in Class::ALL {
                let sum = all.entry((Pool::clone(&lane.pool), class)).or_default();
                let Some(line) = lines.line(class) else { continue };
                let oldest_s = line.oldest().next().map_or(0.0, |one| now.since(one.since).as_secs_f64());
                *sum = Backlog {
                    requests: sum.requests + line.len() as u64,
                    body_bytes: sum.body_bytes + line.bytes(),
                    cost_s: sum.cost_s + line.cost_us() as f64 / 1e6,
                    oldest_s: sum.oldest_s.max(oldest_s),
                    wait_s: sum.wait_s.max(lines.time_for(class, line.cost_us(), now, &self.yard.classes)),
                };
            }
        }
        all.into_iter().map(|((pool, class), backlog)| (pool, class, backlog))
    }

    /// Gives a pod what there is for it, as long as it has room.
    fn fill(&mut self, now: Mono, pod: PodId, rooms: &dyn Rooms) {
        while !self.backlogged.is_empty() {
            let Some(room) = rooms.room(pod, now) else { return self.look_later(pod, now.after(LOOK_EVERY)) };
            let look = Look { now, pod, room, rooms, is_owed: false };
            if let Some(shut) = self.yard.takes_nobody(&look) {
                return self.look_later(pod, now.after(shut.look_after()));
            }
            match self.pick(&look) {
                Ok(Some((lane, key))) => self.send(now, &lane, key, pod),
                Ok(None) => return,
                Err(shut) => {
                    return self.look_later(pod, now.after(shut.look_after()));
                }
            }
        }
    }

    /// The next one for a pod: by class, then from the lane that was served least. `Err`: somebody waits who does not go there now.
    fn pick(&mut self, look: &Look<'_>) -> Result<Option<(Lane, Key)>, Shut> {
        let all = self.backlogged.iter().filter_map(|lane| Some((lane, self.lanes.get(lane)?)));
        let serving = all.filter(|(_, lines)| lines.serves(look.pod));
        let mut order: Vec<(Rank, &Lane, Class, &Lines)> = serving
            .flat_map(|(lane, lines)| lines.order().map(move |(rank, class)| (rank, lane, class, lines)))
            .collect();
        order.sort_by_key(|(rank, ..)| *rank);
        let mut shut: Option<Shut> = None;
        for (rank, lane, class, lines) in order {
            let Some(line) = lines.line(class) else { continue };
            let look = Look { is_owed: rank.is_owed(), ..*look };
            match self.yard.pick(&look, line) {
                Ok(Some(ticket)) => return Ok(Some((lane.clone(), Key { class, ticket }))),
                Ok(None) => {}
                // Who has not had his floor is not passed over by those who have.
                Err(why) if rank.is_owed() && self.yard.waits_for(&look, line, why) => return Err(why),
                // Nor is the first class by a long prefill that would not mind the queue.
                Err(why @ (Shut::Queue(_) | Shut::Slots)) if class == Class::Interactive => return Err(why),
                Err(why) => shut = Some(shut.map_or(why, |before| before.sooner(why))),
            }
        }
        shut.map_or(Ok(None), Err)
    }

    /// Takes a ticket out of its line and grants it.
    fn send(&mut self, now: Mono, lane: &Lane, key: Key, pod: PodId) {
        let Some(lines) = self.lanes.get_mut(lane) else { return };
        if let Some(line) = lines.line_mut(key.class)
            && line.head().is_some_and(|head| head.wish.ticket != key.ticket)
        {
            line.skip_before(key.ticket, pod, now);
        }
        let Some(served) = lines.serve(&key, now, &self.yard.classes) else { return };
        if key.class == Class::Interactive
            && let Some(best) = served.wish.best()
        {
            self.yard.met(now, best, &served.wish, served.shut, now.since(served.since).as_micros() as u64);
        }
        self.unlisted(now, lane, &served);
        self.grant(now, &served.wish, pod, Some(now.since(served.since)));
    }

    /// A ticket has left its line.
    fn unlisted(&mut self, now: Mono, lane: &Lane, gone: &Waiting) {
        self.places.remove(&gone.wish.ticket);
        if let Some((pod, own)) = gone.held {
            self.yard.unhold(pod, own);
            self.effects.push(Effect::Holds(pod, self.yard.held(pod)));
        }
        let Some(lines) = self.lanes.get_mut(lane) else { return };
        lines.note_backlog(now);
        if lines.is_empty() {
            self.backlogged.remove(lane);
            if lane.bound.is_some() {
                self.lanes.remove(lane);
            }
        }
    }

    /// Grants a ticket after such a wait, or at once.
    fn grant(&mut self, now: Mono, wish: &Wish, pod: PodId, waited: Option<Duration>) {
        let wait_s = wish.prefill_us(pod) as f64 / 1e6;
        let is_long = self.yard.begins(now, wish, pod, waited.unwrap_or_default());
        self.yard.promise(pod, wish.ticket, wait_s, wish.kv);
        let granted = Granted {
            lane: wish.lane(),
            class: wish.class,
            tenant: Arc::clone(&wish.tenant),
            weight: wish.weight,
            pod,
            cost_us: wish.cost_us,
            due: waited.filter(|_| wish.is_promised).map(|_| wish.deadline),
            wait_s,
            kv: wish.kv,
            is_charged: waited.is_some(),
            is_booked: false,
            is_committed: false,
            is_long,
        };
        if wish.is_recallable() {
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
        let Some(Place::Granted(granted)) = self.places.get_mut(&ticket) else { return };
        if std::mem::replace(&mut granted.is_committed, true) {
            return;
        }
        if std::mem::take(&mut granted.is_long) {
            self.yard.long_ended(&granted.lane.pool, granted.pod);
        }
        let pod = granted.pod;
        if let Some((lines, due)) = self.lanes.get_mut(&granted.lane).zip(granted.due) {
            lines.note_first(granted.class, now > due);
        }
        if let Some(room) = rooms.room(pod, now) {
            self.yard.answered(now, pod, &room);
        }
        self.fill(now, pod, rooms);
    }

    fn left(&mut self, now: Mono, ticket: TicketId, rooms: &dyn Rooms) {
        if let Some(Place::Waits(lane, class, _)) = self.places.get(&ticket) {
            let (lane, class) = (lane.clone(), *class);
            if let Some(gone) = self.lanes.get_mut(&lane).and_then(|lines| lines.line_mut(class)?.remove(ticket)) {
                self.unlisted(now, &lane, &gone);
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
        if granted.is_long {
            self.yard.long_ended(&granted.lane.pool, granted.pod);
        }
        // What went at once was never charged: nobody else had work then.
        let line = self.lanes.get_mut(&granted.lane).and_then(|lines| lines.line_mut(granted.class));
        if let Some((line, really_us)) = line.zip(cost_us).filter(|_| granted.is_charged) {
            let more = (really_us as f64 - granted.cost_us as f64) / granted.weight.max(1e-6);
            line.correct(&granted.tenant, more as i64);
        }
        self.fill(now, granted.pod, rooms);
    }

    fn pods_changed(&mut self, now: Mono, pool: Pool, pods: Vec<PodId>, rooms: &dyn Rooms) {
        self.yard.crew(&pool, pods.len());
        let lane = Lane { pool, bound: None };
        let before = self.lanes.get(&lane).map(|lines| lines.pods.clone()).unwrap_or_default();
        if before == pods && !pods.is_empty() {
            return;
        }
        if pods.is_empty() && self.lanes.get(&lane).is_none_or(Lines::is_empty) {
            self.lanes.remove(&lane);
        } else {
            self.lanes.entry(lane).or_insert_with(|| Lines::of(None)).pods.clone_from(&pods);
        }
        for pod in before.into_iter().filter(|pod| pods.binary_search(pod).is_err()) {
            if !self.lanes.values().any(|lines| lines.serves(pod)) {
                self.yard.forget(pod);
            }
        }
        for pod in pods {
            self.fill(now, pod, rooms);
        }
    }

    fn look_later(&mut self, pod: PodId, at: Mono) {
        look_later(&mut self.yard, &mut self.timers, pod, at);
    }

    /// Whether no pod of a lane takes anything: then nothing is won by waiting.
    fn is_out(&self, lane: &Lane, now: Mono, rooms: &dyn Rooms) -> bool {
        let is_in = |pod: PodId| rooms.room(pod, now).is_some();
        match lane.bound {
            Some(Bound { pod, partner }) => !is_in(pod) || partner.is_some_and(|partner| !is_in(partner)),
            None => self.lanes.get(lane).is_none_or(|lines| !lines.pods.iter().any(|pod| is_in(*pod))),
        }
    }

    /// Lets one go, room or not, to the pod it likes best.
    fn release(&mut self, now: Mono, lane: &Lane, key: Key) {
        let Some(lines) = self.lanes.get(lane) else { return };
        let Some(waiting) = lines.line(key.class).and_then(|line| line.get(key.ticket)) else { return };
        let pod = waiting.wish.best().or_else(|| lines.pods.first().copied());
        self.send(now, lane, key, pod.unwrap_or(PodId(0)));
    }

    /// Lets all of some lanes go.
    fn release_if(&mut self, now: Mono, is_so: impl Fn(&Lane) -> bool) {
        let out: Vec<Lane> = self.backlogged.iter().filter(|lane| is_so(lane)).cloned().collect();
        for lane in out {
            let mut keys = Vec::new();
            if let Some(lines) = self.lanes.get(&lane) {
                for (_, class) in lines.order() {
                    let line = lines.line(class).into_iter();
                    keys.extend(line.flat_map(Line::oldest).map(|one| Key { class, ticket: one.wish.ticket }));
                }
            }
            for key in keys {
                self.release(now, &lane, key);
            }
        }
    }

    fn tick(&mut self, now: Mono, rooms: &dyn Rooms) {
        let is_off = !self.yard.settings.enabled;
        let out: Vec<Lane> =
            self.backlogged.iter().filter(|lane| is_off || self.is_out(lane, now, rooms)).cloned().collect();
        self.release_if(now, |lane| out.contains(lane));
        while let Some((at, timer)) = self.timers.due(now) {
            if !counts(&self.places, &self.yard, at, timer) {
                continue;
            }
            match timer {
                Timer::Pod(pod) => {
                    *self.yard.look(pod) = None;
                    self.fill(now, pod, rooms);
                }
                Timer::Ticket(ticket) => self.check(now, ticket, rooms),
            }
        }
    }

    /// What must hold after every event; the words say what does not. For tests: it looks at everything.
    pub fn invariants(&self) -> Result<(), &'static str> {
        let lines = self.lanes.values().flat_map(|lines| &lines.by_class);
        lines.clone().try_for_each(Line::invariants)?;
        let waits = self.places.values().filter(|place| matches!(place, Place::Waits(..))).count();
        let promised = |granted: &Granted| !granted.is_booked;
        let granted =
            self.places.values().filter(|place| matches!(place, Place::Granted(one) if promised(one))).count();
        let checks = [
            (lines.map(Line::len).sum::<usize>() == waits, "a ticket waits that is granted, or is lost"),
            (self.yard.promised_requests() == granted, "promises and grants that are not booked differ"),
            (
                self.lanes.values().filter(|lines| !lines.is_empty()).count() == self.backlogged.len(),
                "a lane with work is not listed",
            ),
            (
                self.lanes.iter().all(|(lane, lines)| lane.bound.is_none() || !lines.is_empty()),
                "a lane of one pod is left over",
            ),
            (self.timers.len() <= Timers::max(self.places.len() + self.yard.len()), "timers are left over"),
            (self.places.iter().all(|(ticket, place)| self.is_timed(*ticket, place)), "nobody looks at a ticket again"),
        ];
        checks.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }

    fn is_timed(&self, ticket: TicketId, place: &Place) -> bool {
        let Place::Waits(.., check) = place else { return true };
        self.timers.has(*check, Timer::Ticket(ticket))
    }
}

/// Whether a time is still that of its pod or ticket.
fn counts(places: &FxHashMap<TicketId, Place>, yard: &Yard, at: Mono, timer: Timer) -> bool {
    match timer {
        Timer::Pod(pod) => yard.next_look(pod) == Some(at),
        Timer::Ticket(ticket) => matches!(places.get(&ticket), Some(Place::Waits(.., check)) if *check == at),
    }
}

/// Looks at a pod then, if not before.
fn look_later(yard: &mut Yard, timers: &mut Timers, pod: PodId, at: Mono) {
    let look = yard.look(pod);
    if look.is_none_or(|before| before > at) {
        *look = Some(at);
        timers.add(at, Timer::Pod(pod));
    }
}
