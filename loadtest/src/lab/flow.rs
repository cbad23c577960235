//! Overload, with and without a queue at the gate: the capacity of a cell without one, then both at multiples of it.
//!
//! Capacity is the highest load at which, without a queue, the backlog in the engines does not grow: in the last quarter of the run
//! no more than a quarter, and one request per pod, above the third. Everything else is told against it, and against the same run
//! without a queue.
use std::io;

use super::RunArgs;
use super::batch::{Batch, Outcome};
use super::cell::Cell;
use super::policies::Policy;
use super::script::Class;
use super::service::{ClassService, Service, jain};
use super::summary::Summary;
use crate::report::Report;

/// Multiples of the capacity that are looked at; the first stands for an idle fleet, the second for the peak.
const LOADS: [f64; 5] = [0.2, 1.0, 1.2, 1.5, 2.7];
const OVERLOADS: [f64; 3] = [1.2, 1.5, 2.7];
/// Bounds of the search for the capacity, as multiples of the cell's own load, and its steps.
const SEARCH: (f64, f64) = (0.1, 4.0);
const STEPS: u32 = 7;

/// What a gate does, and what it knows.
const WAYS: [(&str, &str, Change); 5] = [
    ("fifo", "fifo", |_| {}),
    ("queue", "queue", |_| {}),
    ("obeyed", "queue", |cell| cell.clients.obeys = true),
    ("scrapes dead", "queue", |cell| cell.gate.scrapes_max = 1),
    ("scrapes 5 s old", "queue", |cell| cell.gate.scrape_delay_ms = 5_000),
];

type Change = fn(&mut Cell);

/// The runs of one cell.
struct Runs<'a> {
    outcome: &'a Outcome,
    cell: &'a str,
}

impl Runs<'_> {
    /// Mean over seeds of a figure of one way at one load.
    fn mean(&self, way: &str, load: f64, figure: impl Fn(&Summary) -> f64) -> f64 {
        let name = named(self.cell, way, load);
        let policy = WAYS.iter().find(|(known, ..)| *known == way).map_or("queue", |(_, policy, _)| policy);
        self.outcome.mean(&name, policy, figure).unwrap_or(f64::NAN)
    }
}

fn named(cell: &str, way: &str, load: f64) -> String {
    format!("{cell} {way}@{load}")
}

/// Runs all cells of the suites and tells what became of overload.
pub(crate) fn run(args: &RunArgs, report: &mut Report) -> io::Result<Outcome> {
    let batch = Batch::new(args)?;
    let policies = ["fifo={}", "queue={flow: {}}"].map(|text| Policy::of(text, &args.policies_dir));
    let policies = policies.into_iter().collect::<io::Result<Vec<_>>>()?;
    let mut all = Outcome::default();
    for cell in batch.cells() {
        let capacity = capacity(cell, args, &policies, report)?;
        let mut outcome = Outcome::default();
        for policy in &policies {
            let ways = WAYS.iter().filter(|(_, name, _)| *name == policy.name);
            let cells = ways.flat_map(|(way, _, change)| {
                LOADS.map(|load| {
                    let workload = cell.workload.times(capacity * load);
                    let mut at = Cell { name: named(&cell.name, way, load), workload, ..cell.clone() };
                    change(&mut at);
                    at
                })
            });
            outcome.runs.extend(batch_of(cells.collect(), args, policy).run(args.threads, report)?.runs);
        }
        show(&Runs { outcome: &outcome, cell: &cell.name }, capacity, report);
        all.runs.extend(outcome.runs);
    }
    Ok(all)
}

fn batch_of(cells: Vec<Cell>, args: &RunArgs, policy: &Policy) -> Batch {
    let seeds = (args.seed..args.seed + args.seeds).collect();
    Batch::with(cells, vec![policy.clone()], seeds, args.traces.clone(), Vec::new())
}

/// The load at which the backlog without a queue just does not grow, as a multiple of the cell's own.
fn capacity(cell: &Cell, args: &RunArgs, policies: &[Policy], report: &Report) -> io::Result<f64> {
    let Some(fifo) = policies.first() else { return Ok(1.0) };
    let (mut low, mut high) = SEARCH;
    for _ in 0..STEPS {
        let load = (low * high).sqrt();
        let at = Cell { workload: cell.workload.times(load), ..cell.clone() };
        let outcome = batch_of(vec![at], args, fifo).run(args.threads, report)?;
        let mean = |figure: fn(&Service) -> f64| {
            outcome.mean(&cell.name, &fifo.name, |one| figure(&one.service)).unwrap_or(f64::INFINITY)
        };
        let (third, last) = (mean(|service| service.backlog.0), mean(|service| service.backlog.1));
        let is_stable = last <= 1.25 * third + f64::from(cell.fleet.pods);
        if is_stable { low = load } else { high = load }
    }
    Ok(low)
}

fn of_class(class: Class, figure: fn(&ClassService) -> f64) -> impl Fn(&Summary) -> f64 {
    move |one| one.service.classes.get(&class).map_or(0.0, figure)
}

fn sum(figure: fn(&ClassService) -> u64) -> impl Fn(&Summary) -> f64 {
    move |one| one.service.classes.values().map(figure).sum::<u64>() as f64
}

/// Shows one cell.
fn show(runs: &Runs<'_>, capacity: f64, report: &mut Report) {
    report.say(format!("\n{}: without a queue the backlog is stable up to {capacity:.3} of its load", runs.cell));
    let ttft = |way: &str, load| runs.mean(way, load, of_class(Class::Interactive, |class| class.ttft_s.p90));
    let idle = ttft("fifo", 0.2);
    let peak = LOADS.iter().map(|load| runs.mean("queue", *load, |one| one.service.kept_per_s)).fold(0.0, f64::max);
    report.say(format!(
        "  {:16}{:>6}{:>10}{:>8}{:>8}{:>8}{:>9}{:>9}{:>7}{:>9}{:>8}{:>7}{:>7}",
        "",
        "load",
        "p90 ttft",
        "/idle",
        "work",
        "/fifo",
        "refused",
        "at once",
        "late",
        "in time",
        "kept/s",
        "/peak",
        "preem"
    ));
    for (way, ..) in WAYS {
        for load in OVERLOADS {
            let work = runs.mean(way, load, |one| one.service.work);
            let refused = runs.mean(way, load, sum(|class| class.refused));
            let at_once = runs.mean(way, load, sum(|class| class.refused_at_once)) / refused;
            let in_time = runs.mean(way, load, sum(|class| class.kept)) / runs.mean(way, load, sum(|class| class.good));
            let kept = runs.mean(way, load, |one| one.service.kept_per_s);
            report.say(format!(
                "  {way:16}{load:>6}{:>10.3}{:>8.2}{work:>8.2}{:>8.3}{:>9.3}{at_once:>9.3}{:>7.1}{in_time:>9.3}{kept:>8.2}{:>7.3}{:>7.4}",
                ttft(way, load),
                ttft(way, load) / idle,
                work / runs.mean("fifo", load, |one| one.service.work),
                refused / runs.mean(way, load, sum(|class| class.requests)),
                runs.mean(way, load, sum(|class| class.refused_late)),
                kept / peak,
                runs.mean(way, load, |one| one.preemptions as f64 / one.requests.max(1) as f64),
            ));
        }
    }
    for (way, load) in OVERLOADS.map(|load| ("queue", load)) {
        let tenants = runs.mean(way, load, |one| one.service.backlogged.len() as f64);
        if tenants > 0.0 {
            let even = runs.mean(way, load, |one| jain(one.service.backlogged.values()));
            let gap = runs.mean(way, load, |one| one.service.gap_s / one.service.largest_s.max(1e-9));
            report.say(format!(
                "  at {load}: {tenants:.0} tenants always wait, Jain's index {even:.3}, gap {gap:.2} of the largest request"
            ));
        }
    }
}
