//! Choosing the pod: takes the freshest state of the pods and the index, asks the pure planner, keeps its reasons.
//!
//! A planner that panics or keeps overrunning its time costs quality, not requests: the gate goes over to safe mode.
use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderValue;

use super::exchange::Exchange;
use super::gate::{Gate, Phase};
use super::intake::Facts;
use super::reply::Fault;
use super::shown::{Shown, Split};
use crate::base::{Mono, PodId, Rng, Tokens};
use crate::disagg::{self, Around, Obstacle, Plan, Settings};
use crate::flow::Class;
use crate::observe::Stage;
use crate::pods::{Fleet, Leave, Marks, Pod, Work};
use crate::prefix::{BLOCK_BYTES, Fingerprint, Hits};
use crate::runtime::now;
use crate::scheduling::{
    Decision, Desk, Detail, Guesses, Handover, Mode, Profile, Query, Request, Step, place, safe_mode,
};

/// A plan that takes longer has overrun.
const PLAN_MAX: Duration = Duration::from_millis(50);
/// Overruns in a row after which the gate goes over to safe mode.
const OVERRUNS_MAX: u32 = 16;
/// Longest decision shown in a response header \[bytes\].
const SHOWN_BYTES_MAX: usize = 4 * 1024;

/// Length of an answer of which nothing is known \[tokens\].
pub const OUTPUT_TOKENS: f64 = 300.0;

static OVERRUNS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
    static HITS: RefCell<Hits> = RefCell::default();
}

/// Which part of a request a pod does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All of it.
    Whole,
    /// The prefill.
    Prefill,
    /// The decode, with KV blocks from another pod.
    Decode,
}

/// A pod where a request might go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) pod: PodId,
    /// Tokens of the prompt that it is believed to hold.
    pub(super) hit: Tokens,
    /// For how long one would rather wait for the chosen pod \[seconds\], if the profile can tell.
    pub(super) worse_s: Option<f64>,
}

/// Where a request goes, and what is booked there.
pub(super) struct Choice {
    pub(super) pod: Arc<Pod>,
    pub(super) part: Part,
    pub(super) leave: Leave,
    pub(super) prompt: Tokens,
    pub(super) hit: Tokens,
    pub(super) guesses: Guesses,
    pub(super) is_cold: bool,
    pub(super) marks: Option<Arc<Marks>>,
    pub(super) uses: [Option<u64>; 2],
    /// This pod and the next best.
    pub(super) places: Vec<Place>,
    /// Pods were ruled out for what is asked, not for how they are: only `places` are known to be right.
    pub(super) is_restricted: bool,
    /// Length of an answer \[tokens\].
    pub(super) output: f64,
}

impl Choice {
    /// The same on another pod.
    pub(super) fn on(mut self, pod: Arc<Pod>) -> Self {
        self.hit = self.places.iter().find(|place| place.pod == pod.id).map_or(Tokens(0), |place| place.hit);
        self.pod = pod;
        self
    }

    /// Whether the pod can begin with it at once: nothing is to be loaded or compiled for the first time, encoded or brought,
    /// and one answer is asked for.
    pub(super) fn is_plain(&self, facts: &Facts) -> bool {
        let is_new = |key: &u64| !self.pod.load.has_used(*key);
        let is_text = facts.prompt.as_ref().is_none_or(|prompt| prompt.media == 0);
        let is_own = self.part != Part::Decode;
        is_own && is_text && !self.uses.iter().flatten().any(is_new) && facts.asks.answers == 1
    }

    /// Prompt tokens that the pod has to compute.
    pub(super) fn uncached(&self) -> Tokens {
        match self.part {
            Part::Decode => Tokens(0),
            Part::Whole | Part::Prefill => self.prompt.less(self.hit + self.guesses.expected(self.pod.id, self.hit)),
        }
    }

    /// What is booked on the pod.
    pub(super) fn work(&self, now: Mono, is_stream: bool) -> Work<'_> {
        Work {
            now,
            prompt: self.prompt,
            uncached: self.uncached(),
            // The answer of a prefill leg is its first token.
            is_stream: is_stream || self.part == Part::Prefill,
            is_cold: self.is_cold,
            marks: self.marks.as_deref(),
            uses: self.uses,
        }
    }
}

/// Two pods for one request.
pub(super) struct Pair {
    pub(super) prefill: Choice,
    pub(super) decode: Choice,
}

/// How a request goes.
pub(super) enum Planned {
    /// On one pod.
    One(Choice),
    /// On two.
    Two(Box<Pair>),
}

/// Pods that are not to be chosen.
#[derive(Clone, Copy)]
pub(super) struct Avoid<'a> {
    /// For all or the last part of a request.
    pub(super) pods: &'a [PodId],
    /// For its prefill.
    pub(super) prefillers: &'a [PodId],
}

/// Plans one request on one state of pods and index.
struct Planner<'a> {
    gate: &'a Gate,
    profile: &'a Arc<Profile>,
    query: Query<'a>,
    rng: Rng,
    detail: Detail,
    attempt: u32,
    marks: Option<Arc<Marks>>,
    /// Whether costs are wanted.
    weighs: bool,
    /// What a second that decoding loses is worth.
    weight: f64,
}

type Placed = disagg::Placed<Shown>;

impl<'a> Planner<'a> {
    /// Places one part. `excluded` are pods it may not go to.
    fn place(&mut self, step: Step, handover: Handover, excluded: &[PodId]) -> Placed {
        let request = Request { step, handover, excluded, ..*self.query.request };
        let query = Query { request: &request, ..self.query };
        let before = self.rng.clone();
        DESK.with_borrow_mut(|desk| {
            let decision = plan(self.gate, self.profile, &query, &mut self.rng, self.detail, desk);
            let chosen = decision.chosen.filter(|_| self.weighs);
            let terms = chosen.and_then(|pod| desk.terms(self.profile, &query, pod));
            let when = (crate::runtime::unix_ms(), self.attempt);
            let kept = Shown::keep(when, &query, desk, before, Arc::clone(self.profile), decision.clone());
            Placed { decision, terms, kept }
        })
    }

    fn choice(&self, decision: &Decision, part: Part) -> Result<Choice, Fault> {
        let query = &self.query;
        let pod = decision
            .chosen
            .and_then(|id| query.fleet.find(id))
            .ok_or_else(|| Fault::NoPod(decision.nobody.map_or("no_pods", crate::scheduling::Nobody::as_str)))?;
        let leave = if matches!(decision.mode, Mode::Normal) { Leave::Granted } else { Leave::Forced };
        let hit_on = |id| if query.request.skips_cache { Tokens(0) } else { query.hits.depth(id) };
        Ok(Choice {
            pod: Arc::clone(pod),
            part,
            leave,
            prompt: query.request.prompt_tokens,
            hit: hit_on(pod.id),
            guesses: query.guesses,
            is_cold: query.hits.is_empty(),
            marks: self.marks.clone(),
            uses: [query.request.adapter, query.request.grammar],
            places: std::iter::once(Place { pod: pod.id, hit: hit_on(pod.id), worse_s: Some(0.0) })
                .chain(decision.alternatives.all().map(|one| Place {
                    pod: one.pod,
                    hit: hit_on(one.pod),
                    worse_s: one.worse_s,
                }))
                .collect(),
            is_restricted: decision.is_restricted || query.rank.is_some(),
            output: Request { step: Step::Whole, ..*query.request }.output(OUTPUT_TOKENS),
        })
    }

    /// What a plan of two pods looks at.
    fn around<'b>(&self, settings: &'b Settings) -> Around<'b>
    where
        'a: 'b,
    {
        Around { fleet: self.query.fleet, pairs: &self.gate.pairs, settings, weight: self.weight, now: self.query.now }
    }

    /// One pod or two.
    fn plan(&mut self, settings: &Settings, obstacle: Option<Obstacle>, avoid: &Avoid<'_>) -> Plan<Shown> {
        self.weighs = true;
        let query = self.query;
        let around = self.around(settings);
        let uncached = |pod| query.request.prompt_tokens.less(query.hits.depth(pod));
        around.plan(obstacle, uncached, |step, handover| {
            self.place(step, handover, if step == Step::Prefill { avoid.prefillers } else { avoid.pods })
        })
    }

    /// The pods of a pair, to be asked.
    fn chosen(&self, pair: &disagg::Pair<Shown>) -> Result<Pair, Fault> {
        let with = |decision: &Decision, pod| Decision { chosen: Some(pod), ..decision.clone() };
        Ok(Pair {
            prefill: self.choice(&with(&pair.prefill.decision, pair.prefiller), Part::Prefill)?,
            decode: self.choice(&with(&pair.decode.decision, pair.decoder), Part::Decode)?,
        })
    }
}

impl Exchange {
    /// Chooses one pod among those that were not tried.
    pub(super) fn choose(&mut self, facts: &Facts, tried: &[PodId]) -> Result<Choice, Fault> {
        self.plan_with(facts, |planner| {
            let placed = planner.place(Step::Whole, Handover::default(), tried);
            let choice = planner.choice(&placed.decision, Part::Whole);
            (choice, placed, None)
        })
    }

    /// Chooses another decode pod for KV blocks that `prefiller` keeps.
    pub(super) fn choose_decoder(&mut self, facts: &Facts, prefiller: PodId, tried: &[PodId]) -> Option<Choice> {
        let rules = Arc::clone(&self.rules);
        self.plan_with(facts, |planner| {
            let placed = planner.place(Step::Decode, planner.around(&rules.disagg).usual(prefiller), tried);
            let choice = planner.choice(&placed.decision, Part::Decode).ok();
            let choice = choice.filter(|choice| planner.around(&rules.disagg).gets_along(prefiller, choice.pod.id));
            (choice, placed, None)
        })
    }

    /// Chooses one pod or two.
    pub(super) fn choose_legs(&mut self, facts: &Facts, avoid: &Avoid<'_>) -> Result<Planned, Fault> {
        let rules = Arc::clone(&self.rules);
        let settings = &rules.disagg;
        let class = facts.caller.class as usize;
        self.note.balance.get_or_insert_with(|| self.gate.balances.of(&facts.account, class));
        let pinned = facts.pinned.map(|_| Obstacle::Pinned);
        let is_safe_mode = self.gate.safe_mode.load(Relaxed);
        let obstacle = facts.obstacle.or(pinned).or(is_safe_mode.then_some(Obstacle::SafeMode));
        let (planned, reason) = self.plan_with(facts, |planner| {
            let plan = planner.plan(settings, obstacle, avoid);
            let split = Split::new(&plan);
            if let (disagg::Choice::Remote, Some(pair)) = (plan.choice, plan.pair)
                && let Ok(chosen) = planner.chosen(&pair)
            {
                let two = Ok(Planned::Two(Box::new(chosen)));
                return ((two, (disagg::Choice::Remote, plan.reason)), pair.decode, Some(split));
            }
            let one = planner.choice(&plan.local.decision, Part::Whole).map(Planned::One);
            ((one, (disagg::Choice::Local, plan.reason)), plan.local, Some(split))
        });
        match reason {
            (disagg::Choice::Remote, reason) => self.gate.metrics.disagg_remote.inc(reason.as_str()),
            (disagg::Choice::Local, reason) => self.gate.metrics.disagg_local.inc(reason.as_str()),
        }
        planned
    }

    /// Plans on the freshest state, and keeps what explains it.
    fn plan_with<T>(
        &mut self,
        facts: &Facts,
        decide: impl FnOnce(&mut Planner<'_>) -> (T, Placed, Option<Split>),
    ) -> T {
        let started = now();
        self.note.phase = Phase::Plan;
        let fleet = self.gate.table.fleet();
        let mut hits = HITS.take();
        self.gate.index.lookup_into(facts.prompt.as_ref().unwrap_or(&Fingerprint::default()), &mut hits);
        let prompt = if facts.prompt.is_some() { hits.prompt_tokens } else { facts.tokens_guess() };
        let routing = self.gate.routing();
        let fields = &self.client.head().headers;
        let profile = Arc::clone(routing.profile(&facts.model, fields));
        let request = Request {
            max_tokens: facts.max_tokens,
            expected_tokens: self.gate.latency.expected(&facts.model),
            generates: facts.api.is_some_and(crate::api::Api::generates),
            is_stream: facts.is_stream,
            answers: facts.asks.answers,
            skips_cache: facts.asks.skips_cache,
            grammar: facts.asks.grammar,
            adapter: adapter(&fleet, &facts.model),
            urgency: facts.urgency,
            is_first: facts.caller.class == Class::Interactive,
            ttft_s: self.note.slo.ttft_s,
            media: facts.prompt.as_ref().map_or(0, |prompt| prompt.media),
            session: routing.session(fields),
            head: facts.prompt.as_ref().and_then(|prompt| prompt.chains.first()?.blocks.first().copied()),
            pinned: facts.pinned,
            may_pull: self.rules.disagg.pull_from_decoders,
            ..Request::new(&facts.model, prompt)
        };
        let marks = marks(facts, &hits).map(Arc::new);
        let is_shown = self.is_explained();
        let guessed = |prompt| self.gate.peers.guess(prompt, hits.prompt_tokens, &fleet, &facts.model);
        let guesses = facts.prompt.as_ref().map(guessed).unwrap_or_default();
        let query = Query {
            fleet: &fleet,
            request: &request,
            hits: &hits,
            guesses,
            marks: marks.as_deref(),
            rank: self.asked_rank(),
            now: started,
        };
        let mut planner = Planner {
            gate: &self.gate,
            profile: &profile,
            query,
            rng: self.rng.clone(),
            detail: if is_shown { Detail::Rows } else { Detail::Off },
            attempt: self.note.attempts + 1,
            marks: marks.clone(),
            weighs: false,
            weight: self.note.balance.as_ref().map_or(1.0, |balance| balance.weight()),
        };
        let (result, Placed { decision, kept, .. }, split) = decide(&mut planner);
        self.rng = planner.rng;
        HITS.set(hits);
        self.planned(started, decision.mode.as_str());
        if is_shown {
            self.shown = shown(&decision, split.as_ref());
        }
        self.gate.explain.put(Arc::clone(&self.note.request_id), Arc::new(kept.with(split)));
        result
    }

    /// Notes how long a plan took, and which way it was made.
    fn planned(&mut self, started: Mono, mode: &'static str) {
        let took = now().since(started);
        self.traced("plan", started, Some(("tidegate.mode", mode)));
        self.gate.metrics.stage(Stage::Plan, took);
        self.overran(took);
        self.note.plan_us = Some(took.as_micros() as u64);
        self.note.mode = Some(mode);
        self.gate.metrics.plans.inc(mode);
    }

    /// Whether the client may see how its request was decided, and asked to.
    fn is_explained(&self) -> bool {
        (self.rules.explain || self.is_trusted)
            && self.client.head().headers.get("x-tidegate-explain").is_some_and(|value| value == "1")
    }

    /// The data-parallel rank that a trusted caller chose. Endpoints without such a rank are left to judge it.
    fn asked_rank(&self) -> Option<u32> {
        let asked = self.client.head().headers.get("x-data-parallel-rank").filter(|_| self.is_trusted)?;
        asked.to_str().ok()?.trim().parse().ok()
    }

    fn overran(&self, took: Duration) {
        if took <= PLAN_MAX {
            OVERRUNS.store(0, Relaxed);
        } else if OVERRUNS.fetch_add(1, Relaxed) + 1 >= OVERRUNS_MAX {
            enter_safe_mode(&self.gate, "planner_overran");
        }
    }
}

/// Marks of a request's prompt, if it has one.
fn marks(facts: &Facts, hits: &Hits) -> Option<Marks> {
    let prompt = facts.prompt.as_ref()?;
    let [chain] = prompt.chains.as_slice() else { return None };
    let block_tokens = hits.prompt_tokens.0 as f64 * BLOCK_BYTES as f64 / chain.bytes.max(1) as f64;
    Some(Marks::of(&chain.blocks, block_tokens))
}

/// Hash of a model that is an adapter: what a pod must have loaded.
fn adapter(fleet: &Fleet, model: &str) -> Option<u64> {
    let first = fleet.by_model.get(model)?.first().and_then(|position| fleet.pods.get(*position))?;
    let facts = first.facts.load();
    let served = facts.served.iter().flatten().find(|served| &*served.name == model)?;
    served.parent.as_ref().map(|_| xxhash_rust::xxh3::xxh3_64(model.as_bytes()))
}

fn plan(gate: &Gate, profile: &Profile, query: &Query<'_>, rng: &mut Rng, detail: Detail, desk: &mut Desk) -> Decision {
    if !gate.safe_mode.load(Relaxed) {
        let planned = catch_unwind(AssertUnwindSafe(|| {
            gate.at(Phase::Plan);
            place(profile, query, rng, detail, desk)
        }));
        if let Ok(decision) = planned {
            return decision;
        }
        gate.metrics.panics.inc("plan");
        enter_safe_mode(gate, "planner_panicked");
        *desk = Desk::default();
    }
    desk.survey(None, query, 0);
    safe_mode(desk.views(), query.request, rng)
}

/// The pods that may serve a model: those known to, else those that have not told yet; all if no model was named.
fn candidates<'a>(fleet: &'a Fleet, model: &str) -> Box<dyn Iterator<Item = &'a Arc<Pod>> + 'a> {
    if model.is_empty() {
        return Box::new(fleet.pods.iter());
    }
    let known = fleet.serving(model);
    Box::new(fleet.at(if known.is_empty() { &fleet.unknown } else { known }))
}

/// Whether any pod that may serve the model was not tried.
pub(super) fn has_other(fleet: &Fleet, model: &str, tried: &[PodId]) -> bool {
    candidates(fleet, model).any(|pod| !tried.contains(&pod.id))
}

fn enter_safe_mode(gate: &Gate, why: &'static str) {
    if !gate.safe_mode.swap(true, Relaxed) {
        gate.metrics.degradations.inc(why);
        gate.metrics.safe_mode.set(1);
        tracing::error!(why, "safe mode entered; switch it off on the admin listener once the cause is gone");
    }
}

/// The decision as a header value, cut short if long.
fn shown(decision: &Decision, split: Option<&Split>) -> Option<HeaderValue> {
    let mut text = serde_json::to_string(decision).ok()?;
    if text.len() > SHOWN_BYTES_MAX {
        text = serde_json::to_string(&Decision { rows: Vec::new(), ..decision.clone() }).ok()?;
    }
    if let Some(split) = split {
        text.truncate(text.len().saturating_sub(1));
        text.push_str(",\"split\":");
        text.push_str(&serde_json::to_string(split).ok()?);
        text.push('}');
    }
    HeaderValue::from_str(&text).ok()
}
