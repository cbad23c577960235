//! The load at which most good requests are served per second: of each cell that was run at several loads (`cell@load`), by each of
//! its promises, the best over the policies.
use std::collections::BTreeMap;

use super::batch::{Outcome, Run};
use crate::report::Report;

/// Where one policy served most.
#[derive(Clone, Debug)]
struct Peak {
    load: f64,
    policy: String,
    goodput: f64,
}

/// Shows the peaks of all cells.
pub(crate) fn show(outcome: &Outcome, report: &mut Report) {
    let mut peaks: BTreeMap<(String, String), Peak> = BTreeMap::new();
    let mut seen: BTreeMap<(String, String, String), Vec<f64>> = BTreeMap::new();
    for run in &outcome.runs {
        for (slo, goodput) in goodputs(run) {
            seen.entry((run.cell.clone(), slo, run.policy.clone())).or_default().push(goodput);
        }
    }
    for ((cell, slo, policy), goodputs) in seen {
        let Some((name, load)) = cell.rsplit_once('@').and_then(|(name, load)| Some((name, load.parse::<f64>().ok()?)))
        else {
            continue;
        };
        let goodput = goodputs.iter().sum::<f64>() / goodputs.len() as f64;
        let peak = Peak { load, policy, goodput };
        let best = peaks.entry((name.to_owned(), slo)).or_insert_with(|| peak.clone());
        if load * goodput > best.load * best.goodput {
            *best = peak;
        }
    }
    report.say(format!("{:24} {:4} {:>8} {:>8}  {}", "cell", "slo", "load", "good", "policy"));
    for ((cell, slo), Peak { load, policy, goodput }) in &peaks {
        report.say(format!("{cell:24} {slo:4} {load:>8.3} {goodput:>8.3}  {policy}"));
    }
}

/// By the cell's own promise, which has no name, and by the others.
fn goodputs(run: &Run) -> Vec<(String, f64)> {
    let named = run.summary.goodputs.iter().map(|(name, goodput)| (name.clone(), *goodput));
    if run.summary.goodputs.is_empty() { vec![("-".to_owned(), run.summary.goodput)] } else { named.collect() }
}
