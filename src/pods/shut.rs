//! Why a pod gets nothing new, however well it is; what it has runs on.
use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

/// One reason. A pod may have several; the first counts where one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Shut {
    /// It is being deleted: discovery says so.
    Terminating,
    /// An operator drains it.
    Drained,
    /// Discovery says that it is not ready.
    NotReady,
    /// Its engine sleeps: no weights in its memory.
    Asleep,
}

impl Shut {
    /// All of them, the first to be named first.
    pub const ALL: [Self; 4] = [Self::Terminating, Self::Drained, Self::NotReady, Self::Asleep];

    /// As metrics and explanations name it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Terminating => "terminating",
            Self::Drained => "drained",
            Self::NotReady => "not_ready",
            Self::Asleep => "asleep",
        }
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// The reasons that a pod has now.
#[derive(Debug, Default)]
pub struct Shuts(AtomicU8);

impl Shuts {
    /// Adds a reason, or takes it away. Whether that changed anything.
    pub fn set(&self, why: Shut, is_so: bool) -> bool {
        let before = if is_so { self.0.fetch_or(why.bit(), Relaxed) } else { self.0.fetch_and(!why.bit(), Relaxed) };
        (before & why.bit() != 0) != is_so
    }

    /// Whether there is none.
    #[inline]
    pub fn is_open(&self) -> bool {
        self.0.load(Relaxed) == 0
    }

    /// The one to be named.
    pub fn first(&self) -> Option<Shut> {
        let all = self.0.load(Relaxed);
        Shut::ALL.into_iter().find(|why| all & why.bit() != 0)
    }

    /// Whether this is one of them.
    pub fn has(&self, why: Shut) -> bool {
        self.0.load(Relaxed) & why.bit() != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_come_and_go_one_by_one() {
        let shuts = Shuts::default();
        assert!(shuts.is_open() && shuts.first().is_none());
        assert!(shuts.set(Shut::Asleep, true) && shuts.set(Shut::Terminating, true));
        assert!(!shuts.set(Shut::Asleep, true), "it was so already");
        assert_eq!(shuts.first(), Some(Shut::Terminating));
        assert!(shuts.set(Shut::Terminating, false));
        assert_eq!((shuts.first(), shuts.has(Shut::Drained)), (Some(Shut::Asleep), false));
        assert!(shuts.set(Shut::Asleep, false) && shuts.is_open());
    }
}
