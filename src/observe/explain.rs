//! The last decisions, kept for `/explain/<request id>`.
//!
//! Sources are stored as they are and written out only when somebody asks, so keeping one costs a map insertion. The ring
//! is bounded; the oldest goes first. A request id that is used twice shows its latest decision.
use std::any::Any;
use std::num::NonZeroUsize;
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::cause::Cause;
use crate::base::{ModelName, PodId, RequestId, Tokens};

/// Decisions kept unless configured otherwise.
pub const DECISIONS_MAX: usize = 1_024;

/// Something that can tell how a request was decided. Never holds prompt text.
pub trait ExplainSource: Send + Sync {
    /// Appends one JSON value.
    fn write_json(&self, out: &mut String);

    /// The decision in a line, for lists; `None` if it has none.
    fn brief(&self) -> Option<Brief> {
        None
    }

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

/// A decision in a line.
#[derive(Clone, Debug, PartialEq)]
pub struct Brief {
    /// When it was made, milliseconds since 1970.
    pub unix_ms: u64,
    /// Which attempt of the request it is for, from 1.
    pub attempt: u32,
    /// Model.
    pub model: ModelName,
    /// Length of the prompt, an estimate.
    pub prompt: Tokens,
    /// Pod that was chosen; that of the decode where there are two.
    pub pod: Option<PodId>,
    /// Pod that prefills, where there are two.
    pub prefill_pod: Option<PodId>,
    /// Tokens of the prompt that the pod was believed to hold.
    pub hit: Tokens,
    /// What the request costs there by the profile.
    pub cost: Option<f64>,
    /// How it was chosen: `normal`, `safe`, `pinned`, `panic`.
    pub mode: &'static str,
}

/// How a request ended for which there is a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How.
    pub cause: Cause,
    /// Status sent; `None` if none was.
    pub status: Option<u16>,
    /// QoS class, if it was let in.
    pub class: Option<&'static str>,
    /// Attempts on pods.
    pub attempts: u32,
    /// Time to the first token or byte \[µs\].
    pub ttft_us: Option<u64>,
    /// Time to the end \[µs\].
    pub e2e_us: u64,
    /// Prompt tokens that the pod had cached, by usage.
    pub cached_tokens: Option<u64>,
    /// Generated tokens, by usage.
    pub completion_tokens: Option<u64>,
}

struct Kept {
    source: Arc<dyn ExplainSource>,
    ending: Option<Ending>,
}

/// Bounded map from request id to its decision.
pub struct ExplainRing(Mutex<LruCache<RequestId, Kept>>);

impl ExplainRing {
    /// Keeps the last `decisions_max` decisions (at least one).
    pub fn new(decisions_max: usize) -> Self {
        Self(Mutex::new(LruCache::new(NonZeroUsize::new(decisions_max).unwrap_or(NonZeroUsize::MIN))))
    }

    /// Keeps a decision.
    pub fn put(&self, id: RequestId, source: Arc<dyn ExplainSource>) {
        self.0.lock().put(id, Kept { source, ending: None });
    }

    /// The request of this id ended. Nothing happens if no decision of it is kept (any more).
    pub fn ended(&self, id: &str, ending: Ending) {
        if let Some(kept) = self.0.lock().peek_mut(id) {
            kept.ending = Some(ending);
        }
    }

    /// How the request of this id ended, if it has and is still known.
    pub fn ending(&self, id: &str) -> Option<Ending> {
        self.0.lock().peek(id)?.ending
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
        self.0.lock().peek(id).map(|kept| Arc::clone(&kept.source))
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

    #[test]
    fn an_ending_belongs_to_the_latest_decision_of_its_id() {
        let ring = ExplainRing::new(2);
        let ending = Ending {
            cause: Cause::Ok,
            status: Some(200),
            class: None,
            attempts: 1,
            ttft_us: None,
            e2e_us: 7,
            cached_tokens: None,
            completion_tokens: None,
        };
        ring.ended("never", ending);
        ring.put("a".into(), Arc::new("{}".to_owned()));
        assert_eq!(ring.ending("a"), None);
        ring.ended("a", ending);
        assert_eq!((ring.ending("a"), ring.ending("never")), (Some(ending), None));
        ring.put("a".into(), Arc::new("{}".to_owned()));
        assert_eq!(ring.ending("a"), None, "it goes again");
    }
}
