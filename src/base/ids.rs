//! Identities. A pod id is small, dense and never reused within a process; it is what logs, metrics and clients may see.
use std::fmt;
use std::sync::Arc;

/// One pod: an engine that can be addressed, that is an endpoint plus a data-parallel rank. Given by the pod table when
/// the pod is first seen and never given again in this process, so a late answer cannot be booked on a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodId(pub u32);

impl fmt::Display for PodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pod-{}", self.0)
    }
}

/// Longest name a model or adapter can have \[bytes\]. Pods' own names beyond it are not taken, and nobody serves such a one.
pub const MODEL_NAME_BYTES_MAX: usize = 256;

/// Name of a model or adapter as clients write it.
pub type ModelName = Arc<str>;

/// Name of one request, echoed as `x-request-id`: the client's own if it is short and printable, else made here.
pub type RequestId = Arc<str>;
