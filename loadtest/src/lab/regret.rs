//! Regret: a policy's figure over the best that any policy of the results reached in the same cell (means over seeds). Over
//! cells: geometric mean and worst. Intervals are of the seeds: the geometric mean of each seed, mean ± t·s/√n at 95 %.
//!
//! A figure of less than a millisecond counts as one, so that near-perfect cells do not make ratios of noise.
use std::io;

use serde::Serialize;

use super::batch::Outcome;
use super::summary::{Summary, round6};
use crate::report::Report;

/// Least value that counts \[s\].
const LEAST_S: f64 = 1e-3;

/// One policy under one figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Regret {
    pub(crate) policy: String,
    /// Geometric mean over cells.
    pub(crate) geo_mean: f64,
    /// Half the 95 % interval of it over seeds; 0 with one seed.
    pub(crate) plus_minus: f64,
    pub(crate) worst: f64,
    pub(crate) worst_cell: String,
    /// By cell.
    pub(crate) cells: Vec<(String, f64)>,
}

/// All policies under one figure, the best first.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Table {
    pub(crate) figure: String,
    pub(crate) rows: Vec<Regret>,
}

/// Regrets by figure.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Regrets {
    pub(crate) tables: Vec<Table>,
    /// Of each policy: hit over the pooled LRU, geometric mean and least over cells where the pool hits at all.
    pub(crate) hits: Vec<(String, f64, f64, String)>,
}

type Figure = (&'static str, fn(&Summary) -> f64);

const FIGURES: [Figure; 3] =
    [("e2e mean", |one| one.e2e_s.mean), ("ttft mean", |one| one.ttft_s.mean), ("ttft p90", |one| one.ttft_s.p90)];

impl Regrets {
    /// Of these results; only `shown` policies get rows, if any are named.
    pub(crate) fn of(outcome: &Outcome, shown: &[String]) -> Self {
        let policies: Vec<&str> = outcome.policies();
        let rows = || policies.iter().filter(|name| shown.is_empty() || shown.iter().any(|one| one == *name));
        let tables = FIGURES.iter().map(|(name, figure)| {
            let mut table: Vec<Regret> = rows().map(|policy| regret(outcome, policy, figure)).collect();
            table.sort_by(|a, b| a.geo_mean.total_cmp(&b.geo_mean));
            Table { figure: (*name).to_owned(), rows: table }
        });
        Self { tables: tables.collect(), hits: rows().map(|policy| hits(outcome, policy)).collect() }
    }

    /// Shows the tables.
    pub(crate) fn show(&self, report: &Report) {
        for table in &self.tables {
            report.say(format!("\nregret, {}", table.figure));
            for row in &table.rows {
                let interval = format!("{:.3} ± {:.3}", row.geo_mean, row.plus_minus);
                report.say(format!("  {:32} {interval:>16}  worst {:.3} ({})", row.policy, row.worst, row.worst_cell));
            }
        }
        report.say("\nhit over pooled LRU");
        for (policy, geo_mean, least, cell) in &self.hits {
            report.say(format!("  {policy:32} {geo_mean:>16.3}  least {least:.3} ({cell})"));
        }
    }

    /// Puts all into the report's JSON.
    pub(crate) fn put(&self, report: &mut Report) -> io::Result<()> {
        report.put("regrets", serde_json::to_value(self).map_err(io::Error::other)?);
        Ok(())
    }
}

fn regret(outcome: &Outcome, policy: &str, figure: &impl Fn(&Summary) -> f64) -> Regret {
    let best = |cell: &str| {
        let means = outcome.policies().into_iter().filter_map(|name| outcome.mean(cell, name, figure));
        means.fold(f64::INFINITY, f64::min).max(LEAST_S)
    };
    let mut cells = Vec::new();
    let mut by_seed: Vec<(u64, f64, f64)> = Vec::new();
    for cell in outcome.cells() {
        let Some(mean) = outcome.mean(cell, policy, figure) else { continue };
        let best = best(cell);
        cells.push((cell.to_owned(), round6(mean.max(LEAST_S) / best)));
        for run in outcome.of(cell, policy) {
            let log = (figure(&run.summary).max(LEAST_S) / best).ln();
            match by_seed.iter_mut().find(|(seed, ..)| *seed == run.seed) {
                Some(entry) => *entry = (entry.0, entry.1 + log, entry.2 + 1.0),
                None => by_seed.push((run.seed, log, 1.0)),
            }
        }
    }
    let logs: f64 = cells.iter().map(|(_, ratio)| ratio.ln()).sum();
    let worst = cells.iter().max_by(|a, b| a.1.total_cmp(&b.1)).cloned().unwrap_or_default();
    let seeds: Vec<f64> = by_seed.iter().map(|(_, sum, count)| (sum / count).exp()).collect();
    Regret {
        policy: policy.to_owned(),
        geo_mean: round6((logs / cells.len().max(1) as f64).exp()),
        plus_minus: round6(half_interval(&seeds)),
        worst: worst.1,
        worst_cell: worst.0,
        cells,
    }
}

/// Half the 95 % interval of a mean (Student's t); 0 for fewer than two values.
pub(crate) fn half_interval(values: &[f64]) -> f64 {
    const T: [f64; 10] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228];
    let count = values.len() as f64;
    let Some(freedom) = values.len().checked_sub(1).filter(|freedom| *freedom > 0) else { return 0.0 };
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / freedom as f64;
    T.get(freedom - 1).copied().unwrap_or(1.96) * (variance / count).sqrt()
}

/// A policy's hits over those of the pooled LRU: geometric mean, least and where.
fn hits(outcome: &Outcome, policy: &str) -> (String, f64, f64, String) {
    let (mut logs, mut count, mut least) = (0.0, 0.0, (f64::INFINITY, String::new()));
    for cell in outcome.cells() {
        let ratio = |one: &Summary| one.hit.max(1e-6) / one.oracle_lru;
        // Below one token in a hundred there is nothing to win by routing.
        let pool = outcome.mean(cell, policy, |one| one.oracle_lru).filter(|pool| *pool >= 0.01);
        let Some(ratio) = pool.and_then(|_| outcome.mean(cell, policy, ratio)) else { continue };
        logs += ratio.ln();
        count += 1.0;
        if ratio < least.0 {
            least = (ratio, cell.to_owned());
        }
    }
    let mean: f64 = if count > 0.0 { (logs / count).exp() } else { 0.0 };
    (policy.to_owned(), round6(mean), round6(least.0), least.1)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::super::batch::Run;
    use super::*;

    #[test]
    fn regret_is_against_the_best_of_each_cell() {
        let run = |cell: &str, policy: &str, seed, mean| {
            let mut summary = Summary { oracle_lru: 0.5, hit: 0.5, ..Summary::default() };
            summary.e2e_s.mean = mean;
            Run { cell: cell.into(), policy: policy.into(), seed, summary }
        };
        let runs = vec![
            run("one", "a", 1, 1.0),
            run("one", "a", 2, 3.0),
            run("one", "b", 1, 4.0),
            run("one", "b", 2, 4.0),
            run("two", "a", 1, 8.0),
            run("two", "a", 2, 8.0),
            run("two", "b", 1, 4.0),
            run("two", "b", 2, 4.0),
        ];
        let regrets = Regrets::of(&Outcome { runs, skipped: Vec::new() }, &[]);
        let e2e = &regrets.tables[0];
        let row = |name: &str| e2e.rows.iter().find(|row| row.policy == name).unwrap();
        assert_eq!((row("a").worst_cell.as_str(), row("b").worst_cell.as_str()), ("two", "one"));
        for name in ["a", "b"] {
            assert!((row(name).worst - 2.0).abs() < 1e-9 && (row(name).geo_mean - 2.0_f64.sqrt()).abs() < 1e-5);
        }
        assert!(row("a").plus_minus > 0.5 && row("b").plus_minus < 1e-9);
        assert!((regrets.hits[0].1 - 1.0).abs() < 1e-9);
    }
}
