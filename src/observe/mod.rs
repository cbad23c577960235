//! The vocabulary of what can be seen from outside: causes, metrics, the access line, explained decisions, redaction.
//!
//! Nothing here writes to a socket or a file, reads a clock or formats an exposition: rooms that act call in, `export` and
//! `admin` read out. Everything touched per request or per event is a relaxed atomic or a value on the caller's stack.
//! Label values come from closed or capped sets, and no prompt, key or body can reach any of it.
pub mod access;
pub mod cause;
pub mod civil;
pub mod explain;
pub mod family;
pub mod gauge;
pub mod histogram;
pub mod json;
pub mod metrics;
pub mod model;
pub mod names;
pub mod readiness;
pub mod redact;
mod running;
pub mod settings;
pub mod span;
pub mod tenant;

pub use access::AccessRecord;
pub use cause::{Cause, Fault};
pub use explain::{Brief, Ending, ExplainRing, ExplainSource};
pub use family::Family;
pub use gauge::{Gauge, Held};
pub use histogram::{Histogram, LocalHistogram};
pub use metrics::{
    MetricLimits, Metrics, QueueSeries, RequestSeries, SessionSeries, SourceSeries, Stage, StepTimeSeries,
};
pub use model::{InFlight, ModelMetrics, TokenKind};
pub use names::{Definition, Kind, MetricName};
pub use readiness::{BEAT_AGE_MAX, Missing, Readiness};
pub use redact::{Secret, is_sensitive_header, printable_id};
pub use running::RunningConfig;
pub use settings::{LogLevel, Settings, TraceSettings};
pub use span::{SpanKind, SpanRecord, SpanValue, TraceRecord};
pub use tenant::{TenantMetrics, TenantSet};
