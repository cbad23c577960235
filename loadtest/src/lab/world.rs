//! A run: clients, gates and engines on one virtual clock. Single-threaded; the same cell, seed and profile give the same log.
//!
//! Events wait in one heap by time, then by the order in which they were made. A request arrives, a gate chooses, an engine
//! computes; what the engine does comes back to the gate as a client would let it pass: first data, one event per token, the
//! end. Of answers that are not streamed the gate sees the end only. A request whose pod restarted is tried elsewhere as long
//! as nothing of it was passed.
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use tidegate::base::{self, Mono, PodId, Rng};
use tidegate::disagg::Got;
use tidegate::flow::sessions;
use tidegate::pods::{Outcome, Reading};
use tidegate::sim::engine::{Event as EngineEvent, EventKind, Job, Prompt};

use super::cell::{Cell, Clients};
use super::gate::{Asked, Planned, Replica, Told, Trial};
use super::oracle::strided;
use super::pods::{Group, Kv};
use super::policies::Policy;
use super::record::{End, Log, Record, Sample, Share, Totals};
use super::render::{self, Answer, Made, Pool, Tokens};
use super::script::{Script, mix};
use legs::Course;
use turns::Turn;

mod legs;
mod turns;

/// Tries of one request.
const TRIES_MAX: usize = 3;
/// Earlier prompts of a session that are kept, for branches.
const KEPT_PROMPTS: usize = 64;

/// What may happen.
enum Happening {
    /// The next turn of a session.
    Arrive(u32),
    /// A group's step ends.
    Step(u32, u32),
    /// A gate scrapes all pods, for the so-many-th time.
    Scrape(u32, u64),
    /// A reading arrives at a gate: of which pod, in which life.
    Reading(u32, u32, u32, Box<Reading>),
    /// The KV of a request has reached its decoder.
    Handed(u32),
    /// A gate's queue wanted to be asked again.
    Alarm(u32),
    /// A pod restarts.
    Restart,
    /// Once per second.
    Sample,
}

/// A session under way.
#[derive(Default)]
struct Going {
    turn: usize,
    prompts: Vec<Option<Arc<Made>>>,
    is_foreign: bool,
    tenant: u32,
}

/// A request under way; its place in the list is its number.
struct Flight {
    session: u32,
    answer: Answer,
    is_streamed: bool,
    has_usage: bool,
    gate: u32,
    at: u32,
    asked: Option<Asked>,
    made: Option<Arc<Made>>,
    trial: Option<Trial>,
    /// If two pods serve it.
    course: Option<Course>,
    /// While it waits at the gate.
    waits: Option<Turn>,
    /// The pod whose permit it has, if it needed one.
    permit: Option<PodId>,
    tried: Vec<PodId>,
    last_token: u64,
}

/// One run.
pub(crate) struct World<'a> {
    cell: &'a Cell,
    script: &'a Script,
    pool: &'a Pool,
    seed: u64,
    tokens: Tokens,
    heap: BinaryHeap<Reverse<(u64, u64, Slot)>>,
    happenings: Vec<Option<Happening>>,
    free: Vec<u32>,
    made: u64,
    now: Mono,
    sessions: Vec<Going>,
    flights: Vec<Flight>,
    groups: Vec<Group>,
    /// When the last handover out of a pod ends.
    links: Vec<u64>,
    lives_seen: Vec<Vec<u32>>,
    /// When each gate's queue is asked next.
    alarms: Vec<Option<Mono>>,
    shares: Vec<Share>,
    gates: Vec<Replica>,
    rng: Rng,
    open: usize,
    log: Log,
}

type Slot = u32;

impl<'a> World<'a> {
    /// Everything at rest, sessions and scrapes planned.
    pub(crate) fn new(cell: &'a Cell, script: &'a Script, pool: &'a Pool, policy: &Policy, seed: u64) -> Self {
        let fleet = &cell.fleet;
        let gates = (0..cell.gate.count.max(1))
            .map(|number| Replica::new(policy, fleet, mix(seed, 0x6A7E + u64::from(number))));
        let tokens = Tokens { block_tokens: fleet.block_tokens.max(1), has_template: script.has_template };
        let mut world = Self {
            cell,
            script,
            pool,
            seed,
            tokens,
            heap: BinaryHeap::new(),
            happenings: Vec::new(),
            free: Vec::new(),
            made: 0,
            now: Mono::ZERO,
            sessions: Vec::new(),
            flights: Vec::with_capacity(script.requests()),
            groups: (0..fleet.pods).map(|pod| Group::new(fleet.engine(pod), fleet.ranks)).collect(),
            links: Vec::new(),
            lives_seen: Vec::new(),
            alarms: Vec::new(),
            shares: vec![Share::default(); cell.clients.tenants.len()],
            gates: gates.collect(),
            rng: Rng::new(mix(seed, 0x3071D)),
            open: script.requests(),
            log: Log::default(),
        };
        if policy.is_rotation {
            world.gates.iter_mut().for_each(Replica::rotate);
        }
        world.begin();
        world
    }

    fn begin(&mut self) {
        let foreign = self.cell.clients.foreign;
        for number in 0..self.script.sessions.len() {
            let draw = Rng::new(mix(self.seed, 0xF0 + number as u64)).unit();
            let tenant = self.cell.clients.tenant(Rng::new(mix(self.seed, 0x7E00 + number as u64)).unit());
            self.sessions.push(Going { is_foreign: draw < foreign, tenant, ..Going::default() });
            let session = self.script.sessions.get(number);
            let at =
                session.map_or(0, |session| session.start_us + session.turns.first().map_or(0, |turn| turn.think_us));
            self.plan(at, Happening::Arrive(number as u32));
        }
        let ranks = self.cell.fleet.ranks.max(1) as usize;
        for (at, group) in self.groups.iter().enumerate() {
            let settings = self.cell.fleet.engine(at as u32);
            let capacity = u64::from(settings.blocks) * u64::from(settings.block_tokens);
            debug_assert_eq!(group.life, 0);
            for gate in &self.gates {
                (0..ranks).for_each(|rank| gate.learn(at * ranks + rank, capacity, settings.block_tokens));
            }
        }
        self.alarms = vec![None; self.gates.len()];
        self.gates.iter_mut().for_each(|gate| gate.open(Mono::ZERO));
        self.lives_seen = vec![vec![0; self.groups.len()]; self.gates.len()];
        if self.cell.gate.scrape_ms > 0 {
            let period = self.cell.gate.scrape_ms * 1_000;
            for gate in 0..self.gates.len() as u32 {
                self.plan(period * u64::from(gate) / self.gates.len() as u64, Happening::Scrape(gate, 0));
            }
        }
        if let Some(restart) = self.cell.restart {
            self.plan((restart.at_s * 1e6) as u64, Happening::Restart);
        }
        self.plan(0, Happening::Sample);
    }

    fn plan(&mut self, at: u64, what: Happening) {
        let slot = self.free.pop().unwrap_or(self.happenings.len() as u32);
        match self.happenings.get_mut(slot as usize) {
            Some(place) => *place = Some(what),
            None => self.happenings.push(Some(what)),
        }
        self.heap.push(Reverse((at, self.made, slot)));
        self.made += 1;
    }

    /// Runs to the end of all sessions, or to the horizon. `tick` is told how many requests have ended, now and then.
    pub(crate) fn run(mut self, mut tick: impl FnMut(usize)) -> Log {
        let horizon = (self.cell.horizon_s * 1e6) as u64;
        while self.open > 0 {
            let Some(Reverse((at, _, slot))) = self.heap.pop() else { break };
            if at > horizon {
                break;
            }
            self.now = Mono(at);
            let what = self.happenings.get_mut(slot as usize).and_then(Option::take);
            self.free.push(slot);
            match what {
                Some(Happening::Arrive(session)) => self.arrive(session),
                Some(Happening::Step(group, life)) => self.step(group, life),
                Some(Happening::Scrape(gate, count)) => self.scrape(gate, count),
                Some(Happening::Reading(gate, at, life, reading)) => self.reading(gate, at, life, *reading),
                Some(Happening::Handed(number)) => self.brought(number as usize),
                Some(Happening::Alarm(gate)) => self.alarm(gate),
                Some(Happening::Restart) => self.restart(),
                Some(Happening::Sample) => {
                    tick(self.script.requests() - self.open);
                    self.sample();
                }
                None => {}
            }
        }
        self.finish()
    }

    fn finish(mut self) -> Log {
        self.log.ended = self.now.0;
        self.flights.clear();
        let mut totals = Totals { in_flight: self.gates.iter().map(Replica::in_flight).sum(), ..Totals::default() };
        for stats in self.groups.iter().flat_map(Group::all) {
            totals.preemptions += stats.preemptions;
            totals.steps += stats.steps;
            totals.lookup_tokens += stats.lookup_tokens;
            totals.hit_tokens += stats.hit_tokens;
            totals.blocks += u64::from(stats.blocks);
        }
        self.log.totals = totals;
        self.log
    }

    fn arrive(&mut self, number: u32) {
        let Some((going, session)) =
            self.sessions.get_mut(number as usize).zip(self.script.sessions.get(number as usize))
        else {
            return;
        };
        let Some(turn) = session.turns.get(going.turn) else { return };
        let made = Arc::new(self.tokens.make(turn, going.turn, |at| going.prompts.get(at).cloned().flatten()));
        let flight = self.flights.len() as u64;
        let seed = mix(flight, mix(self.seed, 0xA45));
        let answer = Answer { seed, tokens: turn.output_tokens, reasoning: turn.reasoning_tokens };
        let &Clients { streamed, usage, .. } = &self.cell.clients;
        let draw = |what: u64| Rng::new(mix(seed, what)).unit();
        let is_streamed = draw(1) < streamed;
        let asked = if going.is_foreign {
            None
        } else {
            Asked::read(&render::body(self.pool, &made.messages, is_streamed), turn.class, self.seed)
        };
        let prompt = self.tokens.prompt(&made);
        let pinned = self.groups.iter().flat_map(Group::all).map(|stats| u64::from(stats.blocks_used)).sum();
        self.log.records.push(Record {
            arrived: self.now.0,
            prompt_tokens: prompt.tokens,
            output_tokens: u64::from(answer.tokens),
            is_foreign: going.is_foreign,
            class: turn.class,
            tenant: going.tenant,
            blocks: Some(strided(&prompt.blocks, self.tokens.block_tokens)),
            pinned,
            ..Record::default()
        });
        self.flights.push(Flight {
            session: number,
            answer,
            is_streamed,
            has_usage: draw(2) < usage,
            gate: self.rng.below(self.gates.len() as u64) as u32,
            at: 0,
            asked,
            made: Some(made),
            trial: None,
            course: None,
            waits: None,
            permit: None,
            tried: Vec::new(),
            last_token: 0,
        });
        self.enter(flight as usize);
    }

    /// Sends a request to a pod, or to the queue before it, or ends it if there is none.
    fn dispatch(&mut self, number: usize, prompt: Prompt) {
        let Some(flight) = self.flights.get_mut(number) else { return };
        flight.course = None;
        let Some(asked) = &flight.asked else {
            let ranks = self.cell.fleet.ranks.max(1) as usize;
            let at = self.rng.below((self.groups.len() * ranks) as u64) as usize;
            flight.at = at as u32;
            self.sent(number, at, 0, false);
            return self.submit(number, at, prompt, Kv::Own);
        };
        let Some(gate) = self.gates.get_mut(flight.gate as usize) else { return };
        let is_over = flight.tried.len() >= TRIES_MAX;
        let planned = if is_over { None } else { gate.choose(self.now, asked, &flight.tried) };
        let (choice, decode) = match planned {
            Some(Planned::One(choice)) => (choice, None),
            Some(Planned::Two(prefill, decode)) => (prefill, Some(decode)),
            None => return self.end(number, End::Refused),
        };
        if !gate.has_queue() || Replica::is_exempt(&choice) {
            return self.go(number, Turn { choice, decode, prompt });
        }
        self.ask(number, Turn { choice, decode, prompt });
    }

    /// Sends a request where it was chosen to go.
    fn go(&mut self, number: usize, turn: Turn) {
        let Turn { choice, decode, prompt } = turn;
        let Some(flight) = self.flights.get_mut(number) else { return };
        let Some((gate, asked)) = self.gates.get(flight.gate as usize).zip(flight.asked.as_ref()) else { return };
        flight.tried.extend(gate.id(choice.at));
        let Some(trial) = gate.begin(self.now, asked, &choice) else {
            self.permit_ends(number, Some(0));
            return self.dispatch(number, prompt);
        };
        flight.trial = Some(trial);
        flight.course = decode.map(|decode| Course::Prefill { _room: gate.room(&decode), decode });
        flight.at = choice.at as u32;
        let is_remote = flight.course.is_some();
        self.sent(number, choice.at, choice.hit.0, is_remote);
        self.submit(number, choice.at, prompt, if is_remote { Kv::Kept } else { Kv::Own });
    }

    /// A request is on its way.
    fn sent(&mut self, number: usize, at: usize, believed: u64, is_remote: bool) {
        if let Some(record) = self.log.records.get_mut(number) {
            (record.sent, record.believed, record.pod) = (self.now.0, believed, at as u32);
            record.is_remote = is_remote;
        }
    }

    /// Gives a request, or a part of it, to an engine.
    fn submit(&mut self, number: usize, at: usize, prompt: Prompt, kv: Kv) {
        let ranks = self.cell.fleet.ranks.max(1) as usize;
        let Some(answer) = self.flights.get(number).map(|flight| flight.answer) else { return };
        let output_tokens = if kv == Kv::Kept { 1 } else { u64::from(answer.tokens) };
        let job = Job { id: number as u64, prompt, output_tokens, seed: answer.seed };
        let (place, rank) = (at / ranks, at % ranks);
        let Some(group) = self.groups.get_mut(place) else { return };
        let life = group.life;
        match group.submit(self.now, rank, job, kv) {
            Ok(Some(due)) => self.plan(due.0, Happening::Step(place as u32, life)),
            Ok(None) => {}
            Err(_) => {
                // vLLM answers 400 to a prompt that can never fit; the client gets that.
                if let Some(mut trial) = self.flights.get_mut(number).and_then(|flight| flight.trial.take()) {
                    trial.over(self.now, Outcome::Good);
                }
                self.end(number, End::Refused);
            }
        }
    }

    fn step(&mut self, place: u32, life: u32) {
        let Some(group) = self.groups.get_mut(place as usize).filter(|group| group.life == life) else { return };
        let mut events = Vec::new();
        if let Some(due) = group.step(self.now, |event| events.push(event)) {
            self.plan(due.0, Happening::Step(place, life));
        }
        for event in events {
            self.event(event);
        }
    }

    fn event(&mut self, event: EngineEvent) {
        let number = event.job as usize;
        let now = self.now.0;
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else { return };
        let (is_prefill, is_split) = (matches!(flight.course, Some(Course::Prefill { .. })), flight.course.is_some());
        match event.kind {
            EventKind::Preempted => record.preempted += 1,
            EventKind::First { cached } if is_prefill => record.cached = cached,
            EventKind::Done if is_prefill => self.prefilled(number),
            EventKind::First { cached } => {
                // What the prefill pod had cached is what was spared.
                record.cached = if is_split { record.cached } else { cached };
                record.first = Some(now);
                flight.last_token = now;
                if let Some(trial) = flight.trial.as_mut().filter(|_| flight.is_streamed) {
                    trial.answered(self.now);
                    trial.tokens(self.now, 1);
                    self.committed(number);
                }
            }
            EventKind::Token { .. } => {
                let gap = now - std::mem::replace(&mut flight.last_token, now);
                if let Some(trial) = flight.trial.as_mut().filter(|_| flight.is_streamed) {
                    trial.tokens(self.now, 1);
                }
                if !record.is_foreign {
                    self.log.gap(gap);
                }
            }
            EventKind::Done => self.done(number),
        }
    }

    fn done(&mut self, number: usize) {
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get(number)) else { return };
        let mut passed = None;
        if let Some(mut trial) = flight.trial.take() {
            if !flight.is_streamed {
                trial.answered(self.now);
            }
            let cached_tokens = self.cell.clients.cached_told.then_some(record.cached);
            let told = Told {
                prompt: record.prompt_tokens,
                cached: cached_tokens,
                completion: u64::from(flight.answer.tokens),
            };
            let (pool, piece) = (self.pool, flight.answer.told());
            let has_reasoning = flight.answer.reasoning > 0;
            passed = flight.has_usage.then_some(sessions::Told {
                prompt: base::Tokens(told.prompt),
                cached: base::Tokens(told.cached.unwrap_or(record.believed)),
                believed: base::Tokens(record.believed),
                generated: base::Tokens(told.completion),
            });
            trial.settled(self.now, flight.has_usage.then_some(told), has_reasoning, || render::text(pool, &piece));
        }
        self.promise_kept_or_not(number);
        self.paid(number);
        self.leave(number, passed);
        self.end(number, End::Good);
    }

    /// Tells the gate what a client was promised and got.
    fn promise_kept_or_not(&mut self, number: usize) {
        let Some((flight, record)) = self.flights.get(number).zip(self.log.records.get(number)) else { return };
        let Some((gate, first)) = self
            .gates
            .get(flight.gate as usize)
            .zip(record.first)
            .filter(|_| flight.asked.is_some() && flight.is_streamed)
        else {
            return;
        };
        let gaps = record.output_tokens.saturating_sub(1);
        let since = |at: u64| self.now.0.saturating_sub(at) as f64 / 1e6;
        let got = Got {
            ttft_s: first.saturating_sub(record.arrived) as f64 / 1e6,
            itl_s: (gaps > 0).then(|| since(first) / gaps as f64),
            prefill_pod_s: record.prefilled.map_or(0.0, |at| at.saturating_sub(record.arrived) as f64 / 1e6),
        };
        gate.ended(&self.cell.promise(&self.cell.slo, record.class, record.prompt_tokens), &got);
    }

    /// A request is over: the session goes on.
    fn end(&mut self, number: usize, end: End) {
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else { return };
        (record.end, record.ended) = (end, self.now.0);
        flight.trial = None;
        flight.asked = None;
        let session = flight.session;
        self.permit_ends(number, None);
        self.leave(number, None);
        self.open -= 1;
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else { return };
        let (made, answer) = (flight.made.take(), flight.answer);
        let Some((going, script)) =
            self.sessions.get_mut(session as usize).zip(self.script.sessions.get(session as usize))
        else {
            return;
        };
        going.turn += 1;
        let Some(next) = script.turns.get(going.turn) else {
            going.prompts = Vec::new();
            return;
        };
        if let Some(mut made) = made {
            if matches!(next.recipe, super::script::Recipe::Continue(_)) {
                self.tokens.answered(Arc::make_mut(&mut made), answer);
                if answer.reasoning == 0 {
                    let all = strided(made.blocks(), self.tokens.block_tokens);
                    let known = record.blocks.as_ref().map_or(0, |blocks| blocks.len());
                    record.after = all.get(known..).filter(|after| !after.is_empty()).map(Into::into);
                }
                going.prompts.iter_mut().for_each(|prompt| *prompt = None);
            }
            going.prompts.push(Some(made));
            if let Some(old) =
                going.prompts.len().checked_sub(KEPT_PROMPTS + 1).and_then(|at| going.prompts.get_mut(at))
            {
                *old = None;
            }
        }
        self.plan(self.now.0 + next.think_us, Happening::Arrive(session));
    }

    fn scrape(&mut self, gate: u32, count: u64) {
        let settings = &self.cell.gate;
        let (period, delay) = (settings.scrape_ms * 1_000, settings.scrape_delay_ms * 1_000);
        let is_last = settings.scrapes_max > 0 && count + 1 >= settings.scrapes_max;
        let ranks = self.cell.fleet.ranks.max(1) as usize;
        let Some(replica) = self.gates.get(gate as usize) else { return };
        let mut taken = Vec::new();
        for (place, group) in self.groups.iter().enumerate() {
            for rank in 0..ranks {
                let at = place * ranks + rank;
                if let Some(reading) = replica.scrape(self.now, at, &group.stats(rank)) {
                    taken.push((at as u32, group.life, reading));
                }
            }
        }
        for (at, life, reading) in taken {
            if delay == 0 {
                self.reading(gate, at, life, reading);
            } else {
                self.plan(self.now.0 + delay, Happening::Reading(gate, at, life, Box::new(reading)));
            }
        }
        if !is_last {
            self.plan(self.now.0 + period, Happening::Scrape(gate, count + 1));
        }
    }

    fn reading(&mut self, gate: u32, at: u32, life: u32, reading: Reading) {
        let ranks = self.cell.fleet.ranks.max(1);
        let Some(replica) = self.gates.get_mut(gate as usize) else { return };
        let place = (at / ranks) as usize;
        let seen = self.lives_seen.get_mut(gate as usize).and_then(|seen| seen.get_mut(place));
        if let Some(seen) = seen.filter(|seen| **seen != life) {
            *seen = life;
            for rank in 0..ranks {
                replica.restarted(self.now, place * ranks as usize + rank as usize);
            }
        }
        let effects = replica.was_read(self.now, at as usize, &reading);
        replica.read(at as usize, reading);
        self.effects(gate, effects);
    }

    fn restart(&mut self) {
        let Some(restart) = self.cell.restart else { return };
        let ranks = self.cell.fleet.ranks.max(1);
        let Some(group) = self.groups.get_mut(restart.pod as usize) else { return };
        group.restart();
        let here = |flight: &Flight| flight.made.is_some() && flight.at / ranks == restart.pod;
        let lost: Vec<usize> =
            self.flights.iter().enumerate().filter(|(_, flight)| here(flight)).map(|(number, _)| number).collect();
        for number in lost {
            let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else {
                continue;
            };
            if let Some(mut trial) = flight.trial.take() {
                trial.over(self.now, Outcome::Broken);
            }
            if record.first.is_some() && flight.is_streamed {
                self.end(number, End::Broken);
                continue;
            }
            record.first = None;
            self.permit_ends(number, None);
            let Some(flight) = self.flights.get(number) else { continue };
            let prompt = flight.made.as_ref().map(|made| self.tokens.prompt(made));
            if let Some(prompt) = prompt {
                self.dispatch(number, prompt);
            }
        }
    }

    fn sample(&mut self) {
        let mut sample = Sample::default();
        let (mut used, mut blocks) = (0, 0_u64);
        for stats in self.groups.iter().flat_map(Group::all) {
            let here = stats.running + stats.waiting;
            sample.requests += here;
            sample.waiting += stats.waiting;
            sample.most = sample.most.max(here);
            used += u64::from(stats.blocks_used);
            blocks += u64::from(stats.blocks);
        }
        sample.kv_used = used as f64 / blocks.max(1) as f64;
        sample.shares.clone_from(&self.shares);
        self.log.samples.push(sample);
        self.plan(self.now.0 + 1_000_000, Happening::Sample);
    }
}
