//! Who waits in one class of one pool, and in which order they go.
//!
//! Tenants get the same service, times their weight, measured in cost (start-time fair queueing, Goyal 1996): each tenant that has
//! work has a start tag, the lowest is next, and what it is served adds cost ÷ weight to its tag. Inside a tenant the earliest
//! due time goes first; while much of what it asks without a promise comes too late anyway, the cheapest. All in whole microseconds, so that two runs agree.
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::room::Shut;
use super::{Held, Wish};
use crate::base::{Mono, PodId};
use crate::flow::TicketId;

/// Tickets of the window in which a pod looks for a better match; and those that are looked at to find so many that may go there.
pub(super) const WINDOW: usize = 64;
pub(super) const SCAN_MAX: usize = 512;
/// Younger ones that may be taken before a ticket.
pub(super) const SKIPS_MAX: u8 = 8;
/// Shares of late dispatches at which the order inside a tenant changes, and changes back; and the weight of one dispatch.
const LATE: (f64, f64) = (0.2, 0.1);
const LATE_GAIN: f64 = 0.02;
/// With more tenants, what waits of each is not looked at to predict a wait; and tickets from either end that are.
const TENANTS_SUMMED: usize = 256;
const TICKETS_SUMMED: usize = 128;
/// Tenants that are remembered while nothing of theirs waits.
const RESTING_MAX: usize = 1_024;

/// A ticket that waits.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) wish: Wish,
    /// Its place by arrival.
    pub(super) number: u64,
    /// When it came.
    pub(super) since: Mono,
    /// By which those of a tenant are ordered ([`Wish::due`]).
    pub(super) due: Mono,
    /// How often a younger one was taken before it.
    pub(super) skips: u8,
    /// Time in which its best pod will have done what is there and what is held for it \[microseconds\].
    pub(super) opens_us: u64,
    /// What is held for its best pod because of it.
    pub(super) held: Option<(PodId, Held)>,
    /// Why its best pod did not take it when it came.
    pub(super) shut: Option<Shut>,
    /// Longest time for which it waits for the best pod \[microseconds\].
    pub(super) patience_us: u64,
    /// Cost that will have been served of its class when it is its turn, if nobody who came later goes before it \[microseconds\].
    pub(super) mark: u64,
}

impl Waiting {
    /// Whether an idle pod may have it at once: what is to be computed there takes no longer than its best pod is expected to need for
    /// room.
    pub(super) fn gains(&self, pod: PodId) -> bool {
        self.wish.worse_us(pod) <= self.opens_us
    }

    /// Whether it may go to a pod by now: to its best at once, to others once it has waited for longer than that was worth.
    pub(super) fn may_take(&self, pod: PodId, now: Mono) -> bool {
        let worse_us = self.wish.worse_us(pod);
        let waited_us = now.since(self.since).as_micros() as u64;
        worse_us == 0 || self.skips >= SKIPS_MAX || waited_us >= (self.opens_us + worse_us).min(self.patience_us)
    }
}

/// Tickets and what they cost \[microseconds\], by something and then by arrival.
type Order = BTreeMap<(u64, u64), (TicketId, u64)>;

#[derive(Debug, Default)]
struct Tenant {
    by_due: Order,
    /// Only kept while the order is that.
    by_cost: Order,
    /// Part of its dispatches that were late, and whether its cheapest goes first because of that.
    late: f64,
    is_shortest_first: bool,
    start: u64,
    /// Tells it from all others of the line.
    serial: u64,
    /// What waits costs \[microseconds\], and the same ÷ weight.
    cost_us: u64,
    share_us: u64,
}

/// See the file.
#[derive(Debug, Default)]
pub(super) struct Line {
    waiting: FxHashMap<TicketId, Waiting>,
    tenants: FxHashMap<Arc<str>, Tenant>,
    serials: u64,
    /// Tenants that have work, by start tag and serial.
    starts: BTreeMap<(u64, u64), Arc<str>>,
    /// The one whose turn it is, and what it costs \[microseconds\].
    head: Option<(TicketId, u64)>,
    /// Tags at which tenants without work would go on.
    resting: FxHashMap<Arc<str>, u64>,
    /// By arrival; some of them wait no more, but not the first.
    by_age: VecDeque<(u64, TicketId)>,
    virtual_time: u64,
    cost_us: u64,
    /// Most that one was charged since nobody waited \[microseconds ÷ weight\].
    largest_us: u64,
    bytes: u64,
    /// Least KV that any needs who came since nobody waited \[tokens\].
    least_kv: u64,
}

/// In which what waits of a tenant is measured against others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A thousandth of a ticket ÷ weight.
    Requests,
    /// Cost ÷ weight.
    Cost,
}

impl Tenant {
    /// Its tickets in the order in which they go, with what they cost.
    const fn order(&self) -> &Order {
        if self.is_shortest_first { &self.by_cost } else { &self.by_due }
    }

    fn in_turn(&self) -> impl Iterator<Item = &TicketId> {
        self.order().values().map(|(ticket, _)| ticket)
    }

    /// What goes before one of its tickets, or before a newcomer, by its own order \[microseconds of cost\].
    fn before_us(&self, cost_us: u64, due: Mono, number: u64) -> u64 {
        let (order, key) = if self.is_shortest_first { (&self.by_cost, cost_us) } else { (&self.by_due, due.0) };
        let (mut before, mut after) = (order.range(..(key, number)), order.range((key, number)..));
        let (mut before_us, mut after_us, mut span) = (0, 0, (key, key));
        for _ in 0..TICKETS_SUMMED {
            let Some(((at, _), (_, cost_us))) = before.next() else { return before_us };
            (before_us, span.0) = (before_us + cost_us, *at);
            let Some(((at, _), (_, cost_us))) = after.next_back() else { return self.cost_us - after_us };
            (after_us, span.1) = (after_us + cost_us, *at);
        }
        // Too many: those between are taken to be spread evenly.
        let part = (key - span.0) as f64 / (span.1 - span.0).max(1) as f64;
        before_us + (part * (self.cost_us - before_us - after_us) as f64) as u64
    }
}

impl Line {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) const fn cost_us(&self) -> u64 {
        self.cost_us
    }

    /// What is served before one that waits, or before a newcomer: of its tenant what goes before it, and of others no more than their
    /// share meanwhile \[microseconds\].
    pub(super) fn ahead_us(&self, wish: &Wish, due: Mono, number: u64) -> u64 {
        let own = self.tenants.get(&wish.tenant);
        let (before_us, own_us) = own.map_or((0, 0), |own| (own.before_us(wish.cost_us, due, number), own.cost_us));
        let share_us = wish.share_us(before_us + wish.cost_us);
        if self.tenants.len() > TENANTS_SUMMED {
            let others_us = self.cost_us - own_us;
            return before_us + others_us.min(share_us.saturating_mul(self.tenants.len() as u64));
        }
        let others = self.tenants.values().filter(|tenant| !own.is_some_and(|own| std::ptr::eq(own, *tenant)));
        let part = |tenant: &Tenant| (share_us as f64 / tenant.share_us.max(1) as f64).min(1.0) * tenant.cost_us as f64;
        before_us + others.map(|tenant| part(tenant) as u64).sum::<u64>()
    }

    pub(super) const fn least_kv(&self) -> u64 {
        self.least_kv
    }

    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn get(&self, ticket: TicketId) -> Option<&Waiting> {
        self.waiting.get(&ticket)
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        let (ticket, wish) = (waiting.wish.ticket, &waiting.wish);
        self.cost_us += wish.cost_us;
        self.bytes += wish.body_bytes;
        if self.waiting.is_empty() {
            (self.largest_us, self.least_kv) = (0, wish.kv.0);
        }
        self.largest_us = self.largest_us.max(wish.share_us(wish.cost_us));
        self.least_kv = self.least_kv.min(wish.kv.0);
        let tenant = self.tenants.entry(Arc::clone(&wish.tenant)).or_default();
        if tenant.by_due.is_empty() {
            self.serials += 1;
            tenant.serial = self.serials;
            tenant.start = self.virtual_time.max(self.resting.remove(&wish.tenant).unwrap_or(0));
            self.starts.insert((tenant.start, tenant.serial), Arc::clone(&wish.tenant));
        }
        tenant.by_due.insert((waiting.due.0, waiting.number), (ticket, wish.cost_us));
        tenant.cost_us += wish.cost_us;
        tenant.share_us += wish.share_us(wish.cost_us);
        if tenant.is_shortest_first {
            tenant.by_cost.insert((wish.cost_us, waiting.number), (ticket, wish.cost_us));
        }
        self.by_age.push_back((waiting.number, ticket));
        self.waiting.insert(ticket, waiting);
        self.turn();
    }

    /// Finds out whose turn it is.
    fn turn(&mut self) {
        let tenant = self.starts.first_key_value().and_then(|(_, name)| self.tenants.get(name));
        self.head = tenant.and_then(|tenant| tenant.order().first_key_value()).map(|(_, one)| *one);
    }

    /// The one whose turn it is.
    pub(super) fn head(&self) -> Option<&Waiting> {
        self.waiting.get(&self.head?.0)
    }

    /// What it costs \[microseconds\].
    pub(super) fn head_us(&self) -> Option<u64> {
        self.head.map(|(_, cost_us)| cost_us)
    }

    /// The one that is due last: the latest of the tenant whose turn comes last.
    pub(super) fn last(&self) -> Option<&Waiting> {
        let tenant = self.tenants.get(self.starts.last_key_value()?.1)?;
        self.waiting.get(&tenant.by_due.last_key_value()?.1.0)
    }

    /// Where there is no room for one more: the one that is due last of the tenant of which most waits, if that is more than of the
    /// newcomer's tenant with him. So a tenant may fill the line, but keeps nobody else out.
    pub(super) fn gives_way(&self, wish: &Wish, unit: Unit) -> Option<&Waiting> {
        let held = |tenant: &Tenant| match unit {
            Unit::Requests => 1_000 * tenant.by_due.len() as u64 * tenant.share_us / tenant.cost_us.max(1),
            Unit::Cost => tenant.share_us,
        };
        let own = self.tenants.get(&wish.tenant).map_or(0, held);
        let more = match unit {
            Unit::Requests => wish.share_us(1_000).max(1),
            Unit::Cost => wish.share_us(wish.cost_us),
        };
        let (name, most) = self.tenants.iter().max_by_key(|(name, tenant)| (held(tenant), *name))?;
        let last = most.by_due.last_key_value().and_then(|(_, (ticket, _))| self.waiting.get(ticket))?;
        (*name != wish.tenant && held(most) > own + more).then_some(last)
    }

    /// All, oldest first.
    pub(super) fn oldest(&self) -> impl Iterator<Item = &Waiting> {
        let of = |(number, ticket): &(u64, TicketId)| self.waiting.get(ticket).filter(|one| one.number == *number);
        self.by_age.iter().filter_map(of)
    }

    /// Takes one out that is not served.
    pub(super) fn remove(&mut self, ticket: TicketId) -> Option<Waiting> {
        let gone = self.take(ticket);
        self.turn();
        gone
    }

    fn take(&mut self, ticket: TicketId) -> Option<Waiting> {
        let gone = self.waiting.remove(&ticket)?;
        let waits =
            |(number, ticket): &(u64, TicketId)| self.waiting.get(ticket).is_some_and(|one| one.number == *number);
        while self.by_age.front().is_some_and(|first| !waits(first)) {
            self.by_age.pop_front();
        }
        if self.by_age.len() > 2 * self.waiting.len() + WINDOW {
            self.by_age.retain(waits);
        }
        self.cost_us -= gone.wish.cost_us;
        self.bytes -= gone.wish.body_bytes;
        if let Some(tenant) = self.tenants.get_mut(&gone.wish.tenant) {
            tenant.by_due.remove(&(gone.due.0, gone.number));
            tenant.cost_us -= gone.wish.cost_us;
            tenant.share_us -= gone.wish.share_us(gone.wish.cost_us);
            tenant.by_cost.remove(&(gone.wish.cost_us, gone.number));
            if tenant.by_due.is_empty() {
                let start = tenant.start;
                self.starts.remove(&(start, tenant.serial));
                self.tenants.remove(&gone.wish.tenant);
                self.rest(&gone.wish.tenant, start);
            }
        }
        Some(gone)
    }

    /// Takes one out to be served, and charges its tenant.
    pub(super) fn serve(&mut self, ticket: TicketId, now: Mono) -> Option<Waiting> {
        let first = self.starts.first_key_value().map_or(0, |((start, _), _)| *start);
        self.virtual_time = self.virtual_time.max(first);
        let served = self.take(ticket)?;
        let wish = &served.wish;
        self.charge(&wish.tenant, wish.share_us(wish.cost_us));
        if !wish.is_promised {
            self.note_lateness(&wish.tenant, now > wish.deadline);
        }
        self.turn();
        Some(served)
    }

    /// In the order of their turns, with the start tags of their tenants: no more than a window of each tenant.
    pub(super) fn in_turn(&self) -> impl Iterator<Item = (u64, &Waiting)> {
        let tenants = self.starts.iter().filter_map(|((start, _), name)| Some((*start, self.tenants.get(name)?)));
        let tickets =
            tenants.flat_map(|(start, tenant)| tenant.in_turn().take(WINDOW).map(move |ticket| (start, ticket)));
        tickets.filter_map(|(start, ticket)| Some((start, self.waiting.get(ticket)?)))
    }

    /// Start tags up to which a tenant may go before the first: then two of them never part by more than the largest request twice.
    pub(super) fn within(&self) -> u64 {
        self.starts.first_key_value().map_or(0, |((start, _), _)| start.saturating_add(self.largest_us))
    }

    /// One is taken before others: those of its tenant that would have gone to the pod as well, and the first of each tenant whose turn
    /// it was before.
    pub(super) fn skip_before(&mut self, ticket: TicketId, pod: PodId, now: Mono) {
        let Some(name) = self.waiting.get(&ticket).map(|taken| Arc::clone(&taken.wish.tenant)) else { return };
        let before = self.starts.values().take_while(|other| **other != name).take(WINDOW);
        let heads = before.filter_map(|other| self.tenants.get(other)?.in_turn().next().copied());
        let own = self.tenants.get(&name).into_iter().flat_map(Tenant::in_turn);
        let own = own.copied().take_while(|other| *other != ticket).take(WINDOW);
        let passed: Vec<TicketId> = heads.chain(own).collect();
        for other in passed {
            let Some(waiting) = self.waiting.get_mut(&other) else { continue };
            if waiting.wish.tenant != name || waiting.wish.may_use(pod) && waiting.may_take(pod, now) {
                waiting.skips = waiting.skips.saturating_add(1);
            }
        }
    }

    /// Adds to what a tenant was served, or takes off what it was charged too much \[microseconds of cost ÷ weight\].
    pub(super) fn correct(&mut self, tenant: &Arc<str>, more: i64) {
        if more >= 0 {
            self.charge(tenant, more.unsigned_abs());
        } else if let Some(start) = self.tenants.get(tenant).map(|tenant| tenant.start) {
            self.move_to(tenant, start.saturating_sub(more.unsigned_abs()).max(self.virtual_time.min(start)));
        } else if let Some(start) = self.resting.get_mut(tenant) {
            *start = start.saturating_sub(more.unsigned_abs());
        }
        self.turn();
    }

    fn charge(&mut self, tenant: &Arc<str>, share_us: u64) {
        if let Some(start) = self.tenants.get(tenant).map(|tenant| tenant.start) {
            self.move_to(tenant, start + share_us);
        } else {
            let start = self.resting.get(tenant).copied().unwrap_or(0).max(self.virtual_time) + share_us;
            self.rest(tenant, start);
        }
    }

    fn move_to(&mut self, name: &Arc<str>, start: u64) {
        if let Some(tenant) = self.tenants.get_mut(name) {
            let was = std::mem::replace(&mut tenant.start, start);
            if let Some(name) = self.starts.remove(&(was, tenant.serial)) {
                self.starts.insert((start, tenant.serial), name);
            }
        }
    }

    /// Remembers where a tenant without work goes on, as long as that is not behind the others anyway.
    fn rest(&mut self, tenant: &Arc<str>, start: u64) {
        let now = self.virtual_time;
        if self.starts.is_empty() {
            // Nobody has work: the clock goes on to the last of them, and all begin alike.
            self.virtual_time = now.max(start);
            self.resting.clear();
            return;
        }
        if start > now {
            if self.resting.len() >= RESTING_MAX {
                self.resting.retain(|_, start| *start > now);
            }
            if self.resting.len() < RESTING_MAX {
                self.resting.insert(Arc::clone(tenant), start);
            }
        }
    }

    /// Of a tenant that still has work: most of what it asks comes too late, whoever else is served in time. Of what was promised nothing
    /// does that is let in: to let the cheapest of it by would only make the others late.
    fn note_lateness(&mut self, name: &Arc<str>, is_late: bool) {
        let Some(tenant) = self.tenants.get_mut(name) else { return };
        tenant.late += LATE_GAIN * (f64::from(u8::from(is_late)) - tenant.late);
        let was = tenant.is_shortest_first;
        tenant.is_shortest_first = tenant.late > if was { LATE.1 } else { LATE.0 };
        if was == tenant.is_shortest_first {
            return;
        }
        tenant.by_cost.clear();
        if tenant.is_shortest_first {
            let waiting = tenant.by_due.iter();
            tenant.by_cost.extend(waiting.map(|((_, number), one)| ((one.1, *number), *one)));
        }
    }

    /// What must hold after every call; the words say what does not.
    pub(super) fn invariants(&self) -> Result<(), &'static str> {
        let costs: u64 = self.waiting.values().map(|one| one.wish.cost_us).sum();
        let bytes: u64 = self.waiting.values().map(|one| one.wish.body_bytes).sum();
        let listed: usize = self.tenants.values().map(|tenant| tenant.by_due.len()).sum();
        let checks = [
            (costs == self.cost_us && bytes == self.bytes, "costs or bytes of a line do not add up"),
            (listed == self.waiting.len(), "a ticket waits in no tenant, or in two"),
            (self.oldest().count() == self.waiting.len(), "a ticket waits that has no age, or two"),
            (self.by_age.len() <= 2 * self.waiting.len() + WINDOW, "ages are left over"),
            (
                self.head.map(|(ticket, _)| ticket) == self.in_turn().next().map(|(_, one)| one.wish.ticket),
                "it is not the turn of the head",
            ),
            (self.starts.len() == self.tenants.len(), "a tenant with work has no tag"),
            (self.tenants.values().all(|tenant| !tenant.by_due.is_empty()), "a tenant without work has one"),
        ];
        checks.iter().find(|(holds, _)| !holds).map_or(Ok(()), |(_, what)| Err(what))
    }
}
