//! Where pods are found, and how they are treated: the section `pods` of the configuration.
//!
//! Problems are told all at once, each with its place below the section, and never quote a credential. An empty list is no
//! problem: pods may come by flags, or later.
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::kubernetes;
use super::source::{BadPod, PodSource};
use crate::pods::{Role, TlsSettings, health, weight};
use crate::tls::is_server_name;

/// Pods.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// The pods, or names that resolve to several. Flags (`--pod`, `--prefill`, `--decode`) replace the list.
    pub list: Vec<PodEntry>,
    /// Files with further pods: a list of entries as in `list`, in YAML or JSON. Read again when they change; one that is not good or
    /// not there changes nothing.
    pub files: Vec<PathBuf>,
    /// Pods of a Kubernetes cluster, beside those of the list.
    pub kubernetes: kubernetes::Settings,
    /// File where the gate keeps which pods were added and drained by way of the admin listener, through restarts; unset means that a
    /// restart forgets them.
    pub state_file: Option<PathBuf>,
    /// Time between two look-ups of host names, in seconds.
    pub resolve_interval_s: f64,
    /// Longest time a look-up may take, in seconds. The addresses last known stay in use meanwhile and after a failure.
    pub resolve_timeout_s: f64,
    /// File with the key the pods want (`--api-key` of vLLM). Read again when it changes. If set, it replaces the
    /// `Authorization` of clients; else the client's is passed on.
    pub credential_file: Option<PathBuf>,
    /// TLS with pods that are written as `https://`.
    pub tls: TlsSettings,
    /// When a pod is taken out, and how it comes back.
    pub health: health::Settings,
}

/// One entry of the list.
#[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PodEntry {
    /// `http://host:port` or `https://host:port`. Each address the host resolves to is a pod.
    pub url: String,
    /// What it may be asked to do.
    #[serde(default)]
    pub role: Role,
    /// Labels for rules and for people (rack, hardware, variant). `weight`, above 0 and up to 1, is the share of a fair load that the pod
    /// gets at most.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// In place of `pods.tls` for this entry.
    #[serde(default)]
    pub tls: Option<TlsSettings>,
}

impl PodEntry {
    /// The entry as a source, with this unless it has TLS settings of its own.
    pub(super) fn source(&self, tls: &Arc<TlsSettings>) -> Result<PodSource, BadPod> {
        let source = PodSource::parse(&self.url, self.role, self.labels.clone())?;
        let own = self.tls.clone().map(Arc::new);
        Ok(source.with_tls(own.as_ref().unwrap_or(tls)))
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            list: Vec::new(),
            files: Vec::new(),
            state_file: None,
            kubernetes: kubernetes::Settings::default(),
            resolve_interval_s: 10.0,
            resolve_timeout_s: 5.0,
            credential_file: None,
            tls: TlsSettings::default(),
            health: health::Settings::default(),
        }
    }
}

impl Settings {
    /// The list as sources; all entries that cannot be one, by their position.
    pub fn sources(&self) -> Result<Vec<PodSource>, Vec<(usize, BadPod)>> {
        // One for all that have the same: what was read for them is shared.
        sources_of(&self.list, &Arc::new(self.tls.clone()))
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
        let bad = self.list.iter().enumerate().filter(|(_, entry)| weight(&entry.labels).is_none());
        let hint = "is the share of a fair load: write a number above 0 and up to 1, such as \"0.25\"";
        problems.extend(bad.map(|(position, _)| (format!("list[{position}].labels.weight"), hint.to_owned())));
        let own = self.list.iter().enumerate().filter_map(|(position, entry)| Some((position, entry.tls.as_ref()?)));
        let own = own.map(|(position, tls)| (format!("list[{position}].tls"), tls));
        for (place, tls) in own.chain([("tls".to_owned(), &self.tls)]) {
            problems.extend(tls_problems(tls).into_iter().map(|(field, hint)| (format!("{place}.{field}"), hint)));
        }
        let health = self.health.problems().into_iter();
        problems.extend(health.map(|(field, problem)| (format!("health.{field}"), problem)));
        problems
    }
}

/// Entries as sources, with this for those without TLS settings of their own; all that cannot be one, by their position.
pub(super) fn sources_of(entries: &[PodEntry], tls: &Arc<TlsSettings>) -> Result<Vec<PodSource>, Vec<(usize, BadPod)>> {
    let mut bad = Vec::new();
    let mut sources = Vec::with_capacity(entries.len());
    for (position, entry) in entries.iter().enumerate() {
        match entry.source(tls) {
            Ok(source) => sources.push(source),
            Err(problem) => bad.push((position, problem)),
        }
    }
    if bad.is_empty() { Ok(sources) } else { Err(bad) }
}

fn tls_problems(tls: &TlsSettings) -> Vec<(&'static str, String)> {
    let mut problems = Vec::new();
    if tls.certificate_file.is_some() != tls.key_file.is_some() {
        problems
            .push(("certificate_file", "a certificate and its key go together; write both files, or none".to_owned()));
    }
    if tls.server_name.as_ref().is_some_and(|name| !is_server_name(name)) {
        problems
            .push(("server_name", "is no host name or address; write the name in the pods' certificates".to_owned()));
    }
    problems
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
        let labels = [("weight".to_owned(), "2".to_owned())].into();
        settings.list.push(PodEntry { labels, ..entry("ftp://c") });
        settings.tls =
            TlsSettings { server_name: Some(String::new()), key_file: Some("k".into()), ..TlsSettings::default() };
        settings.resolve_interval_s = 0.0;
        settings.health.ramp_completions = 0;
        let places: Vec<String> = settings.problems().into_iter().map(|problem| problem.0).collect();
        let expected = [
            "list[2].url",
            "resolve_interval_s",
            "list[2].labels.weight",
            "tls.certificate_file",
            "tls.server_name",
            "health.ramp_completions",
        ];
        assert_eq!(places, expected);
    }
}
