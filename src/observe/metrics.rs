//! All numbers the gate keeps of itself, in one shared struct.
//!
//! Whoever handles a request looks its model up once ([`Metrics::model`]) and keeps the handle. In-flight gauges are held
//! by guards, so they come back to zero on every exit path. Label sets are capped by [`MetricLimits`]; what has no room
//! counts under `other` and in `label_overflow_total`. No clock here: durations come in.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};

use super::cause::{Cause, Fault};
use super::family::{Family, OTHER};
use super::gauge::Gauge;
use super::histogram::{Histogram, OVERHEAD_US, TTFT_US};
use super::model::{InFlight, ModelMetrics};
use super::running::RunningConfig;
use super::tenant::TenantSet;
use crate::base::{ModelName, PodId};

/// Caps on label sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MetricLimits {
    /// Most models and adapters with series of their own, at most 65,535.
    pub models_max: u16,
    /// Most series of `requests_total`.
    pub series_max: usize,
}

impl Default for MetricLimits {
    fn default() -> Self {
        Self { models_max: 256, series_max: 20_000 }
    }
}

/// Stages of a request in which the gate itself works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Frame checks, routing of the path, caller.
    Head,
    /// Copying the body, without waiting for the client.
    Body,
    /// Reading the body's members.
    Anatomy,
    /// Hashing the prompt.
    Fingerprint,
    /// Deciding whether it may go, without the wait.
    Admit,
    /// Choosing a pod.
    Plan,
    /// Getting a connection and sending the request.
    Connect,
    /// Release, learn and log.
    Settle,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 8] = [
        Self::Head,
        Self::Body,
        Self::Anatomy,
        Self::Fingerprint,
        Self::Admit,
        Self::Plan,
        Self::Connect,
        Self::Settle,
    ];

    /// Value of the `stage` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Head => "head",
            Self::Body => "body",
            Self::Anatomy => "anatomy",
            Self::Fingerprint => "fingerprint",
            Self::Admit => "admit",
            Self::Plan => "plan",
            Self::Connect => "connect",
            Self::Settle => "settle",
        }
    }
}

/// One series of `requests_total` as read out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestSeries {
    /// Model label.
    pub model: ModelName,
    /// Pod that answered or failed last; `None` if none was involved.
    pub pod: Option<PodId>,
    /// Status sent to the client; 0 if none was.
    pub code: u16,
    /// How it ended.
    pub cause: Cause,
    /// Requests.
    pub count: u64,
}

/// What waits in a class of a pool.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueSeries {
    /// Model it is for.
    pub model: ModelName,
    /// What its pods do: `prefill` for others, or everything else.
    pub role: &'static str,
    /// Class.
    pub class: &'static str,
    /// Requests that wait.
    pub requests: u64,
    /// Bytes of their bodies.
    pub body_bytes: u64,
    /// What they cost \[seconds of one pod\].
    pub cost_s: f64,
    /// Age of the oldest \[seconds\].
    pub oldest_s: f64,
    /// Time in which they and those before them will have gone \[seconds\].
    pub backlog_s: f64,
}

/// A source of pods that is watched.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceSeries {
    /// What it is.
    pub name: String,
    /// Time since it was last heard \[seconds\]; `None` before the first time.
    pub age_s: Option<f64>,
    /// Its last answer was an error.
    pub is_failing: bool,
}

/// Sessions of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionSeries {
    /// Its name.
    pub model: ModelName,
    /// Sessions that are active.
    pub active: u64,
    /// Requests that wait for theirs to be let in.
    pub waiting: u64,
    /// Tokens that active sessions are expected to reuse.
    pub tokens: u64,
    /// Room for these; `None` while nobody is held \[tokens\].
    pub room: Option<u64>,
}

/// What the latency model knows of one variant of pods.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTimeSeries {
    /// Name of the variant.
    pub variant: Arc<str>,
    /// Constants of the step time by name \[seconds\].
    pub terms: [(&'static str, f64); 5],
    /// Fixed time before a first token \[seconds\].
    pub overhead_s: f64,
    /// First tokens and gaps learnt from.
    pub seen: [u64; 2],
    /// Mean relative error of predictions by regime; `None` before the first.
    pub errors: Vec<(&'static str, Option<f64>)>,
}

/// Everything the gate counts. Shared by `Arc`.
#[derive(Debug)]
pub struct Metrics {
    limits: MetricLimits,
    other: Arc<ModelMetrics>,
    models: ArcSwap<HashMap<ModelName, Arc<ModelMetrics>>>,
    next_index: Mutex<u16>,
    requests: RwLock<HashMap<SeriesKey, AtomicU64>>,
    stages: [Histogram; 8],
    /// Retries by class.
    pub retries: Family,
    /// Refusals by reason.
    pub refused: Family,
    /// Refusals of those whose class is known, by class in the order of classes, and reason.
    pub class_refused: [Family; 3],
    /// Numbers of tenants.
    pub tenants: TenantSet,
    /// Classes that were asked for in vain, by why.
    pub class_ignored: Family,
    /// Framing faults by rule.
    pub framing_rejected: Family,
    /// Dropped request headers by kind.
    pub dropped_headers: Family,
    /// Removed body members by kind.
    pub stripped_members: Family,
    /// Panics by phase.
    pub panics: Family,
    /// Degraded decisions by kind.
    pub degradations: Family,
    /// Plans by mode.
    pub plans: Family,
    /// Requests with a promise, by whether it was kept.
    pub slo: Family,
    /// Requests on two pods by what decided.
    pub disagg_remote: Family,
    /// Requests on one pod, where two were possible, by what decided.
    pub disagg_local: Family,
    /// Legs planned anew by cause.
    pub disagg_replans: Family,
    /// Checked first tokens by verdict.
    pub disagg_sentinel: Family,
    /// Leases by their end.
    pub disagg_leases: Family,
    /// Prompt tokens computed again.
    pub disagg_tokens_twice: AtomicU64,
    /// Events of pods.
    pub pod_events: Family,
    /// Scrapes by result.
    pub scrapes: Family,
    /// The configuration in force; set.
    pub running_config: ArcSwap<RunningConfig>,
    /// Handshakes with clients, by result.
    pub tls_handshakes: Family,
    /// Handshakes with pods that failed, by reason.
    pub pod_tls_failures: Family,
    /// Spans of traced requests, by what became of them.
    pub spans: Family,
    /// Until when certificates are valid \[seconds since 1970\], by where they are configured; set.
    pub certificates: Mutex<BTreeMap<String, i64>>,
    /// Reloads by result.
    pub config_reloads: Family,
    /// Overflows by label.
    pub label_overflow: Family,
    /// Access lines dropped.
    pub access_log_dropped: AtomicU64,
    /// Open client connections; hold one per connection.
    pub connections: Gauge,
    /// Request body bytes in memory; hold what is held.
    pub body_held: Gauge,
    /// Memory stage 0 to 3; set.
    pub memory_stage: Gauge,
    /// Blocks in the prefix index; set.
    pub index_blocks: Gauge,
    /// Bytes of the prefix index; set.
    pub index_bytes: Gauge,
    /// What the latency model knows, by variant; set.
    pub step_times: ArcSwap<Vec<StepTimeSeries>>,
    /// Sessions by model; set.
    pub sessions: ArcSwap<Vec<SessionSeries>>,
    /// Requests that belong to a session by what became of them before the queue.
    pub session_outcomes: Family,
    /// Requests that wait for the first pod of their model; set.
    pub absent: ArcSwap<Vec<(ModelName, u64)>>,
    /// Sources of pods that are watched; set.
    pub sources: ArcSwap<Vec<SourceSeries>>,
    /// What waits; set.
    pub queues: ArcSwap<Vec<QueueSeries>>,
    /// Requests at the queue by what became of them.
    pub queue_outcomes: Family,
    /// Waits of those who had to, by class in the order of classes.
    pub queue_waits: [Histogram; 3],
    /// 1 in safe mode; set.
    pub safe_mode: Gauge,
    /// 1 with explain on for everybody; set.
    pub explain: Gauge,
    /// 1 while ready; set.
    pub ready: Gauge,
}

/// Model index, pod, status, cause.
type SeriesKey = (u16, Option<PodId>, u16, Cause);

impl Metrics {
    /// All zero.
    pub fn new(limits: MetricLimits) -> Arc<Self> {
        let other = Arc::new(ModelMetrics::new(0, OTHER.into()));
        Arc::new(Self {
            limits,
            models: ArcSwap::from_pointee(HashMap::from([(Arc::clone(&other.name), Arc::clone(&other))])),
            other,
            next_index: Mutex::new(1),
            requests: RwLock::default(),
            stages: std::array::from_fn(|_| Histogram::new(OVERHEAD_US)),
            retries: Family::with(&["A", "B", "C", "D", "E", "F", "G"]),
            refused: Family::default(),
            // There from the start: a counter that begins at 1 is no increase to an alert.
            class_refused: std::array::from_fn(|_| Family::with(&["predicted_late", "queue_timeout", "queue_full"])),
            tenants: TenantSet::default(),
            class_ignored: Family::with(&["unknown", "not_allowed"]),
            framing_rejected: Family::default(),
            dropped_headers: Family::default(),
            stripped_members: Family::default(),
            panics: Family::default(),
            degradations: Family::default(),
            plans: Family::with(&["normal", "safe"]),
            slo: Family::with(&["kept", "late", "slow"]),
            disagg_remote: Family::default(),
            disagg_local: Family::default(),
            disagg_replans: Family::default(),
            disagg_sentinel: Family::with(&["agrees", "open", "differs", "expired"]),
            disagg_leases: Family::with(&["used", "too_old", "unused", "orphan"]),
            disagg_tokens_twice: AtomicU64::new(0),
            pod_events: Family::default(),
            scrapes: Family::with(&["ok"]),
            running_config: ArcSwap::default(),
            tls_handshakes: Family::with(&["full", "resumed"]),
            pod_tls_failures: Family::default(),
            spans: Family::with(&["exported", "failed", "dropped"]),
            certificates: Mutex::default(),
            config_reloads: Family::with(&["ok", "bad"]),
            label_overflow: Family::with(&["model", "series"]),
            access_log_dropped: AtomicU64::new(0),
            connections: Gauge::default(),
            body_held: Gauge::default(),
            memory_stage: Gauge::default(),
            index_blocks: Gauge::default(),
            index_bytes: Gauge::default(),
            step_times: ArcSwap::default(),
            sessions: ArcSwap::default(),
            absent: ArcSwap::default(),
            session_outcomes: Family::with(&["at_once", "waited", "refused", "left", "overdue"]),
            sources: ArcSwap::default(),
            queues: ArcSwap::default(),
            queue_outcomes: Family::with(&["at_once", "waited", "refused", "left", "overdue", "recalled"]),
            queue_waits: std::array::from_fn(|_| Histogram::new(TTFT_US)),
            safe_mode: Gauge::default(),
            explain: Gauge::default(),
            ready: Gauge::default(),
        })
    }

    /// Numbers of models that have no series of their own, and of requests whose model is not known (yet).
    pub const fn other(&self) -> &Arc<ModelMetrics> {
        &self.other
    }

    /// Numbers of a model. Pass only names that some pod serves; for any other use [`Metrics::other`].
    pub fn model(&self, served: &str) -> Arc<ModelMetrics> {
        if let Some(model) = self.models.load().get(served) {
            return Arc::clone(model);
        }
        let mut next_index = self.next_index.lock();
        let models = self.models.load_full();
        if let Some(model) = models.get(served) {
            return Arc::clone(model);
        }
        if models.len() > usize::from(self.limits.models_max) || *next_index == u16::MAX {
            self.label_overflow.inc("model");
            return Arc::clone(&self.other);
        }
        let model = Arc::new(ModelMetrics::new(*next_index, served.into()));
        *next_index += 1;
        let mut grown = HashMap::clone(&models);
        grown.insert(Arc::clone(&model.name), Arc::clone(&model));
        self.models.store(Arc::new(grown));
        model
    }

    /// All models with numbers, by name.
    pub fn models(&self) -> Vec<Arc<ModelMetrics>> {
        let mut models: Vec<_> = self.models.load().values().cloned().collect();
        models.sort_by(|a, b| a.name.cmp(&b.name));
        models
    }

    /// A request is in flight from now until the guard is dropped, first under `other`.
    pub fn request(&self) -> InFlight {
        InFlight::new(Arc::clone(&self.other))
    }

    /// Time the gate spent in a stage.
    pub fn stage(&self, stage: Stage, spent: Duration) {
        self.stage_histogram(stage).observe(spent);
    }

    /// Histogram of a stage.
    pub fn stage_histogram(&self, stage: Stage) -> &Histogram {
        let [head, body, anatomy, fingerprint, admit, plan, connect, settle] = &self.stages;
        match stage {
            Stage::Head => head,
            Stage::Body => body,
            Stage::Anatomy => anatomy,
            Stage::Fingerprint => fingerprint,
            Stage::Admit => admit,
            Stage::Plan => plan,
            Stage::Connect => connect,
            Stage::Settle => settle,
        }
    }

    /// Counts a request that ended. `code` is the status sent, 0 if none was.
    pub fn finish(&self, model: &ModelMetrics, pod: Option<PodId>, code: u16, cause: Cause) {
        let code = if (100..1_000).contains(&code) { code } else { 0 };
        let key = (model.index, pod, code, cause);
        if let Some(count) = self.requests.read().get(&key) {
            count.fetch_add(1, Relaxed);
            return;
        }
        let mut requests = self.requests.write();
        let key = if requests.len() < self.limits.series_max || requests.contains_key(&key) {
            key
        } else {
            self.label_overflow.inc("series");
            (0, None, code / 100 * 100, cause)
        };
        requests.entry(key).or_default().fetch_add(1, Relaxed);
    }

    /// The series of `requests_total`, sorted.
    pub fn finished(&self) -> Vec<RequestSeries> {
        let models: HashMap<u16, ModelName> =
            self.models.load().values().map(|model| (model.index, Arc::clone(&model.name))).collect();
        let mut all: Vec<_> = self
            .requests
            .read()
            .iter()
            .filter_map(|(&(index, pod, code, cause), count)| {
                let model = Arc::clone(models.get(&index)?);
                Some(RequestSeries { model, pod, code, cause, count: count.load(Relaxed) })
            })
            .collect();
        all.sort_by(|a, b| {
            (&a.model, a.pod, a.code, a.cause.as_str()).cmp(&(&b.model, b.pod, b.code, b.cause.as_str()))
        });
        all
    }

    /// Requests that ended, by whose fault that was, in the order of [`Fault::ALL`]. Less after pods left.
    pub fn ended(&self) -> [u64; Fault::ALL.len()] {
        let mut sums = [0; Fault::ALL.len()];
        for ((.., cause), count) in self.requests.read().iter() {
            let place = Fault::ALL.iter().position(|fault| *fault == cause.fault());
            if let Some(sum) = place.and_then(|place| sums.get_mut(place)) {
                *sum += count.load(Relaxed);
            }
        }
        sums
    }

    /// Drops the series of pods and models that left, so that churn cannot fill the limits. Requests still in flight
    /// there may bring a series back; the next call drops it again.
    pub fn forget(&self, is_pod: impl Fn(PodId) -> bool, is_model: impl Fn(&str) -> bool) {
        let _one_writer = self.next_index.lock();
        let mut models = HashMap::clone(&self.models.load_full());
        models.retain(|name, model| model.index == 0 || model.in_flight.value() > 0 || is_model(name));
        let indices: Vec<u16> = models.values().map(|model| model.index).collect();
        self.requests.write().retain(|(index, pod, _, _), _| indices.contains(index) && pod.is_none_or(&is_pod));
        self.models.store(Arc::new(models));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::super::model::TokenKind;
    use super::*;

    fn metrics(models_max: u16, series_max: usize) -> Arc<Metrics> {
        Metrics::new(MetricLimits { models_max, series_max })
    }

    #[test]
    fn in_flight_moves_to_its_model_and_returns_to_zero() {
        let metrics = metrics(4, 10);
        let mut request = metrics.request();
        assert_eq!(metrics.other().in_flight.value(), 1);
        request.assign(metrics.model("m"));
        assert_eq!((metrics.other().in_flight.value(), metrics.model("m").in_flight.value()), (0, 1));
        let unwound = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _request = request;
            std::panic::resume_unwind(Box::new("on purpose"));
        }));
        assert!(unwound.is_err());
        assert_eq!(metrics.model("m").in_flight.value(), 0);
    }

    #[test]
    fn models_over_the_limit_are_other() {
        let metrics = metrics(2, 10);
        let (a, b, c) = (metrics.model("a"), metrics.model("b"), metrics.model("c"));
        assert_eq!((&*a.name, &*b.name, &*c.name), ("a", "b", OTHER));
        assert!(Arc::ptr_eq(&a, &metrics.model("a")));
        assert_eq!(metrics.label_overflow.value("model"), 1);
        metrics.forget(|_| true, |name| name == "b");
        assert_eq!(&*metrics.model("c").name, "c", "room again");
    }

    #[test]
    fn series_over_the_limit_fold_into_other() {
        let metrics = metrics(4, 3);
        let model = metrics.model("m");
        for pod in 0..10 {
            metrics.finish(&model, Some(PodId(pod)), 200, Cause::Ok);
        }
        metrics.finish(&model, Some(PodId(1)), 200, Cause::Ok);
        let all = metrics.finished();
        assert_eq!(all.iter().map(|series| series.count).sum::<u64>(), 11, "nothing is lost");
        assert_eq!(all.len(), 4);
        assert_eq!(metrics.label_overflow.value("series"), 7);
        let folded = all.iter().find(|series| &*series.model == OTHER).map(|series| series.count);
        assert_eq!(folded, Some(7));
    }

    #[test]
    fn pods_that_left_are_forgotten() {
        let metrics = metrics(4, 10);
        let model = metrics.model("m");
        for (pod, code) in [(Some(PodId(1)), 200), (Some(PodId(2)), 9_999), (None, 404)] {
            metrics.finish(&model, pod, code, Cause::Ok);
        }
        assert_eq!(metrics.finished().iter().map(|series| series.code).collect::<Vec<_>>(), [404, 200, 0]);
        metrics.finish(&model, Some(PodId(1)), 500, Cause::GatePanic);
        let place = |fault| Fault::ALL.iter().position(|known| *known == fault).unwrap_or(9);
        assert_eq!((metrics.ended()[place(Fault::Nobody)], metrics.ended()[place(Fault::Gate)]), (3, 1));
        metrics.forget(|pod| pod == PodId(2), |_| true);
        assert_eq!(metrics.finished().iter().map(|series| series.pod).collect::<Vec<_>>(), [None, Some(PodId(2))]);
    }

    #[test]
    fn tokens_and_stages_land_in_their_own_counter() {
        let metrics = metrics(1, 1);
        for (kind, number) in TokenKind::ALL.into_iter().zip(1..) {
            metrics.other().add_tokens(kind, number);
        }
        assert_eq!(TokenKind::ALL.map(|kind| metrics.other().tokens(kind)), [1, 2, 3]);
        for stage in Stage::ALL {
            metrics.stage(stage, Duration::from_micros(1));
            assert_eq!(metrics.stage_histogram(stage).snapshot().counts[0], 1, "{stage:?}");
        }
    }
}
