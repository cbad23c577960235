//! Who may wait, and how long: bounds of classes, early refusal, the end of a wait, and when to come back.
use std::time::Duration;

use super::line::Unit;
use super::pool::{CAUTION, Lines};
use super::{Class, KEEP_AFTER, LARGE, LOOKS, Lane, Place, Pool, Queue, Room, Rooms, Timer, WhenFull, Wish};
use super::{Effect, Key, Line};
use crate::base::{Mono, Rng};
use crate::flow::{Reason, Refusal, TicketId};

/// The look at half of a ticket's time may be late by so much.
const LATE_LOOK: Duration = Duration::from_millis(10);
/// Bounds of a `Retry-After` \[seconds\].
const RETRY_AFTER_S: (f64, f64) = (1.0, 600.0);

impl Queue {
    /// Why one more would wait in vain, if it has to wait.
    pub(super) fn lateness(&self, now: Mono, lane: &Lane, wish: &Wish, ahead_us: u64) -> Option<Refusal> {
        let lines = self.lanes.get(lane).filter(|_| ahead_us > 0)?;
        let wait_s = lines.time_for(wish.class, ahead_us, now, &self.yard.classes);
        let is_long = now.since(wish.arrived).as_secs_f64() + wait_s > self.yard.classes.of(wish.class).wait_max_s;
        let is_late = self.is_hopeless(now, wish, lines.caution(wish.class) * wait_s) || is_long && !wish.is_again;
        is_late.then(|| self.refusal(now, lane, wish, Reason::PredictedLate))
    }

    /// Why there is no room to wait for one more, once those have gone who give way to it.
    pub(super) fn lack(&mut self, now: Mono, lane: &Lane, wish: &Wish) -> Option<Refusal> {
        let limits = self.yard.classes.of(wish.class);
        loop {
            let (mut requests, mut bytes, mut cost_us) = (0, 0, 0);
            for line in self.of_pool(&lane.pool).filter_map(|lines| lines.line(wish.class)) {
                (requests, bytes, cost_us) =
                    (requests + line.len() as u64, bytes + line.bytes(), cost_us + line.cost_us());
            }
            let is_full = requests >= u64::from(limits.requests_max)
                || bytes + wish.body_bytes > limits.body_bytes_max
                || requests > 0 && (cost_us + wish.cost_us) as f64 / 1e6 > limits.cost_s_max;
            if !is_full || wish.is_again {
                return None;
            }
            let unit = if requests >= u64::from(limits.requests_max) { Unit::Requests } else { Unit::Cost };
            let line = self.lanes.get(lane).and_then(|lines| lines.line(wish.class));
            let line = line.filter(|_| wish.body_bytes <= limits.body_bytes_max);
            let evicts = limits.when_full == WhenFull::EvictLast;
            let last = line.and_then(|line| line.last()).filter(|last| evicts && last.wish.deadline > wish.deadline);
            let gives_way = line.and_then(|line| line.gives_way(wish, unit)).or(last).map(|one| one.wish.ticket);
            let Some(gone) = gives_way else { return Some(self.refusal(now, lane, wish, Reason::QueueFull)) };
            self.refuse(now, gone, Reason::QueueFull);
        }
    }

    /// The answer to one that does not wait, or no more: it may come again when what waits by now will have been served.
    fn refusal(&self, now: Mono, lane: &Lane, wish: &Wish, reason: Reason) -> Refusal {
        let lines = self.lanes.get(lane);
        let backlog_us = lines.and_then(|lines| lines.line(wish.class)).map_or(0, Line::cost_us);
        let wait_s = lines.map_or(0.0, |lines| lines.time_for(wish.class, backlog_us, now, &self.yard.classes));
        Refusal { reason, retry_after: Some(retry_after(wish.ticket, wait_s)) }
    }

    /// All lanes of a pool.
    fn of_pool(&self, pool: &Pool) -> impl Iterator<Item = &Lines> {
        let from = Lane { pool: Pool::clone(pool), bound: None };
        let pool = Pool::clone(pool);
        self.lanes.range(from..).take_while(move |(lane, _)| lane.pool == pool).map(|(_, lines)| lines)
    }

    /// Whether its turn, if it comes after so long \[seconds\], is too late for what it was promised.
    fn is_hopeless(&self, now: Mono, wish: &Wish, turn_s: f64) -> bool {
        let beyond = self.yard.settings.refuse_beyond;
        let first_s = now.since(wish.arrived).as_secs_f64() + turn_s + wish.best_us() as f64 / 1e6;
        wish.is_promised && !wish.is_again && beyond > 0.0 && first_s > beyond * wish.slack().as_secs_f64()
    }

    pub(super) fn refuse(&mut self, now: Mono, ticket: TicketId, reason: Reason) {
        let Some(Place::Waits(lane, class, _)) = self.places.get(&ticket) else { return };
        let (lane, class) = (lane.clone(), *class);
        let line = self.lanes.get(&lane).and_then(|lines| lines.line(class));
        let Some(waiting) = line.and_then(|line| line.get(ticket)) else { return };
        let refusal = self.refusal(now, &lane, &waiting.wish, reason);
        let line = self.lanes.get_mut(&lane).and_then(|lines| lines.line_mut(class));
        if let Some(gone) = line.and_then(|line| line.remove(ticket)) {
            self.unlisted(now, &lane, &gone);
            self.missed(now, &gone.wish, gone.shut);
        }
        self.yard.let_go(ticket);
        self.effects.push(Effect::Refuse(ticket, refusal));
    }

    /// The time of a waiting ticket: is there still hope, and is it the last?
    pub(super) fn check(&mut self, now: Mono, ticket: TicketId, rooms: &dyn Rooms) {
        let Some(Place::Waits(lane, class, _)) = self.places.get(&ticket) else { return };
        let (lane, class) = (lane.clone(), *class);
        let Some(lines) = self.lanes.get(&lane) else { return };
        let Some(line) = lines.line(class) else { return };
        let Some(waiting) = line.get(ticket) else { return };
        let wish = &waiting.wish;
        let until = wish.arrived.after(self.yard.classes.of(class).wait_max());
        if now >= until {
            return self.refuse(now, ticket, Reason::QueueTimeout);
        }
        // Those who came later and go before it were let in without looking at it: it will be its turn when it is due.
        let ahead_us = line.ahead_us(wish, waiting.due, waiting.number);
        let left_us = ahead_us.min(waiting.mark.saturating_sub(lines.served_us(class)));
        let left_s = lines.time_for(class, left_us, now, &self.yard.classes);
        // Half of the caution: those who wait are to be in time too, but better refused when they came. Who waited for more than half of
        // his time has not been told to come back, and is not any more.
        let caution = f64::midpoint(1.0, lines.caution(class) / CAUTION);
        let is_early = now.since(wish.arrived) <= wish.slack() / 2 + LATE_LOOK;
        if is_early && self.is_hopeless(now, wish, caution * left_s) {
            if let Some(lines) = self.lanes.get_mut(&lane) {
                lines.note_first(class, true);
            }
            return self.refuse(now, ticket, Reason::PredictedLate);
        }
        let is_in = |pod| wish.may_use(pod) && rooms.room(pod, now).is_some();
        if wish.is_choosy() && !lines.pods.iter().any(|pod| is_in(*pod)) {
            return self.release(now, &lane, Key { class, ticket });
        }
        let lacks_room = now.since(waiting.since) >= KEEP_AFTER;
        let needs = wish.kv.0 as f64;
        let is_large = |room: Room| needs > LARGE * room.capacity && needs + room.occupied > room.capacity;
        let best = wish.best().filter(|_| lacks_room);
        let kept = best.filter(|pod| rooms.room(*pod, now).is_some_and(is_large));
        if let Some(pod) = kept {
            self.yard.keep(pod, wish);
        }
        let is_top = class == Class::Interactive && wish.is_promised;
        let next = wish.check_at(now, waiting.since, until);
        if let Some(Place::Waits(.., check)) = self.places.get_mut(&ticket) {
            *check = next;
            self.timers.add(next, Timer::Ticket(ticket));
        }
        if is_top {
            self.make_room(&lane);
        }
    }

    /// Takes back the last that was granted of the last class where a lane waits, if nothing of it was committed.
    fn make_room(&mut self, lane: &Lane) {
        let Some(lines) = self.lanes.get(lane) else { return };
        let is_here =
            |ticket: &&TicketId| matches!(self.places.get(*ticket), Some(Place::Granted(one)) if lines.serves(one.pod));
        let victim = self.recallable.iter().rev().take(LOOKS * LOOKS).find(is_here).copied();
        if let Some(ticket) = victim {
            self.recallable.remove(&ticket);
            self.effects.push(Effect::Recall(ticket));
        }
    }
}

/// Time after which trying again makes sense: what is ahead will be taken by then. Spread, so that the refused do not come back
/// together.
fn retry_after(ticket: TicketId, wait_s: f64) -> Duration {
    let spread = 0.9 + 0.3 * Rng::new(ticket.0).unit();
    Duration::from_secs_f64((wait_s * spread).clamp(RETRY_AFTER_S.0, RETRY_AFTER_S.1).ceil())
}
