//! Several pods at once: for `tidegate demo`, and behind the arguments of `tidegate sim`.
use std::io;
use std::net::{Ipv4Addr, SocketAddr};

use super::config::{Serves, SimConfig, SimRole};
use super::pod::SimPod;
use super::script::{Fault, Rule, Script};
use crate::sim::engine::EngineSettings;

/// Pods that live and die together.
pub struct Fleet {
    /// The pods, in order of their ports if these were chosen.
    pub pods: Vec<SimPod>,
}

impl Fleet {
    /// Starts `count` equal pods on free ports of 127.0.0.1.
    pub async fn start(count: usize, config: SimConfig) -> io::Result<Self> {
        Self::start_at(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), count, config).await
    }

    /// Starts `count` equal pods on consecutive ports from `first`; on free ports if its port is 0.
    pub async fn start_at(first: SocketAddr, count: usize, config: SimConfig) -> io::Result<Self> {
        let mut pods = Vec::with_capacity(count);
        for place in 0..count {
            let mut addr = first;
            if first.port() != 0 {
                let port = u16::try_from(place).ok().and_then(|place| first.port().checked_add(place));
                addr.set_port(port.ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidInput, "the ports after --listen do not suffice for --pods")
                })?);
            }
            pods.push(SimPod::start_at(addr, config.clone()).await?);
        }
        Ok(Self { pods })
    }

    /// Where they listen.
    pub fn addrs(&self) -> Vec<SocketAddr> {
        self.pods.iter().map(SimPod::addr).collect()
    }

    /// Stops them all.
    pub async fn stop(&self) {
        for pod in &self.pods {
            pod.stop().await;
        }
    }
}

/// Arguments of `tidegate sim`: simulated vLLM pods to try the gate against.
#[derive(Clone, Debug, clap::Args)]
pub struct SimArgs {
    /// Address of the first pod; the others take the ports after it.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8000")]
    pub listen: SocketAddr,
    /// Number of pods.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub pods: usize,
    /// Role in disaggregated serving.
    #[arg(long, value_enum, default_value_t = SimRole::Both)]
    pub role: SimRole,
    /// Which routes exist.
    #[arg(long, value_enum, default_value_t = Serves::Generate)]
    pub serves: Serves,
    /// Model served; may be repeated.
    #[arg(long = "model", value_name = "NAME", default_value = "sim")]
    pub models: Vec<String>,
    /// LoRA adapter served; may be repeated.
    #[arg(long = "adapter", value_name = "NAME")]
    pub adapters: Vec<String>,
    /// How many times faster than an 8B model on one GPU; 0 answers at once.
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// Data-parallel ranks behind each endpoint.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub ranks: u32,
    /// Longest prompt plus answer, tokens.
    #[arg(long, value_name = "TOKENS", default_value_t = 131_072)]
    pub max_model_len: u64,
    /// Sequences that run at once in an engine.
    #[arg(long, value_name = "N", default_value_t = 256)]
    pub max_num_seqs: u32,
    /// Requests that may wait in an engine before it answers 503; no limit if absent.
    #[arg(long, value_name = "N")]
    pub max_num_queued_reqs: Option<u32>,
    /// KV blocks of 16 tokens in an engine.
    #[arg(long, value_name = "N", default_value_t = 30_000)]
    pub blocks: u32,
    /// Token that the /v1 routes ask for.
    #[arg(long, value_name = "TOKEN")]
    pub api_key: Option<String>,
    /// Idle seconds until a kept-alive connection is closed.
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub keep_alive: u64,
    /// Fault that every POST meets, e.g. `slow-tokens=50`; may be repeated.
    #[arg(long = "fault", value_name = "FAULT", value_parser = parse_fault)]
    pub faults: Vec<Fault>,
}

fn parse_fault(text: &str) -> Result<Fault, String> {
    Fault::parse(text).ok_or_else(|| "not a fault; write e.g. slow-tokens=50, status=503 or cut-at-event=3".to_owned())
}

impl SimArgs {
    /// The settings these arguments mean. Nothing is logged: these pods may run for long.
    pub fn config(&self) -> SimConfig {
        SimConfig {
            models: self.models.clone(),
            adapters: self.adapters.clone(),
            ranks: self.ranks,
            role: self.role,
            serves: self.serves,
            engine: EngineSettings {
                blocks: self.blocks,
                sequences_max: self.max_num_seqs,
                queue_max: self.max_num_queued_reqs,
                ..EngineSettings::default()
            },
            speed: self.speed,
            keep_alive: std::time::Duration::from_secs(self.keep_alive),
            max_model_len: self.max_model_len,
            api_key: self.api_key.clone(),
            log_requests_max: 0,
            ..SimConfig::default()
        }
    }
}

/// Starts the pods of `tidegate sim`. They run until the fleet is dropped; the caller prints their addresses and waits.
pub async fn run(args: SimArgs) -> io::Result<Fleet> {
    let fleet = Fleet::start_at(args.listen, args.pods, args.config()).await?;
    for pod in fleet.pods.iter().filter(|_| !args.faults.is_empty()) {
        let rules = args.faults.iter().cloned().map(Rule::new).collect();
        pod.script(Script { rules });
    }
    Ok(fleet)
}
