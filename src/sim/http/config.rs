//! Settings of a simulated pod. The defaults are a pod of model `sim` that answers at once, for tests.
use std::time::Duration;

use super::handover::Handover;
use crate::sim::engine::{EngineSettings, StepCost};

/// Role in disaggregated serving, as the pod was started. `Prefill` and `Decode` pods have a KV connector, so a stray
/// `kv_transfer_params.do_remote_prefill` kills them, as it kills vLLM 0.32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum SimRole {
    /// No connector.
    #[default]
    Both,
    /// KV producer.
    Prefill,
    /// KV consumer.
    Decode,
}

/// Which routes exist: a vLLM server has those its model supports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Serves {
    /// Chat, completions, responses, messages.
    #[default]
    Generate,
    /// Embeddings, pooling, score, rerank.
    Pooling,
}

/// How a pod is built and behaves.
#[derive(Clone, Debug)]
pub struct SimConfig {
    /// Names it serves; the first is the one in metrics.
    pub models: Vec<String>,
    /// LoRA adapters, listed in `/v1/models` with the first model as parent.
    pub adapters: Vec<String>,
    /// Data-parallel ranks behind the endpoint; each is an engine of its own.
    pub ranks: u32,
    /// Role.
    pub role: SimRole,
    /// Which routes exist.
    pub serves: Serves,
    /// How KV blocks are handed over between pods of roles other than `Both`.
    pub handover: Handover,
    /// Engine constants. Its `cost.speed` is set from `speed`.
    pub engine: EngineSettings,
    /// How many times faster than the modelled GPU; 0 answers at once, without any waiting.
    pub speed: f64,
    /// Idle time after an answer until the connection is closed (uvicorn's `timeout_keep_alive`: 5 s).
    pub keep_alive: Duration,
    /// Longest prompt plus answer, tokens.
    pub max_model_len: u64,
    /// Echo `x-request-id` (`--enable-request-id-headers`).
    pub request_id_headers: bool,
    /// Report `prompt_tokens_details` (`--enable-prompt-tokens-details`).
    pub prompt_tokens_details: bool,
    /// Offer `/inference/v1/generate` and render (`--enable-scale-out`).
    pub scale_out: bool,
    /// Token that `/v1` routes ask for (`--api-key`).
    pub api_key: Option<String>,
    /// Arrivals kept in the log; the oldest go first. 0 keeps none.
    pub log_requests_max: usize,
    /// Bytes of each body kept in the log; longer bodies are cut there.
    pub log_body_bytes_max: usize,
    /// Answers kept for `GET /v1/responses/{id}`; the oldest go first.
    pub responses_max: usize,
    /// Longest request body.
    pub body_bytes_max: usize,
}

impl Default for SimConfig {
    fn default() -> Self {
        Self {
            models: vec!["sim".to_owned()],
            adapters: Vec::new(),
            ranks: 1,
            role: SimRole::Both,
            handover: Handover::default(),
            serves: Serves::Generate,
            engine: EngineSettings::default(),
            speed: 0.0,
            keep_alive: Duration::from_secs(5),
            max_model_len: 131_072,
            request_id_headers: false,
            prompt_tokens_details: true,
            scale_out: false,
            api_key: None,
            log_requests_max: 16_384,
            log_body_bytes_max: 1 << 20,
            responses_max: 1_024,
            body_bytes_max: 256 << 20,
        }
    }
}

impl SimConfig {
    /// Name of the first model.
    pub fn first_model(&self) -> &str {
        self.models.first().map_or("sim", String::as_str)
    }

    /// Whether a request may ask for this name.
    pub(super) fn has_model(&self, name: &str) -> bool {
        self.models.iter().chain(&self.adapters).any(|known| known == name)
    }

    /// Engine constants with `speed` put in.
    pub(super) fn engine_settings(&self) -> EngineSettings {
        EngineSettings { cost: StepCost { speed: self.speed, ..self.engine.cost }, ..self.engine }
    }
}
