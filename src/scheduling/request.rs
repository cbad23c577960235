//! The facts of one request that a decision may use. No text, no headers: numbers and names only.
use super::view::PodView;
use crate::base::{Mono, PodId, Tokens};

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

/// Facts of one request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Model or adapter, after aliases and rewrites. Empty if the client named none.
    pub model: &'a str,
    /// Which part is to be placed.
    pub step: Step,
    /// Length of the prompt \[tokens\], an estimate.
    pub prompt_tokens: Tokens,
    /// The client's bound on the answer \[tokens\]; `None` if it set none.
    pub max_tokens: Option<Tokens>,
    /// Whether the API generates tokens. False for embeddings, scoring, tokenizing: nothing to decode.
    pub generates: bool,
    /// What a second before the first token is worth, against one after it: 5 for a tight time to first token, 1 for
    /// throughput. `None`: the scorer's own setting. Follows class and SLO.
    pub urgency: Option<f64>,
    /// The pod that must have it if it is there: it made the response the client refers to, or a trusted caller chose its
    /// rank. If it is gone the request goes on without.
    pub pinned: Option<PodId>,
    /// Pods already tried for this request; never chosen again.
    pub excluded: &'a [PodId],
}

impl<'a> Request<'a> {
    /// A plain generating request of `prompt_tokens` for `model`; set the rest by struct update.
    pub const fn new(model: &'a str, prompt_tokens: Tokens) -> Self {
        Self {
            model,
            step: Step::Whole,
            prompt_tokens,
            max_tokens: None,
            generates: true,
            urgency: None,
            pinned: None,
            excluded: &[],
        }
    }
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
}
