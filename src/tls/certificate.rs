//! What stands in a certificate, as far as the gate goes by it.
use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Names of the other side, from a certificate that was verified.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peer {
    /// URIs among its alternative names (SPIFFE).
    pub uris: Vec<String>,
    /// DNS names among its alternative names.
    pub dns: Vec<String>,
    /// Common name of its subject.
    pub common_name: Option<String>,
}

/// Names and times of a certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its names.
    pub names: Peer,
    /// From when it is valid \[seconds since 1970\].
    pub from_s: i64,
    /// Until when it is valid \[seconds since 1970\].
    pub until_s: i64,
}

impl Facts {
    /// Reads a certificate; `None` if it is none.
    pub fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let mut names = Peer::default();
        let common_name = parsed.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        names.common_name = common_name.map(str::to_owned);
        let alternative = parsed.subject_alternative_name().ok().flatten();
        for name in alternative.iter().flat_map(|extension| &extension.value.general_names) {
            match name {
                GeneralName::URI(uri) => names.uris.push((*uri).to_owned()),
                GeneralName::DNSName(name) => names.dns.push((*name).to_owned()),
                _ => {}
            }
        }
        let validity = parsed.validity();
        Some(Self { names, from_s: validity.not_before.timestamp(), until_s: validity.not_after.timestamp() })
    }
}
