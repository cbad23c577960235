//! What arrived at a pod: a bounded log that tests read and wait on.
//!
//! An arrival is entered when its head is read and updated until it ended. Bodies are kept up to a limit; the log is the
//! one place in the product that holds prompts, in memory and for tests only, and it is never printed.
use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::host;
use crate::base::Mono;

/// How an exchange ended, from the pod's side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The whole answer was written.
    Complete,
    /// The client sent FIN or RST before that; its request was aborted.
    ClientLeft,
    /// A scripted fault cut it or its request was not HTTP.
    Cut,
    /// The pod was stopped or crashed.
    PodStopped,
}

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Number of the request on this pod, from 1, never given again.
    pub id: u64,
    /// Connection it came on, from 1.
    pub connection: u64,
    /// When the head was complete.
    pub at: Mono,
    /// Method.
    pub method: String,
    /// Path without query.
    pub path: String,
    /// Query without `?`; empty if none.
    pub query: String,
    /// Header fields in order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, unframed, up to the configured limit; `None` until it is read whole.
    pub body: Option<Bytes>,
    /// Status answered, if one was begun.
    pub status: Option<u16>,
    /// Bytes written to the socket, head and framing included; up to date once ended.
    pub bytes_sent: u64,
    /// How it ended; `None` while it runs.
    pub ended: Option<Ended>,
    /// When it ended. For `ClientLeft` this is when the FIN or RST was seen.
    pub ended_at: Option<Mono>,
}

impl Arrival {
    /// Value of a header field (name in lower case).
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The log of one pod.
pub(super) struct Log {
    arrivals: Mutex<VecDeque<Arrival>>,
    capacity: usize,
    body_bytes_max: usize,
    changes: watch::Sender<u64>,
}

impl Log {
    pub(super) fn new(capacity: usize, body_bytes_max: usize) -> Self {
        Self { arrivals: Mutex::default(), capacity, body_bytes_max, changes: watch::Sender::new(0) }
    }

    /// Whether anything is kept.
    pub(super) fn is_on(&self) -> bool {
        self.capacity > 0
    }

    /// Everything kept.
    pub(super) fn all(&self) -> Vec<Arrival> {
        self.arrivals.lock().iter().cloned().collect()
    }

    /// Forgets everything kept.
    pub(super) fn clear(&self) {
        self.arrivals.lock().clear();
    }

    /// Comes back when `is_met` holds for the log, with the log.
    pub(super) async fn wait_for(&self, is_met: impl Fn(&[Arrival]) -> bool) -> Vec<Arrival> {
        let mut changes = self.changes.subscribe();
        loop {
            changes.borrow_and_update();
            let all = self.all();
            if is_met(&all) || changes.changed().await.is_err() {
                return all;
            }
        }
    }

    /// Tells those who wait to look again.
    pub(super) fn nudge(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    fn update(&self, id: u64, change: impl FnOnce(&mut Arrival)) {
        let mut arrivals = self.arrivals.lock();
        let Some(first) = arrivals.front().map(|arrival| arrival.id) else { return };
        // Ids are given in order of entry, so the place follows from the id unless entries raced; then search.
        let guess = id.saturating_sub(first) as usize;
        let place = match arrivals.get(guess) {
            Some(arrival) if arrival.id == id => Some(guess),
            _ => arrivals.iter().position(|arrival| arrival.id == id),
        };
        if let Some(arrival) = place.and_then(|place| arrivals.get_mut(place)) {
            change(arrival);
        }
        drop(arrivals);
        self.nudge();
    }
}

/// The pen for one arrival. Dropped without `end`, it notes that the pod was stopped.
pub(super) struct Entry {
    log: Arc<Log>,
    id: u64,
    is_open: bool,
}

impl Entry {
    /// Enters an arrival. Its `id` must be larger than those before.
    pub(super) fn new(log: &Arc<Log>, make: impl FnOnce() -> Arrival) -> Self {
        if !log.is_on() {
            return Self { log: log.clone(), id: 0, is_open: false };
        }
        let arrival = make();
        let id = arrival.id;
        let mut arrivals = log.arrivals.lock();
        while arrivals.len() >= log.capacity {
            arrivals.pop_front();
        }
        arrivals.push_back(arrival);
        drop(arrivals);
        log.nudge();
        Self { log: log.clone(), id, is_open: true }
    }

    /// Notes the body.
    pub(super) fn body(&self, body: &Bytes) {
        if self.is_open {
            let kept = body.slice(..body.len().min(self.log.body_bytes_max));
            self.log.update(self.id, |arrival| arrival.body = Some(kept));
        }
    }

    /// Notes the end.
    pub(super) fn end(&mut self, ended: Ended, status: Option<u16>, bytes_sent: u64) {
        if std::mem::take(&mut self.is_open) {
            self.log.update(self.id, |arrival| {
                arrival.status = status;
                arrival.bytes_sent = bytes_sent;
                arrival.ended = Some(ended);
                arrival.ended_at = Some(host::now());
            });
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.end(Ended::PodStopped, None, 0);
    }
}
