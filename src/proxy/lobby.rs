//! Thrash control at work: where `flow::Sessions` meets the clock, the fleet and the requests that wait for their session to be let in.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};
use tokio::time::sleep;

use super::client::Left;
use super::exchange::{End, Exchange};
use super::gate::{Gate, Phase};
use super::intake::Facts;
use super::plan::OUTPUT_TOKENS;
use super::reply::Fault;
use super::rules::Rules;
use crate::base::{ModelName, Mono, Tokens};
use crate::flow::sessions::{Ask, Census, Crew, Effect, Event, Told};
use crate::flow::{Refusal, Sessions, TicketId};
use crate::pods::{Fleet, Role};
use crate::runtime::now;

/// How often the pods are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

type Call = Result<(), Refusal>;

#[derive(Debug)]
struct Inner {
    sessions: Sessions,
    calls: HashMap<TicketId, oneshot::Sender<Call>>,
}

/// Whose session is active, and who waits for it.
#[derive(Debug)]
pub struct Lobby {
    inner: Mutex<Inner>,
    /// The fleet that was looked at, by its generation and one.
    generation: AtomicU64,
    /// When the alarm rings.
    armed: AtomicU64,
    alarm: Notify,
}

/// A request at its session, or waiting for it. Dropping it ends that.
pub(super) struct Stay {
    gate: Arc<Gate>,
    ticket: TicketId,
    told: Option<Told>,
}

impl Stay {
    /// What became of it.
    pub(super) const fn told(&mut self, told: Told) {
        self.told = Some(told);
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.gate.lobby.on(Event::Over(self.ticket, self.told));
    }
}

impl Lobby {
    /// An empty one.
    pub fn new(rules: &Rules) -> Self {
        let sessions = Sessions::new(rules.bounds.sessions.clone(), rules.bounds.classes.clone());
        Self {
            inner: Mutex::new(Inner { sessions, calls: HashMap::new() }),
            generation: AtomicU64::new(0),
            armed: AtomicU64::new(u64::MAX),
            alarm: Notify::new(),
        }
    }

    /// Takes other settings.
    pub fn configure(&self, rules: &Rules) {
        let (sessions, classes) = (rules.bounds.sessions.clone(), rules.bounds.classes.clone());
        self.inner.lock().sessions.configure(sessions, classes);
        self.on(Event::Tick);
    }

    /// Requests that wait or were let go and are not over.
    pub fn tickets(&self) -> usize {
        self.inner.lock().sessions.tickets()
    }

    /// What there is, by model.
    pub fn census(&self) -> Vec<(ModelName, Census)> {
        let inner = self.inner.lock();
        inner.sessions.census().map(|(model, census)| (ModelName::clone(model), census)).collect()
    }

    /// Asks whether a request may go; else how it is told.
    fn ask(&self, ask: Ask<'_>) -> Result<Call, oneshot::Receiver<Call>> {
        let ticket = ask.ticket;
        let mut inner = self.inner.lock();
        let mut own = None;
        for effect in inner.sessions.on(now(), Event::Asks(ask)) {
            match effect {
                Effect::Grant(granted) if granted == ticket => own = Some(Ok(())),
                Effect::Refuse(refused, refusal) if refused == ticket => own = Some(Err(refusal)),
                other => inner.apply(other),
            }
        }
        let said = own.ok_or_else(|| {
            let (sender, called) = oneshot::channel();
            inner.calls.insert(ticket, sender);
            called
        });
        self.arm(&inner);
        said
    }

    /// Something happened.
    fn on(&self, event: Event<'_>) {
        let mut inner = self.inner.lock();
        if let Event::Over(ticket, _) = event {
            inner.calls.remove(&ticket);
        }
        for effect in inner.sessions.on(now(), event) {
            inner.apply(effect);
        }
        self.arm(&inner);
    }

    fn arm(&self, inner: &Inner) {
        let at = inner.sessions.next_deadline().map_or(u64::MAX, |at| at.0);
        if self.armed.swap(at, Ordering::Relaxed) > at {
            self.alarm.notify_one();
        }
    }

    /// Tells the machine of the pods, and rings when it wants it, for as long as it runs.
    pub async fn run(gate: Arc<Gate>) {
        let lobby = &gate.lobby;
        loop {
            lobby.look(&gate.table.fleet(), gate.rules().bounds.gates);
            // In safe mode nobody comes here; who waits would never be next.
            let is_safe_mode = gate.safe_mode.load(Ordering::Relaxed);
            lobby.on(if is_safe_mode { Event::Release } else { Event::Tick });
            let at = Mono(lobby.armed.load(Ordering::Relaxed));
            tokio::select! {
                () = lobby.alarm.notified() => {}
                () = sleep(at.since(now()).min(LOOK_EVERY)) => {}
            }
        }
    }

    /// Tells the machine what the fleet's caches hold, a share of them if other gates use them too.
    fn look(&self, fleet: &Fleet, gates: u32) {
        self.generation.store(fleet.generation + 1, Ordering::Relaxed);
        for (model, positions) in &fleet.by_model {
            if *base(fleet, model) != **model {
                continue;
            }
            let prefill = || fleet.at(positions).filter(|pod| pod.spec.role != Role::Decode);
            let told: Vec<u64> = prefill().filter_map(|pod| pod.load.capacity()).map(|one| one.0).collect();
            // Those that have not told are taken to be like the others.
            let all = told.iter().sum::<u64>() as f64 / told.len().max(1) as f64 * prefill().count() as f64;
            let gates = f64::from(gates.max(1));
            let crew = Crew { capacity: Tokens((all / gates) as u64), pods: prefill().count() as f64 / gates };
            self.on(Event::Pods(ModelName::clone(model), crew));
        }
        // Who waits for a model that is gone is told so at once.
        let is_gone = |model: &ModelName| !fleet.by_model.contains_key(model) || *base(fleet, model) != **model;
        let known = self.inner.lock().sessions.models();
        for model in known.into_iter().filter(is_gone) {
            self.on(Event::Pods(model, Crew::default()));
        }
    }
}

impl Inner {
    fn apply(&mut self, effect: Effect) {
        let (ticket, call) = match effect {
            Effect::Grant(ticket) => (ticket, Ok(())),
            Effect::Refuse(ticket, refusal) => (ticket, Err(refusal)),
        };
        // If nobody listens any more, the one who left says so himself.
        if let Some(sender) = self.calls.remove(&ticket) {
            sender.send(call).ok();
        }
    }
}

/// The model whose caches hold what a model computes: an adapter's is its base.
fn base<'a>(fleet: &'a Fleet, model: &'a ModelName) -> ModelName {
    let served =
        fleet.serving(model).first().and_then(|position| fleet.pods.get(*position)).map(|pod| pod.facts.load());
    let parent = served.as_ref().and_then(|facts| {
        facts.served.iter().flatten().find(|served| served.name == *model).and_then(|served| served.parent.clone())
    });
    parent.filter(|parent| fleet.by_model.contains_key(parent)).unwrap_or_else(|| ModelName::clone(model))
}

impl Exchange {
    /// Waits until the session of a request may be active.
    pub(super) async fn enter(&mut self, facts: &Facts) -> Result<(), End> {
        let Some(ticket) = self.ticket.as_ref().map(super::guards::Ticket::id) else { return Ok(()) };
        let Some([chain]) = facts.prompt.as_ref().map(|prompt| prompt.chains.as_slice()) else { return Ok(()) };
        let reads_cache = facts.prompt.as_ref().is_some_and(|prompt| !prompt.skips_cache);
        if facts.account.is_empty() || !self.rules.bounds.sessions.enabled || !reads_cache {
            return Ok(());
        }
        let fleet = self.gate.table.fleet();
        if self.gate.lobby.generation.load(Ordering::Relaxed) != fleet.generation + 1 {
            self.gate.lobby.look(&fleet, self.rules.bounds.gates);
        }
        let Some(pod) = fleet.serving(&facts.account).first().and_then(|position| fleet.pods.get(*position)) else {
            return Ok(());
        };
        let (step, prompt) = (pod.load.step.get(), facts.tokens_guess());
        let most = facts.max_tokens.map_or(f64::INFINITY, |most| most.0 as f64);
        let output = self.gate.latency.expected(&facts.model).unwrap_or(OUTPUT_TOKENS).min(most);
        let tenant = facts.prompt.as_ref().map_or(0, |prompt| prompt.tenant);
        let named = self.gate.routing().session(&self.client.head().headers);
        let arrived = self.note.read_at.unwrap_or(self.note.started);
        let promised = self.note.slo.ttft_s.map(|slack_s| arrived.after(Duration::from_secs_f64(slack_s)));
        let said = self.gate.lobby.ask(Ask {
            ticket,
            model: base(&fleet, &facts.account),
            class: facts.caller.class,
            tenant: Arc::clone(&facts.caller.tenant),
            weight: self.identity.policy.weight,
            named: named.map(|name| name ^ tenant),
            blocks: &chain.blocks,
            body_bytes: facts.body.len() as u64,
            prefill_s: step.prefill(prompt.0, 0),
            answer_s: step.request(prompt, prompt, output),
            stream_s: output * step.decode(1.0, prompt.0 as f64),
            arrived,
            due: promised.into_iter().chain(self.client.due).min(),
        });
        self.stay = Some(Stay { gate: Arc::clone(&self.gate), ticket, told: None });
        let metrics = Arc::clone(&self.gate.metrics);
        let outcomes = &metrics.session_outcomes;
        let called = match said {
            Ok(said) => {
                outcomes.inc(if said.is_ok() { "at_once" } else { "refused" });
                return said.map_err(|refusal| Fault::Queue(refusal).into());
            }
            Err(called) => called,
        };
        self.at(Phase::Queue);
        let asked = now();
        let call = tokio::select! {
            biased;
            call = called => call,
            left = self.client.left() => {
                outcomes.inc(if left == Left::Overdue { "overdue" } else { "left" });
                return Err(left.into());
            }
        };
        self.note.queued_us += now().since(asked).as_micros() as u64;
        self.traced("queue", asked, Some(("tidegate.queue.for", "its_session")));
        match call {
            Ok(Ok(())) => outcomes.inc("waited"),
            Ok(Err(refusal)) => {
                outcomes.inc("refused");
                return Err(Fault::Queue(refusal).into());
            }
            // The sender lives until it calls.
            Err(_) => {}
        }
        Ok(())
    }

    /// The request is over for its session.
    pub(super) fn leave(&mut self) {
        let Some(mut stay) = self.stay.take() else { return };
        let note = &self.note;
        if note.committed && self.client.status() == Some(200) {
            let usage = note.usage;
            stay.told(Told {
                prompt: usage.map_or(note.prompt, |usage| Tokens(usage.prompt_tokens)),
                cached: usage.and_then(|usage| usage.cached_tokens).map_or(note.hit, Tokens),
                believed: note.hit,
                generated: Tokens(usage.map_or(note.events, |usage| usage.completion_tokens)),
            });
        }
    }
}
