//! Discovery under changes: how long after the API server has a change the fleet has it, and what requests notice of a server that is away.
//!
//! The API server is the one of the tests (`tests/kit/cluster.rs`). Two pods serve; the others only change: ready, not ready, ready.
//! Staleness runs from the change at the server to the first look at the fleet that shows it, a look every millisecond.
use crate::report::Report;
// What the API server below is made of.
use rcgen as _;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tidegate::app::App;
use tidegate::config::ServeArgs;
use tidegate::sim::http::{Fleet, SimConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls as _;

#[allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, dead_code)]
#[path = "../../tests/kit/cluster.rs"]
mod server;

const PODS: &str = "/api/v1/namespaces/ai/pods";
/// One of so many changes is waited for.
const SAMPLED: u32 = 10;
/// Goal: 99 of 100 changes are in the fleet within this time \[ms\].
const STALENESS_MS_MAX: f64 = 250.0;
/// Pause of the client between two requests.
const PAUSE: Duration = Duration::from_millis(5);
/// Longest wait for a change.
const PATIENCE: Duration = Duration::from_mins(1);

/// Settings of the run
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Pods
    #[arg(long, default_value_t = 1_000)]
    pods: u32,
    /// Changes per second
    #[arg(long, default_value_t = 100)]
    changes_per_s: u32,
    /// How long there are changes, in seconds
    #[arg(long, default_value_t = 60)]
    secs: u32,
    /// How long the API server is away after that, in seconds
    #[arg(long, default_value_t = 120)]
    away_secs: u64,
}

/// Runs it.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    let dir = std::env::temp_dir().join(format!("tidegate-cluster-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let cluster = server::Cluster::start(&dir).await;
    let sims = Fleet::start(2, SimConfig { speed: 0.0, ..SimConfig::default() }).await?;
    for (number, addr) in sims.addrs().into_iter().enumerate() {
        cluster.put(PODS, &format!("a-{number}"), Some(pod(addr, true)));
    }
    let others = args.pods.saturating_sub(2).max(1);
    (0..others).for_each(|number| cluster.put(PODS, &name(number), Some(pod(dead(number), true))));
    let started = gate(&dir, &cluster.kubeconfig())?;
    let app = tokio::task::spawn_blocking(move || App::start(started, None)).await?.map_err(io::Error::other)?;
    let ready = |count: usize| {
        let fleet = app.gate().table.fleet();
        fleet.pods.len() == others as usize + 2
            && fleet.pods.iter().filter(|pod| pod.load.shuts.is_open()).count() == count
    };
    until(|| ready(others as usize + 2)).await?;
    // As a load balancer would: it sends nothing before the gate is ready, with each pod tried once.
    until(|| app.is_ready()).await?;
    // Nobody listens there: they belong to the fleet and get nothing.
    (0..others).for_each(|number| cluster.put(PODS, &name(number), Some(pod(dead(number), false))));
    until(|| ready(2)).await?;
    let (is_over, served, failed) = (Cell::new(false), Cell::new(0_u64), Cell::new(0_u64));
    let said = RefCell::new(Vec::new());
    let clients = async {
        while !is_over.get() {
            let problem = ask(app.addr()).await;
            let counter = if problem.is_ok() { &served } else { &failed };
            counter.set(counter.get() + 1);
            said.borrow_mut().extend(problem.err().filter(|_| failed.get() <= 3));
            // Each has a connection of its own: without a pause the client would run out of ports.
            tokio::time::sleep(PAUSE).await;
        }
    };
    let changes = async {
        let late = change(&args, others, &cluster, &app).await;
        cluster.stop().await;
        tokio::time::sleep(Duration::from_secs(args.away_secs)).await;
        is_over.set(true);
        late
    };
    let ((), late) = tokio::join!(clients, changes);
    let mut late = late?;
    late.sort_unstable();
    let at = |share: f64| late.get(((late.len() - 1) as f64 * share) as usize).map_or(0.0, Duration::as_secs_f64);
    let (p50, p99, most) = (at(0.5) * 1e3, at(0.99) * 1e3, at(1.0) * 1e3);
    let (good, bad, asked) = (served.get(), failed.get(), cluster.asked());
    let foreign = asked.iter().filter(|line| !line.starts_with("GET ")).count();
    report.say(format!("staleness of {} changes: p50 {p50:.1} ms, p99 {p99:.1} ms, most {most:.1} ms", late.len()));
    report.say(format!("requests: {good} good, {bad} failed; the API server was away for {} s", args.away_secs));
    said.take().into_iter().for_each(|problem| report.say(format!("failed: {problem}")));
    report.say(format!("asked of the API server: {}, of these not get, list or watch: {foreign}", asked.len()));
    report.put("staleness_p99_ms", p99);
    report.put("requests", good);
    report.put("failed", bad);
    if p99 > STALENESS_MS_MAX {
        report.miss(format!("staleness p99 {p99:.1} ms, at most {STALENESS_MS_MAX} ms"));
    }
    if bad > 0 || good == 0 {
        report.miss("no failed request");
    }
    if foreign > 0 {
        report.miss("nothing but get, list and watch");
    }
    tokio::task::spawn_blocking(move || app.close(Duration::from_secs(5))).await?;
    std::fs::remove_dir_all(dir)
}

/// Changes at their pace; how late those were seen that are waited for.
async fn change(args: &Args, others: u32, cluster: &server::Cluster, app: &App) -> io::Result<Vec<Duration>> {
    let mut late = Vec::new();
    let mut tick = tokio::time::interval(Duration::from_secs(1) / args.changes_per_s.max(1));
    for number in 0..args.secs * args.changes_per_s {
        tick.tick().await;
        let (which, is_open) = (number % others, (number / others).is_multiple_of(2));
        let began = Instant::now();
        cluster.put(PODS, &name(which), Some(pod(dead(which), is_open)));
        if number % SAMPLED == 0 {
            let seen =
                || app.gate().table.fleet().endpoint(&dead(which)).any(|pod| pod.load.shuts.is_open() == is_open);
            until(seen).await?;
            late.push(began.elapsed());
        }
    }
    Ok(late)
}

async fn until(is_so: impl Fn() -> bool) -> io::Result<()> {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    waited.await.map_err(|_| io::Error::other("the fleet does not follow"))
}

/// Sends one request; what came back, unless that is a good answer.
async fn ask(addr: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect(addr).await?;
    let body = r#"{"model":"sim","max_tokens":1,"messages":[{"role":"user","content":"x"}]}"#;
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    if answer.starts_with(b"HTTP/1.1 200") {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&answer).escape_debug().to_string()))
}

fn gate(dir: &Path, kubeconfig: &Path) -> io::Result<ServeArgs> {
    let file: PathBuf = dir.join("gate.yaml");
    let yaml = format!(
        "pods: {{kubernetes: {{kubeconfig: '{}', sources: [{{selector: app=vllm}}]}}}}\n\
         telemetry: {{scrapes_per_s_max: 50}}\nobserve: {{log: error}}\n",
        kubeconfig.display()
    );
    std::fs::write(&file, yaml)?;
    let any = || Some(SocketAddr::from(([127, 0, 0, 1], 0)));
    let access_log = Some("off".to_owned());
    Ok(ServeArgs { config: Some(file), listen: any(), admin: any(), access_log, ..ServeArgs::default() })
}

fn name(number: u32) -> String {
    format!("m-{number:05}")
}

/// An address where nobody listens.
fn dead(number: u32) -> SocketAddr {
    SocketAddr::from(([127, 2, (number / 250) as u8, (number % 250) as u8 + 1], 9))
}

fn pod(addr: SocketAddr, is_ready: bool) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": "ai",
            "labels": { "app": "vllm" },
            "annotations": { "tidegate.io/ports": addr.port().to_string() },
        },
        "spec": { "containers": [{ "name": "vllm" }] },
        "status": {
            "phase": "Running",
            "podIP": addr.ip().to_string(),
            "conditions": [{ "type": "Ready", "status": if is_ready { "True" } else { "False" } }],
        },
    })
}
