//! `loadtest streams`: many streams at once through a gate, and what each of them costs it in memory.
//!
//! Memory per stream = (resident at N - resident at N/10) / 0.9 N, read from the gate's own process while every stream is open and getting
//! events. Then all streams run to their end, and each must have ended well. A reading taken while a stream was already over is invalid.

use crate::body::{Shape, nonce, templates};
use crate::client::{Connection, Watch};
use crate::process::{descriptors, resident_bytes};
use crate::report::Report;
use serde_json::json;
use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, LocalSet};

/// Streams that may be opening at once.
const OPENING: usize = 128;
/// Before a reading: buffers of opening are given back, events flow.
const SETTLE: Duration = Duration::from_secs(2);

/// Arguments of `loadtest streams`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The gate (127.0.0.1 only)
    #[arg(long, value_parser = crate::target::loopback)]
    target: SocketAddr,
    /// Process id of the gate
    #[arg(long)]
    pid: u32,
    /// Its admin address; in-flight gauges there must be 0 at the end
    #[arg(long, value_parser = crate::target::loopback)]
    admin: Option<SocketAddr>,
    /// Number of streams; default min(10000, (descriptors - 1000) / 2)
    #[arg(long)]
    streams: Option<usize>,
    /// Seconds a stream lasts: long enough to open all of them
    #[arg(long, default_value_t = 60)]
    hold_secs: u32,
    /// Time between two events of a stream
    #[arg(long, default_value_t = 2_000)]
    interval_ms: u32,
    /// Most memory per stream
    #[arg(long, default_value_t = 96.0)]
    bound_kib: f64,
    /// Size of the request body
    #[arg(long, default_value = "1k", value_parser = crate::target::size)]
    bytes: usize,
    /// Name of the model
    #[arg(long, default_value = crate::MODEL)]
    model: String,
}

/// How the streams are doing.
#[derive(Default)]
struct State {
    begun: Cell<usize>,
    ended: Cell<usize>,
    ends: std::cell::RefCell<BTreeMap<String, usize>>,
}

struct First<'a> {
    state: &'a State,
    permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

impl Watch for First<'_> {
    fn events(&mut self, _count: u64, _at: Instant) {
        if self.permit.take().is_some() {
            self.state.begun.set(self.state.begun.get() + 1);
        }
    }
}

/// Opens, reads, waits, judges.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    let limit = descriptors();
    let count = args.streams.unwrap_or_else(|| 10_000.min(limit.saturating_sub(1000) as usize / 2));
    if count < 10 || count as u64 + 100 > limit {
        return Err(io::Error::other(format!(
            "{count} streams do not fit: give 10 or more, and fewer than the {limit} descriptors (ulimit -n)"
        )));
    }
    LocalSet::new().run_until(hold(&args, count, report)).await?;
    if let Some(admin) = args.admin {
        gauges(admin, report).await?;
    }
    Ok(())
}

async fn hold(args: &Args, count: usize, report: &mut Report) -> io::Result<()> {
    let events = u64::from(args.hold_secs * 1000 / args.interval_ms.max(1)) + 1;
    let shape = Shape {
        bytes: args.bytes,
        prefixes: 64,
        model: args.model.clone(),
        max_tokens: events,
        stream: true,
        interval_us: Some(u64::from(args.interval_ms) * 1000),
        ..Shape::default()
    };
    let templates: Vec<_> = templates(&shape, "/v1/chat/completions").into_iter().map(Rc::new).collect();
    let (state, opening) = (Rc::new(State::default()), std::sync::Arc::new(Semaphore::new(OPENING)));
    let patience = Duration::from_secs(u64::from(args.hold_secs) + 120);
    let mut tasks = JoinSet::new();
    let mut readings = Vec::new();
    report.say(format!("at rest: {:.2} MB resident", resident_bytes(args.pid)? as f64 / 1e6));
    for goal in [count / 10, count] {
        for number in tasks.len()..goal {
            let permit = opening.clone().acquire_owned().await.map_err(io::Error::other)?;
            let Some(template) = templates.get(number % templates.len()).cloned() else { continue };
            let (state, target) = (state.clone(), args.target);
            tasks.spawn_local(async move {
                let mut first = First { state: &state, permit: Some(permit) };
                let work =
                    async { Connection::open(target).await?.ask(&template, nonce(number as u64), &mut first).await };
                let end = match tokio::time::timeout(patience, work).await {
                    Ok(Ok(answer)) if answer.status != 200 => format!("status {}", answer.status),
                    Ok(Ok(answer)) if answer.errors > 0 => "error event".to_owned(),
                    Ok(Ok(answer)) if !answer.done => "no [DONE]".to_owned(),
                    Ok(Ok(answer)) if answer.events < template.events => "events missing".to_owned(),
                    Ok(Ok(_)) => "good".to_owned(),
                    Ok(Err(error)) => format!("broken: {}", error.kind()),
                    Err(_) => "timeout".to_owned(),
                };
                state.ended.set(state.ended.get() + 1);
                *state.ends.borrow_mut().entry(end).or_default() += 1;
            });
        }
        let until = Instant::now() + Duration::from_mins(1);
        while state.begun.get() + state.ended.get() < goal && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(SETTLE).await;
        let resident = resident_bytes(args.pid)?;
        let open = state.begun.get().saturating_sub(state.ended.get());
        report.say(format!("{open} streams open: {:.2} MB resident", resident as f64 / 1e6));
        if open != goal {
            report.miss(format!(
                "{open} of {goal} streams were open at the reading; lengthen --hold-secs if some had ended: {:?}",
                state.ends.borrow()
            ));
        }
        readings.push(resident);
    }
    while tasks.join_next().await.is_some() {}
    judge(args, count, &readings, &state, report);
    Ok(())
}

fn judge(args: &Args, count: usize, readings: &[u64], state: &State, report: &mut Report) {
    let (low, high) = (readings.first().copied().unwrap_or(0), readings.last().copied().unwrap_or(0));
    let kib = (high as f64 - low as f64) / (count - count / 10) as f64 / 1024.0;
    report.say(format!("memory per stream: {kib:.2} KiB (bound {} KiB)", args.bound_kib));
    let ends = state.ends.borrow();
    report.say(format!("ends: {ends:?}"));
    report.put("streams", count);
    report.put("resident_bytes", json!([low, high]));
    report.put("kib_per_stream", kib);
    report.put("ends", json!(*ends));
    if kib > args.bound_kib {
        report.miss(format!("{kib:.2} KiB per stream"));
    }
    let good = ends.get("good").copied().unwrap_or(0);
    if good != count {
        report.miss(format!("{good} of {count} streams ended well"));
    }
}

/// In-flight gauges of the admin listener, each of which must return to 0.
async fn gauges(admin: SocketAddr, report: &mut Report) -> io::Result<()> {
    tokio::time::sleep(SETTLE).await;
    let (status, text) = Connection::get(admin, "/metrics").await?;
    if status != 200 {
        return Err(io::Error::other(format!("{admin}/metrics answers {status}")));
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| is_in_flight(line)).collect();
    for line in &lines {
        report.say(format!("gauge {line}"));
        let value: Option<f64> = line.rsplit_once(' ').and_then(|(_, number)| number.parse().ok());
        if value != Some(0.0) {
            report.miss(format!("gauge not back to 0: {line}"));
        }
    }
    if lines.is_empty() {
        report.miss("the admin listener shows no in-flight gauge");
    }
    report.put("gauges", json!(lines));
    Ok(())
}

/// Whether a line of metrics is a gauge of requests or streams under way.
fn is_in_flight(line: &str) -> bool {
    let name = line.split(['{', ' ']).next().unwrap_or_default();
    let tail = ["_total", "_bucket", "_sum", "_count", "_limit", "_max"];
    (name.contains("in_flight") || name.contains("inflight")) && !tail.iter().any(|end| name.ends_with(end))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn gauges_are_told_from_comments_and_counters() {
        assert!(is_in_flight("tidegate_in_flight{pod=\"0\"} 3"));
        assert!(is_in_flight("tidegate_inflight_requests 0"));
        assert!(!is_in_flight("# HELP tidegate_in_flight requests dispatched and not ended"));
        assert!(!is_in_flight("tidegate_in_flight_total 3"));
        assert!(!is_in_flight("tidegate_requests_total{cause=\"in_flight\"} 3"));
    }
}
