//! One cell against another within a policy, seed by seed: what a setting costs. Ratio of means over seeds, and the 95 %
//! interval of the seeds' own ratios.
use std::fmt::Write as _;
use std::io;

use serde_json::json;

use super::batch::Outcome;
use super::regret::half_interval;
use super::summary::{Summary, round6};
use crate::report::Report;

type Figure = (&'static str, fn(&Summary) -> f64);

const FIGURES: [Figure; 4] = [
    ("ttft mean", |one| one.ttft_s.mean),
    ("ttft p90", |one| one.ttft_s.p90),
    ("e2e mean", |one| one.e2e_s.mean),
    ("hit", |one| one.hit),
];

/// Shows all cells of the results against `base`.
pub(crate) fn show(outcome: &Outcome, base: &str, report: &mut Report) -> io::Result<()> {
    if !outcome.cells().contains(&base) {
        let known = outcome.cells().join(", ");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("no cell `{base}`; there are: {known}")));
    }
    let mut rows = Vec::new();
    for policy in outcome.policies() {
        report.say(format!("\n{policy}, against {base}"));
        for cell in outcome.cells().into_iter().filter(|cell| *cell != base) {
            let mut line = format!("  {cell:24}");
            for (name, figure) in FIGURES {
                let (mean, plus_minus) = ratio(outcome, policy, cell, base, figure);
                // Writing to a string cannot fail.
                write!(line, "  {name} {mean:.3} ± {plus_minus:.3}").ok();
                rows.push(json!({ "policy": policy, "cell": cell, "figure": name, "ratio": mean, "pm": plus_minus }));
            }
            report.say(line);
        }
    }
    report.put("paired", rows);
    Ok(())
}

/// Mean and half the interval of the ratio over the seeds that both have.
fn ratio(outcome: &Outcome, policy: &str, cell: &str, base: &str, figure: impl Fn(&Summary) -> f64) -> (f64, f64) {
    let mut ratios = Vec::new();
    for run in outcome.of(cell, policy) {
        if let Some(other) = outcome.of(base, policy).find(|other| other.seed == run.seed) {
            ratios.push(figure(&run.summary).max(1e-9) / figure(&other.summary).max(1e-9));
        }
    }
    let mean = ratios.iter().sum::<f64>() / ratios.len().max(1) as f64;
    (round6(mean), round6(half_interval(&ratios)))
}
