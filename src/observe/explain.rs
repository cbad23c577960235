//! The last decisions, kept for `/explain/<request id>`.
//!
//! Sources are stored as they are and written out only when somebody asks, so keeping one costs a map insertion. The ring
//! is bounded; the oldest goes first. A request id that is used twice shows its latest decision.
use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::base::RequestId;

/// Decisions kept unless configured otherwise.
pub const DECISIONS_MAX: usize = 1_024;

/// Something that can tell how a request was decided. Never holds prompt text.
pub trait ExplainSource: Send + Sync {
    /// Appends one JSON value.
    fn write_json(&self, out: &mut String);

    /// Itself, for whoever knows more of it than how to show it.
    fn as_any(&self) -> Option<&dyn Any> {
        None
    }
}

impl ExplainSource for String {
    /// The text must be JSON already.
    fn write_json(&self, out: &mut String) {
        out.push_str(self);
    }
}

/// Bounded map from request id to its decision.
pub struct ExplainRing(Mutex<LruCache<RequestId, Arc<dyn ExplainSource>>>);

impl ExplainRing {
    /// Keeps the last `decisions_max` decisions (at least one).
    pub fn new(decisions_max: usize) -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(decisions_max).unwrap_or(NonZeroUsize::MIN))))
    }

    /// Keeps a decision.
    pub fn put(&self, id: RequestId, source: Arc<dyn ExplainSource>) {
        self.0.lock().put(id, source);
    }

    /// The decision of `id` as JSON; `None` if it was never kept or is gone.
    pub fn json(&self, id: &str) -> Option<String> {
        let source = self.source(id)?;
        let mut out = String::new();
        source.write_json(&mut out);
        Some(out)
    }

    /// What was kept of `id`.
    pub fn source(&self, id: &str) -> Option<Arc<dyn ExplainSource>> {
        self.0.lock().peek(id).cloned()
    }

    /// The last ids, newest first, at most `limit`.
    pub fn recent(&self, limit: usize) -> Vec<RequestId> {
        self.0.lock().iter().take(limit).map(|(id, _)| Arc::clone(id)).collect()
    }
}

impl Default for ExplainRing {
    fn default() -> Self {
        Self::new(DECISIONS_MAX)
    }
}

impl std::fmt::Debug for ExplainRing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExplainRing").field("kept", &self.0.lock().len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_newest_up_to_its_limit() {
        let ring = ExplainRing::new(2);
        for id in ["a", "b", "c"] {
            ring.put(id.into(), Arc::new(format!("{{\"id\":\"{id}\"}}")));
        }
        assert_eq!(ring.json("a"), None);
        assert_eq!(ring.json("b").as_deref(), Some("{\"id\":\"b\"}"));
        assert_eq!(ring.recent(9), ["c".into(), RequestId::from("b")]);
        assert_eq!(ring.recent(1).len(), 1);
    }
}
