//! What is in `k8s/`: every overlay builds, every object is what its kind allows, nothing more, and names what is there.
//!
//! Objects are read into the types of the Kubernetes API; a field that the type does not have is found by writing the object again and
//! comparing. Kinds of others (PodMonitor) are held to the fields listed here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tidegate::config::check;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s")
}

/// All YAML files below a folder.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The documents of a YAML text.
fn documents(text: &str) -> Vec<Value> {
    let parts =
        text.split("\n---\n").filter(|part| part.lines().any(|line| !line.is_empty() && !line.starts_with('#')));
    parts.map(|part| serde_yaml::from_str(part).unwrap_or_else(|error| panic!("{error}\n{part}"))).collect()
}

/// Paths of `written` that are not in `kept`: what the type does not know.
fn lost(written: &Value, kept: &Value, at: &str) -> Vec<String> {
    match (written, kept) {
        (Value::Object(written), Value::Object(kept)) => {
            let each = written.iter().flat_map(|(key, value)| {
                let at = format!("{at}.{key}");
                kept.get(key).map_or_else(|| vec![at.clone()], |kept| lost(value, kept, &at))
            });
            each.collect()
        }
        (Value::Array(written), Value::Array(kept)) => {
            let each = written.iter().zip(kept).enumerate();
            each.flat_map(|(position, (value, kept))| lost(value, kept, &format!("{at}[{position}]"))).collect()
        }
        _ => Vec::new(),
    }
}

fn strict<T: DeserializeOwned + Serialize>(object: &Value) -> Result<(), String> {
    let typed: T = serde_json::from_value(object.clone()).map_err(|error| error.to_string())?;
    let lost = lost(object, &serde_json::to_value(typed).unwrap(), "");
    if lost.is_empty() { Ok(()) } else { Err(format!("the kind has no {}", lost.join(", "))) }
}

/// Fields of a PodMonitor (`monitoring.coreos.com/v1`) that are used here, and may be.
fn pod_monitor(object: &Value) -> Result<(), String> {
    let allowed =
        BTreeSet::from(["selector", "podMetricsEndpoints", "namespaceSelector", "jobLabel", "podTargetLabels"]);
    let of_endpoint = BTreeSet::from(["port", "path", "interval", "scheme", "scrapeTimeout", "honorLabels"]);
    let keys = |value: &Value| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    let spec = keys(&object["spec"]).into_iter().find(|key| !allowed.contains(key.as_str()));
    let endpoints = object["spec"]["podMetricsEndpoints"].as_array().unwrap();
    let endpoint = endpoints.iter().flat_map(keys).find(|key| !of_endpoint.contains(key.as_str()));
    spec.or(endpoint).map_or(Ok(()), |key| Err(format!("a PodMonitor has no {key}")))
}

/// Whether an object is what its kind allows.
fn judged(object: &Value) -> Result<(), String> {
    match (object["apiVersion"].as_str().unwrap_or_default(), object["kind"].as_str().unwrap_or_default()) {
        ("apps/v1", "Deployment") => strict::<Deployment>(object),
        ("v1", "Service") => strict::<Service>(object),
        ("v1", "ServiceAccount") => strict::<ServiceAccount>(object),
        ("v1", "ConfigMap") => strict::<ConfigMap>(object),
        ("v1", "Namespace") => strict::<Namespace>(object),
        ("rbac.authorization.k8s.io/v1", "Role") => strict::<Role>(object),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strict::<RoleBinding>(object),
        ("policy/v1", "PodDisruptionBudget") => strict::<PodDisruptionBudget>(object),
        ("networking.k8s.io/v1", "NetworkPolicy") => strict::<NetworkPolicy>(object),
        ("autoscaling/v2", "HorizontalPodAutoscaler") => strict::<HorizontalPodAutoscaler>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => pod_monitor(object),
        ("kustomize.config.k8s.io/v1beta1", "Kustomization") | ("kustomize.config.k8s.io/v1alpha1", "Component") => {
            Ok(())
        }
        other => Err(format!("{other:?} is not known here")),
    }
}

#[test]
fn every_object_is_what_its_kind_allows() {
    let mut seen = 0;
    for path in files(&folder()).iter().filter(|path| path.file_name().unwrap() != "gate.yaml") {
        for object in documents(&std::fs::read_to_string(path).unwrap()) {
            judged(&object).unwrap_or_else(|problem| panic!("{}: {problem}", path.display()));
            seen += 1;
        }
    }
    assert!(seen > 15, "{seen} objects");
    let typo = serde_json::json!({ "apiVersion": "v1", "kind": "Service", "spec": { "ports": [{ "port": 1, "targetport": 2 }] } });
    assert_eq!(judged(&typo).unwrap_err(), "the kind has no .spec.ports[0].targetport");
}

#[test]
fn every_configuration_is_good() {
    let gates = files(&folder()).into_iter().filter(|path| path.file_name().unwrap() == "gate.yaml");
    let checked = gates.map(|path| {
        let problems = check(&std::fs::read_to_string(&path).unwrap());
        assert!(problems.is_empty(), "{}: {problems:?}", path.display());
    });
    assert_eq!(checked.count(), 3);
}

/// Objects of a kind, by name.
fn of_kind<'a>(objects: &'a [Value], kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let all = objects.iter().filter(move |object| object["kind"] == kind);
    all.map(|object| (object["metadata"]["name"].as_str().unwrap(), object))
}

fn selects(selector: &Value, labels: &Value) -> bool {
    let matches = selector["matchLabels"].as_object().into_iter().flatten();
    matches.into_iter().all(|(key, value)| labels[key] == *value)
}

/// What names something else names what is there.
fn is_coherent(objects: &[Value]) {
    let deployments: Vec<(&str, &Value)> = of_kind(objects, "Deployment").collect();
    let templates: Vec<&Value> = deployments.iter().map(|(_, one)| &one["spec"]["template"]).collect();
    for (name, deployment) in &deployments {
        let spec = &deployment["spec"];
        assert!(selects(&spec["selector"], &spec["template"]["metadata"]["labels"]), "{name} selects its pods");
        for volume in spec["template"]["spec"]["volumes"].as_array().into_iter().flatten() {
            if let Some(wanted) = volume["configMap"]["name"].as_str() {
                assert!(of_kind(objects, "ConfigMap").any(|(name, _)| name == wanted), "{name}: config map {wanted}");
            }
        }
        // Streams have their time, or the pod is killed before they end.
        let grace = spec["template"]["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap_or(30);
        for container in spec["template"]["spec"]["containers"].as_array().unwrap() {
            let pause = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().unwrap_or(0);
            let args: Vec<&str> =
                container["args"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let ends = args.iter().find_map(|arg| arg.strip_prefix("--shutdown-timeout="));
            let needs = if args.first() == Some(&"serve") { 305 } else { ends.map_or(0, |ends| ends.parse().unwrap()) };
            assert!(grace >= needs + pause, "{name}: {grace} s of grace for {needs} s of streams and {pause} s before");
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["capabilities"]["drop"][0], "ALL", "{name}");
        }
    }
    for (name, budget) in of_kind(objects, "PodDisruptionBudget") {
        let selector = &budget["spec"]["selector"];
        assert!(templates.iter().any(|pod| selects(selector, &pod["metadata"]["labels"])), "{name} is of some pods");
    }
    for (name, scaler) in of_kind(objects, "HorizontalPodAutoscaler") {
        let target = &scaler["spec"]["scaleTargetRef"]["name"];
        assert!(deployments.iter().any(|(deployment, _)| target == deployment), "{name} scales {target}");
    }
    for (name, role) in of_kind(objects, "Role") {
        let verbs = role["rules"].as_array().unwrap().iter().flat_map(|rule| rule["verbs"].as_array().unwrap());
        let all: BTreeSet<&str> = verbs.map(|verb| verb.as_str().unwrap()).collect();
        assert_eq!(all, BTreeSet::from(["get", "list", "watch"]), "{name}");
    }
    let (_, service) = of_kind(objects, "Service").next().unwrap();
    let selector = service["spec"]["selector"].as_object().unwrap();
    let is_behind = |pod: &&Value| selector.iter().all(|(key, value)| pod["metadata"]["labels"][key] == *value);
    let gate = templates.iter().copied().find(|pod| is_behind(pod)).expect("the service has pods");
    let ports = gate["spec"]["containers"][0]["ports"].as_array().unwrap();
    assert!(ports.iter().any(|port| port["name"] == service["spec"]["ports"][0]["targetPort"]));
}

#[test]
fn every_overlay_builds_and_names_what_is_there() {
    let has_kubectl =
        Command::new("kubectl").args(["version", "--client"]).output().is_ok_and(|out| out.status.success());
    if !has_kubectl {
        writeln!(std::io::stderr(), "SKIPPED: overlays are not built, as there is no kubectl here").unwrap();
        return;
    }
    for overlay in std::fs::read_dir(folder().join("overlays")).unwrap() {
        let path = overlay.unwrap().path();
        let built = Command::new("kubectl").arg("kustomize").arg(&path).output().unwrap();
        assert!(built.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&built.stderr));
        let objects = documents(&String::from_utf8(built.stdout).unwrap());
        for object in &objects {
            judged(object).unwrap();
        }
        is_coherent(&objects);
    }
}
