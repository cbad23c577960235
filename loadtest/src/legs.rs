//! `loadtest legs`: what a request on two pods costs the gate, next to the same request on one.
//!
//! Two gates of the same build stand in front of the same simulated prefill pod and decode pod: one always splits, the other never does.
//! They take turns in every round; CPU time is the processes' own accounting, figures are medians. Only the ratio may be quoted.

use crate::body::{Shape, templates};
use crate::histogram::median;
use crate::load::{Load, closed_loop};
use crate::process::{Scratch, Started, cpu_time};
use crate::report::Report;
use crate::target::free_port;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(400);
/// Time for gates and pods to start.
const PATIENCE: Duration = Duration::from_secs(20);
/// Requests at once.
const CONCURRENCY: usize = 16;

/// Arguments of `loadtest legs`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The gate's binary (release)
    #[arg(long)]
    gate: PathBuf,
    /// Size of a request's body
    #[arg(long, default_value = "100k", value_parser = crate::target::size)]
    bytes: usize,
    /// Rounds
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds measured per gate and round
    #[arg(long, default_value_t = 2.0)]
    secs: f64,
    /// Highest ratio that is no miss
    #[arg(long, default_value_t = 2.2)]
    goal: f64,
}

struct Gate {
    name: &'static str,
    address: SocketAddr,
    process: Started,
    us: Vec<f64>,
}

/// Runs the measurement.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    let scratch = Scratch::new()?;
    let mut pods = Vec::new();
    for role in ["prefill", "decode"] {
        let address = free_port()?;
        let text = format!(
            "sim --listen {address} --role {role} --speed 0 --model {} --max-model-len 1000000 --blocks 400000",
            crate::MODEL
        );
        pods.push((address, start(&args, &text, &scratch, role)?));
    }
    let [(prefill, _), (decode, _)] = pods.as_slice() else { return Err(io::Error::other("two pods are needed")) };
    let mut gates = Vec::new();
    for (name, decider) in [("one pod", "never"), ("two pods", "always")] {
        let config = scratch.file(&format!("{decider}.yaml"));
        std::fs::write(&config, format!("disaggregation: {{decider: {decider}, prewarm: false}}\n"))?;
        let address = free_port()?;
        let text = format!(
            "serve --config {} --listen {address} --admin {} --threads 1 --prefill http://{prefill} --decode http://{decode}",
            config.display(),
            free_port()?
        );
        let process = start(&args, &text, &scratch, decider)?;
        crate::overhead::answers(address, PATIENCE).await?;
        gates.push(Gate { name, address, process, us: Vec::new() });
    }
    let shape = Shape {
        bytes: args.bytes,
        prefixes: 64,
        model: crate::MODEL.to_owned(),
        max_tokens: 16,
        stream: false,
        interval_us: None,
        ..Shape::default()
    };
    let load = Load::of(SocketAddr::from(([127, 0, 0, 1], 0)), templates(&shape, "/v1/chat/completions"), 1);
    for round in 1..=args.rounds {
        let mut line = format!("round {round}:");
        for gate in &mut gates {
            let us = measure(gate, &load, args.secs, report).await?;
            line.extend([format!("  {} {us:.1} us", gate.name)]);
            gate.us.push(us);
        }
        report.say(line);
    }
    let medians: Vec<f64> = gates.iter().filter_map(|gate| median(&gate.us)).collect();
    let ratio = medians.get(1).copied().unwrap_or(f64::NAN) / medians.first().copied().unwrap_or(f64::NAN);
    report.say(format!(
        "CPU of the gate per request of {} bytes, two pods over one: {ratio:.2} (goal {})",
        args.bytes, args.goal
    ));
    report.put("ratio", ratio);
    if ratio.is_nan() || ratio > args.goal {
        report.miss(format!("two pods cost {ratio:.2} times one"));
    }
    Ok(())
}

fn start(args: &Args, text: &str, scratch: &Scratch, name: &str) -> io::Result<Started> {
    let arguments: Vec<String> = text.split(' ').map(str::to_owned).collect();
    Started::new(&args.gate, &arguments, &scratch.file(&format!("{name}.log")))
}

/// CPU microseconds per request.
async fn measure(gate: &Gate, load: &Load, secs: f64, report: &mut Report) -> io::Result<f64> {
    let pid = gate.process.pid();
    let span = Duration::from_secs_f64(secs.clamp(0.1, 60.0));
    let (outcome, (used, units)) = closed_loop(&load.at(gate.address), CONCURRENCY, u64::MAX, async |live| {
        tokio::time::sleep(WARM_UP).await;
        let (cpu, ended) = (cpu_time(pid)?, live.ended.get());
        tokio::time::sleep(span).await;
        Ok((cpu_time(pid)?.saturating_sub(cpu), live.ended.get() - ended))
    })
    .await?;
    if outcome.failed() > 0 {
        report.miss(format!("{} requests on {} failed: {:?}", outcome.failed(), gate.name, outcome.errors));
    }
    Ok(used.as_secs_f64() * 1e6 / units.max(1) as f64)
}
