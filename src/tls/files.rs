//! Certificates and keys in PEM files: read with bounds, checked before they are used.
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

use super::certificate::Facts;

/// Largest file that is read \[bytes\].
const FILE_BYTES_MAX: u64 = 4 << 20;

/// Why files cannot be used. Never quotes what is in them.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not what it should be.
    #[error("{path} {problem}")]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what it should be.
        problem: &'static str,
    },
    /// Certificate and key are both good, but not together.
    #[error("the key in {key} is not that of the certificate in {certificate}")]
    Mismatch {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// The library cannot use them.
    #[error("{path} cannot be used: {error}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        error: String,
    },
    /// The system's authorities cannot be read.
    #[error("this system has no certificates of authorities ({0}); set ca_file")]
    NoRoots(String),
}

/// A certificate with its key, and what stands in it.
pub(super) struct Pair {
    pub(super) key: Arc<CertifiedKey>,
    pub(super) facts: Facts,
}

/// Reads a whole file.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let unreadable = |error| TlsError::Unreadable { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX { Err(bad(path, "is larger than 4 MiB")) } else { Ok(bytes) }
}

/// A number for what the files hold now; what cannot be read counts as empty. Follows links, so that it changes with a mounted
/// secret as well.
pub(super) fn print<'a>(paths: impl IntoIterator<Item = &'a Path>) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for path in paths {
        let bytes = read(path).unwrap_or_default();
        hasher.write_usize(bytes.len());
        hasher.write(&bytes);
    }
    hasher.finish()
}

fn bad(path: &Path, problem: &'static str) -> TlsError {
    TlsError::Bad { path: path.to_owned(), problem }
}

fn chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|_| bad(path, "is no PEM file of certificates"))?;
    if all.is_empty() { Err(bad(path, "holds no certificate in PEM form")) } else { Ok(all) }
}

/// Reads a certificate and its key, and checks that they belong together and are valid at `unix_s`.
pub(super) fn pair(
    certificate_file: &Path,
    key_file: &Path,
    unix_s: i64,
    provider: &CryptoProvider,
) -> Result<Pair, TlsError> {
    let chain = chain(certificate_file)?;
    let facts = chain.first().and_then(Facts::of).ok_or_else(|| bad(certificate_file, "is no X.509 certificate"))?;
    if facts.until_s <= unix_s {
        return Err(bad(certificate_file, "holds a certificate that has expired"));
    }
    if facts.from_s > unix_s {
        return Err(bad(certificate_file, "holds a certificate that is not valid yet; compare the clocks"));
    }
    let key = PrivateKeyDer::from_pem_slice(&read(key_file)?);
    let key = key.map_err(|_| bad(key_file, "holds no private key in PEM form (PKCS#8, PKCS#1 or SEC1)"))?;
    let key = CertifiedKey::from_der(chain, key, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            TlsError::Mismatch { certificate: certificate_file.to_owned(), key: key_file.to_owned() }
        }
        error => TlsError::Unusable { path: key_file.to_owned(), error: error.to_string() },
    })?;
    Ok(Pair { key: Arc::new(key), facts })
}

/// Authorities in `files`.
pub(super) fn authorities<'a>(files: impl IntoIterator<Item = &'a Path>) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for path in files {
        for certificate in chain(path)? {
            let unusable =
                |error: rustls::Error| TlsError::Unusable { path: path.to_owned(), error: error.to_string() };
            roots.add(certificate).map_err(unusable)?;
        }
    }
    Ok(roots)
}

/// Authorities that this system trusts, `SSL_CERT_FILE` and `SSL_CERT_DIR` respected.
pub(super) fn system_authorities() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if !roots.is_empty() {
        return Ok(roots);
    }
    let why: Vec<_> = found.errors.iter().take(3).map(ToString::to_string).collect();
    Err(TlsError::NoRoots(if why.is_empty() { "none was found".to_owned() } else { why.join("; ") }))
}
