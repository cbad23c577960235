//! Spans of traced requests, sent to an OpenTelemetry collector: OTLP over HTTP, protobuf.
//!
//! A thread of its own with a runtime of its own collects, converts and sends. The exporter is driven from there and not by the
//! SDK's batch processor, whose thread has no reactor for an asynchronous client. A request never waits: what finds the
//! channel full is counted and dropped, and so is what a collector has refused three times.
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::time::{sleep, timeout};

use crate::base::Mono;
use crate::observe::{Metrics, SpanRecord, SpanValue, TraceRecord, TraceSettings};
use crate::runtime::now;
use crate::tls::{TlsError, authorities};

/// Traces that wait for the exporter, at most.
const TRACES_MAX: usize = 8_192;
/// Traces that are sent together, at most.
const BATCH_MAX: usize = 256;
/// How long the first of a batch waits for others. Meanwhile nobody who hands over a trace has to wake the exporter.
const LINGER: Duration = Duration::from_millis(200);
/// Time for one call to the collector.
const SEND_WITHIN: Duration = Duration::from_secs(10);
/// Pauses before a batch is sent again.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(4)];

/// Why traces cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// A file cannot be read or is not what it should be.
    #[error("observe.traces.authorization_file {0}: {1}")]
    Authorization(String, io::Error),
    /// The authorities cannot be used.
    #[error("observe.traces.ca_file: {0}")]
    Tls(#[from] TlsError),
    /// The library refuses.
    #[error("observe.traces: {0}")]
    Exporter(String),
    /// The system refuses.
    #[error("cannot start the exporter of traces: {0}")]
    System(#[from] io::Error),
}

/// Takes traces for export.
#[derive(Debug)]
pub struct Spans {
    traces: Sender<TraceRecord>,
    metrics: Arc<Metrics>,
}

/// The thread that exports; it ends when the [`Spans`] is dropped and the last batch was sent.
#[derive(Debug)]
pub struct Exporter(Option<JoinHandle<()>>);

impl Exporter {
    /// Nothing to wait for.
    pub const fn none() -> Self {
        Self(None)
    }

    /// Whether it has ended within `limit`; spans may be lost if not.
    pub fn join_within(&mut self, limit: Duration) -> bool {
        let until = now().after(limit);
        while self.0.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        self.0.take().is_none_or(|thread| thread.join().is_ok())
    }
}

impl Spans {
    /// Starts the exporter; `None` if no collector is configured.
    pub fn start(settings: &TraceSettings, metrics: Arc<Metrics>) -> Result<Option<(Self, Exporter)>, OtlpError> {
        let Some(url) = settings.url() else { return Ok(None) };
        let exporter = exporter(settings, url)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (sender, receiver) = channel(TRACES_MAX);
        let counts = Arc::clone(&metrics);
        let thread = std::thread::Builder::new()
            .name("traces".into())
            .spawn(move || runtime.block_on(run(receiver, &exporter, &counts)))?;
        Ok(Some((Self { traces: sender, metrics }, Exporter(Some(thread)))))
    }

    /// Hands a trace to the exporter, or counts its spans as dropped.
    pub fn put(&self, trace: TraceRecord) {
        let count = trace.spans.len() as u64;
        if self.traces.try_send(trace).is_err() {
            self.metrics.spans.add("dropped", count);
        }
    }
}

fn exporter(settings: &TraceSettings, url: String) -> Result<SpanExporter, OtlpError> {
    let authorization = settings.authorization_file.as_deref().map(authorization).transpose()?;
    let unusable = |error: &dyn std::fmt::Display| OtlpError::Exporter(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        // Where nothing is encrypted no authority is needed.
        .with_root_certificates(if url.starts_with("https:") {
            authorities(settings.ca_file.as_deref())?
        } else {
            rustls::RootCertStore::empty()
        })
        .with_no_client_auth();
    let connector =
        hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(config).https_or_http().enable_http1().build();
    let mut exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(HyperClient::new(connector, SEND_WITHIN, authorization))
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(url)
        .with_timeout(SEND_WITHIN)
        .build()
        .map_err(|error| unusable(&error))?;
    let own = [
        KeyValue::new("service.name", settings.service_name.clone()),
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("service.instance.id", instance()),
    ];
    exporter.set_resource(&Resource::builder_empty().with_attributes(own).build());
    Ok(exporter)
}

fn authorization(path: &Path) -> Result<HeaderValue, OtlpError> {
    let of = |error| OtlpError::Authorization(path.display().to_string(), error);
    let text = fs::read_to_string(path).map_err(of)?;
    let not_a_header = || of(io::Error::new(io::ErrorKind::InvalidData, "not the value of a header"));
    let mut value = HeaderValue::from_str(text.trim()).map_err(|_| not_a_header())?;
    value.set_sensitive(true);
    Ok(value)
}

/// Tells this process from others of the same service: the host's name, which in Kubernetes is the pod's, and the process id.
fn instance() -> String {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

async fn run(mut traces: Receiver<TraceRecord>, exporter: &SpanExporter, metrics: &Metrics) {
    let scope = InstrumentationScope::builder("tidegate").with_version(env!("CARGO_PKG_VERSION")).build();
    let (mut batch, mut is_failing) = (Vec::with_capacity(BATCH_MAX), false);
    while let Some(first) = traces.recv().await {
        batch.push(first);
        sleep(LINGER).await;
        while !batch.is_empty() {
            while batch.len() < BATCH_MAX
                && let Ok(trace) = traces.try_recv()
            {
                batch.push(trace);
            }
            let count: u64 = batch.iter().map(|trace| trace.spans.len() as u64).sum();
            let sent = send(&batch, exporter, &scope, &traces).await;
            metrics.spans.add(if sent.is_ok() { "exported" } else { "failed" }, count);
            if let Err(error) = &sent
                && !is_failing
            {
                tracing::warn!(%error, "the collector of observe.traces.endpoint takes no spans; they are dropped and counted");
            }
            is_failing = sent.is_err();
            let was_full = batch.len() == BATCH_MAX;
            batch.clear();
            if was_full {
                batch.extend(traces.try_recv());
            }
        }
    }
}

/// Sends a batch, again if that fails; not again once nobody adds to it any more, since then the gate stops.
async fn send(
    batch: &[TraceRecord],
    exporter: &SpanExporter,
    scope: &InstrumentationScope,
    traces: &Receiver<TraceRecord>,
) -> Result<(), String> {
    let mut pauses = PAUSES.into_iter();
    loop {
        let spans = batch.iter().flat_map(|trace| trace.spans.iter().map(|span| of(trace, span, scope))).collect();
        let error = match timeout(SEND_WITHIN, exporter.export(spans)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        match pauses.next().filter(|_| !traces.is_closed()) {
            Some(pause) => sleep(pause).await,
            None => return Err(error),
        }
    }
}

fn of(trace: &TraceRecord, span: &SpanRecord, scope: &InstrumentationScope) -> SpanData {
    let time = |at: Mono| wall(trace.anchor, at);
    let value = |value: &SpanValue| match value {
        SpanValue::Word(word) => Value::from(*word),
        SpanValue::Text(text) => Value::from(Arc::clone(text)),
        SpanValue::Count(count) => Value::from(i64::try_from(*count).unwrap_or(i64::MAX)),
        SpanValue::Flag(flag) => Value::from(*flag),
    };
    SpanData {
        span_context: SpanContext::new(
            TraceId::from_bytes(trace.id.to_be_bytes()),
            SpanId::from_bytes(span.id.to_be_bytes()),
            TraceFlags::SAMPLED,
            false,
            TraceState::NONE,
        ),
        parent_span_id: SpanId::from_bytes(span.parent.to_be_bytes()),
        parent_span_is_remote: trace.is_continued && trace.spans.first().is_some_and(|first| first.id == span.id),
        span_kind: match span.kind {
            crate::observe::SpanKind::Server => SpanKind::Server,
            crate::observe::SpanKind::Client => SpanKind::Client,
            crate::observe::SpanKind::Internal => SpanKind::Internal,
        },
        name: span.name.clone(),
        start_time: time(span.began),
        end_time: time(span.ended),
        attributes: span.attributes.iter().map(|(key, one)| KeyValue::new(*key, value(one))).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: if span.is_error { Status::error("") } else { Status::Unset },
        instrumentation_scope: scope.clone(),
    }
}

/// What the wall clock showed at `at`.
fn wall((mono, unix_us): (Mono, u64), at: Mono) -> SystemTime {
    let us = unix_us.saturating_add(at.0).saturating_sub(mono.0);
    UNIX_EPOCH + Duration::from_micros(us)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_those_of_the_wall() {
        let anchor = (Mono(2_000), 1_700_000_000_000_000);
        let at = |mono| wall(anchor, Mono(mono)).duration_since(UNIX_EPOCH).unwrap().as_micros();
        assert_eq!(at(500), 1_699_999_999_998_500);
        assert_eq!(at(2_500), 1_700_000_000_000_500);
    }

    #[test]
    fn files_that_cannot_be_used_are_named() {
        let metrics = Metrics::new(crate::observe::MetricLimits::default());
        let with = |settings| Spans::start(&settings, Arc::clone(&metrics)).map(|started| started.is_some());
        assert!(!with(TraceSettings::default()).unwrap());
        let endpoint = Some("https://127.0.0.1:4318".to_owned());
        let nowhere = Some("/does/not/exist".into());
        let no_ca = TraceSettings { endpoint: endpoint.clone(), ca_file: nowhere.clone(), ..TraceSettings::default() };
        assert!(with(no_ca).unwrap_err().to_string().contains("observe.traces.ca_file"));
        let no_key = TraceSettings { endpoint, authorization_file: nowhere, ..TraceSettings::default() };
        assert!(with(no_key).unwrap_err().to_string().contains("authorization_file /does/not/exist"));
    }
}
