//! Why a request is not admitted: a closed list, with the time after which trying again makes sense.
//!
//! The text of a reason is what `x-tidegate-reason` and metrics carry. 429 means that capacity exists but is taken, 503
//! that there is none. What the client sees in full is the reply's business.
use std::time::Duration;

/// Why the gate refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The gate holds as many requests as it may.
    RequestsLimit,
    /// This model holds as many requests as it may.
    ModelRequestsLimit,
    /// The bodies held reach the byte budget.
    BytesLimit,
    /// The bodies held for this model reach its share of the byte budget.
    ModelBytesLimit,
    /// The body alone is larger than the byte budget.
    BodyTooLarge,
    /// Its class has as many waiting as may wait.
    QueueFull,
    /// It waited as long as it may.
    QueueTimeout,
    /// It would come too late: those before it take longer than it may wait.
    PredictedLate,
    /// Its session would push those of others out of the pods' caches.
    SessionLimit,
    /// The same body was in flight on pods that died; it stays out for a while.
    RequestPoisoned,
    /// The tenant holds as many requests as it may.
    TenantConcurrentLimit,
    /// The tenant has sent as many requests this minute as it may.
    TenantRequestsLimit,
    /// The tenant has used as many tokens this minute as it may.
    TenantTokensLimit,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 13] = [
        Self::RequestsLimit,
        Self::ModelRequestsLimit,
        Self::BytesLimit,
        Self::ModelBytesLimit,
        Self::BodyTooLarge,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::PredictedLate,
        Self::SessionLimit,
        Self::RequestPoisoned,
        Self::TenantConcurrentLimit,
        Self::TenantRequestsLimit,
        Self::TenantTokensLimit,
    ];

    /// Its name in `x-tidegate-reason`, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::RequestsLimit => "requests_limit",
            Self::ModelRequestsLimit => "model_requests_limit",
            Self::BytesLimit => "bytes_limit",
            Self::ModelBytesLimit => "model_bytes_limit",
            Self::BodyTooLarge => "body_too_large",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::PredictedLate => "predicted_late",
            Self::SessionLimit => "session_limit",
            Self::RequestPoisoned => "request_poisoned",
            Self::TenantConcurrentLimit => "tenant_concurrent_limit",
            Self::TenantRequestsLimit => "tenant_requests_limit",
            Self::TenantTokensLimit => "tenant_tokens_limit",
        }
    }

    /// The status that fits.
    pub const fn status(self) -> u16 {
        match self {
            Self::RequestsLimit
            | Self::ModelRequestsLimit
            | Self::BytesLimit
            | Self::ModelBytesLimit
            | Self::QueueFull
            | Self::QueueTimeout
            | Self::PredictedLate
            | Self::SessionLimit
            | Self::TenantConcurrentLimit
            | Self::TenantRequestsLimit
            | Self::TenantTokensLimit => 429,
            Self::BodyTooLarge => 413,
            Self::RequestPoisoned => 500,
        }
    }
}

/// A refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// When to try again; `None` if trying again is pointless.
    pub retry_after: Option<Duration>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn names_are_distinct_header_words() {
        let mut names: Vec<_> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert!(names.iter().all(|name| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')));
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Reason::ALL.len());
    }
}
