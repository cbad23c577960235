//! The same cell twice: in the lab, and over sockets with a real gate in front of a fleet of simulated pods. What the pods'
//! own counters say of prefix hits must agree, or the lab leaves something out.
//!
//! Time is compressed: arrivals come that much faster, and the pods are that much quicker. Both fleets have the engine of
//! `tidegate sim`. Only workloads whose prompts do not contain answers can be sent: those are not the lab's over sockets.
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use clap::Args as ClapArgs;
use tidegate::sim::engine::StepCost;
use tokio::task::{JoinSet, LocalSet};

use super::cell::{Cell, Fleet, Suite};
use super::policies::Policy;
use super::render::{self, Pool, Tokens};
use super::script::Script;
use super::summary::Summary;
use super::world::World;
use crate::client::{Answer, Connection};
use crate::process::{Scratch, Started};
use crate::report::Report;
use crate::target::free_port;

/// Longest a pod or the gate may take to answer for the first time.
const START_MAX: Duration = Duration::from_secs(20);
/// Longest prompt plus answer of the simulated pods: no prompt of a trace is refused.
const CONTEXT_MAX: u64 = 1 << 20;

#[derive(ClapArgs)]
pub(crate) struct SocketArgs {
    /// List of cells
    #[arg(long, default_value = "conf/lab/tuning.yaml")]
    suite: PathBuf,
    /// The cell
    #[arg(long, default_value = "conv-1.0")]
    cell: String,
    /// Folder that trace files are relative to
    #[arg(long, default_value = "traces")]
    traces: PathBuf,
    /// The program to try
    #[arg(long)]
    tidegate: PathBuf,
    /// Seconds of the workload
    #[arg(long, default_value_t = 600.0)]
    secs: f64,
    /// How many times faster than in the lab
    #[arg(long, default_value_t = 5.0)]
    compress: f64,
    /// Most difference of the two hit rates
    #[arg(long, default_value_t = 0.03)]
    bound: f64,
    /// Seed
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Runs both and compares.
pub(super) fn run(args: &SocketArgs, report: &mut Report) -> io::Result<()> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    let cells = Suite::read(&args.suite)?.cells;
    let cell =
        cells.into_iter().find(|cell| cell.name == args.cell).ok_or_else(|| wrong("no such cell in the suite"))?;
    let cell = Cell { fleet: as_simulated(cell.fleet.pods), ..cell };
    let mut script = cell.workload.script(&args.traces, args.seed)?;
    script.sessions.retain(|session| session.start_us as f64 <= args.secs * 1e6);
    if script.sessions.iter().any(|session| session.turns.len() > 1) {
        return Err(wrong(
            "prompts of this workload contain answers; take one of single turns, such as conv-1.0 or b2b-6",
        ));
    }
    let pool = Pool::new();
    let policy = Policy::of("default", Path::new("conf/policies"))?;
    let log = World::new(&cell, &script, &pool, &policy, args.seed).run(|_| ());
    let lab = Summary::of(&log, &cell);
    report.say(format!("lab: {} requests, hit {:.4}, ttft {:.3} s", lab.requests, lab.hit, lab.ttft_s.mean));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let fleet = runtime.block_on(LocalSet::new().run_until(over_sockets(args, &cell, &script, Rc::new(pool))))?;
    report.say(format!(
        "sockets: {} of {} requests good, hit {:.4} ({} of {} tokens), first byte {:.3} s of the lab's time",
        fleet.good,
        lab.requests,
        fleet.hit(),
        fleet.hits,
        fleet.queries,
        fleet.first_s
    ));
    report.put("lab_hit", lab.hit);
    report.put("socket_hit", fleet.hit());
    report.put("good", fleet.good);
    if fleet.good != lab.requests {
        report.miss(format!("{} requests did not end well", lab.requests.saturating_sub(fleet.good)));
    }
    if (fleet.hit() - lab.hit).abs() > args.bound {
        report.miss(format!("the hit rates are {:.4} apart", (fleet.hit() - lab.hit).abs()));
    }
    Ok(())
}

/// The engines of `tidegate sim`.
fn as_simulated(pods: u32) -> Fleet {
    let cost = StepCost::default();
    Fleet {
        pods,
        kv_tokens: 480_000,
        base_us: cost.base_us,
        prefill_token_us: cost.prefill_token_us,
        decode_us: cost.decode_us,
        context_token_us: cost.context_token_us,
        attention_us: cost.attention_us,
        ..Fleet::default()
    }
}

/// What the fleet said.
struct Figures {
    good: u64,
    queries: u64,
    hits: u64,
    first_s: f64,
}

impl Figures {
    fn hit(&self) -> f64 {
        self.hits as f64 / self.queries.max(1) as f64
    }
}

async fn over_sockets(args: &SocketArgs, cell: &Cell, script: &Script, pool: Rc<Pool>) -> io::Result<Figures> {
    let (pods, scratch) = (cell.fleet.pods as u16, Scratch::new()?);
    let (first, gate, admin) = (free_ports(pods)?, free_port()?, free_port()?);
    let sim = [
        ("--listen", first.to_string()),
        ("--pods", pods.to_string()),
        ("--speed", args.compress.to_string()),
        ("--model", "lab".to_owned()),
        ("--max-model-len", CONTEXT_MAX.to_string()),
    ];
    let start = |command: &str, options: Vec<String>| {
        let arguments: Vec<String> = std::iter::once(command.to_owned()).chain(options).collect();
        Started::new(&args.tidegate, &arguments, &scratch.file(command))
    };
    let _sim = start("sim", sim.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect())?;
    let all: Vec<SocketAddr> = (0..pods).map(|pod| SocketAddr::new(first.ip(), first.port() + pod)).collect();
    for pod in &all {
        answers(*pod, "/health").await?;
    }
    let mut options =
        vec![("--listen", gate.to_string()), ("--admin", admin.to_string()), ("--access-log", "off".to_owned())];
    options.extend(all.iter().map(|pod| ("--pod", format!("http://{pod}"))));
    let _gate = start("serve", options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect())?;
    answers(admin, "/readyz").await?;
    answers(gate, "/v1/models").await?;

    let begun = Instant::now();
    let tokens = Tokens { block_tokens: cell.fleet.block_tokens.max(1), has_template: script.has_template };
    let mut tasks = JoinSet::new();
    for session in &script.sessions {
        let Some(turn) = session.turns.first().cloned() else { continue };
        let at = begun + Duration::from_secs_f64(session.start_us as f64 / 1e6 / args.compress);
        tokio::time::sleep_until(at.into()).await;
        let pool = Rc::clone(&pool);
        tasks.spawn_local(async move {
            let made = tokens.make(&turn, 0, |_| None);
            let body = bounded(render::body(&pool, &made.messages, true), turn.output_tokens);
            Connection::open(gate).await?.post("/v1/chat/completions", "", &body, &mut ()).await
        });
    }
    let (mut good, mut first_s) = (0_u64, 0.0);
    while let Some(ended) = tasks.join_next().await {
        if let Ok(Ok(Answer { status: 200, errors: 0, done: true, first: Some(first), .. })) = ended {
            good += 1;
            first_s += first.as_secs_f64();
        }
    }
    let mut figures = Figures { good, queries: 0, hits: 0, first_s: first_s * args.compress / good.max(1) as f64 };
    for pod in &all {
        let (_, page) = Connection::get(*pod, "/metrics").await?;
        let page = String::from_utf8_lossy(&page);
        figures.queries += counter(&page, "vllm:prefix_cache_queries_total");
        figures.hits += counter(&page, "vllm:prefix_cache_hits_total");
    }
    Ok(figures)
}

/// The body with a bound on the answer, and usage asked for.
fn bounded(mut body: Vec<u8>, tokens: u32) -> Vec<u8> {
    body.pop();
    let more = format!(",\"max_tokens\":{tokens},\"ignore_eos\":true,\"stream_options\":{{\"include_usage\":true}}}}");
    body.extend_from_slice(more.as_bytes());
    body
}

/// Sum over the series of a counter.
fn counter(page: &str, name: &str) -> u64 {
    let of = |line: &str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
    let lines = page.lines().filter(|line| of(line));
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64
}

/// Waits until something answers 200.
async fn answers(address: SocketAddr, path: &str) -> io::Result<()> {
    let until = Instant::now() + START_MAX;
    loop {
        match Connection::get(address, path).await {
            Ok((200, _)) => return Ok(()),
            _ if Instant::now() < until => tokio::time::sleep(Duration::from_millis(20)).await,
            Ok((status, _)) => return Err(io::Error::other(format!("{address}{path} answers {status}"))),
            Err(error) => return Err(error),
        }
    }
}

/// The first of `count` ports in a row that nobody listens on now.
fn free_ports(count: u16) -> io::Result<SocketAddr> {
    for _ in 0..100 {
        let first = free_port()?;
        let is_free = |more: u16| {
            let port = first.port().checked_add(more);
            port.is_some_and(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok())
        };
        if (0..count).all(is_free) {
            return Ok(first);
        }
    }
    Err(io::Error::other(format!("found no {count} free ports in a row")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_over_series_and_told_from_others() {
        let page = "# TYPE a_total counter\na_total{engine=\"0\"} 3.0\na_total{engine=\"1\"} 4\na_total_more 9\n";
        assert_eq!(counter(page, "a_total"), 7);
    }

    #[test]
    fn a_bounded_body_is_json() {
        let body = bounded(b"{\"model\":\"lab\",\"stream\":true}".to_vec(), 7);
        let value: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
        assert_eq!((&value["max_tokens"], &value["stream"]), (&7.into(), &true.into()));
    }
}
