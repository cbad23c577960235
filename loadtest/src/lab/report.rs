//! Results as text: one table per cell, a line per policy, means over seeds.
use std::fmt::Write as _;

use super::batch::Outcome;
use super::summary::Summary;
use crate::report::Report;

type Figure = (&'static str, fn(&Summary) -> f64, usize);

const FIGURES: [Figure; 15] = [
    ("ttft", |one| one.ttft_s.mean, 3),
    ("p50", |one| one.ttft_s.p50, 3),
    ("p90", |one| one.ttft_s.p90, 3),
    ("p99", |one| one.ttft_s.p99, 2),
    ("itl ms", |one| one.itl_s.mean * 1e3, 1),
    ("e2e", |one| one.e2e_s.mean, 2),
    ("p90", |one| one.e2e_s.p90, 2),
    ("good", |one| one.goodput, 3),
    ("remote", |one| one.remote, 2),
    ("hit", |one| one.hit, 3),
    ("/lru", |one| one.hit / one.oracle_lru.max(1e-9), 3),
    ("belief", |one| one.belief_error, 4),
    ("imbal", |one| one.imbalance, 2),
    ("preempt", |one| one.preemptions as f64, 0),
    ("kv", |one| one.kv_used, 2),
];

/// Shows all cells.
pub(crate) fn show(outcome: &Outcome, report: &mut Report) {
    let width = outcome.policies().iter().map(|name| name.len()).max().unwrap_or(0).max(8);
    for cell in outcome.cells() {
        let first = outcome.runs.iter().find(|run| run.cell == cell);
        let (requests, oracle) = first.map_or((0, [0.0; 3]), |run| {
            let one = &run.summary;
            (one.requests, [one.oracle_lru, one.oracle_belady, one.oracle_infinite])
        });
        let [lru, belady, infinite] = oracle;
        report.say(format!(
            "\n{cell}: {requests} requests; hit of one pool: LRU {lru:.3}, Belady {belady:.3}, unbounded {infinite:.3}"
        ));
        let heads: Vec<String> = FIGURES.iter().map(|(name, ..)| format!("{name:>9}")).collect();
        let heads = heads.concat();
        report.say(format!("  {:width$}{heads}", "policy"));
        for policy in outcome.policies() {
            let mut line = format!("  {policy:width$}");
            for (_, figure, digits) in FIGURES {
                // Writing to a string cannot fail.
                match outcome.mean(cell, policy, figure) {
                    Some(value) => write!(line, "{value:>9.digits$}").ok(),
                    None => write!(line, "{:>9}", "-").ok(),
                };
            }
            report.say(line);
        }
    }
    for run in &outcome.runs {
        let one = &run.summary;
        let name = format!("{} {} seed {}", run.cell, run.policy, run.seed);
        if one.leaked > 0 {
            report.miss(format!("{name}: {} requests left in the gates' books", one.leaked));
        }
        if !one.belief_after_restart.is_empty() {
            let windows = one.belief_after_restart.iter().map(|(at, error)| format!("{at:.0} s {error:.3}"));
            report.say(format!(
                "NOTE  {name}: belief error after the restart: {}",
                windows.collect::<Vec<_>>().join(", ")
            ));
        }
        if one.refused + one.unfinished + one.broken > 0 {
            let (refused, unfinished, broken) = (one.refused, one.unfinished, one.broken);
            report.say(format!("NOTE  {name}: {refused} refused, {unfinished} unfinished, {broken} broken"));
        }
    }
}
