//! What all sources of pods have found, put together: pure.
//!
//! A pod that was never ready is no pod yet. One that was and is not any more stays, with what its cache is believed to hold, but gets
//! nothing new; one that is being deleted likewise, until it is gone.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use crate::pods::{PodSpec, Role};

/// How a source says a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It may get requests.
    Ready,
    /// Not now.
    NotReady,
    /// It is being deleted.
    Terminating,
}

/// A pod as a source has found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// Its description.
    pub spec: PodSpec,
    /// How it is.
    pub state: State,
}

/// Most objects of one source.
const OBJECTS_MAX: usize = 100_000;

/// What every source found last, by the source's name and that of an object in it. Sources are asked in the order of their names: of two
/// pods with the same address and role the first counts.
#[derive(Debug, Default)]
pub struct Board {
    sources: BTreeMap<String, BTreeMap<String, Vec<Found>>>,
    /// Pods that were ready once.
    met: HashSet<(SocketAddr, Role)>,
}

impl Board {
    /// This is all that a source found. Whether that is news.
    pub fn set(&mut self, source: &str, all: BTreeMap<String, Vec<Found>>) -> bool {
        if self.sources.get(source) == Some(&all) {
            return false;
        }
        self.sources.insert(source.to_owned(), all);
        true
    }

    /// A source found that one of its objects means this; nothing if it is gone. Whether that is news.
    pub fn put(&mut self, source: &str, object: &str, found: Vec<Found>) -> bool {
        let Some(objects) = self.sources.get_mut(source) else { return false };
        if found.is_empty() {
            return objects.remove(object).is_some_and(|before| !before.is_empty());
        }
        if objects.len() >= OBJECTS_MAX || objects.get(object) == Some(&found) {
            return false;
        }
        objects.insert(object.to_owned(), found);
        true
    }

    /// Forgets sources that are none any more. Whether there were any.
    pub fn keep(&mut self, is_source: impl Fn(&str) -> bool) -> bool {
        let before = self.sources.len();
        self.sources.retain(|name, _| is_source(name));
        self.sources.len() != before
    }

    /// Names of the sources that all addresses come from.
    pub fn origins(&self) -> HashMap<SocketAddr, String> {
        let mut origins = HashMap::new();
        for (name, one) in
            self.sources.iter().flat_map(|(name, all)| all.values().flatten().map(move |one| (name, one)))
        {
            origins.entry(one.spec.addr).or_insert_with(|| name.clone());
        }
        origins
    }

    /// The fleet: each pod once, and those that are not ready with their state.
    pub fn fleet(&mut self) -> (Vec<PodSpec>, HashMap<SocketAddr, State>) {
        let (mut specs, mut states) = (Vec::new(), HashMap::new());
        let mut met = HashSet::new();
        for found in self.sources.values().flat_map(BTreeMap::values).flatten() {
            let key = (found.spec.addr, found.spec.role);
            let is_known = found.state == State::Ready || self.met.contains(&key);
            if !is_known || !met.insert(key) {
                continue;
            }
            specs.push(found.spec.clone());
            if found.state != State::Ready {
                states.insert(found.spec.addr, found.state);
            }
        }
        self.met = met;
        (specs, states)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(port: u16, state: State) -> Found {
        let addr = SocketAddr::from(([10, 0, 0, 1], port));
        let spec =
            PodSpec { addr, authority: "a".into(), tls: None, rank: None, role: Role::Both, labels: BTreeMap::new() };
        Found { spec, state }
    }

    fn all(found: Vec<Found>) -> BTreeMap<String, Vec<Found>> {
        found.into_iter().map(|one| (one.spec.addr.port().to_string(), vec![one])).collect()
    }

    fn ports(board: &mut Board) -> (Vec<u16>, Vec<(u16, State)>) {
        let (specs, states) = board.fleet();
        let mut states: Vec<_> = states.into_iter().map(|(addr, state)| (addr.port(), state)).collect();
        states.sort_unstable();
        (specs.iter().map(|spec| spec.addr.port()).collect(), states)
    }

    #[test]
    fn a_pod_is_one_once_it_was_ready_and_until_it_is_gone() {
        let mut board = Board::default();
        assert!(
            board.set("a", all(vec![found(1, State::NotReady), found(2, State::Ready), found(3, State::Terminating)]))
        );
        assert_eq!(ports(&mut board), (vec![2], vec![]));
        assert!(board.set("a", all(vec![found(1, State::Ready), found(2, State::NotReady)])));
        assert_eq!(ports(&mut board), (vec![1, 2], vec![(2, State::NotReady)]));
        assert!(board.set("a", all(vec![found(1, State::Terminating), found(2, State::Ready)])));
        assert_eq!(ports(&mut board), (vec![1, 2], vec![(1, State::Terminating)]));
        assert!(board.set("a", all(vec![found(2, State::Ready)])));
        assert_eq!(ports(&mut board), (vec![2], vec![]));
        assert!(board.set("a", all(vec![found(1, State::NotReady), found(2, State::Ready)])));
        assert_eq!(ports(&mut board), (vec![2], vec![]), "another pod with an address that was used before");
        assert!(!board.set("a", all(vec![found(1, State::NotReady), found(2, State::Ready)])), "no news");
        assert!(
            board.put("a", "7", vec![found(7, State::Ready)]) && !board.put("a", "7", vec![found(7, State::Ready)])
        );
        assert_eq!(ports(&mut board), (vec![2, 7], vec![]));
        assert!(board.put("a", "7", vec![]) && !board.put("a", "7", vec![]) && !board.put("x", "7", vec![]));
    }

    #[test]
    fn of_two_sources_the_first_counts() {
        let mut board = Board::default();
        board.set("b", all(vec![found(1, State::Ready), found(2, State::Ready)]));
        board.set("a", all(vec![found(1, State::NotReady)]));
        assert_eq!(ports(&mut board), (vec![1, 2], vec![]), "never ready to the one, ready to the other");
        board.set("a", all(vec![found(1, State::Ready)]));
        board.set("b", all(vec![found(1, State::NotReady)]));
        assert_eq!(ports(&mut board), (vec![1], vec![]));
        assert!(board.keep(|name| name == "b"));
        assert_eq!(ports(&mut board), (vec![1], vec![(1, State::NotReady)]));
    }
}
