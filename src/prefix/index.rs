//! Index.
use crate::base::{Mono, PodId, Tokens};

use super::Fingerprint;

/// Bounds of the index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most memory the index may use, in bytes (its own estimate of live bytes).
    pub bytes_max: usize,
    /// Capacity assumed for a pod that has not told its own.
    pub pod_tokens: Tokens,
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes_max: 256 << 20, pod_tokens: Tokens(1 << 20) }
    }
}

/// How much of a prompt each pod is thought to hold, in tokens. Pods that hold nothing are not listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits {
    /// Pod and depth, by pod.
    pub depths: Vec<(PodId, Tokens)>,
    /// Estimated tokens of the whole prompt.
    pub prompt_tokens: Tokens,
}

impl Hits {
    /// Depth for one pod; 0 if it holds nothing.
    pub fn depth(&self, pod: PodId) -> Tokens {
        self.depths.iter().find(|(holder, _)| *holder == pod).map_or(Tokens(0), |(_, depth)| *depth)
    }
}

/// A prompt booked on a pod at dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// The pod.
    pub pod: PodId,
    /// What the pod was thought to hold before, in tokens.
    pub expected: Tokens,
    /// Which life of the pod's entry this belongs to.
    epoch: u64,
}

/// Size of the index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Distinct blocks.
    pub blocks: usize,
    /// Estimated live bytes.
    pub bytes: usize,
    /// Pods with entries.
    pub pods: usize,
    /// Entries evicted so far, in blocks.
    pub evicted_blocks: u64,
}

/// The index.
#[derive(Debug, Default)]
pub struct Index {}

impl Index {
    /// An empty index.
    pub fn new(_limits: Limits) -> Self {
        Self {}
    }
    /// Depth for every pod, and the estimate of the prompt's tokens.
    pub fn lookup(&self, _prompt: &Fingerprint) -> Hits {
        Hits::default()
    }
    /// Books the prompt on a pod at dispatch.
    pub fn claim(&self, _prompt: &Fingerprint, pod: PodId, _now: Mono) -> Claim {
        Claim { pod, expected: Tokens(0), epoch: 0 }
    }
    /// The pod has the prompt (first token seen).
    pub fn confirm(&self, _prompt: &Fingerprint, _claim: Claim, _now: Mono) {}
    /// The pod did not get it, or failed.
    pub fn withdraw(&self, _prompt: &Fingerprint, _claim: Claim) {}
    /// What the pod's usage said at the end.
    pub fn learn(&self, _prompt: &Fingerprint, _claim: Claim, _prompt_tokens: Tokens, _cached: Option<Tokens>) {}
    /// Forgets a pod (restarted, gone).
    pub fn wipe(&self, _pod: PodId) {}
    /// Sets what a pod can hold, in tokens, and its cache block size.
    pub fn set_capacity(&self, _pod: PodId, _capacity: Tokens, _block: Tokens) {}
    /// Size now.
    pub fn stats(&self) -> Stats {
        Stats::default()
    }
}
