//! What the admin listener answers, as a function from request to answer without any socket.
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::roster::{self, Origins, Roster};
use super::settings::Changes;
use crate::base::Mono;
use crate::export::prometheus::{self, Scrape, role_word, standing_word};
use crate::observe::{ExplainRing, Metrics, Readiness, json};
use crate::pods::{Pod, Sleep, Standing, Table};

/// Ids listed by `/explain`.
const RECENT_MAX: usize = 100;

/// Decides a recent request again.
pub type Replay = dyn Fn(&str, &str) -> Result<Option<String>, String> + Send + Sync;

/// What the admin listener looks at and may switch.
pub struct AdminState {
    /// Pods.
    pub table: Arc<Table>,
    /// The gate's numbers.
    pub metrics: Arc<Metrics>,
    /// Recent decisions.
    pub explain: Arc<ExplainRing>,
    /// Readiness and the heartbeat of the data plane.
    pub readiness: Arc<Readiness>,
    /// Safe mode, read by the planner.
    pub safe_mode: Arc<AtomicBool>,
    /// Sets gauges that are only worth computing when asked (index size, memory); called before each scrape.
    pub refresh: Box<dyn Fn(&Metrics) + Send + Sync>,
    /// What a policy would have chosen for a recent request, by id and policy; `Ok(None)` if the request is not known any more,
    /// `Err` with the names of all policies if there is none of this name.
    pub replay: Box<Replay>,
    /// Names of the sources that pods come from.
    pub origins: Box<Origins>,
    /// Adds, drains and takes away pods.
    pub roster: Box<Roster>,
    /// The clock.
    pub now: fn() -> Mono,
    /// Who may change something.
    pub changes_from: Changes,
    /// Names of its own under which browsers are answered.
    pub hosts: Vec<String>,
    /// Version of the program.
    pub version: &'static str,
}

impl std::fmt::Debug for AdminState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdminState").field("version", &self.version).finish_non_exhaustive()
    }
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// `Content-Type`.
    pub content_type: &'static str,
    /// Body.
    pub body: String,
    /// `Allow`, for 405.
    pub allow: Option<&'static str>,
}

impl Answer {
    pub(super) fn text(status: u16, body: impl Into<String>) -> Self {
        let mut body = body.into();
        body.push('\n');
        Self { status, content_type: "text/plain; charset=utf-8", body, allow: None }
    }

    pub(super) const fn json(body: String) -> Self {
        Self { status: 200, content_type: "application/json", body, allow: None }
    }
}

const NOT_FROM_HERE: &str = "changes are not allowed from here; see admin.changes_from";

const INDEX: &str = "tidegate admin\n\
    GET  /dashboard            all of it to look at, in a browser\n\
    GET  /healthz              the event loop answers\n\
    GET  /readyz               ready for traffic\n\
    GET  /metrics              Prometheus text\n\
    GET  /pods                 pods with load, standing and readings; POST adds one, as in pods.list\n\
    POST /pods/<id>/drain      nothing new goes to this pod; /undrain ends it\n\
    DELETE /pods/<id>          takes away a pod that was added here\n\
    GET  /config               the configuration in force, as JSON, without secrets\n\
    GET  /queue                what waits, by model, role and class\n\
    GET  /explain              ids of recent decisions\n\
    GET  /explain/<request id> one decision; with ?policy=<name> what that policy would have chosen\n\
    GET  /safe-mode            state; POST on or off to switch";

/// Answers one request of a client at `peer`. `is_browser` is true if it named an origin: pages of other sites must not
/// switch anything.
pub fn answer(state: &AdminState, peer: IpAddr, method: &str, path: &str, body: &[u8], is_browser: bool) -> Answer {
    let is_read = matches!(method, "GET" | "HEAD");
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    if path == "/safe-mode" && method == "POST" {
        if is_browser || !state.changes_from.allows(peer) {
            return Answer::text(403, NOT_FROM_HERE);
        }
        return switch_safe_mode(state, body);
    }
    if let Some(methods) = roster::methods(path).filter(|_| !(is_read && path == "/pods")) {
        if !methods.split(", ").any(|one| one == method) {
            return Answer { allow: Some(methods), ..Answer::text(405, format!("use {methods}")) };
        }
        if is_browser || !state.changes_from.allows(peer) {
            return Answer::text(403, NOT_FROM_HERE);
        }
        return roster::change(state, method, &decoded(path), body);
    }
    let explained = path.strip_prefix("/explain/");
    let is_known = explained.is_some()
        || matches!(
            path,
            "/" | "/healthz" | "/readyz" | "/metrics" | "/pods" | "/config" | "/queue" | "/explain" | "/safe-mode"
        );
    if is_known && !is_read {
        let allow = if path == "/safe-mode" { "GET, HEAD, POST" } else { "GET, HEAD" };
        return Answer { allow: Some(allow), ..Answer::text(405, format!("use {allow}")) };
    }
    match path {
        "/" => Answer::text(200, INDEX),
        "/healthz" if state.readiness.is_alive((state.now)()) => Answer::text(200, "ok"),
        "/healthz" => Answer::text(503, "the event loop does not answer"),
        "/readyz" => match state.readiness.missing() {
            None => Answer::text(200, "ready"),
            Some(missing) => Answer::text(503, format!("not ready: {missing}")),
        },
        "/metrics" => metrics(state),
        "/pods" => Answer::json(pods(state)),
        "/config" => Answer::json(config(state)),
        "/queue" => Answer::json(queue(state)),
        "/explain" => Answer::json(recent(&state.explain)),
        "/safe-mode" => Answer::json(safe_mode(state)),
        _ => match explained {
            Some(id) => decision(state, &decoded(id), query),
            None => Answer::text(404, "no such page; see /"),
        },
    }
}

/// The configuration in force. Its settings are written as they are: they were redacted when they were read.
fn config(state: &AdminState) -> String {
    let running = state.metrics.running_config.load();
    format!(
        "{{\"generation\":{},\"hash\":\"{:012x}\",\"taken_unix_s\":{},\"last_reload_successful\":{},\"needs_restart\":{},\n\"settings\":{}}}\n",
        running.generation,
        running.hash,
        running.taken_s,
        running.is_last_good,
        serde_json::json!(running.needs_restart),
        if running.json.is_empty() { "null" } else { &running.json },
    )
}

/// What waits now.
fn queue(state: &AdminState) -> String {
    (state.refresh)(&state.metrics);
    let lines = state.metrics.queues.load();
    let rows: Vec<String> = lines
        .iter()
        .map(|line| {
            let mut row = String::from("{\"model\":");
            json::string(&mut row, &line.model);
            row + &format!(
                ",\"role\":\"{}\",\"class\":\"{}\",\"requests\":{},\"body_bytes\":{},\"cost_s\":{:.3},\"oldest_s\":{:.3},\"backlog_s\":{:.3}}}",
                line.role, line.class, line.requests, line.body_bytes, line.cost_s, line.oldest_s, line.backlog_s
            )
        })
        .collect();
    format!("[{}]\n", rows.join(",\n "))
}

/// An id as a browser writes it into a path: `%2F` for a slash. What is no such code stays as it is.
fn decoded(text: &str) -> String {
    let (mut out, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('%') {
        out.push_str(before);
        let code = after.get(..2).and_then(|code| u8::from_str_radix(code, 16).ok()).filter(u8::is_ascii_graphic);
        out.push(code.map_or('%', char::from));
        rest = if code.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    out + rest
}

/// A kept decision, or what the policy of `policy=<name>` would have decided.
fn decision(state: &AdminState, id: &str, query: &str) -> Answer {
    let found = match query.split('&').find_map(|pair| pair.strip_prefix("policy=")) {
        None => Ok(state.explain.json(id)),
        Some(policy) => (state.replay)(id, policy),
    };
    match found {
        Ok(Some(decision)) => Answer::json(decision),
        Ok(None) => Answer::text(404, "no decision kept under this request id"),
        Err(names) => Answer::text(400, format!("no such policy; there are {names}")),
    }
}

fn switch_safe_mode(state: &AdminState, body: &[u8]) -> Answer {
    let is_on = match body.trim_ascii() {
        b"on" | b"true" | b"1" => true,
        b"off" | b"false" | b"0" => false,
        _ => return Answer::text(400, "send `on` or `off` as the body"),
    };
    let was_on = state.safe_mode.swap(is_on, Relaxed);
    if was_on != is_on {
        tracing::warn!(is_on, "safe mode switched by admin");
    }
    state.metrics.safe_mode.set(u64::from(is_on));
    Answer::json(safe_mode(state))
}

fn safe_mode(state: &AdminState) -> String {
    format!("{{\"safe_mode\":{}}}\n", state.safe_mode.load(Relaxed))
}

fn metrics(state: &AdminState) -> Answer {
    state.metrics.safe_mode.set(u64::from(state.safe_mode.load(Relaxed)));
    state.metrics.ready.set(u64::from(state.readiness.missing().is_none()));
    (state.refresh)(&state.metrics);
    let fleet = state.table.fleet();
    let scrape = Scrape { metrics: &state.metrics, fleet: &fleet, now: (state.now)(), version: state.version };
    let mut body = String::with_capacity(64 * 1024);
    prometheus::render(&scrape, &mut body);
    Answer { status: 200, content_type: prometheus::CONTENT_TYPE, body, allow: None }
}

fn recent(ring: &ExplainRing) -> String {
    let mut out = String::from("{\"recent\":[");
    for (position, id) in ring.recent(RECENT_MAX).iter().enumerate() {
        out.push_str(if position == 0 { "" } else { "," });
        json::string(&mut out, id);
    }
    out.push_str("]}\n");
    out
}

fn pods(state: &AdminState) -> String {
    let (fleet, origins, now) = (state.table.fleet(), (state.origins)(), (state.now)());
    let listed: Vec<_> = fleet.pods.iter().map(|pod| pod_json(pod, origins.get(&pod.spec.addr), now)).collect();
    let mut body = serde_json::json!({ "generation": fleet.generation, "pods": listed }).to_string();
    body.push('\n');
    body
}

pub(super) fn pod_json(pod: &Pod, origin: Option<&String>, now: Mono) -> serde_json::Value {
    let (load, facts, reading) = (pod.load.now(), pod.facts.load(), **pod.reading.load());
    let standing = pod.health.lock().standing(now);
    let models = facts.served.as_ref().map(|served| served.iter().map(|model| &*model.name).collect::<Vec<_>>());
    serde_json::json!({
        "id": pod.id.to_string(),
        "authority": &*pod.spec.authority,
        "addr": pod.spec.addr.to_string(),
        "rank": pod.spec.rank,
        "role": role_word(pod.spec.role),
        "source": origin,
        "labels": pod.spec.labels,
        "standing": standing_word(standing),
        "shut": pod.load.shuts.first().map(crate::pods::Shut::as_str),
        "share": if let Standing::Ramp(share) = standing { Some(share) } else { None },
        "ejected_for_ms": if let Standing::Ejected(until) = standing { Some(millis(until.since(now))) } else { None },
        "load": {
            "requests": load.requests,
            "prefilling": load.prefilling,
            "prefill_tokens": load.prefill_tokens.0,
            "context_tokens": load.context_tokens.0,
            "served": load.served,
        },
        "reading": reading.map(|reading| serde_json::json!({
            "age_ms": millis(now.since(reading.taken)),
            "running": reading.running,
            "waiting": reading.waiting,
            "kv_used": reading.kv_used,
        })),
        "facts": {
            "models": models,
            "capacity_tokens": facts.capacity.map(|tokens| tokens.0),
            "block_tokens": facts.block_tokens,
            "version": facts.version,
            "started_at_s": facts.started_at_s,
            "asleep": facts.sleep == Sleep::Asleep,
        },
    })
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::net::Ipv4Addr;

    use super::*;
    use crate::base::PodId;
    use crate::observe::MetricLimits;
    use crate::pods::{PodSpec, Reading, Role};

    pub(in crate::admin) fn state() -> AdminState {
        AdminState {
            table: Arc::default(),
            metrics: Metrics::new(MetricLimits::default()),
            explain: Arc::default(),
            readiness: Arc::default(),
            safe_mode: Arc::default(),
            refresh: Box::new(|metrics| metrics.index_blocks.set(5)),
            replay: Box::new(|id, policy| match policy {
                "jsq" => Ok((id == "r-1").then(|| "{}".to_owned())),
                _ => Err("jsq".to_owned()),
            }),
            origins: Box::new(std::collections::HashMap::new),
            roster: Box::new(|_| Ok(())),
            now: || Mono(2_000_000),
            changes_from: Changes::Loopback,
            hosts: Vec::new(),
            version: "9.9",
        }
    }

    const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn get(state: &AdminState, path: &str) -> (u16, String) {
        let answer = answer(state, LOCAL, "GET", path, b"", false);
        (answer.status, answer.body)
    }

    #[test]
    fn readiness_tells_what_is_missing() {
        let state = state();
        assert_eq!(get(&state, "/readyz"), (503, "not ready: configuration is not loaded yet\n".into()));
        state.readiness.configured();
        state.readiness.discovered([PodId(0)]);
        assert_eq!(get(&state, "/readyz"), (503, "not ready: 1 pods not tried yet\n".into()));
        state.readiness.tried(PodId(0));
        assert_eq!(get(&state, "/readyz").0, 200);
        state.readiness.drain();
        assert_eq!(get(&state, "/readyz"), (503, "not ready: draining\n".into()));
        assert_eq!(get(&state, "/healthz").0, 200);
        state.readiness.beat(Mono(1));
        let stuck = AdminState { now: || Mono(60_000_000), ..state };
        assert_eq!(get(&stuck, "/healthz").0, 503);
    }

    #[test]
    fn safe_mode_is_switched_only_by_those_who_may() {
        let state = state();
        let post =
            |peer: IpAddr, body: &[u8], is_browser| answer(&state, peer, "POST", "/safe-mode", body, is_browser).status;
        assert_eq!(post(LOCAL, b"maybe", false), 400);
        assert_eq!(post(LOCAL, b"on", true), 403);
        assert_eq!(post(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), b"on", false), 403);
        assert!(!state.safe_mode.load(Relaxed));
        assert_eq!(post(LOCAL, b"on\n", false), 200);
        assert_eq!(get(&state, "/safe-mode").1, "{\"safe_mode\":true}\n");
        assert!(get(&state, "/metrics").1.contains("\ntidegate_safe_mode 1\n"));
        assert_eq!(post(LOCAL, b"off", false), 200);
        assert!(!state.safe_mode.load(Relaxed));
    }

    #[test]
    fn decisions_and_unknown_pages() {
        let state = state();
        state.explain.put("r-1".into(), Arc::new("{\"chosen\":\"pod-1\"}".to_owned()));
        assert_eq!(get(&state, "/explain/r-1"), (200, "{\"chosen\":\"pod-1\"}".into()));
        for (path, id) in [("r%2F1%25", "r/1%"), ("%", "%"), ("a%4", "a%4"), ("%0A%zz", "%0A%zz"), ("é%C3", "é%C3")] {
            assert_eq!(decoded(path), id);
        }
        assert_eq!(get(&state, "/explain/r-1?policy=jsq"), (200, "{}".into()));
        assert_eq!(get(&state, "/explain/r-1?policy=none").0, 400);
        assert_eq!(get(&state, "/explain/none?policy=jsq").0, 404);
        assert_eq!(get(&state, "/explain").1, "{\"recent\":[\"r-1\"]}\n");
        for path in ["/explain/none", "/nothing", "/metrics/", "/explain/"] {
            assert_eq!(get(&state, path).0, 404, "{path}");
        }
        let refused = answer(&state, LOCAL, "DELETE", "/metrics", b"", false);
        assert_eq!((refused.status, refused.allow), (405, Some("GET, HEAD")));
        assert!(get(&state, "/").1.contains("/readyz"));
        assert!(get(&state, "/metrics").1.contains("\ntidegate_index_blocks 5\n"), "refreshed at scrape");
    }

    #[test]
    fn pods_are_shown_with_reading_and_age() {
        let state = state();
        let (added, _) = state.table.set(vec![PodSpec {
            addr: "127.0.0.1:8000".parse().unwrap(),
            authority: "pod\"a:8000".into(),
            tls: None,
            rank: Some(1),
            role: Role::Decode,
            labels: std::collections::BTreeMap::new(),
        }]);
        added[0].reading.store(Arc::new(Some(Reading {
            taken: Mono(1_500_000),
            running: Some(3),
            ..Reading::default()
        })));
        let (status, body) = get(&state, "/pods");
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        let pod = &value["pods"][0];
        assert_eq!(status, 200);
        assert_eq!(
            (&pod["id"], &pod["authority"], &pod["role"]),
            (&"pod-0".into(), &"pod\"a:8000".into(), &"decode".into())
        );
        assert_eq!((&pod["reading"]["age_ms"], &pod["reading"]["running"]), (&500.into(), &3.into()));
        assert!(pod["reading"]["waiting"].is_null() && pod["facts"]["models"].is_null(), "unknown is null, not zero");
    }
}
