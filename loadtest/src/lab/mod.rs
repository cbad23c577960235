//! The policy lab: the gate's own scheduling and prefix index before simulated engines, on a virtual clock, without sockets.
//!
//! ```text
//! cell      one workload on one fleet; conf/lab/*.yaml     inputs/  traces and generated workloads -> script
//! script    sessions, turns, pieces of text                render   a prompt as tokens, and as the body the gate reads
//! world     the clock: arrivals, steps, scrapes            gate     one gate replica; all knowledge of its interfaces
//! pods      engines, grouped in data-parallel ranks        record   what happened to each request
//! oracle    what one pooled cache could have hit           summary  a log in figures
//! policies  profiles by name                               batch    many runs on some threads
//! flow      overload, with and without a queue   service  what classes and tenants got
//! regret    how far from the best of each cell             paired   one cell against another, seed by seed
//! peaks     loads that serve most good requests        report, plot   text, SVG
//! sockets   the same cell over sockets
//! ```
//! The same cell, seed and profile give the same bytes of JSON. Gates see bytes only; engines count tokens.
mod batch;
mod cell;
mod flow;
mod gate;
mod inputs;
mod oracle;
mod paired;
mod peaks;
mod plot;
mod pods;
mod policies;
mod record;
mod regret;
mod render;
mod report;
mod script;
mod service;
mod sockets;
mod summary;
#[cfg(test)]
mod tests;
mod world;

use std::io;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use crate::report::Report;

#[derive(ClapArgs)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run policies on cells
    Run(RunArgs),
    /// What becomes of overload with and without a queue at the gate
    Flow(RunArgs),
    /// How far each policy is from the best of each cell, over results written with --json
    Regret(RegretArgs),
    /// Each cell against another one of the same results, seed by seed, within each policy
    Paired(PairedArgs),
    /// The load at which each cell serves most good requests per second, over results at several loads
    Peaks(PeaksArgs),
    /// The same cell in the lab and over sockets: a real gate before simulated pods, whose hit counters must agree
    Sockets(sockets::SocketArgs),
}

/// What to run.
#[derive(ClapArgs, Clone, Debug)]
pub(crate) struct RunArgs {
    /// Lists of cells
    #[arg(long, required = true, num_args = 1..)]
    pub(crate) suite: Vec<PathBuf>,
    /// Only cells whose name contains one of these
    #[arg(long, value_delimiter = ',')]
    pub(crate) cell: Vec<String>,
    /// Folder that trace files are relative to
    #[arg(long, default_value = "traces")]
    pub(crate) traces: PathBuf,
    /// Policies by name: `default`, a file of --policies-dir, or a scorer; default: all the suite names
    #[arg(long, value_delimiter = ',')]
    pub(crate) policies: Vec<String>,
    /// A policy as NAME=SETTINGS, e.g. 'fast={scorers: [{token-cost: {urgency: 5}}]}'
    #[arg(long)]
    pub(crate) policy: Vec<String>,
    /// Folder of policies
    #[arg(long, default_value = "conf/policies")]
    pub(crate) policies_dir: PathBuf,
    /// Seeds per cell
    #[arg(long, default_value_t = 1)]
    pub(crate) seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// Change a setting of all cells, e.g. fleet.pods=16 or gate.count=4
    #[arg(long, value_name = "PATH=VALUE")]
    pub(crate) set: Vec<String>,
    /// Run each cell at these multiples of its load, e.g. 0.7,0.9,1
    #[arg(long, value_delimiter = ',')]
    pub(crate) loads: Vec<f64>,
    /// Runs at the same time
    #[arg(long, default_value_t = 2)]
    pub(crate) threads: usize,
    /// Also draw the results
    #[arg(long)]
    pub(crate) svg: Option<PathBuf>,
}

#[derive(ClapArgs)]
struct RegretArgs {
    /// Results, as written with --json
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Only these policies in the table; the best of each cell is still taken over all
    #[arg(long, value_delimiter = ',')]
    policies: Vec<String>,
    /// Also draw the regrets
    #[arg(long)]
    svg: Option<PathBuf>,
}

#[derive(ClapArgs)]
struct PairedArgs {
    /// Results, as written with --json
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// The cell that the others are compared with
    #[arg(long)]
    base: String,
}

#[derive(ClapArgs)]
struct PeaksArgs {
    /// Results of `run --loads`, as written with --json
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// Runs a command of the lab.
pub(crate) fn run(args: Args, report: &mut Report) -> io::Result<()> {
    match args.command {
        Command::Run(args) => {
            let batch = batch::Batch::new(&args)?;
            let outcome = batch.run(args.threads, report)?;
            report::show(&outcome, report);
            if let Some(path) = &args.svg {
                std::fs::write(path, plot::results(&outcome))?;
            }
            outcome.put(report)
        }
        Command::Flow(args) => flow::run(&args, report)?.put(report),
        Command::Regret(args) => {
            let outcome = batch::Outcome::read(&args.files)?;
            let regrets = regret::Regrets::of(&outcome, &args.policies);
            regrets.show(report);
            if let Some(path) = &args.svg {
                std::fs::write(path, plot::regrets(&regrets))?;
            }
            regrets.put(report)
        }
        Command::Paired(args) => {
            let outcome = batch::Outcome::read(&args.files)?;
            paired::show(&outcome, &args.base, report)
        }
        Command::Peaks(args) => {
            peaks::show(&batch::Outcome::read(&args.files)?, report);
            Ok(())
        }
        Command::Sockets(args) => sockets::run(&args, report),
    }
}
