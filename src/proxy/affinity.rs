//! Which pod made which response (`/v1/responses`): later calls about it must reach that pod, since vLLM keeps responses in
//! the memory of one process. Bounded; the least recently used id is forgotten first.
use std::num::NonZeroUsize;

use lru::LruCache;
use parking_lot::Mutex;

use crate::base::PodId;

const IDS_MAX: NonZeroUsize = NonZeroUsize::new(65_536).unwrap();

/// Bounded map of response ids.
#[derive(Debug)]
pub(super) struct Affinity(Mutex<LruCache<Box<str>, PodId>>);

impl Default for Affinity {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(IDS_MAX)))
    }
}

impl Affinity {
    /// Remembers that `pod` made `id`.
    pub(super) fn learn(&self, id: &str, pod: PodId) {
        self.0.lock().put(id.into(), pod);
    }

    /// The pod that made `id`.
    pub(super) fn pod(&self, id: &str) -> Option<PodId> {
        self.0.lock().get(id).copied()
    }
}
