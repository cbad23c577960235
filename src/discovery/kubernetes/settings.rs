//! Which pods of a Kubernetes cluster belong to the fleet: the section `pods.kubernetes`.
use std::path::PathBuf;

use crate::pods::Role;

/// Most sources.
const SOURCES_MAX: usize = 64;

/// Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Where pods are looked for. Empty means not in Kubernetes.
    pub sources: Vec<Source>,
    /// File that says how to reach the API server; unset means the service account of the pod that the gate runs in.
    pub kubeconfig: Option<PathBuf>,
    /// Context of that file; unset means its current one.
    pub context: Option<String>,
}

/// One set of pods: exactly one of `service`, `selector` and `inference_pool`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Source {
    /// Name of a Service: its EndpointSlices are watched.
    pub service: Option<String>,
    /// Label selector, as `app=vllm,tier in (gpu)`: the pods themselves are watched. Their labels and annotations can say more, see
    /// the README.
    pub selector: Option<String>,
    /// Name of an InferencePool (`inference.networking.k8s.io/v1`): its selector and ports are used.
    pub inference_pool: Option<String>,
    /// Namespaces; empty means the one that the gate runs in, or that the context names.
    pub namespaces: Vec<String>,
    /// Ports, each of them a server of its own; empty means what the pod, the Service or the InferencePool says.
    pub ports: Vec<u16>,
    /// What they may be asked to do, unless a label says so.
    pub role: Role,
    /// Names of labels that rules may use (`routing`, `disaggregation.pair_labels`), beside those that begin with `tidegate.io/`. A pod
    /// whose value changes is a new one to the gate.
    pub labels: Vec<String>,
}

/// What a source names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    /// A Service.
    Service(&'a str),
    /// Pods by their labels.
    Selector(&'a str),
    /// An InferencePool.
    Pool(&'a str),
}

impl Source {
    /// What is watched; `None` if it is not said, or said twice.
    pub fn named(&self) -> Option<Named<'_>> {
        match (&self.service, &self.selector, &self.inference_pool) {
            (Some(name), None, None) => Some(Named::Service(name)),
            (None, Some(selector), None) => Some(Named::Selector(selector)),
            (None, None, Some(name)) => Some(Named::Pool(name)),
            _ => None,
        }
    }

    /// For logs and metrics: `service/vllm`.
    pub fn shown(&self) -> String {
        match self.named() {
            Some(Named::Service(name)) => format!("service/{name}"),
            Some(Named::Selector(selector)) => format!("selector/{selector}"),
            Some(Named::Pool(name)) => format!("inference_pool/{name}"),
            None => String::new(),
        }
    }
}

impl Settings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut tell = |field: String, hint: &str| problems.push((field, hint.to_owned()));
        if self.sources.len() > SOURCES_MAX {
            tell("sources".into(), "64 at most; a selector can match the pods of several models");
        }
        if self.context.is_some() && self.kubeconfig.is_none() {
            tell("context".into(), "is of a kubeconfig; write `kubeconfig` too, or remove it");
        }
        for (position, source) in self.sources.iter().enumerate() {
            let at = |field: &str| format!("sources[{position}]{field}");
            match source.named() {
                None => tell(at(""), "write exactly one of `service`, `selector` and `inference_pool`"),
                Some(Named::Service(name) | Named::Pool(name)) if !is_name(name) => {
                    let field = if source.service.is_some() { ".service" } else { ".inference_pool" };
                    tell(at(field), "is no name of an object: lower-case letters, digits, `-` and `.`");
                }
                Some(Named::Selector("")) => {
                    tell(at(".selector"), "matches every pod of the namespace; write labels, as `app=vllm`");
                }
                Some(_) => {}
            }
            if let Some(bad) = source.namespaces.iter().position(|name| !is_name(name)) {
                tell(at(&format!(".namespaces[{bad}]")), "is no namespace: lower-case letters, digits and `-`");
            }
            if let Some(bad) = source.ports.iter().position(|port| *port == 0) {
                tell(at(&format!(".ports[{bad}]")), "write a number from 1 to 65535");
            }
            if self.sources.iter().take(position).any(|other| other == source) {
                tell(at(""), "is there already; remove one of the two");
            }
        }
        problems
    }
}

/// A DNS-1123 name, as the API server wants it.
fn is_name(name: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [name.bytes().next(), name.bytes().last()];
    name.len() <= 253
        && ends.iter().all(|end| end.is_some_and(is_letter))
        && name.bytes().all(|byte| is_letter(byte) || matches!(byte, b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_told_with_their_place() {
        let service = |name: &str| Source { service: Some(name.to_owned()), ..Source::default() };
        let good = Settings { sources: vec![service("vllm"), service("vllm.b-2")], ..Settings::default() };
        assert_eq!(good.problems(), []);
        let bad = Settings {
            sources: vec![
                Source::default(),
                Source { selector: Some("a=b".into()), ..service("vllm") },
                Source { ports: vec![8000, 0], namespaces: vec!["a".into(), "B".into()], ..service("-x") },
                Source { selector: Some(String::new()), ..Source::default() },
                service("twice"),
                service("twice"),
            ],
            kubeconfig: None,
            context: Some("here".into()),
        };
        let places: Vec<String> = bad.problems().into_iter().map(|(place, _)| place).collect();
        assert_eq!(
            places,
            [
                "context",
                "sources[0]",
                "sources[1]",
                "sources[2].service",
                "sources[2].namespaces[1]",
                "sources[2].ports[1]",
                "sources[3].selector",
                "sources[5]"
            ]
        );
    }
}
