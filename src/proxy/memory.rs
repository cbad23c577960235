//! Shedding in stages when memory gets short, before the system kills the process and every stream with it.
//!
//! The stage follows from the process's own memory, told about once a second, and from the request bodies held. Pure but
//! for one shared number.
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// How short memory is. Ordered: the later, the worse.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// Below 80 %.
    Plenty,
    /// From 80 %: idle connections are closed sooner.
    CloseIdle,
    /// From 90 %: large bodies are refused.
    RefuseLarge,
    /// From 95 %: every body is refused.
    RefuseAll,
}

impl Stage {
    /// The stage at `used` of `max` bytes.
    pub fn of(used: u64, max: u64) -> Self {
        match used.saturating_mul(100) / max.max(1) {
            0..80 => Self::Plenty,
            80..90 => Self::CloseIdle,
            90..95 => Self::RefuseLarge,
            _ => Self::RefuseAll,
        }
    }
}

/// What the process uses, as last told.
#[derive(Debug, Default)]
pub struct Memory(AtomicU8);

impl Memory {
    /// The process uses `used` of the `max` bytes it may.
    pub fn tell(&self, used: u64, max: u64) -> Stage {
        let stage = Stage::of(used, max);
        self.0.store(stage as u8, Relaxed);
        stage
    }

    /// The stage as last told.
    pub fn stage(&self) -> Stage {
        match self.0.load(Relaxed) {
            0 => Stage::Plenty,
            1 => Stage::CloseIdle,
            2 => Stage::RefuseLarge,
            _ => Stage::RefuseAll,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_begin_where_they_are_said_to() {
        let memory = Memory::default();
        assert_eq!(memory.stage(), Stage::Plenty);
        for (used, stage) in [
            (79, Stage::Plenty),
            (80, Stage::CloseIdle),
            (90, Stage::RefuseLarge),
            (94, Stage::RefuseLarge),
            (95, Stage::RefuseAll),
            (300, Stage::RefuseAll),
        ] {
            assert_eq!(memory.tell(used, 100), stage);
            assert_eq!(memory.stage(), stage);
        }
    }
}
