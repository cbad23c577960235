//! A decision as `/explain` shows it: what it was made of is kept, and it is made again when somebody asks, then with reasons.
//!
//! The same views, request, time and seed give the same decision, so every recent request can be explained at the price of a
//! copy; and with another profile they tell what that one would have done. At most [`VIEWS_MAX`] pods are kept per decision.
use std::any::Any;
use std::fmt::Write as _;
use std::sync::Arc;

use crate::base::{ModelName, Mono, PodId, Rng, Tokens};
use crate::disagg::{self, Costs, Plan};
use crate::observe::{Brief, ExplainSource};
use crate::scheduling::marginal::Terms;
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
    /// What both are made of.
    local: Option<Parts>,
    remote: Option<Parts>,
    #[serde(serialize_with = "as_text")]
    prefill: Option<PodId>,
    #[serde(serialize_with = "as_text")]
    decode: Option<PodId>,
}

/// What a way costs by its parts \[seconds of the ranking cost\].
#[derive(Clone, Copy, Debug, serde::Serialize)]
#[expect(clippy::struct_field_names, reason = "names in JSON carry their unit")]
struct Parts {
    /// Before the prefill begins, and before the decode does.
    wait_s: f64,
    /// The prefill.
    prefill_s: f64,
    /// Bringing the KV blocks to the pod that decodes.
    transfer_s: f64,
    /// What decoding loses to it, by what that is worth now.
    stall_s: f64,
    /// The decode, and what it costs others.
    decode_s: f64,
}

impl Split {
    /// What was weighed and chosen.
    pub(super) fn new(plan: &Plan<Shown>) -> Self {
        let finite = |seconds: f64| seconds.is_finite().then_some(seconds);
        let (costs, pair) = (plan.costs.as_ref(), plan.pair.as_ref());
        Self {
            chosen: if plan.choice == disagg::Choice::Remote { "remote" } else { "local" },
            reason: plan.reason.as_str(),
            local_s: costs.and_then(|costs| finite(costs.local_s())),
            remote_s: costs.and_then(|costs| finite(costs.remote_s())),
            local: plan.local.terms.as_ref().zip(costs).map(|(terms, costs)| Parts::local(terms, costs)),
            remote: pair.zip(costs).and_then(|(pair, costs)| {
                Some(Parts::remote(pair.prefill.terms.as_ref()?, pair.decode.terms.as_ref()?, costs))
            }),
            prefill: pair.map(|pair| pair.prefiller),
            decode: pair.map(|pair| pair.decoder),
        }
    }
}

impl Parts {
    fn local(terms: &Terms, costs: &Costs) -> Self {
        Self {
            wait_s: terms.wait + terms.unseen + terms.loads,
            prefill_s: terms.prefill,
            transfer_s: 0.0,
            stall_s: costs.weight * terms.stall,
            decode_s: terms.decode + terms.slow,
        }
    }

    fn remote(prefill: &Terms, decode: &Terms, costs: &Costs) -> Self {
        let wait_s = |terms: &Terms| terms.wait + terms.unseen + terms.loads;
        let wait_s = wait_s(prefill) + wait_s(decode);
        Self {
            wait_s,
            prefill_s: prefill.prefill,
            // What is left of the time to the first token: bringing the blocks, and a first contact of the two pods.
            transfer_s: (costs.remote.first_s - wait_s - prefill.prefill).max(0.0),
            stall_s: costs.weight * costs.remote.stall_s,
            decode_s: costs.remote.rest_s,
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

    fn brief(&self) -> Option<Brief> {
        let decision = &self.decision;
        let chosen = decision.chosen.and_then(|id| self.views.iter().find(|pod| pod.id == id));
        let is_remote = self.split.as_ref().filter(|split| split.chosen == "remote");
        let rows = if decision.mode == Mode::Safe { Vec::new() } else { self.again(&self.profile).rows };
        Some(Brief {
            unix_ms: self.unix_ms,
            attempt: self.attempt,
            model: Arc::clone(&self.model),
            prompt: self.request.prompt_tokens,
            pod: is_remote.and_then(|split| split.decode).or(decision.chosen),
            prefill_pod: is_remote.and_then(|split| split.prefill),
            hit: chosen.map_or(Tokens(0), |pod| pod.hit),
            cost: rows.iter().find(|row| Some(row.pod) == decision.chosen).and_then(|row| row.total),
            mode: decision.mode.as_str(),
        })
    }

    fn as_any(&self) -> Option<&dyn Any> {
        Some(self)
    }
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn as_text<S: serde::Serializer>(pod: &Option<PodId>, serializer: S) -> Result<S::Ok, S::Error> {
    match pod {
        Some(pod) => serializer.collect_str(pod),
        None => serializer.serialize_none(),
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
