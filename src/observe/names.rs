//! Every metric the gate exports: name, type, help, unit and labels as data. The exporter renders nothing that is not in
//! this table, and a test holds that everything in it is rendered. Prefix `tidegate_`, base units, at most four labels.

/// Prometheus type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Only goes up.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, sum and count.
    Histogram,
}

impl Kind {
    /// Word of the `# TYPE` line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// One metric as documented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Definition {
    /// Full name.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Unit in words; empty for a plain count or a flag.
    pub unit: &'static str,
    /// Label names in order.
    pub labels: &'static [&'static str],
    /// Help text.
    pub help: &'static str,
}

macro_rules! metrics {
    ($($variant:ident = $name:literal, $kind:ident, $unit:literal, [$($label:literal),*], $help:literal;)*) => {
        /// Key of a metric in the table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum MetricName {
            $(#[doc = $help] $variant,)*
        }

        impl MetricName {
            /// Every metric, in the order of the exposition.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// What the table says of it.
            pub const fn definition(self) -> Definition {
                match self {
                    $(Self::$variant => Definition {
                        name: concat!("tidegate_", $name),
                        kind: Kind::$kind,
                        unit: $unit,
                        labels: &[$($label),*],
                        help: $help,
                    },)*
                }
            }
        }
    };
}

metrics! {
    Requests = "requests_total", Counter, "requests", ["model", "pod", "code", "cause"],
        "Requests that ended. Pod is empty if none was involved, code is 0 if no status was sent.";
    InFlight = "requests_in_flight", Gauge, "requests", ["model"],
        "Requests accepted and not ended; under model other until the body is read.";
    Attempts = "attempts_total", Counter, "attempts", ["model"],
        "Attempts on pods, the first of a request included.";
    Ttft = "ttft_seconds", Histogram, "seconds", ["model"],
        "Time from the end of the request's head to the first data event or byte of the answer.";
    EventGap = "event_gap_seconds", Histogram, "seconds", ["model"],
        "Time between two events of one stream, as they came from the pod.";
    E2e = "e2e_seconds", Histogram, "seconds", ["model"],
        "Time from the end of the request's head to the end of the answer.";
    Tokens = "tokens_total", Counter, "tokens", ["model", "kind"],
        "Tokens told by usage: prompt (cached ones included), completion, cached.";
    GateOverhead = "gate_overhead_seconds", Histogram, "seconds", ["stage"],
        "Time the gate itself spent in a stage of a request.";
    Retries = "retries_total", Counter, "retries", ["class"],
        "Attempts after the first, by retry class A to G.";
    Refused = "refused_total", Counter, "requests", ["reason"],
        "Requests and connections refused by the gate, by reason.";
    ClassRefused = "class_refused_total", Counter, "requests", ["class", "reason"],
        "Requests refused by the gate after their class was known, by class and reason.";
    TenantRequests = "tenant_requests_total", Counter, "requests", ["tenant", "class"],
        "Requests that were let in and ended, by tenant and class. Tenants that configuration does not name are other.";
    TenantTokens = "tenant_tokens_total", Counter, "tokens", ["tenant", "kind"],
        "Tokens told by usage, by tenant: prompt (cached ones included), completion.";
    TenantRefused = "tenant_refused_total", Counter, "requests", ["tenant", "reason"],
        "Requests refused because the tenant's own limit is reached, by reason.";
    ClassIgnored = "class_ignored_total", Counter, "requests", ["kind"],
        "Classes that requests asked for in vain: unknown, or not_allowed to the tenant.";
    FramingRejected = "framing_rejected_total", Counter, "requests", ["rule"],
        "Requests refused because of ambiguous or illegal HTTP, by rule.";
    DroppedHeaders = "dropped_headers_total", Counter, "headers", ["kind"],
        "Request headers not passed to a pod, by kind.";
    StrippedMembers = "stripped_members_total", Counter, "members", ["kind"],
        "Body members that are dangerous to pods and were removed, by kind.";
    Panics = "panics_total", Counter, "panics", ["phase"],
        "Panics caught, by phase of a request or task.";
    Degradations = "degradations_total", Counter, "events", ["kind"],
        "What was done with less than it should have, or went wrong unseen by clients, by kind: a planner that panicked or overran, a first contact that failed, KV leases that ran out.";
    Plans = "plans_total", Counter, "plans", ["mode"],
        "Routing decisions, by mode normal or safe.";
    Slo = "slo_total", Counter, "requests", ["verdict"],
        "Requests served to the end that were promised a time to first token or between tokens: kept, late (first token), slow.";
    Sessions = "sessions", Gauge, "sessions", ["model", "state"],
        "Sessions that are active, and requests that wait for theirs to be let in.";
    SessionTokens = "session_tokens", Gauge, "tokens", ["model", "kind"],
        "Tokens that active sessions are expected to reuse, and the room for them in the pods' caches (absent while nobody is held).";
    SessionOutcomes = "session_total", Counter, "requests", ["outcome"],
        "Requests at thrash control: at_once, waited, refused, left or overdue (while they waited).";
    AbsentRequests = "absent_requests", Gauge, "requests", ["model"],
        "Requests that wait for the first pod of their model (flow.from_zero).";
    QueueRequests = "queue_requests", Gauge, "requests", ["model", "role", "class"],
        "Requests that wait for room on a pod.";
    QueueBytes = "queue_body_bytes", Gauge, "bytes", ["model", "role", "class"],
        "Bytes of the bodies of requests that wait.";
    QueueCost = "queue_cost_seconds", Gauge, "seconds", ["model", "role", "class"],
        "What the requests that wait cost, in seconds of one pod.";
    QueueOldest = "queue_oldest_seconds", Gauge, "seconds", ["model", "role", "class"],
        "Age of the oldest request that waits.";
    QueueBacklog = "queue_backlog_seconds", Gauge, "seconds", ["model", "role", "class"],
        "Time in which the class and those before it will have gone to pods, at the present pace: what an autoscaler should read.";
    QueueOutcomes = "queue_total", Counter, "requests", ["outcome"],
        "Requests that asked for a pod: at_once, waited, refused, left (the client, while it waited), recalled (for another class).";
    QueueWaits = "queue_wait_seconds", Histogram, "seconds", ["class"],
        "Time in the queue of requests that had to wait and went to a pod.";
    DisaggRemote = "disagg_remote_total", Counter, "requests", ["reason"],
        "Requests for which two pods were planned, by what decided.";
    DisaggLocal = "disagg_local_total", Counter, "requests", ["reason"],
        "Requests that stayed on one pod though there are prefill pods, by what decided.";
    DisaggReplans = "disagg_replans_total", Counter, "requests", ["cause"],
        "Legs that failed and were planned anew, in one step or two, by cause.";
    DisaggSentinel = "disagg_sentinel_total", Counter, "checks", ["verdict"],
        "First tokens of decoders compared with the prefiller's: agrees, open, differs, expired.";
    DisaggLeases = "disagg_leases_total", Counter, "leases", ["end"],
        "Leases on KV blocks by what became of them: used, too_old, unused, orphan (the client left).";
    DisaggTokensTwice = "disagg_tokens_computed_twice_total", Counter, "tokens", [],
        "Prompt tokens that were computed again because a leg failed.";
    DisaggPrefill = "disagg_prefill_seconds", Histogram, "seconds", ["model"],
        "Time from sending a prefill leg to its answer.";
    DisaggHandover = "disagg_handover_seconds", Histogram, "seconds", ["model"],
        "Time from sending a decode leg to its first data.";
    DisaggLeaseAge = "disagg_lease_age_seconds", Histogram, "seconds", ["model"],
        "Age of a lease when its decode leg was sent.";
    PodKvExpired = "pod_kv_expired_total", Counter, "leases", ["pod"],
        "Leases that ran out on a pod, and decoders that came after that, by its own last reading. Anything but 0 means that KV \
         blocks may have been read after they were let go.";
    PodEvents = "pod_events_total", Counter, "events", ["event"],
        "What happened to pods: restarted, virtual_address (several servers in turn), cut_while_terminating (an answer broke there).";
    Scrapes = "scrapes_total", Counter, "scrapes", ["result"],
        "Scrapes of pods' metrics, by result.";
    TlsHandshakes = "tls_handshakes_total", Counter, "handshakes", ["result"],
        "TLS handshakes with clients: full, resumed, or why they failed (no_certificate, unknown_ca, expired, timeout, ...).";
    PodTlsFailures = "pod_tls_failures_total", Counter, "handshakes", ["reason"],
        "TLS handshakes with pods that failed, by reason (unknown_ca, expired, wrong_name, refused_by_peer, ...).";
    CertificateExpiry = "tls_certificate_expiry_timestamp_seconds", Gauge, "seconds", ["certificate"],
        "End of a certificate's validity in seconds since 1970, by where it is configured.";
    ConfigReloads = "config_reloads_total", Counter, "reloads", ["result"],
        "Configuration files read again after a change, by result ok or bad; bad keeps the old one.";
    ConfigGeneration = "config_generation", Gauge, "generation", [],
        "Counts the configurations taken: 1 is the one of the start.";
    ConfigHash = "config_hash", Gauge, "hash", [],
        "Hash (48 bits) of the configuration in force, file and flags together; gates configured the same show the same.";
    ConfigTaken = "config_last_success_timestamp_seconds", Gauge, "seconds", [],
        "When the configuration in force was taken, in seconds since 1970.";
    ConfigLastGood = "config_last_reload_successful", Gauge, "bool", [],
        "1 if the last try to read the configuration succeeded.";
    ConfigNeedsRestart = "config_needs_restart", Gauge, "bool", ["key"],
        "1 for each setting that was changed in the file and takes effect only after a restart.";
    LabelOverflow = "label_overflow_total", Counter, "events", ["label"],
        "Label values counted as other because their limit was reached, by label.";
    AccessLogDropped = "access_log_dropped_total", Counter, "lines", [],
        "Access lines dropped because the writer was behind.";
    Spans = "spans_total", Counter, "spans", ["result"],
        "Spans of traced requests: exported, or lost because the collector failed (failed) or was too slow (dropped).";
    Connections = "connections", Gauge, "connections", [],
        "Client connections open.";
    BodyHeld = "body_held_bytes", Gauge, "bytes", [],
        "Request body bytes held in memory.";
    MemoryStage = "memory_stage", Gauge, "", [],
        "Memory stage: 0 normal, 1 shrink idle timers, 2 refuse large bodies, 3 refuse all.";
    IndexBlocks = "index_blocks", Gauge, "blocks", [],
        "Distinct prompt blocks in the prefix index.";
    IndexBytes = "index_bytes", Gauge, "bytes", [],
        "Memory of the prefix index, estimated.";
    StepTime = "step_time_seconds", Gauge, "seconds", ["variant", "term"],
        "Time of an engine step as learnt: a by itself, b per prompt token, c per sequence, d per token of context, e per pair.";
    StepTimeError = "step_time_error_ratio", Gauge, "ratio", ["variant", "regime"],
        "Mean relative error of predicted first tokens and gaps, by regime.";
    StepTimeSamples = "step_time_samples_total", Counter, "samples", ["variant", "kind"],
        "Samples the latency model learnt from: first tokens and gaps between tokens.";
    SafeMode = "safe_mode", Gauge, "", [],
        "1 while in safe mode: least in flight, no index.";
    Explain = "explain", Gauge, "", [],
        "1 while every client may ask for decisions in response headers.";
    Ready = "ready", Gauge, "", [],
        "1 while /readyz answers 200.";
    Pods = "pods", Gauge, "pods", ["role"],
        "Pods of the current snapshot, by role.";
    DiscoveryAge = "discovery_age_seconds", Gauge, "seconds", ["source"],
        "Time since a source of pods (Kubernetes, a file) was last heard; absent before the first time.";
    DiscoveryFailing = "discovery_failing", Gauge, "", ["source"],
        "1 while a source of pods (Kubernetes, a file) cannot be read: the pods last known stay.";
    FleetGeneration = "fleet_generation", Gauge, "", [],
        "Counts up with every change of the pod snapshot.";
    PodInFlight = "pod_in_flight", Gauge, "requests", ["pod"],
        "Requests this gate has in flight on a pod.";
    PodPrefillTokens = "pod_prefill_tokens", Gauge, "tokens", ["pod"],
        "Uncached prompt tokens dispatched to a pod and not yet prefilled.";
    PodShut = "pod_shut", Gauge, "", ["pod", "reason"],
        "1 while a pod gets nothing new, by the first reason: terminating, drained, not_ready, asleep.";
    PodStanding = "pod_standing", Gauge, "", ["pod", "standing"],
        "1 for the standing a pod has: ready, ramp, probe or ejected.";
    PodReadingAge = "pod_reading_age_seconds", Gauge, "seconds", ["pod"],
        "Age of the last reading of a pod's metrics; absent before the first.";
    PodRunning = "pod_running", Gauge, "requests", ["pod"],
        "Requests running on a pod by its own last reading, all clients.";
    PodWaiting = "pod_waiting", Gauge, "requests", ["pod"],
        "Requests waiting on a pod by its own last reading, all clients.";
    PodKvUsed = "pod_kv_used_ratio", Gauge, "ratio", ["pod"],
        "KV cache in use on a pod by its own last reading, 0 to 1.";
    BuildInfo = "build_info", Gauge, "", ["version"],
        "Always 1; the version is a label.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_metric_is_documented_and_well_named() {
        let mut seen = HashSet::new();
        for metric in MetricName::ALL {
            let Definition { name, kind, unit, labels, help } = metric.definition();
            assert!(seen.insert(name), "{name} twice");
            assert!(name.starts_with("tidegate_"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_'));
            assert_eq!(kind == Kind::Counter, name.ends_with("_total"), "{name}: only counters end in _total");
            assert!(kind != Kind::Histogram || name.ends_with("_seconds"), "{name}: histograms are durations");
            for base in ["seconds", "bytes", "ratio"] {
                assert!(unit != base || name.ends_with(&format!("_{base}")), "{name} is in {base} and must say so");
            }
            for derived in ["_ms", "_us", "_millis", "_kb", "_percent"] {
                assert!(!name.trim_end_matches("_total").ends_with(derived), "{name}: base units only");
            }
            assert!(labels.len() <= 4 && help.len() > 10 && help.ends_with('.'), "{name}");
        }
    }
}
