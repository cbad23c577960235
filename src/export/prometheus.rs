//! Prometheus text exposition (format 0.0.4) of everything in the metric table.
//!
//! One pass per scrape; nothing is kept between two. Metrics of pods come from the pod table at that moment, so a pod that
//! left has no stale series. Every metric is written through its entry in `observe::names`, with its labels in order.
use std::fmt::Write as _;
use std::sync::atomic::Ordering::Relaxed;

use crate::base::Mono;
use crate::observe::histogram::Snapshot;
use crate::observe::{Family, Gauge, MetricName, Metrics, ModelMetrics, Stage, TenantMetrics, TokenKind};
use crate::pods::{Fleet, Pod, Role, Standing};

/// `Content-Type` of the text.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a scrape looks at.
#[derive(Clone, Copy, Debug)]
pub struct Scrape<'a> {
    /// The gate's own numbers.
    pub metrics: &'a Metrics,
    /// The pods now.
    pub fleet: &'a Fleet,
    /// Now, for ages.
    pub now: Mono,
    /// Version of the program.
    pub version: &'a str,
}

/// Appends the whole exposition.
pub fn render(scrape: &Scrape<'_>, out: &mut String) {
    for metric in MetricName::ALL {
        let definition = metric.definition();
        let _infallible = writeln!(out, "# HELP {} {}", definition.name, definition.help);
        let _infallible = writeln!(out, "# TYPE {} {}", definition.name, definition.kind.as_str());
        samples(*metric, scrape, &mut Writer { out, metric: *metric });
    }
}

/// Writes samples of one metric.
struct Writer<'a> {
    out: &'a mut String,
    metric: MetricName,
}

impl Writer<'_> {
    fn sample(&mut self, labels: &[&str], value: u64) {
        self.line("", labels, None, &value.to_string());
    }

    fn float(&mut self, labels: &[&str], value: f64) {
        self.line("", labels, None, &value.to_string());
    }

    fn histogram(&mut self, label: &str, snapshot: &Snapshot) {
        let mut cumulative = 0;
        for (position, count) in snapshot.counts.iter().enumerate() {
            cumulative += count;
            let bound = snapshot.bounds_us.get(position).map_or_else(|| "+Inf".to_owned(), |bound| seconds(*bound));
            self.line("_bucket", &[label], Some(&bound), &cumulative.to_string());
        }
        self.line("_sum", &[label], None, &seconds(snapshot.sum_us));
        self.line("_count", &[label], None, &cumulative.to_string());
    }

    fn line(&mut self, suffix: &str, labels: &[&str], bound: Option<&str>, value: &str) {
        let definition = self.metric.definition();
        debug_assert_eq!(labels.len(), definition.labels.len(), "{}", definition.name);
        self.out.push_str(definition.name);
        self.out.push_str(suffix);
        let pairs =
            definition.labels.iter().copied().zip(labels.iter().copied()).chain(bound.map(|bound| ("le", bound)));
        let mut separator = '{';
        for (name, value) in pairs {
            self.out.push(separator);
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(self.out, value);
            self.out.push('"');
            separator = ',';
        }
        if separator == ',' {
            self.out.push('}');
        }
        self.out.push(' ');
        self.out.push_str(value);
        self.out.push('\n');
    }
}

fn samples(metric: MetricName, scrape: &Scrape<'_>, to: &mut Writer<'_>) {
    use MetricName as M;
    let metrics = scrape.metrics;
    match metric {
        M::Requests => requests(metrics, to),
        M::InFlight => models(metrics, |model| to.sample(&[&model.name], model.in_flight.value())),
        M::Attempts => models(metrics, |model| to.sample(&[&model.name], model.attempts())),
        M::Ttft => models(metrics, |model| to.histogram(&model.name, &model.ttft.snapshot())),
        M::EventGap => models(metrics, |model| to.histogram(&model.name, &model.event_gap.snapshot())),
        M::E2e => models(metrics, |model| to.histogram(&model.name, &model.e2e.snapshot())),
        M::Tokens => models(metrics, |model| {
            for kind in TokenKind::ALL {
                to.sample(&[&model.name, kind.as_str()], model.tokens(kind));
            }
        }),
        M::GateOverhead => {
            for stage in Stage::ALL {
                to.histogram(stage.as_str(), &metrics.stage_histogram(stage).snapshot());
            }
        }
        M::Retries => family(&metrics.retries, to),
        M::Refused => family(&metrics.refused, to),
        M::TenantRequests | M::TenantTokens | M::TenantRefused => tenants(metric, metrics, to),
        M::ClassIgnored => family(&metrics.class_ignored, to),
        M::FramingRejected => family(&metrics.framing_rejected, to),
        M::DroppedHeaders => family(&metrics.dropped_headers, to),
        M::StrippedMembers => family(&metrics.stripped_members, to),
        M::Panics => family(&metrics.panics, to),
        M::Degradations => family(&metrics.degradations, to),
        M::Plans => family(&metrics.plans, to),
        M::Slo => family(&metrics.slo, to),
        M::Sessions | M::SessionTokens | M::SessionOutcomes => sessions(metric, metrics, to),
        M::QueueOutcomes | M::QueueWaits | M::AbsentRequests | M::ClassRefused => waits(metric, metrics, to),
        M::QueueRequests | M::QueueBytes | M::QueueCost | M::QueueOldest | M::QueueBacklog => {
            queues(metric, metrics, to);
        }
        M::DisaggTokensTwice => to.sample(&[], metrics.disagg_tokens_twice.load(Relaxed)),
        M::DisaggRemote | M::DisaggLocal | M::DisaggReplans | M::DisaggSentinel | M::DisaggLeases => {
            disagg(metric, metrics, to);
        }
        M::DisaggPrefill | M::DisaggHandover | M::DisaggLeaseAge => legs(metric, metrics, to),
        M::PodEvents => family(&metrics.pod_events, to),
        M::Scrapes => family(&metrics.scrapes, to),
        M::TlsHandshakes | M::PodTlsFailures | M::CertificateExpiry => tls(metric, metrics, to),
        M::ConfigReloads => family(&metrics.config_reloads, to),
        M::ConfigGeneration | M::ConfigHash | M::ConfigTaken | M::ConfigLastGood | M::ConfigNeedsRestart => {
            running_config(metric, metrics, to);
        }
        M::Spans => family(&metrics.spans, to),
        M::LabelOverflow => family(&metrics.label_overflow, to),
        M::AccessLogDropped => to.sample(&[], metrics.access_log_dropped.load(Relaxed)),
        M::StepTime | M::StepTimeError | M::StepTimeSamples => step_times(metric, metrics, to),
        M::SafeMode
        | M::Explain
        | M::Ready
        | M::Connections
        | M::BodyHeld
        | M::MemoryStage
        | M::IndexBlocks
        | M::IndexBytes => to.sample(&[], gauge(metric, metrics).value()),
        M::DiscoveryAge | M::DiscoveryFailing => sources(metric, metrics, to),
        M::FleetGeneration | M::BuildInfo | M::Pods => whole(metric, scrape, to),
        // The rest are of pods; a test renders each.
        _ => {
            for pod in &scrape.fleet.pods {
                pod_samples(metric, pod, scrape.now, to);
            }
        }
    }
}

/// What is said of the gate and its fleet as a whole.
fn whole(metric: MetricName, scrape: &Scrape<'_>, to: &mut Writer<'_>) {
    match metric {
        MetricName::FleetGeneration => to.sample(&[], scrape.fleet.generation),
        MetricName::BuildInfo => to.sample(&[scrape.version], 1),
        _ => roles(scrape.fleet, to),
    }
}

fn tls(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    match metric {
        MetricName::TlsHandshakes => family(&metrics.tls_handshakes, to),
        MetricName::PodTlsFailures => family(&metrics.pod_tls_failures, to),
        _ => {
            for (place, until_s) in metrics.certificates.lock().iter() {
                to.float(&[place], *until_s as f64);
            }
        }
    }
}

fn running_config(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    let running = metrics.running_config.load();
    match metric {
        MetricName::ConfigGeneration => to.sample(&[], running.generation),
        MetricName::ConfigHash => to.sample(&[], running.hash),
        MetricName::ConfigTaken => to.sample(&[], running.taken_s),
        MetricName::ConfigLastGood => to.sample(&[], running.is_last_good.into()),
        _ => running.needs_restart.iter().for_each(|key| to.sample(&[key], 1)),
    }
}

fn gauge(metric: MetricName, metrics: &Metrics) -> &Gauge {
    match metric {
        MetricName::Connections => &metrics.connections,
        MetricName::BodyHeld => &metrics.body_held,
        MetricName::MemoryStage => &metrics.memory_stage,
        MetricName::IndexBlocks => &metrics.index_blocks,
        MetricName::IndexBytes => &metrics.index_bytes,
        MetricName::SafeMode => &metrics.safe_mode,
        MetricName::Explain => &metrics.explain,
        _ => &metrics.ready,
    }
}

fn legs(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    models(metrics, |model| {
        let times = match metric {
            MetricName::DisaggPrefill => &model.legs.prefill,
            MetricName::DisaggHandover => &model.legs.handover,
            _ => &model.legs.lease_age,
        };
        to.histogram(&model.name, &times.snapshot());
    });
}

fn waits(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    if metric == MetricName::AbsentRequests {
        return metrics.absent.load().iter().for_each(|(model, count)| to.sample(&[&**model], *count));
    }
    if metric == MetricName::QueueOutcomes {
        return family(&metrics.queue_outcomes, to);
    }
    if metric == MetricName::ClassRefused {
        for (class, reasons) in CLASSES.into_iter().zip(&metrics.class_refused) {
            reasons.all().into_iter().for_each(|(reason, count)| to.sample(&[class, reason], count));
        }
        return;
    }
    for (class, waits) in CLASSES.into_iter().zip(&metrics.queue_waits) {
        to.histogram(class, &waits.snapshot());
    }
}

fn sessions(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    if metric == MetricName::SessionOutcomes {
        return family(&metrics.session_outcomes, to);
    }
    for line in metrics.sessions.load().iter() {
        let kinds = match metric {
            MetricName::Sessions => [("active", Some(line.active)), ("waiting", Some(line.waiting))],
            _ => [("reused", Some(line.tokens)), ("room", line.room)],
        };
        for (kind, value) in kinds.into_iter().filter_map(|(kind, value)| Some((kind, value?))) {
            to.sample(&[&*line.model, kind], value);
        }
    }
}

fn queues(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    for line in metrics.queues.load().iter() {
        let labels = [&*line.model, line.role, line.class];
        match metric {
            MetricName::QueueRequests => to.sample(&labels, line.requests),
            MetricName::QueueBytes => to.sample(&labels, line.body_bytes),
            MetricName::QueueCost => to.float(&labels, line.cost_s),
            MetricName::QueueOldest => to.float(&labels, line.oldest_s),
            _ => to.float(&labels, line.backlog_s),
        }
    }
}

fn sources(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    for source in metrics.sources.load().iter() {
        match (metric, source.age_s) {
            (MetricName::DiscoveryFailing, _) => to.sample(&[&source.name], source.is_failing.into()),
            (_, Some(age_s)) => to.float(&[&source.name], age_s),
            _ => {}
        }
    }
}

fn step_times(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    for known in metrics.step_times.load().iter() {
        match metric {
            MetricName::StepTime => {
                for (term, value) in known.terms.into_iter().chain([("overhead", known.overhead_s)]) {
                    to.float(&[&known.variant, term], value);
                }
            }
            MetricName::StepTimeError => {
                for (regime, error) in known.errors.iter().filter_map(|(regime, error)| Some((regime, (*error)?))) {
                    to.float(&[&known.variant, regime], error);
                }
            }
            _ => {
                for (kind, count) in ["first", "gap"].into_iter().zip(known.seen) {
                    to.sample(&[&known.variant, kind], count);
                }
            }
        }
    }
}

fn pod_samples(metric: MetricName, pod: &Pod, now: Mono, to: &mut Writer<'_>) {
    let id = pod.id.to_string();
    let reading = **pod.reading.load();
    match metric {
        MetricName::PodInFlight => to.sample(&[&id], pod.load.now().requests.into()),
        MetricName::PodPrefillTokens => to.sample(&[&id], pod.load.now().prefill_tokens.0),
        MetricName::PodStanding => {
            let standing = standing_word(pod.health.lock().standing(now));
            for word in STANDINGS {
                to.sample(&[&id, word], u64::from(word == standing));
            }
        }
        MetricName::PodShut => {
            if let Some(why) = pod.load.shuts.first() {
                to.sample(&[&id, why.as_str()], 1);
            }
        }
        MetricName::PodReadingAge => {
            if let Some(reading) = reading {
                to.float(&[&id], now.since(reading.taken).as_secs_f64());
            }
        }
        MetricName::PodRunning => {
            if let Some(running) = reading.and_then(|reading| reading.running) {
                to.sample(&[&id], running.into());
            }
        }
        MetricName::PodWaiting => {
            if let Some(waiting) = reading.and_then(|reading| reading.waiting) {
                to.sample(&[&id], waiting.into());
            }
        }
        MetricName::PodKvExpired => {
            if let Some(expired) = reading.and_then(|reading| reading.kv_expired) {
                to.sample(&[&id], expired);
            }
        }
        MetricName::PodKvUsed => {
            if let Some(kv_used) = reading.and_then(|reading| reading.kv_used) {
                to.float(&[&id], kv_used);
            }
        }
        _ => {}
    }
}

/// Words of the `class` label, in the order of classes.
pub const CLASSES: [&str; 3] = ["interactive", "standard", "batch"];

/// Words of the `standing` label.
pub const STANDINGS: [&str; 4] = ["ready", "ramp", "probe", "ejected"];

/// Word for a standing.
pub const fn standing_word(standing: Standing) -> &'static str {
    match standing {
        Standing::Ready => "ready",
        Standing::Ramp(_) => "ramp",
        Standing::Probe => "probe",
        Standing::Ejected(_) => "ejected",
    }
}

/// Word for a role.
pub const fn role_word(role: Role) -> &'static str {
    match role {
        Role::Both => "both",
        Role::Prefill => "prefill",
        Role::Decode => "decode",
    }
}

fn requests(metrics: &Metrics, to: &mut Writer<'_>) {
    for series in metrics.finished() {
        let pod = series.pod.map(|pod| pod.to_string()).unwrap_or_default();
        to.sample(&[&series.model, &pod, &series.code.to_string(), series.cause.as_str()], series.count);
    }
}

fn models(metrics: &Metrics, mut each: impl FnMut(&ModelMetrics)) {
    for model in metrics.models() {
        each(&model);
    }
}

fn disagg(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    let counts = match metric {
        MetricName::DisaggRemote => &metrics.disagg_remote,
        MetricName::DisaggLocal => &metrics.disagg_local,
        MetricName::DisaggReplans => &metrics.disagg_replans,
        MetricName::DisaggSentinel => &metrics.disagg_sentinel,
        _ => &metrics.disagg_leases,
    };
    family(counts, to);
}

fn tenants(metric: MetricName, metrics: &Metrics, to: &mut Writer<'_>) {
    for tenant in metrics.tenants.all() {
        let words = |family: &Family, to: &mut Writer<'_>| {
            family.all().into_iter().for_each(|(word, count)| to.sample(&[&tenant.name, word], count));
        };
        match metric {
            MetricName::TenantRequests => words(&tenant.requests, to),
            MetricName::TenantRefused => words(&tenant.refused, to),
            _ => {
                for (kind, count) in TenantMetrics::TOKENS.into_iter().zip(tenant.tokens()) {
                    to.sample(&[&tenant.name, kind.as_str()], count);
                }
            }
        }
    }
}

fn family(family: &Family, to: &mut Writer<'_>) {
    for (word, count) in family.all() {
        to.sample(&[word], count);
    }
}

fn roles(fleet: &Fleet, to: &mut Writer<'_>) {
    for role in [Role::Both, Role::Prefill, Role::Decode] {
        let count = fleet.pods.iter().filter(|pod| pod.spec.role == role).count();
        to.sample(&[role_word(role)], count as u64);
    }
}

/// Microseconds as seconds without rounding.
fn seconds(micros: u64) -> String {
    let text = format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn escape(out: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            control if control.is_control() => out.push('?'),
            plain => out.push(plain),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
    use std::collections::BTreeSet;
    use std::time::Duration;

    use super::*;
    use crate::observe::StepTimeSeries;
    use crate::observe::{Cause, Kind, MetricLimits, QueueSeries, RunningConfig, SessionSeries, SourceSeries};
    use crate::pods::{PodSpec, Reading, Table};

    fn fill_waiting(metrics: &Metrics) {
        let source = SourceSeries { name: "service/m".into(), age_s: Some(1.0), is_failing: true };
        metrics.sources.store(std::sync::Arc::new(vec![source]));
        metrics.absent.store(std::sync::Arc::new(vec![("m".into(), 1)]));
        metrics.sessions.store(std::sync::Arc::new(vec![SessionSeries {
            model: "m".into(),
            active: 1,
            waiting: 2,
            tokens: 3,
            room: Some(4),
        }]));
        metrics.queues.store(std::sync::Arc::new(vec![QueueSeries {
            model: "m".into(),
            role: "decode",
            class: "batch",
            requests: 1,
            body_bytes: 2,
            cost_s: 3.0,
            oldest_s: 4.0,
            backlog_s: 5.0,
        }]));
    }

    fn full_scrape() -> String {
        let metrics = Metrics::new(MetricLimits::default());
        let model = metrics.model("m\"\\\n");
        model.ttft.observe(Duration::from_millis(7));
        metrics.finish(&model, None, 200, Cause::Ok);
        for family in [
            &metrics.refused,
            &metrics.class_refused[0],
            &metrics.tenants.of("").requests,
            &metrics.tenants.of("").refused,
            &metrics.framing_rejected,
            &metrics.dropped_headers,
            &metrics.stripped_members,
            &metrics.panics,
            &metrics.degradations,
            &metrics.disagg_remote,
            &metrics.disagg_local,
            &metrics.disagg_replans,
            &metrics.pod_events,
            &metrics.session_outcomes,
            &metrics.pod_tls_failures,
        ] {
            family.inc("word");
        }
        metrics.certificates.lock().insert("listen.tls.certificates[0]".into(), 4_000_000_000);
        fill_waiting(&metrics);
        let running = RunningConfig { needs_restart: vec!["listen.addr"], ..RunningConfig::default() };
        metrics.running_config.store(std::sync::Arc::new(running));
        metrics.step_times.store(std::sync::Arc::new(vec![StepTimeSeries {
            variant: "m".into(),
            terms: ["a", "b", "c", "d", "e"].map(|term| (term, 0.5)),
            overhead_s: 0.5,
            seen: [1, 2],
            errors: vec![("first_idle", Some(0.5)), ("gap_mixed", None)],
        }]));
        let table = Table::default();
        let addr = "127.0.0.1:1".parse().unwrap();
        let (added, _) = table.set(vec![PodSpec {
            addr,
            authority: "a".into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: std::collections::BTreeMap::new(),
        }]);
        for pod in added {
            let reading = Reading {
                running: Some(1),
                waiting: Some(2),
                kv_used: Some(0.5),
                kv_expired: Some(0),
                ..Reading::default()
            };
            pod.reading.store(std::sync::Arc::new(Some(reading)));
        }
        let mut out = String::new();
        let fleet = table.fleet();
        fleet.pods[0].load.shuts.set(crate::pods::Shut::Drained, true);
        render(&Scrape { metrics: &metrics, fleet: &fleet, now: Mono(1_500_000), version: "1" }, &mut out);
        out
    }

    #[test]
    fn what_is_documented_is_rendered_and_nothing_else() {
        let text = full_scrape();
        let rendered: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| line.split(['{', ' ']).next().unwrap())
            .map(|name| name.trim_end_matches("_bucket").trim_end_matches("_sum").trim_end_matches("_count"))
            .collect();
        let documented: BTreeSet<&str> = MetricName::ALL.iter().map(|metric| metric.definition().name).collect();
        assert_eq!(rendered, documented);
    }

    #[test]
    fn samples_carry_exactly_the_documented_labels() {
        let text = full_scrape();
        for metric in MetricName::ALL {
            let definition = metric.definition();
            let bucket = if definition.kind == Kind::Histogram { "_bucket" } else { "" };
            let start = format!("{}{bucket}", definition.name);
            let line = text
                .lines()
                .find(|line| line.strip_prefix(&start).is_some_and(|rest| rest.starts_with(['{', ' '])))
                .unwrap_or_else(|| panic!("{start}"));
            let labels: Vec<&str> = line.split(['{', ',']).filter_map(|part| Some(part.split_once("=\"")?.0)).collect();
            let mut expected = definition.labels.to_vec();
            expected.extend((!bucket.is_empty()).then_some("le"));
            assert_eq!(labels, expected, "{line}");
        }
    }

    #[test]
    fn values_are_right_and_names_cannot_break_a_line() {
        let text = full_scrape();
        for line in [
            r#"tidegate_requests_total{model="m\"\\\n",pod="",code="200",cause="ok"} 1"#,
            r#"tidegate_ttft_seconds_bucket{model="m\"\\\n",le="0.005"} 0"#,
            r#"tidegate_ttft_seconds_bucket{model="m\"\\\n",le="0.01"} 1"#,
            r#"tidegate_ttft_seconds_bucket{model="m\"\\\n",le="+Inf"} 1"#,
            r#"tidegate_ttft_seconds_sum{model="m\"\\\n"} 0.007"#,
            r#"tidegate_pod_standing{pod="pod-0",standing="ready"} 1"#,
            r#"tidegate_pod_reading_age_seconds{pod="pod-0"} 1.5"#,
            r#"tidegate_pods{role="both"} 1"#,
            r#"tidegate_retries_total{class="C"} 0"#,
            "tidegate_connections 0",
        ] {
            assert!(text.lines().any(|rendered| rendered == line), "{line}\n{text}");
        }
    }
}
