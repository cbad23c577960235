//! The gate's queue in the lab: what `proxy::turn` and `proxy::waitroom` do, with virtual time.
use std::sync::Arc;
use std::time::Duration;

use tidegate::base::{Mono, PodId, Tokens};
use tidegate::flow::queue::{Effect, Event, Held, Toll};
use tidegate::flow::{Bound, Class as Rank, EngineState, Pool, Room, Rooms, TicketId, Wish};
use tidegate::pods::{Fleet, Leave, Reading, Role};
use tidegate::proxy::room_of;
use tidegate::scheduling::Latency;

use super::{Choice, MODEL, Part, Replica};
use crate::lab::script::Class;

/// What a request asks of the queue, beside where it may go.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Its number.
    pub(crate) number: u64,
    pub(crate) class: Class,
    pub(crate) tenant: u32,
    pub(crate) arrived: Mono,
    /// Promised time to the first token \[s\].
    pub(crate) ttft_s: Option<f64>,
    pub(crate) body_bytes: u64,
    /// It was sent somewhere before.
    pub(crate) is_again: bool,
}

/// The pods' books, as the queue asks for them.
struct Books<'a> {
    fleet: &'a Fleet,
    latency: &'a Latency,
}

impl Rooms for Books<'_> {
    fn room(&self, pod: PodId, now: Mono) -> Option<Room> {
        room_of(self.fleet.find(pod)?, self.latency.expected(MODEL), now)
    }
}

impl Replica {
    /// Tells the queue of the pods.
    pub(crate) fn open(&mut self, now: Mono) {
        let fleet = self.table.fleet();
        for is_prefill in [false, true] {
            let does = |role: Role| role == Role::Both || (role == Role::Prefill) == is_prefill;
            let pods = fleet.pods.iter().filter(|pod| does(pod.spec.role)).map(|pod| pod.id).collect();
            self.on(now, Event::Pods(Pool { model: MODEL.into(), is_prefill }, pods));
        }
    }

    /// Whether requests wait here.
    pub(crate) const fn has_queue(&self) -> bool {
        self.queue.is_some()
    }

    /// Something happened; what is to be done.
    pub(crate) fn on(&mut self, now: Mono, event: Event) -> Vec<Effect> {
        let fleet = self.table.fleet();
        let books = Books { fleet: &fleet, latency: &self.latency };
        self.queue.as_mut().map_or_else(Vec::new, |queue| queue.on(now, event, &books))
    }

    /// A reading of a pod arrived.
    pub(crate) fn was_read(&mut self, now: Mono, at: usize, reading: &Reading) -> Vec<Effect> {
        let Some((pod, (running, waiting))) = self.id(at).zip(reading.running.zip(reading.waiting)) else {
            return Vec::new();
        };
        let preemptions = reading.preemptions.unwrap_or(0);
        self.on(now, Event::Read(pod, EngineState { running, waiting, preemptions }))
    }

    /// Prefills wait here for room on a pod.
    pub(crate) fn holds(&self, pod: PodId, held: Held) {
        if let Some(pod) = self.table.fleet().find(pod) {
            pod.load.hold(held.all_us, held.first_us);
        }
    }

    /// When the queue wants to be asked again.
    pub(crate) fn alarm(&self) -> Option<Mono> {
        self.queue.as_ref()?.next_deadline()
    }

    /// Whether a choice needs no turn: nobody is in good standing.
    pub(crate) fn is_exempt(choice: &Choice) -> bool {
        !matches!(choice.leave, Leave::Granted)
    }

    /// What a request that was placed asks of the queue.
    pub(crate) fn wish(
        &self,
        terms: &Terms,
        choice: &Choice,
        partner: Option<&Choice>,
        tried: &[PodId],
    ) -> Option<Wish> {
        let pod = self.pod(choice.at)?;
        let is_prefill = choice.part == Part::Prefill;
        let output = if is_prefill { 0.0 } else { choice.output };
        let class = match terms.class {
            Class::Interactive => Rank::Interactive,
            Class::Standard => Rank::Standard,
            Class::Batch => Rank::Batch,
        };
        let slack = Duration::from_secs_f64(terms.ttft_s.unwrap_or_else(|| class.order_s()));
        let partner = partner.and_then(|decode| self.id(decode.at));
        let toll = Toll::of(pod.load.step.get(), (choice.prompt, choice.hit), output, choice.places.iter().copied());
        Some(Wish {
            ticket: TicketId(terms.number),
            pool: Pool { model: MODEL.into(), is_prefill },
            class,
            tenant: terms.tenant.to_string().into(),
            weight: 1.0,
            cost_us: toll.cost_us,
            kv: toll.kv,
            places: toll.places,
            cold_us: toll.cold_us,
            bound: is_prefill.then_some(Bound { pod: pod.id, partner }),
            is_restricted: false,
            tried: tried.to_vec(),
            body_bytes: terms.body_bytes,
            arrived: terms.arrived,
            deadline: terms.arrived.after(slack),
            is_promised: terms.ttft_s.is_some(),
            is_again: terms.is_again,
        })
    }

    /// The choice, moved to the pod that the queue gave.
    pub(crate) fn moved(&self, choice: Choice, pod: PodId) -> Choice {
        let fleet = self.table.fleet();
        let Some(at) = fleet.pods.iter().position(|one| one.id == pod) else { return choice };
        let hit = choice.places.iter().find(|(place, ..)| *place == pod).map_or(Tokens(0), |(_, hit, _)| *hit);
        Choice { at, hit, ..choice }
    }

    /// What a request cost in the end \[microseconds of a pod\].
    pub(crate) fn cost_us(&self, at: usize, prompt: u64, cached: u64, completion: u64) -> Option<u64> {
        let pod: Arc<_> = self.pod(at)?;
        let cost_s = pod.load.step.get().request(Tokens(prompt), Tokens(cached), completion as f64);
        Some((cost_s * 1e6) as u64)
    }
}
