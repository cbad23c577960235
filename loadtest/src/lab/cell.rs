//! Cells: one workload on one fleet, as `conf/lab/*.yaml` lists them. Everything has a default but name and workload; unknown
//! fields are refused. Defaults of the engine are Qwen3-32B on two H100.
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use tidegate::base;
use tidegate::sim::engine::{EngineSettings, StepCost};

use super::inputs::Workload;
use super::record::{End, Record};
use super::script::Class;

/// A frozen list of cells.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Suite {
    /// Name in reports.
    #[serde(rename = "suite")]
    pub(crate) name: String,
    /// Policies that every report over it compares with, by name.
    #[serde(default)]
    pub(crate) baselines: Vec<String>,
    /// Further policies, by name, each a profile: a grid of settings, say. They are run besides those that were asked for.
    #[serde(default)]
    pub(crate) policies: BTreeMap<String, serde_json::Value>,
    /// Each cell is run at these multiples of its load, each a cell of its own; empty: as it is.
    #[serde(default)]
    pub(crate) loads: Vec<f64>,
    /// The cells.
    #[serde(default)]
    pub(crate) cells: Vec<Cell>,
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Cell {
    pub(crate) name: String,
    pub(crate) workload: Workload,
    #[serde(default)]
    pub(crate) fleet: Fleet,
    #[serde(default)]
    pub(crate) gate: Gates,
    /// What clients ask for.
    #[serde(default)]
    pub(crate) clients: Clients,
    /// What clients were promised: bounds of goodput.
    #[serde(default)]
    pub(crate) slo: Slo,
    /// By class: so many times the promised time to the first token; 0: nothing is promised.
    #[serde(default)]
    pub(crate) promises: Promises,
    /// The same runs judged by other promises too, by name.
    #[serde(default)]
    pub(crate) slos: BTreeMap<String, Slo>,
    /// A pod that restarts, if any.
    #[serde(default)]
    pub(crate) restart: Option<Restart>,
    /// The run is cut off after this much virtual time \[s\]; what has not ended then counts as unfinished.
    #[serde(default = "horizon")]
    pub(crate) horizon_s: f64,
}

const fn horizon() -> f64 {
    50_000.0
}

/// The engines.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Fleet {
    /// Endpoints.
    pub(crate) pods: u32,
    /// Data-parallel ranks behind each endpoint; all ranks of one step together.
    pub(crate) ranks: u32,
    /// KV capacity of a rank.
    pub(crate) kv_tokens: u64,
    /// Tokens per KV block.
    pub(crate) block_tokens: u32,
    /// Sequences that run at once.
    pub(crate) sequences_max: u32,
    /// Tokens computed per step.
    pub(crate) step_tokens_max: u32,
    /// Step time: `a` \[µs\].
    pub(crate) base_us: f64,
    /// `b` \[µs per prompt token\].
    pub(crate) prefill_token_us: f64,
    /// `c` \[µs per decoding sequence\].
    pub(crate) decode_us: f64,
    /// `d` \[µs per token of context\].
    pub(crate) context_token_us: f64,
    /// `e` \[µs per pair of new token and token before it\].
    pub(crate) attention_us: f64,
    /// Speed of the pods, in turn: `[1, 0.5]` makes every second one half as fast. Empty is 1 for all.
    pub(crate) speeds: Vec<f64>,
    /// Share of `kv_tokens` that the pods have, in turn. Empty is 1 for all.
    pub(crate) kv_shares: Vec<f64>,
    /// So many endpoints, the first of them, prefill only, and the others decode; 0: all do both.
    pub(crate) prefill_pods: u32,
    /// Fixed part of handing KV over to another pod \[ms\].
    pub(crate) handover_ms: f64,
    /// Part per token of it \[µs\]; handovers out of one pod follow each other.
    pub(crate) handover_token_us: f64,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            pods: 8,
            ranks: 1,
            kv_tokens: 307_328,
            block_tokens: 16,
            sequences_max: 256,
            step_tokens_max: 8_192,
            base_us: 16_000.0,
            prefill_token_us: 44.0,
            decode_us: 20.0,
            context_token_us: 0.076,
            attention_us: 0.002_1,
            speeds: Vec::new(),
            kv_shares: Vec::new(),
            prefill_pods: 0,
            handover_ms: 26.0,
            handover_token_us: 4.25,
        }
    }
}

/// Bounds that make a request a good one.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Slo {
    /// Part of the bound of the time to first token that is the same for all \[s\].
    pub(crate) ttft_s: f64,
    /// So many isolated prefills come on top.
    pub(crate) ttft_prefills: f64,
    /// Bound of a request's mean time between tokens \[s\].
    pub(crate) itl_s: f64,
}

impl Default for Slo {
    fn default() -> Self {
        Self { ttft_s: 2.0, ttft_prefills: 2.0, itl_s: 0.060 }
    }
}

/// What classes are promised, against each other.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Promises {
    pub(crate) interactive: f64,
    pub(crate) standard: f64,
    pub(crate) batch: f64,
}

impl Default for Promises {
    fn default() -> Self {
        Self { interactive: 1.0, standard: 1.0, batch: 1.0 }
    }
}

/// The gates.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Gates {
    /// How many, sharing nothing; each request comes to any of them.
    pub(crate) count: u32,
    /// Time between scrapes of a pod \[ms\]; 0: never.
    pub(crate) scrape_ms: u64,
    /// Scrapes stop after so many of each pod; 0: never.
    pub(crate) scrapes_max: u64,
    /// A reading arrives this long after it was taken \[ms\].
    pub(crate) scrape_delay_ms: u64,
}

impl Default for Gates {
    fn default() -> Self {
        Self { count: 1, scrape_ms: 250, scrapes_max: 0, scrape_delay_ms: 0 }
    }
}

/// What clients ask for.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Clients {
    /// Share of requests that are streamed; of the others the gate sees nothing before the whole answer.
    pub(crate) streamed: f64,
    /// Share of requests whose answer tells its token counts (`usage`).
    pub(crate) usage: f64,
    /// Whether usage tells the cached tokens too.
    pub(crate) cached_told: bool,
    /// Share of sessions that go to pods without the gate, each request to any pod. They are not part of the results.
    pub(crate) foreign: f64,
    /// Shares of sessions by tenant; empty: all are of one.
    pub(crate) tenants: Vec<f64>,
    /// Who is refused comes again when he was told to; else he goes on with what he would have asked next.
    pub(crate) obeys: bool,
}

impl Default for Clients {
    fn default() -> Self {
        Self { streamed: 1.0, usage: 1.0, cached_told: true, foreign: 0.0, tenants: Vec::new(), obeys: false }
    }
}

impl Clients {
    /// The tenant of a session, by a draw in 0 to 1.
    pub(crate) fn tenant(&self, draw: f64) -> u32 {
        let mut left = draw * self.tenants.iter().sum::<f64>();
        let at = self.tenants.iter().position(|share| {
            left -= share;
            left < 0.0
        });
        at.unwrap_or(0) as u32
    }
}

/// A pod that loses its cache and all it was doing.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restart {
    /// Which, from 0.
    pub(crate) pod: u32,
    /// When \[s\].
    pub(crate) at_s: f64,
}

impl Cell {
    /// What `slo` promises a client with such a prompt.
    pub(crate) fn promise(&self, slo: &Slo, class: Class, prompt_tokens: u64) -> base::Slo {
        let times = match class {
            Class::Interactive => self.promises.interactive,
            Class::Standard => self.promises.standard,
            Class::Batch => self.promises.batch,
        };
        let ttft_s = slo.ttft_s + slo.ttft_prefills * self.fleet.isolated_prefill_s(prompt_tokens);
        base::Slo { ttft_s: (times > 0.0).then_some(times * ttft_s), itl_s: Some(slo.itl_s) }
    }

    /// Did a request get what `slo` promises?
    pub(crate) fn is_good(&self, slo: &Slo, record: &Record) -> bool {
        let promise = self.promise(slo, record.class, record.prompt_tokens);
        let is_kept = |ttft_s| promise.missed(ttft_s, record.itl_s()) == (false, false);
        record.end == End::Good && record.ttft_s().is_some_and(is_kept)
    }
}

impl Fleet {
    /// Settings of the engines of endpoint `pod`.
    pub(crate) fn engine(&self, pod: u32) -> EngineSettings {
        let turn = |values: &[f64]| values.get(pod as usize % values.len().max(1)).copied().unwrap_or(1.0);
        let tokens = self.kv_tokens as f64 * turn(&self.kv_shares);
        EngineSettings {
            block_tokens: self.block_tokens,
            blocks: (tokens / f64::from(self.block_tokens.max(1))) as u32,
            sequences_max: self.sequences_max,
            step_tokens_max: self.step_tokens_max,
            queue_max: None,
            prefix_caching: true,
            cost: StepCost {
                base_us: self.base_us,
                prefill_token_us: self.prefill_token_us,
                decode_us: self.decode_us,
                context_token_us: self.context_token_us,
                attention_us: self.attention_us,
                speed: turn(&self.speeds),
            },
        }
    }

    /// Pod-seconds that a request takes if nothing is cached: its prefill, and its part of the steps of its answer.
    pub(crate) fn work_s(&self, prompt_tokens: u64, output_tokens: u64) -> f64 {
        let step_us = self.decode_us + self.context_token_us * prompt_tokens as f64;
        self.isolated_prefill_s(prompt_tokens) + step_us * output_tokens as f64 / 1e6
    }

    /// Seconds of a whole prefill on an idle pod of speed 1.
    pub(crate) fn isolated_prefill_s(&self, prompt_tokens: u64) -> f64 {
        let tokens = prompt_tokens as f64;
        let steps = (tokens / f64::from(self.step_tokens_max.max(1))).ceil();
        (self.base_us * steps + self.prefill_token_us * tokens + self.attention_us * tokens * tokens / 2.0) / 1e6
    }
}

impl Suite {
    /// The cells at these multiples of their load; as they are without any.
    pub(crate) fn at_loads(&self, loads: &[f64]) -> Vec<Cell> {
        if loads.is_empty() {
            return self.cells.clone();
        }
        let at = |cell: &Cell, load: f64| Cell {
            name: format!("{}@{load}", cell.name),
            workload: cell.workload.times(load),
            ..cell.clone()
        };
        self.cells.iter().flat_map(|cell| loads.iter().map(move |load| at(cell, *load))).collect()
    }

    /// Reads a file of cells.
    pub(crate) fn read(path: &Path) -> io::Result<Self> {
        let named = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| named(error.to_string()))?;
        let mut suite: Self = serde_yaml::from_str(&text).map_err(|error| named(error.to_string()))?;
        suite.cells = suite.at_loads(&suite.loads);
        let mut names: Vec<&str> = suite.cells.iter().map(|cell| cell.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair.first() == pair.get(1)) {
            return Err(named(format!("cell `{}` is listed twice; rename one", twice.concat())));
        }
        Ok(suite)
    }
}
