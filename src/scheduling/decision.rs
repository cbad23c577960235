//! What a decision returns: the pod, the next best ones, and the reasons.
//!
//! Everything is plain data and serialises for `/explain`. Rows are bounded and made only when asked for. No text of the
//! request can get in here: names of plug-ins, pod ids and numbers only.
use serde::Serialize;

use super::plugin::Verdict;
use crate::base::PodId;

/// Most rows of one decision, the chosen pod's included.
pub const ROWS_MAX: usize = 16;
/// Most alternatives kept in order.
pub const ALTERNATIVES_MAX: usize = 7;

/// Whether to write down the reasons per pod. Off on the data path unless explain is asked for: rows allocate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Detail {
    /// Only the choice.
    #[default]
    Off,
    /// Rows as well.
    Rows,
}

/// How the choice was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// By the profile.
    Normal,
    /// The pod was given by the request (response id, trusted rank).
    Pinned,
    /// By the profile, but most pods are ejected, so some of the ejected were let back in.
    Panic,
    /// Least in flight, nothing else.
    Safe,
}

impl Mode {
    /// Its name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Pinned => "pinned",
            Self::Panic => "panic",
            Self::Safe => "safe",
        }
    }
}

/// Why there is no pod. Closed list; the text is what `x-tidegate-reason` and metrics carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Nobody {
    /// The fleet is empty.
    NoPods,
    /// No pod serves the model.
    ModelUnknown,
    /// The pods that serve it may not do this step (only prefill pods, or none).
    NoRole,
    /// All pods that could get nothing new: asleep, drained, not ready or terminating.
    AllShut,
    /// All pods that could are ejected or already have their one probe.
    AllEjected,
    /// All pods that could were already tried for this request.
    AllTried,
    /// Another filter of the profile dropped the last one; the rows say which.
    Filtered,
}

impl Nobody {
    /// Every reason.
    pub const ALL: [Self; 7] = [
        Self::NoPods,
        Self::ModelUnknown,
        Self::NoRole,
        Self::AllShut,
        Self::AllEjected,
        Self::AllTried,
        Self::Filtered,
    ];

    /// Its name in `x-tidegate-reason`, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoPods => "no_pods",
            Self::ModelUnknown => "model_unknown",
            Self::NoRole => "no_role",
            Self::AllShut => "all_shut",
            Self::AllEjected => "all_ejected",
            Self::AllTried => "all_tried",
            Self::Filtered => "filtered",
        }
    }
}

/// The next best pods after the chosen one, best first. Inline: making a decision does not allocate.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Alternatives {
    pods: [Option<Alternative>; ALTERNATIVES_MAX],
}

/// One of the next best pods.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Alternative {
    /// Which.
    pub pod: PodId,
    /// For how long one would rather wait for the chosen pod \[seconds\]; `None` if the profile's costs are no times.
    pub worse_s: Option<f64>,
}

impl Alternatives {
    /// Those of `pods` that fit.
    pub fn new(pods: impl IntoIterator<Item = Alternative>) -> Self {
        let mut made = Self::default();
        for (slot, pod) in made.pods.iter_mut().zip(pods) {
            *slot = Some(pod);
        }
        made
    }

    /// All, best first.
    pub fn iter(&self) -> impl Iterator<Item = PodId> + '_ {
        self.all().map(|one| one.pod)
    }

    /// All with what they are worse by, best first.
    pub fn all(&self) -> impl Iterator<Item = Alternative> + '_ {
        self.pods.iter().copied().flatten()
    }
}

impl Serialize for Alternatives {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter().map(|pod| pod.to_string()))
    }
}

/// One filter's word in a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FilterCell {
    /// Name of the filter.
    pub filter: &'static str,
    /// What it said.
    pub verdict: Verdict,
}

/// One scorer's cost in a row.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ScoreCell {
    /// Name of the scorer.
    pub scorer: &'static str,
    /// What it said, in its own unit; `None`: unknown.
    pub cost: Option<f64>,
    /// What went into the total: the cost, or the mean of the others where unknown, times the weight.
    pub counted: f64,
    /// What the cost is made of, by name, in its unit; empty for a cost that is one thing.
    #[serde(serialize_with = "as_map", skip_serializing_if = "Vec::is_empty")]
    pub terms: Vec<(&'static str, f64)>,
}

/// What the pod itself said last, in a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ReadingCell {
    /// Age in milliseconds.
    pub age_ms: u64,
    /// Requests running; `None`: it does not tell.
    pub running: Option<u32>,
    /// Requests waiting; `None`: it does not tell.
    pub waiting: Option<u32>,
    /// Share of its KV cache in use; `None`: it does not tell.
    pub kv_used: Option<f64>,
    /// Requests of others among these, as much as the reading is still worth.
    pub foreign: f64,
}

/// Why one pod was chosen or not.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which pod.
    #[serde(serialize_with = "as_text")]
    pub pod: PodId,
    /// Prompt tokens believed to be cached there.
    pub hit_tokens: u64,
    /// Of these, still being computed.
    pub coming_tokens: u64,
    /// Prompt tokens beyond those that other gates are likely to have sent there.
    pub guessed_tokens: u64,
    /// Requests of ours in flight there.
    pub requests: u32,
    /// Of these, past their prefill.
    pub decoding: u32,
    /// Our uncached tokens waiting there.
    pub queued_tokens: u64,
    /// Predicted time until those are done \[seconds\].
    pub wait_s: f64,
    /// KV that we occupy there \[tokens\].
    pub pinned_tokens: u64,
    /// KV capacity \[tokens\]; `None`: not told.
    pub capacity_tokens: Option<u64>,
    /// Time of an engine step there, as constants `a` to `e` \[seconds\].
    #[serde(serialize_with = "as_map")]
    pub step: Vec<(&'static str, f64)>,
    /// What the pod said last; `None` before its first reading.
    pub reading: Option<ReadingCell>,
    /// Verdicts, in the order of the filters; those after the first drop did not see the pod.
    pub filters: Vec<FilterCell>,
    /// Costs, in the order of the scorers; empty for a dropped pod.
    pub scores: Vec<ScoreCell>,
    /// Sum of what was counted; `None` for a dropped pod.
    pub total: Option<f64>,
}

/// The outcome for one request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Decision {
    /// Where it goes.
    #[serde(serialize_with = "maybe_as_text")]
    pub chosen: Option<PodId>,
    /// Where else it could go, best first. A retry should rather decide again with the pod excluded, on the newest state.
    pub alternatives: Alternatives,
    /// How it was chosen.
    pub mode: Mode,
    /// Why there is none; set exactly when `chosen` is `None`.
    pub nobody: Option<Nobody>,
    /// How many pods were looked at.
    pub considered: u32,
    /// How many were left after the filters.
    pub eligible: u32,
    /// Whether a filter ruled pods out for what is asked ([`super::plugin::Filter::is_lasting`]): no others than those named here are
    /// known to be right, now or later.
    #[serde(skip)]
    pub is_restricted: bool,
    /// Seed of every random draw in it: the same input with this seed decides the same.
    pub seed: u64,
    /// Up to [`ROWS_MAX`] pods: the chosen one, then by cost, then the dropped. Empty without detail.
    pub rows: Vec<Row>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn as_text<S: serde::Serializer>(pod: &PodId, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(pod)
}

#[expect(clippy::ref_option, reason = "the signature serde asks for")]
#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn maybe_as_text<S: serde::Serializer>(pod: &Option<PodId>, serializer: S) -> Result<S::Ok, S::Error> {
    match pod {
        Some(pod) => serializer.collect_str(pod),
        None => serializer.serialize_none(),
    }
}

fn as_map<S: serde::Serializer>(terms: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(terms.iter().copied())
}
