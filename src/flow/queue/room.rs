//! Whether a pod has room for one more, and how that is learnt.
//!
//! A pod is open for a class while the prefill queued there takes no longer than `theta` of the class, times a factor of the pod; while
//! what runs there, grown to its expected length, and the one more fill no more than a part of its KV cache; and while no more
//! than one request that should have had its first token has none; and while no more than a window of requests have none at all.
//! The window grows by one when as many first tokens came in time as it is wide, and is halved when some begin to be overdue, as
//! TCP does it: an engine that runs as many sequences as it may lets the next ones wait, and that is seen without any reading.
//! Readings say it sooner: where several wait though their prefills fit into a step, the engine runs no more than it does, and one more
//! than that is sent there; then, as long as readings come, neither window nor overdue ones count. A pod with nothing in flight takes
//! anything.
use std::time::Duration;

use crate::base::{Mono, Tokens};

/// A shut pod for which somebody waits is looked at this often, whatever happens; and never more often than that.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
const LOOK_MIN: Duration = Duration::from_millis(1);

/// Bounds of the factor of `theta`.
const FACTOR: (f64, f64) = (0.25, 1.0);
/// What the factor becomes when an engine has more than one waiting, and what is added when none waits though the pod was closed. It
/// is never more than one: what waits in an engine cannot go elsewhere any more.
const CUT: f64 = 0.85;
const RAISE: f64 = 0.05;
/// Least part of the KV cache that is filled, what one reading with preemptions takes off, and what one without gives back.
const FILL_MIN: f64 = 0.5;
const FILL_CUT: f64 = 0.03;
const FILL_RAISE: f64 = 0.002;
/// What the other classes leave more each time the first finds no room, less each time it does, and at most: of the KV cache, and of
/// the queued prefill.
const LEFT_MORE: f64 = 0.02;
const LEFT_LESS: f64 = 0.002;
const LEFT_MAX: (f64, f64) = (0.3, 0.95);
const LEFT_HALF_S: f64 = 30.0;
/// Requests that may be overdue.
const OVERDUE_MAX: u32 = 1;
/// Bounds of the window; it begins at the least.
const WINDOW: (f64, f64) = (2.0, 1_024.0);
/// Readings in a row of a shut pod where nobody waits after which one more may go there.
const DRY_MAX: u32 = 4;
/// Once it is known how many requests a pod takes, readings no older than this say more than first tokens do.
const FRESH: Duration = Duration::from_secs(1);
/// Steps between two readings that show that an engine takes no more.
const STUCK_STEPS: u64 = 2;
/// Queued prefill that explains no waiting \[seconds\].
const SHORT_S: f64 = 0.1;

/// What is known of a pod now.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Room {
    /// It asked to be spared.
    pub is_spared: bool,
    /// It was out, and one request may try it.
    pub is_tried: bool,
    /// Prefill sent there and not done \[seconds\].
    pub wait_s: f64,
    /// A step that is full of prefill \[seconds\].
    pub full_step_s: f64,
    /// Requests in flight there, those of others included.
    pub requests: u32,
    /// Of these, those without a first token.
    pub unanswered: u32,
    /// Of these, those that should have it by now.
    pub overdue: u32,
    /// KV that is occupied, running answers grown to their expected length \[tokens\].
    pub occupied: f64,
    /// KV capacity \[tokens\]; infinite while unknown.
    pub capacity: f64,
}

impl Room {
    /// An idle pod of unknown capacity.
    pub const IDLE: Self = Self {
        is_spared: false,
        is_tried: false,
        wait_s: 0.0,
        full_step_s: 0.5,
        requests: 0,
        unanswered: 0,
        overdue: 0,
        occupied: 0.0,
        capacity: f64::INFINITY,
    };
}

/// What was granted on a pod and is not in its [`Room`] yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Promised {
    pub(super) requests: u32,
    pub(super) wait_s: f64,
    pub(super) tokens: f64,
}

impl Promised {
    pub(super) fn add(&mut self, wait_s: f64, tokens: Tokens) {
        self.requests += 1;
        self.wait_s += wait_s;
        self.tokens += tokens.0 as f64;
    }

    pub(super) fn take(&mut self, wait_s: f64, tokens: Tokens) {
        self.requests = self.requests.saturating_sub(1);
        self.wait_s = (self.wait_s - wait_s).max(0.0);
        self.tokens = (self.tokens - tokens.0 as f64).max(0.0);
        if self.requests == 0 {
            *self = Self::default();
        }
    }
}

/// Why a pod takes no more.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Shut {
    /// Until its queued prefill is short enough: so long at least \[seconds\].
    Queue(f64),
    /// Until something there gets its first token or ends.
    Slots,
    /// Until something there ends.
    Kv,
    /// Not for this request; others may go.
    Own,
}

impl Shut {
    /// The one of two after which it is looked again first.
    pub(super) fn sooner(self, other: Self) -> Self {
        if other.look_after() < self.look_after() { other } else { self }
    }

    /// When to look again, if nothing happens before.
    pub(super) fn look_after(self) -> Duration {
        let after = if let Self::Queue(wait_s) = self { Duration::from_secs_f64(wait_s) } else { LOOK_EVERY };
        after.clamp(LOOK_MIN, LOOK_EVERY)
    }
}

/// What was learnt of how much a pod takes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Valve {
    factor: f64,
    fill: f64,
    /// Requests that it takes, once it was seen that it runs no more: as many as leave one waiting there. What ran at the last reading,
    /// and when that was.
    slots: Option<u32>,
    ran: Option<EngineState>,
    read_at: Mono,
    /// More than one waited there at that reading; and readings since it was shut at which nobody did.
    is_ahead: bool,
    dry: u32,
    window: f64,
    /// The window was full since the last first token; and first tokens that came in time since it was last changed.
    was_full: bool,
    in_time: u32,
    /// More than may be was overdue at the last look.
    is_overdue: bool,
    preemptions: Option<u64>,
    /// Part of the KV cache, and of the queued prefill, that the other classes leave to the first.
    left_kv: f64,
    left_wait: f64,
    left_at: Mono,
    /// It was shut for its queue, or for KV, since the last reading.
    was_shut: bool,
}

/// What an engine tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineState {
    /// Sequences in the batch.
    pub running: u32,
    /// Sequences that wait.
    pub waiting: u32,
    /// Preemptions since it started.
    pub preemptions: u64,
    /// Tokens generated since it started, if it tells.
    pub generated: Option<u64>,
    /// When that was so.
    pub taken: Mono,
}

impl EngineState {
    /// Whether as many ran before as now and some waited all the time, through whole steps: it would have taken one of them.
    fn is_stuck_since(&self, before: &Self) -> bool {
        let steps = |(now, then): (u64, u64)| now.saturating_sub(then) >= STUCK_STEPS * u64::from(self.running);
        let went_on = self.generated.zip(before.generated).is_none_or(steps);
        before.running == self.running && before.waiting > 1 && went_on
    }
}

impl Default for Valve {
    fn default() -> Self {
        Self {
            factor: 1.0,
            fill: 1.0,
            slots: None,
            ran: None,
            read_at: Mono::ZERO,
            is_ahead: false,
            dry: 0,
            window: WINDOW.0,
            was_full: false,
            in_time: 0,
            is_overdue: false,
            preemptions: None,
            left_kv: 0.0,
            left_wait: 0.0,
            left_at: Mono::ZERO,
            was_shut: false,
        }
    }
}

impl Valve {
    /// Whether there is room for one more of `tokens`, where a class waits for `theta_s` at most and `fill_share` of the KV is filled.
    pub(super) fn try_open(
        &mut self,
        now: Mono,
        room: &Room,
        promised: &Promised,
        theta_s: f64,
        tokens: Tokens,
        fill_share: f64,
    ) -> Result<(), Shut> {
        let requests = room.requests + promised.requests;
        if room.is_spared || room.is_tried && promised.requests > 0 {
            return Err(Shut::Slots);
        }
        if requests == 0 {
            return Ok(());
        }
        let (wait_s, theta_s) = (room.wait_s + promised.wait_s, theta_s * self.factor);
        let is_told = self.slots.is_some() && now.since(self.read_at) <= FRESH;
        let is_full = f64::from(room.unanswered + promised.requests) >= self.window && !is_told;
        let was_overdue = std::mem::replace(&mut self.is_overdue, room.overdue > OVERDUE_MAX && !is_told);
        if self.is_overdue && !was_overdue {
            (self.window, self.in_time) = ((self.window / 2.0).max(WINDOW.0), 0);
        }
        self.was_full |= is_full;
        let shut = if is_full || self.is_overdue || self.slots.is_some_and(|slots| requests >= slots) {
            Shut::Slots
        } else if wait_s > theta_s {
            Shut::Queue(wait_s - theta_s)
        } else if tokens.0 as f64 > self.free(room, promised, fill_share) {
            Shut::Kv
        } else {
            return Ok(());
        };
        self.was_shut = true;
        Err(shut)
    }

    /// KV that may still be filled \[tokens\].
    pub(super) fn free(&self, room: &Room, promised: &Promised, fill_share: f64) -> f64 {
        fill_share * self.fill * room.capacity - room.occupied - promised.tokens
    }

    /// What was learnt of the first class halves with time, whether it comes or not.
    fn forget_until(&mut self, now: Mono) {
        let past = now.since(std::mem::replace(&mut self.left_at, now)).as_secs_f64();
        let factor = (-past / LEFT_HALF_S).exp2();
        (self.left_kv, self.left_wait) = (self.left_kv * factor, self.left_wait * factor);
    }

    /// What the other classes may fill of a share of the KV cache, and how long their prefills may queue: less where the first class
    /// found no room when it came.
    pub(super) fn left(&mut self, now: Mono, fill_share: f64, theta_s: f64) -> (f64, f64) {
        self.forget_until(now);
        (fill_share - self.left_kv, theta_s * (1.0 - self.left_wait))
    }

    /// One of the first class came, and would have gone there; what kept it, and whether for too long.
    pub(super) fn met(&mut self, now: Mono, shut: Option<Shut>, is_late: bool) {
        self.forget_until(now);
        match shut {
            Some(Shut::Kv) if is_late => self.left_kv = (self.left_kv + LEFT_MORE).min(LEFT_MAX.0),
            _ if is_late => self.left_wait = (self.left_wait + LEFT_MORE).min(LEFT_MAX.1),
            _ => {
                self.left_kv = (self.left_kv - LEFT_LESS).max(0.0);
                self.left_wait = (self.left_wait - LEFT_LESS).max(0.0);
            }
        }
    }

    /// A first token came; `room` is what is known after it.
    pub(super) fn answered(&mut self, now: Mono, room: &Room) {
        // In time, but only since it is not known how fast it could be.
        let is_ahead = self.is_ahead && now.since(self.read_at) <= FRESH;
        if room.overdue == 0 && std::mem::take(&mut self.was_full) && !is_ahead {
            self.in_time += 1;
            if f64::from(self.in_time) >= self.window {
                (self.window, self.in_time) = ((self.window + 1.0).min(WINDOW.1), 0);
            }
        }
    }

    /// Takes a reading; `room` is what the gate itself knows of that moment.
    pub(super) fn read(&mut self, now: Mono, engine: EngineState, room: &Room) {
        // It answered so late that what is done by now cannot be judged by it: to steer by it would be to overshoot.
        if now.since(engine.taken) > FRESH {
            return;
        }
        let before = self.preemptions.replace(engine.preemptions);
        // A counter that fell is another process.
        let preempted = before.is_some_and(|before| engine.preemptions > before);
        self.fill = if preempted { (self.fill - FILL_CUT).max(FILL_MIN) } else { (self.fill + FILL_RAISE).min(1.0) };
        let was_shut = std::mem::take(&mut self.was_shut);
        let is_steady = self.ran.replace(engine).is_some_and(|before| engine.is_stuck_since(&before));
        if engine.waiting > 1 {
            let is_short = room.wait_s <= SHORT_S || is_steady && room.wait_s <= room.full_step_s;
            if is_short && !preempted {
                // Not its prefills, which fit into a step: it runs as many as it may.
                self.slots = Some(engine.running.max(1) + 1);
            }
            if preempted || room.wait_s > SHORT_S {
                self.factor = (self.factor * CUT).max(FACTOR.0);
            }
        } else if was_shut {
            self.factor = (self.factor + RAISE).min(FACTOR.1);
        }
        self.dry = if was_shut && engine.waiting == 0 { self.dry + 1 } else { 0 };
        if let Some(slots) = self.slots.as_mut()
            && (engine.running >= *slots || self.dry >= DRY_MAX)
        {
            // More run; or some are always on their way, and it is not seen whether more would.
            (*slots, self.dry) = (engine.running.max(*slots) + 1 + engine.running / 16, 0);
        }
        self.is_ahead = engine.waiting > 1;
        self.read_at = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Room = Room {
        is_spared: false,
        is_tried: false,
        wait_s: 0.0,
        full_step_s: 0.5,
        requests: 3,
        unanswered: 0,
        overdue: 0,
        occupied: 900.0,
        capacity: 1000.0,
    };

    fn shut(room: Room, tokens: u64) -> Option<Shut> {
        Valve::default().try_open(Mono(1), &room, &Promised::default(), 0.5, Tokens(tokens), 0.95).err()
    }

    #[test]
    fn a_pod_is_shut_by_its_queue_by_what_is_overdue_and_by_its_cache_and_an_idle_one_never_is() {
        assert_eq!(shut(BUSY, 50), None);
        assert_eq!(shut(BUSY, 51), Some(Shut::Kv));
        assert_eq!(shut(Room { wait_s: 0.75, ..BUSY }, 1), Some(Shut::Queue(0.25)));
        assert_eq!(shut(Room { overdue: 2, ..BUSY }, 1), Some(Shut::Slots));
        assert_eq!(shut(Room { overdue: 1, ..BUSY }, 1), None);
        assert_eq!(shut(Room { requests: 0, wait_s: 9.0, ..BUSY }, 5000), None);
        assert_eq!(shut(Room { requests: 0, is_spared: true, ..BUSY }, 1), Some(Shut::Slots));
        let mut promised = Promised::default();
        promised.add(0.6, Tokens(20));
        let tried = Room { is_tried: true, capacity: f64::INFINITY, ..Room::IDLE };
        assert_eq!(shut(tried, 1), None);
        assert_eq!(
            Valve::default().try_open(Mono(1), &tried, &promised, 9.0, Tokens(1), 0.95),
            Err(Shut::Slots),
            "one tries it"
        );
        let now =
            |promised: &Promised| Valve::default().try_open(Mono(1), &BUSY, promised, 0.5, Tokens(40), 0.95).err();
        assert!(matches!(now(&promised), Some(Shut::Queue(_))));
        promised.take(0.6, Tokens(20));
        assert_eq!((now(&promised), promised), (None, Promised::default()));
    }

    #[test]
    fn readings_teach_how_many_and_how_much() {
        let mut valve = Valve::default();
        let open = |valve: &mut Valve, requests, wait_s| {
            let room = Room { requests, wait_s, capacity: f64::INFINITY, ..BUSY };
            valve.try_open(Mono(1), &room, &Promised::default(), 0.5, Tokens(1), 0.95).is_ok()
        };
        let told = |running, waiting| EngineState { running, waiting, preemptions: 0, generated: None, taken: Mono(1) };
        valve.read(Mono(1), told(4, 3), &Room { requests: 7, ..BUSY });
        assert!(open(&mut valve, 4, 0.0) && !open(&mut valve, 5, 0.0), "four run, one may wait");
        valve.read(Mono(1), told(4, 1), &Room { requests: 5, ..BUSY });
        assert!(!open(&mut valve, 5, 0.0), "it has what it wants");
        valve.read(Mono(1), told(5, 0), &Room { requests: 5, ..BUSY });
        assert!(open(&mut valve, 5, 0.0), "more run by now");
        (0..9).for_each(|_| valve.read(Mono(1), told(4, 2), &Room { wait_s: 0.6, ..BUSY }));
        assert!(open(&mut valve, 5, 0.0), "its prefills wait");
        valve.read(Mono(1), told(3, 0), &BUSY);
        let long = Room { wait_s: 0.3, ..BUSY };
        valve.read(Mono(1), told(4, 2), &long);
        assert!(open(&mut valve, 5, 0.0), "its prefills wait");
        valve.read(Mono(1), told(4, 2), &long);
        assert!(open(&mut valve, 4, 0.0) && !open(&mut valve, 5, 0.0), "it runs no more");
        for _ in 0..DRY_MAX {
            assert!(!open(&mut valve, 5, 0.0), "nothing says that more would run");
            valve.read(Mono(1), told(3, 0), &Room { requests: 5, ..BUSY });
        }
        assert!(open(&mut valve, 5, 0.0), "one more is tried");
        let mut valve = Valve::default();
        (0..30).for_each(|_| valve.read(Mono(1), told(1, 9), &Room { wait_s: 2.0, ..BUSY }));
        assert!(!open(&mut valve, 3, 0.2), "long queues there shut it earlier");
        for _ in 0..100 {
            let _ = open(&mut valve, 3, 9.0);
            valve.read(Mono(1), told(3, 0), &BUSY);
        }
        assert!(open(&mut valve, 3, 0.5), "one that is shut while nothing waits opens");
        assert!(!open(&mut valve, 3, 0.6), "but no more than its class may wait there");
        let mut valve = Valve::default();
        let busy = Room { wait_s: 0.3, ..BUSY };
        let at = |generated| EngineState { generated: Some(generated), ..told(4, 2) };
        valve.read(Mono(1), at(100), &busy);
        valve.read(Mono(1), at(107), &busy);
        assert!(open(&mut valve, 9, 0.0), "they may have come since the last step began");
        valve.read(Mono(1), at(115), &busy);
        assert!(!open(&mut valve, 5, 0.0), "two steps took none of them");
        let mut valve = Valve::default();
        let late = Mono(1).after(FRESH * 2);
        (0..30).for_each(|_| valve.read(late, told(1, 9), &BUSY));
        assert!(open(&mut valve, 3, 0.4), "what was so long ago says nothing");
    }

    #[test]
    fn the_window_follows_first_tokens() {
        let mut valve = Valve::default();
        let open = |valve: &mut Valve, unanswered, overdue| {
            let room = Room { unanswered, overdue, requests: 300, capacity: f64::INFINITY, ..BUSY };
            valve.try_open(Mono(1), &room, &Promised::default(), 0.5, Tokens(1), 0.95).is_ok()
        };
        assert!(open(&mut valve, 1, 0) && !open(&mut valve, 2, 0));
        for wide in 2..9 {
            for _ in 0..wide {
                assert!(!open(&mut valve, wide, 0) && open(&mut valve, wide - 1, 0));
                valve.answered(Mono(1), &BUSY);
                valve.answered(Mono(1), &BUSY);
            }
        }
        assert!(open(&mut valve, 8, 0) && !open(&mut valve, 9, 0), "what comes while it is not full teaches nothing");
        for wide in [5, 3, 2] {
            assert!(open(&mut valve, 0, 0));
            (0..9).for_each(|_| assert!(!open(&mut valve, 1, 2), "looking often does not make it narrower"));
            valve.answered(Mono(1), &Room { overdue: 1, ..BUSY });
            assert!(!open(&mut valve, wide, 0) && open(&mut valve, wide - 1, 0));
        }
    }

    #[test]
    fn preemptions_leave_more_of_the_cache_free() {
        let mut valve = Valve::default();
        let fits = |valve: &mut Valve, tokens| {
            valve.try_open(Mono(1), &BUSY, &Promised::default(), 0.5, Tokens(tokens), 1.0).is_ok()
        };
        assert!(fits(&mut valve, 100));
        for preemptions in [0, 5, 9] {
            valve.read(
                Mono(1),
                EngineState { running: 3, waiting: 0, preemptions, generated: None, taken: Mono(1) },
                &BUSY,
            );
        }
        assert!(!fits(&mut valve, 50) && fits(&mut valve, 30));
    }
}
