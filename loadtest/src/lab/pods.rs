//! The engines on the virtual clock. An endpoint is a group of ranks; ranks of a group step together, so the longest step of
//! any rank is the step of all. An engine that is idle while its group steps joins with the next step.
use tidegate::base::Mono;
use tidegate::sim::engine::{Engine, EngineSettings, Event, Job, Refusal, Stats};

/// What becomes of the KV of a job's prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kv {
    /// The engine computes it, and lets go of it at the end.
    Own,
    /// It keeps it for another one.
    Kept,
    /// It was brought.
    Given,
}

/// The ranks of one endpoint.
pub(crate) struct Group {
    settings: EngineSettings,
    ranks: Vec<Engine>,
    due: Option<Mono>,
    /// Events of a restarted group's past are void.
    pub(crate) life: u32,
}

impl Group {
    /// Idle ranks.
    pub(crate) fn new(settings: EngineSettings, ranks: u32) -> Self {
        let engines = (0..ranks.max(1)).map(|_| Engine::new(settings)).collect();
        Self { settings, ranks: engines, due: None, life: 0 }
    }

    /// Takes a job for a rank, and says what becomes of its KV. Returns when the group has to step, if it was idle.
    pub(crate) fn submit(&mut self, now: Mono, rank: usize, job: Job, kv: Kv) -> Result<Option<Mono>, Refusal> {
        let Some(engine) = self.ranks.get_mut(rank) else { return Err(Refusal::Busy) };
        let (id, tokens) = (job.id, job.prompt.tokens);
        engine.submit(job)?;
        match kv {
            Kv::Own => {}
            Kv::Kept => engine.keep(id),
            Kv::Given => engine.give(id, tokens),
        }
        if self.due.is_some() {
            return Ok(None);
        }
        // An idle engine has nothing to end, so there are no events yet.
        Ok(self.step(now, |_| {}))
    }

    /// Ends the step that is due, tells its events, begins the next. Returns when that ends.
    pub(crate) fn step(&mut self, now: Mono, mut tell: impl FnMut(Event)) -> Option<Mono> {
        let mut events = Vec::new();
        let mut ends: Option<Mono> = None;
        for engine in &mut self.ranks {
            ends = ends.max(engine.step(now, &mut events));
        }
        if let (Some(ends), true) = (ends, self.ranks.len() > 1) {
            self.ranks.iter_mut().for_each(|engine| engine.hold_until(ends));
        }
        self.due = ends;
        events.into_iter().for_each(&mut tell);
        self.due
    }

    /// A new process without cache or requests.
    pub(crate) fn restart(&mut self) {
        let count = self.ranks.len() as u32;
        *self = Self { life: self.life + 1, ..Self::new(self.settings, count) };
    }

    /// Lets go of what a rank kept of a job.
    pub(crate) fn release(&mut self, rank: usize, id: u64) {
        if let Some(engine) = self.ranks.get_mut(rank) {
            engine.release(id);
        }
    }

    /// Takes a job out, wherever it is.
    pub(crate) fn abort(&mut self, rank: usize, id: u64) {
        if let Some(engine) = self.ranks.get_mut(rank) {
            engine.abort(id);
        }
    }

    /// How many of these blocks, from the first on, a rank has.
    pub(crate) fn cached_run(&self, rank: usize, blocks: &[u64]) -> usize {
        self.ranks.get(rank).map_or(0, |engine| engine.cached_run(blocks))
    }

    /// Figures of a rank.
    pub(crate) fn stats(&self, rank: usize) -> Stats {
        self.ranks.get(rank).map(Engine::stats).unwrap_or_default()
    }

    /// Figures of all ranks.
    pub(crate) fn all(&self) -> impl Iterator<Item = Stats> {
        self.ranks.iter().map(Engine::stats)
    }
}
