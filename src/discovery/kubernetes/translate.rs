//! What objects of the API mean for the fleet. Pure.
//!
//! Labels and annotations of our own begin with `tidegate.io/`: `role` (`prefill`, `decode`, `both`), `ports` (`8000` or
//! `8000,8001`: each a server of its own), and any other, which becomes a label without the prefix (`variant`, `kv-port`). A label goes
//! before an annotation. Of llm-d's conventions `llm-d.ai/role` and `llm-d.ai/active-ports` are understood.
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::settings::Source;
use crate::discovery::found::{Found, State};
use crate::pods::{PodSpec, Role};

const OWN: &str = "tidegate.io/";
const ROLE: &str = "role";
const PORTS: &str = "ports";
const LLMD_ROLE: &str = "llm-d.ai/role";
const LLMD_PORTS: &str = "llm-d.ai/active-ports";
/// Name that a port should have to be taken among several.
const PORT_NAME: &str = "http";
/// vLLM's default.
const PORT_DEFAULT: u16 = 8_000;
/// Most ports of one pod.
const PORTS_MAX: usize = 64;
/// Longest value of a label that is taken over \[bytes\].
const VALUE_MAX: usize = 256;

/// What an InferencePool says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pool {
    /// Label selector of its pods.
    pub(super) selector: String,
    /// Ports of each.
    pub(super) ports: Vec<u16>,
}

/// Pods (servers) of a Kubernetes pod; none if it has no address yet, has ended, or does nothing that the gate asks for.
pub(super) fn of_pod(pod: &Pod, source: &Source, pool: Option<&Pool>) -> Vec<Found> {
    let Some(status) = &pod.status else { return Vec::new() };
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    let addr = status.pod_ip.as_deref().and_then(|ip| ip.parse::<IpAddr>().ok());
    let (Some(ip), false) = (addr, has_ended) else { return Vec::new() };
    let Some(role) = role_of(&pod.metadata, source.role) else { return Vec::new() };
    let is_ready = status.conditions.iter().flatten().any(|one| one.type_ == "Ready" && one.status == "True");
    let state = match (&pod.metadata.deletion_timestamp, is_ready) {
        (Some(_), _) => State::Terminating,
        (None, true) => State::Ready,
        (None, false) => State::NotReady,
    };
    let name = (pod.metadata.namespace.as_deref(), pod.metadata.name.as_deref());
    let labels = labels_of(&pod.metadata, source, name);
    let ports = ports_of(pod, source, pool);
    ports.into_iter().map(|port| found(SocketAddr::new(ip, port), role, &labels, state)).collect()
}

/// Pods of an EndpointSlice.
pub(super) fn of_slice(slice: &EndpointSlice, source: &Source) -> Vec<Found> {
    let Some(role) = role_of(&slice.metadata, source.role) else { return Vec::new() };
    let said = slice_port(slice.ports.as_deref().unwrap_or_default());
    let ports: Vec<u16> = if source.ports.is_empty() { said.into_iter().collect() } else { source.ports.clone() };
    let mut all = Vec::new();
    for endpoint in &slice.endpoints {
        let target = endpoint.target_ref.as_ref();
        let namespace = target.and_then(|target| target.namespace.as_deref()).or(slice.metadata.namespace.as_deref());
        let labels = labels_of(&slice.metadata, source, (namespace, target.and_then(|target| target.name.as_deref())));
        // Its addresses are of one pod and mean the same; the first is as good as any.
        let Some(ip) = endpoint.addresses.first().and_then(|addr| addr.parse::<IpAddr>().ok()) else { continue };
        let state = state_of(endpoint);
        all.extend(ports.iter().map(|port| found(SocketAddr::new(ip, *port), role, &labels, state)));
    }
    all
}

/// What an InferencePool says, from its `spec`.
pub(super) fn of_pool(spec: &Value) -> Option<Pool> {
    let labels = spec.get("selector")?.get("matchLabels")?.as_object()?;
    let terms: Vec<String> =
        labels.iter().filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?))).collect();
    let numbers = spec.get("targetPorts").and_then(Value::as_array).into_iter().flatten();
    let ports = numbers.filter_map(|port| port.get("number")?.as_u64()?.try_into().ok()).take(PORTS_MAX).collect();
    (!terms.is_empty()).then(|| Pool { selector: terms.join(","), ports })
}

fn found(addr: SocketAddr, role: Role, labels: &BTreeMap<String, String>, state: State) -> Found {
    let authority = addr.to_string().into();
    Found { spec: PodSpec { addr, authority, tls: None, rank: None, role, labels: labels.clone() }, state }
}

fn state_of(endpoint: &Endpoint) -> State {
    let conditions = endpoint.conditions.as_ref();
    match conditions.map_or((None, None), |conditions| (conditions.terminating, conditions.ready)) {
        (Some(true), _) => State::Terminating,
        // Not said means ready, by the API's own words.
        (_, None | Some(true)) => State::Ready,
        _ => State::NotReady,
    }
}

/// The port of a Service that is meant: the one called `http`, or the first.
fn slice_port(ports: &[EndpointPort]) -> Option<u16> {
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
    named.or_else(|| ports.first()).and_then(|port| port.port?.try_into().ok())
}

/// Own label or annotation.
fn own<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    let key = format!("{OWN}{name}");
    said(metadata, &key)
}

fn said<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let of = |map: &'a Option<BTreeMap<String, String>>| map.as_ref().and_then(|map| map.get(key));
    of(&metadata.labels).or_else(|| of(&metadata.annotations)).map(String::as_str)
}

/// The role that its labels give, or else the source's; `None` for one that does nothing the gate asks for.
fn role_of(metadata: &ObjectMeta, otherwise: Role) -> Option<Role> {
    let Some(word) = own(metadata, ROLE).or_else(|| said(metadata, LLMD_ROLE)) else { return Some(otherwise) };
    match word {
        "prefill" | "encode-prefill" => Some(Role::Prefill),
        "decode" | "encode-decode" => Some(Role::Decode),
        "both" | "prefill-decode" | "encode-prefill-decode" => Some(Role::Both),
        "encode" => None,
        _ => Some(otherwise),
    }
}

fn labels_of(metadata: &ObjectMeta, source: &Source, name: (Option<&str>, Option<&str>)) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for map in [&metadata.annotations, &metadata.labels].into_iter().flatten() {
        for (key, value) in map.iter().filter(|(_, value)| value.len() <= VALUE_MAX) {
            match key.strip_prefix(OWN) {
                Some(ROLE | PORTS) => {}
                Some(name) => drop(labels.insert(name.to_owned(), value.clone())),
                None if source.labels.contains(key) => drop(labels.insert(key.clone(), value.clone())),
                None => {}
            }
        }
    }
    if let (namespace, Some(name)) = name {
        labels.insert("pod".to_owned(), format!("{}/{name}", namespace.unwrap_or_default()));
    }
    labels
}

fn ports_of(pod: &Pod, source: &Source, pool: Option<&Pool>) -> Vec<u16> {
    let mut ports = if !source.ports.is_empty() {
        source.ports.clone()
    } else if let Some(listed) = own(&pod.metadata, PORTS).map(listed).filter(|ports| !ports.is_empty()) {
        listed
    } else if let Some(pool) = pool.filter(|pool| !pool.ports.is_empty()) {
        pool.ports.clone()
    } else {
        vec![container_port(pod).unwrap_or(PORT_DEFAULT)]
    };
    if let Some(active) = said(&pod.metadata, LLMD_PORTS).map(listed).filter(|ports| !ports.is_empty()) {
        ports.retain(|port| active.contains(port));
    }
    ports
}

/// The port called `http`, or the first that a container tells.
fn container_port(pod: &Pod) -> Option<u16> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let ports: Vec<_> = containers.flat_map(|container| container.ports.iter().flatten()).collect();
    let named = ports.iter().find(|port| port.name.as_deref() == Some(PORT_NAME));
    named.or_else(|| ports.first()).and_then(|port| port.container_port.try_into().ok())
}

fn listed(text: &str) -> Vec<u16> {
    let ports = text.split(',').filter_map(|port| port.trim().parse().ok());
    ports.filter(|port| *port > 0).take(PORTS_MAX).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;

    use super::*;

    fn source() -> Source {
        Source { selector: Some("app=vllm".into()), ..Source::default() }
    }

    #[allow(clippy::needless_pass_by_value, reason = "a test's words")]
    /// A ready pod with these labels and annotations.
    fn pod(labels: Value, annotations: Value) -> Value {
        json!({
            "metadata": { "name": "m-0", "namespace": "ai", "labels": labels, "annotations": annotations },
            "spec": { "containers": [
                { "name": "side", "ports": [{ "name": "metrics", "containerPort": 9000 }] },
                { "name": "vllm", "ports": [{ "name": "http", "containerPort": 8200 }] },
            ] },
            "status": {
                "phase": "Running",
                "podIP": "10.1.0.7",
                "conditions": [{ "type": "Ready", "status": "True" }, { "type": "Initialized", "status": "True" }],
            },
        })
    }

    /// Address, role, state, and the labels apart from the pod's name.
    fn shown(found: &[Found]) -> Vec<String> {
        let labels = |found: &Found| {
            let own = found.spec.labels.iter().filter(|(key, _)| *key != "pod");
            own.fold(String::new(), |line, (key, value)| line + " " + key + "=" + value)
        };
        let line = |one: &Found| format!("{} {:?} {:?}{}", one.spec.addr, one.spec.role, one.state, labels(one));
        found.iter().map(line).collect()
    }

    fn check(pod: &Value, source: &Source, expected: &[&str]) {
        let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
        assert_eq!(shown(&of_pod(&pod, source, None)), expected);
    }

    #[test]
    fn a_pod_says_where_it_listens_and_what_it_does() {
        let plain = pod(json!({}), json!({}));
        check(&plain, &source(), &["10.1.0.7:8200 Both Ready"]);
        check(&plain, &Source { ports: vec![1, 2], ..source() }, &["10.1.0.7:1 Both Ready", "10.1.0.7:2 Both Ready"]);
        let labels = json!({ "llm-d.ai/role": "prefill", "app": "vllm", "rack": "r1", "tidegate.io/variant": "h100" });
        let annotations =
            json!({ "tidegate.io/ports": "8000, 8001,x", "tidegate.io/variant": "a100", "tidegate.io/kv-port": "9" });
        let source = Source { labels: vec!["rack".into()], ..source() };
        check(
            &pod(labels, annotations),
            &source,
            &[
                "10.1.0.7:8000 Prefill Ready kv-port=9 rack=r1 variant=h100",
                "10.1.0.7:8001 Prefill Ready kv-port=9 rack=r1 variant=h100",
            ],
        );
        let both = json!({ "llm-d.ai/role": "prefill", "tidegate.io/role": "decode" });
        let active = json!({ "tidegate.io/ports": "8000,8001", "llm-d.ai/active-ports": "8001" });
        check(&pod(both, active), &source, &["10.1.0.7:8001 Decode Ready"]);
        check(&pod(json!({ "llm-d.ai/role": "encode" }), json!({})), &source, &[]);
    }

    #[test]
    fn a_pod_that_is_not_ready_or_goes_is_told_as_such() {
        let mut one = pod(json!({}), json!({}));
        let change = |one: &mut Value, path: &str, value: Value| *one.pointer_mut(path).unwrap() = value;
        change(&mut one, "/status/conditions/0/status", json!("False"));
        check(&one, &source(), &["10.1.0.7:8200 Both NotReady"]);
        change(&mut one, "/status/conditions", json!([]));
        check(&one, &source(), &["10.1.0.7:8200 Both NotReady"]);
        let mut going = pod(json!({}), json!({}));
        going.pointer_mut("/metadata").unwrap()["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        check(&going, &source(), &["10.1.0.7:8200 Both Terminating"]);
        change(&mut one, "/status/phase", json!("Succeeded"));
        check(&one, &source(), &[]);
        let mut pending = pod(json!({}), json!({}));
        change(&mut pending, "/status", json!({ "phase": "Pending" }));
        check(&pending, &source(), &[]);
    }

    #[test]
    fn a_slice_has_an_endpoint_for_each_pod() {
        let slice: EndpointSlice = serde_json::from_value(json!({
            "metadata": { "name": "vllm-x", "namespace": "ai", "labels": { "tidegate.io/role": "decode" } },
            "addressType": "IPv4",
            "ports": [{ "name": "metrics", "port": 9000 }, { "name": "http", "port": 8000 }],
            "endpoints": [
                { "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": "m-0" } },
                { "addresses": ["10.0.0.2"], "conditions": { "ready": false, "serving": false, "terminating": false } },
                { "addresses": ["10.0.0.3"], "conditions": { "ready": false, "serving": true, "terminating": true } },
                { "addresses": ["vllm.example"] },
            ],
        }))
        .unwrap();
        let source = Source { service: Some("vllm".into()), ..Source::default() };
        let found = of_slice(&slice, &source);
        let expected =
            ["10.0.0.1:8000 Decode Ready", "10.0.0.2:8000 Decode NotReady", "10.0.0.3:8000 Decode Terminating"];
        assert_eq!(shown(&found), expected);
        assert_eq!(found.first().unwrap().spec.labels["pod"], "ai/m-0");
    }

    #[test]
    fn an_inference_pool_says_which_pods_and_ports() {
        let spec = json!({
            "selector": { "matchLabels": { "app": "vllm", "tier": "gpu" } },
            "targetPorts": [{ "number": 8000 }, { "number": 8001 }, { "number": 70000 }],
        });
        let pool = of_pool(&spec).unwrap();
        assert_eq!((pool.selector.as_str(), &*pool.ports), ("app=vllm,tier=gpu", &[8000, 8001][..]));
        let one: Pod = serde_json::from_value(pod(json!({}), json!({}))).unwrap();
        assert_eq!(of_pod(&one, &source(), Some(&pool)).len(), 2);
        assert_eq!(
            of_pool(&json!({ "selector": { "matchLabels": {} } })),
            None,
            "all pods of a namespace are not meant"
        );
    }
}
