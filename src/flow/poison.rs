//! Keeps a body that kills pods from walking through the fleet ("query of death").
//!
//! A body (tenant and hash, never text) that was in flight on two pods, or twice on one, when they died within
//! [`CRIME_WINDOW`] is quarantined for [`QUARANTINE`]. A broken connection alone is no death: it counts once the pod then
//! refuses connections or restarts within [`CONFIRM_WINDOW`]. Innocents that were there too are told apart: a body that was
//! served well is cleared, and when more than [`CROWD_MAX`] bodies share two deaths nobody is judged until a third narrows
//! it down. All state is bounded; what is forgotten under pressure is the oldest.
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use lru::LruCache;

use super::refusal::{Reason, Refusal};
use crate::base::{Mono, PodId};

/// Two deaths further apart than this have nothing to do with each other.
pub const CRIME_WINDOW: Duration = Duration::from_mins(1);
/// How long a body stays out.
pub const QUARANTINE: Duration = Duration::from_mins(10);
/// A pod must refuse connections or restart this soon after connections broke, or it did not die.
pub const CONFIRM_WINDOW: Duration = Duration::from_secs(30);
/// Most bodies that two common deaths convict.
pub const CROWD_MAX: usize = 8;
/// Most pods with broken connections that are remembered.
pub const PODS_MAX: NonZeroUsize = NonZeroUsize::new(256).unwrap();
/// Most bodies remembered per pod that may have died.
pub const BODIES_PER_POD_MAX: usize = 512;
/// Most bodies with one death on them.
pub const SUSPECTS_MAX: NonZeroUsize = NonZeroUsize::new(16_384).unwrap();
/// Most bodies in quarantine.
pub const QUARANTINED_MAX: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// Name of a body: whose it is and its hash.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BodyKey {
    /// Tenant: one tenant's poison never blocks another's request.
    pub tenant: Arc<str>,
    /// Keyed hash of the whole body.
    pub hash: u64,
}

/// A connection that broke under a request.
#[derive(Clone, Debug)]
struct Break {
    body: BodyKey,
    started: Mono,
    at: Mono,
}

/// What is remembered of one pod.
#[derive(Debug, Default)]
struct Scene {
    breaks: Vec<Break>,
    last_death: Option<(u64, Mono)>,
}

/// The guard of one model.
#[derive(Debug)]
pub struct PoisonGuard {
    scenes: LruCache<PodId, Scene>,
    /// Deaths (number, time) a body was present at, oldest first; at most 3.
    suspects: LruCache<BodyKey, Vec<(u64, Mono)>>,
    quarantined: LruCache<BodyKey, Mono>,
    deaths: u64,
}

impl Default for PoisonGuard {
    fn default() -> Self {
        Self {
            scenes: LruCache::new(PODS_MAX),
            suspects: LruCache::new(SUSPECTS_MAX),
            quarantined: LruCache::new(QUARANTINED_MAX),
            deaths: 0,
        }
    }
}

impl PoisonGuard {
    /// Whether a body is out, and for how long. To be asked before dispatch and before a retry.
    pub fn check(&mut self, now: Mono, body: &BodyKey) -> Option<Refusal> {
        let until = *self.quarantined.peek(body)?;
        if until <= now {
            self.quarantined.pop(body);
            return None;
        }
        Some(Refusal { reason: Reason::RequestPoisoned, retry_after: None })
    }

    /// A connection broke while `body`, dispatched at `started`, was in flight on `pod`.
    pub fn broke(&mut self, now: Mono, pod: PodId, started: Mono, body: BodyKey) {
        let scene = self.scenes.get_or_insert_mut(pod, Scene::default);
        scene.breaks.retain(|one| now.since(one.at) <= CONFIRM_WINDOW);
        if scene.breaks.len() < BODIES_PER_POD_MAX {
            scene.breaks.push(Break { body, started, at: now });
        }
    }

    /// `pod` refuses connections or has restarted. Returns how many bodies that put in quarantine.
    pub fn died(&mut self, now: Mono, pod: PodId) -> usize {
        let Some(scene) = self.scenes.get_mut(&pod) else { return 0 };
        let mut breaks = std::mem::take(&mut scene.breaks);
        breaks.retain(|one| now.since(one.at) <= CONFIRM_WINDOW);
        // What was in flight when the pod died before, but is told late, belongs to that death.
        let last = scene.last_death;
        let is_late = |one: &Break| last.is_some_and(|(_, at)| one.started <= at);
        if let Some(first) = breaks.iter().filter(|one| !is_late(one)).map(|one| one.at).min() {
            self.deaths += 1;
            scene.last_death = Some((self.deaths, first));
        }
        let this = scene.last_death;
        let mut present = Vec::new();
        for one in breaks {
            let death = if is_late(&one) { last } else { this };
            if let Some((death, _)) = death {
                self.note(death, &one);
                present.push(one.body);
            }
        }
        self.judge(now, present)
    }

    /// A request with this body was served well: it is no poison, whatever broke under it before. Also forgets what is too
    /// old to count.
    pub fn served(&mut self, now: Mono, body: &BodyKey) {
        self.suspects.pop(body);
        let is_over = |deaths: &[(u64, Mono)]| deaths.iter().all(|&(_, at)| now.since(at) > CRIME_WINDOW);
        while self.suspects.peek_lru().is_some_and(|(_, deaths)| is_over(deaths)) {
            self.suspects.pop_lru();
        }
        for (_, scene) in &mut self.scenes {
            scene.breaks.retain(|one| one.body != *body && now.since(one.at) <= CONFIRM_WINDOW);
        }
    }

    /// Whether any body is under suspicion, confirmed or not.
    pub fn has_suspects(&self) -> bool {
        !self.suspects.is_empty() || self.scenes.iter().any(|(_, scene)| !scene.breaks.is_empty())
    }

    /// Bodies in quarantine, those included whose time has run out unasked.
    pub fn quarantined(&self) -> usize {
        self.quarantined.len()
    }

    fn note(&mut self, death: u64, one: &Break) {
        let deaths = self.suspects.get_or_insert_mut(one.body.clone(), Vec::new);
        deaths.retain(|&(_, at)| one.at.since(at) <= CRIME_WINDOW);
        if deaths.len() < 3 && deaths.iter().all(|&(other, _)| other != death) {
            deaths.push((death, one.at));
        }
    }

    fn judge(&mut self, now: Mono, mut present: Vec<BodyKey>) -> usize {
        present.sort_unstable();
        present.dedup();
        let deaths = |body: &BodyKey| self.suspects.peek(body).map_or(0, Vec::len);
        let (twice, thrice): (Vec<_>, Vec<_>) =
            present.into_iter().filter(|body| deaths(body) >= 2).partition(|body| deaths(body) == 2);
        let is_crowd = twice.len() + thrice.len() > CROWD_MAX;
        let convicted = thrice.into_iter().chain(twice.into_iter().filter(|_| !is_crowd));
        let convicted: Vec<_> = convicted.collect();
        for body in &convicted {
            self.suspects.pop(body);
            self.quarantined.put(body.clone(), now.after(QUARANTINE));
        }
        convicted.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SECOND: u64 = 1_000_000;

    fn body(hash: u64) -> BodyKey {
        BodyKey { tenant: "".into(), hash }
    }

    /// What happens: pod and body, pod, body.
    enum News {
        Broke(u32, u64),
        Died(u32),
        Served(u64),
    }

    /// Feeds what happened, each with its second; answers whether body 1 is out.
    fn check(news: &[(u64, News)], expected: bool) {
        let mut guard = PoisonGuard::default();
        let mut now = Mono::ZERO;
        for (second, one) in news {
            now = Mono(second * SECOND);
            match one {
                News::Broke(pod, hash) => guard.broke(now, PodId(*pod), Mono(now.0.saturating_sub(1)), body(*hash)),
                News::Died(pod) => {
                    guard.died(now, PodId(*pod));
                }
                News::Served(hash) => guard.served(now, &body(*hash)),
            }
        }
        assert_eq!(guard.check(now, &body(1)).is_some(), expected);
        guard.served(now.after(CRIME_WINDOW + CONFIRM_WINDOW), &body(99));
        assert!(!guard.has_suspects(), "what is old is forgotten");
    }

    #[test]
    fn two_deaths_convict_and_a_good_answer_acquits() {
        use News::{Broke, Died, Served};
        check(&[(1, Broke(1, 1)), (2, Died(1)), (3, Broke(2, 1)), (4, Died(2))], true);
        check(&[(1, Broke(1, 1)), (2, Broke(2, 1)), (3, Died(2)), (4, Died(1))], true);
        check(&[(1, Broke(1, 1)), (2, Died(1)), (3, Broke(1, 1)), (4, Died(1))], true);
        check(&[(1, Broke(1, 1)), (2, Died(1))], false);
        check(&[(1, Broke(1, 1)), (2, Broke(2, 1))], false);
        check(&[(1, Broke(1, 1)), (2, Died(1)), (80, Broke(2, 1)), (81, Died(2))], false);
        check(&[(1, Broke(1, 1)), (40, Died(1)), (41, Broke(2, 1)), (42, Died(2))], false);
        check(&[(1, Broke(1, 1)), (2, Died(1)), (3, Served(1)), (4, Broke(2, 1)), (5, Died(2))], false);
        check(&[(1, Broke(1, 1)), (2, Served(1)), (3, Died(1)), (4, Broke(2, 1)), (5, Died(2))], false);
        check(&[(1, Broke(1, 1)), (2, Died(1)), (3, Served(2)), (4, Broke(2, 1)), (5, Died(2))], true);
    }

    #[test]
    fn a_crowd_is_not_judged_before_a_third_death() {
        let mut guard = PoisonGuard::default();
        for round in 0..3_u32 {
            let now = Mono(u64::from(round) * 5 * SECOND + SECOND);
            let present = if round < 2 { 20 } else { 1 };
            (1..=present).for_each(|hash| guard.broke(now, PodId(round), Mono(now.0 - 1), body(hash)));
            guard.died(now.after(Duration::from_secs(1)), PodId(round));
            assert_eq!(guard.quarantined(), usize::from(round == 2), "round {round}");
        }
    }
}
