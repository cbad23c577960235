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
use super::shown::Shown;
use crate::base::{Mono, PodId, Rng, Tokens};
use crate::observe::Stage;
use crate::pods::{Fleet, Leave, Marks, Pod, Work};
use crate::prefix::{BLOCK_BYTES, Fingerprint, Hits};
use crate::runtime::now;
use crate::scheduling::{Decision, Desk, Detail, Guesses, Mode, Profile, Query, Request, place, safe_mode};

/// A plan that takes longer has overrun.
const PLAN_MAX: Duration = Duration::from_millis(50);
/// Overruns in a row after which the gate goes over to safe mode.
const OVERRUNS_MAX: u32 = 16;
/// Longest decision shown in a response header \[bytes\].
const SHOWN_BYTES_MAX: usize = 4 * 1024;

static OVERRUNS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static DESK: RefCell<Desk> = RefCell::default();
    static HITS: RefCell<Hits> = RefCell::default();
}

/// Where a request goes, and what is booked there.
pub(super) struct Choice {
    pub(super) pod: Arc<Pod>,
    pub(super) leave: Leave,
    pub(super) prompt: Tokens,
    pub(super) hit: Tokens,
    pub(super) guesses: Guesses,
    pub(super) is_cold: bool,
    pub(super) marks: Option<Marks>,
    pub(super) uses: [Option<u64>; 2],
}

impl Choice {
    /// Whether the pod can begin with it at once: nothing is to be loaded or compiled for the first time or encoded, and one
    /// answer is asked for.
    pub(super) fn is_plain(&self, facts: &Facts) -> bool {
        let is_new = |key: &u64| !self.pod.load.has_used(*key);
        let is_text = facts.prompt.as_ref().is_none_or(|prompt| prompt.media == 0);
        is_text && !self.uses.iter().flatten().any(is_new) && facts.asks.answers == 1
    }

    /// What is booked on the pod.
    pub(super) fn work(&self, now: Mono, is_stream: bool) -> Work<'_> {
        Work {
            now,
            prompt: self.prompt,
            uncached: self.prompt.less(self.hit + self.guesses.expected(self.pod.id, self.hit)),
            is_stream,
            is_cold: self.is_cold,
            marks: self.marks.as_ref(),
            uses: self.uses,
        }
    }
}

impl Exchange {
    /// Chooses among the pods that were not tried.
    pub(super) fn choose(&mut self, facts: &Facts, tried: &[PodId]) -> Result<Choice, Fault> {
        let started = now();
        self.note.phase = Phase::Plan;
        let fleet = self.gate.table.fleet();
        let mut hits = HITS.take();
        self.gate.index.lookup_into(facts.prompt.as_ref().unwrap_or(&Fingerprint::default()), &mut hits);
        let prompt = if facts.prompt.is_some() { hits.prompt_tokens } else { Tokens(facts.body.len() as u64 / 4) };
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
            media: facts.prompt.as_ref().map_or(0, |prompt| prompt.media),
            session: routing.session(fields),
            head: facts.prompt.as_ref().and_then(|prompt| prompt.chains.first()?.blocks.first().copied()),
            pinned: facts.pinned,
            excluded: tried,
            ..Request::new(&facts.model, prompt)
        };
        let marks = marks(facts, &hits);
        let is_shown = self.is_explained();
        let detail = if is_shown { Detail::Rows } else { Detail::Off };
        let (fleet, request, marks_seen) = (&*fleet, &request, marks.as_ref());
        let guessed = |prompt| self.gate.peers.guess(prompt, hits.prompt_tokens, fleet, &facts.model);
        let guesses = facts.prompt.as_ref().map(guessed).unwrap_or_default();
        let rank = self.asked_rank();
        let query = Query { fleet, request, hits: &hits, guesses, marks: marks_seen, rank, now: started };
        let before = self.rng.clone();
        let (decision, source) = DESK.with_borrow_mut(|desk| {
            let decision = plan(&self.gate, &profile, &query, &mut self.rng, detail, desk);
            let when = (crate::runtime::unix_ms(), self.note.attempts + 1);
            let source = Shown::keep(when, &query, desk, before, profile, decision.clone());
            (decision, source)
        });
        let ended = now();
        self.gate.metrics.stage(Stage::Plan, ended.since(started));
        self.overran(ended.since(started));
        self.note.plan_us = Some(ended.0 - started.0);
        self.note.mode = Some(decision.mode.as_str());
        self.gate.metrics.plans.inc(decision.mode.as_str());
        let choice = choice(&query, &decision).map(|choice| Choice { marks, ..choice });
        HITS.set(hits);
        if is_shown {
            self.shown = shown(&decision);
        }
        self.gate.explain.put(Arc::clone(&self.note.request_id), Arc::new(source));
        choice
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

fn choice(query: &Query<'_>, decision: &Decision) -> Result<Choice, Fault> {
    let pod = decision
        .chosen
        .and_then(|id| query.fleet.find(id))
        .ok_or_else(|| Fault::NoPod(decision.nobody.map_or("no_pods", crate::scheduling::Nobody::as_str)))?;
    let leave = if matches!(decision.mode, Mode::Normal) { Leave::Granted } else { Leave::Forced };
    let hit = if query.request.skips_cache { Tokens(0) } else { query.hits.depth(pod.id) };
    Ok(Choice {
        pod: Arc::clone(pod),
        leave,
        prompt: query.request.prompt_tokens,
        hit,
        guesses: query.guesses,
        is_cold: query.hits.is_empty(),
        marks: None,
        uses: [query.request.adapter, query.request.grammar],
    })
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
fn shown(decision: &Decision) -> Option<HeaderValue> {
    let mut text = serde_json::to_string(decision).ok()?;
    if text.len() > SHOWN_BYTES_MAX {
        text = serde_json::to_string(&Decision { rows: Vec::new(), ..decision.clone() }).ok()?;
    }
    HeaderValue::from_str(&text).ok()
}
