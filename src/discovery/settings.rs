//! Where pods are found, and how they are treated: the section `pods` of the configuration.
//!
//! Problems are told all at once, each with its place below the section, and never quote a credential. An empty list is no
//! problem: pods may come by flags, or later.
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::kubernetes;
use super::source::{BadPod, PodSource};
use crate::pods::{Role, health};

/// Pods.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The pods, or names that resolve to several. Flags (`--pod`, `--prefill`, `--decode`) replace the list.
    pub list: Vec<PodEntry>,
    /// Pods of a Kubernetes cluster, beside those of the list.
    pub kubernetes: kubernetes::Settings,
    /// Time between two look-ups of host names, in seconds.
    pub resolve_interval_s: f64,
    /// Longest time a look-up may take, in seconds. The addresses last known stay in use meanwhile and after a failure.
    pub resolve_timeout_s: f64,
    /// File with the key the pods want (`--api-key` of vLLM). Read again when it changes. If set, it replaces the
    /// `Authorization` of clients; else the client's is passed on.
    pub credential_file: Option<PathBuf>,
    /// When a pod is taken out, and how it comes back.
    pub health: health::Settings,
}

/// One entry of the list.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PodEntry {
    /// `http://host:port`. Each address the host resolves to is a pod.
    pub url: String,
    /// What it may be asked to do.
    #[serde(default)]
    pub role: Role,
    /// Labels for rules and for people (rack, hardware, variant).
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            kubernetes: kubernetes::Settings::default(),
            resolve_interval_s: 10.0,
            resolve_timeout_s: 5.0,
            credential_file: None,
            health: health::Settings::default(),
        }
    }
}

impl Settings {
    /// The list as sources; all entries that cannot be one, by their position.
    pub fn sources(&self) -> Result<Vec<PodSource>, Vec<(usize, BadPod)>> {
        let mut bad = Vec::new();
        let mut sources = Vec::with_capacity(self.list.len());
        for (position, entry) in self.list.iter().enumerate() {
            match PodSource::parse(&entry.url, entry.role, entry.labels.clone()) {
                Ok(source) => sources.push(source),
                Err(problem) => bad.push((position, problem)),
            }
        }
        if bad.is_empty() { Ok(sources) } else { Err(bad) }
    }

    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems: Vec<(String, String)> = self
            .sources()
            .err()
            .into_iter()
            .flatten()
            .map(|(position, bad)| (format!("list[{position}].url"), bad.to_string()))
            .collect();
        let times = [("resolve_interval_s", self.resolve_interval_s), ("resolve_timeout_s", self.resolve_timeout_s)];
        for (field, seconds) in times {
            if !(0.1..=86_400.0).contains(&seconds) {
                problems.push((field.to_owned(), "must be between 0.1 and 86400 seconds".to_owned()));
            }
        }
        let cluster = self.kubernetes.problems().into_iter();
        problems.extend(cluster.map(|(field, problem)| (format!("kubernetes.{field}"), problem)));
        let health = self.health.problems().into_iter();
        problems.extend(health.map(|(field, problem)| (format!("health.{field}"), problem)));
        problems
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_told_with_its_place() {
        let entry = |url: &str| PodEntry { url: url.to_owned(), ..PodEntry::default() };
        let mut settings = Settings { list: vec![entry("http://a:1"), entry("http://b:1")], ..Settings::default() };
        assert_eq!(settings.problems(), []);
        assert_eq!(settings.sources().map(|sources| sources.len()), Ok(2));
        settings.list.push(entry("https://c"));
        settings.resolve_interval_s = 0.0;
        settings.health.ramp_completions = 0;
        let places: Vec<String> = settings.problems().into_iter().map(|problem| problem.0).collect();
        assert_eq!(places, ["list[2].url", "resolve_interval_s", "health.ramp_completions"]);
    }
}
