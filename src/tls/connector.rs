//! The client's side of a handshake: connections to pods, with TLS where their URL says so.
//!
//! A pod's certificate is always checked, for a name that is never empty; only `insecure_skip_verify` lifts that. What files held
//! when they were last good stays in force, as on the server's side.
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpStream;

use super::failure::{advice, reason, tls_error};
use super::files::{self, TlsError};
use super::stream::PodStream;
use crate::observe::{MetricLimits, Metrics};
use crate::pods::{PodTls, TlsSettings};
use crate::runtime::unix_ms;

/// Most failures that are remembered as told.
const TOLD_MAX: usize = 4_096;

/// How TLS is spoken on a connection. Equal ones may share connections.
#[derive(Clone, Debug)]
pub struct Dial {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl PartialEq for Dial {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

/// What was read for one set of settings.
#[derive(Clone, Debug)]
struct Known {
    /// `None` as long as the files were never good.
    config: Option<Arc<ClientConfig>>,
    seen: u64,
}

/// Makes connections to pods.
pub struct Connectors {
    known: ArcSwap<HashMap<Arc<TlsSettings>, Known>>,
    /// Held while `known` is replaced.
    change: Mutex<()>,
    /// Failures that were told, until they are over.
    told: Mutex<HashSet<(SocketAddr, &'static str)>>,
    has_told: AtomicBool,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Connectors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connectors").finish_non_exhaustive()
    }
}

impl Default for Connectors {
    fn default() -> Self {
        Self::new(Metrics::new(MetricLimits::default()))
    }
}

impl Connectors {
    /// None made yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self {
            known: ArcSwap::default(),
            change: Mutex::default(),
            told: Mutex::default(),
            has_told: AtomicBool::new(false),
            metrics,
        }
    }

    /// How TLS is spoken with a pod; `None` without TLS. Reads files the first time that settings are met.
    pub fn dial(&self, tls: Option<&PodTls>) -> io::Result<Option<Dial>> {
        let Some(tls) = tls else { return Ok(None) };
        let known = self.known.load().get(&tls.settings).cloned().unwrap_or_else(|| self.meet(&tls.settings));
        let config = known.config.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let name = ServerName::try_from(tls.server_name.to_string());
        let name = name.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Some(Dial { config, name }))
    }

    /// Connects, with a handshake where one is wanted. An error of the handshake is counted, and told once.
    pub async fn connect(&self, addr: SocketAddr, dial: Option<Dial>) -> io::Result<PodStream> {
        let io = TcpStream::connect(addr).await?;
        let Some(dial) = dial else { return Ok(PodStream::Plain(io)) };
        match tokio_rustls::TlsConnector::from(dial.config).connect(dial.name, io).await {
            Ok(io) => {
                if self.has_told.load(Relaxed) {
                    self.over(addr);
                }
                Ok(PodStream::Tls(Box::new(io)))
            }
            Err(error) => {
                self.failed(addr, &error);
                // What failed is the connection: a pod that closes in the handshake was asked nothing yet.
                Err(if tls_error(&error).is_some() { error } else { io::ErrorKind::ConnectionAborted.into() })
            }
        }
    }

    /// Reads files again that changed; forgets settings that no pod has. Errors are told and leave what was good.
    pub fn refresh(&self) {
        let _held = self.change.lock();
        let mut all = HashMap::clone(&self.known.load());
        // The map that is published and its copy here hold one each.
        all.retain(|settings, _| Arc::strong_count(settings) > 2);
        let mut is_changed = all.len() != self.known.load().len();
        for (settings, known) in &mut all {
            let seen = print(settings);
            if seen == known.seen {
                continue;
            }
            (known.seen, is_changed) = (seen, true);
            if let Some(config) = self.read(settings) {
                known.config = Some(config);
                tracing::info!("TLS credentials for pods reloaded");
            }
        }
        if is_changed {
            let places: HashSet<String> = all.keys().filter_map(|settings| place(settings)).collect();
            let is_known = |place: &str| !place.starts_with(PLACE) || places.contains(place);
            self.metrics.certificates.lock().retain(|place, _| is_known(place));
            self.known.store(Arc::new(all));
            self.told.lock().clear();
        }
    }

    fn meet(&self, settings: &Arc<TlsSettings>) -> Known {
        let _held = self.change.lock();
        if let Some(known) = self.known.load().get(settings) {
            return known.clone();
        }
        let seen = print(settings);
        let known = Known { config: self.read(settings), seen };
        let mut all = HashMap::clone(&self.known.load());
        all.insert(Arc::clone(settings), known.clone());
        self.known.store(Arc::new(all));
        known
    }

    fn read(&self, settings: &TlsSettings) -> Option<Arc<ClientConfig>> {
        if settings.insecure_skip_verify {
            tracing::error!(
                "insecure_skip_verify is on: pods are not verified, and whoever is on the way to them can read and change everything"
            );
        }
        match build(settings) {
            Ok((config, until_s)) => {
                if let Some((place, until_s)) = place(settings).zip(until_s) {
                    self.metrics.certificates.lock().insert(place, until_s);
                }
                Some(Arc::new(config))
            }
            Err(error) => {
                self.metrics.config_reloads.inc("bad");
                tracing::error!(%error, "TLS credentials for pods not taken; what was good before stays");
                None
            }
        }
    }

    fn failed(&self, addr: SocketAddr, error: &io::Error) {
        let reason = reason(error);
        self.metrics.pod_tls_failures.inc(reason);
        let mut told = self.told.lock();
        if told.len() < TOLD_MAX && told.insert((addr, reason)) {
            self.has_told.store(true, Relaxed);
            let advice = advice(reason);
            tracing::warn!(%addr, reason, "TLS handshake with a pod failed ({error}): {advice}");
        }
    }

    fn over(&self, addr: SocketAddr) {
        let mut told = self.told.lock();
        told.retain(|(other, _)| *other != addr);
        self.has_told.store(!told.is_empty(), Relaxed);
    }
}

/// What labels of pods' credentials begin with.
const PLACE: &str = "pods.tls";

/// Name of the gate's own certificate towards pods, for its metric.
fn place(settings: &TlsSettings) -> Option<String> {
    let file = settings.certificate_file.as_ref()?;
    Some(format!("{PLACE} {}", file.file_name()?.to_string_lossy()))
}

fn print(settings: &TlsSettings) -> u64 {
    let files = [&settings.ca_file, &settings.certificate_file, &settings.key_file];
    files::print(files.into_iter().filter_map(|path| path.as_deref()))
}

/// Authorities that a file names, or those of the system.
pub fn authorities(file: Option<&Path>) -> Result<rustls::RootCertStore, TlsError> {
    match file {
        Some(path) => files::authorities([path]),
        None => files::system_authorities(),
    }
}

/// The configuration, and until when the gate's own certificate is valid \[seconds since 1970\].
fn build(settings: &TlsSettings) -> Result<(ClientConfig, Option<i64>), TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unusable = |error: rustls::Error| TlsError::Unusable {
        path: settings.certificate_file.clone().unwrap_or_default(),
        error: error.to_string(),
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = builder.map_err(unusable)?;
    let builder = if settings.insecure_skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(Arc::clone(&provider))))
    } else {
        builder.with_root_certificates(authorities(settings.ca_file.as_deref())?)
    };
    let own = settings.certificate_file.as_deref().zip(settings.key_file.as_deref());
    let Some((certificate, key)) = own else { return Ok((builder.with_no_client_auth(), None)) };
    let pair = own_pair(certificate, key, &provider)?;
    let resolver = Arc::new(rustls::sign::SingleCertAndKey::from(pair.key));
    Ok((builder.with_client_cert_resolver(resolver), Some(pair.facts.until_s)))
}

fn own_pair(certificate: &Path, key: &Path, provider: &CryptoProvider) -> Result<files::Pair, TlsError> {
    files::pair(certificate, key, i64::try_from(unix_ms() / 1_000).unwrap_or(i64::MAX), provider)
}

/// Takes every certificate, if only its holder has the key.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
