//! `loadtest overhead`: what a gate costs, next to nginx and to a bare Pingora proxy, in one run.
//!
//! All three stand in front of the same two backends and take turns in every round, so that a noisy machine hurts them alike; CPU time is the
//! processes' own accounting, figures are medians over rounds. Only ratios of one run may be quoted: absolute times are this machine's.
//! A measured gate must be the shipped build (release), and this tool as well, because the bare proxy is part of it.

mod measure;
mod rig;
mod table;

use crate::body::{Shape, templates};
use crate::load::Load;
use crate::report::Report;
use rig::Rig;
pub(crate) use rig::first_answer as answers;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use table::{Case, Goal, Latency, Table, Unit};

/// Arguments of `loadtest overhead`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The gate's binary; without it only nginx and bare Pingora are measured
    #[arg(long)]
    gate: Option<PathBuf>,
    /// One more argument for `GATE serve` (repeatable)
    #[arg(long, allow_hyphen_values = true)]
    gate_arg: Vec<String>,
    /// nginx to compare with
    #[arg(long, env = "NGINX", default_value = "nginx")]
    nginx: PathBuf,
    /// Let nginx batch its access log in a buffer of this size (such as `64k`); use it if the gate batches its own
    #[arg(long)]
    nginx_log_buffer: Option<String>,
    /// Rounds of the CPU cases
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// Seconds measured per proxy and round
    #[arg(long, default_value_t = 2.0)]
    secs: f64,
    /// Rounds of the latency cases
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=100))]
    latency_rounds: u16,
    /// Seconds per proxy and latency round
    #[arg(long, default_value_t = 3.0)]
    latency_secs: f64,
    /// Request rate of the first latency case
    #[arg(long, default_value_t = 500.0)]
    latency_rate: f64,
    /// Body size of the latency cases
    #[arg(long, default_value = "10k", value_parser = crate::target::size)]
    latency_bytes: usize,
    /// Distinct shared prefixes
    #[arg(long, default_value_t = 64)]
    prefixes: usize,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Start, Part::Requests, Part::Events, Part::Latency])]
    parts: Vec<Part>,
    /// Only these body sizes
    #[arg(long, value_delimiter = ',', default_value = "230,10k,100k,400k", value_parser = crate::target::size)]
    bytes: Vec<usize>,
}

/// A part of the harness.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Idle memory and time to the first answer
    Start,
    /// CPU per request
    Requests,
    /// CPU per SSE event
    Events,
    /// Added latency
    Latency,
}

/// Runs the harness and prints the table.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    report.say(format!("load average of this machine: {}", load.trim()));
    if cfg!(debug_assertions) {
        report.say("NOTE  this is a development build: the bare Pingora figures and the generator are slower than they should be");
    }
    let rig = Rig::start(&args, report).await?;
    let mut table = Table::new(rig.names());
    if args.parts.contains(&Part::Start) {
        starts(&rig, &mut table, report).await?;
    }
    if args.parts.contains(&Part::Requests) {
        for bytes in &args.bytes {
            requests(&args, &rig, *bytes, &mut table, report).await?;
        }
    }
    if args.parts.contains(&Part::Events) {
        for paced in [true, false] {
            events(&args, &rig, paced, &mut table, report).await?;
        }
    }
    if args.parts.contains(&Part::Latency) {
        latencies(&args, &rig, &mut table, report).await?;
    }
    report.say(table.text());
    report.put("table", table.json());
    report.put("rounds", args.rounds);
    for miss in table.misses() {
        report.miss(miss);
    }
    Ok(())
}

fn shape(args: &Args, bytes: usize) -> Shape {
    Shape {
        bytes,
        prefixes: args.prefixes,
        model: crate::MODEL.to_owned(),
        max_tokens: 16,
        stream: false,
        interval_us: None,
        ..Shape::default()
    }
}

fn load(rig: &Rig, shape: &Shape) -> io::Result<Load> {
    let first = rig.proxies.first().ok_or_else(|| io::Error::other("no proxy to measure"))?;
    Ok(Load::of(first.address, templates(shape, "/v1/chat/completions"), 1))
}

async fn starts(rig: &Rig, table: &mut Table, report: &Report) -> io::Result<()> {
    for proxy in rig.proxies.iter().filter(|proxy| proxy.name != "nginx") {
        let start = measure::start(rig, proxy.name).await?;
        report.say(format!(
            "start {:>5}: first 200 after {:.1} ms, idle {:.1} MB",
            proxy.name, start.first_ms, start.idle_mb
        ));
        table.starts.push((proxy.name, start));
    }
    Ok(())
}

async fn requests(args: &Args, rig: &Rig, bytes: usize, table: &mut Table, report: &mut Report) -> io::Result<()> {
    let load = load(rig, &shape(args, bytes))?;
    let concurrency = if bytes >= 100_000 { 16 } else { 32 };
    let goal = Goal::of_body(bytes);
    let name = if bytes.is_multiple_of(1000) { format!("{} KB body", bytes / 1000) } else { format!("{bytes} B body") };
    let mut case = Case::new(name, Unit::Request, goal);
    rounds(args, rig, &load, concurrency, &mut case, report).await?;
    table.cases.push(case);
    Ok(())
}

async fn events(args: &Args, rig: &Rig, is_paced: bool, table: &mut Table, report: &mut Report) -> io::Result<()> {
    let mut shape = shape(args, 1000);
    shape.stream = true;
    (shape.max_tokens, shape.interval_us) = if is_paced { (1000, Some(5000)) } else { (4000, Some(0)) };
    let load = load(rig, &shape)?;
    let name = if is_paced { "SSE event, 100 streams, 5 ms" } else { "SSE event, 16 streams, unpaced" };
    let mut case = Case::new(name.to_owned(), Unit::Event, Goal::of_event());
    rounds(args, rig, &load, if is_paced { 100 } else { 16 }, &mut case, report).await?;
    table.cases.push(case);
    Ok(())
}

async fn rounds(
    args: &Args,
    rig: &Rig,
    load: &Load,
    concurrency: usize,
    case: &mut Case,
    report: &mut Report,
) -> io::Result<()> {
    let span = Duration::from_secs_f64(args.secs.clamp(0.1, 60.0));
    for round in 1..=args.rounds {
        let mut line = format!("{} round {round}:", case.name);
        for proxy in &rig.proxies {
            let sample = measure::cpu(proxy, load, concurrency, span, case.unit).await?;
            line.extend([format!("  {} {:.2} us, {:.0}/s", proxy.name, sample.us, sample.per_s)]);
            if sample.failed > 0 {
                report.miss(format!(
                    "{} through {}: {} requests failed: {:?}",
                    case.name, proxy.name, sample.failed, sample.errors
                ));
            }
            case.add(proxy.name, sample);
        }
        report.say(line);
    }
    Ok(())
}

async fn latencies(args: &Args, rig: &Rig, table: &mut Table, report: &mut Report) -> io::Result<()> {
    let mut shape = shape(args, args.latency_bytes);
    (shape.stream, shape.max_tokens, shape.interval_us) = (true, 8, Some(5000));
    let load = load(rig, &shape)?;
    let subject = rig.proxies.last().ok_or_else(|| io::Error::other("no proxy to measure"))?;
    let full = measure::cpu(subject, &load, 256, Duration::from_secs(3), Unit::Request).await?;
    report.say(format!("saturation of {} on this machine, streaming: {:.0} requests/s", subject.name, full.per_s));
    for (name, rate) in [("fixed rate", args.latency_rate), ("half of saturation", full.per_s / 2.0)] {
        let mut latency = Latency::new(format!("TTFT at {name}, {rate:.0} req/s"), rate);
        for round in 1..=args.latency_rounds {
            let mut line = format!("{} round {round}:", latency.name);
            for turn in 0..rig.proxies.len() {
                let Some(proxy) = rig.proxies.get((turn + usize::from(round)) % rig.proxies.len()) else { continue };
                let outcome = measure::latency(proxy, &load, rate, args.latency_secs, u64::from(round)).await?;
                let (p50, p99) = (
                    outcome.first.quantile_us(0.5).unwrap_or(f64::NAN),
                    outcome.first.quantile_us(0.99).unwrap_or(f64::NAN),
                );
                line.extend([format!("  {} p50 {p50:.0} p99 {p99:.0} us", proxy.name)]);
                if outcome.failed() + outcome.dropped > 0 {
                    report.miss(format!("{} through {}: {:?}", latency.name, proxy.name, outcome.errors));
                }
                latency.add(proxy.name, &outcome);
            }
            report.say(line);
        }
        table.latencies.push(latency);
    }
    Ok(())
}
