//! What was learnt of two pods together: first contact, speed of handing over, failures; and of decoders whose prefix cache is
//! not to be read any more.
//!
//! Handing over is taken to cost a fixed time and a time per token (fit of published NIXL figures: 26 ms + 4.25 µs), times a
//! factor learnt per pair from first tokens. Transfers out of one pod share its link.
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use parking_lot::Mutex;

use super::lease::Timing;
use crate::base::{Mono, PodId, Tokens};

/// Fixed part and part per token of handing over \[seconds\].
const SETUP_S: f64 = 0.026;
const TOKEN_S: f64 = 4.25e-6;
/// Bounds of the factor, and how much of it one observation moves.
const FACTOR: (f64, f64) = (0.02, 100.0);
const GAIN: f64 = 0.1;
/// First contact of a pair that never had one: 13 s were measured (UCX over TCP).
const WIRE_UP: Duration = Duration::from_secs(15);
/// Time to take in a request where nothing was seen yet, and bounds of what is seen.
const INGEST: Duration = Duration::from_secs(1);
const INGEST_MAX: Duration = Duration::from_secs(10);
/// Most pods that are distrusted at once.
const EPOCHS_MAX: usize = 65_536;
/// Times to take in a request that are kept per decoder; the longest of them stands for the 99th of 100.
const INGESTS: usize = 100;

/// What is known of a pair.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wire {
    /// They have handed over before.
    pub is_wired: bool,
    /// They failed not long ago.
    pub is_suspect: bool,
    /// Fixed part of handing over \[seconds\].
    pub setup_s: f64,
    /// Part per token \[seconds\].
    pub token_s: f64,
}

#[derive(Clone, Copy, Debug)]
struct Pair {
    is_wired: bool,
    suspect_until: Mono,
    factor: f64,
}

impl Default for Pair {
    fn default() -> Self {
        Self { is_wired: false, suspect_until: Mono::ZERO, factor: 1.0 }
    }
}

#[derive(Debug, Default)]
struct Known {
    /// By prefiller and decoder.
    pairs: HashMap<(PodId, PodId), Pair>,
    ingests: HashMap<PodId, VecDeque<Duration>>,
    /// By name of the pod: a process that was away for a while still has what it had.
    epochs: HashMap<u64, u64>,
    /// Transfers under way out of a prefiller.
    busy: HashMap<PodId, u32>,
    /// Names of prefillers' engines, where they had to be asked for; if one told none, until when it is not asked again.
    engines: HashMap<PodId, Result<Arc<str>, Mono>>,
}

/// What is known of all pairs.
#[derive(Debug, Default)]
pub struct Pairs {
    known: Mutex<Known>,
    /// Whether any pod has an epoch: only then is it looked up.
    has_epochs: AtomicBool,
}

impl Pairs {
    /// What is known of a pair at `now`.
    pub fn wire(&self, prefiller: PodId, decoder: PodId, now: Mono) -> Wire {
        let known = self.known.lock();
        let pair = known.pairs.get(&(prefiller, decoder)).copied().unwrap_or_default();
        let others = f64::from(known.busy.get(&prefiller).copied().unwrap_or(0));
        Wire {
            is_wired: pair.is_wired,
            is_suspect: pair.suspect_until > now,
            setup_s: SETUP_S * pair.factor,
            token_s: TOKEN_S * pair.factor * (1.0 + others),
        }
    }

    /// What a decoder needs before it keeps a lease alive.
    pub fn timing(&self, prefiller: PodId, decoder: PodId) -> Timing {
        let known = self.known.lock();
        let is_wired = known.pairs.get(&(prefiller, decoder)).is_some_and(|pair| pair.is_wired);
        let seen = known.ingests.get(&decoder).and_then(|seen| seen.iter().max()).copied();
        Timing {
            wire_up: if is_wired { Duration::ZERO } else { WIRE_UP },
            ingest: seen.map_or(INGEST, |longest| longest.min(INGEST_MAX)),
        }
    }

    /// They handed over `tokens`. `took`: time from asking the decoder to the first token, if that was seen, and what of it was
    /// predicted to be something else \[seconds\].
    pub fn handed_over(&self, prefiller: PodId, decoder: PodId, tokens: Tokens, took: Option<(Duration, f64)>) {
        let mut known = self.known.lock();
        let others = f64::from(known.busy.get(&prefiller).copied().unwrap_or(1).saturating_sub(1));
        let pair = known.pairs.entry((prefiller, decoder)).or_default();
        let is_first = !std::mem::replace(&mut pair.is_wired, true);
        if let Some((took, others_s)) = took.filter(|_| !is_first) {
            let expected = SETUP_S + TOKEN_S * (1.0 + others) * tokens.0 as f64;
            let seen = (took.as_secs_f64() - others_s).max(0.0) / expected;
            // One that waited for something else must not make the pair look slow for good.
            let seen = seen.clamp(pair.factor / 3.0, pair.factor * 3.0);
            pair.factor = (pair.factor + GAIN * (seen - pair.factor)).clamp(FACTOR.0, FACTOR.1);
        }
    }

    /// The decoder took a request in within `took`.
    pub fn took_in(&self, decoder: PodId, took: Duration) {
        let mut known = self.known.lock();
        let seen = known.ingests.entry(decoder).or_default();
        if seen.len() >= INGESTS {
            seen.pop_front();
        }
        seen.push_back(took);
    }

    /// Name of a prefiller's engine as it was told, `Some(None)` if it told none a while ago; `None`: it is to be asked.
    pub fn engine(&self, prefiller: PodId, now: Mono) -> Option<Option<Arc<str>>> {
        match self.known.lock().engines.get(&prefiller)? {
            Ok(name) => Some(Some(Arc::clone(name))),
            Err(until) => (now < *until).then_some(None),
        }
    }

    /// A prefiller told the name of its engine, or did not and is not asked again before `until`.
    pub fn told_engine(&self, prefiller: PodId, engine: Option<&str>, until: Mono) -> Option<Arc<str>> {
        let name: Option<Arc<str>> = engine.map(Into::into);
        self.known.lock().engines.insert(prefiller, name.clone().ok_or(until));
        name
    }

    /// They failed: not to be used until then, and first contact has to be made again.
    pub fn failed(&self, prefiller: PodId, decoder: PodId, until: Mono) {
        let mut known = self.known.lock();
        known.engines.remove(&prefiller);
        let pair = known.pairs.entry((prefiller, decoder)).or_default();
        (pair.suspect_until, pair.is_wired) = (until, false);
    }

    /// What the pod of this name holds may be poisoned: from now on it is asked under another salt, made of `epoch`, which must be
    /// drawn by chance so that none comes twice.
    pub fn distrust(&self, name: u64, epoch: u64) {
        let mut known = self.known.lock();
        if known.epochs.len() < EPOCHS_MAX || known.epochs.contains_key(&name) {
            known.epochs.insert(name, epoch);
        }
        self.has_epochs.store(true, Relaxed);
    }

    /// Epoch of a pod's prefix cache; `None`: it can be trusted whole.
    pub fn epoch(&self, name: u64) -> Option<u64> {
        if !self.has_epochs.load(Relaxed) {
            return None;
        }
        self.known.lock().epochs.get(&name).copied()
    }

    /// A pod restarted: its cache is empty and its contacts are gone.
    pub fn restarted(&self, pod: PodId, name: u64) {
        let mut known = self.known.lock();
        known.epochs.remove(&name);
        known.ingests.remove(&pod);
        known.engines.remove(&pod);
        for ((prefiller, decoder), pair) in &mut known.pairs {
            pair.is_wired &= *prefiller != pod && *decoder != pod;
        }
    }

    /// A transfer out of `prefiller` begins (true) or ends.
    pub fn busy(&self, prefiller: PodId, begins: bool) {
        let mut known = self.known.lock();
        let busy = known.busy.entry(prefiller).or_default();
        *busy = if begins { *busy + 1 } else { busy.saturating_sub(1) };
    }

    /// Forgets pods that left.
    pub fn keep(&self, is_there: impl Fn(PodId) -> bool) {
        let mut known = self.known.lock();
        known.pairs.retain(|(prefiller, decoder), _| is_there(*prefiller) && is_there(*decoder));
        known.ingests.retain(|pod, _| is_there(*pod));
        known.engines.retain(|pod, _| is_there(*pod));
        known.busy.retain(|pod, busy| *busy > 0 || is_there(*pod));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: PodId = PodId(1);
    const D: PodId = PodId(2);

    #[test]
    fn a_pair_is_known_after_its_first_contact_and_suspect_after_a_failure() {
        let pairs = Pairs::default();
        assert_eq!(pairs.timing(P, D), Timing { wire_up: WIRE_UP, ingest: INGEST });
        pairs.handed_over(P, D, Tokens(9), Some((Duration::from_secs(13), 0.0)));
        pairs.took_in(D, Duration::from_millis(20));
        assert_eq!(pairs.timing(P, D), Timing { wire_up: Duration::ZERO, ingest: Duration::from_millis(20) });
        let wire = pairs.wire(P, D, Mono(5));
        assert_eq!((wire.is_wired, wire.is_suspect, wire.setup_s.to_string()), (true, false, SETUP_S.to_string()));
        pairs.failed(P, D, Mono(9));
        assert!(pairs.wire(P, D, Mono(8)).is_suspect && !pairs.wire(P, D, Mono(9)).is_suspect);
        assert_eq!(pairs.timing(P, D).wire_up, WIRE_UP);
    }

    #[test]
    fn the_speed_of_a_pair_is_learnt() {
        let pairs = Pairs::default();
        let seconds = |tokens: u64| {
            let wire = pairs.wire(P, D, Mono(5));
            wire.setup_s + wire.token_s * tokens as f64
        };
        let before = seconds(10_000);
        for _ in 0..200 {
            pairs.handed_over(P, D, Tokens(10_000), Some((Duration::from_secs_f64(before / 4.0 + 0.1), 0.1)));
        }
        assert!((seconds(10_000) / before - 0.25).abs() < 0.01, "{} {before}", seconds(10_000));
        pairs.busy(P, true);
        assert!(seconds(10_000) > before / 4.0 * 1.5, "transfers share the link");
        pairs.busy(P, false);
    }

    #[test]
    fn a_distrusted_cache_has_another_epoch_until_the_pod_restarts() {
        let pairs = Pairs::default();
        assert_eq!(pairs.epoch(77), None);
        pairs.distrust(77, 5);
        pairs.keep(|pod| pod == P);
        assert_eq!((pairs.epoch(77), pairs.epoch(78)), (Some(5), None), "also after it was away");
        pairs.restarted(D, 77);
        assert_eq!(pairs.epoch(77), None);
    }
}
