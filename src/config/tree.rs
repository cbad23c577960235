//! What is written: the whole configuration as serde sees it.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::sections::{Prefix, Routing};
use crate::proxy::settings::{Limits, Listen, Model, Trust};
use crate::{admin, disagg, discovery, flow, observe, telemetry};

/// The configuration file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tree {
    /// Where clients connect.
    pub listen: Listen,
    /// Where operators look.
    pub admin: admin::Settings,
    /// Where requests go.
    pub pods: discovery::Settings,
    /// What differs for single models, by the name clients use.
    pub models: BTreeMap<String, Model>,
    /// Who is believed.
    pub trust: Trust,
    /// How a pod is chosen.
    pub routing: Routing,
    /// What the gate remembers of prompts (hashes, never text).
    pub prefix: Prefix,
    /// How much the gate holds at once.
    pub flow: flow::GateSettings,
    /// What is tried again on another pod.
    pub retry: flow::RetrySettings,
    /// Prefill on one pod, decode on another, where pods have these roles.
    pub disaggregation: disagg::Settings,
    /// What is refused, and when the gate gives up.
    pub limits: Limits,
    /// How pods are watched.
    pub telemetry: telemetry::Settings,
    /// What is logged and counted.
    pub observe: observe::Settings,
}
