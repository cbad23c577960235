//! What operators do with pods: add, drain, take away.
use std::collections::HashMap;
use std::net::SocketAddr;

use super::answer::{AdminState, Answer, pod_json};
use crate::pods::Pod;

/// A change of the fleet.
#[derive(Clone, Copy, Debug)]
pub enum PodChange<'a> {
    /// Adds the pod that this JSON describes, an entry as in `pods.list`.
    Add(&'a [u8]),
    /// Takes a pod away that was added.
    Remove(&'a Pod),
    /// Begins or ends a drain.
    Drain(&'a Pod, bool),
}

/// Names of the sources that pods come from, by their addresses.
pub type Origins = dyn Fn() -> HashMap<SocketAddr, String> + Send + Sync;

/// Makes a change; else a status and why not.
pub type Roster = dyn Fn(PodChange<'_>) -> Result<(), (u16, String)> + Send + Sync;

/// Methods of a page below `/pods` that change something; `None` if it is no such page.
pub(super) fn methods(path: &str) -> Option<&'static str> {
    match path.strip_prefix("/pods")? {
        "" => Some("GET, HEAD, POST"),
        rest => match rest.strip_prefix('/')?.split_once('/') {
            None => Some("DELETE"),
            Some((_, "drain" | "undrain")) => Some("POST"),
            Some(_) => None,
        },
    }
}

/// Does what was asked for by somebody who may.
pub(super) fn change(state: &AdminState, method: &str, path: &str, body: &[u8]) -> Answer {
    let rest = path.strip_prefix("/pods").and_then(|rest| rest.strip_prefix('/')).unwrap_or_default();
    if rest.is_empty() {
        return match (state.roster)(PodChange::Add(body)) {
            Ok(()) => Answer::text(202, "added; see GET /pods"),
            Err((status, problem)) => Answer::text(status, problem),
        };
    }
    let (id, verb) = rest.split_once('/').unwrap_or((rest, ""));
    let fleet = state.table.fleet();
    let Some(pod) = fleet.pods.iter().find(|pod| pod.id.to_string() == id || pod.spec.addr.to_string() == id) else {
        return Answer::text(404, "no such pod; write an id or an address as in GET /pods");
    };
    let wanted = match (method, verb) {
        ("DELETE", "") => PodChange::Remove(pod),
        (_, verb) => PodChange::Drain(pod, verb == "drain"),
    };
    match (state.roster)(wanted) {
        Ok(()) => {
            let mut shown = pod_json(pod, (state.origins)().get(&pod.spec.addr), (state.now)()).to_string();
            shown.push('\n');
            Answer::json(shown)
        }
        Err((status, problem)) => Answer::text(status, problem),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::collections::BTreeMap;
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::super::answer::{answer, tests::state};
    use super::*;
    use crate::pods::{PodSpec, Role};

    #[test]
    fn pods_are_named_by_id_or_address_and_changed_by_who_may() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&seen);
        let state = AdminState {
            roster: Box::new(move |change| match change {
                PodChange::Add(b"bad") => Err((400, "not so".to_owned())),
                other => {
                    let shown = match other {
                        PodChange::Add(json) => String::from_utf8_lossy(json).into_owned(),
                        PodChange::Remove(pod) => format!("remove {}", pod.spec.addr),
                        PodChange::Drain(pod, is_drained) => format!("drain {} {is_drained}", pod.spec.addr),
                    };
                    told.lock().push(shown);
                    Ok(())
                }
            }),
            ..state()
        };
        state.table.set(vec![PodSpec {
            addr: "[::1]:8000".parse().unwrap(),
            authority: "a".into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: BTreeMap::new(),
        }]);
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let ask = |method: &str, path: &str, body: &[u8]| answer(&state, local, method, path, body, false);
        assert_eq!(ask("POST", "/pods", b"{}").status, 202);
        assert_eq!(
            (ask("POST", "/pods", b"bad").status, ask("POST", "/pods", b"bad").body.as_str()),
            (400, "not so\n")
        );
        assert_eq!(ask("POST", "/pods/pod-0/drain", b"").status, 200);
        assert_eq!(ask("POST", "/pods/%5B::1%5D:8000/undrain", b"").status, 200);
        let removed = ask("DELETE", "/pods/[::1]:8000", b"");
        assert!(removed.status == 200 && removed.body.contains("\"id\":\"pod-0\""), "{}", removed.body);
        for (method, path, status) in [
            ("POST", "/pods/pod-1/drain", 404),
            ("POST", "/pods/pod-0/stop", 404),
            ("GET", "/pods/pod-0/drain", 405),
            ("POST", "/pods/pod-0", 405),
            ("DELETE", "/pods", 405),
        ] {
            assert_eq!(ask(method, path, b"").status, status, "{method} {path}");
        }
        let far = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));
        assert_eq!(answer(&state, far, "DELETE", "/pods/pod-0", b"", false).status, 403);
        assert_eq!(answer(&state, local, "POST", "/pods", b"{}", true).status, 403, "a page of another site");
        assert_eq!(seen.lock().join("; "), "{}; drain [::1]:8000 true; drain [::1]:8000 false; remove [::1]:8000");
    }
}
