//! One measurement of one proxy: CPU per unit of work, latency at a rate, start.
//!
//! Counting starts after a warm-up and reads CPU time and work at the same two instants, so neither ramp nor end is part of it.

use super::rig::{Proxy, Rig, first_answer};
use super::table::{Start, Unit};
use crate::load::{Load, Outcome, closed_loop, open_loop};
use crate::process::{cpu_time, resident_bytes};
use crate::schedule::{Arrivals, plan};
use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

/// Before anything is counted: connections, pools and branch predictors.
const WARM_UP: Duration = Duration::from_millis(400);
const STARTS: usize = 5;
const IDLE: Duration = Duration::from_secs(2);

/// What one proxy used in one round.
#[derive(Clone, Debug, Default)]
pub(super) struct Sample {
    /// CPU microseconds per unit.
    pub(super) us: f64,
    /// Units per second.
    pub(super) per_s: f64,
    /// Requests that failed.
    pub(super) failed: u64,
    /// The same by kind.
    pub(super) errors: BTreeMap<String, u64>,
}

/// CPU per unit under a closed loop.
pub(super) async fn cpu(
    proxy: &Proxy,
    load: &Load,
    concurrency: usize,
    span: Duration,
    unit: Unit,
) -> io::Result<Sample> {
    let pid = proxy.started.pid();
    let (outcome, (used, units, wall)) = closed_loop(&load.at(proxy.address), concurrency, u64::MAX, async |live| {
        let count = || match unit {
            Unit::Request => live.ended.get(),
            Unit::Event => live.events.get(),
        };
        tokio::time::sleep(WARM_UP).await;
        let (cpu, units, start) = (cpu_time(pid)?, count(), Instant::now());
        tokio::time::sleep(span).await;
        Ok((cpu_time(pid)?.saturating_sub(cpu), count() - units, start.elapsed()))
    })
    .await?;
    if units == 0 {
        return Err(io::Error::other(format!("nothing came through {}: {:?}", proxy.name, outcome.errors)));
    }
    Ok(Sample {
        us: used.as_secs_f64() * 1e6 / units as f64,
        per_s: units as f64 / wall.as_secs_f64(),
        failed: outcome.failed(),
        errors: outcome.errors,
    })
}

/// Latencies at a rate, Poisson arrivals; the same seed gives every proxy the same arrivals.
pub(super) async fn latency(proxy: &Proxy, load: &Load, rate: f64, secs: f64, seed: u64) -> io::Result<Outcome> {
    let times = plan(Arrivals::Poisson, rate, Duration::from_secs_f64(secs.clamp(0.1, 60.0)), 1_000_000, seed);
    let load = Load { seed, ..load.at(proxy.address) };
    open_loop(&load, times, 8192).await
}

/// Median time from start to the first 200 over several starts, and resident memory after two idle seconds.
pub(super) async fn start(rig: &Rig, name: &str) -> io::Result<Start> {
    let (mut firsts, mut idle_mb) = (Vec::new(), 0.0);
    for number in 0..STARTS {
        let begin = Instant::now();
        let proxy = rig.launch(name)?;
        first_answer(proxy.address, Duration::from_secs(20)).await?;
        firsts.push(begin.elapsed().as_secs_f64() * 1000.0);
        if number + 1 == STARTS {
            tokio::time::sleep(IDLE).await;
            idle_mb = resident_bytes(proxy.started.pid())? as f64 / 1e6;
        }
    }
    Ok(Start { first_ms: crate::histogram::median(&firsts).unwrap_or(f64::NAN), idle_mb })
}
