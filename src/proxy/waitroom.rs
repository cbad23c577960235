//! The queue at work: where `flow::Queue` meets the clock, the pods' books and the requests that wait.
//!
//! A request waits on a channel of its own; whoever eases a pod (a first token, an end, a reading, the alarm) runs the machine and
//! calls those whose turn it is. A permit gives everything back when it is dropped, on every path. What is called and leaves in
//! the same moment is given back too: either the call finds nobody, or the permit that it made is dropped.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use super::gate::Gate;
use super::plan::OUTPUT_TOKENS;
use super::rules::Rules;
use crate::base::{Mono, PodId};
use crate::flow::queue::{Effect, Event};
use crate::flow::{Backlog, Class, EngineState, Pool, Queue, Refusal, Room, Rooms, TicketId, Wish};
use crate::pods::{Fleet, Pod, Role, STEP_TOKENS, Standing};
use crate::runtime::now;

/// How often pods that came or left are looked for, beside every arrival.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// States of a permit.
const OPEN: u8 = 0;
const COMMITTED: u8 = 1;
const RECALLED: u8 = 2;

/// What a waiting request is told.
#[derive(Debug)]
enum Call {
    Go(PodId),
    Refused(Refusal),
}

/// How one that waits is called.
#[derive(Debug)]
struct Called {
    sender: oneshot::Sender<Call>,
    is_recallable: bool,
}

#[derive(Debug)]
struct Inner {
    queue: Queue,
    calls: HashMap<TicketId, Called>,
    recalls: HashMap<TicketId, Arc<Recall>>,
}

/// Who waits, and who was let go.
#[derive(Debug)]
pub struct Waitroom {
    inner: Mutex<Inner>,
    /// The fleet that the queue knows, by its generation and one.
    generation: AtomicU64,
    /// When the alarm rings.
    armed: AtomicU64,
    alarm: Notify,
}

/// Whether a request that was let go may still be taken back.
#[derive(Debug, Default)]
struct Recall {
    state: AtomicU8,
    called: Notify,
}

impl Recall {
    /// Nothing takes it back from now on; false if it was taken back before.
    fn commit(&self) -> bool {
        let moved = self.state.compare_exchange(OPEN, COMMITTED, Ordering::AcqRel, Ordering::Acquire);
        moved.is_ok() || moved == Err(COMMITTED)
    }

    fn call(&self) {
        if self.state.compare_exchange(OPEN, RECALLED, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.called.notify_one();
        }
    }
}

/// A request that was let go to a pod. Dropping it tells the queue that it is over.
pub(super) struct Permit {
    gate: Arc<Gate>,
    ticket: TicketId,
    pub(super) pod: PodId,
    recall: Option<Arc<Recall>>,
    cost_us: Option<u64>,
}

impl Permit {
    /// Its booking counts in the pod's books.
    pub(super) fn booked(&self) {
        self.gate.waitroom.on(&self.gate, Event::Booked(self.ticket));
    }

    /// Nothing takes it back from now on. False: it was taken back a moment ago, and must end.
    pub(super) fn commit(&self) -> bool {
        self.recall.as_ref().is_none_or(|recall| recall.commit())
    }

    /// What its pod was asked for is done, or has begun to come, and was booked. Another pod that serves it got room by that.
    pub(super) fn committed(&self, other: Option<PodId>) {
        self.gate.waitroom.on(&self.gate, Event::Committed(self.ticket));
        self.eased(other);
    }

    /// Another pod than the one it was let go to has room again.
    pub(super) fn eased(&self, other: Option<PodId>) {
        if let Some(pod) = other.filter(|pod| *pod != self.pod) {
            self.gate.waitroom.on(&self.gate, Event::Eased(pod));
        }
    }

    /// Whether it was taken back.
    pub(super) fn was_recalled(&self) -> bool {
        self.recall.as_ref().is_some_and(|recall| recall.state.load(Ordering::Acquire) == RECALLED)
    }

    /// Ends when the pod is wanted for somebody else.
    pub(super) fn recalled(&self) -> impl Future<Output = ()> + use<> {
        let recall = self.recall.clone();
        async move {
            match recall {
                Some(recall) => recall.called.notified().await,
                None => std::future::pending().await,
            }
        }
    }

    /// What it really cost \[microseconds\].
    pub(super) const fn cost(&mut self, cost_us: u64) {
        self.cost_us = Some(cost_us);
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.waitroom.on(&self.gate, Event::Over(self.ticket, self.cost_us));
    }
}

/// A request that waits. Dropping it takes it out of the queue.
pub(super) struct Waiting {
    gate: Option<Arc<Gate>>,
    ticket: TicketId,
    called: oneshot::Receiver<Call>,
}

impl Waiting {
    /// Its turn, or why it has none.
    pub(super) async fn called(mut self) -> Result<Permit, Refusal> {
        let call = (&mut self.called).await;
        let Some(gate) = self.gate.take() else { std::future::pending().await };
        match call {
            Ok(Call::Go(pod)) => Ok(gate.waitroom.permit(&gate, self.ticket, pod)),
            Ok(Call::Refused(refusal)) => Err(refusal),
            // The sender lives until it calls.
            Err(_) => std::future::pending().await,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.waitroom.on(gate, Event::Left(self.ticket));
        }
    }
}

/// What the queue says to a wish.
pub(super) enum Said {
    /// Go.
    Go(Permit),
    /// No.
    Refused(Refusal),
    /// Not now.
    Wait(Waiting),
}

impl Waitroom {
    /// An empty one.
    pub fn new(rules: &Rules) -> Self {
        let queue = Queue::new(rules.bounds.queue.clone(), rules.bounds.classes.clone());
        Self {
            inner: Mutex::new(Inner { queue, calls: HashMap::new(), recalls: HashMap::new() }),
            generation: AtomicU64::new(0),
            armed: AtomicU64::new(u64::MAX),
            alarm: Notify::new(),
        }
    }

    /// Takes other settings.
    pub fn configure(&self, rules: &Rules) {
        self.inner.lock().queue.configure(rules.bounds.queue.clone(), rules.bounds.classes.clone());
    }

    /// Asks whether a request may go.
    pub(super) fn ask(&self, gate: &Arc<Gate>, wish: Wish) -> Said {
        let (ticket, is_recallable) = (wish.ticket, wish.is_recallable());
        let mut inner = self.inner.lock();
        let fleet = gate.table.fleet();
        self.refresh(&mut inner, gate, &fleet);
        let effects = inner.queue.on(now(), Event::Asks(wish), &Books { gate, fleet: &fleet });
        let mut own = None;
        for effect in effects {
            match effect {
                Effect::Grant(granted, pod) if granted == ticket => own = Some(Call::Go(pod)),
                Effect::Refuse(refused, refusal) if refused == ticket => own = Some(Call::Refused(refusal)),
                other => inner.apply(other, &fleet),
            }
        }
        let said = match own {
            None => {
                let (sender, called) = oneshot::channel();
                inner.calls.insert(ticket, Called { sender, is_recallable });
                Said::Wait(Waiting { gate: Some(Arc::clone(gate)), ticket, called })
            }
            Some(Call::Refused(refusal)) => Said::Refused(refusal),
            Some(Call::Go(pod)) => {
                let recall = is_recallable.then(|| inner.recallable(ticket));
                Said::Go(Permit { gate: Arc::clone(gate), ticket, pod, recall, cost_us: None })
            }
        };
        self.arm(&inner);
        said
    }

    fn permit(&self, gate: &Arc<Gate>, ticket: TicketId, pod: PodId) -> Permit {
        let recall = self.inner.lock().recalls.get(&ticket).map(Arc::clone);
        Permit { gate: Arc::clone(gate), ticket, pod, recall, cost_us: None }
    }

    /// Something happened.
    pub fn on(&self, gate: &Gate, event: Event) {
        let mut inner = self.inner.lock();
        let fleet = gate.table.fleet();
        match event {
            Event::Left(ticket) => {
                inner.calls.remove(&ticket);
                inner.recalls.remove(&ticket);
            }
            Event::Over(ticket, _) | Event::Committed(ticket) => drop(inner.recalls.remove(&ticket)),
            _ => {}
        }
        for effect in inner.queue.on(now(), event, &Books { gate, fleet: &fleet }) {
            inner.apply(effect, &fleet);
        }
        self.arm(&inner);
    }

    /// A pod was read.
    pub fn read(&self, gate: &Gate, pod: &Pod) {
        let reading = pod.reading.load();
        let Some(reading) = reading.as_ref() else { return };
        if let Some((running, waiting)) = reading.running.zip(reading.waiting) {
            let (preemptions, generated, taken) = (reading.preemptions.unwrap_or(0), reading.generated, reading.taken);
            self.on(gate, Event::Read(pod.id, EngineState { running, waiting, preemptions, generated, taken }));
        }
    }

    /// Requests that wait or were let go and are not over.
    pub fn tickets(&self) -> usize {
        self.inner.lock().queue.tickets()
    }

    /// What waits, by pool and class.
    pub fn backlogs(&self) -> Vec<(Pool, Class, Backlog)> {
        let inner = self.inner.lock();
        inner.queue.backlogs(now()).collect()
    }

    /// Tells the queue which pods there are, if they changed.
    fn refresh(&self, inner: &mut Inner, gate: &Gate, fleet: &Fleet) {
        let generation = fleet.generation + 1;
        if self.generation.swap(generation, Ordering::Relaxed) == generation {
            return;
        }
        let gone: Vec<Pool> =
            inner.queue.pools().filter(|pool| !fleet.by_model.contains_key(&pool.model)).cloned().collect();
        for pool in gone {
            for effect in inner.queue.on(now(), Event::Pods(pool, Vec::new()), &Books { gate, fleet }) {
                inner.apply(effect, fleet);
            }
        }
        for (model, positions) in &fleet.by_model {
            for is_prefill in [false, true] {
                let does = |pod: &&Arc<Pod>| match pod.spec.role {
                    Role::Both => true,
                    Role::Prefill => is_prefill,
                    Role::Decode => !is_prefill,
                };
                let pods: Vec<PodId> = fleet.at(positions).filter(does).map(|pod| pod.id).collect();
                let pool = Pool { model: model.clone(), is_prefill };
                for effect in inner.queue.on(now(), Event::Pods(pool, pods), &Books { gate, fleet }) {
                    inner.apply(effect, fleet);
                }
            }
        }
    }

    fn arm(&self, inner: &Inner) {
        let at = inner.queue.next_deadline().map_or(u64::MAX, |at| at.0);
        if self.armed.swap(at, Ordering::Relaxed) > at {
            self.alarm.notify_one();
        }
    }

    /// Rings when the machine wants it, for as long as it runs.
    pub async fn run(gate: Arc<Gate>) {
        let room = &gate.waitroom;
        loop {
            let at = Mono(room.armed.load(Ordering::Relaxed));
            tokio::select! {
                () = room.alarm.notified() => continue,
                () = sleep(at.since(now()).min(LOOK_EVERY)) => {}
            }
            {
                let mut inner = room.inner.lock();
                let fleet = gate.table.fleet();
                room.refresh(&mut inner, &gate, &fleet);
            }
            // In safe mode who comes is not asked to wait: who waits would never be next.
            let is_safe_mode = gate.safe_mode.load(Ordering::Relaxed);
            room.on(&gate, if is_safe_mode { Event::Release } else { Event::Tick });
        }
    }
}

impl Inner {
    fn apply(&mut self, effect: Effect, fleet: &Fleet) {
        match effect {
            Effect::Holds(pod, held) => {
                if let Some(pod) = fleet.find(pod) {
                    pod.load.hold(held.all_us, held.first_us);
                }
            }
            // If nobody listens any more, what was sent is dropped, and the one who left says so himself.
            Effect::Grant(ticket, pod) => {
                if let Some(called) = self.calls.remove(&ticket) {
                    if called.is_recallable {
                        self.recallable(ticket);
                    }
                    drop(called.sender.send(Call::Go(pod)));
                }
            }
            Effect::Refuse(ticket, refusal) => {
                if let Some(called) = self.calls.remove(&ticket) {
                    drop(called.sender.send(Call::Refused(refusal)));
                }
            }
            Effect::Recall(ticket) => {
                if let Some(recall) = self.recalls.get(&ticket) {
                    recall.call();
                }
            }
        }
    }

    fn recallable(&mut self, ticket: TicketId) -> Arc<Recall> {
        Arc::clone(self.recalls.entry(ticket).or_default())
    }
}

/// The pods' books, as the queue asks for them.
struct Books<'a> {
    gate: &'a Gate,
    fleet: &'a Fleet,
}

impl Rooms for Books<'_> {
    fn room(&self, pod: PodId, now: Mono) -> Option<Room> {
        let pod = self.fleet.find(pod)?;
        let facts = pod.facts.load();
        let model = facts.served.iter().flatten().next();
        room_of(pod, model.and_then(|served| self.gate.latency.expected(&served.name)), now)
    }
}

/// What the books of a pod say of its room; `None`: it takes nothing. `output` is how long answers are expected to be \[tokens\].
pub fn room_of(pod: &Pod, output: Option<f64>, now: Mono) -> Option<Room> {
    let sign = pod.sign(now);
    let is_in = !matches!(sign.standing, Standing::Ejected(_)) && sign.shut.is_none();
    if !is_in {
        return None;
    }
    let seen = pod.load.glance(now);
    let requests = seen.requests + seen.others.0;
    Some(Room {
        is_spared: sign.busy_until.is_some(),
        is_tried: sign.standing == Standing::Probe,
        wait_s: seen.wait_s,
        full_step_s: pod.load.step.get().prefill(STEP_TOKENS, 0),
        requests: requests as u32,
        unanswered: pod.load.unanswered(now),
        overdue: pod.load.overdue(now),
        // Each is met at any point of its answer.
        occupied: seen.pinned_tokens + seen.others.1 + 0.5 * output.unwrap_or(OUTPUT_TOKENS) * requests,
        capacity: seen.capacity,
    })
}
