//! Sends requests in an open loop (exact times) or a closed one (fixed concurrency) and records what came back.
//!
//! The open loop is paced by a thread of its own, because a runtime's timer is exact to a millisecond only. How late each request left is
//! recorded; latency runs from the instant the request is written, so that lag is never mistaken for latency. Requests go out on pooled
//! keep-alive connections, the last used first.

use crate::body::Template;
use crate::client::{Answer, Connections, Watch};
use crate::histogram::Histogram;
use crate::schedule::Dice;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

/// What to send where; cheap to clone.
#[derive(Clone)]
pub(crate) struct Load {
    /// Where to send.
    pub(crate) target: SocketAddr,
    /// Kinds of requests, each with its weight and one template per prefix.
    pub(crate) mix: Rc<Vec<(f64, Vec<Rc<Template>>)>>,
    /// Longest a request may take.
    pub(crate) timeout: Duration,
    /// Seed of the choice.
    pub(crate) seed: u64,
}

impl Load {
    /// Requests of one kind.
    pub(crate) fn of(target: SocketAddr, templates: Vec<Template>, seed: u64) -> Self {
        let mix = Rc::new(vec![(1.0, templates.into_iter().map(Rc::new).collect())]);
        Self { target, mix, timeout: Duration::from_mins(1), seed }
    }

    /// The same load for another target.
    pub(crate) fn at(&self, target: SocketAddr) -> Self {
        Self { target, ..self.clone() }
    }
}

/// What came back.
#[derive(Clone, Default)]
pub(crate) struct Outcome {
    /// Requests that ended well.
    pub(crate) good: u64,
    /// Requests that did not, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Time to the first event or byte, of good requests.
    pub(crate) first: Histogram,
    /// Time to the end, of good requests.
    pub(crate) total: Histogram,
    /// Times between events of one stream.
    pub(crate) gaps: Histogram,
    /// How late requests left (open loop).
    pub(crate) lag: Histogram,
    /// Events of good requests.
    pub(crate) events: u64,
    /// Bytes sent, heads included.
    pub(crate) sent_bytes: u64,
    /// Body bytes received.
    pub(crate) received_bytes: u64,
    /// Requests not sent because too many were under way.
    pub(crate) dropped: u64,
    /// From the first request to the last answer.
    pub(crate) wall: Duration,
}

impl Outcome {
    fn note(&mut self, template: &Template, result: Result<Answer, String>) {
        self.sent_bytes += template.wire_bytes();
        match result.and_then(|answer| verdict(template, answer)) {
            Ok(answer) => {
                self.good += 1;
                self.events += answer.events;
                self.received_bytes += answer.bytes;
                answer.first.iter().for_each(|time| self.first.add(*time));
                self.total.add(answer.total);
            }
            Err(kind) => *self.errors.entry(kind).or_default() += 1,
        }
    }

    /// Requests that did not end well.
    pub(crate) fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Good requests per second.
    pub(crate) fn rate(&self) -> f64 {
        self.good as f64 / self.wall.as_secs_f64().max(1e-9)
    }

    /// Everything, times in microseconds.
    pub(crate) fn json(&self) -> Value {
        json!({
            "good": self.good, "failed": self.failed(), "errors": self.errors, "dropped": self.dropped, "events": self.events,
            "sent_bytes": self.sent_bytes, "received_bytes": self.received_bytes, "wall_s": self.wall.as_secs_f64(),
            "requests_per_s": self.rate(),
            "ttft": self.first.json(), "e2e": self.total.json(), "gaps": self.gaps.json(), "lag": self.lag.json(),
        })
    }
}

/// An answer that a client would not accept becomes the name of its error.
pub(crate) fn verdict(template: &Template, answer: Answer) -> Result<Answer, String> {
    match answer {
        Answer { status, .. } if status != 200 => Err(format!("status {status}")),
        Answer { errors, .. } if errors > 0 => Err("error event".to_owned()),
        Answer { done: false, .. } => Err("stream without its ending".to_owned()),
        Answer { events: 0, .. } if template.stream => Err("stream without events".to_owned()),
        answer => Ok(answer),
    }
}

/// What all requests of one load share.
struct Field {
    load: Load,
    pool: Connections,
    outcome: RefCell<Outcome>,
    live: Live,
    dice: RefCell<Dice>,
}

/// Counts that may be read while the load runs.
#[derive(Default)]
pub(crate) struct Live {
    /// Requests that ended, well or not.
    pub(crate) ended: Cell<u64>,
    /// Events that arrived.
    pub(crate) events: Cell<u64>,
}

struct Gaps<'a> {
    field: &'a Field,
    last: Option<Instant>,
}

impl Watch for Gaps<'_> {
    fn events(&mut self, count: u64, at: Instant) {
        self.field.live.events.set(self.field.live.events.get() + count);
        if let Some(last) = self.last.replace(at) {
            self.field.outcome.borrow_mut().gaps.add(at - last);
        }
    }
}

impl Field {
    fn new(load: &Load) -> Rc<Self> {
        let dice = RefCell::new(Dice::new(load.seed));
        Rc::new(Self {
            load: load.clone(),
            pool: Connections::new(load.target),
            outcome: RefCell::default(),
            live: Live::default(),
            dice,
        })
    }

    fn choose(&self) -> Option<(Rc<Template>, u64)> {
        let mut dice = self.dice.borrow_mut();
        let sum: f64 = self.load.mix.iter().map(|(weight, _)| weight).sum();
        let mut left = dice.unit() * sum;
        let (_, list) = self.load.mix.iter().find(|(weight, _)| {
            left -= weight;
            left < 0.0
        })?;
        let template = list.get(dice.below(list.len()))?.clone();
        Some((template, dice.bits()))
    }

    /// One request from its choice to its record.
    async fn one(&self, template: &Template, number: u64) {
        let mut watch = Gaps { field: self, last: None };
        let work = tokio::time::timeout(self.load.timeout, self.pool.ask(template, number, &mut watch));
        let result = work.await.unwrap_or_else(|_| Err("timeout".to_owned()));
        self.outcome.borrow_mut().note(template, result);
        self.live.ended.set(self.live.ended.get() + 1);
    }

    fn finish(&self, start: Instant) -> Outcome {
        let mut outcome = self.outcome.take();
        outcome.wall = start.elapsed();
        outcome
    }
}

/// Hands out each item at its time after the start, which comes first, from a thread of its own; the times must be in order.
pub(crate) fn pace<T: Send + 'static>(
    items: Vec<(Duration, T)>,
) -> io::Result<(Instant, mpsc::Receiver<(Instant, T)>)> {
    let (sender, receiver) = mpsc::channel(items.len().max(1));
    let start = Instant::now() + Duration::from_millis(20);
    std::thread::Builder::new().name("pacer".to_owned()).spawn(move || {
        for (time, item) in items {
            std::thread::sleep((start + time).saturating_duration_since(Instant::now()));
            if sender.try_send((start + time, item)).is_err() {
                return;
            }
        }
    })?;
    Ok((start, receiver))
}

/// Sends at the given times, whatever comes back, and waits for every answer.
pub(crate) async fn open_loop(load: &Load, times: Vec<Duration>, in_flight_max: usize) -> io::Result<Outcome> {
    let (start, mut receiver) = pace(times.into_iter().map(|time| (time, ())).collect())?;
    let field = Field::new(load);
    let work = async {
        let mut tasks = JoinSet::new();
        while let Some((due, ())) = receiver.recv().await {
            while tasks.try_join_next().is_some() {}
            field.outcome.borrow_mut().lag.add(Instant::now().saturating_duration_since(due));
            let Some((template, number)) = field.choose() else { break };
            if tasks.len() >= in_flight_max {
                field.outcome.borrow_mut().dropped += 1;
                continue;
            }
            let field = field.clone();
            tasks.spawn_local(async move { field.one(&template, number).await });
        }
        while tasks.join_next().await.is_some() {}
    };
    LocalSet::new().run_until(work).await;
    Ok(field.finish(start))
}

/// Keeps `concurrency` requests under way while `during` runs, which gets the live counts; then drops what is under way.
pub(crate) async fn closed_loop<T>(
    load: &Load,
    concurrency: usize,
    most: u64,
    during: impl AsyncFnOnce(&Live) -> io::Result<T>,
) -> io::Result<(Outcome, T)> {
    let field = Field::new(load);
    let start = Instant::now();
    let sent = Rc::new(Cell::new(0u64));
    let work = async {
        let mut tasks = JoinSet::new();
        for _ in 0..concurrency {
            let (field, sent) = (field.clone(), sent.clone());
            tasks.spawn_local(async move {
                while sent.replace(sent.get() + 1) < most {
                    let Some((template, number)) = field.choose() else { return };
                    let failed = field.outcome.borrow().failed();
                    field.one(&template, number).await;
                    if field.outcome.borrow().failed() > failed {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                }
            });
        }
        during(&field.live).await
    };
    let value = LocalSet::new().run_until(work).await?;
    Ok((field.finish(start), value))
}
