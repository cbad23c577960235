//! The facts of one request that a decision may use. No text, no headers: numbers, names and hashes only.
use super::view::PodView;
use crate::base::{Mono, PodId, Tokens};
use crate::pods::{Role, StepTime};

/// Which part of a request the pod is asked to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Step {
    /// Prefill and decode on one pod.
    #[default]
    Whole,
    /// Only the prefill; another pod decodes.
    Prefill,
    /// Only the decode; the KV blocks come from a prefill pod.
    Decode,
}

/// Time to bring KV from one pod to another.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Handover {
    /// Fixed part \[seconds\].
    pub setup_s: f64,
    /// Part per token that is not there \[seconds\].
    pub token_s: f64,
    /// Time until it begins \[seconds\].
    pub lead_s: f64,
}

/// Facts of one request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Model or adapter, after aliases and rewrites. Empty if the client named none.
    pub model: &'a str,
    /// Which part is to be placed.
    pub step: Step,
    /// Decode pods may be asked for a prefill too.
    pub may_pull: bool,
    /// Length of the prompt \[tokens\], an estimate.
    pub prompt_tokens: Tokens,
    /// The client's bound on the answer \[tokens\]; `None` if it set none.
    pub max_tokens: Option<Tokens>,
    /// Length of an answer that is expected \[tokens\]. Source: mean of earlier answers of the model. Unknown: the scorer's
    /// own setting. Bounded by `max_tokens` where it is used.
    pub expected_tokens: Option<f64>,
    /// Whether the API generates tokens. False for embeddings, scoring, tokenizing: nothing to decode.
    pub generates: bool,
    /// Whether its first token will be seen when it comes. Unknown is true.
    pub is_stream: bool,
    /// Answers asked for per prompt (`n`). Unknown is 1.
    pub answers: u32,
    /// The engine computes the whole prompt, whatever is cached (`prompt_logprobs`). Unknown is false.
    pub skips_cache: bool,
    /// What a second before the first token is worth, against one after it: 5 for a tight time to first token, 1 for
    /// throughput. `None`: the scorer's own setting. Follows class and SLO.
    pub urgency: Option<f64>,
    /// Whether it goes before all others that wait at the gate.
    pub is_first: bool,
    /// Time to first token that is promised \[seconds\]. Source: the model's SLO. `None`: none is.
    pub ttft_s: Option<f64>,
    /// Hash of the adapter (LoRA) that it needs; `None` for a base model, or if unknown.
    pub adapter: Option<u64>,
    /// Hash of the grammar (schema, regex, tool choice) that it needs compiled; `None`: none, or unknown.
    pub grammar: Option<u64>,
    /// Images, videos and audio clips that must be encoded. Unknown is 0.
    pub media: u32,
    /// Hash of the client's session. Source: a header or cookie that is configured; `None` if it sent none.
    pub session: Option<u64>,
    /// Hash of the beginning of the prompt (its first 256 canonical bytes). `None` for a shorter prompt, or none.
    pub head: Option<u64>,
    /// The pod that must have it if it is there: it made the response the client refers to, or a trusted caller chose its
    /// rank. If it is gone the request goes on without.
    pub pinned: Option<PodId>,
    /// For [`Step::Decode`]: what it takes to bring the prompt's KV there, in place of computing it. Source: learnt per pair of
    /// pods, else a published fit.
    pub handover: Handover,
    /// Pods already tried for this request; never chosen again.
    pub excluded: &'a [PodId],
}

impl<'a> Request<'a> {
    /// A plain generating request of `prompt_tokens` for `model`; set the rest by struct update.
    pub const fn new(model: &'a str, prompt_tokens: Tokens) -> Self {
        Self {
            model,
            step: Step::Whole,
            may_pull: false,
            prompt_tokens,
            max_tokens: None,
            expected_tokens: None,
            generates: true,
            is_stream: true,
            answers: 1,
            skips_cache: false,
            urgency: None,
            is_first: false,
            ttft_s: None,
            adapter: None,
            grammar: None,
            media: 0,
            session: None,
            head: None,
            pinned: None,
            handover: Handover { setup_s: 0.0, token_s: 0.0, lead_s: 0.0 },
            excluded: &[],
        }
    }

    /// Whether a pod of this role may do the step.
    #[inline]
    pub fn may_use(&self, role: Role) -> bool {
        match (self.step, role) {
            (_, Role::Both) | (Step::Prefill, Role::Prefill) | (Step::Whole | Step::Decode, Role::Decode) => true,
            (Step::Prefill, Role::Decode) => self.may_pull,
            (Step::Whole | Step::Decode, Role::Prefill) => false,
        }
    }

    /// Length of each answer \[tokens\]: what is expected, else `unknown`, within the client's bound; 0 if none is generated.
    pub fn output(&self, unknown: f64) -> f64 {
        let expected = self.expected_tokens.filter(|tokens| tokens.is_finite()).unwrap_or(unknown).max(0.0);
        match (self.generates && self.step != Step::Prefill, self.max_tokens) {
            (false, _) => 0.0,
            (true, Some(most)) => expected.min(most.0 as f64),
            (true, None) => expected,
        }
    }
}

/// Calm pods that could serve the request but are not among the pods of the context, because others are better
/// ([`super::survey`]): what rules about the whole fleet must count with.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LeftOut {
    /// How many.
    pub pods: u32,
    /// What is in flight on them \[requests\].
    pub requests: f64,
}

/// What the serving pods are like in the mean.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Means {
    /// Share of their KV cache that is pinned, 0 to 1; 0 while no capacity is known.
    pub kv_share: f64,
    /// Time of an engine step.
    pub step: StepTime,
}

/// Everything one decision looks at.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// The instant of the decision.
    pub now: Mono,
    /// The request to place.
    pub request: &'a Request<'a>,
    /// All pods that may be considered, each id at most once, in any order: the order has no influence.
    pub pods: &'a [PodView],
    /// Share of the serving pods (0 to 1) that may be out at once; from the pods' health settings.
    pub ejected_share_max: f64,
    /// Means over the serving pods. `None`: to be taken over `pods`.
    pub means: Option<Means>,
    /// Who else there is.
    pub left_out: LeftOut,
}

impl<'a> Context<'a> {
    /// A decision about all of a fleet's pods, with the usual rules.
    pub const fn new(now: Mono, request: &'a Request<'a>, pods: &'a [PodView]) -> Self {
        let left_out = LeftOut { pods: 0, requests: 0.0 };
        Self { now, request, pods, ejected_share_max: 0.5, means: None, left_out }
    }
}
