//! One gate replica as the lab sees it: the real index, bookings, health and decision, called at the moments at which the data
//! path (`proxy::plan`, `proxy::attempt`, `proxy::relay`) calls them, with virtual time.
//!
//! It gets what a gate gets: bodies, events, usage, scrapes. Token counts, hashes and the engines' state do not come here.
//! All knowledge of the gate's interfaces is in this file.
use std::collections::BTreeMap;
use std::sync::Arc;

use tidegate::api::{Anatomy, Api};
use tidegate::base::{Mono, PodId, Rng, Slo, Tokens};
use tidegate::disagg::{self, Around, Balance, Got, Pairs, Placed};
use tidegate::flow::{Queue, Sessions};
use tidegate::pods::{
    Attempt, Facts, Fleet, Leave, Lien, Marks, Outcome, Pod, PodSpec, Reading, Reservation, Role, Served, Table, Work,
};
use tidegate::prefix::{BLOCK_BYTES, Claim, Extension, Fingerprint, Hits, Index, Limits, Seed};
use tidegate::scheduling::{
    Decision, Desk, Detail, Guesses, Handover, Latency, Meter, Mode, Peers, Profile, Query, Request, Step, place,
};
use tidegate::sim::engine::Stats;

use super::cell;
use super::policies::Policy;
use super::script::Class;

mod queue;

pub(crate) use queue::Terms;

/// The only model of the lab.
const MODEL: &str = "lab";
/// Bound of the prefix index \[bytes\]: large enough for the largest cell, so that only the pods' capacity evicts.
const INDEX_BYTES_MAX: usize = 4 << 30;

/// Length of an answer of which nothing is known \[tokens\].
const OUTPUT_TOKENS: f64 = tidegate::proxy::OUTPUT_TOKENS;

/// How often the step times that were learnt are published to the pods.
const REFRESH_US: u64 = 1_000_000;

/// What a gate knows of a request once its body is read.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    prompt: Arc<Fingerprint>,
    is_stream: bool,
    urgency: Option<f64>,
    is_first: bool,
}

impl Asked {
    /// Reads a chat body as the gate does. `None` if it is not one, which the lab's own bodies always are.
    pub(crate) fn read(body: &[u8], class: Class, secret: u64) -> Option<Self> {
        let anatomy = Anatomy::read(Api::Chat, body).ok()?;
        let seed = Seed { model: MODEL, salt: anatomy.cache_salt.as_deref(), tenant: "", secret };
        let urgency = match class {
            Class::Interactive => Some(5.0),
            Class::Standard => None,
            Class::Batch => Some(1.0),
        };
        let prompt = Arc::new(Fingerprint::of(Api::Chat, &anatomy, &seed));
        Some(Self { prompt, is_stream: anatomy.stream, urgency, is_first: class == Class::Interactive })
    }
}

/// Which part of a request a pod does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Whole,
    Prefill,
    Decode,
}

/// How a request goes.
pub(crate) enum Planned {
    /// On one pod.
    One(Choice),
    /// Prefill on the first, decode on the second.
    Two(Choice, Choice),
}

/// Where a part of a request goes.
pub(crate) struct Choice {
    /// Position of the pod in the fleet.
    pub(crate) at: usize,
    part: Part,
    leave: Leave,
    prompt: Tokens,
    /// Tokens of the prompt that the gate believes to be cached there.
    pub(crate) hit: Tokens,
    is_cold: bool,
    marks: Option<Marks>,
    guesses: Guesses,
    /// This pod and the next best: what each is believed to hold, and by how much it is worse \[s\].
    places: Vec<(PodId, Tokens, Option<f64>)>,
    /// Expected length of the answer \[tokens\].
    output: f64,
}

/// What was booked for one attempt; what is not settled is given back when it is dropped.
pub(crate) struct Trial {
    index: Arc<Index>,
    latency: Arc<Latency>,
    peers: Arc<Peers>,
    guesses: Guesses,
    known: Tokens,
    pod: Arc<Pod>,
    prompt: Arc<Fingerprint>,
    meter: Meter,
    health: Option<Attempt>,
    booked: Reservation,
    claim: Claim,
    is_confirmed: bool,
    is_streamed: bool,
    part: Part,
    /// For a decode: whose KV it reads, and since when.
    fed: Option<Fed>,
}

/// KV on its way to a decoder.
struct Fed {
    pairs: Arc<Pairs>,
    prefiller: PodId,
    tokens: Tokens,
    sent: Mono,
    _room: Lien,
}

impl Drop for Fed {
    fn drop(&mut self) {
        self.pairs.busy(self.prefiller, false);
    }
}

/// A prefill that is done: its pod keeps the KV.
pub(crate) struct Handed {
    prefiller: PodId,
    tokens: Tokens,
    room: Lien,
}

/// What a pod tells of a request at its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Told {
    /// Tokens of the prompt.
    pub(crate) prompt: u64,
    /// Of these, cached; `None` if it does not tell.
    pub(crate) cached: Option<u64>,
    /// Tokens of the answer.
    pub(crate) completion: u64,
}

impl Trial {
    /// The first data came.
    pub(crate) fn answered(&mut self, now: Mono) {
        if let Some(fed) = self.fed.take() {
            let (load, step) = (self.pod.load.now(), self.pod.load.step.get());
            let first_step = step.decode(f64::from(load.requests), load.context_tokens.0 as f64);
            let seen = self.is_streamed.then(|| (now.since(fed.sent), load.wait_s + first_step));
            fed.pairs.handed_over(fed.prefiller, self.pod.id, fed.tokens, seen);
        }
        self.booked.first_token(now);
        self.meter.first_token(now, &self.pod, 0);
        if let Some(health) = &mut self.health {
            health.answered(now);
        }
        self.index.confirm(&self.prompt, self.claim);
        self.is_confirmed = true;
    }

    /// Events with one token each came.
    pub(crate) fn tokens(&mut self, now: Mono, count: u64) {
        self.booked.tokens(count);
        self.meter.events(now, &self.pod, count);
    }

    /// It ended well; `told` is what usage said, `answer` gives the text that passed, after reasoning if there was any, which
    /// pods send apart.
    pub(crate) fn settled(
        mut self,
        now: Mono,
        told: Option<Told>,
        has_reasoning: bool,
        answer: impl FnOnce() -> Vec<u8>,
    ) {
        if let Some(told) = told {
            let cached = told.cached.map(Tokens).filter(|_| self.part != Part::Decode);
            self.index.learn(&self.prompt, self.claim, Tokens(told.prompt), cached);
            if let Some(cached) = cached {
                self.peers.learn(&self.guesses, self.pod.id, self.known, cached);
            }
        }
        let generated = told.filter(|_| self.part != Part::Prefill).map(|told| Tokens(told.completion));
        let cached = told.filter(|_| self.part != Part::Decode);
        let cached = cached.and_then(|told| Some((Tokens(told.prompt), Tokens(told.cached?))));
        self.latency.learn(&self.pod, &self.meter, MODEL, generated, cached);
        if let Some(mut extension) = Extension::of(Api::Chat, &self.prompt).filter(|_| self.part != Part::Prefill) {
            let text = String::from_utf8_lossy(&answer()).into_owned();
            let reasoning = if has_reasoning { "…" } else { "" };
            let message = serde_json::json!({"role": "assistant", "reasoning": reasoning, "content": text});
            let body = serde_json::json!({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]});
            extension.body(body.to_string().as_bytes());
            if let Some(answered) = extension.close() {
                let tokens = told.map(|told| Tokens(told.prompt + told.completion));
                self.index.extend(&self.prompt, self.claim, &answered, tokens);
            }
        }
        self.booked.served();
        self.over(now, Outcome::Good);
    }

    /// A prefill ended well: what the decode needs to know of it.
    pub(crate) fn handed(self, now: Mono, told: Told) -> Handed {
        let (prefiller, tokens) = (self.pod.id, Tokens(told.prompt));
        let room = Lien::new(Arc::clone(&self.pod), tokens);
        self.settled(now, Some(told), false, Vec::new);
        Handed { prefiller, tokens, room }
    }

    /// Tells the pod's health how it went.
    pub(crate) fn over(&mut self, now: Mono, outcome: Outcome) {
        if let Some(health) = self.health.take() {
            health.end(now, outcome);
        }
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.is_confirmed {
            self.index.withdraw(&self.prompt, self.claim);
        }
    }
}

/// One gate.
pub(crate) struct Replica {
    table: Table,
    index: Arc<Index>,
    latency: Arc<Latency>,
    peers: Arc<Peers>,
    refreshed: Mono,
    profile: Arc<Profile>,
    disagg: disagg::Settings,
    pairs: Arc<Pairs>,
    balance: Balance,
    hits: Hits,
    desk: Desk,
    rng: Rng,
    /// Whose turn it is, where pods are taken in turn.
    turn: Option<usize>,
    /// Who waits here.
    queue: Option<Queue>,
    sessions: Option<Sessions>,
}

impl Replica {
    /// A gate with this policy in front of a fleet, that has scraped its facts and has brought its pods together.
    pub(crate) fn new(policy: &Policy, fleet: &cell::Fleet, seed: u64) -> Self {
        let table = Table::default();
        let ranks = fleet.ranks.max(1);
        let role = |pod| match fleet.prefill_pods {
            0 => Role::Both,
            most if pod < most => Role::Prefill,
            _ => Role::Decode,
        };
        let specs = (0..fleet.pods)
            .flat_map(|pod| (0..ranks).map(move |rank| spec(pod, (ranks > 1).then_some(rank), role(pod))));
        table.set(specs.collect());
        let pairs = Pairs::default();
        let all = table.fleet();
        for (one, other) in all.pods.iter().flat_map(|one| all.pods.iter().map(move |other| (one.id, other.id))) {
            pairs.handed_over(one, other, Tokens(0), None);
        }
        let limits = Limits { bytes_max: INDEX_BYTES_MAX, ..Limits::default() };
        Self {
            table,
            index: Arc::new(Index::new(limits)),
            latency: Arc::default(),
            peers: Arc::default(),
            refreshed: Mono::ZERO,
            profile: Arc::clone(&policy.profile),
            disagg: policy.disagg.clone(),
            pairs: Arc::new(pairs),
            balance: Balance::default(),
            hits: Hits::default(),
            desk: Desk::default(),
            rng: Rng::new(seed),
            turn: None,
            queue: policy.queue.as_ref().map(|flow| Queue::new(flow.queue.clone(), flow.classes.clone())),
            sessions: policy.queue.as_ref().map(|flow| Sessions::new(flow.sessions.clone(), flow.classes.clone())),
        }
    }

    /// What a pod says of itself at its first scrape.
    pub(crate) fn learn(&self, at: usize, capacity: u64, block_tokens: u32) {
        let fleet = self.table.fleet();
        let Some(pod) = fleet.pods.get(at) else { return };
        let served = Served { name: MODEL.into(), parent: None, context_max: None, card: "{}".into() };
        pod.learn(Facts {
            served: Some(vec![served]),
            block_tokens: Some(block_tokens),
            capacity: Some(Tokens(capacity)),
            ..Facts::default()
        });
        pod.tried();
        self.table.refresh();
        self.index.set_capacity(pod.id, Tokens(capacity), Tokens(block_tokens.into()));
    }

    /// Takes pods in turn instead of deciding: the baseline that no stateless plug-in can be.
    pub(crate) fn rotate(&mut self) {
        self.turn = Some(0);
    }

    /// Chooses among pods not tried.
    pub(crate) fn choose(&mut self, now: Mono, asked: &Asked, tried: &[PodId]) -> Option<Planned> {
        let fleet = self.table.fleet();
        if now.0 >= self.refreshed.0 + REFRESH_US {
            self.latency.refresh(&fleet);
            self.peers.refresh(&fleet, now);
            self.refreshed = now;
        }
        self.index.lookup_into(&asked.prompt, &mut self.hits);
        if self.turn.is_some() {
            return self.in_turn(&fleet, tried).map(Planned::One);
        }
        let (hits, prompt) = (&self.hits, self.hits.prompt_tokens);
        let request = Request {
            urgency: asked.urgency,
            is_first: asked.is_first,
            expected_tokens: self.latency.expected(MODEL),
            is_stream: asked.is_stream,
            head: asked.prompt.chains.first().and_then(|chain| chain.blocks.first().copied()),
            excluded: tried,
            ..Request::new(MODEL, prompt)
        };
        let marks = marks(&asked.prompt, prompt);
        let guesses = self.peers.guess(&asked.prompt, prompt, &fleet, MODEL);
        let query = Query { fleet: &fleet, request: &request, hits, guesses, marks: marks.as_ref(), rank: None, now };
        let (profile, rng, desk) = (&self.profile, &mut self.rng, &mut self.desk);
        let mut place = |step, handover| {
            let request = Request { step, handover, ..request };
            let query = Query { request: &request, ..query };
            let decision = place(profile, &query, rng, Detail::Off, desk);
            let terms = decision.chosen.and_then(|pod| desk.terms(profile, &query, pod));
            Placed { decision, terms, kept: () }
        };
        let chosen = |part, decision: &Decision, id: Option<PodId>| {
            let id = id?;
            let at = fleet.pods.iter().position(|pod| pod.id == id)?;
            let leave = if matches!(decision.mode, Mode::Normal) { Leave::Granted } else { Leave::Forced };
            let (is_cold, marks) = (hits.is_empty(), marks.clone());
            let others = decision.alternatives.all().map(|one| (one.pod, hits.depth(one.pod), one.worse_s));
            let places = std::iter::once((id, hits.depth(id), Some(0.0))).chain(others).collect();
            let output = request.expected_tokens.unwrap_or(OUTPUT_TOKENS);
            Some(Choice { at, part, leave, prompt, hit: hits.depth(id), is_cold, marks, guesses, places, output })
        };
        if !fleet.has_prefill {
            let placed = place(Step::Whole, Handover::default());
            return chosen(Part::Whole, &placed.decision, placed.decision.chosen).map(Planned::One);
        }
        let around =
            Around { fleet: &fleet, pairs: &self.pairs, settings: &self.disagg, weight: self.balance.weight(), now };
        let plan = around.plan(None, |pod| prompt.less(hits.depth(pod)), place);
        if let (disagg::Choice::Remote, Some(pair)) = (plan.choice, &plan.pair) {
            let prefill = chosen(Part::Prefill, &pair.prefill.decision, Some(pair.prefiller))?;
            return Some(Planned::Two(prefill, chosen(Part::Decode, &pair.decode.decision, Some(pair.decoder))?));
        }
        chosen(Part::Whole, &plan.local.decision, plan.local.decision.chosen).map(Planned::One)
    }

    /// The next pod in turn.
    fn in_turn(&mut self, fleet: &Fleet, tried: &[PodId]) -> Option<Choice> {
        let turn = self.turn.as_mut()?;
        let pods = fleet.pods.len().max(1);
        let at = (0..pods).map(|step| (*turn + step) % pods);
        let at = at.into_iter().find(|at| fleet.pods.get(*at).is_some_and(|pod| !tried.contains(&pod.id)))?;
        *turn = at + 1;
        Some(Choice {
            at,
            part: Part::Whole,
            leave: Leave::Granted,
            prompt: self.hits.prompt_tokens,
            hit: fleet.pods.get(at).map_or(Tokens(0), |pod| self.hits.depth(pod.id)),
            is_cold: self.hits.is_empty(),
            marks: None,
            guesses: Guesses::default(),
            places: Vec::new(),
            output: OUTPUT_TOKENS,
        })
    }

    /// A request ended well.
    pub(crate) fn ended(&self, slo: &Slo, got: &Got) {
        self.balance.ended(slo, got);
    }

    /// Keeps room for a decode whose prefill is under way.
    pub(crate) fn room(&self, choice: &Choice) -> Option<Lien> {
        Some(Lien::coming(self.pod(choice.at)?, choice.prompt))
    }

    /// Books the decode of what was handed over.
    pub(crate) fn decode(&self, now: Mono, asked: &Asked, choice: &Choice, handed: Handed) -> Option<Trial> {
        let mut trial = self.begin(now, asked, choice)?;
        let Handed { prefiller, tokens, room } = handed;
        self.pairs.busy(prefiller, true);
        trial.fed = Some(Fed { pairs: Arc::clone(&self.pairs), prefiller, tokens, sent: now, _room: room });
        Some(trial)
    }

    /// Books an attempt; `None` if the pod is out by now.
    pub(crate) fn begin(&self, now: Mono, asked: &Asked, choice: &Choice) -> Option<Trial> {
        let pod = self.pod(choice.at)?;
        let health = Attempt::begin(&pod, now, choice.leave)?;
        let uncached = match choice.part {
            Part::Decode => Tokens(0),
            Part::Whole | Part::Prefill => choice.prompt.less(choice.hit + choice.guesses.expected(pod.id, choice.hit)),
        };
        let work = Work {
            is_stream: asked.is_stream || choice.part == Part::Prefill,
            is_cold: choice.is_cold,
            marks: choice.marks.as_ref(),
            ..Work::new(now, choice.prompt, uncached)
        };
        self.index.set_pinned(pod.id, pod.load.now().generated_tokens);
        Some(Trial {
            index: Arc::clone(&self.index),
            latency: Arc::clone(&self.latency),
            peers: Arc::clone(&self.peers),
            guesses: choice.guesses,
            known: choice.hit,
            prompt: Arc::clone(&asked.prompt),
            meter: Meter::new(&pod, &work, choice.part != Part::Decode),
            health: Some(health),
            booked: Reservation::dispatch(Arc::clone(&pod), &work),
            claim: self.index.claim(&asked.prompt, pod.id),
            pod,
            is_confirmed: false,
            is_streamed: asked.is_stream,
            part: choice.part,
            fed: None,
        })
    }

    /// The id of the pod at a position.
    pub(crate) fn id(&self, at: usize) -> Option<PodId> {
        self.pod(at).map(|pod| pod.id)
    }

    /// Takes the gauges of a scrape, without delivering them yet.
    pub(crate) fn scrape(&self, now: Mono, at: usize, stats: &Stats) -> Option<Reading> {
        let pod = self.pod(at)?;
        Some(Reading {
            taken: now,
            own: pod.load.now(),
            running: Some(stats.running),
            waiting: Some(stats.waiting),
            kv_used: Some(stats.usage()),
            prefix_queries: Some(stats.lookup_tokens),
            prefix_hits: Some(stats.hit_tokens),
            preemptions: Some(stats.preemptions),
            generated: Some(stats.generated_tokens),
            kv_expired: None,
        })
    }

    /// A reading arrives.
    pub(crate) fn read(&self, at: usize, reading: Reading) {
        if let Some(pod) = self.pod(at) {
            pod.reached();
            pod.read(reading);
        }
    }

    /// A scrape finds a new process at a pod's address.
    pub(crate) fn restarted(&self, now: Mono, at: usize) {
        if let Some(pod) = self.pod(at) {
            pod.restarted(now);
            self.index.wipe(pod.id);
        }
    }

    /// Requests in flight on all pods, by the gate's own books.
    pub(crate) fn in_flight(&self) -> u32 {
        self.table.fleet().pods.iter().map(|pod| pod.load.now().requests).sum()
    }

    fn pod(&self, at: usize) -> Option<Arc<Pod>> {
        self.table.fleet().pods.get(at).cloned()
    }
}

/// Marks of a prompt, to find what is pinned.
fn marks(prompt: &Fingerprint, tokens: Tokens) -> Option<Marks> {
    let [chain] = prompt.chains.as_slice() else { return None };
    Some(Marks::of(&chain.blocks, tokens.0 as f64 * BLOCK_BYTES as f64 / chain.bytes.max(1) as f64))
}

fn spec(pod: u32, rank: Option<u32>, role: Role) -> PodSpec {
    let addr = std::net::SocketAddr::from(([10, 0, (pod >> 8) as u8, pod as u8], 8_000));
    PodSpec { addr, authority: addr.to_string().into(), tls: None, rank, role, labels: BTreeMap::new() }
}
