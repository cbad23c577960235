//! The sessions of one model: which are active, what they hold, and who waits to become so.
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use super::habit::Habits;
use super::session::{Session, SessionId, Sums};
use super::{Ask, Census, Crew, GroupKey, SESSIONS_MAX, STRIDE, Ticket, Told, Wait, names};
use crate::base::Mono;
use crate::flow::TicketId;

/// Tokens of a block before any prompt's length was told.
const BLOCK_TOKENS: f64 = 64.0;
const BLOCK_TOKENS_BOUNDS: (f64, f64) = (16.0, 256.0);
/// A session that is not active is forgotten after this time.
const FORGET_AFTER: Duration = Duration::from_mins(15);
/// Part of the fleet's time that it may take to compute again what is reused: below it, losing the caches costs little.
const AFFORDABLE: f64 = 0.4;
/// Nobody is held any more when to compute all turns of the sessions that fit from nothing would take less than this part of the
/// fleet's time; with cold caches it would serve about as much as takes all of it.
const IDLE: f64 = 0.7;
/// Sessions are held if those that fit ask for so many times what is served without that.
const BETTER: f64 = 1.1;
/// One that needs more than this part of the room is let in when there is so much.
const LARGE: f64 = 0.25;
/// Room is given back within this time even if nothing was let in lately \[s\].
const TURNOVER_S: f64 = 900.0;

/// A window of what returning sessions found: at least so many turns, over at least this time.
const WINDOW_TURNS: u32 = 32;
const WINDOW: Duration = Duration::from_secs(10);
/// The share changes by so much of what misses are short of their goal, per window, and shrinks by this factor at most.
const GAIN: f64 = 0.3;
const SHRINK_MOST: f64 = 0.85;
/// Bounds of the share, as multiples of the configured one.
const SHARE_BOUNDS: (f64, f64) = (0.25, 100.0);
/// Part of the room below which misses are not for want of it.
const ROOMY: f64 = 0.6;
const USUAL_WEIGHT: f64 = 0.2;
const USUAL_MAX: f64 = 0.5;

/// What a session's first prompt shares with others. What is cached and did not come through this gate is its own: it began before the
/// gate did.
fn shared(told: &Told) -> u64 {
    told.cached.0.min(told.believed.0).min(told.prompt.0)
}

#[derive(Debug, Default)]
struct Group {
    weight: f64,
    /// Tokens of its active sessions.
    held: u64,
    active: u64,
    /// By when the session first came, and what it takes of the room \[tokens\].
    line: BTreeMap<(Mono, TicketId), u64>,
    /// All of these together.
    line_needs: u64,
}

impl Group {
    /// What those take that are before a session that came then, as if they had come evenly.
    fn before(&self, first: Mono) -> f64 {
        let (Some((&(front, _), _)), Some((&(back, _), _))) = (self.line.first_key_value(), self.line.last_key_value())
        else {
            return 0.0;
        };
        let part = (first.since(front).as_secs_f64() + 1e-9) / (back.since(front).as_secs_f64() + 1e-9);
        if first <= front { 0.0 } else { self.line_needs as f64 * part.min(1.0) }
    }

    fn is_empty(&self) -> bool {
        self.active == 0 && self.line.is_empty()
    }
}

#[derive(Debug)]
struct Window {
    began: Mono,
    turns: u32,
    expected: u64,
    found: u64,
    /// Somebody waited.
    was_tight: bool,
}

impl Window {
    const fn new(began: Mono) -> Self {
        Self { began, turns: 0, expected: 0, found: 0, was_tight: false }
    }
}

#[derive(Debug)]
pub(super) struct Pool {
    pub(super) crew: Crew,
    habits: Habits,
    sessions: HashMap<SessionId, Session>,
    by_name: HashMap<u64, SessionId>,
    groups: BTreeMap<GroupKey, Group>,
    waits: BTreeSet<(SessionId, TicketId)>,
    waiting_bytes: u64,
    /// Active ones without a request, the coldest first.
    idle: BTreeSet<(Mono, SessionId)>,
    /// Those that are not active, and do not wait.
    rest: BTreeSet<(Mono, SessionId)>,
    active: Sums,
    /// Those that wait, or were refused and come again.
    outside: Sums,
    /// Part of the capacity that may be filled now, and as configured.
    share: f64,
    share_begun: f64,
    /// Those for whom there is no room wait.
    pub(super) is_holding: bool,
    /// Misses that have other causes than want of room.
    usual_miss: f64,
    window: Window,
    numbers: u64,
}

impl Pool {
    pub(super) fn new(share: f64) -> Self {
        Self {
            crew: Crew::default(),
            habits: Habits::default(),
            sessions: HashMap::new(),
            by_name: HashMap::new(),
            groups: BTreeMap::new(),
            waits: BTreeSet::new(),
            waiting_bytes: 0,
            idle: BTreeSet::new(),
            rest: BTreeSet::new(),
            active: Sums::default(),
            outside: Sums::default(),
            share,
            share_begun: share,
            is_holding: false,
            usual_miss: 0.0,
            window: Window::new(Mono::ZERO),
            numbers: 0,
        }
    }

    /// Takes another share to begin with; what was learnt of it stays.
    pub(super) fn configure(&mut self, share: f64) {
        self.share *= share / self.share_begun;
        self.share_begun = share;
    }

    /// Changes a session; whatever counts it is kept right.
    fn change<T>(&mut self, id: SessionId, change: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let session = self.sessions.get_mut(&id)?;
        self.idle.remove(&(session.last, id));
        self.rest.remove(&(session.last, id));
        if let Some(key) = &session.group {
            self.active.take(session);
            if let Some(group) = self.groups.get_mut(key) {
                (group.held, group.active) = (group.held - session.own, group.active - 1);
                if group.is_empty() {
                    self.groups.remove(key);
                }
            }
        } else if session.is_outside() {
            self.outside.take(session);
        }
        let result = change(session);
        if let Some(key) = &session.group {
            self.active.add(session);
            let group = self.groups.entry(GroupKey::clone(key)).or_default();
            (group.held, group.active) = (group.held + session.own, group.active + 1);
        } else if session.is_outside() {
            self.outside.add(session);
        }
        if session.is_free() {
            let list = if session.group.is_some() { &mut self.idle } else { &mut self.rest };
            list.insert((session.last, id));
        }
        Some(result)
    }

    /// Finds the session of a request, or makes one; `None` if there are too many.
    pub(super) fn meet(&mut self, now: Mono, ask: &Ask<'_>) -> Option<SessionId> {
        let (name, _) = names(ask).next()?;
        self.habits.stream_s.see(ask.stream_s);
        let tokens = |blocks: usize| (blocks as f64 * self.habits.block_tokens.or(BLOCK_TOKENS)) as u64;
        let prompt = tokens(ask.blocks.len());
        let found = names(ask).find_map(|(name, blocks)| Some((*self.by_name.get(&name)?, tokens(blocks))));
        let Some((id, alike)) = found else { return self.make(now, ask, name, prompt) };
        let known = self.sessions.get(&id)?;
        if known.name != name && known.flights > 0 {
            return self.fork(now, ask, name, (id, alike));
        }
        // A name that a client gave says nothing of what the prompt begins with.
        let goes_on = known.blocks == 0 || ask.blocks.get(known.blocks - 1) == Some(&known.end);
        let alike = if ask.named.is_some() && !goes_on { 0 } else { alike };
        let (old, gap_s, first) = self.change(id, |session| {
            let came_back = session.turns > 0 && session.is_free() && !session.was_cut;
            let gap_s = came_back.then(|| now.since(session.last).as_secs_f64());
            let first = (came_back && !session.has_returned).then_some(session.class);
            if session.turns > 0 {
                session.has_returned = true;
                session.reuse = alike.min(session.context);
            }
            session.own = session.keeps(prompt.max(session.context));
            (session.was_refused, session.was_cut) = (false, false);
            (session.blocks, session.end) = (ask.blocks.len(), ask.blocks.last().copied().unwrap_or(0));
            let again_s = ask.prefill_s * session.reuse as f64 / prompt.max(1) as f64;
            session.costs_s = (ask.prefill_s, again_s, ask.answer_s);
            (session.last, session.class) = (now, ask.class);
            (std::mem::replace(&mut session.name, name), gap_s, first)
        })?;
        self.by_name.remove(&old);
        self.by_name.insert(name, id);
        if let Some(gap_s) = gap_s {
            self.habits.returned(gap_s, first);
        }
        Some(id)
    }

    fn make(&mut self, now: Mono, ask: &Ask<'_>, name: u64, tokens: u64) -> Option<SessionId> {
        if self.sessions.len() >= SESSIONS_MAX {
            self.forget(self.rest.first().copied()?.1);
        }
        self.numbers += 1;
        let id = SessionId(self.numbers);
        let shared = (tokens as f64 * self.habits.shared.or(0.0)) as u64;
        let session = Session {
            name,
            group: None,
            own: tokens - shared,
            shared,
            context: 0,
            reuse: 0,
            blocks: ask.blocks.len(),
            end: ask.blocks.last().copied().unwrap_or(0),
            first: ask.arrived,
            last: now,
            flights: 0,
            waits: 0,
            turns: 0,
            class: ask.class,
            has_returned: false,
            was_refused: false,
            was_cut: false,
            costs_s: (ask.prefill_s, 0.0, ask.answer_s),
        };
        self.sessions.insert(id, session);
        self.by_name.insert(name, id);
        self.rest.insert((now, id));
        Some(id)
    }

    /// A session that begins with the prompt of another one while that is under way: another branch of it, and active as it is.
    fn fork(&mut self, now: Mono, ask: &Ask<'_>, name: u64, (parent, alike): (SessionId, u64)) -> Option<SessionId> {
        let group = self.sessions.get(&parent)?.group.clone();
        let tokens = (ask.blocks.len() as f64 * self.habits.block_tokens.or(BLOCK_TOKENS)) as u64;
        let id = self.make(now, ask, name, tokens)?;
        self.change(id, |session| {
            (session.shared, session.own, session.group) = (alike.min(tokens), tokens.saturating_sub(alike), group);
        });
        Some(id)
    }

    pub(super) fn is_active(&self, id: SessionId) -> bool {
        self.sessions.get(&id).is_some_and(|session| session.group.is_some())
    }

    /// Tokens that active sessions are expected to reuse.
    fn used(&self) -> f64 {
        self.active.expected(&self.habits).1
    }

    fn room(&self) -> f64 {
        self.share * self.crew.capacity.0 as f64
    }

    /// What a session takes of the room.
    fn need(&self, id: SessionId) -> f64 {
        self.sessions.get(&id).map_or(0.0, |session| {
            let returns = if session.has_returned { 1.0 } else { self.habits.return_share(session.class) };
            returns * session.own as f64
        })
    }

    /// Whether there is room for one more.
    pub(super) fn fits(&self, id: SessionId) -> bool {
        self.used() + self.need(id).min(LARGE * self.room()) <= self.room()
    }

    /// Whether sessions are held: the fleet could not do without its caches, as what sessions reuse, those included that are held, would
    /// take it too long to compute again; and with those that fit it does more than with everybody and cold caches.
    fn is_short(&self, now: Mono) -> bool {
        let ((active, tokens), outside) = (self.active.expected(&self.habits), self.outside.expected(&self.habits).0);
        let again = self.habits.saved.per_s(now) * (1.0 + outside / active.max(1.0));
        let fitting = self.share_begun * self.crew.capacity.0 as f64 * active / tokens.max(1.0);
        let held = self.habits.whole_load().map_or(f64::INFINITY, |load| fitting * load);
        // While somebody is held, what the fleet would do with cold caches cannot be seen.
        let cold = if self.is_holding { IDLE * self.crew.pods } else { BETTER * self.habits.whole.per_s(now) };
        again > AFFORDABLE * self.crew.pods && held > cold
    }

    /// A request is let go: its session is active. What of its prompt should be cached, if that is known \[tokens\].
    pub(super) fn starts(&mut self, now: Mono, id: SessionId, key: &GroupKey, weight: f64) -> Option<u64> {
        let expected = self.change(id, |session| {
            let is_known = session.group.is_some() && session.turns > 0 && session.flights == 0;
            session.was_refused = false;
            session.flights += 1;
            session.last = now;
            session.group.get_or_insert_with(|| GroupKey::clone(key));
            is_known.then_some(session.reuse)
        });
        self.weigh(key, weight);
        expected.flatten()
    }

    fn weigh(&mut self, key: &GroupKey, weight: f64) {
        if let Some(group) = self.groups.get_mut(key) {
            group.weight = weight;
        }
    }

    /// A request that was let go is over.
    pub(super) fn ends(&mut self, now: Mono, ticket: &Ticket, told: Option<Told>) {
        let habits = &mut self.habits;
        let Some(session) = self.sessions.get(&ticket.session) else { return };
        if let Some(told) = &told {
            if session.turns > 0 {
                let (whole_s, again_s, answer_s) = session.costs_s;
                habits.whole_s.see(whole_s + answer_s);
                habits.whole.add(now, whole_s + answer_s);
                habits.again_s.see(again_s);
                habits.answer_s.see(answer_s);
                habits.saved.add(now, again_s);
            }
            if session.turns == 0 && told.prompt.0 > 0 {
                habits.shared.see(shared(told) as f64 / told.prompt.0 as f64);
            }
            // Of a short prompt the template counts, and images are no blocks.
            if session.blocks >= STRIDE {
                let (least, most) = BLOCK_TOKENS_BOUNDS;
                habits.block_tokens.see((told.prompt.0 as f64 / session.blocks as f64).clamp(least, most));
            }
        }
        self.change(ticket.session, |session| {
            session.flights -= 1;
            session.last = now;
            session.was_cut = told.is_none();
            let Some(told) = &told else { return };
            if session.turns == 0 {
                session.shared = shared(told);
            }
            session.turns += 1;
            session.context = told.prompt.0 + told.generated.0;
            session.own = session.keeps(session.context);
        });
        if let Some((told, expected)) = told.zip(ticket.expected) {
            self.found(now, expected.min(told.prompt.0), told.cached.0);
        }
    }

    /// A turn of an active session found so much of its past in the cache.
    fn found(&mut self, now: Mono, expected: u64, found: u64) {
        let window = &mut self.window;
        window.turns += 1;
        window.expected += expected;
        window.found += found.min(expected);
        window.was_tight |= self.outside.sessions() > 0;
        if window.turns < WINDOW_TURNS || now.since(window.began) < WINDOW {
            return;
        }
        let window = std::mem::replace(&mut self.window, Window::new(now));
        let miss = 1.0 - window.found as f64 / window.expected.max(1) as f64;
        let is_roomy = self.used() < ROOMY * self.share_begun * self.crew.capacity.0 as f64;
        if is_roomy {
            self.usual_miss = (self.usual_miss + USUAL_WEIGHT * (miss - self.usual_miss)).min(USUAL_MAX);
        }
        if !self.is_holding {
            return;
        }
        let (least, most) = SHARE_BOUNDS;
        // So little is filled because the share is so small: what misses there were say nothing against more.
        let misses = if is_roomy { 0.0 } else { miss - self.usual_miss };
        let step = GAIN * (self.habits.miss_goal() - misses);
        let factor = 1.0 + if window.was_tight { step } else { step.min(0.0) };
        let share = self.share * factor.max(SHRINK_MOST);
        self.share = share.clamp(least * self.share_begun, most * self.share_begun);
    }

    /// Sessions that were away for too long, or whose blocks are evicted by now, are not active any more; after a while they are
    /// forgotten.
    pub(super) fn cool(&mut self, now: Mono) {
        self.is_holding = self.is_short(now);
        let patience = Duration::from_secs_f64(self.habits.patience_s());
        let full = self.room() / self.share_begun;
        while let Some(&(last, id)) = self.idle.first() {
            let is_late = now.since(last) > patience;
            if !is_late && self.used() <= full {
                break;
            }
            let lost = self.change(id, |session| {
                session.group = None;
                (is_late && !session.has_returned).then_some(session.class)
            });
            if let Some(class) = lost.flatten() {
                self.habits.was_new(class, false);
            }
        }
        while let Some(&(_, id)) = self.rest.first().filter(|(last, _)| now.since(*last) > FORGET_AFTER) {
            self.forget(id);
        }
    }

    /// Forgets one that is not active and does not wait.
    fn forget(&mut self, id: SessionId) {
        self.change(id, |session| session.was_refused = false);
        if let Some(gone) = self.sessions.remove(&id) {
            self.rest.remove(&(gone.last, id));
            self.by_name.remove(&gone.name);
        }
    }

    /// When the coldest that is active will have been away for too long.
    pub(super) fn next_cold(&self) -> Option<Mono> {
        let (last, _) = self.idle.first()?;
        Some(last.after(Duration::from_secs_f64(self.habits.patience_s()) + Duration::from_millis(1)))
    }

    /// Requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.waits.len()
    }

    /// Bytes of their bodies.
    pub(super) const fn waiting_bytes(&self) -> u64 {
        self.waiting_bytes
    }

    /// Others that wait for the same session.
    pub(super) fn siblings(&self, id: SessionId) -> Vec<TicketId> {
        self.waits.range((id, TicketId(0))..=(id, TicketId(u64::MAX))).map(|(_, ticket)| *ticket).collect()
    }

    /// For how long a session that comes now would wait \[s\].
    pub(super) fn wait_s(&self, now: Mono, key: &GroupKey, id: SessionId) -> f64 {
        let Some(session) = self.sessions.get(&id) else { return 0.0 };
        let before = self.groups.get(key).map_or(0.0, |group| group.before(session.first));
        let groups = self.groups.values().filter(|group| !group.line.is_empty()).count().max(1) as f64;
        let pace = self.habits.let_in.per_s(now).max(self.room() / TURNOVER_S);
        let missing = before * groups + (self.used() + self.need(id) - self.room()).max(0.0);
        missing / pace.max(1e-6)
    }

    /// A request waits; when its session first came.
    pub(super) fn wait(&mut self, ticket: TicketId, id: SessionId, key: &GroupKey, weight: f64, bytes: u64) -> Mono {
        self.waiting_bytes += bytes;
        let first = self.change(id, |session| {
            session.waits += 1;
            session.first
        });
        let first = first.unwrap_or(Mono::ZERO);
        self.waits.insert((id, ticket));
        let need = self.need(id) as u64;
        let group = self.groups.entry(GroupKey::clone(key)).or_default();
        group.line.insert((first, ticket), need);
        group.line_needs += need;
        self.weigh(key, weight);
        first
    }

    /// A request waits no more: it was called, or left.
    pub(super) fn unwait(&mut self, now: Mono, ticket: TicketId, id: SessionId, wait: &Wait) {
        self.waits.remove(&(id, ticket));
        self.waiting_bytes -= wait.body_bytes;
        if let Some(group) = self.groups.get_mut(&wait.group) {
            group.line_needs -= group.line.remove(&(wait.first, ticket)).unwrap_or(0);
            if group.is_empty() {
                self.groups.remove(&wait.group);
            }
        }
        self.change(id, |session| {
            session.waits -= 1;
            (session.last, session.was_refused, session.was_cut) = (now, true, true);
        });
    }

    /// A session was refused; it keeps its place for when it comes again.
    pub(super) fn stays_out(&mut self, now: Mono, id: SessionId) {
        self.change(id, |session| (session.last, session.was_refused, session.was_cut) = (now, true, true));
    }

    /// Who is let in next: of those that hold the least by weight, the session that came first.
    pub(super) fn next(&self) -> Option<TicketId> {
        if self.waits.is_empty() {
            return None;
        }
        let waiting = self.groups.values().filter_map(|group| {
            let (&(_, ticket), _) = group.line.first_key_value()?;
            Some((group.held as f64 / group.weight.max(1e-6), ticket))
        });
        Some(waiting.min_by(|a, b| a.0.total_cmp(&b.0))?.1)
    }

    /// One that waited is let in; the weight of its group.
    pub(super) fn called(&mut self, now: Mono, ticket: TicketId, id: SessionId, wait: &Wait) -> f64 {
        let need = self.need(id);
        let weight = self.groups.get(&wait.group).map_or(1.0, |group| group.weight);
        self.habits.let_in.add(now, need);
        self.unwait(now, ticket, id, wait);
        weight
    }

    pub(super) fn census(&self) -> Census {
        Census {
            active: self.active.sessions(),
            waiting: self.waits.len() as u64,
            tokens: self.used() as u64,
            room: (self.crew.capacity.0 > 0 && self.is_holding).then(|| self.room() as u64),
            kv_share: self.share,
        }
    }

    /// See [`super::Sessions::invariants`]; `flights` are the requests under way.
    pub(super) fn invariants(&self, flights: usize) -> Result<(), &'static str> {
        let sums = |is_in: fn(&Session) -> bool| {
            let mut sums = Sums::default();
            self.sessions.values().filter(|one| is_in(one)).for_each(|one| sums.add(one));
            sums
        };
        let is_listed = |(id, one): (&SessionId, &Session)| {
            let (idle, rest) = (self.idle.contains(&(one.last, *id)), self.rest.contains(&(one.last, *id)));
            (idle, rest) == (one.is_free() && one.group.is_some(), one.is_free() && one.group.is_none())
        };
        let held = |(key, group): (&GroupKey, &Group)| {
            let own = self.sessions.values().filter(|one| one.group.as_ref() == Some(key));
            let (tokens, count) = own.fold((0, 0), |(tokens, count), one| (tokens + one.own, count + 1));
            (group.held, group.active) == (tokens, count) && !group.is_empty()
        };
        let checks = [
            (sums(|one| one.group.is_some()) == self.active, "what is active and its sums differ"),
            (sums(Session::is_outside) == self.outside, "who is held and its sums differ"),
            (self.sessions.iter().all(is_listed), "a session is in a list it does not belong to"),
            (
                self.idle.len() + self.rest.len() == self.sessions.values().filter(|one| one.is_free()).count(),
                "a list names sessions that are gone",
            ),
            (self.groups.iter().all(held), "a group and its sessions differ"),
            (self.by_name.len() == self.sessions.len(), "a session without a name, or a name without one"),
            (self.sessions.len() <= SESSIONS_MAX, "more sessions than the bound"),
            (
                self.sessions.values().map(|one| one.flights as usize).sum::<usize>() == flights,
                "requests under way are counted wrongly",
            ),
        ];
        checks.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }
}
