//! Follows one request on a pod and turns what was seen into samples. By value, in the request's own task: nothing shared.
//!
//! Only what says something clean is a sample to learn from: a first token when nothing of ours was waiting before it and
//! nothing was sent after it; a stretch of a stream during which no prompt of ours was being prefilled. The rest is still
//! compared with the prediction. First uses of an adapter or a grammar, and media, are left out: they measure loading. Tokens are
//! counted by `usage`, not by events, since engines bundle tokens; without usage a stream says nothing about its gaps.
use crate::base::{Mono, Tokens};
use crate::pods::{LoadNow, Pod, StepTime, Work};

/// Stretches of one stream that are kept.
const STRETCHES_MAX: usize = 8;
/// A stretch has at least so many events and takes at least so long, so that pauses of the network average out.
const STRETCH_EVENTS: u64 = 16;
const STRETCH_US: u64 = 100_000;
/// Requests of others that were seen at most so long before a dispatch may be there still.
const OTHERS_US: u64 = 1_000_000;
/// A wait shorter than this is none.
const WAIT_S_MAX: f64 = 0.002;

/// What the decoding batch was during a sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Batch {
    /// Sequences that were decoding.
    pub sequences: f64,
    /// Their tokens of context, added up.
    pub context: f64,
}

/// One observation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sample {
    /// A first token.
    First {
        /// Since the dispatch.
        seconds: f64,
        /// Prompt tokens to be computed.
        uncached: u64,
        /// Prompt tokens taken from the cache.
        hit: u64,
        /// What was decoding meanwhile.
        batch: Batch,
        /// Predicted time until its own prefill could begin.
        wait_s: f64,
        /// Whether it may be learnt from.
        is_clean: bool,
    },
    /// A stretch between tokens of one stream.
    Gap {
        /// Per token of this stream.
        seconds: f64,
        /// What was decoding, this stream included.
        batch: Batch,
        /// Whether it may be learnt from.
        is_clean: bool,
    },
}

#[derive(Clone, Copy, Debug, Default)]
struct Stretch {
    us: u64,
    events: u64,
    batch: Batch,
    is_clean: bool,
}

#[derive(Clone, Copy, Debug)]
struct Begun {
    at: Mono,
    events: u64,
    load: LoadNow,
}

/// Follows one request. Make it before the request is booked.
#[derive(Clone, Debug)]
pub struct Meter {
    work: (Mono, Tokens, Tokens),
    before: LoadNow,
    foreign: f64,
    is_plain: bool,
    first: Option<(Mono, bool)>,
    events: u64,
    begun: Option<Begun>,
    stretches: [Stretch; STRETCHES_MAX],
    kept: usize,
}

impl Meter {
    /// A request is about to be booked on `pod`. `is_plain` is false if it needs something loaded, compiled or encoded first.
    pub fn new(pod: &Pod, work: &Work<'_>, is_plain: bool) -> Self {
        Self {
            work: (work.now, work.uncached, work.prompt.less(work.uncached)),
            before: pod.load.at(work.now),
            foreign: pod.load.others(work.now).0,
            is_plain: is_plain && work.is_stream,
            first: None,
            events: 0,
            begun: None,
            stretches: [Stretch::default(); STRETCHES_MAX],
            kept: 0,
        }
    }

    /// Its first token came; call it after the booking knows. `events` came with it.
    pub fn first_token(&mut self, now: Mono, pod: &Pod, events: u64) {
        let is_alone = pod.load.now().dispatched == self.before.dispatched + 1;
        self.first.get_or_insert((now, is_alone));
        self.events += events;
        self.begin(now, pod);
    }

    /// `events` more of its stream came. Cheap but for one call in `STRETCH_EVENTS`.
    pub fn events(&mut self, now: Mono, pod: &Pod, events: u64) {
        self.events += events;
        let Some(begun) = self.begun else { return };
        let (seen, us) = (self.events - begun.events, now.0.saturating_sub(begun.at.0));
        if seen < STRETCH_EVENTS || us < STRETCH_US {
            return;
        }
        let load = pod.load.at(now);
        let is_quiet = |load: &LoadNow| load.prefilling == 0;
        let is_clean = is_quiet(&begun.load) && is_quiet(&load) && load.dispatched == begun.load.dispatched;
        let mean = |value: fn(&LoadNow) -> f64| f64::midpoint(value(&begun.load), value(&load));
        let batch = Batch {
            sequences: mean(|load| f64::from(load.decoding())).max(1.0),
            context: mean(|load| load.context_tokens.0 as f64),
        };
        if let Some(slot) = self.stretches.get_mut(self.kept) {
            *slot = Stretch { us, events: seen, batch, is_clean: is_clean && self.foreign <= 0.0 };
            self.kept += 1;
        }
        self.begin(now, pod);
    }

    fn begin(&mut self, now: Mono, pod: &Pod) {
        self.begun =
            (self.kept < STRETCHES_MAX).then(|| Begun { at: now, events: self.events, load: pod.load.at(now) });
    }

    /// What was seen, once the request is over. `generated`: tokens of its answer as `usage` told them; `None`: it did not.
    /// `cached`: tokens of its prompt, and those of them it took from the cache, as told; without that what was expected at the dispatch
    /// counts. Where requests of others were seen meanwhile nothing is clean: what they slow down is not known.
    pub fn samples(
        &self,
        pod: &Pod,
        generated: Option<Tokens>,
        cached: Option<(Tokens, Tokens)>,
    ) -> impl Iterator<Item = Sample> + '_ {
        let is_ours = !pod.load.saw_others_since(Mono(self.work.0.0.saturating_sub(OTHERS_US)));
        let first =
            self.first.filter(|_| self.is_plain).map(|(at, alone)| self.first_sample(at, alone && is_ours, cached));
        let per_event =
            generated.map(|tokens| tokens.0 as f64 / self.events.max(1) as f64).filter(|ratio| *ratio > 0.0);
        let gaps = self.stretches.iter().take(self.kept).filter_map(move |stretch| {
            let tokens = stretch.events as f64 * per_event?;
            let seconds = stretch.us as f64 / 1e6 / tokens;
            Some(Sample::Gap { seconds, batch: stretch.batch, is_clean: stretch.is_clean && is_ours })
        });
        first.into_iter().chain(gaps)
    }

    fn first_sample(&self, at: Mono, is_alone: bool, cached: Option<(Tokens, Tokens)>) -> Sample {
        let (dispatched, uncached, hit) = self.work;
        let (uncached, hit) = cached.map_or((uncached, hit), |(prompt, cached)| (prompt.less(cached), cached));
        let is_near = self.before.prefilling == 0 && self.before.wait_s < WAIT_S_MAX && self.foreign <= 0.0;
        Sample::First {
            seconds: at.since(dispatched).as_secs_f64(),
            uncached: uncached.0,
            hit: hit.0,
            batch: Batch {
                sequences: f64::from(self.before.decoding()) + self.foreign,
                context: self.before.context_tokens.0 as f64,
            },
            wait_s: self.before.wait_s,
            is_clean: is_near && is_alone,
        }
    }
}

/// What a sample should have been, by these constants.
pub(super) fn predicted(sample: &Sample, step: &StepTime, overhead_s: f64) -> f64 {
    match *sample {
        Sample::First { uncached, hit, batch, wait_s, .. } => {
            let steps = uncached.max(1).div_ceil(crate::pods::STEP_TOKENS) as f64;
            let mixed = steps * (step.c * batch.sequences + step.d * batch.context);
            overhead_s + wait_s + step.prefill(uncached.max(1), hit) + mixed
        }
        Sample::Gap { batch, .. } => step.decode(batch.sequences, batch.context),
    }
}
