//! How classes and tenants were served in a run: who waited, who was refused and when, who got how much.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::cell::Cell;
use super::record::{End, Record, Sample};
use super::script::Class;
use super::summary::{Spread, round6};

/// The look at half of a time may be late by so much \[s\].
const LATE_LOOK_S: f64 = 0.01;
/// Refusals within this time were told at once \[s\].
const AT_ONCE_S: f64 = 0.05;

/// So many that wait are a backlog; who has one in this part of all seconds always has. With fewer a tenant may just get what it asks for,
/// a little late.
const BACKLOG: u32 = 8;
const ALWAYS: f64 = 0.95;

/// One class.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ClassService {
    pub(crate) requests: u64,
    /// Ended with all tokens.
    pub(crate) good: u64,
    /// Of these, as promised.
    pub(crate) kept: u64,
    pub(crate) refused: u64,
    /// Of these, within 50 ms.
    pub(crate) refused_at_once: u64,
    /// Of these, after half of the promised time to the first token.
    pub(crate) refused_late: u64,
    pub(crate) ttft_s: Spread,
    /// Of this, at the gate.
    pub(crate) waited_s: Spread,
}

/// Everything that is reported of service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Service {
    pub(crate) classes: BTreeMap<Class, ClassService>,
    /// Pod-seconds of the requests that ended well, as if nothing were cached, per second.
    pub(crate) work: f64,
    /// Most that one request took \[s\].
    pub(crate) largest_s: f64,
    /// Tenants that always had a backlog, and what each was served \[pod-seconds\].
    pub(crate) backlogged: BTreeMap<u32, f64>,
    /// The most that one of two tenants with a backlog was served more than the other \[pod-seconds\].
    pub(crate) gap_s: f64,
    /// Requests that ended as promised, per second.
    pub(crate) kept_per_s: f64,
    /// Requests waiting in engines, mean of the third and of the last quarter of the run.
    pub(crate) backlog: (f64, f64),
}

impl Service {
    /// Of these requests, over so many seconds.
    pub(crate) fn of(own: &[&Record], samples: &[Sample], cell: &Cell, seconds: f64) -> Self {
        let mut all = Self::default();
        let mut times: BTreeMap<Class, (Vec<f64>, Vec<f64>)> = BTreeMap::new();
        for record in own {
            let one = all.classes.entry(record.class).or_default();
            one.requests += 1;
            if let Some(ttft_s) = record.ttft_s() {
                let (ttfts, waits) = times.entry(record.class).or_default();
                ttfts.push(ttft_s);
                waits.push(record.sent.saturating_sub(record.arrived) as f64 / 1e6);
            }
            match record.end {
                End::Good => {
                    let work = cell.fleet.work_s(record.prompt_tokens, record.output_tokens);
                    one.good += 1;
                    one.kept += u64::from(cell.is_good(&cell.slo, record));
                    all.work += work;
                    all.largest_s = all.largest_s.max(work);
                }
                End::Refused => {
                    let after_s = record.ended.saturating_sub(record.arrived) as f64 / 1e6;
                    let promised = cell.promise(&cell.slo, record.class, record.prompt_tokens).ttft_s;
                    one.refused += 1;
                    one.refused_at_once += u64::from(after_s <= AT_ONCE_S);
                    one.refused_late +=
                        u64::from(promised.is_some_and(|promised| after_s > 0.5 * promised + LATE_LOOK_S));
                }
                _ => {}
            }
        }
        for (class, (ttfts, waits)) in times {
            if let Some(one) = all.classes.get_mut(&class) {
                (one.ttft_s, one.waited_s) = (Spread::of(ttfts), Spread::of(waits));
            }
        }
        let kept: u64 = all.classes.values().map(|class| class.kept).sum();
        all.kept_per_s = round6(kept as f64 / seconds.max(1e-6));
        all.work = round6(all.work / seconds.max(1e-6));
        all.largest_s = round6(all.largest_s);
        let quarter = |number: usize| {
            let part = samples.get(number * samples.len() / 4..(number + 1) * samples.len() / 4).unwrap_or_default();
            let sum: f64 = part.iter().map(|sample| f64::from(sample.waiting)).sum();
            round6(sum / part.len().max(1) as f64)
        };
        all.backlog = (quarter(2), quarter(3));
        all.share(samples.get(samples.len() / 4..).unwrap_or_default());
        all
    }

    /// How tenants shared, over these samples.
    fn share(&mut self, samples: &[Sample]) {
        let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return };
        let waits = |tenant: usize| {
            let with =
                samples.iter().filter(|sample| sample.shares.get(tenant).is_some_and(|share| share.waiting >= BACKLOG));
            with.count() as f64 >= ALWAYS * samples.len() as f64
        };
        for (tenant, (before, after)) in first.shares.iter().zip(&last.shares).enumerate() {
            if waits(tenant) {
                self.backlogged.insert(tenant as u32, round6((after.served_us - before.served_us) as f64 / 1e6));
            }
        }
        let tenants = first.shares.len();
        for (one, other) in (0..tenants).flat_map(|one| (0..one).map(move |other| (one, other))) {
            let mut seen: Option<(i64, i64)> = None;
            for sample in samples {
                let Some((a, b)) = sample.shares.get(one).zip(sample.shares.get(other)) else { continue };
                if a.waiting < BACKLOG || b.waiting < BACKLOG {
                    seen = None;
                    continue;
                }
                let ahead = a.served_us.cast_signed() - b.served_us.cast_signed();
                let (least, most) = seen.map_or((ahead, ahead), |(least, most)| (least.min(ahead), most.max(ahead)));
                seen = Some((least, most));
                self.gap_s = self.gap_s.max(round6((most - least) as f64 / 1e6));
            }
        }
    }
}

/// Jain's index of fairness: 1 if all have the same.
pub(crate) fn jain<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let (mut sum, mut squares, mut count) = (0.0, 0.0, 0.0);
    for value in values {
        (sum, squares, count) = (sum + value, squares + value * value, count + 1.0);
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}
