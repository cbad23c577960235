//! `loadtest run`: load in an open or a closed loop, and its latencies, errors and bytes.
//!
//! An open-loop run whose own lag was too large, or that had to drop requests, is marked invalid: its numbers would be the generator's.
//! It must not be used to replay conversations: a turn that depends on the answer before it needs a closed loop.

use crate::body::{Shape, templates};
use crate::crowd::{Crowd, Reaction, Terms};
use crate::load::{Load, Outcome, closed_loop, open_loop};
use crate::report::Report;
use crate::schedule::{Arrivals, plan};
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Arguments of `loadtest run`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to send (127.0.0.1 only)
    #[arg(long, value_parser = crate::target::loopback)]
    target: SocketAddr,
    /// Open loop: requests per second
    #[arg(long, conflicts_with = "concurrency")]
    rate: Option<f64>,
    /// Closed loop: requests at a time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    concurrency: u16,
    /// Several kinds of clients at once, instead of one: a file such as `conf/load/overload.yaml`. Of the other arguments only
    /// target, seed, seconds, timeout and bounds are heeded then
    #[arg(long, conflicts_with_all = ["rate", "concurrency"])]
    crowd: Option<PathBuf>,
    /// How the open loop spreads requests
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Arrivals,
    /// Seed of schedule and mix
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds of load (at most an hour)
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// At most this many requests
    #[arg(long, default_value_t = 1_000_000)]
    requests: usize,
    /// Body sizes, each with an optional weight: `230,10k:0.5,100k:0.1`
    #[arg(long, default_value = "10k", value_delimiter = ',', value_parser = weighted)]
    bytes: Vec<(usize, f64)>,
    /// Distinct shared prefixes
    #[arg(long, default_value_t = 64)]
    prefixes: usize,
    /// Share of requests that ask for a stream
    #[arg(long, default_value_t = 1.0)]
    stream_share: f64,
    /// Name of the model
    #[arg(long, default_value = crate::MODEL)]
    model: String,
    /// Tokens asked for
    #[arg(long, default_value_t = 16)]
    max_tokens: u64,
    /// Time between events asked of `loadtest backend`
    #[arg(long)]
    interval_us: Option<u64>,
    /// Path of the requests
    #[arg(long, default_value = "/v1/chat/completions")]
    path: String,
    /// A request longer than this is an error
    #[arg(long, default_value_t = 60.0)]
    timeout_secs: f64,
    /// Requests that may be under way at once in an open loop; more are dropped and make the run invalid
    #[arg(long, default_value_t = 8192)]
    in_flight_max: usize,
    /// The run is invalid if the generator's own p99 lag is above this
    #[arg(long, default_value_t = 5.0)]
    lag_bound_ms: f64,
}

fn weighted(text: &str) -> Result<(usize, f64), String> {
    let (size, weight) = text.split_once(':').unwrap_or((text, "1"));
    let weight: f64 = weight.parse().map_err(|_| format!("`{weight}` is not a weight"))?;
    Ok((crate::target::size(size)?, weight))
}

fn load(args: &Args) -> Load {
    let mut mix = Vec::new();
    for (bytes, weight) in &args.bytes {
        for (stream, share) in [(true, args.stream_share), (false, 1.0 - args.stream_share)] {
            let shape = Shape {
                bytes: *bytes,
                prefixes: args.prefixes,
                model: args.model.clone(),
                max_tokens: args.max_tokens,
                stream,
                interval_us: args.interval_us,
                ..Shape::default()
            };
            if share > 0.0 {
                let list = templates(&shape, &args.path).into_iter().map(Rc::new).collect();
                mix.push((weight * share, list));
            }
        }
    }
    Load {
        target: args.target,
        mix: Rc::new(mix),
        timeout: Duration::from_secs_f64(args.timeout_secs.clamp(0.001, 3600.0)),
        seed: args.seed,
    }
}

/// Runs the load and reports.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    if let Some(path) = &args.crowd {
        let crowd = Crowd::read(path)?;
        return all_kinds(&args, &crowd, report).await;
    }
    let load = load(&args);
    let span = Duration::from_secs_f64(args.secs.clamp(0.0, 3600.0));
    let outcome = if let Some(rate) = args.rate {
        let times = plan(args.arrivals, rate, span, args.requests, args.seed);
        report.say(format!(
            "open loop: {} requests in {:.1} s, {:?}, seed {}",
            times.len(),
            span.as_secs_f64(),
            args.arrivals,
            args.seed
        ));
        open_loop(&load, times, args.in_flight_max).await?
    } else {
        report.say(format!(
            "closed loop: {} at a time for {:.1} s, seed {}",
            args.concurrency,
            span.as_secs_f64(),
            args.seed
        ));
        let most = args.requests as u64;
        let until = async |live: &crate::load::Live| {
            let end = tokio::time::Instant::now() + span;
            while live.ended.get() < most && tokio::time::Instant::now() < end {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        closed_loop(&load, usize::from(args.concurrency), most, until).await?.0
    };
    tell(&args, &outcome, report);
    Ok(())
}

/// Runs several kinds of clients and reports each.
async fn all_kinds(args: &Args, crowd: &Crowd, report: &mut Report) -> io::Result<()> {
    let terms = Terms {
        target: args.target,
        span: Duration::from_secs_f64(args.secs.clamp(0.0, 3600.0)),
        seed: args.seed,
        timeout: Duration::from_secs_f64(args.timeout_secs.clamp(0.001, 3600.0)),
        in_flight_max: args.in_flight_max,
    };
    let Reaction { tallies, lag, dropped } = crowd.run(terms).await?;
    let seconds = terms.span.as_secs_f64().max(1e-3);
    let mut values = serde_json::Map::new();
    for (kind, tally) in crowd.clients.iter().zip(&tallies) {
        tally.lines(&kind.name, seconds).iter().for_each(|line| report.say(line));
        values.insert(kind.name.clone(), tally.json(seconds));
        if !tally.errors.is_empty() {
            report.miss(format!("{}: {} requests failed", kind.name, tally.errors.values().sum::<u64>()));
        }
    }
    report.say(format!("lag ms  {}", lag.line()));
    report.put("clients", values);
    report.put("lag", lag.json());
    check_lag(args, lag.quantile_us(0.99), dropped, report);
    Ok(())
}

/// An open loop whose own lag was too large, or that had to drop requests, measured itself.
fn check_lag(args: &Args, lag_us: Option<f64>, dropped: u64, report: &mut Report) {
    let lag_ms = lag_us.unwrap_or(0.0) / 1000.0;
    let is_valid = lag_ms <= args.lag_bound_ms && dropped == 0;
    report.put("valid", is_valid);
    if !is_valid {
        report.miss(format!(
            "INVALID RUN: own lag p99 {lag_ms:.3} ms (bound {} ms), {dropped} requests dropped",
            args.lag_bound_ms
        ));
    }
}

fn tell(args: &Args, outcome: &Outcome, report: &mut Report) {
    report.say(format!(
        "good {}  failed {}  {:.1} requests/s  events {}",
        outcome.good,
        outcome.failed(),
        outcome.rate(),
        outcome.events
    ));
    report.say(format!("bytes sent {}  received {}", outcome.sent_bytes, outcome.received_bytes));
    report.say(format!("TTFT ms  {}", outcome.first.line()));
    report.say(format!("E2E  ms  {}", outcome.total.line()));
    report.say(format!("gap  ms  {}", outcome.gaps.line()));
    for (kind, count) in &outcome.errors {
        report.say(format!("error    {kind}: {count}"));
    }
    report.put("outcome", outcome.json());
    report.put("seed", args.seed);
    if args.rate.is_some() {
        report.say(format!("lag  ms  {}", outcome.lag.line()));
        check_lag(args, outcome.lag.quantile_us(0.99), outcome.dropped, report);
    }
    if outcome.failed() > 0 {
        report.miss(format!("{} requests failed", outcome.failed()));
    }
    if outcome.good == 0 {
        report.miss("no request ended well");
    }
}
