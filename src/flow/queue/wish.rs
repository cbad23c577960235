//! What goes into the queue and what comes out.
use std::sync::Arc;
use std::time::Duration;

use super::room::{EngineState, Room};
use super::{CHOOSY_EVERY, KEEP_AFTER};
use crate::base::{ModelName, Mono, PodId, Tokens};
use crate::flow::{Class, Refusal, TicketId};
use crate::pods::StepTime;

/// Pods that do the same for a model: prefill for others, or everything else. Each has its own lines.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pool {
    /// The model, or adapter.
    pub model: ModelName,
    /// Prefill for decoders elsewhere.
    pub is_prefill: bool,
}

/// The only pod that a request may go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bound {
    /// That pod.
    pub pod: PodId,
    /// The pod that will decode what is prefilled there: it must have room for the KV.
    pub partner: Option<PodId>,
}

/// Who waits for the same: for a pool, or for one of its pods. Each has its own lines, so that those who wait for one pod stand
/// in nobody's way.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Lane {
    pub(super) pool: Pool,
    pub(super) bound: Option<Bound>,
}

/// A pod for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spot {
    /// Which.
    pub pod: PodId,
    /// Time of its prefill there \[microseconds\].
    pub prefill_us: u64,
    /// For how long one would rather wait for the best \[microseconds\].
    pub worse_us: u64,
}

/// What a request takes of the pods that it may go to.
#[derive(Clone, Debug)]
pub struct Toll {
    /// [`Wish::cost_us`].
    pub cost_us: u64,
    /// [`Wish::kv`].
    pub kv: Tokens,
    /// [`Wish::places`].
    pub places: Vec<Spot>,
    /// [`Wish::cold_us`].
    pub cold_us: u64,
}

impl Toll {
    /// Of a prompt of which the best pod has `hit` cached, and an answer of `output` tokens. Places are pods, what they have cached, and
    /// by how many seconds each is worse than the best, if ranking said so.
    pub fn of(
        step: StepTime,
        (prompt, hit): (Tokens, Tokens),
        output: f64,
        places: impl Iterator<Item = (PodId, Tokens, Option<f64>)>,
    ) -> Self {
        let prefill_us = |hit: Tokens| (step.prefill(prompt.less(hit).0, hit.0) * 1e6) as u64;
        let best_us = prefill_us(hit);
        let spot = |(pod, hit, worse_s): (PodId, Tokens, Option<f64>)| {
            let prefill_us = prefill_us(hit);
            let worse_us = worse_s.map_or(prefill_us.saturating_sub(best_us), |worse_s| (worse_s * 1e6) as u64);
            Spot { pod, prefill_us, worse_us }
        };
        Self {
            cost_us: (step.request(prompt, hit, output) * 1e6) as u64,
            // Its room is judged while others end: half of its answer is there by then.
            kv: Tokens(prompt.0 + (0.5 * output) as u64),
            places: places.map(spot).collect(),
            cold_us: prefill_us(Tokens(0)),
        }
    }
}

/// What a request wants.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its name.
    pub ticket: TicketId,
    /// Who serves it.
    pub pool: Pool,
    /// Its class.
    pub class: Class,
    /// Who is charged.
    pub tenant: Arc<str>,
    /// Share of the service that the tenant gets, against others.
    pub weight: f64,
    /// What it costs: prefill and its part of decoding \[microseconds of one pod\].
    pub cost_us: u64,
    /// KV that it needs once it has grown \[tokens\].
    pub kv: Tokens,
    /// Pods it may go to, the best first. Others are taken to be no better than the worst of them, and to have nothing cached.
    pub places: Vec<Spot>,
    /// Time of its prefill where nothing is cached \[microseconds\].
    pub cold_us: u64,
    /// It goes to one pod or nowhere.
    pub bound: Option<Bound>,
    /// It goes to one of its places or nowhere.
    pub is_restricted: bool,
    /// Pods it must not go to any more.
    pub tried: Vec<PodId>,
    /// Bytes of its body.
    pub body_bytes: u64,
    /// When it came.
    pub arrived: Mono,
    /// When its first token is due; orders those of a tenant.
    pub deadline: Mono,
    /// The deadline is a promise: refuse it early rather than answer late.
    pub is_promised: bool,
    /// It ended a wait, or an attempt, before: it is not refused for what is predicted.
    pub is_again: bool,
}

impl Wish {
    /// Whether it may be taken back from its pod, to make room for the first class. Blocks that were computed for a decoder are worth
    /// more than the room.
    pub fn is_recallable(&self) -> bool {
        self.class == Class::Batch && !self.pool.is_prefill
    }

    pub(super) fn lane(&self) -> Lane {
        Lane { pool: Pool::clone(&self.pool), bound: self.bound }
    }

    /// Whether it may go there at all.
    pub(super) fn may_use(&self, pod: PodId) -> bool {
        !self.tried.contains(&pod) && (!self.is_restricted || self.spot(pod).is_some())
    }

    /// Whether there may be pods in its pool that it must not use.
    pub(super) const fn is_choosy(&self) -> bool {
        self.is_restricted || !self.tried.is_empty()
    }

    /// The pod it would best go to.
    pub(super) fn best(&self) -> Option<PodId> {
        self.places.first().map(|spot| spot.pod)
    }

    pub(super) fn best_us(&self) -> u64 {
        self.places.first().map_or(self.cold_us, |spot| spot.prefill_us)
    }

    pub(super) fn prefill_us(&self, pod: PodId) -> u64 {
        self.spot(pod).map_or(self.cold_us, |spot| spot.prefill_us)
    }

    /// For how long one would rather wait for the best pod than take this one.
    pub(super) fn worse_us(&self, pod: PodId) -> u64 {
        self.spot(pod).map_or_else(|| self.worst_us(), |spot| spot.worse_us)
    }

    /// The same of a pod of which nothing is known.
    pub(super) fn worst_us(&self) -> u64 {
        let known = self.places.iter().map(|spot| spot.worse_us).max().unwrap_or(0);
        known.max(self.cold_us.saturating_sub(self.best_us()))
    }

    fn spot(&self, pod: PodId) -> Option<&Spot> {
        self.places.iter().find(|spot| spot.pod == pod)
    }

    /// Cost as it is charged to its tenant \[microseconds ÷ weight\].
    pub(super) fn share_us(&self, cost_us: u64) -> u64 {
        (cost_us as f64 / self.weight.max(1e-6)) as u64
    }

    /// When it is looked at next, if it waits since then and may wait until `last`: at half of what was promised, when it has waited so
    /// long that a pod may be kept for it, and at the end; if it may use some pods only, every few seconds.
    pub(super) fn check_at(&self, now: Mono, since: Mono, last: Mono) -> Mono {
        let half = self.is_promised.then(|| self.arrived.after(self.slack() / 2));
        let often = self.is_choosy().then(|| now.after(CHOOSY_EVERY));
        let next = half.into_iter().chain([since.after(KEEP_AFTER)]).chain(often).filter(|at| *at > now).min();
        next.map_or(last, |at| at.min(last)).max(Mono(now.0 + 1))
    }

    /// When it should go at the latest, to have its first token by the deadline if that is a promise; half of the time that it may wait
    /// is enough. Long ones with much time are passed by others until then, and by nobody afterwards.
    pub(super) fn due(&self, wait_max: Duration) -> Mono {
        let prefill_us = if self.is_promised { self.best_us() } else { 0 };
        let starts_by = Mono(self.deadline.0.saturating_sub(prefill_us).max(self.arrived.0));
        starts_by.min(self.arrived.after(wait_max / 2))
    }

    pub(super) fn slack(&self) -> Duration {
        self.deadline.since(self.arrived)
    }
}

/// Prefills that wait for room on a pod \[microseconds\].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// All; of the last class only long ones, since the others let it pass.
    pub all_us: u64,
    /// Of the first class: all that is before one of it.
    pub first_us: u64,
}

/// What happens.
#[derive(Clone, Debug)]
pub enum Event {
    /// A request wants to go.
    Asks(Wish),
    /// What was granted counts in [`Rooms`] from now on.
    Booked(TicketId),
    /// What its pod was asked for has begun to come, or a prefill is done: nothing takes it back any more.
    Committed(TicketId),
    /// Its client went away, or it stopped waiting.
    Left(TicketId),
    /// A granted one ended; with what it really cost, if that is known \[microseconds\].
    Over(TicketId, Option<u64>),
    /// Something on a pod ended or got its first token.
    Eased(PodId),
    /// A pod was read.
    Read(PodId, EngineState),
    /// The pods of a pool, sorted.
    Pods(Pool, Vec<PodId>),
    /// All go who wait, as they would without a queue.
    Release,
    /// The time of [`super::Queue::next_deadline`] has come.
    Tick,
}

/// What the caller must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Send it to this pod now.
    Grant(TicketId, PodId),
    /// Refuse it.
    Refuse(TicketId, Refusal),
    /// So much waits for room on this pod.
    Holds(PodId, Held),
    /// Take it back from its pod if nothing of it reached its client; then it may ask again.
    Recall(TicketId),
}

/// The room of pods now.
pub trait Rooms {
    /// Of one pod; `None`: it takes nothing.
    fn room(&self, pod: PodId, now: Mono) -> Option<Room>;
}

/// What waits in a class of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Backlog {
    /// Requests.
    pub requests: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// What they cost \[seconds of one pod\].
    pub cost_s: f64,
    /// Age of the oldest \[seconds\].
    pub oldest_s: f64,
    /// Time in which they will be taken \[seconds\].
    pub wait_s: f64,
}
