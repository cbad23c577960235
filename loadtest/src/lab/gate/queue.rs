//! The gate's queue in the lab: what `proxy::turn` and `proxy::waitroom` do, with virtual time.
use std::sync::Arc;
use std::time::Duration;

use tidegate::base::{Mono, PodId, Tokens};
use tidegate::flow::queue::{Effect, Event, Held, Toll};
use tidegate::flow::sessions::{self, Ask, Crew};
use tidegate::flow::{Bound, Class as Rank, EngineState, Pool, Room, Rooms, Sessions, TicketId, Wish};
use tidegate::pods::{Fleet, Leave, Pod, Reading, Role};
use tidegate::proxy::room_of;
use tidegate::scheduling::Latency;

use super::{Asked, Choice, MODEL, Part, Replica};
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

    /// A request comes: may its session be active?
    pub(crate) fn enters(&mut self, now: Mono, terms: &Terms, asked: &Asked) -> Option<Vec<sessions::Effect>> {
        let fleet = self.table.fleet();
        let sessions = self.sessions.as_mut()?;
        let prefills = |pod: &&Arc<Pod>| pod.spec.role != Role::Decode;
        let capacity = fleet.pods.iter().filter(prefills).filter_map(|pod| pod.load.capacity()).map(|one| one.0).sum();
        let crew = Crew { capacity: Tokens(capacity), pods: fleet.pods.iter().filter(prefills).count() as f64 };
        let mut effects = sessions.on(now, sessions::Event::Pods(MODEL.into(), crew));
        let chain = asked.prompt.chains.first()?;
        let step = fleet.pods.first()?.load.step.get();
        let (class, prompt) = (rank(terms.class), Tokens(terms.body_bytes / 4));
        let output = self.latency.expected(MODEL).unwrap_or(super::OUTPUT_TOKENS);
        effects.extend(sessions.on(
            now,
            sessions::Event::Asks(Ask {
                ticket: TicketId(terms.number),
                model: MODEL.into(),
                class,
                tenant: terms.tenant.to_string().into(),
                weight: 1.0,
                named: None,
                blocks: &chain.blocks,
                body_bytes: terms.body_bytes,
                prefill_s: step.prefill(prompt.0, 0),
                answer_s: step.request(prompt, prompt, output),
                stream_s: output * step.decode(1.0, prompt.0 as f64),
                arrived: terms.arrived,
                due: terms.ttft_s.map(|ttft_s| terms.arrived.after(Duration::from_secs_f64(ttft_s))),
            }),
        ));
        Some(effects)
    }

    /// A request is over, or was refused.
    pub(crate) fn leaves(&mut self, now: Mono, number: u64, told: Option<sessions::Told>) -> Vec<sessions::Effect> {
        let event = sessions::Event::Over(TicketId(number), told);
        self.sessions.as_mut().map_or_else(Vec::new, |sessions| sessions.on(now, event))
    }

    /// The time has come to look at the sessions.
    pub(crate) fn look(&mut self, now: Mono) -> Vec<sessions::Effect> {
        self.sessions.as_mut().map_or_else(Vec::new, |sessions| sessions.on(now, sessions::Event::Tick))
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
        let (preemptions, generated, taken) = (reading.preemptions.unwrap_or(0), reading.generated, reading.taken);
        self.on(now, Event::Read(pod, EngineState { running, waiting, preemptions, generated, taken }))
    }

    /// Prefills wait here for room on a pod.
    pub(crate) fn holds(&self, pod: PodId, held: Held) {
        if let Some(pod) = self.table.fleet().find(pod) {
            pod.load.hold(held.all_us, held.first_us);
        }
    }

    /// When the queue wants to be asked again.
    pub(crate) fn alarm(&self) -> Option<Mono> {
        let sessions = self.sessions.as_ref().and_then(Sessions::next_deadline);
        self.queue.as_ref()?.next_deadline().into_iter().chain(sessions).min()
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
        let class = rank(terms.class);
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

const fn rank(class: Class) -> Rank {
    match class {
        Class::Interactive => Rank::Interactive,
        Class::Standard => Rank::Standard,
        Class::Batch => Rank::Batch,
    }
}
