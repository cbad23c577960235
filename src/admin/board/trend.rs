//! What happened lately, as points of one second: rates and quantiles from what the counters and histograms gained.
//!
//! Rates are over the last second, quantiles and the share of cached prompts over the last [`WINDOW`] seconds, so that a gate with
//! little traffic shows something steady. What nothing is known of is `None`, never zero. No clock: instants come in.
use std::collections::VecDeque;

use serde::Serialize;

use crate::base::{ModelName, Mono};
use crate::observe::histogram::Snapshot;
use crate::observe::{Fault, Metrics, ModelMetrics, TokenKind};
use crate::pods::Fleet;

/// Points kept: five minutes.
pub(super) const POINTS_MAX: usize = 300;
/// Seconds that quantiles look back.
pub(super) const WINDOW: usize = 10;
/// Models told of, those with most traffic.
const MODELS_MAX: usize = 32;

/// Counters of one model at an instant.
#[derive(Clone, Debug)]
struct ModelTotals {
    name: ModelName,
    in_flight: u64,
    /// Time to first token, gap between events, whole request.
    times: [Snapshot; 3],
    /// Prompt, completion, cached.
    tokens: [u64; 3],
}

/// All counters that points are made of, at an instant.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    at: Mono,
    /// By whose fault.
    ended: [u64; Fault::ALL.len()],
    in_flight: u64,
    waiting: u64,
    kv: Option<[u16; 2]>,
    models: Vec<ModelTotals>,
}

impl Totals {
    /// The counters now. What waits is what was last published of the queues.
    pub(super) fn of(metrics: &Metrics, fleet: &Fleet, at: Mono) -> Self {
        let all = metrics.models();
        let models = all.iter().map(|model| ModelTotals::of(model)).collect();
        Self {
            at,
            ended: metrics.ended(),
            in_flight: all.iter().map(|model| model.in_flight.value()).sum(),
            waiting: metrics.queues.load().iter().map(|line| line.requests).sum(),
            kv: kv(fleet),
            models,
        }
    }

    fn model(&self, name: &str) -> Option<&ModelTotals> {
        self.models.iter().find(|model| &*model.name == name)
    }
}

impl ModelTotals {
    fn of(model: &ModelMetrics) -> Self {
        Self {
            name: model.name.clone(),
            in_flight: model.in_flight.value(),
            times: [model.ttft.snapshot(), model.event_gap.snapshot(), model.e2e.snapshot()],
            tokens: TokenKind::ALL.map(|kind| model.tokens(kind)),
        }
    }
}

/// Share of KV in use by the pods' readings, mean and largest \[per mille\].
fn kv(fleet: &Fleet) -> Option<[u16; 2]> {
    let used = fleet.pods.iter().filter_map(|pod| pod.reading.load().and_then(|reading| reading.kv_used));
    let (mut count, mut sum, mut most) = (0_u32, 0.0, 0.0_f64);
    for used in used.filter(|used| used.is_finite()) {
        (count, sum, most) = (count + 1, sum + used, most.max(used));
    }
    (count > 0).then(|| [sum / f64::from(count), most].map(per_mille))
}

/// A share as a whole number.
pub(super) fn per_mille(share: f64) -> u16 {
    (share.clamp(0.0, 1.0) * 1e3).round() as u16
}

/// What happened in one second.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Point {
    /// When, milliseconds since 1970.
    pub(super) t: u64,
    /// Requests that ended, per second, by whose fault: nobody's, the client's, the gate's, the pod's.
    pub(super) ended: [f32; Fault::ALL.len()],
    /// Requests in flight, and those of them that wait in queues.
    pub(super) in_flight: u64,
    pub(super) waiting: u64,
    /// KV in use, the pods' mean and the fullest pod \[per mille\].
    pub(super) kv: Option<[u16; 2]>,
    #[serde(flatten)]
    pub(super) served: Served,
}

/// What was served, by all models or one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Served {
    /// Tokens per second by usage: prompt, completion. Told when a request ends.
    pub(super) tokens: [f32; 2],
    /// Events of streams per second.
    pub(super) events: f32,
    /// Share of prompt tokens that pods had cached, per mille.
    pub(super) hit: Option<u16>,
    /// Median and 95th percentile in milliseconds.
    pub(super) ttft: Option<[f32; 2]>,
    pub(super) gap: Option<[f32; 2]>,
    pub(super) e2e: Option<[f32; 2]>,
}

/// A model, for a table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct ModelLine {
    pub(super) model: String,
    pub(super) in_flight: u64,
    /// Requests that ended per second.
    pub(super) rate: f32,
    #[serde(flatten)]
    pub(super) served: Served,
}

/// The last minutes.
#[derive(Debug, Default)]
pub(super) struct Trend {
    /// One more than [`WINDOW`].
    totals: VecDeque<Totals>,
    points: VecDeque<Point>,
}

impl Trend {
    /// Takes the counters of another second. Without an earlier look there is nothing to compare with, so no point.
    pub(super) fn push(&mut self, totals: Totals, unix_ms: u64) {
        if self.totals.len() > WINDOW {
            self.totals.pop_front();
        }
        if let Some(last) = self.totals.back() {
            let seconds = totals.at.since(last.at).as_secs_f32().max(1e-3);
            let ended = std::array::from_fn(|place| {
                let count = |of: &Totals| of.ended.get(place).copied().unwrap_or_default();
                rounded(count(&totals).saturating_sub(count(last)) as f32 / seconds)
            });
            let before = self.totals.front().unwrap_or(last);
            let served = Gain::all(before, last, &totals).served(seconds);
            let Totals { in_flight, waiting, kv, .. } = totals;
            if self.points.len() >= POINTS_MAX {
                self.points.pop_front();
            }
            self.points.push_back(Point { t: unix_ms, ended, in_flight, waiting, kv, served });
        }
        self.totals.push_back(totals);
    }

    /// All points, oldest first.
    pub(super) fn points(&self) -> &VecDeque<Point> {
        &self.points
    }

    /// The models, those with most requests first.
    pub(super) fn models(&self) -> Vec<ModelLine> {
        let Some(totals) = self.totals.back() else { return Vec::new() };
        let last = self.totals.iter().rev().nth(1).unwrap_or(totals);
        let before = self.totals.front().unwrap_or(totals);
        let seconds = totals.at.since(last.at).as_secs_f32().max(1e-3);
        let mut lines: Vec<ModelLine> = Vec::new();
        for model in &totals.models {
            let gain = Gain::model(before, last, model);
            lines.push(ModelLine {
                model: model.name.to_string(),
                in_flight: model.in_flight,
                rate: rounded(gain.requests as f32 / seconds),
                served: gain.served(seconds),
            });
        }
        // Requests whose body is not read yet are in flight there as well; that alone is no model.
        lines.retain(|line| line.model != crate::observe::family::OTHER || line.rate > 0.0);
        lines.sort_by(|a, b| b.rate.total_cmp(&a.rate).then(b.in_flight.cmp(&a.in_flight)).then(a.model.cmp(&b.model)));
        lines.truncate(MODELS_MAX);
        lines
    }
}

/// What counters gained.
#[derive(Debug, Default)]
struct Gain {
    /// Requests and tokens of the last second.
    requests: u64,
    tokens: [u64; 2],
    events: u64,
    /// Prompt and cached tokens of the window.
    prompt: [u64; 2],
    times: [Option<Snapshot>; 3],
}

impl Gain {
    fn all(before: &Totals, last: &Totals, now: &Totals) -> Self {
        let mut sum = Self::default();
        for model in &now.models {
            sum.add(Self::model(before, last, model));
        }
        sum
    }

    /// A model that is new had nothing before.
    fn model(before: &Totals, last: &Totals, now: &ModelTotals) -> Self {
        let (before, last) = (before.model(&now.name), last.model(&now.name));
        let [_, gap, e2e] = &now.times;
        let tokens_before = |then: Option<&ModelTotals>| then.map_or([0; 3], |model| model.tokens);
        let [prompt, completion, _] = less(now.tokens, tokens_before(last));
        let [window, _, cached] = less(now.tokens, tokens_before(before));
        let mut times = now.times.clone();
        if let Some(before) = before {
            times.iter_mut().zip(&before.times).for_each(|(now, before)| subtract(now, before));
        }
        let count = |snapshot: &Snapshot| snapshot.counts.iter().sum::<u64>();
        let [_, events, served] = last.map_or([0; 3], |model| model.times.each_ref().map(count));
        Self {
            requests: count(e2e).saturating_sub(served),
            tokens: [prompt, completion],
            events: count(gap).saturating_sub(events),
            prompt: [window, cached],
            times: times.map(Some),
        }
    }

    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.tokens = sum(self.tokens, other.tokens);
        self.events += other.events;
        self.prompt = sum(self.prompt, other.prompt);
        for (mine, its) in self.times.iter_mut().zip(other.times) {
            match (mine.as_mut(), its) {
                (Some(mine), Some(its)) => mine.counts.iter_mut().zip(its.counts).for_each(|(a, b)| *a += b),
                (None, its) => *mine = its,
                (Some(_), None) => {}
            }
        }
    }

    fn served(self, seconds: f32) -> Served {
        let [window, cached] = self.prompt;
        let [ttft, gap, e2e] = self.times.map(|times| {
            let times = times?;
            Some([quantile(&times, 0.5)?, quantile(&times, 0.95)?])
        });
        Served {
            tokens: self.tokens.map(|tokens| rounded(tokens as f32 / seconds)),
            events: rounded(self.events as f32 / seconds),
            hit: (window > 0).then(|| per_mille(cached as f64 / window as f64)),
            ttft,
            gap,
            e2e,
        }
    }
}

fn less<const N: usize>(now: [u64; N], before: [u64; N]) -> [u64; N] {
    let mut less = now;
    less.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
    less
}

fn sum<const N: usize>(a: [u64; N], b: [u64; N]) -> [u64; N] {
    let mut sum = a;
    sum.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    sum
}

fn subtract(now: &mut Snapshot, before: &Snapshot) {
    now.counts.iter_mut().zip(&before.counts).for_each(|(now, before)| *now = now.saturating_sub(*before));
}

/// The quantile in milliseconds, linear within its bucket; `None` if nothing was observed. In the bucket without a bound it is the
/// highest bound.
fn quantile(times: &Snapshot, share: f64) -> Option<f32> {
    let all: u64 = times.counts.iter().sum();
    let (mut below, mut lower_us) = (0, 0);
    for (position, &count) in times.counts.iter().enumerate() {
        let Some(&upper_us) = times.bounds_us.get(position) else { break };
        if count > 0 && (below + count) as f64 >= share * all as f64 {
            let part = (share * all as f64 - below as f64) / count as f64;
            return Some(rounded((lower_us as f64 + part * (upper_us - lower_us) as f64) as f32 / 1e3));
        }
        below += count;
        lower_us = upper_us;
    }
    (all > 0).then(|| rounded(lower_us as f32 / 1e3))
}

/// Three significant digits: more is noise, and costs bytes for every viewer every second.
pub(super) fn rounded(value: f32) -> f32 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 2 - value.abs().log10().floor() as i32;
    // Dividing by a whole power of ten gives the float that prints shortest.
    if digits > 0 { (value * 10_f32.powi(digits)).round() / 10_f32.powi(digits) } else { value.round() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::float_cmp)]
    use std::time::Duration;

    use super::*;
    use crate::observe::{Cause, MetricLimits};

    fn second(number: u64) -> Mono {
        Mono(number * 1_000_000)
    }

    #[test]
    fn a_point_tells_what_came_in_its_second() {
        let (metrics, mut trend) = (Metrics::new(MetricLimits::default()), Trend::default());
        trend.push(Totals::of(&metrics, &Fleet::default(), second(1)), 1);
        assert!(trend.points().is_empty() && trend.models().is_empty(), "nothing to compare with");
        let model = metrics.model("m");
        for _ in 0..4 {
            model.ttft.observe(Duration::from_millis(15));
            model.e2e.observe(Duration::from_millis(800));
            metrics.finish(&model, None, 200, Cause::Ok);
        }
        metrics.finish(&model, None, 502, Cause::GatePanic);
        model.event_gap.observe(Duration::from_millis(2));
        model.event_gap.observe(Duration::from_millis(2));
        model.add_tokens(TokenKind::Prompt, 1_000);
        model.add_tokens(TokenKind::Completion, 50);
        model.add_tokens(TokenKind::Cached, 250);
        trend.push(Totals::of(&metrics, &Fleet::default(), second(3)), 2);
        let point = trend.points().back().unwrap();
        assert_eq!((point.t, point.ended), (2, [2.0, 0.0, 0.5, 0.0]), "per second, over two");
        assert_eq!((point.served.tokens, point.served.hit), ([500.0, 25.0], Some(250)));
        assert_eq!((point.served.ttft, point.served.gap), (Some([15.0, 19.5]), Some([1.75, 2.43])));
        assert_eq!(point.served.events, 1.0);
        let line = &trend.models()[0];
        assert_eq!((&*line.model, line.rate, line.served.hit), ("m", 2.0, Some(250)));
    }

    #[test]
    fn quantiles_look_back_a_window_and_no_further() {
        let (metrics, mut trend) = (Metrics::new(MetricLimits::default()), Trend::default());
        let model = metrics.model("m");
        trend.push(Totals::of(&metrics, &Fleet::default(), second(0)), 0);
        model.event_gap.observe(Duration::from_millis(8));
        for number in 1..=WINDOW as u64 {
            trend.push(Totals::of(&metrics, &Fleet::default(), second(number)), number);
            assert!(trend.points().back().unwrap().served.gap.is_some(), "{number}");
        }
        trend.push(Totals::of(&metrics, &Fleet::default(), second(99)), 99);
        assert_eq!(trend.points().back().unwrap().served.gap, None);
        for number in 0..POINTS_MAX as u64 {
            trend.push(Totals::of(&metrics, &Fleet::default(), second(100 + number)), number);
        }
        assert_eq!((trend.points().len(), trend.totals.len()), (POINTS_MAX, WINDOW + 1));
    }

    #[test]
    fn counters_that_fell_do_not_make_negative_rates() {
        let (metrics, mut trend) = (Metrics::new(MetricLimits::default()), Trend::default());
        let model = metrics.model("m");
        metrics.finish(&model, None, 200, Cause::Ok);
        trend.push(Totals::of(&metrics, &Fleet::default(), second(0)), 0);
        metrics.forget(|_| false, |_| false);
        trend.push(Totals::of(&metrics, &Fleet::default(), second(1)), 1);
        assert_eq!(trend.points()[0].ended, [0.0; 4]);
    }

    #[test]
    fn quantiles_lie_within_their_bucket_and_numbers_are_short() {
        let times = |counts: &[u64]| Snapshot { bounds_us: &[1_000, 3_000], counts: counts.to_vec(), sum_us: 0 };
        assert_eq!(quantile(&times(&[0, 0, 0]), 0.5), None);
        assert_eq!(quantile(&times(&[0, 4, 0]), 0.5), Some(2.0));
        assert_eq!(quantile(&times(&[1, 0, 9]), 0.95), Some(3.0), "no higher bound is known");
        assert_eq!(
            [0.0, 1.234, 12.34, 123.4, 1_234.6, -0.012_34].map(rounded),
            [0.0, 1.23, 12.3, 123.0, 1_235.0, -0.0123]
        );
        assert_eq!(serde_json::to_string(&rounded(0.1 + 0.2)).unwrap(), "0.3");
    }
}
