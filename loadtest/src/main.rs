//! Load tool and overhead harness for Tidegate. Every target is on 127.0.0.1, every run is bounded in count and time.
//!
//! ```text
//! run           load at an exact schedule or in a closed loop        -> run.rs      (schedule, body, client, sse, histogram)
//!               or of several kinds of clients at once               -> crowd.rs    (tally)
//! streams       many streams at once: memory per stream, good ends   -> streams.rs
//! overhead      CPU and latency next to nginx and bare Pingora       -> overhead/   (process, proxies, backend, bare_pingora)
//! badinput      what a gate must refuse                              -> badinput/   (corpus)
//! backend       a pod that costs next to nothing
//! cluster       discovery in Kubernetes under changes               -> cluster.rs
//! restart       restarts, reloads and upgrades under load           -> restart/
//! lab           policies on simulated engines, virtual time          -> lab/
//! bare-pingora  the least a Pingora proxy can be
//! ```
//! Text goes to standard output as the work proceeds, the whole result as JSON to the file given with `--json`. Exit code: 0 all checks held,
//! 1 a check missed, 2 the run could not be made.
#![allow(
    clippy::disallowed_methods,
    reason = "a tool that measures time, drives its own tasks and reads its own environment"
)]

mod backend;
mod badinput;
mod bare_pingora;
mod body;
mod client;
mod cluster;
mod corpus;
mod crowd;
mod histogram;
mod lab;
mod legs;
mod load;
mod overhead;
mod process;
mod report;
mod restart;
mod run;
mod schedule;
mod sse;
mod streams;
mod tally;
mod target;
mod wire;

use clap::{Parser, Subcommand};
use report::Report;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Name of the model when none is given.
pub(crate) const MODEL: &str = "load-model";

#[derive(Parser)]
#[command(version, about = "Load tool and overhead harness for Tidegate; sends to 127.0.0.1 only")]
struct Cli {
    /// Also write the result as JSON to this file (`-`: standard output)
    #[arg(long, global = true)]
    json: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load at an exact schedule or in a closed loop
    Run(run::Args),
    /// CPU, latency, memory next to nginx and a bare Pingora proxy
    Overhead(overhead::Args),
    /// Many streams at once: memory per stream, good ends, gauges
    Streams(streams::Args),
    /// What a gate must refuse, while a good client runs beside it
    Badinput(badinput::Args),
    /// A pod that costs next to nothing
    Backend(backend::Args),
    /// Policies on simulated engines, without sockets
    Lab(lab::Args),
    /// What a request on two pods costs the gate, next to one
    Legs(legs::Args),
    /// Discovery in Kubernetes under changes, and without an API server
    Cluster(cluster::Args),
    /// Restarts, reloads and upgrades of two gates under load
    Restart(restart::Args),
    /// The least a Pingora proxy can be
    BarePingora(bare_pingora::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match work(cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("loadtest: {error}");
            ExitCode::from(2)
        }
    }
}

fn work(cli: Cli) -> io::Result<bool> {
    let mut report = Report::new(cli.json);
    let command = match cli.command {
        Command::BarePingora(args) => bare_pingora::serve(args),
        Command::Lab(args) => {
            lab::run(args, &mut report)?;
            return report.finish();
        }
        other => other,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        tokio::select! {
            result = perform(command, report) => result,
            _ = tokio::signal::ctrl_c() => Err(io::Error::other("interrupted; the started processes were ended")),
        }
    })
}

async fn perform(command: Command, mut report: Report) -> io::Result<bool> {
    match command {
        Command::Run(args) => run::run(args, &mut report).await?,
        Command::Overhead(args) => overhead::run(args, &mut report).await?,
        Command::Legs(args) => legs::run(args, &mut report).await?,
        Command::Streams(args) => streams::run(args, &mut report).await?,
        Command::Badinput(args) => tokio::task::LocalSet::new().run_until(badinput::run(args, &mut report)).await?,
        Command::Cluster(args) => cluster::run(args, &mut report).await?,
        Command::Restart(args) => restart::run(args, &mut report).await?,
        Command::Backend(args) => backend::serve(args).await?,
        Command::BarePingora(_) | Command::Lab(_) => {}
    }
    report.finish()
}
