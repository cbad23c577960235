//! What configuration says about seeing: the top-level key `observe`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use std::path::PathBuf;

use super::explain::DECISIONS_MAX;
use super::metrics::MetricLimits;
use http::Uri;

/// Level of the program's own log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing.
    Off,
    /// What needs somebody.
    Error,
    /// What may need somebody.
    Warn,
    /// Starts, stops, changes.
    #[default]
    Info,
    /// For finding faults.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    /// As written in configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Settings under `observe`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where access lines go: `-` for standard output, `off`, or a file that is appended to.
    pub access_log: String,
    /// Whether access lines name the address the client connects from (that of the last proxy, if there is one).
    pub is_client_logged: bool,
    /// Whether every client, not only trusted ones, may ask for the decision with `x-tidegate-explain: 1`.
    pub explain: bool,
    /// Decisions kept for `/explain/<request id>`.
    pub decisions_max: u32,
    /// Level of the program's own log on standard error.
    pub log: LogLevel,
    /// Most models and adapters with metrics of their own; the rest count as `other`.
    pub models_max: u16,
    /// Traces for an OpenTelemetry collector.
    pub traces: TraceSettings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            access_log: "-".into(),
            is_client_logged: true,
            explain: false,
            decisions_max: DECISIONS_MAX as u32,
            log: LogLevel::Info,
            models_max: MetricLimits::default().models_max,
            traces: TraceSettings::default(),
        }
    }
}

/// Settings under `observe.traces`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TraceSettings {
    /// Collector that takes OTLP over HTTP with protobuf, such as `http://127.0.0.1:4318`; `/v1/traces` is added unless it is
    /// there. Unset: no traces, and a client's `traceparent` goes on to the pod as it is.
    pub endpoint: Option<String>,
    /// Share of the requests that are traced, 0 to 1. Where a trusted caller says with `traceparent` whether it traces,
    /// that counts instead.
    pub sample: f64,
    /// Authorities that may have signed the certificate of an `https` endpoint, in a PEM file; unset means those of the system.
    pub ca_file: Option<PathBuf>,
    /// File with the value of the `Authorization` header for the collector, such as `Bearer …`.
    pub authorization_file: Option<PathBuf>,
    /// `service.name` of the gate in its traces.
    pub service_name: String,
}

impl Default for TraceSettings {
    fn default() -> Self {
        Self { endpoint: None, sample: 0.05, ca_file: None, authorization_file: None, service_name: "tidegate".into() }
    }
}

impl TraceSettings {
    /// Where spans are sent; `None` if nowhere, or if the endpoint is not a URL.
    pub fn url(&self) -> Option<String> {
        let endpoint = self.endpoint.as_ref()?;
        let uri: Uri = endpoint.parse().ok()?;
        let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
        if !is_http || uri.host().is_none_or(str::is_empty) || uri.query().is_some() {
            return None;
        }
        let base = endpoint.trim_end_matches('/');
        Some(if base.ends_with("/v1/traces") { base.to_owned() } else { format!("{base}/v1/traces") })
    }

    /// What is wrong: the field, and what to write instead.
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        if self.endpoint.is_some() && self.url().is_none() {
            problems.push(("endpoint", "write the URL of a collector, such as http://127.0.0.1:4318".into()));
        }
        if !(0.0..=1.0).contains(&self.sample) {
            problems.push(("sample", "write a share from 0 to 1".into()));
        }
        if self.service_name.is_empty() {
            problems.push(("service_name", "write a name, such as tidegate".into()));
        }
        problems
    }
}
