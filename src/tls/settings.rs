//! What configuration says about TLS on a listener: `listen.tls` and `admin.tls`.
use std::path::PathBuf;

use rustls::pki_types::ServerName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::certificate::Peer;

/// Most certificates, authorities' files or callers of a listener.
const ENTRIES_MAX: usize = 1_000;

/// Settings under `listen.tls` and `admin.tls`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerTls {
    /// Certificates with their keys; none means no TLS. A client is shown the one with the name it asks for, else the first.
    /// The files are read again when they change.
    pub certificates: Vec<CertificateFiles>,
    /// Oldest version of TLS that is spoken: `1.2` or `1.3`.
    pub min_version: Version,
    /// Until a handshake is complete, in seconds.
    pub handshake_timeout_s: u32,
    /// Most handshakes at once; connections beyond that are closed.
    pub handshakes_max: u32,
    /// Certificates of clients.
    pub client_certificates: ClientCertificates,
}

impl Default for ServerTls {
    fn default() -> Self {
        Self {
            certificates: Vec::new(),
            min_version: Version::default(),
            handshake_timeout_s: 10,
            handshakes_max: 2_000,
            client_certificates: ClientCertificates::default(),
        }
    }
}

/// One entry of `certificates`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CertificateFiles {
    /// PEM file of the certificate, followed by those between it and the root.
    pub certificate_file: PathBuf,
    /// PEM file of its private key (PKCS#8, PKCS#1 or SEC1).
    pub key_file: PathBuf,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Version {
    /// TLS 1.2.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[serde(rename = "1.3")]
    Tls13,
}

/// Settings under `client_certificates`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClientCertificates {
    /// PEM files of the authorities that clients' certificates must come from; none means that clients are not asked for one.
    pub ca_files: Vec<PathBuf>,
    /// Whether clients without a certificate are refused. A certificate that is shown must be good in any case.
    pub required: bool,
    /// Who the certificates stand for; the first entry that applies counts. A key that comes with a request counts before its certificate.
    pub callers: Vec<CertificateCaller>,
}

impl Default for ClientCertificates {
    fn default() -> Self {
        Self { ca_files: Vec::new(), required: true, callers: Vec::new() }
    }
}

/// One entry of `callers`: the names in a certificate (all that are written must be there), and who that is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CertificateCaller {
    /// A URI among its subject's alternative names, as `spiffe://example.org/ns/chat`; with `/*` at its end all below.
    pub uri: Option<String>,
    /// A DNS name among its subject's alternative names.
    pub dns: Option<String>,
    /// Common name of its subject.
    pub common_name: Option<String>,
    /// Tenant that requests are charged to; unset means that the certificate alone names none.
    pub tenant: Option<String>,
    /// Trusted as a caller in one of `trust.callers`.
    pub trusted: bool,
}

impl CertificateCaller {
    /// Whether the certificate is meant.
    pub fn applies(&self, peer: &Peer) -> bool {
        let is_uri = |wanted: &String| peer.uris.iter().any(|uri| is_below(wanted, uri));
        let is_dns = |wanted: &String| peer.dns.iter().any(|name| name.eq_ignore_ascii_case(wanted));
        self.uri.as_ref().is_none_or(is_uri)
            && self.dns.as_ref().is_none_or(is_dns)
            && self.common_name.as_ref().is_none_or(|wanted| peer.common_name.as_ref() == Some(wanted))
    }
}

fn is_below(wanted: &str, uri: &str) -> bool {
    match wanted.strip_suffix('*') {
        Some(above) if above.ends_with('/') => uri.len() > above.len() && uri.starts_with(above),
        _ => wanted == uri,
    }
}

impl ServerTls {
    /// Whether TLS is spoken.
    pub fn is_on(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// Everything that makes no sense, as (field, what to write instead). The files are not looked at.
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut problems = Vec::new();
        let mut tell = |field: &str, hint: &str| problems.push((field.to_owned(), hint.to_owned()));
        let clients = &self.client_certificates;
        for (index, one) in self.certificates.iter().enumerate() {
            if one.certificate_file.as_os_str().is_empty() || one.key_file.as_os_str().is_empty() {
                tell(&format!("certificates[{index}]"), "write certificate_file and key_file");
            }
        }
        if self.handshake_timeout_s == 0 {
            tell("handshake_timeout_s", "0 would end every handshake at once; write 1 or more");
        }
        if self.handshakes_max == 0 {
            tell("handshakes_max", "0 would let nobody in; write 1 or more");
        }
        if !self.is_on() && !clients.ca_files.is_empty() {
            tell(
                "client_certificates.ca_files",
                "clients show certificates only where TLS is spoken; add `certificates`",
            );
        }
        if clients.ca_files.is_empty() && !clients.callers.is_empty() {
            tell("client_certificates.callers", "nobody is asked for a certificate; add `ca_files`");
        }
        for (index, caller) in clients.callers.iter().enumerate() {
            if caller.uri.is_none() && caller.dns.is_none() && caller.common_name.is_none() {
                tell(&format!("client_certificates.callers[{index}]"), "write `uri`, `dns` or `common_name`");
            } else if caller.tenant.is_none() && !caller.trusted {
                tell(&format!("client_certificates.callers[{index}]"), "write a `tenant`, or `trusted: true`");
            }
        }
        if [self.certificates.len(), clients.ca_files.len(), clients.callers.len()].iter().any(|len| *len > ENTRIES_MAX)
        {
            tell("certificates", "more than 1000 certificates, authorities or callers; write fewer");
        }
        problems
    }
}

/// Whether a pod's certificate can be checked for this name: a host name or an address.
pub fn is_server_name(name: &str) -> bool {
    ServerName::try_from(name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_stand_for_callers() {
        let peer = Peer {
            uris: vec!["spiffe://x/ns/chat".into()],
            dns: vec!["Chat.example".into()],
            common_name: Some("chat".into()),
        };
        let of = |uri: &str, dns: &str, name: &str| {
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            CertificateCaller {
                uri: some(uri),
                dns: some(dns),
                common_name: some(name),
                ..CertificateCaller::default()
            }
            .applies(&peer)
        };
        for (uri, dns, name) in [
            ("spiffe://x/ns/chat", "", ""),
            ("spiffe://x/*", "", ""),
            ("spiffe://x/ns/*", "chat.example", "chat"),
            ("", "CHAT.example", ""),
            ("", "", "chat"),
        ] {
            assert!(of(uri, dns, name), "{uri} {dns} {name}");
        }
        for (uri, dns, name) in [
            ("spiffe://x/ns", "", ""),
            ("spiffe://x/ns/c*", "", ""),
            ("spiffe://x/ns/chat/*", "", ""),
            ("", "example", ""),
            ("", "", "Chat"),
            ("spiffe://x/ns/chat", "", "other"),
        ] {
            assert!(!of(uri, dns, name), "{uri} {dns} {name}");
        }
    }

    #[test]
    fn nonsense_is_told() {
        assert_eq!(ServerTls::default().problems(), []);
        let callers = vec![
            CertificateCaller::default(),
            CertificateCaller { dns: Some("a".into()), ..CertificateCaller::default() },
        ];
        let clients = ClientCertificates { callers, ..ClientCertificates::default() };
        let asked = ClientCertificates { ca_files: vec!["ca".into()], ..ClientCertificates::default() };
        let tls = ServerTls {
            handshakes_max: 0,
            handshake_timeout_s: 0,
            client_certificates: clients,
            ..ServerTls::default()
        };
        assert_eq!(tls.problems().len(), 5);
        assert_eq!(ServerTls { client_certificates: asked, ..ServerTls::default() }.problems().len(), 1);
        let certificates = vec![CertificateFiles::default()];
        assert_eq!(ServerTls { certificates, ..ServerTls::default() }.problems().len(), 1);
        assert!(
            is_server_name("pod.example") && is_server_name("::1") && !is_server_name("") && !is_server_name("a b")
        );
    }
}
