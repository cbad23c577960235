//! What is written: the whole configuration as serde sees it.
use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::pending::{Prefix, Retry, Routing, Telemetry};
use crate::pods::Role;
use crate::proxy::settings::{Limits, Listen, Model, Trust};
use crate::{admin, observe};

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tree {
    /// Where clients connect.
    pub listen: Listen,
    /// Where operators look.
    pub admin: admin::Settings,
    /// Where requests go.
    pub pods: Pods,
    /// What differs for single models, by the name clients use.
    pub models: BTreeMap<String, Model>,
    /// Who is believed.
    pub trust: Trust,
    /// How a pod is chosen.
    pub routing: Routing,
    /// What the gate remembers of prompts (hashes, never text).
    pub prefix: Prefix,
    /// What is tried again on another pod.
    pub retry: Retry,
    /// What is refused, and when the gate gives up.
    pub limits: Limits,
    /// How pods are watched.
    pub telemetry: Telemetry,
    /// What is logged and counted.
    pub observe: observe::Settings,
}

/// Settings under `pods`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pods {
    /// Endpoints. A host name with several addresses is several pods.
    pub list: Vec<PodEntry>,
    /// File with the key that is sent to pods as bearer token, in place of the client's own. Unset passes the client's on.
    pub credential_file: Option<PathBuf>,
    /// Time between two resolutions of host names, in seconds.
    pub resolve_interval_s: u32,
}

impl Default for Pods {
    fn default() -> Self {
        Self { list: Vec::new(), credential_file: None, resolve_interval_s: 10 }
    }
}

/// One entry of `pods.list`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PodEntry {
    /// Where it listens, as `http://host:port`.
    pub url: String,
    /// What it may be asked to do: `both`, `prefill` or `decode`.
    #[serde(default)]
    pub role: Role,
    /// Labels of your own, for logs and routing.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}
