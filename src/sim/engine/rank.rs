//! The scheduler of one engine, after vLLM's V1 scheduler.
//!
//! A step first gives every running sequence its next token or the next chunk of its prompt, in order of admission; when
//! blocks run out the last admitted goes back to the front of the queue. If none did, the queue is admitted while the token
//! budget, `sequences_max` and blocks for the whole prompt allow. A sequence whose tokens are all computed at the end of a
//! step gets one more. Blocks can be found by others when the step that filled them ends.
//! The caller owns time: `submit`, then `step(now)` whenever `due()` says so. Calls too early change nothing.
use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::content;
use super::cost::StepWork;
use super::job::{EngineSettings, Event, EventKind, Job, Refusal, Stats, chain};
use super::pool::BlockPool;
use crate::base::Mono;

/// A sequence in the queue or in the batch.
struct Sequence {
    job: Job,
    generated: u64,
    computed: u64,
    /// Tokens that the step under way computes.
    chunk: u64,
    cached: Option<u64>,
    held: Vec<u32>,
    /// Hashes of the full blocks after the prompt's.
    grown: Vec<u64>,
    published: usize,
    /// Its blocks stay held when it is done.
    is_kept: bool,
    /// Tokens whose KV comes from another engine.
    given: u64,
}

impl Sequence {
    /// Tokens known so far: prompt and generated.
    fn length(&self) -> u64 {
        self.job.prompt.tokens + self.generated
    }

    fn is_done(&self) -> bool {
        self.computed >= self.job.prompt.tokens && self.generated >= self.job.output_tokens
    }

    fn is_prefilling(&self) -> bool {
        self.computed + 1 < self.length() || self.generated == 0
    }

    fn hashes(&self) -> impl Iterator<Item = u64> {
        self.job.prompt.blocks.iter().chain(&self.grown).copied()
    }

    fn hash(&self, block: usize) -> Option<u64> {
        let prompt = &self.job.prompt.blocks;
        prompt.get(block).or_else(|| self.grown.get(block - prompt.len())).copied()
    }
}

/// One simulated engine.
pub struct Engine {
    settings: EngineSettings,
    pool: BlockPool,
    waiting: VecDeque<Sequence>,
    running: Vec<Sequence>,
    /// Blocks of jobs that are done, kept for another engine.
    kept: HashMap<u64, Vec<u32>>,
    /// End of the step under way.
    step_ends: Option<Mono>,
    stats: Stats,
    tokens: Vec<u32>,
    scratch: Vec<u8>,
}

impl Engine {
    /// An idle engine with an empty cache.
    pub fn new(settings: EngineSettings) -> Self {
        Self {
            pool: BlockPool::new(settings.blocks),
            settings,
            waiting: VecDeque::new(),
            running: Vec::new(),
            kept: HashMap::new(),
            step_ends: None,
            stats: Stats { blocks: settings.blocks, ..Stats::default() },
            tokens: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Puts a job at the end of the queue. Call `step` afterwards: an idle engine begins at once.
    pub fn submit(&mut self, mut job: Job) -> Result<(), Refusal> {
        job.prompt.tokens = job.prompt.tokens.max(1);
        let most = self.blocks_of(job.prompt.tokens + job.output_tokens);
        if most > self.settings.blocks as usize {
            return Err(Refusal::TooLarge);
        }
        if self.settings.queue_max.is_some_and(|limit| self.waiting.len() >= limit as usize && !self.has_room()) {
            self.stats.refusals += 1;
            return Err(Refusal::Busy);
        }
        self.waiting.push_back(Sequence {
            job,
            generated: 0,
            computed: 0,
            chunk: 0,
            cached: None,
            held: Vec::new(),
            grown: Vec::new(),
            published: 0,
            is_kept: false,
            given: 0,
        });
        Ok(())
    }

    /// Keeps the blocks of a job that was just submitted when it is done, until [`Engine::release`].
    pub fn keep(&mut self, id: u64) {
        self.just_submitted(id, |sequence| sequence.is_kept = true);
    }

    /// The KV of the first `tokens` of a job that was just submitted comes from elsewhere: it is not computed.
    pub fn give(&mut self, id: u64, tokens: u64) {
        self.just_submitted(id, |sequence| sequence.given = tokens);
    }

    fn just_submitted(&mut self, id: u64, change: impl FnOnce(&mut Sequence)) {
        if let Some(sequence) = self.waiting.iter_mut().rev().find(|sequence| sequence.job.id == id) {
            change(sequence);
        }
    }

    /// The blocks kept of a job that is done, each with how often it was overwritten.
    pub fn kept(&self, id: u64) -> Vec<(u32, u64)> {
        let blocks = self.kept.get(&id).map(Vec::as_slice).unwrap_or_default();
        blocks.iter().map(|&block| (block, self.pool.generation(block))).collect()
    }

    /// Lets go of the blocks kept of a job.
    pub fn release(&mut self, id: u64) {
        if let Some(mut blocks) = self.kept.remove(&id) {
            self.pool.give_back(&mut blocks);
        }
    }

    /// Whether none of these blocks was overwritten since they were told by [`Engine::kept`].
    pub fn is_intact(&self, blocks: &[(u32, u64)]) -> bool {
        blocks.iter().all(|&(block, generation)| self.pool.generation(block) == generation)
    }

    /// How many of these block hashes, from the first on, are in the cache.
    pub fn cached_run(&self, hashes: &[u64]) -> usize {
        self.pool.run(hashes)
    }

    /// When `step` should be called next; `None` if a step is not under way (idle, or a job was just submitted).
    pub fn due(&self) -> Option<Mono> {
        self.step_ends
    }

    /// Ends the step that is due at `now`, appends its events, begins the next one and returns its end; `None` if there is
    /// nothing to do. Before the due time it only returns that time.
    pub fn step(&mut self, now: Mono, events: &mut Vec<Event>) -> Option<Mono> {
        if let Some(ends) = self.step_ends {
            if now < ends {
                return Some(ends);
            }
            self.finish(events);
        }
        self.step_ends = self.begin(now, events);
        self.step_ends
    }

    /// Lets the step under way end no earlier than `ends`: ranks of a data-parallel group wait for the slowest of them.
    pub fn hold_until(&mut self, ends: Mono) {
        self.step_ends = self.step_ends.map(|own| own.max(ends));
    }

    /// Takes a job out, wherever it is, and frees its blocks. False if it is not here.
    pub fn abort(&mut self, id: u64) -> bool {
        if let Some(at) = self.running.iter().position(|sequence| sequence.job.id == id) {
            let mut gone = self.running.remove(at);
            self.pool.give_back(&mut gone.held);
            return true;
        }
        let before = self.waiting.len();
        self.waiting.retain(|sequence| sequence.job.id != id);
        self.waiting.len() < before
    }

    /// Drops every cached block that is not held, as `/reset_prefix_cache` does, by starting an empty pool. False, and no
    /// change, while sequences run or blocks are kept.
    pub fn reset_cache(&mut self) -> bool {
        if !(self.running.is_empty() && self.kept.is_empty()) {
            return false;
        }
        self.pool = BlockPool::new(self.settings.blocks);
        true
    }

    /// Figures of now.
    pub fn stats(&self) -> Stats {
        Stats {
            running: self.running.len() as u32,
            waiting: self.waiting.len() as u32,
            blocks_used: self.settings.blocks - self.pool.free(),
            ..self.stats
        }
    }

    /// The constants it was made with.
    pub fn settings(&self) -> &EngineSettings {
        &self.settings
    }

    /// Whether the next step could admit one more: a queue of limit 0 must not refuse what an idle engine would run.
    fn has_room(&self) -> bool {
        self.waiting.is_empty() && self.running.len() < self.settings.sequences_max as usize
    }

    fn blocks_of(&self, tokens: u64) -> usize {
        tokens.div_ceil(u64::from(self.settings.block_tokens.max(1))) as usize
    }

    /// Ends the step under way: counts, publishes, generates.
    fn finish(&mut self, events: &mut Vec<Event>) {
        let mut is_any_done = false;
        for at in 0..self.running.len() {
            let Some(sequence) = self.running.get_mut(at) else { break };
            if sequence.chunk == 0 {
                continue;
            }
            sequence.computed += std::mem::take(&mut sequence.chunk);
            if self.settings.prefix_caching {
                publish(sequence, &mut self.pool, &self.settings, &mut self.tokens, &mut self.scratch);
            }
            if sequence.computed < sequence.length() {
                continue;
            }
            let id = sequence.job.id;
            if sequence.generated == 0 {
                self.stats.prompt_tokens += sequence.job.prompt.tokens;
            }
            if sequence.job.output_tokens > 0 {
                let kind = match sequence.generated {
                    0 => EventKind::First { cached: sequence.cached.unwrap_or(0) },
                    index => EventKind::Token { index },
                };
                sequence.generated += 1;
                self.stats.generated_tokens += 1;
                events.push(Event { job: id, kind });
            }
            if sequence.is_done() {
                events.push(Event { job: id, kind: EventKind::Done });
                if sequence.is_kept {
                    self.kept.insert(id, std::mem::take(&mut sequence.held));
                } else {
                    self.pool.give_back(&mut sequence.held);
                }
                is_any_done = true;
            }
        }
        if is_any_done {
            self.running.retain(|sequence| !sequence.is_done());
        }
    }

    /// Plans the next step and returns its end.
    fn begin(&mut self, now: Mono, events: &mut Vec<Event>) -> Option<Mono> {
        let mut budget = u64::from(self.settings.step_tokens_max.max(1));
        let mut work = StepWork::default();
        let preempted = self.continue_running(&mut budget, &mut work, events);
        if !preempted {
            self.admit(&mut budget, &mut work);
        }
        if self.running.is_empty() {
            return None;
        }
        self.stats.steps += 1;
        Some(now.after(Duration::from_micros(self.settings.cost.micros(&work))))
    }

    /// Gives running sequences their share of the step; true if one had to go.
    fn continue_running(&mut self, budget: &mut u64, work: &mut StepWork, events: &mut Vec<Event>) -> bool {
        let mut is_preempted = false;
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let block_tokens = u64::from(self.settings.block_tokens.max(1));
            let Some(sequence) = self.running.get_mut(at) else { break };
            let chunk = (sequence.length() - sequence.computed).min(*budget);
            let needed = (sequence.computed + chunk).div_ceil(block_tokens) as usize;
            let missing = needed.saturating_sub(sequence.held.len());
            if missing > 0 && !self.pool.take(missing, &mut sequence.held) {
                is_preempted = true;
                if let Some(mut last) = self.running.pop() {
                    self.pool.give_back(&mut last.held);
                    (last.computed, last.chunk, last.published, last.given) = (0, 0, 0, 0);
                    self.stats.preemptions += 1;
                    events.push(Event { job: last.job.id, kind: EventKind::Preempted });
                    self.waiting.push_front(last);
                }
                continue;
            }
            sequence.chunk = chunk;
            *budget -= chunk;
            account(sequence, work);
            at += 1;
        }
        is_preempted
    }

    /// Moves the queue into the batch as far as it fits.
    fn admit(&mut self, budget: &mut u64, work: &mut StepWork) {
        while *budget > 0 && self.running.len() < self.settings.sequences_max as usize {
            let Some(mut sequence) = self.waiting.pop_front() else { return };
            let length = sequence.length();
            let total = self.blocks_of(length);
            // The last token is always computed, so that there is something to sample from.
            let usable = if self.settings.prefix_caching {
                (length.saturating_sub(1) / u64::from(self.settings.block_tokens.max(1))) as usize
            } else {
                0
            };
            let mut held = std::mem::take(&mut sequence.held);
            let Some(run) = self.pool.take_cached(sequence.hashes().take(usable), total, &mut held) else {
                self.waiting.push_front(sequence);
                return;
            };
            // There is room: take_cached looked.
            let is_taken = self.pool.take(total - run, &mut held);
            debug_assert!(is_taken, "room was promised");
            sequence.held = held;
            sequence.published = run;
            sequence.computed = run as u64 * u64::from(self.settings.block_tokens);
            let given = sequence.given.min(length - 1).saturating_sub(sequence.computed);
            if sequence.cached.is_none() {
                sequence.cached = Some(sequence.computed);
                self.stats.lookup_tokens += length;
                self.stats.hit_tokens += sequence.computed;
                self.stats.given_tokens += given;
            }
            sequence.computed += given;
            sequence.chunk = (length - sequence.computed).min(*budget);
            *budget -= sequence.chunk;
            account(&sequence, work);
            self.running.push(sequence);
        }
    }
}

/// Adds a sequence's chunk to the step's work.
fn account(sequence: &Sequence, work: &mut StepWork) {
    if sequence.is_prefilling() {
        work.add_prefill(sequence.chunk, sequence.computed);
    } else {
        work.add_decode(sequence.computed);
    }
}

/// Makes the full blocks of a sequence findable, hashing those it has generated.
fn publish(
    sequence: &mut Sequence,
    pool: &mut BlockPool,
    settings: &EngineSettings,
    tokens: &mut Vec<u32>,
    scratch: &mut Vec<u8>,
) {
    let size = u64::from(settings.block_tokens.max(1));
    let full = (sequence.computed / size) as usize;
    while sequence.published < full {
        let block = sequence.published;
        let hash = sequence.hash(block).unwrap_or_else(|| {
            let prompt = &sequence.job.prompt;
            let parent = sequence.grown.last().copied().unwrap_or(prompt.tip);
            let first_tail = prompt.tokens - prompt.tail.len() as u64;
            tokens.clear();
            tokens.extend((block as u64 * size..(block as u64 + 1) * size).map(|place| {
                match place.checked_sub(prompt.tokens) {
                    Some(index) => content::token(sequence.job.seed, index),
                    None => prompt.tail.get((place - first_tail) as usize).copied().unwrap_or(0),
                }
            }));
            let hash = chain(parent, tokens, scratch);
            sequence.grown.push(hash);
            hash
        });
        if let Some(&held) = sequence.held.get(block) {
            pool.publish(held, hash);
        }
        sequence.published += 1;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::collections::HashMap;

    use super::super::{Prompt, StepCost};
    use super::*;
    use crate::base::Rng;
    use proptest::prelude::*;

    fn job(id: u64, prompt: &[u32], output_tokens: u64) -> Job {
        Job { id, prompt: Prompt::of(prompt, 0, 4), output_tokens, seed: content::seed(prompt, 0) }
    }

    fn small(blocks: u32, sequences_max: u32) -> EngineSettings {
        EngineSettings { block_tokens: 4, blocks, sequences_max, step_tokens_max: 16, ..EngineSettings::default() }
    }

    /// Runs until idle; returns every event with its time.
    fn run(engine: &mut Engine, now: &mut Mono) -> Vec<(Mono, Event)> {
        let (mut all, mut events) = (Vec::new(), Vec::new());
        for _ in 0..100_000 {
            let next = engine.step(*now, &mut events);
            all.extend(events.drain(..).map(|event| (*now, event)));
            let stats = engine.stats();
            assert!(stats.blocks_used <= stats.blocks);
            let Some(next) = next else { return all };
            *now = next;
        }
        unreachable!("the engine does not come to rest")
    }

    #[test]
    fn a_lone_job_takes_chunks_then_one_step_per_token() {
        let mut engine = Engine::new(small(64, 8));
        engine.submit(job(1, &(0..40).collect::<Vec<_>>(), 3)).unwrap();
        let mut now = Mono::ZERO;
        let events = run(&mut engine, &mut now);
        let kinds: Vec<_> = events.iter().map(|(_, event)| event.kind).collect();
        let token = |index| EventKind::Token { index };
        assert_eq!(kinds, [EventKind::First { cached: 0 }, token(1), token(2), EventKind::Done]);
        assert_eq!(engine.stats().steps, 3 + 2);
        assert!(events[0].0 > Mono(3 * 6_000));
        assert_eq!(engine.stats().blocks_used, 0);
    }

    #[test]
    fn a_step_that_is_held_ends_later_and_an_idle_engine_cannot_be_held() {
        let mut engine = Engine::new(small(64, 8));
        engine.hold_until(Mono(50_000));
        assert_eq!(engine.due(), None);
        engine.submit(job(1, &[1, 2, 3], 1)).unwrap();
        let mut events = Vec::new();
        let own = engine.step(Mono::ZERO, &mut events).unwrap();
        engine.hold_until(Mono::ZERO);
        assert_eq!(engine.due(), Some(own));
        engine.hold_until(Mono(50_000));
        assert_eq!(engine.step(own, &mut events), Some(Mono(50_000)));
        assert!(events.is_empty());
        engine.step(Mono(50_000), &mut events);
        assert_eq!(events.len(), 2);
    }

    #[test]
    fn the_next_turn_finds_prompt_and_answer_in_the_cache() {
        let mut engine = Engine::new(small(64, 8));
        let mut turn: Vec<u32> = (0..22).collect();
        engine.submit(job(1, &turn, 11)).unwrap();
        let mut now = Mono::ZERO;
        run(&mut engine, &mut now);
        let seed = content::seed(&turn, 0);
        turn.extend((0..11).map(|index| content::token(seed, index)));
        turn.extend([7, 7, 7]);
        engine.submit(job(2, &turn, 1)).unwrap();
        let first = run(&mut engine, &mut now)[0].1.kind;
        // 22 + 11 tokens, the last of which was never fed back: 32 computed, 8 full blocks.
        assert_eq!(first, EventKind::First { cached: 32 });
    }

    #[test]
    fn a_whole_prompt_in_the_cache_still_computes_its_last_token() {
        let mut engine = Engine::new(small(64, 8));
        let prompt: Vec<u32> = (0..16).collect();
        let mut now = Mono::ZERO;
        for (id, cached) in [(1, 0), (2, 12)] {
            engine.submit(job(id, &prompt, 1)).unwrap();
            assert_eq!(run(&mut engine, &mut now)[0].1.kind, EventKind::First { cached });
        }
    }

    #[test]
    fn what_is_kept_stays_until_it_is_let_go_and_what_is_given_is_not_computed() {
        let (mut engine, mut now) = (Engine::new(small(8, 2)), Mono::ZERO);
        let prompt: Vec<u32> = (0..18).collect();
        engine.submit(job(1, &prompt, 1)).unwrap();
        engine.keep(1);
        run(&mut engine, &mut now);
        let kept = engine.kept(1);
        assert_eq!((kept.len(), engine.stats().blocks_used, engine.reset_cache()), (5, 5, false));
        engine.release(1);
        assert!(engine.is_intact(&kept), "nobody took them yet");
        engine.submit(job(2, &(50..80).collect::<Vec<_>>(), 1)).unwrap();
        run(&mut engine, &mut now);
        assert!(!engine.is_intact(&kept));
        let mut other = Engine::new(small(8, 2));
        other.submit(job(3, &prompt, 2)).unwrap();
        other.give(3, 18);
        run(&mut other, &mut now);
        let stats = other.stats();
        assert_eq!((stats.steps, stats.given_tokens, stats.hit_tokens, stats.blocks_used), (2, 17, 0, 0));
        let hashes = Prompt::of(&prompt, 0, 4).blocks;
        assert_eq!(other.cached_run(&hashes), 4, "given blocks are found like any other");
    }

    #[test]
    fn limits_refuse_and_abort_frees() {
        let mut engine = Engine::new(EngineSettings { queue_max: Some(1), ..small(8, 1) });
        assert_eq!(engine.submit(job(9, &[0; 30], 3)), Err(Refusal::TooLarge));
        engine.submit(job(1, &[1; 8], 8)).unwrap();
        let mut events = Vec::new();
        engine.step(Mono::ZERO, &mut events);
        engine.submit(job(2, &[2; 8], 8)).unwrap();
        assert_eq!(engine.submit(job(3, &[3; 8], 8)), Err(Refusal::Busy));
        assert!(engine.abort(2) && engine.abort(1) && !engine.abort(1));
        let stats = engine.stats();
        assert_eq!((stats.running, stats.waiting, stats.blocks_used, stats.refusals), (0, 0, 0, 1));
        assert_eq!(engine.step(Mono(1_000_000), &mut events), None);
    }

    #[test]
    fn a_million_sequence_steps_are_cheap() {
        let mut engine = Engine::new(EngineSettings { cost: StepCost::instant(), ..EngineSettings::default() });
        let mut rng = Rng::new(1);
        let (mut events, mut produced) = (Vec::new(), 0);
        for id in 0..1_000 {
            let prompt: Vec<u32> = (0..=rng.below(400) as u32).collect();
            engine.submit(Job { prompt: Prompt::of(&prompt, id, 16), ..job(id, &[], 200) }).unwrap();
        }
        let mut is_busy = true;
        while is_busy {
            is_busy = engine.step(Mono::ZERO, &mut events).is_some();
            produced += events.drain(..).filter(|event| event.kind != EventKind::Done).count();
        }
        assert_eq!(produced, 200_000);
    }

    /// A random workload: times, aborts and shared prefixes from `seed`.
    fn drive(seed: u64, blocks: u32, sequences_max: u32) -> Vec<(Mono, Event)> {
        let mut rng = Rng::new(seed);
        let mut engine = Engine::new(small(blocks, sequences_max));
        let (mut now, mut events, mut out) = (Mono::ZERO, Vec::new(), Vec::new());
        let mut outputs = HashMap::new();
        for id in 0..40 {
            let family = rng.below(3) as u32;
            let length = 1 + rng.below(u64::from(blocks) * 2) as u32;
            let output = 1 + rng.below(u64::from(blocks));
            let prompt: Vec<u32> = (0..length).map(|place| family * 1_000 + place).collect();
            if engine.submit(job(id, &prompt, output)).is_ok() {
                outputs.insert(id, output);
            }
            for _ in 0..rng.below(6) {
                if let Some(next) = engine.step(now, &mut events) {
                    now = next;
                }
            }
            if rng.below(5) == 0 {
                let victim = rng.below(id + 1);
                if engine.abort(victim) {
                    outputs.remove(&victim);
                }
            }
            out.extend(events.drain(..).map(|event| (now, event)));
        }
        out.extend(run(&mut engine, &mut now));
        for (id, output) in outputs {
            let tokens = |(_, event): &&(Mono, Event)| {
                event.job == id && matches!(event.kind, EventKind::First { .. } | EventKind::Token { .. })
            };
            assert_eq!(out.iter().filter(tokens).count() as u64, output, "tokens of job {id}, seed {seed}");
            let done = Event { job: id, kind: EventKind::Done };
            assert_eq!(out.iter().filter(|(_, event)| *event == done).count(), 1, "job {id}, seed {seed}");
        }
        assert_eq!(engine.stats().blocks_used, 0, "seed {seed}");
        out
    }

    proptest! {
        #[test]
        fn every_job_ends_within_capacity_and_the_same_seed_gives_the_same_events(
            seed: u64, blocks in 4_u32..40, sequences_max in 1_u32..9,
        ) {
            prop_assert_eq!(drive(seed, blocks, sequences_max), drive(seed, blocks, sequences_max));
        }
    }
}
