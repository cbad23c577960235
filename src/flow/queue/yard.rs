//! The pods as the queue sees them: what each was promised, what it has room for, and whom it takes next.
use std::collections::HashMap;

use super::line::{Line, SCAN_MAX, WINDOW, Waiting};
use super::room::{EngineState, Promised, Room, Shut, Valve};
use super::settings::{Classes, QueueSettings};
use super::{Pool, Rooms, Wish};
use crate::base::{Mono, PodId, Tokens};
use crate::flow::{Class, TicketId};

/// Younger ones that may be taken before a ticket.
const SKIPS_MAX: u8 = 8;

#[derive(Debug, Default)]
struct Pod {
    promised: Promised,
    valve: Valve,
    /// When it is looked at next.
    look: Option<Mono>,
    /// For whom it is kept, against his class and those behind it.
    kept_for: Option<(TicketId, Class)>,
}

/// A pool's pods.
#[derive(Debug, Default)]
struct Crew {
    count: usize,
    /// Long prefills of the last class under way.
    long: u32,
}

/// See the file.
#[derive(Debug)]
pub(super) struct Yard {
    pub(super) settings: QueueSettings,
    pub(super) classes: Classes,
    pods: HashMap<PodId, Pod>,
    /// Pods that are kept.
    kept: HashMap<TicketId, PodId>,
    crews: HashMap<Pool, Crew>,
}

/// One look at a pod.
#[derive(Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) now: Mono,
    pub(super) pod: PodId,
    pub(super) room: Room,
    pub(super) rooms: &'a dyn Rooms,
}

/// How good a match is, in microseconds, and whose.
type Match = Option<(u64, TicketId)>;

impl Yard {
    pub(super) fn new(settings: QueueSettings, classes: Classes) -> Self {
        Self { settings, classes, pods: HashMap::new(), kept: HashMap::new(), crews: HashMap::new() }
    }

    /// Whether a request could go to a pod now.
    pub(super) fn fits(&mut self, look: &Look<'_>, wish: &Wish) -> Result<(), Shut> {
        if !wish.may_use(look.pod) || self.is_long(wish, look.pod) && self.has_long_enough(&wish.pool) {
            return Err(Shut::Own);
        }
        let (theta_s, fill) = (self.classes.of(wish.class).pod_wait_max_s, self.settings.kv_fill_share);
        let state = self.pods.entry(look.pod).or_default();
        if state.kept_for.is_some_and(|(ticket, class)| ticket != wish.ticket && wish.class >= class) {
            return Err(Shut::Own);
        }
        state.valve.try_open(&look.room, &state.promised, theta_s, wish.kv, fill)?;
        let Some(partner) = wish.bound.and_then(|bound| bound.partner) else { return Ok(()) };
        let Some(room) = look.rooms.room(partner, look.now) else { return Err(Shut::Own) };
        let state = self.pods.entry(partner).or_default();
        // Nothing is prefilled there.
        let (room, promised) = (Room { wait_s: 0.0, ..room }, Promised { wait_s: 0.0, ..state.promised });
        state.valve.try_open(&room, &promised, theta_s, wish.kv, fill).map_err(|_| Shut::Own)
    }

    /// Whether its prefill is long there, of those that only some pods may have at once.
    fn is_long(&self, wish: &Wish, pod: PodId) -> bool {
        wish.class == Class::Batch && wish.prefill_us(pod) as f64 > self.settings.long_prefill_s * 1e6
    }

    /// Whether as many pods of a pool have long prefills as may.
    fn has_long_enough(&self, pool: &Pool) -> bool {
        let Some(crew) = self.crews.get(pool) else { return false };
        crew.long >= (self.settings.long_prefill_pods_share * crew.count as f64).floor().max(1.0) as u32
    }

    /// A request goes to a pod; whether its prefill is long there.
    pub(super) fn begins(&mut self, wish: &Wish, pod: PodId) -> bool {
        let is_long = self.is_long(wish, pod);
        if is_long {
            self.crews.entry(Pool::clone(&wish.pool)).or_default().long += 1;
        }
        is_long
    }

    /// A long prefill has ended.
    pub(super) fn long_ended(&mut self, pool: &Pool) {
        if let Some(crew) = self.crews.get_mut(pool) {
            crew.long = crew.long.saturating_sub(1);
        }
    }

    /// A pool has so many pods.
    pub(super) fn crew(&mut self, pool: &Pool, count: usize) {
        self.crews.entry(Pool::clone(pool)).or_default().count = count;
        self.crews.retain(|_, crew| crew.count > 0 || crew.long > 0);
    }

    /// Whether a request that just came would be taken by a pod that took nobody before.
    pub(super) fn wants(&mut self, look: &Look<'_>, wish: &Wish) -> Result<(), Shut> {
        let is_idle = look.room.requests + self.promised(look.pod).requests == 0;
        if is_idle || wish.prefill_us(look.pod) <= wish.best_us() { self.fits(look, wish) } else { Err(Shut::Own) }
    }

    fn free(&mut self, look: &Look<'_>) -> f64 {
        let fill = self.settings.kv_fill_share;
        let state = self.pods.entry(look.pod).or_default();
        state.valve.free(&look.room, &state.promised, fill)
    }

    /// The next one of a class for a pod. `Err`: somebody waits there that does not go now.
    pub(super) fn pick(&mut self, look: &Look<'_>, line: &Line) -> Result<Option<TicketId>, Shut> {
        let Some(head) = line.head() else { return Ok(None) };
        let may = |one: &Waiting| {
            look.now >= one.due || one.skips >= SKIPS_MAX || one.wish.prefill_us(look.pod) <= one.wish.best_us()
        };
        let mut shut = Shut::Own;
        if may(head) {
            match self.fits(look, &head.wish) {
                Ok(()) => return Ok(Some(head.wish.ticket)),
                // The same for everybody in the class.
                Err(why @ (Shut::Queue(_) | Shut::Slots)) => return Err(why),
                // And nobody there needs less.
                Err(Shut::Kv) if self.free(look) < line.least_kv() as f64 => return Err(Shut::Kv),
                Err(why) => shut = why,
            }
        }
        let is_idle = look.room.requests + self.promised(look.pod).requests == 0;
        let bars_long = self.has_long_enough(&head.wish.pool);
        let (mut best, mut nearest, mut seen): (Match, Match, usize) = (None, None, 0);
        for one in line.oldest().take(SCAN_MAX) {
            if !one.wish.may_use(look.pod) || bars_long && self.is_long(&one.wish, look.pod) {
                continue;
            }
            seen += 1;
            if seen > WINDOW {
                break;
            }
            let (is_ready, prefill_us) = (may(one), one.wish.prefill_us(look.pod));
            if !is_ready && !is_idle {
                continue;
            }
            match self.fits(look, &one.wish) {
                Err(why) => shut = shut.sooner(why),
                Ok(()) if one.skips >= SKIPS_MAX => return Ok(Some(one.wish.ticket)),
                Ok(()) if is_ready => {
                    let gain = one.wish.cold_us.saturating_sub(prefill_us);
                    best = best.filter(|(most, _)| *most >= gain).or(Some((gain, one.wish.ticket)));
                }
                Ok(()) => {
                    let excess = prefill_us.saturating_sub(one.wish.best_us());
                    nearest = nearest.filter(|(least, _)| *least <= excess).or(Some((excess, one.wish.ticket)));
                }
            }
        }
        best.or(nearest).map_or(Err(shut), |(_, ticket)| Ok(Some(ticket)))
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

    /// Keeps a pod for a ticket until it goes to some pod; a pod that is kept already stays as it is.
    pub(super) fn keep(&mut self, pod: PodId, ticket: TicketId, class: Class) {
        let state = self.pods.entry(pod).or_default();
        if state.kept_for.is_none() {
            state.kept_for = Some((ticket, class));
            self.kept.insert(ticket, pod);
        }
    }

    /// Forgets pods that are gone, once nothing is promised there.
    pub(super) fn forget(&mut self, is_there: impl Fn(PodId) -> bool) {
        self.pods.retain(|pod, state| is_there(*pod) || state.promised.requests > 0);
        self.kept.retain(|_, pod| is_there(*pod));
        for (_, state) in self.pods.iter_mut().filter(|(pod, _)| !is_there(**pod)) {
            state.kept_for = None;
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
    pub(super) fn answered(&mut self, pod: PodId, room: &Room) {
        self.pods.entry(pod).or_default().valve.answered(room);
    }

    /// A reading of a pod.
    pub(super) fn read(&mut self, pod: PodId, engine: EngineState, room: &Room) {
        self.pods.entry(pod).or_default().valve.read(engine, room);
    }

    /// When the pod is looked at next.
    pub(super) fn look(&mut self, pod: PodId) -> &mut Option<Mono> {
        &mut self.pods.entry(pod).or_default().look
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
