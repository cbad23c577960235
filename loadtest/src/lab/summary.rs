//! A log in figures. Numbers are rounded to six digits, so that reports are short and the same everywhere.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Slo};
use super::oracle::Oracle;
use super::record::{End, Log, Record, gap_of_bin};
use super::service::Service;

/// Mean and percentiles.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Spread {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
}

/// Everything that is reported of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) requests: u64,
    /// Ended with all tokens.
    pub(crate) good: u64,
    /// Lost their pod after the first token.
    pub(crate) broken: u64,
    pub(crate) refused: u64,
    pub(crate) unfinished: u64,
    /// Requests that came without the gate; in no other figure but those of the engines.
    pub(crate) foreign: u64,
    pub(crate) makespan_s: f64,
    pub(crate) output_tokens_per_s: f64,
    /// Time to the first token the engine made \[s\].
    pub(crate) ttft_s: Spread,
    /// Mean time between tokens of a request \[s\].
    pub(crate) itl_s: Spread,
    /// Single gaps between tokens \[s\].
    pub(crate) gap_s: Spread,
    /// Arrival to end \[s\].
    pub(crate) e2e_s: Spread,
    /// Share of requests that got what was promised ([`Slo`]).
    pub(crate) goodput: f64,
    /// The same by the cell's other promises.
    #[serde(default)]
    pub(crate) goodputs: BTreeMap<String, f64>,
    /// Share of requests whose prefill another pod did.
    #[serde(default)]
    pub(crate) remote: f64,
    /// Prompt tokens not computed over prompt tokens.
    pub(crate) hit: f64,
    pub(crate) oracle_lru: f64,
    pub(crate) oracle_belady: f64,
    pub(crate) oracle_infinite: f64,
    /// Sum of |believed - true| hit tokens over prompt tokens.
    pub(crate) belief_error: f64,
    /// The same by time of dispatch: seconds at which a window begins, error.
    pub(crate) belief_windows: Vec<(f64, f64)>,
    /// The same over requests of the second half of the run.
    pub(crate) belief_error_late: f64,
    /// The same for the minute after the restart: seconds since then at which a window of 10 s begins, error.
    pub(crate) belief_after_restart: Vec<(f64, f64)>,
    /// Requests on the fullest rank over those on the mean one, averaged over seconds with at least one request per rank.
    pub(crate) imbalance: f64,
    pub(crate) preemptions: u64,
    /// Share of KV held by running requests, mean over time.
    pub(crate) kv_used: f64,
    /// Requests waiting inside of engines, mean over time.
    pub(crate) waiting: f64,
    pub(crate) steps: u64,
    /// How classes and tenants were served.
    #[serde(default)]
    pub(crate) service: Service,
    /// Left in the gates' books at the end; anything but 0 is a fault.
    pub(crate) leaked: u32,
}

/// Rounds to six significant digits.
pub(crate) fn round6(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 5 - value.abs().log10().floor() as i32;
    let scale = 10_f64.powi(digits.clamp(-300, 300));
    (value * scale).round() / scale
}

impl Spread {
    /// Of these values; all 0 without any.
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        values.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| {
            let place = ((values.len() as f64 * share).ceil() as usize).saturating_sub(1);
            round6(values.get(place).copied().unwrap_or(0.0))
        };
        let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
        Self { mean: round6(mean), p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }

    fn of_gaps(bins: &[u64]) -> Self {
        let count: u64 = bins.iter().sum();
        let at = |share: f64| {
            let mut left = (count as f64 * share).ceil() as u64;
            let place = bins.iter().position(|bin| {
                left = left.saturating_sub(*bin);
                left == 0
            });
            round6(place.filter(|_| count > 0).map_or(0.0, gap_of_bin))
        };
        let sum: f64 = bins.iter().enumerate().map(|(bin, count)| gap_of_bin(bin) * *count as f64).sum();
        Self { mean: round6(sum / count.max(1) as f64), p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

impl Summary {
    /// The figures of a log.
    pub(crate) fn of(log: &Log, cell: &Cell) -> Self {
        let own: Vec<&Record> = log.records.iter().filter(|record| !record.is_foreign).collect();
        let count = |end: End| own.iter().filter(|record| record.end == end).count() as u64;
        let spread = |value: fn(&Record) -> Option<f64>| Spread::of(own.iter().filter_map(|one| value(one)).collect());
        let served = || own.iter().filter(|record| record.first.is_some());
        let prompts: u64 = served().map(|record| record.prompt_tokens).sum();
        let cached: u64 = served().map(|record| record.cached).sum();
        let outputs: u64 = own.iter().filter(|one| one.end == End::Good).map(|one| one.output_tokens).sum();
        let goodput = |slo: &Slo| {
            let is_good = |record: &&&Record| cell.is_good(slo, record);
            round6(own.iter().filter(is_good).count() as f64 / own.len().max(1) as f64)
        };
        let oracle = Oracle::of(log, cell.fleet.block_tokens);
        let wrong: u64 = served().map(|record| record.believed.abs_diff(record.cached)).sum();
        let seconds = log.ended as f64 / 1e6;
        let over_time = |value: fn(&super::record::Sample) -> f64| {
            round6(log.samples.iter().map(value).sum::<f64>() / log.samples.len().max(1) as f64)
        };
        Self {
            requests: own.len() as u64,
            good: count(End::Good),
            broken: count(End::Broken),
            refused: count(End::Refused),
            unfinished: count(End::Unfinished),
            foreign: (log.records.len() - own.len()) as u64,
            makespan_s: round6(seconds),
            output_tokens_per_s: round6(outputs as f64 / seconds.max(1e-6)),
            ttft_s: spread(Record::ttft_s),
            itl_s: spread(Record::itl_s),
            gap_s: Spread::of_gaps(&log.gaps),
            e2e_s: spread(Record::e2e_s),
            goodput: goodput(&cell.slo),
            goodputs: cell.slos.iter().map(|(name, slo)| (name.clone(), goodput(slo))).collect(),
            remote: round6(own.iter().filter(|one| one.is_remote).count() as f64 / own.len().max(1) as f64),
            hit: round6(cached as f64 / prompts.max(1) as f64),
            oracle_lru: round6(oracle.lru),
            oracle_belady: round6(oracle.belady),
            oracle_infinite: round6(oracle.infinite),
            belief_error: round6(wrong as f64 / prompts.max(1) as f64),
            belief_windows: windows(&own, 60.0, 0.0),
            belief_error_late: windows(&own, seconds, seconds / 2.0).first().map_or(0.0, |(_, error)| *error),
            belief_after_restart: cell.restart.map_or_else(Vec::new, |restart| {
                windows(&own, 10.0, restart.at_s).into_iter().take_while(|(at, _)| *at < 60.0).collect()
            }),
            imbalance: imbalance(log, f64::from(cell.fleet.pods * cell.fleet.ranks.max(1))),
            preemptions: log.totals.preemptions,
            kv_used: over_time(|sample| sample.kv_used),
            waiting: over_time(|sample| f64::from(sample.waiting)),
            steps: log.totals.steps,
            service: Service::of(&own, &log.samples, cell, seconds),
            leaked: log.totals.in_flight,
        }
    }
}

/// Belief error by windows of `length` seconds from `begin` on; windows without a request are left out.
fn windows(own: &[&Record], length: f64, begin: f64) -> Vec<(f64, f64)> {
    let mut sums: Vec<(u64, u64)> = Vec::new();
    for record in own.iter().filter(|record| record.first.is_some()) {
        let since = record.sent as f64 / 1e6 - begin;
        if since < 0.0 || length <= 0.0 {
            continue;
        }
        let at = (since / length) as usize;
        if sums.len() <= at {
            sums.resize(at + 1, (0, 0));
        }
        if let Some((wrong, prompts)) = sums.get_mut(at) {
            *wrong += record.believed.abs_diff(record.cached);
            *prompts += record.prompt_tokens;
        }
    }
    let with_any = sums.iter().enumerate().filter(|(_, (_, prompts))| *prompts > 0);
    with_any.map(|(at, (wrong, prompts))| (at as f64 * length, round6(*wrong as f64 / *prompts as f64))).collect()
}

fn imbalance(log: &Log, ranks: f64) -> f64 {
    let busy = log.samples.iter().filter(|sample| f64::from(sample.requests) >= ranks);
    let ratios: Vec<f64> = busy.map(|sample| f64::from(sample.most) * ranks / f64::from(sample.requests)).collect();
    round6(ratios.iter().sum::<f64>() / ratios.len().max(1) as f64)
}
