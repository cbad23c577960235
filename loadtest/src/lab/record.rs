//! What happened to one request, and what the fleet looked like from second to second. Filled by the world, read by reports.
//! Times are virtual microseconds.
use std::sync::Arc;

use super::script::Class;

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum End {
    /// The horizon came first.
    #[default]
    Unfinished,
    /// With all its tokens.
    Good,
    /// Its pod went away after the first token.
    Broken,
    /// No pod took it: too large for any, or none left to try; or the queue refused it.
    Refused,
}

/// One request.
#[derive(Clone, Debug, Default)]
pub(crate) struct Record {
    pub(crate) arrived: u64,
    /// Dispatched for the last time.
    pub(crate) sent: u64,
    pub(crate) first: Option<u64>,
    pub(crate) ended: u64,
    pub(crate) end: End,
    pub(crate) prompt_tokens: u64,
    pub(crate) output_tokens: u64,
    /// Tokens of the prompt that the engine did not have to compute.
    pub(crate) cached: u64,
    /// Tokens of the prompt that the gate believed to be cached.
    pub(crate) believed: u64,
    pub(crate) preempted: u32,
    /// How urgent it was.
    pub(crate) class: Class,
    /// Whose it was.
    pub(crate) tenant: u32,
    /// Did it come without the gate?
    pub(crate) is_foreign: bool,
    /// Pod that served it.
    pub(crate) pod: u32,
    /// Another pod did the prefill.
    pub(crate) is_remote: bool,
    /// When it had answered.
    pub(crate) prefilled: Option<u64>,
    /// Blocks of its prompt, as oracles look at them.
    pub(crate) blocks: Option<Arc<[u64]>>,
    /// Blocks that its answer adds, if it is sent back as it was generated.
    pub(crate) after: Option<Arc<[u64]>>,
    /// Blocks of all pods held by running requests when it arrived.
    pub(crate) pinned: u64,
}

impl Record {
    /// Seconds to the first token.
    pub(crate) fn ttft_s(&self) -> Option<f64> {
        Some(self.first?.saturating_sub(self.arrived) as f64 / 1e6)
    }

    /// Seconds to the end.
    pub(crate) fn e2e_s(&self) -> Option<f64> {
        (self.end == End::Good).then(|| self.ended.saturating_sub(self.arrived) as f64 / 1e6)
    }

    /// Mean seconds between tokens; `None` for answers of one token.
    pub(crate) fn itl_s(&self) -> Option<f64> {
        let gaps = self.output_tokens.checked_sub(1).filter(|gaps| *gaps > 0)?;
        (self.end == End::Good).then(|| self.ended.saturating_sub(self.first.unwrap_or(0)) as f64 / 1e6 / gaps as f64)
    }
}

/// One tenant at one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    /// Cost of what has ended so far \[µs of a pod\].
    pub(crate) served_us: u64,
    /// Requests that wait at gates.
    pub(crate) waiting: u32,
}

/// The fleet at one instant.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sample {
    /// Requests in the fleet.
    pub(crate) requests: u32,
    /// Most requests on one rank.
    pub(crate) most: u32,
    /// Requests waiting in engines.
    pub(crate) waiting: u32,
    /// Share of KV held by running requests.
    pub(crate) kv_used: f64,
    /// Of each tenant, where there are several.
    pub(crate) shares: Vec<Share>,
}

/// Counters of the engines at the end of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) preemptions: u64,
    pub(crate) steps: u64,
    pub(crate) lookup_tokens: u64,
    pub(crate) hit_tokens: u64,
    /// KV blocks of all ranks.
    pub(crate) blocks: u64,
    /// Requests that the gates' books still show.
    pub(crate) in_flight: u32,
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    /// One per second of virtual time.
    pub(crate) samples: Vec<Sample>,
    pub(crate) totals: Totals,
    /// Gaps between tokens, by bin of [`gap_bin`].
    pub(crate) gaps: Vec<u64>,
    pub(crate) ended: u64,
}

/// Bins per doubling of a gap between tokens.
const BINS_PER_DOUBLING: f64 = 16.0;

/// Bin of a gap \[µs\].
pub(crate) fn gap_bin(gap_us: u64) -> usize {
    ((gap_us.max(1) as f64).log2() * BINS_PER_DOUBLING) as usize
}

/// Middle of a bin \[s\].
pub(crate) fn gap_of_bin(bin: usize) -> f64 {
    ((bin as f64 + 0.5) / BINS_PER_DOUBLING).exp2() / 1e6
}

impl Log {
    /// Counts a gap between tokens.
    pub(crate) fn gap(&mut self, gap_us: u64) {
        let bin = gap_bin(gap_us);
        if self.gaps.len() <= bin {
            self.gaps.resize(bin + 1, 0);
        }
        if let Some(count) = self.gaps.get_mut(bin) {
            *count += 1;
        }
    }
}
