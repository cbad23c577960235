//! What operators change while the gate runs: pods added, taken away again, drained. Kept in a file if there is one.
//!
//! A drain is of an address: all data-parallel ranks there go together. It ends with the pod: another that comes with the same address
//! is not drained.
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::lists::ADDED;
use super::publish::Publisher;
use super::settings::PodEntry;
use super::source::Host;
use crate::pods::Pod;
use crate::runtime::replace;

/// Most pods, or names of pods, that can be added.
const ADDED_MAX: usize = 10_000;

/// Why a change is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RosterProblem {
    /// What was sent is no pod.
    #[error("{0}")]
    Bad(String),
    /// It is there already, from another source.
    #[error("it is there already, from the source `{0}`")]
    Known(String),
    /// It is not for operators to take away.
    #[error("it comes from the source `{0}`; take it away there, or drain it")]
    Elsewhere(String),
    /// Too many.
    #[error("{ADDED_MAX} pods were added already")]
    Full,
}

/// See the file.
#[derive(Debug)]
pub struct Roster {
    publisher: Arc<Publisher>,
    added: watch::Sender<Vec<PodEntry>>,
    file: Option<PathBuf>,
}

/// What is kept.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct State {
    added: Vec<PodEntry>,
    drained: BTreeSet<SocketAddr>,
}

impl Roster {
    /// Begins with what the file says. One that is not good is set aside, since it will be written over.
    pub fn open(publisher: Arc<Publisher>, file: Option<PathBuf>) -> io::Result<Self> {
        let state = match file.as_deref().map(std::fs::read) {
            None => State::default(),
            Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => State::default(),
            Some(Err(error)) => return Err(error),
            Some(Ok(text)) => serde_json::from_slice(&text).or_else(|error| {
                tracing::error!(%error, "the file of added and drained pods is not good; set aside as `*.bad`");
                file.iter().try_for_each(|path| std::fs::rename(path, path.with_extension("bad")))?;
                Ok::<_, io::Error>(State::default())
            })?,
        };
        publisher.drained().send_replace(state.drained);
        Ok(Self { publisher, added: watch::Sender::new(state.added), file })
    }

    /// Where all sources come together.
    pub fn publisher(&self) -> &Arc<Publisher> {
        &self.publisher
    }

    /// What was added, now and from now on.
    pub(super) fn added(&self) -> watch::Receiver<Vec<PodEntry>> {
        self.added.subscribe()
    }

    /// Adds a pod, given as JSON like an entry of `pods.list`, or changes one that was added. Returns its URL.
    pub fn add(&self, json: &[u8]) -> Result<String, RosterProblem> {
        let hint = "send JSON such as {\"url\":\"http://10.0.0.7:8000\",\"role\":\"both\"}";
        let entry: PodEntry =
            serde_json::from_slice(json).map_err(|error| RosterProblem::Bad(format!("{error}; {hint}")))?;
        let source = entry.source(&Arc::default()).map_err(|problem| RosterProblem::Bad(problem.to_string()))?;
        if let Host::Addr(ip) = source.host
            && let Some(origin) =
                self.publisher.origin(SocketAddr::new(ip, source.port)).filter(|origin| origin != ADDED)
        {
            return Err(RosterProblem::Known(origin));
        }
        let url = entry.url.clone();
        let mut is_full = false;
        self.added.send_if_modified(|added| {
            if let Some(same) = added.iter_mut().find(|one| one.url == entry.url) {
                let is_news = *same != entry;
                *same = entry;
                return is_news;
            }
            is_full = added.len() >= ADDED_MAX;
            if !is_full {
                added.push(entry);
            }
            !is_full
        });
        if is_full { Err(RosterProblem::Full) } else { Ok(url) }
    }

    /// Takes a pod away that was added, with all others that the same name stands for. What it has runs on.
    pub fn remove(&self, pod: &Pod) -> Result<(), RosterProblem> {
        let origin = self.publisher.origin(pod.spec.addr).unwrap_or_default();
        let is_its = |entry: &PodEntry| {
            entry
                .source(&Arc::default())
                .is_ok_and(|source| source.authority == pod.spec.authority && source.role == pod.spec.role)
        };
        let is_gone = self.added.send_if_modified(|added| {
            let before = added.len();
            added.retain(|entry| !is_its(entry));
            added.len() != before
        });
        if is_gone { Ok(()) } else { Err(RosterProblem::Elsewhere(origin)) }
    }

    /// Begins or ends a drain: nothing new goes to a pod that is drained, what it has runs on. Whether that changed anything.
    pub fn drain(&self, pod: &Pod, is_drained: bool) -> bool {
        let addr = pod.spec.addr;
        let is_news = self
            .publisher
            .drained()
            .send_if_modified(|drained| if is_drained { drained.insert(addr) } else { drained.remove(&addr) });
        if is_news {
            self.publisher.publish();
        }
        is_news
    }

    /// Keeps the file as things are, for ever.
    pub(super) async fn keep_saved(&self) {
        let (mut added, mut drained) = (self.added.subscribe(), self.publisher.drained().subscribe());
        loop {
            tokio::select! {
                _ = added.changed() => {}
                _ = drained.changed() => {}
            }
            let state =
                State { added: added.borrow_and_update().clone(), drained: drained.borrow_and_update().clone() };
            let Some(path) = self.file.clone() else { continue };
            let saved = tokio::task::spawn_blocking(move || replace(&path, &serde_json::to_vec(&state)?)).await;
            if let Err(error) = saved.map_err(io::Error::other).flatten() {
                tracing::error!(%error, "added and drained pods cannot be saved: a restart will forget them");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeMap;

    use super::super::found::{Found, State as Ready};
    use super::*;
    use crate::pods::{PodSpec, Role, Shut, Table};

    fn found(port: u16) -> (String, Vec<Found>) {
        let addr = SocketAddr::from(([10, 0, 0, 1], port));
        let authority = addr.to_string().into();
        let spec = PodSpec { addr, authority, tls: None, rank: None, role: Role::Both, labels: BTreeMap::new() };
        (port.to_string(), vec![Found { spec, state: Ready::Ready }])
    }

    fn roster(file: Option<PathBuf>) -> (Roster, Arc<Table>) {
        let table = Arc::new(Table::default());
        let publisher = Arc::new(Publisher::new(Arc::clone(&table)));
        publisher.set("list", [found(1), found(2)].into());
        publisher.publish();
        (Roster::open(publisher, file).unwrap(), table)
    }

    #[test]
    fn pods_are_added_once_and_only_those_can_be_taken_away() {
        let (roster, table) = roster(None);
        let add = |json: &str| roster.add(json.as_bytes());
        assert_eq!(add(r#"{"url":"http://10.0.0.1:3"}"#), Ok("http://10.0.0.1:3".into()));
        assert_eq!(add(r#"{"url":"http://10.0.0.1:3","labels":{"rack":"a"}}"#), Ok("http://10.0.0.1:3".into()));
        assert_eq!(roster.added().borrow().len(), 1);
        assert_eq!(add(r#"{"url":"10.0.0.1:1"}"#), Err(RosterProblem::Known("list".into())));
        for bad in
            ["", "{}", "[]", r#"{"url":"ftp://a"}"#, r#"{"url":"a:1","x":1}"#, r#"{"url":"http://u:secret@a:1"}"#]
        {
            let problem = add(bad).unwrap_err().to_string();
            assert!(!problem.is_empty() && !problem.contains("secret"), "{problem}");
        }
        roster.publisher.set(ADDED, [found(3)].into());
        roster.publisher.publish();
        let pods = table.fleet().pods.clone();
        let pod = |port| pods.iter().find(|pod| pod.spec.addr.port() == port).unwrap();
        assert_eq!(roster.remove(pod(1)), Err(RosterProblem::Elsewhere("list".into())));
        assert_eq!(roster.remove(pod(3)), Ok(()));
        assert!(roster.added().borrow().is_empty());
    }

    #[test]
    fn a_drain_ends_with_the_pod() {
        let (roster, table) = roster(None);
        let is_drained = |port: u16| {
            let fleet = table.fleet();
            fleet.pods.iter().find(|pod| pod.spec.addr.port() == port).map(|pod| pod.load.shuts.has(Shut::Drained))
        };
        let pod = Arc::clone(&table.fleet().pods.first().cloned().unwrap());
        assert!(roster.drain(&pod, true) && !roster.drain(&pod, true));
        assert_eq!((is_drained(1), is_drained(2)), (Some(true), Some(false)));
        assert!(roster.drain(&pod, false));
        assert_eq!(is_drained(1), Some(false));
        roster.drain(&pod, true);
        roster.publisher.set("list", [found(2)].into());
        roster.publisher.publish();
        assert_eq!(is_drained(1), None);
        roster.publisher.set("list", [found(1), found(2)].into());
        roster.publisher.publish();
        assert_eq!(is_drained(1), Some(false), "another pod with this address");
    }

    #[tokio::test]
    async fn what_was_changed_is_there_after_a_restart() {
        let file = std::env::temp_dir().join(format!("tidegate-roster-{}.json", std::process::id()));
        let (first, table) = roster(Some(file.clone()));
        let pod = Arc::clone(&table.fleet().pods.first().cloned().unwrap());
        let saved = async {
            first.add(br#"{"url":"http://10.0.0.9:3","role":"decode"}"#).unwrap();
            tokio::task::yield_now().await;
            first.drain(&pod, true);
            loop {
                if std::fs::read_to_string(&file).is_ok_and(|text| text.contains("10.0.0.1:1")) {
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        tokio::select! { () = first.keep_saved() => {}, () = saved => {} }
        let (second, table) = roster(Some(file.clone()));
        assert_eq!(second.added().borrow().clone(), first.added().borrow().clone());
        second.publisher.publish();
        assert!(table.fleet().pods.first().unwrap().load.shuts.has(Shut::Drained));
        std::fs::write(&file, "{").unwrap();
        let (third, _) = roster(Some(file.clone()));
        assert!(third.added().borrow().is_empty() && !file.exists());
        std::fs::remove_file(file.with_extension("bad")).unwrap();
    }
}
