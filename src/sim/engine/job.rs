//! What goes into the engine and what comes out: settings, jobs, events, figures.
//!
//! A prompt enters as block hashes plus the tokens of its unfinished last block, so a policy lab may build it from a trace
//! without making text. Token counts are u64, block counts u32.
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::cost::StepCost;

/// Constants of one engine. Names in brackets are vLLM's.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EngineSettings {
    /// Tokens per KV block (`block_size`).
    pub block_tokens: u32,
    /// KV blocks in all (`num_gpu_blocks`).
    pub blocks: u32,
    /// Sequences that may run at once (`max_num_seqs`).
    pub sequences_max: u32,
    /// Tokens computed per step (`max_num_batched_tokens`).
    pub step_tokens_max: u32,
    /// Requests that may wait (`max_num_queued_reqs`); `None` is no limit.
    pub queue_max: Option<u32>,
    /// Whether finished blocks can be used again (`enable_prefix_caching`).
    pub prefix_caching: bool,
    /// Time of a step.
    pub cost: StepCost,
}

impl Default for EngineSettings {
    /// An 8B model on one 80 GB GPU: 480,000 tokens of KV cache.
    fn default() -> Self {
        Self {
            block_tokens: 16,
            blocks: 30_000,
            sequences_max: 256,
            step_tokens_max: 8_192,
            queue_max: None,
            prefix_caching: true,
            cost: StepCost::default(),
        }
    }
}

/// A prompt as the engine sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompt {
    /// Its length.
    pub tokens: u64,
    /// Chained hashes of its full blocks. A hash identifies the block and all before it.
    pub blocks: Arc<[u64]>,
    /// Tokens after the last full block; fewer than a block.
    pub tail: Vec<u32>,
    /// Hash that the chain continues from: that of the last full block, or the root if there is none.
    pub tip: u64,
}

impl Prompt {
    /// Cuts tokens into blocks of `block_tokens` and chains their hashes from `root` (model, adapter, cache salt).
    pub fn of(tokens: &[u32], root: u64, block_tokens: u32) -> Self {
        let size = block_tokens.max(1) as usize;
        let mut tip = root;
        let chunks = tokens.chunks_exact(size);
        let tail = chunks.remainder().to_vec();
        let mut scratch = Vec::with_capacity(size * 4);
        let blocks: Vec<u64> = chunks
            .map(|chunk| {
                tip = chain(tip, chunk, &mut scratch);
                tip
            })
            .collect();
        Self { tokens: tokens.len() as u64, blocks: blocks.into(), tail, tip }
    }
}

/// Hash of a block: XXH3-64 of its token ids, seeded with the hash before it.
pub(super) fn chain(parent: u64, tokens: &[u32], scratch: &mut Vec<u8>) -> u64 {
    scratch.clear();
    scratch.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    xxh3_64_with_seed(scratch, parent)
}

/// One sequence to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Name given by the caller, unique among the jobs in the engine.
    pub id: u64,
    /// What it starts from.
    pub prompt: Prompt,
    /// Tokens it will generate; 0 ends it when its prompt is computed (embeddings).
    pub output_tokens: u64,
    /// Seed of its content (`content::token`), which decides the hashes of the blocks it generates.
    pub seed: u64,
}

/// Why the engine did not take a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The queue is full.
    Busy,
    /// Prompt and answer together exceed the whole KV cache.
    TooLarge,
}

/// What happened to a job at the end of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The job.
    pub job: u64,
    /// What happened.
    pub kind: EventKind,
}

/// Kinds of events. A job's events come in this order: any `Preempted`, `First`, `Token`…, `Done`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Token 0 was generated; `cached` tokens of the prompt came from the prefix cache.
    First {
        /// Tokens of the prompt that were not computed.
        cached: u64,
    },
    /// Token `index` (1 and up) was generated.
    Token {
        /// Its place in the answer.
        index: u64,
    },
    /// The job has generated all its tokens and left the engine.
    Done,
    /// Blocks ran out: the job went back to the queue and starts over, keeping the tokens it has generated.
    Preempted,
}

/// Figures of an engine: gauges of now and counters since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Sequences in the batch.
    pub running: u32,
    /// Sequences in the queue.
    pub waiting: u32,
    /// KV blocks in all.
    pub blocks: u32,
    /// Blocks held by running sequences. Blocks only kept for reuse are not counted, as in vLLM's `kv_cache_usage_perc`.
    pub blocks_used: u32,
    /// Steps begun.
    pub steps: u64,
    /// Prompt tokens looked up in the prefix cache.
    pub lookup_tokens: u64,
    /// Prompt tokens found there.
    pub hit_tokens: u64,
    /// Prompt tokens whose KV came from another engine.
    pub given_tokens: u64,
    /// Prompt tokens of jobs that reached their first token.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub generated_tokens: u64,
    /// Preemptions.
    pub preemptions: u64,
    /// Jobs refused because the queue was full.
    pub refusals: u64,
}

impl Stats {
    /// Share of the KV cache held by running sequences, 0 to 1.
    pub fn usage(&self) -> f64 {
        f64::from(self.blocks_used) / f64::from(self.blocks.max(1))
    }
}
