//! A decision as `/explain` shows it: what it was made of is kept, and it is made again when somebody asks, then with reasons.
//!
//! The same views, request, time and seed give the same decision, so every recent request can be explained at the price of a
//! copy; and with another profile they tell what that one would have done. At most [`VIEWS_MAX`] pods are kept per decision.
use std::any::Any;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::{ModelName, Mono, PodId, Rng};
use crate::disagg::{self, Costs};
use crate::observe::ExplainSource;
use crate::scheduling::{
    Context, Decision, Desk, Detail, LeftOut, Means, Mode, PodView, Profile, Query, Request, Scratch, decide,
};

/// Pods kept of one decision: the chosen one, its alternatives, those with a hit, then those with the fewest requests.
const VIEWS_MAX: usize = 32;

/// A decision and what it was made of.
pub(super) struct Shown {
    unix_ms: u64,
    attempt: u32,
    decision: Decision,
    model: ModelName,
    request: Request<'static>,
    excluded: Box<[PodId]>,
    views: Box<[PodView]>,
    now: Mono,
    ejected_share_max: f64,
    means: Option<Means>,
    left_out: LeftOut,
    rng: Rng,
    profile: Arc<Profile>,
    split: Option<Split>,
}

/// One pod or two, and why.
#[derive(Clone, Debug, serde::Serialize)]
pub(super) struct Split {
    chosen: &'static str,
    reason: &'static str,
    /// On the best pod alone \[seconds of the ranking cost\].
    local_s: Option<f64>,
    /// On the best pair \[seconds of the ranking cost\].
    remote_s: Option<f64>,
    prefill: Option<String>,
    decode: Option<String>,
}

impl Split {
    /// What was weighed and chosen; `pair` is the prefill pod and the decode pod, if there was one.
    pub(super) fn new(
        costs: Option<&Costs>,
        choice: disagg::Choice,
        reason: disagg::Reason,
        pair: Option<(PodId, PodId)>,
    ) -> Self {
        let finite = |seconds: f64| seconds.is_finite().then_some(seconds);
        Self {
            chosen: if choice == disagg::Choice::Remote { "remote" } else { "local" },
            reason: reason.as_str(),
            local_s: costs.and_then(|costs| finite(costs.local_s())),
            remote_s: costs.and_then(|costs| finite(costs.remote_s())),
            prefill: pair.map(|pair| pair.0.to_string()),
            decode: pair.map(|pair| pair.1.to_string()),
        }
    }
}

impl Shown {
    /// Keeps a decision. `rng` is the generator as it was before.
    pub(super) fn keep(
        (unix_ms, attempt): (u64, u32),
        query: &Query<'_>,
        desk: &Desk,
        rng: Rng,
        profile: Arc<Profile>,
        decision: Decision,
    ) -> Self {
        let cx = desk.context(query);
        Self {
            unix_ms,
            attempt,
            model: query.request.model.into(),
            request: Request { model: "", excluded: &[], ..*query.request },
            excluded: query.request.excluded.into(),
            views: kept(cx.pods, &decision),
            now: cx.now,
            ejected_share_max: cx.ejected_share_max,
            means: cx.means,
            left_out: cx.left_out,
            rng,
            profile,
            decision,
            split: None,
        }
    }

    /// The same with what was weighed between one pod and two.
    pub(super) fn with(self, split: Option<Split>) -> Self {
        Self { split, ..self }
    }

    /// The decision with its reasons, made again.
    fn again(&self, profile: &Profile) -> Decision {
        let request = Request { model: &self.model, excluded: &self.excluded, ..self.request };
        let cx = Context {
            now: self.now,
            request: &request,
            pods: &self.views,
            ejected_share_max: self.ejected_share_max,
            means: self.means,
            left_out: self.left_out,
        };
        decide(profile, &cx, &mut self.rng.clone(), Detail::Rows, &mut Scratch::default())
    }

    /// What another profile would have chosen, as JSON.
    pub(super) fn by(&self, policy: &str, profile: &Profile) -> String {
        let (decision, chosen) = (self.again(profile), self.decision.chosen);
        serde_json::json!({
            "policy": policy,
            "would_choose": decision.chosen.map(|pod| pod.to_string()),
            "chosen": chosen.map(|pod| pod.to_string()),
            "decision": decision,
        })
        .to_string()
    }
}

impl ExplainSource for Shown {
    fn write_json(&self, out: &mut String) {
        let is_plain = self.decision.rows.is_empty() && self.decision.mode != Mode::Safe;
        let rows = if is_plain { self.again(&self.profile).rows } else { self.decision.rows.clone() };
        let decision = Decision { rows, ..self.decision.clone() };
        let decision = serde_json::to_string(&decision).unwrap_or_else(|_| "null".to_owned());
        let (unix_ms, attempt, prompt) = (self.unix_ms, self.attempt, self.request.prompt_tokens.0);
        let split = self.split.as_ref().and_then(|split| serde_json::to_string(split).ok());
        let split = split.map(|split| format!(",\"split\":{split}")).unwrap_or_default();
        // Writing to a string cannot fail.
        write!(
            out,
            "{{\"unix_ms\":{unix_ms},\"attempt\":{attempt},\"prompt_tokens\":{prompt},\"decision\":{decision}{split}}}"
        )
        .ok();
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

fn kept(pods: &[PodView], decision: &Decision) -> Box<[PodView]> {
    if pods.len() <= VIEWS_MAX {
        return pods.into();
    }
    let mut order: Vec<&PodView> = pods.iter().collect();
    let is_first =
        |pod: &PodView| Some(pod.id) == decision.chosen || decision.alternatives.iter().any(|id| id == pod.id);
    order.sort_by_key(|pod| (!is_first(pod), std::cmp::Reverse(pod.hit), pod.load.requests, pod.id));
    let mut views: Vec<PodView> = order.into_iter().take(VIEWS_MAX).copied().collect();
    views.sort_by_key(|pod| pod.id);
    views.into()
}
