//! Why a handshake failed: a word for metrics, a sentence for the log.
use std::io;

use rustls::{CertificateError, Error};

/// Reason of a handshake that failed, from a closed list.
pub fn reason(error: &io::Error) -> &'static str {
    match (tls_error(error), error.kind()) {
        (Some(error), _) => of(error),
        (None, io::ErrorKind::TimedOut) => "timeout",
        (None, io::ErrorKind::NotFound) => "credentials",
        (None, _) => "closed",
    }
}

/// What rustls says, if it was asked.
pub(super) fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref::<Error>()
}

fn of(error: &Error) -> &'static str {
    match error {
        Error::NoCertificatesPresented => "no_certificate",
        Error::InvalidCertificate(bad) => match bad {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => "expired",
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => "not_valid_yet",
            CertificateError::UnknownIssuer | CertificateError::BadSignature => "unknown_ca",
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => "wrong_name",
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => "wrong_purpose",
            _ => "bad_certificate",
        },
        Error::AlertReceived(_) => "refused_by_peer",
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => "not_tls",
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => "nothing_in_common",
        _ => "other",
    }
}

/// What an operator can do about a reason.
pub fn advice(reason: &str) -> &'static str {
    match reason {
        "no_certificate" => {
            "the client showed no certificate; give it one, or set client_certificates.required to false"
        }
        "expired" => "the certificate has expired; renew it",
        "not_valid_yet" => "the certificate is not valid yet; compare the clocks",
        "unknown_ca" => "the certificate comes from an authority that is not configured; check the CA file",
        "wrong_name" => "the certificate is for another name; connect by a name in it, or set server_name",
        "wrong_purpose" => "the certificate is not for this side; check its extended key usage",
        "bad_certificate" => "the certificate cannot be used",
        "refused_by_peer" => {
            "the other side refused the handshake; does it trust this side's certificate, or want one?"
        }
        "not_tls" => "the other side does not speak TLS here; check scheme and port",
        "nothing_in_common" => "no version, cipher or protocol in common",
        "timeout" => "the handshake took too long",
        "credentials" => "the files for it cannot be used; see the log",
        "closed" => "the other side closed during the handshake",
        _ => "the handshake failed",
    }
}
