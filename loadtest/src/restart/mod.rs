//! `loadtest restart`: what clients notice when everything that can be replaced is replaced under load. Two gates behind a balancer of TCP
//! connections, with long streams and short requests on connections that are kept:
//!
//! 1. rolling restart: a new gate, and once it is ready SIGTERM to an old one; the same for the other;
//! 2. reloads: another configuration and SIGHUP, again and again;
//! 3. binary upgrade: SIGUSR2 to both.
//!
//! Long streams begin before the first and before the last step and outlive them. Nothing may fail, every gate must end with code 0.

mod balancer;
mod gate;

use self::balancer::Balancer;
use self::gate::Gate;
use crate::body::{Shape, Template, nonce, templates};
use crate::client::{Answer, Connection};
use crate::process::Scratch;
use crate::report::Report;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::task::{JoinSet, LocalSet};

/// Time between two events of a long stream.
const EVENT_EVERY: Duration = Duration::from_secs(1);
/// Pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two reloads.
const RELOAD_EVERY: Duration = Duration::from_millis(100);
/// Load before, between and after the steps.
const CALM: Duration = Duration::from_secs(3);

/// Arguments of `loadtest restart`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The gate's program
    #[arg(long)]
    gate: PathBuf,
    /// At least so many short requests; load goes on until then
    #[arg(long, default_value_t = 10_000)]
    requests: u64,
    /// Clients that send them, each on one connection as long as it is kept
    #[arg(long, default_value_t = 16)]
    clients: u32,
    /// Long streams in each of two waves
    #[arg(long, default_value_t = 100)]
    streams: u32,
    /// How long each of them lasts, in seconds
    #[arg(long, default_value_t = 240)]
    stream_secs: u32,
    /// Reloads
    #[arg(long, default_value_t = 100)]
    reloads: u32,
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    good: Cell<u64>,
    streams: Cell<u64>,
    /// Kept connections that were closed before a request on them was answered.
    closed: Cell<u64>,
    failed: RefCell<BTreeMap<String, u64>>,
    is_over: Cell<bool>,
}

impl Seen {
    fn judge(&self, answer: &Answer, wanted: u64, counter: &Cell<u64>, kind: &str) {
        let problem = match answer {
            Answer { status, .. } if *status != 200 => format!("status {status}"),
            Answer { errors, .. } if *errors > 0 => "error event".to_owned(),
            Answer { done: false, .. } => "no [DONE]".to_owned(),
            Answer { events, .. } if *events < wanted => "events missing".to_owned(),
            _ => return counter.set(counter.get() + 1),
        };
        self.fail(kind, &problem);
    }

    fn fail(&self, kind: &str, problem: &str) {
        *self.failed.borrow_mut().entry(format!("{kind}: {problem}")).or_default() += 1;
    }
}

/// Runs all of it.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    LocalSet::new().run_until(all(&args, report)).await
}

async fn all(args: &Args, report: &mut Report) -> io::Result<()> {
    let scratch = Scratch::new()?;
    let (first, second) = (pod().await?, pod().await?);
    let pods = [first, second];
    let drain_max_s = args.stream_secs + 60;
    let begun = Instant::now();
    let gate = async |name: &str| Gate::start(&args.gate, &pods, &scratch, name, drain_max_s).await;
    let balancer = Balancer::start().await?;
    let mut old = [gate("a").await?, gate("b").await?];
    for gate in &old {
        used(&balancer, gate).await?;
    }
    let seen = Rc::new(Seen::default());
    let mut tasks = JoinSet::new();
    for number in 0..args.clients {
        tasks.spawn_local(client(Rc::clone(&seen), balancer.addr(), number));
    }
    let mut streams = JoinSet::new();
    wave(args, &mut streams, &seen, balancer.addr());
    tokio::time::sleep(CALM).await;
    let mut new = Vec::new();
    for (gone, name) in old.iter().zip(["c", "d"]) {
        let next = gate(name).await?;
        used(&balancer, &next).await?;
        gone.signal("TERM")?;
        report.say(format!("{:6.1} s  {} leaves, {} serves", begun.elapsed().as_secs_f64(), gone.addr, next.addr));
        new.push(next);
        tokio::time::sleep(CALM).await;
    }
    for number in 0..args.reloads {
        let Some(gate) = new.get(number as usize % new.len()) else { continue };
        gate.reload(drain_max_s, number + 1).await?;
        tokio::time::sleep(RELOAD_EVERY).await;
    }
    report.say(format!("{:6.1} s  {} reloads", begun.elapsed().as_secs_f64(), args.reloads));
    wave(args, &mut streams, &seen, balancer.addr());
    tokio::time::sleep(CALM).await;
    for gate in &new {
        gate.upgrade().await?;
        report.say(format!(
            "{:6.1} s  {} upgraded, process {} serves",
            begun.elapsed().as_secs_f64(),
            gate.addr,
            gate.pid()
        ));
        tokio::time::sleep(CALM).await;
    }
    while streams.join_next().await.is_some() {}
    while seen.good.get() < args.requests && seen.failed.borrow().is_empty() {
        tokio::time::sleep(CALM).await;
    }
    seen.is_over.set(true);
    while tasks.join_next().await.is_some() {}
    report.say(format!("{:6.1} s  all streams ended", begun.elapsed().as_secs_f64()));
    for gate in old.iter_mut().chain(&mut new) {
        ended(gate, report).await;
    }
    tell(args, &seen, &balancer, report);
    Ok(())
}

/// A pod that costs next to nothing.
async fn pod() -> io::Result<SocketAddr> {
    let probe = std::net::TcpListener::bind("127.0.0.1:0")?;
    let listen = probe.local_addr()?;
    drop(probe);
    let args =
        crate::backend::Args { listen, model: crate::MODEL.to_owned(), events: 8, interval_us: 0, max_secs: 3600 };
    tokio::task::spawn_local(crate::backend::serve(args));
    crate::overhead::answers(listen, Duration::from_secs(10)).await?;
    Ok(listen)
}

/// Waits until new connections go to this gate.
async fn used(balancer: &Balancer, gate: &Gate) -> io::Result<()> {
    balancer.add(gate.addr, gate.admin);
    let waited = tokio::time::timeout(Duration::from_secs(30), async {
        while !balancer.uses(gate.addr) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.map_err(|_| io::Error::other("a gate is not ready in time"))
}

fn template(events: u64, every: Option<Duration>, is_stream: bool) -> Vec<Rc<Template>> {
    let shape = Shape {
        bytes: 1_000,
        prefixes: 16,
        model: crate::MODEL.to_owned(),
        max_tokens: events,
        stream: is_stream,
        interval_us: every.map(|every| every.as_micros() as u64),
        ..Shape::default()
    };
    templates(&shape, "/v1/chat/completions").into_iter().map(Rc::new).collect()
}

/// Long streams, each on a connection of its own.
fn wave(args: &Args, streams: &mut JoinSet<()>, seen: &Rc<Seen>, target: SocketAddr) {
    let events = u64::from(args.stream_secs) / EVENT_EVERY.as_secs() + 1;
    let bodies = template(events, Some(EVENT_EVERY), true);
    for number in 0..args.streams {
        let Some(body) = bodies.get(number as usize % bodies.len()).cloned() else { continue };
        let seen = Rc::clone(seen);
        streams.spawn_local(async move {
            let asked = async { Connection::open(target).await?.ask(&body, nonce(number.into()), &mut ()).await };
            match asked.await {
                Ok(answer) => seen.judge(&answer, body.events, &seen.streams, "stream"),
                Err(error) => seen.fail("stream", &error.kind().to_string()),
            }
        });
    }
}

/// Short requests one after another, every other one a stream, on a connection that is kept as long as the gate keeps it.
async fn client(seen: Rc<Seen>, target: SocketAddr, number: u32) {
    let (whole, streamed) = (template(8, None, false), template(8, None, true));
    let (mut kept, mut count) = (None::<Connection>, 0_u64);
    while !seen.is_over.get() {
        count += 1;
        let bodies = if count.is_multiple_of(2) { &whole } else { &streamed };
        let Some(body) = bodies.get(count as usize % bodies.len()) else { return };
        let was_kept = kept.is_some();
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => match Connection::open(target).await {
                Ok(connection) => connection,
                Err(error) => {
                    seen.fail("request", &format!("connect: {}", error.kind()));
                    continue;
                }
            },
        };
        match connection.ask(body, nonce(count << 16 | u64::from(number)), &mut ()).await {
            Ok(answer) => {
                seen.judge(&answer, if body.stream { body.events } else { 0 }, &seen.good, "request");
                kept = answer.keep.then_some(connection);
            }
            // What every client knows: a kept connection may be closed at any time. Counted apart, as not all send again.
            Err(error) if was_kept && error.kind() == io::ErrorKind::ConnectionAborted => {
                seen.closed.set(seen.closed.get() + 1);
            }
            Err(error) => seen.fail("request", &error.kind().to_string()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A gate that was told to leave must have ended, and well.
async fn ended(gate: &mut Gate, report: &mut Report) {
    let until = Instant::now() + Duration::from_mins(1);
    while gate.code().is_none() && Instant::now() < until {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let code = gate.code();
    if code != Some(0) {
        let log = gate.log();
        let last: Vec<_> = log.lines().rev().take(5).collect();
        report.miss(format!("{} ended with {:?}: {}", gate.addr, code, last.join(" | ")));
    }
    if !gate.log().contains("cut=0") {
        report.miss(format!("{} cut requests", gate.addr));
    }
}

fn tell(args: &Args, seen: &Seen, balancer: &Balancer, report: &mut Report) {
    let (good, streams, closed) = (seen.good.get(), seen.streams.get(), seen.closed.get());
    report.say(format!(
        "requests: {good} good; streams of {} s: {streams} good; kept connections closed under a request: {closed}; refused by all gates: {}",
        args.stream_secs,
        balancer.refused.get()
    ));
    report.put("requests", good);
    report.put("streams", streams);
    report.put("closed", closed);
    report.put("refused", balancer.refused.get());
    for (problem, count) in seen.failed.borrow().iter() {
        report.miss(format!("{problem}: {count}"));
    }
    if closed + balancer.refused.get() > 0 {
        report.miss("connections were closed or refused that should not have been");
    }
    if good < args.requests || streams < u64::from(args.streams) * 2 {
        report.miss("not all requests and streams ended well");
    }
}
