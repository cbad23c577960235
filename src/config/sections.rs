//! Sections that are put together from several rooms, or that a room takes as plain numbers.
use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Profile, ProfileSettings};

/// Settings under `routing`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// Start in safe mode: least in flight, no prefix index.
    pub safe_mode: bool,
    /// Filters, scorers and picker of a decision.
    pub profile: ProfileSettings,
    /// Further profiles by name, for `select`.
    pub profiles: BTreeMap<String, ProfileSettings>,
    /// Which requests another profile than `profile` places; the first entry that applies counts.
    pub select: Vec<Select>,
    /// Request header whose value names the client's session, for `session-affinity` and `consistent-hash`.
    pub session_header: Option<String>,
    /// Cookie that names the session where the header is missing.
    pub session_cookie: Option<String>,
}

/// Settings under `routing.select[]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Select {
    /// Name under `profiles`.
    pub profile: String,
    /// Models it is for, by any of their names; none means all.
    pub models: Vec<String>,
    /// Request header that must be there.
    pub header: Option<String>,
    /// Value that header must have; unset means any.
    pub value: Option<String>,
}

impl Routing {
    /// What is wrong: path below `routing`, and what to write instead.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let named = self.profiles.iter().map(|(name, settings)| (format!("profiles.{name}"), settings));
        for (path, settings) in named.chain([("profile".to_owned(), &self.profile)]) {
            let problems = Profile::new(settings).err().into_iter().flatten();
            found.extend(problems.map(|problem| (path.clone(), problem.to_string())));
        }
        for (index, select) in self.select.iter().enumerate() {
            if !self.profiles.contains_key(&select.profile) {
                let names: Vec<_> = self.profiles.keys().map(String::as_str).collect();
                let hint = format!("there is no such profile; write one of routing.profiles: {}", names.join(", "));
                found.push((format!("select[{index}].profile"), hint));
            }
            if select.models.is_empty() && select.header.is_none() {
                let hint = "it would take every request; name models or a header, or change routing.profile";
                found.push((format!("select[{index}]"), hint.into()));
            }
            if select.header.as_ref().is_some_and(|name| !is_header(name)) {
                found.push((format!("select[{index}].header"), NOT_A_HEADER.into()));
            }
        }
        if self.session_header.as_ref().is_some_and(|name| !is_header(name)) {
            found.push(("session_header".into(), NOT_A_HEADER.into()));
        }
        found
    }
}

pub(super) const NOT_A_HEADER: &str = "this is no name of a header; write letters, digits and dashes";

pub(super) fn is_header(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Settings under `prefix`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Prefix {
    /// Memory of the prefix index, in bytes; the least recently used blocks go first.
    pub index_bytes_max: u64,
    /// Tokens a pod's KV cache is taken to hold as long as the pod has not told.
    pub pod_tokens_default: u64,
    /// Part of the index, 0 to 1, above which one tenant's blocks are the first to go when others need room.
    pub tenant_share: f64,
    /// Where the index is saved at shutdown and read at start, so that a restart of the gate forgets nothing. Hashes only,
    /// readable by the owner only.
    pub snapshot_file: Option<PathBuf>,
    /// A file of 16 random bytes or more, the secret of prefix hashes. Left out, one is made and kept beside the snapshot.
    pub secret_file: Option<PathBuf>,
    /// Whose prompts may be found in the pods' caches: with `shared` everybody's, with `tenant` only those of the same tenant, so
    /// that nobody learns from an answer's speed what another tenant sent. Several gates in front of the same pods then need
    /// the same `secret_file`, or what one has cached is not found by another.
    pub cache_isolation: CacheIsolation,
}

/// Whose prompts may be found in the pods' caches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheIsolation {
    /// Everybody's.
    #[default]
    Shared,
    /// Those of the same tenant.
    Tenant,
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            index_bytes_max: 256 << 20,
            pod_tokens_default: 1 << 20,
            tenant_share: 0.5,
            snapshot_file: None,
            secret_file: None,
            cache_isolation: CacheIsolation::Shared,
        }
    }
}
