//! Choosing the pod: takes the freshest state of the pods and the index, asks the pure planner, keeps its reasons.
//!
//! A planner that panics or keeps overrunning its time costs quality, not requests: the gate goes over to safe mode.
use std::cell::RefCell;
use std::fmt::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use http::HeaderValue;

use super::exchange::Exchange;
use super::gate::{Gate, Phase};
use super::intake::Facts;
use super::reply::Fault;
use crate::base::{PodId, Rng, Tokens};
use crate::observe::{ExplainSource, Stage};
use crate::pods::{Fleet, Leave, Pod};
use crate::prefix::{Fingerprint, Hits};
use crate::runtime::now;
use crate::scheduling::{Context, Decision, Detail, Mode, PodView, Request, Scratch, decide, safe_mode};

/// A plan that takes longer has overrun.
const PLAN_MAX: Duration = Duration::from_millis(50);
/// Overruns in a row after which the gate goes over to safe mode.
const OVERRUNS_MAX: u32 = 16;
/// Longest decision shown in a response header \[bytes\].
const SHOWN_BYTES_MAX: usize = 4 * 1024;

static OVERRUNS: AtomicU32 = AtomicU32::new(0);

thread_local! {
    static SCRATCH: RefCell<(Vec<PodView>, Scratch)> = RefCell::default();
    static HITS: RefCell<Hits> = RefCell::default();
}

/// Where a request goes.
pub(super) struct Choice {
    pub(super) pod: Arc<Pod>,
    pub(super) leave: Leave,
    pub(super) prompt: Tokens,
    pub(super) hit: Tokens,
}

/// A decision as `/explain` shows it.
struct Shown {
    unix_ms: u64,
    attempt: u32,
    decision: Decision,
}

impl ExplainSource for Shown {
    fn write_json(&self, out: &mut String) {
        let decision = serde_json::to_string(&self.decision).unwrap_or_else(|_| "null".to_owned());
        let (unix_ms, attempt) = (self.unix_ms, self.attempt);
        // Writing to a string cannot fail.
        write!(out, "{{\"unix_ms\":{unix_ms},\"attempt\":{attempt},\"decision\":{decision}}}").ok();
    }
}

impl Exchange {
    /// Chooses among the pods that were not tried.
    pub(super) fn choose(&mut self, facts: &Facts, tried: &[PodId]) -> Result<Choice, Fault> {
        let started = now();
        let fleet = self.gate.table.fleet();
        let mut hits = HITS.take();
        self.gate.index.lookup_into(facts.prompt.as_ref().unwrap_or(&Fingerprint::default()), &mut hits);
        let prompt = if facts.prompt.is_some() { hits.prompt_tokens } else { Tokens(facts.body.len() as u64 / 4) };
        let request = Request {
            max_tokens: facts.max_tokens,
            generates: facts.api.is_some_and(crate::api::Api::generates),
            pinned: facts.pinned,
            excluded: tried,
            ..Request::new(&facts.model, prompt)
        };
        let is_shown = self.is_explained();
        let detail = if is_shown { Detail::Rows } else { Detail::Off };
        let rank = self.asked_rank();
        let decision = plan(&self.gate, &fleet, &request, &hits, rank, &mut self.rng, detail);
        let ended = now();
        self.gate.metrics.stage(Stage::Plan, ended.since(started));
        self.overran(ended.since(started));
        self.note.plan_us = Some(ended.0 - started.0);
        self.note.mode = Some(decision.mode.as_str());
        self.gate.metrics.plans.inc(decision.mode.as_str());
        let choice = choice(&fleet, &decision, &hits, prompt);
        HITS.set(hits);
        if is_shown {
            self.shown = shown(&decision);
        }
        let source = Shown { unix_ms: crate::runtime::unix_ms(), attempt: self.note.attempts + 1, decision };
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

fn choice(fleet: &Fleet, decision: &Decision, hits: &Hits, prompt: Tokens) -> Result<Choice, Fault> {
    let pod = decision
        .chosen
        .and_then(|id| fleet.find(id))
        .ok_or_else(|| Fault::NoPod(decision.nobody.map_or("no_pods", crate::scheduling::Nobody::as_str)))?;
    let leave = if matches!(decision.mode, Mode::Normal) { Leave::Granted } else { Leave::Forced };
    Ok(Choice { pod: Arc::clone(pod), leave, prompt, hit: hits.depth(pod.id) })
}

fn plan(
    gate: &Gate,
    fleet: &Fleet,
    request: &Request<'_>,
    hits: &Hits,
    rank: Option<u32>,
    rng: &mut Rng,
    detail: Detail,
) -> Decision {
    SCRATCH.with_borrow_mut(|(views, scratch)| {
        let now = now();
        let view = |pod: &Arc<Pod>| PodView::of(pod, request.model, hits.depth(pod.id), now);
        views.clear();
        if rank.is_some() {
            views.extend(candidates(fleet, request.model).filter(|pod| pod.spec.rank == rank).map(view));
        }
        if views.is_empty() {
            views.extend(candidates(fleet, request.model).map(view));
        }
        if !gate.safe_mode.load(Relaxed) {
            let planned = catch_unwind(AssertUnwindSafe(|| {
                gate.at(Phase::Plan);
                let cx = Context { now, request, pods: views, ejected_share_max: fleet.ejected_share_max };
                decide(&gate.profile(), &cx, rng, detail, scratch)
            }));
            if let Ok(decision) = planned {
                return decision;
            }
            gate.metrics.panics.inc("plan");
            enter_safe_mode(gate, "planner_panicked");
            *scratch = Scratch::default();
        }
        safe_mode(views, request, rng)
    })
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
