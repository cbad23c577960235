//! The pods as the queue sees them: what each was promised, what it has room for, and whom it takes next.
use std::time::Duration;

use rustc_hash::FxHashMap;

use super::line::{Line, SCAN_MAX, SKIPS_MAX, WINDOW, Waiting};
use super::room::{EngineState, Promised, Room, Shut, Valve};
use super::settings::{Classes, QueueSettings};
use super::{Held, Pool, Rooms, Wish};
use crate::base::{Mono, PodId, Tokens};
use crate::flow::{Class, TicketId};

/// Who waited for longer than this and than its own prefill takes, and is not of the last class, wants pods without long prefills; then
/// one pod less may have them, and one more when nobody did for a while.
const PRESSED_AFTER: Duration = Duration::from_millis(100);
const SPARE_LESS: Duration = Duration::from_secs(1);
const SPARE_MORE: Duration = Duration::from_secs(5);

/// One of so many pods may be kept for a large request.
const KEPT_ONE_OF: usize = 8;

#[derive(Debug, Default)]
struct Pod {
    promised: Promised,
    /// Prefills of those who wait and would best go there.
    held: Held,
    valve: Valve,
    /// When it is looked at next.
    look: Option<Mono>,
    kept_for: Option<Kept>,
}

/// For whom a pod is kept, against his class and those behind it; in the end against all.
#[derive(Clone, Copy, Debug)]
struct Kept {
    ticket: TicketId,
    class: Class,
    /// Half of the time that he may wait is over.
    ends: Mono,
}

impl Kept {
    fn is_against(&self, wish: &Wish, now: Mono) -> bool {
        self.ticket != wish.ticket && (wish.class >= self.class || now >= self.ends)
    }
}

/// A pool's pods.
#[derive(Debug, Default)]
struct Crew {
    count: usize,
    /// Pods with long prefills of the last class, and how many each has.
    long: FxHashMap<PodId, u32>,
    /// How many may, beyond the share that always may.
    spare: u32,
    /// When that was changed, and when somebody of another class last had to wait.
    changed: Mono,
    pressed: Mono,
}

impl Crew {
    fn long_max(&self, share: f64) -> u32 {
        let sure = (share * self.count as f64).floor().max(1.0) as u32;
        (sure + self.spare).min(self.count.saturating_sub(1).max(1) as u32)
    }
}

/// See the file.
#[derive(Debug)]
pub(super) struct Yard {
    pub(super) settings: QueueSettings,
    pub(super) classes: Classes,
    pods: FxHashMap<PodId, Pod>,
    /// Pods that are kept.
    kept: FxHashMap<TicketId, PodId>,
    crews: FxHashMap<Pool, Crew>,
}

/// One look at a pod.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) now: Mono,
    pub(super) pod: PodId,
    pub(super) room: Room,
    pub(super) rooms: &'a dyn Rooms,
    /// For a class that has not had its floor.
    pub(super) is_owed: bool,
}

/// How good a match is, in microseconds, and whose.
type Match = Option<(u64, TicketId)>;

impl Yard {
    pub(super) fn new(settings: QueueSettings, classes: Classes) -> Self {
        Self { settings, classes, pods: FxHashMap::default(), kept: FxHashMap::default(), crews: FxHashMap::default() }
    }

    /// Whether a request could go to a pod now.
    pub(super) fn fits(&mut self, look: &Look<'_>, wish: &Wish) -> Result<(), Shut> {
        let is_long = self.is_long(wish, look.pod);
        if !wish.may_use(look.pod) || is_long && self.bars_long(&wish.pool, look.pod) {
            return Err(Shut::Own);
        }
        let (theta_s, fill) = (self.classes.of(wish.class).pod_wait_max_s, self.settings.kv_fill_share);
        // One long prefill may wait behind another: others keep away from that pod, and need not meet the next elsewhere.
        let theta_s = if is_long { theta_s.max(wish.prefill_us(look.pod) as f64 / 1e6) } else { theta_s };
        let state = self.pods.entry(look.pod).or_default();
        if state.kept_for.is_some_and(|kept| kept.is_against(wish, look.now)) {
            return Err(Shut::Own);
        }
        let (fill, theta_s) = if wish.class == Class::Interactive || look.is_owed {
            (fill, theta_s)
        } else {
            state.valve.left(look.now, fill, theta_s)
        };
        state.valve.try_open(look.now, &look.room, &state.promised, theta_s, wish.kv, fill)?;
        let Some(partner) = wish.bound.and_then(|bound| bound.partner) else { return Ok(()) };
        let Some(room) = look.rooms.room(partner, look.now) else { return Err(Shut::Own) };
        let state = self.pods.entry(partner).or_default();
        // Nothing is prefilled there.
        let (room, promised) = (Room { wait_s: 0.0, ..room }, Promised { wait_s: 0.0, ..state.promised });
        state.valve.try_open(look.now, &room, &promised, theta_s, wish.kv, fill).map_err(|_| Shut::Own)
    }

    /// Why a pod takes nobody at all, if so.
    pub(super) fn takes_nobody(&mut self, look: &Look<'_>) -> Option<Shut> {
        let fill = self.settings.kv_fill_share;
        let state = self.pods.entry(look.pod).or_default();
        state.valve.try_open(look.now, &look.room, &state.promised, f64::INFINITY, Tokens(0), fill).err()
    }

    /// Whether its prefill is long there, of those that only some pods may have at once.
    fn is_long(&self, wish: &Wish, pod: PodId) -> bool {
        wish.class == Class::Batch && wish.prefill_us(pod) as f64 > self.settings.long_prefill_s * 1e6
    }

    /// Whether a pod has no long prefill, and as many pods of its pool as may have.
    fn bars_long(&self, pool: &Pool, pod: PodId) -> bool {
        let Some(crew) = self.crews.get(pool) else { return false };
        let most = crew.long_max(self.settings.long_prefill_pods_share);
        !crew.long.contains_key(&pod) && crew.long.len() >= most as usize
    }

    /// A request goes to a pod after such a wait; whether its prefill is long there.
    pub(super) fn begins(&mut self, now: Mono, wish: &Wish, pod: PodId, waited: Duration) -> bool {
        let is_long = self.is_long(wish, pod);
        let crew = self.crews.entry(Pool::clone(&wish.pool)).or_default();
        let is_pressed = waited > PRESSED_AFTER && waited.as_micros() as u64 > wish.best_us();
        if wish.class != Class::Batch && is_pressed {
            crew.pressed = now;
            if now.since(crew.changed) >= SPARE_LESS {
                (crew.spare, crew.changed) = (crew.spare.saturating_sub(1), now);
            }
        } else if now.since(crew.pressed).min(now.since(crew.changed)) >= SPARE_MORE {
            (crew.spare, crew.changed) = ((crew.spare + 1).min(crew.count as u32), now);
        }
        if is_long {
            *crew.long.entry(pod).or_default() += 1;
        }
        is_long
    }

    /// A long prefill has ended.
    pub(super) fn long_ended(&mut self, pool: &Pool, pod: PodId) {
        let Some(crew) = self.crews.get_mut(pool) else { return };
        if let Some(count) = crew.long.get_mut(&pod) {
            *count -= 1;
            crew.long.retain(|_, count| *count > 0);
        }
    }

    /// A pool has so many pods.
    pub(super) fn crew(&mut self, pool: &Pool, count: usize) {
        self.crews.entry(Pool::clone(pool)).or_default().count = count;
        self.crews.retain(|_, crew| crew.count > 0 || !crew.long.is_empty());
    }

    /// One waits that would best go to a pod: what is held for it by that. Short ones of the last class are let by and do not count.
    pub(super) fn hold(&mut self, wish: &Wish) -> Option<(PodId, Held)> {
        let pod = wish.best()?;
        if wish.class == Class::Batch && !self.is_long(wish, pod) {
            return None;
        }
        let first_us = if wish.class == Class::Interactive { wish.best_us() } else { 0 };
        let own = Held { all_us: wish.best_us(), first_us };
        let held = &mut self.pods.entry(pod).or_default().held;
        (held.all_us, held.first_us) = (held.all_us + own.all_us, held.first_us + own.first_us);
        Some((pod, own))
    }

    /// It waits no more.
    pub(super) fn unhold(&mut self, pod: PodId, own: Held) {
        if let Some(Pod { held, .. }) = self.pods.get_mut(&pod) {
            held.all_us = held.all_us.saturating_sub(own.all_us);
            held.first_us = held.first_us.saturating_sub(own.first_us);
        }
    }

    /// What is held for a pod.
    pub(super) fn held(&self, pod: PodId) -> Held {
        self.pods.get(&pod).map_or_else(Held::default, |state| state.held)
    }

    /// Whether a request that just came would be taken by a pod that took nobody before.
    pub(super) fn wants(&mut self, look: &Look<'_>, waiting: &Waiting) -> Result<(), Shut> {
        let wish = &waiting.wish;
        let is_idle = look.room.requests + self.promised(look.pod).requests == 0;
        if is_idle && waiting.gains(look.pod) || wish.worse_us(look.pod) == 0 {
            self.fits(look, wish)
        } else {
            Err(Shut::Own)
        }
    }

    /// One of the first class goes to a pod after such a wait: if that, and what is before it there, took longer than its own prefill
    /// does, the others leave more.
    pub(super) fn met(&mut self, now: Mono, pod: PodId, wish: &Wish, shut: Option<Shut>, waited_us: u64) {
        let is_late = waited_us > wish.best_us();
        self.pods.entry(pod).or_default().valve.met(now, shut, is_late);
    }

    fn free(&mut self, look: &Look<'_>) -> f64 {
        let fill = self.settings.kv_fill_share;
        let state = self.pods.entry(look.pod).or_default();
        state.valve.free(&look.room, &state.promised, fill)
    }

    /// The next one of a class for a pod. `Err`: somebody waits there that does not go now.
    pub(super) fn pick(&mut self, look: &Look<'_>, line: &Line) -> Result<Option<TicketId>, Shut> {
        let Some(head) = line.head() else { return Ok(None) };
        let mut shut = Shut::Own;
        if head.may_take(look.pod, look.now) {
            match self.fits(look, &head.wish) {
                Ok(()) => return Ok(Some(head.wish.ticket)),
                // The same for everybody in the class.
                Err(why @ (Shut::Queue(_) | Shut::Slots)) => return Err(why),
                Err(why) => shut = why,
            }
            if shut == Shut::Kv {
                if head.skips >= SKIPS_MAX {
                    self.keep(look.pod, &head.wish);
                }
                // Enough of those who need less went before it, so that this pod is left to it; or nobody needs less.
                let is_kept = self.kept.get(&head.wish.ticket) == Some(&look.pod);
                if is_kept || self.free(look) < line.least_kv() as f64 {
                    return Err(Shut::Kv);
                }
            }
        }
        let is_idle = look.room.requests + self.promised(look.pod).requests == 0;
        let bars_long = self.bars_long(&head.wish.pool, look.pod);
        let (mut best, mut nearest, mut seen): (Match, Match, usize) = (None, None, 0);
        let within = line.within();
        for (start, one) in line.in_turn().take(SCAN_MAX) {
            // Who was served more than the largest request ahead of the others is only asked where nobody else goes.
            if start > within && best.or(nearest).is_some() {
                break;
            }
            if !one.wish.may_use(look.pod) || bars_long && self.is_long(&one.wish, look.pod) {
                continue;
            }
            let (is_ready, worse_us) = (one.may_take(look.pod, look.now), one.wish.worse_us(look.pod));
            let is_taken = is_ready || is_idle && one.gains(look.pod);
            if !is_taken {
                continue;
            }
            seen += 1;
            if seen > WINDOW {
                break;
            }
            match self.fits(look, &one.wish) {
                Err(why) => shut = shut.sooner(why),
                Ok(()) if one.skips >= SKIPS_MAX => return Ok(Some(one.wish.ticket)),
                Ok(()) if is_ready => {
                    let gain = one.wish.worst_us().saturating_sub(worse_us);
                    best = best.filter(|(most, _)| *most >= gain).or(Some((gain, one.wish.ticket)));
                }
                Ok(()) => {
                    nearest = nearest.filter(|(least, _)| *least <= worse_us).or(Some((worse_us, one.wish.ticket)));
                }
            }
        }
        best.or(nearest).map_or(Err(shut), |(_, ticket)| Ok(Some(ticket)))
    }

    /// Whether the pod is to be left to the next of a line that does not fit by now: it soon will, or the pod is kept for it.
    pub(super) fn waits_for(&self, look: &Look<'_>, line: &Line, why: Shut) -> bool {
        let is_kept = || {
            let kept = self.pods.get(&look.pod).and_then(|state| state.kept_for);
            kept.zip(line.head()).is_some_and(|(kept, head)| kept.ticket == head.wish.ticket)
        };
        match why {
            Shut::Queue(_) | Shut::Slots => true,
            Shut::Kv => is_kept(),
            Shut::Own => false,
        }
    }

    /// What was promised on a pod.
    pub(super) fn promised(&self, pod: PodId) -> Promised {
        self.pods.get(&pod).map_or_else(Promised::default, |state| state.promised)
    }

    /// Something was granted there.
    pub(super) fn promise(&mut self, pod: PodId, ticket: TicketId, wait_s: f64, kv: Tokens) {
        let state = self.pods.entry(pod).or_default();
        state.promised.add(wait_s, kv);
        self.let_go(ticket);
    }

    /// What was granted there counts elsewhere now, or is over.
    pub(super) fn unpromise(&mut self, pod: PodId, wait_s: f64, kv: Tokens) {
        if let Some(state) = self.pods.get_mut(&pod) {
            state.promised.take(wait_s, kv);
        }
    }

    /// Keeps a pod for a ticket until it goes to some pod, if it is not kept for another of its class or one before. Few are kept at
    /// once, and none for one that could not go there even then.
    pub(super) fn keep(&mut self, pod: PodId, wish: &Wish) {
        let (ticket, class) = (wish.ticket, wish.class);
        let ends = wish.arrived.after(self.classes.of(class).wait_max() / 2);
        let is_barred = self.is_long(wish, pod) && self.bars_long(&wish.pool, pod);
        let most = (self.crews.get(&wish.pool).map_or(0, |crew| crew.count) / KEPT_ONE_OF).max(1);
        if is_barred || self.kept.contains_key(&ticket) {
            return;
        }
        let of = |pod: &PodId| self.pods.get(pod).and_then(|state| state.kept_for);
        let yields = |kept: &Kept| kept.class > class;
        let here = of(&pod);
        let gone = if here.is_some() || self.kept.len() < most {
            here
        } else {
            self.kept.values().filter_map(of).max_by_key(|kept| (kept.class, kept.ticket))
        };
        if gone.as_ref().is_none_or(yields) {
            gone.map(|kept| self.let_go(kept.ticket));
            self.pods.entry(pod).or_default().kept_for = Some(Kept { ticket, class, ends });
            self.kept.insert(ticket, pod);
        }
    }

    /// Forgets a pod that is gone, once nothing is promised or held there.
    pub(super) fn forget(&mut self, pod: PodId) {
        self.kept.retain(|_, kept| *kept != pod);
        if let Some(state) = self.pods.get_mut(&pod) {
            state.kept_for = None;
            if state.promised.requests == 0 && state.held == Held::default() && state.look.is_none() {
                self.pods.remove(&pod);
            }
        }
    }

    /// No pod is kept for this ticket any more; the one that was.
    pub(super) fn let_go(&mut self, ticket: TicketId) -> Option<PodId> {
        let pod = self.kept.remove(&ticket)?;
        if let Some(state) = self.pods.get_mut(&pod) {
            state.kept_for = None;
        }
        Some(pod)
    }

    /// A first token came there.
    pub(super) fn answered(&mut self, now: Mono, pod: PodId, room: &Room) {
        self.pods.entry(pod).or_default().valve.answered(now, room);
    }

    /// A reading of a pod.
    pub(super) fn read(&mut self, now: Mono, pod: PodId, engine: EngineState, room: &Room) {
        self.pods.entry(pod).or_default().valve.read(now, engine, room);
    }

    /// When the pod is looked at next.
    pub(super) fn look(&mut self, pod: PodId) -> &mut Option<Mono> {
        &mut self.pods.entry(pod).or_default().look
    }

    /// The same, to look at.
    pub(super) fn next_look(&self, pod: PodId) -> Option<Mono> {
        self.pods.get(&pod)?.look
    }

    /// Pods that are known.
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// Grants that are not booked yet.
    pub(super) fn promised_requests(&self) -> usize {
        self.pods.values().map(|state| state.promised.requests as usize).sum()
    }
}
