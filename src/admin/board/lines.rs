//! Pods, queues and refusals as short arrays for the dashboard.
//!
//! What rarely changes of a pod ([`PodCard`]) is sent when it changes; what moves ([`PodLine`]) every second, of those pods where
//! it did. Both refer to a pod by its place in the fleet.
use std::collections::HashMap;

use serde::Serialize;

use super::trend::{per_mille, rounded};
use crate::base::{Mono, PodId};
use crate::export::prometheus::{CLASSES, role_word, standing_word};
use crate::observe::Metrics;
use crate::pods::{Fleet, Pod, Reading, Sleep};

/// What a second later is left of a pod's prompt tokens in its hit share.
const HIT_DECAY: f64 = 0.9;
/// Prompt tokens that the past before the first look counts for.
const HIT_PAST: f64 = 10_000.0;

/// What rarely changes of a pod: id, address as configured, role, rank, labels, models, KV capacity \[tokens\], version.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PodCard(
    String,
    String,
    &'static str,
    Option<u32>,
    std::collections::BTreeMap<String, String>,
    Vec<String>,
    Option<u64>,
    Option<String>,
);

/// What moves: place, standing (`asleep` where it sleeps), own requests in flight, of these in prefill, own context tokens, uncached prompt tokens that wait there,
/// running and waiting by the pod's last reading, KV in use and prompt tokens found in its cache \[per mille\], age of the
/// reading \[s\].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct PodLine(
    usize,
    &'static str,
    u32,
    u32,
    u64,
    u64,
    Option<u32>,
    Option<u32>,
    Option<u16>,
    Option<u16>,
    Option<u64>,
);

/// Model, role, class, requests that wait, age of the oldest \[s\], time until they have gone \[s\], what they cost \[s of one pod\].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct QueueLine(String, &'static str, &'static str, u64, f32, f32, f32);

/// Class, reason, requests refused since the start.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct RefusedLine(&'static str, &'static str, u64);

/// Share of a pod's prompt tokens that it had cached, by its own counters: recent ones count more.
#[derive(Debug, Default)]
pub(super) struct HitShares(HashMap<PodId, HitShare>);

#[derive(Clone, Copy, Debug)]
struct HitShare {
    seen: (u64, u64),
    hits: f64,
    queries: f64,
}

impl HitShares {
    /// Takes what pods said since the last second.
    pub(super) fn look(&mut self, fleet: &Fleet) {
        self.0.retain(|pod, _| fleet.find(*pod).is_some());
        for pod in &fleet.pods {
            let Some(seen) = pod.reading.load().and_then(|reading| reading.prefix_hits.zip(reading.prefix_queries))
            else {
                continue;
            };
            let first = || {
                let part = (HIT_PAST / seen.1.max(1) as f64).min(1.0);
                HitShare { seen, hits: seen.0 as f64 * part, queries: seen.1 as f64 * part }
            };
            let share = self.0.entry(pod.id).or_insert_with(first);
            // A pod that restarted counts from nothing again.
            let gained = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now) as f64;
            let (hits, queries) = (gained(seen.0, share.seen.0), gained(seen.1, share.seen.1));
            if queries > 0.0 {
                share.hits = share.hits * HIT_DECAY + hits;
                share.queries = share.queries * HIT_DECAY + queries;
            }
            share.seen = seen;
        }
    }

    fn of(&self, pod: PodId) -> Option<u16> {
        let share = self.0.get(&pod).filter(|share| share.queries >= 1.0)?;
        Some(per_mille(share.hits / share.queries))
    }
}

/// Every pod's card, in the order of the fleet.
pub(super) fn cards(fleet: &Fleet) -> Vec<PodCard> {
    fleet.pods.iter().map(|pod| card(pod)).collect()
}

fn card(pod: &Pod) -> PodCard {
    let facts = pod.facts.load();
    let models = facts.served.iter().flatten().map(|served| served.name.to_string()).collect();
    PodCard(
        pod.id.to_string(),
        pod.spec.authority.to_string(),
        role_word(pod.spec.role),
        pod.spec.rank,
        pod.spec.labels.clone(),
        models,
        facts.capacity.map(|tokens| tokens.0),
        facts.version.clone(),
    )
}

/// Every pod's line, in the order of the fleet.
pub(super) fn lines(fleet: &Fleet, hits: &HitShares, now: Mono) -> Vec<PodLine> {
    fleet.pods.iter().enumerate().map(|(place, pod)| line(place, pod, hits, now)).collect()
}

fn line(place: usize, pod: &Pod, hits: &HitShares, now: Mono) -> PodLine {
    let (load, reading): (_, Option<Reading>) = (pod.load.at(now), **pod.reading.load());
    let is_asleep = pod.facts.load().sleep == Sleep::Asleep;
    let standing = if is_asleep { "asleep" } else { standing_word(pod.health.lock().standing(now)) };
    let kv_used = reading.and_then(|reading| reading.kv_used).filter(|used| used.is_finite());
    // A fresh reading is always about as old; only a stale one is worth a word.
    let age_s = reading.map(|reading| reading.age(now).as_secs()).map(|age_s| if age_s < STALE_S { 0 } else { age_s });
    PodLine(
        place,
        standing,
        load.requests,
        load.prefilling,
        load.context_tokens.0,
        load.prefill_tokens.0,
        reading.and_then(|reading| reading.running),
        reading.and_then(|reading| reading.waiting),
        kv_used.map(per_mille),
        hits.of(pod.id),
        age_s,
    )
}

/// Readings younger than this are fresh \[s\].
const STALE_S: u64 = 5;

/// What waits now, as last published.
pub(super) fn queues(metrics: &Metrics) -> Vec<QueueLine> {
    let lines = metrics.queues.load();
    let line = |line: &crate::observe::QueueSeries| {
        let [oldest, backlog, cost] = [line.oldest_s, line.backlog_s, line.cost_s].map(|value| rounded(value as f32));
        QueueLine(line.model.to_string(), line.role, line.class, line.requests, oldest, backlog, cost)
    };
    lines.iter().map(line).collect()
}

/// Refusals since the start, by class and reason.
pub(super) fn refused(metrics: &Metrics) -> Vec<RefusedLine> {
    let by_class = CLASSES.into_iter().zip(&metrics.class_refused);
    by_class
        .flat_map(|(class, reasons)| reasons.all().into_iter().map(move |(reason, count)| (class, reason, count)))
        .map(|(class, reason, count)| RefusedLine(class, reason, count))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::sync::Arc;

    use super::*;
    use crate::pods::{PodSpec, Role, Table};

    fn table(count: u16) -> Table {
        let table = Table::default();
        let spec = |port| PodSpec {
            addr: ([127, 0, 0, 1], port).into(),
            authority: format!("pod:{port}").into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: std::collections::BTreeMap::new(),
        };
        table.set((1..=count).map(spec).collect());
        table
    }

    fn read(pod: &Pod, hits: u64, queries: u64) {
        let reading = Reading {
            taken: Mono(1),
            running: Some(2),
            kv_used: Some(0.25),
            prefix_hits: Some(hits),
            prefix_queries: Some(queries),
            ..Reading::default()
        };
        pod.reading.store(Arc::new(Some(reading)));
    }

    #[test]
    fn a_line_tells_what_the_pod_said_and_null_where_it_said_nothing() {
        let table = table(2);
        let fleet = table.fleet();
        read(&fleet.pods[0], 250, 1_000);
        let mut hits = HitShares::default();
        hits.look(&fleet);
        let lines = serde_json::to_value(lines(&fleet, &hits, Mono(9_000_000))).unwrap();
        assert_eq!(lines[0], serde_json::json!([0, "ready", 0, 0, 0, 0, 2, null, 250, 250, 8]));
        assert_eq!(lines[1], serde_json::json!([1, "ready", 0, 0, 0, 0, null, null, null, null, null]));
        let cards = serde_json::to_value(cards(&fleet)).unwrap();
        assert_eq!(cards[1], serde_json::json!(["pod-1", "pod:2", "both", null, {}, [], null, null]));
    }

    #[test]
    fn the_share_of_hits_follows_what_comes_and_survives_a_restart() {
        let table = table(1);
        let (fleet, mut hits) = (table.fleet(), HitShares::default());
        let pod = &fleet.pods[0];
        read(pod, 0, 1_000_000);
        hits.look(&fleet);
        assert_eq!(hits.of(pod.id), Some(0));
        for second in 1..=40 {
            read(pod, second * 1_000, 1_000_000 + second * 1_000);
            hits.look(&fleet);
        }
        assert!(hits.of(pod.id).unwrap() > 980, "{:?}", hits.of(pod.id));
        read(pod, 0, 50_000);
        hits.look(&fleet);
        assert!(hits.of(pod.id).unwrap() < 300, "{:?}", hits.of(pod.id));
        table.set(Vec::new());
        hits.look(&table.fleet());
        assert!(hits.0.is_empty(), "nothing is kept of pods that left");
    }
}
