//! What becomes of one that comes: it goes at once, is refused, or waits in its line.
use super::line::Waiting;
use super::pool::Lines;
use super::room::Shut;
use super::yard::Look;
use super::{Class, Effect, LOOKS, Lane, Place, Queue, Rooms, SKIP_SHARE, Timer, Wish, look_later};
use crate::base::{Mono, PodId};
use crate::flow::{Reason, TicketId};

impl Queue {
    pub(super) fn asks(&mut self, now: Mono, wish: Wish, rooms: &dyn Rooms) {
        if self.places.contains_key(&wish.ticket) {
            return;
        }
        let lane = wish.lane();
        if let Some(pod) = wish.best().filter(|pod| self.goes_at_once(now, &lane, &wish, *pod, rooms)) {
            if let Some(lines) = self.lanes.get_mut(&lane) {
                lines.granted(wish.class, wish.cost_us, now, &self.yard.classes);
            }
            return self.grant(now, &wish, pod, None);
        }
        let due = wish.due(self.yard.classes.of(wish.class).wait_max());
        let line = self.lanes.get(&lane).and_then(|lines| lines.line(wish.class));
        let (ahead_us, all_us) = line.map_or((0, 0), |line| (line.ahead_us(&wish, due, u64::MAX), line.cost_us()));
        let late = self.lateness(now, &lane, &wish, ahead_us);
        // Those before it may wait for what it does not need.
        let in_vain = late.filter(|_| !self.is_taken(now, &wish, rooms));
        if let Some(refusal) = in_vain.or_else(|| self.lack(now, &lane, &wish)) {
            let shut = self.shut.take();
            self.missed(now, &wish, shut);
            return self.effects.push(Effect::Refuse(wish.ticket, refusal));
        }
        let ticket = wish.ticket;
        let mut looks: Vec<PodId> = Vec::with_capacity(wish.places.len() + LOOKS);
        looks.extend(wish.places.iter().map(|spot| spot.pod));
        let opens_us = wish.best().map_or(0, |pod| {
            let wait_s = rooms.room(pod, now).map_or(0.0, |room| room.wait_s);
            let held = self.yard.held(pod);
            // Of its own class only what goes before it: not all that a tenant has waiting who asks for more than his share.
            let part = (ahead_us as f64 / all_us.max(1) as f64).min(1.0);
            let others_us = if wish.class == Class::Interactive { 0.0 } else { held.first_us as f64 };
            let class_us = if wish.class == Class::Interactive { held.first_us } else { held.all_us - held.first_us };
            (wait_s * 1e6 + others_us + part * class_us as f64) as u64
        });
        self.enqueue(now, lane, wish, due, (opens_us, ahead_us), &mut looks);
        let mut looks = looks.into_iter();
        while let Some(pod) = self.wanted(now, ticket, &mut looks, rooms) {
            self.fill(now, pod, rooms);
        }
        if late.is_some() {
            self.refuse(now, ticket, Reason::PredictedLate);
        }
    }

    /// Whether its best pod has room for it, whoever is before it.
    fn is_taken(&mut self, now: Mono, wish: &Wish, rooms: &dyn Rooms) -> bool {
        let room = wish.best().and_then(|pod| Some((pod, rooms.room(pod, now)?)));
        room.is_some_and(|(pod, room)| self.yard.fits(&Look { now, pod, room, rooms, is_owed: false }, wish).is_ok())
    }

    /// One of the first class is refused: the others leave more where it would have gone.
    pub(super) fn missed(&mut self, now: Mono, wish: &Wish, shut: Option<Shut>) {
        if let Some(pod) = wish.best().filter(|_| wish.class == Class::Interactive) {
            self.yard.met(now, pod, wish, shut, u64::MAX);
        }
    }

    /// Whether nobody is before it and its best pod has room, or nothing is won by waiting. Before the first class is only who is of
    /// it too.
    fn goes_at_once(&mut self, now: Mono, lane: &Lane, wish: &Wish, pod: PodId, rooms: &dyn Rooms) -> bool {
        if !self.yard.settings.enabled {
            return true;
        }
        let is_top = wish.class == Class::Interactive;
        let is_behind = self.backlogged.contains(lane) && {
            let line = self.lanes.get(lane).and_then(|lines| lines.line(wish.class));
            !is_top || line.is_some_and(|line| !line.is_empty())
        };
        if is_behind && !is_top {
            return false;
        }
        let Some(room) = rooms.room(pod, now) else { return !is_behind && self.is_out(lane, now, rooms) };
        let look = Look { now, pod, room, rooms, is_owed: false };
        let found = self.yard.fits(&look, wish);
        self.shut = found.err();
        let goes = !is_behind && found.is_ok();
        if is_top && goes {
            self.yard.met(now, pod, wish, None, (room.wait_s * 1e6) as u64);
        }
        goes
    }

    /// The next of some pods that has room for one that just came, while it waits. Those before it were offered to the pod when it
    /// last changed; if it has none it is looked at again.
    fn wanted(
        &mut self,
        now: Mono,
        ticket: TicketId,
        pods: &mut impl Iterator<Item = PodId>,
        rooms: &dyn Rooms,
    ) -> Option<PodId> {
        let Self { places, lanes, yard, timers, .. } = self;
        let Some(Place::Waits(lane, class, _)) = places.get(&ticket) else { return None };
        let lines = lanes.get(lane)?;
        let waiting = lines.line(*class)?.get(ticket)?;
        pods.filter(|pod| lines.serves(*pod)).find(|&pod| {
            let wanted = match rooms.room(pod, now) {
                Some(room) => yard.wants(&Look { now, pod, room, rooms, is_owed: false }, waiting),
                None => Err(Shut::Own),
            };
            if let Err(shut) = wanted {
                look_later(yard, timers, pod, now.after(shut.look_after()));
            }
            wanted.is_ok()
        })
    }

    /// Puts it into its line; adds pods beside its best ones that it may look at.
    fn enqueue(
        &mut self,
        now: Mono,
        lane: Lane,
        wish: Wish,
        due: Mono,
        (opens_us, ahead_us): (u64, u64),
        looks: &mut Vec<PodId>,
    ) {
        self.numbers += 1;
        let patience_us = wish.slack().mul_f64(SKIP_SHARE).as_micros() as u64;
        let (ticket, class) = (wish.ticket, wish.class);
        let last = wish.arrived.after(self.yard.classes.of(class).wait_max());
        let check = wish.check_at(now, now, last);
        self.timers.add(check, Timer::Ticket(ticket));
        let lines = self.lanes.entry(lane.clone()).or_insert_with(|| Lines::of(lane.bound.map(|bound| bound.pod)));
        let mark = lines.served_us(class) + ahead_us;
        let held = self.yard.hold(&wish);
        self.effects.extend(held.map(|(pod, _)| Effect::Holds(pod, self.yard.held(pod))));
        let (number, shut) = (self.numbers, self.shut.take());
        lines.push(Waiting { number, since: now, due, skips: 0, opens_us, held, shut, patience_us, mark, wish });
        lines.note_backlog(now);
        let count = lines.pods.len();
        let others = (0..count.min(LOOKS)).map(|step| (self.numbers as usize * LOOKS + step) % count);
        looks.extend(others.filter_map(|at| lines.pods.get(at).copied()));
        if !self.backlogged.contains(&lane) {
            self.catch_up(&lane);
            self.backlogged.insert(lane.clone());
        }
        self.places.insert(ticket, Place::Waits(lane, class, check));
    }

    /// A lane that had nothing to do begins among those that share pods with it.
    fn catch_up(&mut self, lane: &Lane) {
        let Some(lines) = self.lanes.get(lane) else { return };
        let others = self.backlogged.iter().filter_map(|other| self.lanes.get(other));
        let tags = others.filter(|other| lines.pods.iter().any(|pod| other.serves(*pod))).map(|other| other.tag);
        let (least, most) = tags.fold((u64::MAX, 0), |(least, most), tag| (tag.min(least), tag.max(most)));
        if let Some(lines) = self.lanes.get_mut(lane).filter(|_| least <= most) {
            lines.tag = lines.tag.clamp(least, most);
        }
    }
}
