//! How TLS is spoken with a pod.
use std::path::PathBuf;
use std::sync::Arc;

/// Settings under `pods.tls` and `pods.list[].tls`, for pods that are written as `https://`.
#[derive(
    Clone,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Deserialize,
    serde::Serialize,
    schemars::JsonSchema,
)]
#[serde(default, deny_unknown_fields)]
pub struct TlsSettings {
    /// PEM file of the authorities that pods' certificates must come from; unset means those that the system trusts. All
    /// files here are read again when they change.
    pub ca_file: Option<PathBuf>,
    /// PEM file of the certificate that the gate shows to pods (mTLS), with `key_file`.
    pub certificate_file: Option<PathBuf>,
    /// PEM file of its private key.
    pub key_file: Option<PathBuf>,
    /// Name that pods' certificates must have; unset means the host of the URL. An address there must be in the certificate.
    pub server_name: Option<String>,
    /// DANGEROUS: takes any certificate, so that whoever is on the way can read and change everything. For experiments only.
    pub insecure_skip_verify: bool,
}

/// TLS with one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodTls {
    /// Name that its certificate must have, and that it is asked for by; an address is looked for in the certificate. Never empty.
    pub server_name: Arc<str>,
    /// Files and switches.
    pub settings: Arc<TlsSettings>,
}
