//! What configuration says about seeing: the top-level key `observe`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::explain::DECISIONS_MAX;
use super::metrics::MetricLimits;

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
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
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
        }
    }
}
