//! What the dashboard shows: looked at once a second, written once, sent to every viewer.
//!
//! Counters are looked at also while nobody watches, so that who comes sees the last minutes; pods, queues and decisions only while
//! somebody does. Of the pods a tick tells those that changed, so a viewer that missed one begins anew with [`Board::whole`].
mod lines;
mod stream;
mod trend;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit, watch};

use self::lines::{HitShares, PodCard, PodLine, QueueLine, RefusedLine};
use self::stream::{Line, Stream};
use self::trend::{ModelLine, Point, Totals, Trend};
use super::answer::AdminState;
use crate::base::Mono;

/// Time between two looks.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Most viewers at once.
pub(super) const VIEWERS_MAX: usize = 16;

/// One event for viewers.
#[derive(Clone, Debug, Default)]
pub(super) struct Tick {
    /// Counts up; a viewer that sees a gap missed something.
    pub(super) number: u64,
    /// As a server-sent event.
    pub(super) event: Arc<str>,
}

/// State of the gate itself.
#[derive(Debug, Serialize)]
struct GateLine {
    /// What is missing for being ready.
    missing: Option<String>,
    safe_mode: bool,
    connections: u64,
    body_bytes: u64,
    memory_stage: u64,
    index_blocks: u64,
    index_bytes: u64,
    viewers: usize,
}

/// What is small enough to be told whole each time.
#[derive(Serialize)]
struct Now {
    gate: GateLine,
    models: Vec<ModelLine>,
    queues: Vec<QueueLine>,
    refused: Vec<RefusedLine>,
}

/// What a tick tells.
#[derive(Serialize)]
struct Told<'a> {
    now: Now,
    point: Option<&'a Point>,
    /// Only when one of them changed.
    cards: Option<&'a [PodCard]>,
    /// Of the pods that changed.
    pods: Vec<&'a PodLine>,
    decisions: Vec<Line>,
}

/// What a viewer begins with.
#[derive(Serialize)]
struct Whole<'a> {
    version: &'static str,
    now: Now,
    points: Vec<&'a Point>,
    cards: &'a [PodCard],
    pods: &'a [PodLine],
    decisions: Vec<&'a Line>,
}

#[derive(Debug, Default)]
struct Inner {
    number: u64,
    trend: Trend,
    hits: HitShares,
    stream: Stream,
    cards: Vec<PodCard>,
    pods: Vec<PodLine>,
}

/// The dashboard's data.
pub(super) struct Board {
    inner: Mutex<Inner>,
    ticks: watch::Sender<Tick>,
    room: Semaphore,
}

/// A place among the viewers.
pub(super) struct Viewer<'a> {
    ticks: watch::Receiver<Tick>,
    _place: SemaphorePermit<'a>,
}

impl Viewer<'_> {
    /// The next tick. Fails when the listener ends.
    pub(super) async fn next(&mut self) -> io::Result<Tick> {
        self.ticks.changed().await.map_err(|_| io::ErrorKind::NotConnected)?;
        Ok(self.ticks.borrow_and_update().clone())
    }
}

impl Board {
    pub(super) fn new() -> Self {
        Self { inner: Mutex::default(), ticks: watch::Sender::default(), room: Semaphore::new(VIEWERS_MAX) }
    }

    /// Looks every second, for ever.
    pub(super) async fn run(&self, state: &AdminState) {
        let mut beat = tokio::time::interval(TICK);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            beat.tick().await;
            self.look(state, (state.now)(), crate::runtime::unix_ms());
        }
    }

    /// A place for another viewer, if there is one.
    pub(super) fn join(&self) -> Option<Viewer<'_>> {
        let place = self.room.try_acquire().ok()?;
        Some(Viewer { ticks: self.ticks.subscribe(), _place: place })
    }

    /// Looks once, and tells it if anybody watches.
    fn look(&self, state: &AdminState, now: Mono, unix_ms: u64) {
        let mut inner = self.inner.lock();
        (state.refresh)(&state.metrics);
        inner.trend.push(Totals::of(&state.metrics, &state.table.fleet(), now), unix_ms);
        if self.ticks.receiver_count() > 0 {
            let event = inner.tick(state, now, self.viewers());
            inner.number += 1;
            self.ticks.send_replace(Tick { number: inner.number, event: event.into() });
        }
    }

    /// What a viewer begins with, as an event, and the number of the tick it holds already.
    pub(super) fn whole(&self, state: &AdminState) -> (u64, String) {
        let mut inner = self.inner.lock();
        if self.viewers() <= 1 {
            // Nobody watched until now.
            inner.refresh(state, (state.now)());
            inner.stream.look(&state.explain);
        }
        (inner.number, inner.whole(state, self.viewers()))
    }

    fn viewers(&self) -> usize {
        VIEWERS_MAX - self.room.available_permits()
    }
}

impl Inner {
    /// Looks at the pods; returns what was known of them before.
    fn refresh(&mut self, state: &AdminState, now: Mono) -> (Vec<PodCard>, Vec<PodLine>) {
        let fleet = state.table.fleet();
        self.hits.look(&fleet);
        let cards = std::mem::replace(&mut self.cards, lines::cards(&fleet));
        (cards, std::mem::replace(&mut self.pods, lines::lines(&fleet, &self.hits, now)))
    }

    fn tick(&mut self, state: &AdminState, now: Mono, viewers: usize) -> String {
        let (cards, pods) = self.refresh(state, now);
        let decisions = self.stream.look(&state.explain);
        let is_other_fleet = cards != self.cards;
        let changed = self.pods.iter().zip(pods.iter().map(Some).chain(std::iter::repeat(None)));
        let changed = changed.filter(|(new, old)| is_other_fleet || Some(*new) != *old).map(|(new, _)| new);
        event(
            "tick",
            &Told {
                now: self.now(state, viewers),
                point: self.trend.points().back(),
                cards: is_other_fleet.then_some(&*self.cards),
                pods: changed.collect(),
                decisions,
            },
        )
    }

    fn now(&self, state: &AdminState, viewers: usize) -> Now {
        Now {
            gate: gate(state, viewers),
            models: self.trend.models(),
            queues: lines::queues(&state.metrics),
            refused: lines::refused(&state.metrics),
        }
    }

    fn whole(&self, state: &AdminState, viewers: usize) -> String {
        event(
            "whole",
            &Whole {
                version: state.version,
                now: self.now(state, viewers),
                points: self.trend.points().iter().collect(),
                cards: &self.cards,
                pods: &self.pods,
                decisions: self.stream.lines().iter().collect(),
            },
        )
    }
}

fn gate(state: &AdminState, viewers: usize) -> GateLine {
    let metrics = &state.metrics;
    GateLine {
        missing: state.readiness.missing().map(|missing| missing.to_string()),
        safe_mode: state.safe_mode.load(Relaxed),
        connections: metrics.connections.value(),
        body_bytes: metrics.body_held.value(),
        memory_stage: metrics.memory_stage.value(),
        index_blocks: metrics.index_blocks.value(),
        index_bytes: metrics.index_bytes.value(),
        viewers,
    }
}

/// A server-sent event. JSON has no line breaks, so it is one line of data.
fn event(name: &str, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).unwrap_or_else(|_| "null".to_owned());
    format!("event: {name}\ndata: {data}\n\n")
}

#[cfg(test)]
mod tests;
