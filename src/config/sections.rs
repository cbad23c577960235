//! Sections that are put together from several rooms, or that a room takes as plain numbers.
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::ProfileSettings;

/// Settings under `routing`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Routing {
    /// Start in safe mode: least in flight, no prefix index.
    pub safe_mode: bool,
    /// Filters, scorers and picker of a decision.
    pub profile: ProfileSettings,
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
}

impl Default for Prefix {
    fn default() -> Self {
        Self {
            index_bytes_max: 256 << 20,
            pod_tokens_default: 1 << 20,
            tenant_share: 0.5,
            snapshot_file: None,
            secret_file: None,
        }
    }
}
