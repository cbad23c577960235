//! The engines behind an endpoint: one per data-parallel rank, each driven by a task at its own steps.
//!
//! A `Run` is one request in an engine: it tells how many tokens each of its sequences has, and gives everything back when
//! dropped (a dropped run that is not complete is an abort). At speed 0 there is no task: entering pumps the engine until
//! the run is done, under its lock.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use super::config::SimConfig;
use super::host;
use super::metrics::Figures;
use crate::base::Mono;
use crate::sim::engine::{Engine, Event, EventKind, Job, Prompt, Refusal, Stats};

/// All ranks of a pod.
pub(super) struct Ranks {
    all: Vec<Arc<Rank>>,
    jobs: AtomicU64,
    block_tokens: u32,
    is_instant: bool,
}

/// One rank.
pub(super) struct Rank {
    core: Mutex<Core>,
    wake: Notify,
    in_flight: AtomicU64,
    is_instant: bool,
}

struct Core {
    engine: Engine,
    /// Hashes of prompt blocks whose content is wrong.
    poison: HashSet<u64>,
    flights: HashMap<u64, (Arc<Flight>, usize)>,
    events: Vec<Event>,
    figures: Figures,
}

/// Progress of one request, shared by engine and connection.
struct Flight {
    produced: Vec<AtomicU64>,
    cached: AtomicU64,
    first_at: AtomicU64,
    left: AtomicU64,
    changed: Notify,
    is_streamed: bool,
}

/// One sequence of a request: its prompt's tokens and root hash, its length, its seed.
pub(super) struct Sequence<'a> {
    pub(super) prompt: &'a [u32],
    pub(super) root: u64,
    pub(super) output_tokens: u64,
    pub(super) seed: u64,
}

/// Blocks, each with how often it was overwritten.
pub(super) type Blocks = Vec<(u32, u64)>;

/// What of a request's KV goes to another pod, or comes from one.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Transfer {
    /// Its blocks are kept when it is done.
    pub(super) keeps: bool,
    /// Its prompt's KV is here already.
    pub(super) is_given: bool,
    /// And it is that of another prompt.
    pub(super) is_wrong: bool,
}

/// A request in an engine.
pub(super) struct Run {
    rank: Arc<Rank>,
    flight: Arc<Flight>,
    jobs: Vec<u64>,
    begun: Mono,
    prompt_tokens: u64,
    output_tokens: u64,
    asked: u64,
    is_wrong: bool,
    /// Blocks are kept and nobody was told where.
    keeps: bool,
}

impl Ranks {
    /// Ranks as configured; their tasks end when `stop` becomes true.
    pub(super) fn new(config: &SimConfig, stop: &watch::Sender<bool>) -> Self {
        let is_instant = config.speed <= 0.0;
        let all: Vec<Arc<Rank>> = (0..config.ranks.max(1))
            .map(|_| {
                let engine = Engine::new(config.engine_settings());
                let core = Core {
                    engine,
                    poison: HashSet::new(),
                    flights: HashMap::new(),
                    events: Vec::new(),
                    figures: Figures::default(),
                };
                Arc::new(Rank { core: Mutex::new(core), wake: Notify::new(), in_flight: AtomicU64::new(0), is_instant })
            })
            .collect();
        if !is_instant {
            for rank in &all {
                host::spawn("simulated engine", drive(rank.clone(), stop.subscribe()));
            }
        }
        Self { all, jobs: AtomicU64::new(0), block_tokens: config.engine.block_tokens, is_instant }
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.all.len()
    }

    /// Requests in flight on all ranks.
    pub(super) fn in_flight(&self) -> u64 {
        self.all.iter().map(|rank| rank.in_flight.load(Relaxed)).sum()
    }

    /// Figures of each rank: engine, requests in flight (streams still being written included), history.
    pub(super) fn figures(&self) -> Vec<(Stats, u64, Figures)> {
        let one = |rank: &Arc<Rank>| {
            let core = rank.core.lock();
            (core.engine.stats(), rank.in_flight.load(Relaxed), core.figures.clone())
        };
        self.all.iter().map(one).collect()
    }

    /// Empties the prefix caches of idle ranks.
    pub(super) fn reset_caches(&self) {
        for rank in &self.all {
            rank.core.lock().engine.reset_cache();
        }
    }

    /// Enters the sequences of a request on `rank`, or on the least busy one.
    pub(super) fn enter(
        &self,
        rank: Option<usize>,
        sequences: &[Sequence<'_>],
        is_streamed: bool,
        transfer: Transfer,
    ) -> Result<Run, Refusal> {
        let least = || self.all.iter().min_by_key(|rank| rank.in_flight.load(Relaxed));
        let Some(rank) = rank.and_then(|rank| self.all.get(rank)).or_else(least) else { return Err(Refusal::Busy) };
        let count = sequences.len() as u64;
        let flight = Arc::new(Flight {
            produced: sequences.iter().map(|_| AtomicU64::new(0)).collect(),
            cached: AtomicU64::new(0),
            first_at: AtomicU64::new(0),
            left: AtomicU64::new(count),
            changed: Notify::new(),
            is_streamed,
        });
        let first_job = self.jobs.fetch_add(count, Relaxed);
        let mut run = Run {
            rank: rank.clone(),
            flight,
            jobs: Vec::with_capacity(sequences.len()),
            begun: host::now(),
            prompt_tokens: sequences.iter().map(|sequence| sequence.prompt.len() as u64).sum(),
            output_tokens: sequences.iter().map(|sequence| sequence.output_tokens).sum(),
            asked: count,
            is_wrong: false,
            keeps: transfer.keeps,
        };
        // Hashing a long prompt takes a while: not under the lock.
        let job = |(id, sequence): (u64, &Sequence<'_>)| {
            let prompt = Prompt::of(sequence.prompt, sequence.root, self.block_tokens);
            Job { id, prompt, output_tokens: sequence.output_tokens, seed: sequence.seed }
        };
        let jobs: Vec<Job> = (first_job..).zip(sequences).map(job).collect();
        let in_flight = rank.in_flight.fetch_add(count, Relaxed);
        let mut core = rank.core.lock();
        let settings = *core.engine.settings();
        let limit = settings.queue_max.map(|queue| u64::from(settings.sequences_max) + u64::from(queue));
        let is_full = self.is_instant && limit.is_some_and(|limit| in_flight >= limit);
        let mut entered = if is_full { Err(Refusal::Busy) } else { Ok(()) };
        for (place, job) in jobs.into_iter().enumerate() {
            let (id, tokens, blocks) = (job.id, job.prompt.tokens, Arc::clone(&job.prompt.blocks));
            entered = entered.and_then(|()| core.engine.submit(job));
            if entered.is_err() {
                break;
            }
            if transfer.keeps {
                core.engine.keep(id);
            }
            if transfer.is_given {
                core.engine.give(id, tokens);
            }
            run.is_wrong |= core.taste(&blocks, transfer);
            core.flights.insert(id, (run.flight.clone(), place));
            run.jobs.push(id);
        }
        if let Err(refusal) = entered {
            core.figures.rejections += u64::from(refusal == Refusal::Busy);
            drop(core);
            return Err(refusal);
        }
        if self.is_instant {
            while !run.is_done() {
                let now = core.engine.due().unwrap_or(run.begun).max(run.begun);
                if core.advance(now).is_none() {
                    break;
                }
            }
        } else if core.engine.due().is_none() {
            rank.wake.notify_one();
        }
        drop(core);
        Ok(run)
    }
}

impl Rank {
    /// Lets go of the blocks kept of a job. An instant engine has no task: whoever waits for room gets on with it here.
    pub(super) fn release(&self, job: u64) {
        let mut core = self.core.lock();
        core.engine.release(job);
        let (mut next, now) = (self.is_instant.then_some(Mono::ZERO), host::now());
        while let Some(due) = next {
            next = core.advance(due.max(now));
        }
    }

    /// Whether none of these blocks was overwritten.
    pub(super) fn is_intact(&self, blocks: &[(u32, u64)]) -> bool {
        self.core.lock().engine.is_intact(blocks)
    }
}

impl Core {
    /// Whether a prompt of these blocks is answered wrongly, because what is cached of it is wrong or what was loaded is. Wrong
    /// blocks are cached under the right hashes.
    fn taste(&mut self, blocks: &[u64], transfer: Transfer) -> bool {
        let (cached, rest) = blocks.split_at(self.engine.cached_run(blocks).min(blocks.len()));
        let is_poisoned = cached.iter().any(|block| self.poison.contains(block));
        for block in rest {
            if transfer.is_wrong {
                self.poison.insert(*block)
            } else {
                self.poison.remove(block)
            };
        }
        is_poisoned || transfer.is_wrong
    }

    /// One engine step and the delivery of its events.
    fn advance(&mut self, now: Mono) -> Option<Mono> {
        let next = self.engine.step(now, &mut self.events);
        for event in self.events.drain(..) {
            let Some((flight, place)) = self.flights.get(&event.job) else { continue };
            let produced = |count: u64| {
                if let Some(produced) = flight.produced.get(*place) {
                    produced.store(count, Relaxed);
                }
                if flight.is_streamed {
                    flight.changed.notify_one();
                }
            };
            match event.kind {
                EventKind::First { cached } => {
                    flight.cached.fetch_add(cached, Relaxed);
                    flight.first_at.store(now.0, Relaxed);
                    produced(1);
                }
                EventKind::Token { index } => produced(index + 1),
                EventKind::Done => {
                    flight.left.fetch_sub(1, Relaxed);
                    flight.changed.notify_one();
                    self.flights.remove(&event.job);
                }
                EventKind::Preempted => {}
            }
        }
        next
    }
}

impl Run {
    /// Tokens that sequence `place` has so far.
    pub(super) fn produced(&self, place: usize) -> u64 {
        self.flight.produced.get(place).map_or(0, |produced| produced.load(Relaxed))
    }

    /// Prompt tokens that came from the prefix cache.
    pub(super) fn cached(&self) -> u64 {
        self.flight.cached.load(Relaxed)
    }

    /// Whether its KV is that of another prompt.
    pub(super) fn is_wrong(&self) -> bool {
        self.is_wrong
    }

    /// The blocks that are kept of its first sequence, once it is done: rank, job, and each block with its generation. The
    /// others are let go.
    pub(super) fn kept(&mut self) -> Option<(Arc<Rank>, u64, Blocks)> {
        self.keeps = false;
        let (first, others) = self.jobs.split_first()?;
        let mut core = self.rank.core.lock();
        for job in others {
            core.engine.release(*job);
        }
        Some((self.rank.clone(), *first, core.engine.kept(*first)))
    }

    /// Whether all sequences have all their tokens.
    pub(super) fn is_done(&self) -> bool {
        self.flight.left.load(Relaxed) == 0
    }

    /// Comes back when something has happened since the last look.
    pub(super) async fn changed(&self) {
        self.flight.changed.notified().await;
    }

    /// Books the request as served: its latencies enter the histograms.
    pub(super) fn complete(self, is_cut_short: bool) {
        let (now, first) = (host::now(), Mono(self.flight.first_at.load(Relaxed)));
        let mut core = self.rank.core.lock();
        let (ttft, whole) = (first.since(self.begun), now.since(self.begun));
        core.figures.served(self.prompt_tokens, self.output_tokens, self.cached(), ttft, whole, is_cut_short);
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        self.rank.in_flight.fetch_sub(self.asked, Relaxed);
        if self.is_done() && !self.keeps {
            return;
        }
        let mut core = self.rank.core.lock();
        for job in &self.jobs {
            core.engine.abort(*job);
            core.engine.release(*job);
            core.flights.remove(job);
        }
    }
}

/// Steps an engine until the pod stops. Steps missed by the timer's granularity are caught up at their own times.
async fn drive(rank: Arc<Rank>, mut stop: watch::Receiver<bool>) {
    const BATCH: usize = 256;
    loop {
        let now = host::now();
        let due = {
            let mut core = rank.core.lock();
            let mut due = core.engine.due().unwrap_or(now);
            let mut next = None;
            for _ in 0..BATCH {
                next = core.advance(due.min(now));
                match next {
                    Some(at) if at <= now => due = at,
                    _ => break,
                }
            }
            next
        };
        let wait = due.map(|at| at.since(host::now()));
        tokio::select! {
            () = rank.wake.notified(), if wait.is_none() => {}
            () = pause(wait.unwrap_or_default()), if wait.is_some() => {}
            () = host::raised(&mut stop) => return,
        }
    }
}

async fn pause(wait: Duration) {
    if wait.is_zero() { tokio::task::yield_now().await } else { tokio::time::sleep(wait).await }
}
