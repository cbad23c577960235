//! The result of the harness: medians, ratios and the goals they are held against.
//!
//! A ratio is taken between medians of the same rounds. Goals concern the gate; without a gate nothing is judged. What was not measured is
//! shown as `-`, never as zero.

use super::measure::Sample;
use crate::histogram::median;
use crate::load::Outcome;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Added median latency allowed over nginx.
const ADDED_P50_US: f64 = 60.0;
const IDLE_MB: f64 = 20.0;
const FIRST_MS: f64 = 200.0;
/// Gate over bare Pingora: its own share may be a quarter.
const OVER_BARE: f64 = 1.25;
/// A latency round whose generator was later than this at its p99 is flagged.
const LAG_US: f64 = 5000.0;

/// What CPU time is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// A whole request.
    Request,
    /// A server-sent event.
    Event,
}

/// Highest ratios allowed; `None` = reported only.
#[derive(Clone, Copy, Debug)]
pub(super) struct Goal {
    over_nginx: Option<f64>,
    over_bare: Option<f64>,
}

impl Goal {
    /// Goal of a request with a body of this size.
    pub(super) fn of_body(bytes: usize) -> Self {
        let over_nginx = match bytes {
            ..=1000 => Some(2.5),
            1001..=99_999 => None,
            100_000..=399_999 => Some(2.2),
            _ => Some(2.0),
        };
        Self { over_nginx, over_bare: Some(OVER_BARE) }
    }

    /// Goal of a server-sent event.
    pub(super) fn of_event() -> Self {
        Self { over_nginx: Some(1.5), over_bare: None }
    }
}

/// CPU of one kind of work through every proxy.
pub(super) struct Case {
    /// What was done.
    pub(super) name: String,
    /// What the CPU time is divided by.
    pub(super) unit: Unit,
    goal: Goal,
    rounds: BTreeMap<&'static str, Vec<Sample>>,
}

impl Case {
    /// A case without rounds.
    pub(super) fn new(name: String, unit: Unit, goal: Goal) -> Self {
        Self { name, unit, goal, rounds: BTreeMap::new() }
    }

    /// Adds a round of one proxy.
    pub(super) fn add(&mut self, proxy: &'static str, sample: Sample) {
        self.rounds.entry(proxy).or_default().push(sample);
    }

    fn median(&self, proxy: &str) -> Option<f64> {
        median(&self.rounds.get(proxy)?.iter().map(|sample| sample.us).collect::<Vec<_>>())
    }

    fn ratio(&self, upper: &str, lower: &str) -> Option<f64> {
        Some(self.median(upper)? / self.median(lower)?)
    }

    fn verdicts(&self) -> Vec<(String, bool)> {
        let checks = [("nginx", self.goal.over_nginx), ("bare", self.goal.over_bare)];
        let verdict = |(base, goal): (&str, Option<f64>)| {
            let (goal, ratio) = (goal?, self.ratio("gate", base)?);
            Some((format!("gate/{base} {ratio:.2} <= {goal}"), ratio <= goal))
        };
        checks.into_iter().filter_map(verdict).collect()
    }
}

/// Memory and time of a fresh process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Start {
    /// Milliseconds from the start of the process to its first 200.
    pub(super) first_ms: f64,
    /// Resident megabytes after two idle seconds.
    pub(super) idle_mb: f64,
}

/// Time to the first event at one rate through every proxy.
pub(super) struct Latency {
    /// What was done.
    pub(super) name: String,
    rate: f64,
    /// Per proxy and round: p50, p99, lag p99.
    rounds: BTreeMap<&'static str, Vec<[f64; 3]>>,
}

impl Latency {
    /// A case without rounds.
    pub(super) fn new(name: String, rate: f64) -> Self {
        Self { name, rate, rounds: BTreeMap::new() }
    }

    /// Adds a round of one proxy.
    pub(super) fn add(&mut self, proxy: &'static str, outcome: &Outcome) {
        let at = |histogram: &crate::histogram::Histogram, q| histogram.quantile_us(q).unwrap_or(f64::NAN);
        let row = [at(&outcome.first, 0.5), at(&outcome.first, 0.99), at(&outcome.lag, 0.99)];
        self.rounds.entry(proxy).or_default().push(row);
    }

    fn column(&self, proxy: &str, of: impl Fn(&[f64; 3]) -> f64) -> Option<f64> {
        median(&self.rounds.get(proxy)?.iter().map(of).collect::<Vec<_>>())
    }

    /// Median over rounds of the difference to nginx in the same round: p50, p99.
    fn added(&self, proxy: &str) -> Option<(f64, f64)> {
        let pairs: Vec<_> = self.rounds.get(proxy)?.iter().zip(self.rounds.get("nginx")?).collect();
        let p50 = median(&pairs.iter().map(|([p50, ..], [base, ..])| p50 - base).collect::<Vec<_>>())?;
        let p99 = median(&pairs.iter().map(|([_, p99, _], [_, base, _])| p99 - base).collect::<Vec<_>>())?;
        Some((p50, p99))
    }

    fn verdict(&self) -> Option<(String, bool)> {
        let (p50, _) = self.added("gate")?;
        Some((format!("gate - nginx p50 {p50:.0} us <= {ADDED_P50_US}"), p50 <= ADDED_P50_US))
    }
}

/// All results.
pub(super) struct Table {
    names: Vec<&'static str>,
    /// CPU cases.
    pub(super) cases: Vec<Case>,
    /// Latency cases.
    pub(super) latencies: Vec<Latency>,
    /// Memory and start of the proxies that are not nginx.
    pub(super) starts: Vec<(&'static str, Start)>,
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| format!("{value:.2}"))
}

fn marks(verdicts: &[(String, bool)]) -> String {
    let words: Vec<_> =
        verdicts.iter().map(|(text, good)| format!("{text} {}", if *good { "ok" } else { "MISS" })).collect();
    words.join("; ")
}

impl Table {
    /// An empty table for these proxies.
    pub(super) fn new(names: Vec<&'static str>) -> Self {
        Self { names, cases: vec![], latencies: vec![], starts: vec![] }
    }

    /// The table as text.
    pub(super) fn text(&self) -> String {
        let mut text = format!(
            "\n{:<32} {:>9} {:>9} {:>9} {:>11} {:>11} {:>10}  goal\n",
            "CPU us per unit (medians)", "nginx", "bare", "gate", "gate/nginx", "bare/nginx", "gate/bare"
        );
        for case in &self.cases {
            let [nginx, bare, gate] = ["nginx", "bare", "gate"].map(|name| number(case.median(name)));
            let ratios = [("gate", "nginx"), ("bare", "nginx"), ("gate", "bare")]
                .map(|(upper, lower)| number(case.ratio(upper, lower)));
            let [over_nginx, floor, over_bare] = ratios;
            let goal = marks(&case.verdicts());
            text.extend([format!(
                "{:<32} {nginx:>9} {bare:>9} {gate:>9} {over_nginx:>11} {floor:>11} {over_bare:>10}  {goal}\n",
                case.name
            )]);
        }
        for latency in &self.latencies {
            text.extend([format!("{}\n", latency.name)]);
            for name in &self.names {
                let column =
                    |index: usize| number(latency.column(name, |row| row.get(index).copied().unwrap_or(f64::NAN)));
                let (p50, p99, lag) = (column(0), column(1), column(2));
                let added = latency
                    .added(name)
                    .map_or(String::new(), |(p50, p99)| format!("added p50 {p50:.0} p99 {p99:.0} us"));
                let flag = if latency.column(name, |row| row[2]).is_some_and(|lag| lag > LAG_US) {
                    "  GENERATOR LATE"
                } else {
                    ""
                };
                text.extend([format!(
                    "    {name:<6} p50 {p50:>9} us  p99 {p99:>9} us  own lag p99 {lag:>8} us  {added}{flag}\n"
                )]);
            }
            text += &latency.verdict().map_or(String::new(), |verdict| format!("    {}\n", marks(&[verdict])));
        }
        for (name, start) in &self.starts {
            let goal = if *name == "gate" { marks(&start_verdicts(start)) } else { String::new() };
            text.extend([format!(
                "start {name:<6} first 200 after {:.1} ms, idle {:.1} MB  {goal}\n",
                start.first_ms, start.idle_mb
            )]);
        }
        text
    }

    /// The table with every round.
    pub(super) fn json(&self) -> Value {
        let case = |case: &Case| {
            let rounds: BTreeMap<_, Vec<_>> = case
                .rounds
                .iter()
                .map(|(name, list)| (*name, list.iter().map(|sample| json!([sample.us, sample.per_s])).collect()))
                .collect();
            json!({
                "case": case.name, "nginx_us": case.median("nginx"), "bare_us": case.median("bare"), "gate_us": case.median("gate"),
                "gate_over_nginx": case.ratio("gate", "nginx"), "bare_over_nginx": case.ratio("bare", "nginx"),
                "gate_over_bare": case.ratio("gate", "bare"), "rounds_us_and_rate": rounds, "goals": verdicts_json(&case.verdicts()),
            })
        };
        let latency = |latency: &Latency| {
            let added: BTreeMap<_, _> =
                self.names.iter().filter_map(|name| Some((*name, latency.added(name)?))).collect();
            json!({
                "case": latency.name, "rate": latency.rate, "added_p50_p99_us": added, "rounds_p50_p99_lag_us": latency.rounds,
                "goals": verdicts_json(latency.verdict().as_slice()),
            })
        };
        let start = |(name, start): &(&str, Start)| json!({"proxy": name, "first_200_ms": start.first_ms, "idle_mb": start.idle_mb});
        json!({
            "cpu": self.cases.iter().map(case).collect::<Vec<_>>(),
            "latency": self.latencies.iter().map(latency).collect::<Vec<_>>(),
            "start": self.starts.iter().map(start).collect::<Vec<_>>(),
        })
    }

    /// Goals that were not reached.
    pub(super) fn misses(&self) -> Vec<String> {
        let cases = self
            .cases
            .iter()
            .flat_map(|case| case.verdicts().into_iter().map(|(text, good)| (format!("{}: {text}", case.name), good)));
        let latencies = self
            .latencies
            .iter()
            .filter_map(|case| case.verdict().map(|(text, good)| (format!("{}: {text}", case.name), good)));
        let starts =
            self.starts.iter().filter(|(name, _)| *name == "gate").flat_map(|(_, start)| start_verdicts(start));
        cases.chain(latencies).chain(starts).filter(|(_, good)| !good).map(|(text, _)| text).collect()
    }
}

fn start_verdicts(start: &Start) -> Vec<(String, bool)> {
    let first = (format!("first 200 {:.0} ms <= {FIRST_MS}", start.first_ms), start.first_ms <= FIRST_MS);
    vec![first, (format!("idle {:.1} MB <= {IDLE_MB}", start.idle_mb), start.idle_mb <= IDLE_MB)]
}

fn verdicts_json(verdicts: &[(String, bool)]) -> Value {
    verdicts.iter().map(|(text, good)| json!({"goal": text, "ok": good})).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn case(gate_us: &[f64]) -> Case {
        let mut case = Case::new("230 B body".into(), Unit::Request, Goal::of_body(230));
        for (name, list) in [("nginx", &[10.0, 11.0, 9.0][..]), ("bare", &[22.0]), ("gate", gate_us)] {
            for us in list {
                case.add(name, Sample { us: *us, ..Sample::default() });
            }
        }
        case
    }

    #[test]
    fn goals_hold_and_miss() {
        let mut table = Table::new(vec!["nginx", "bare", "gate"]);
        table.cases.push(case(&[24.0, 90.0, 23.0]));
        assert_eq!(table.misses(), Vec::<String>::new(), "the median of the gate is 24 us");
        assert!(table.text().contains("gate/nginx 2.40 <= 2.5 ok; gate/bare 1.09 <= 1.25 ok"), "{}", table.text());
        table.cases.push(case(&[40.0]));
        assert_eq!(table.misses().len(), 2, "over nginx and over bare: {:?}", table.misses());
    }

    #[test]
    fn without_a_gate_nothing_is_judged() {
        let mut table = Table::new(vec!["nginx", "bare"]);
        table.cases.push(case(&[]));
        assert!(table.misses().is_empty());
        assert!(table.json()["cpu"][0]["gate_over_nginx"].is_null(), "unknown is null");
    }

    #[test]
    fn latency_is_compared_within_a_round() {
        let mut latency = Latency::new("x".into(), 500.0);
        latency.rounds.insert("nginx", vec![[300.0, 900.0, 50.0], [500.0, 1500.0, 50.0], [400.0, 1000.0, 50.0]]);
        latency.rounds.insert("gate", vec![[350.0, 950.0, 50.0], [565.0, 1700.0, 50.0], [440.0, 1010.0, 50.0]]);
        assert_eq!(latency.added("gate"), Some((50.0, 50.0)));
        assert!(latency.verdict().unwrap().1);
    }
}
