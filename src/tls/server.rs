//! The server's side of a handshake, with certificates that may change while it listens.
//!
//! What was good stays in force until something better is there: a renewed certificate without its key yet, an expired one or half
//! a file is told once and refused. A handshake that is under way ends with what it began with.
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::server::{ClientHello, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{HandshakeKind, ServerConfig, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::certificate::{Facts, Peer};
use super::failure::{advice, reason};
use super::files::{self, Pair, TlsError};
use super::settings::{ServerTls, Version};
use super::stream::ClientStream;
use crate::base::Mono;
use crate::observe::Metrics;
use crate::runtime::{now, unix_ms};

/// Time between two log lines for the same reason.
const TOLD_EVERY: Duration = Duration::from_secs(10);
/// Days before its end at which a certificate is warned of.
const WARN_DAYS: [i64; 6] = [30, 14, 7, 3, 1, 0];

/// What is spoken inside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// HTTP/2 and HTTP/1.1.
    Http2,
    /// HTTP/1.1 only.
    Http1,
}

impl Alpn {
    fn protocols(self) -> Vec<Vec<u8>> {
        match self {
            Self::Http2 => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Self::Http1 => vec![b"http/1.1".to_vec()],
        }
    }
}

/// A connection after its handshake.
#[derive(Debug)]
pub struct Accepted {
    /// What is inside.
    pub io: ClientStream,
    /// Whether HTTP/2 was agreed on.
    pub is_h2: bool,
    /// Names in the client's certificate, which was verified; `None` without one.
    pub peer: Option<Arc<Peer>>,
}

/// TLS on one listener.
pub struct Server {
    /// Section it is configured in.
    place: &'static str,
    alpn: Alpn,
    state: ArcSwap<State>,
    under_way: AtomicU32,
    watch: Mutex<Watch>,
    told: Mutex<HashMap<&'static str, (Mono, u64)>>,
    metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("place", &self.place).finish_non_exhaustive()
    }
}

/// What handshakes go by.
struct State {
    config: Arc<ServerConfig>,
    timeout: Duration,
    handshakes_max: u32,
    /// By position: certificates as configured.
    shown: Vec<Facts>,
}

/// What files held when they were last looked at.
struct Watch {
    settings: ServerTls,
    seen: u64,
    /// Days for which each certificate was warned of last.
    warned: HashMap<usize, i64>,
}

impl Server {
    /// Reads the files; `None` if the section asks for no TLS.
    pub fn open(
        settings: &ServerTls,
        place: &'static str,
        alpn: Alpn,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Arc<Self>>, TlsError> {
        if !settings.is_on() {
            return Ok(None);
        }
        // Before the files are read: what changes meanwhile is seen at the next look.
        let seen = print(settings);
        let state = State::read(settings, alpn, None)?;
        let server = Self {
            place,
            alpn,
            state: ArcSwap::from_pointee(state),
            under_way: AtomicU32::new(0),
            watch: Mutex::new(Watch { settings: settings.clone(), seen, warned: HashMap::new() }),
            told: Mutex::default(),
            metrics: Arc::clone(metrics),
        };
        server.watch_expiry();
        Ok(Some(Arc::new(server)))
    }

    /// Looks at the files again, by these settings; true if something new is in force. An error is told once per change, and leaves
    /// everything as it was.
    pub fn refresh(&self, settings: &ServerTls) -> Result<bool, TlsError> {
        let mut watch = self.watch.lock();
        let seen = print(settings);
        let is_same = watch.settings == *settings;
        if !settings.is_on() || (is_same && watch.seen == seen) {
            drop(watch);
            self.watch_expiry();
            return Ok(false);
        }
        // Sessions of clients may go on, but not past other authorities.
        let keeps =
            watch.settings.client_certificates.ca_files.is_empty() && settings.client_certificates.ca_files.is_empty();
        (watch.seen, watch.settings) = (seen, settings.clone());
        let ticketer = keeps.then(|| Arc::clone(&self.state.load().config.ticketer));
        let state = State::read(settings, self.alpn, ticketer)?;
        self.state.store(Arc::new(state));
        watch.warned.clear();
        drop(watch);
        self.watch_expiry();
        Ok(true)
    }

    /// Does a handshake, within its time and if there is room for one more.
    pub async fn accept(&self, io: TcpStream) -> io::Result<Accepted> {
        let state = self.state.load_full();
        let Some(_room) = Room::take(&self.under_way, state.handshakes_max) else {
            self.metrics.refused.inc("handshakes");
            return Err(io::ErrorKind::ResourceBusy.into());
        };
        let handshake = tokio_rustls::TlsAcceptor::from(Arc::clone(&state.config)).accept(io);
        let done = match tokio::time::timeout(state.timeout, handshake).await {
            Ok(done) => done,
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        };
        let accepted = done.and_then(accepted);
        match &accepted {
            Ok((_, word)) => self.metrics.tls_handshakes.inc(word),
            Err(error) => self.failed(error),
        }
        accepted.map(|(accepted, _)| accepted)
    }

    /// Counts a handshake that failed, and tells of it unless it was just told of.
    fn failed(&self, error: &io::Error) {
        let reason = reason(error);
        self.metrics.tls_handshakes.inc(reason);
        // Scanners and health checks of balancers connect and leave.
        if reason == "closed" {
            return;
        }
        let mut told = self.told.lock();
        let (at, silent) = told.entry(reason).or_insert((Mono::ZERO, 0));
        if *at != Mono::ZERO && now().since(*at) < TOLD_EVERY {
            *silent += 1;
            return;
        }
        let untold = std::mem::take(silent);
        *at = now();
        drop(told);
        let advice = advice(reason);
        tracing::warn!(listener = self.place, reason, untold, "TLS handshake with a client failed ({error}): {advice}");
    }

    /// Publishes until when certificates are valid, and warns of the end.
    fn watch_expiry(&self) {
        let (state, mut watch) = (self.state.load(), self.watch.lock());
        let unix_s = unix_s();
        for (index, facts) in state.shown.iter().enumerate() {
            let place = format!("{}.certificates[{index}]", self.place);
            self.metrics.certificates.lock().insert(place.clone(), facts.until_s);
            let days = (facts.until_s - unix_s).div_euclid(86_400);
            let Some(level) = WARN_DAYS.iter().rev().copied().find(|level| days < *level) else { continue };
            if watch.warned.insert(index, level) != Some(level) {
                tracing::warn!(
                    certificate = place,
                    days,
                    "this certificate ends soon, renew it (below 0: it has ended)"
                );
            }
        }
        let prefix = format!("{}.", self.place);
        let known = |place: &String| {
            let number = place.strip_prefix(&prefix).and_then(|rest| rest.strip_prefix("certificates["));
            number.is_none_or(|rest| {
                rest.trim_end_matches(']').parse().is_ok_and(|index: usize| index < state.shown.len())
            })
        };
        self.metrics.certificates.lock().retain(|place, _| known(place));
    }
}

/// The stream with what was agreed on, and how it counts.
fn accepted(io: TlsStream<TcpStream>) -> io::Result<(Accepted, &'static str)> {
    let session = io.get_ref().1;
    let leaf = session.peer_certificates().and_then(<[_]>::first);
    let facts = leaf.and_then(Facts::of);
    // A session that goes on is not verified again: the certificate may have ended since.
    if facts.as_ref().is_some_and(|facts| facts.until_s <= unix_s()) {
        let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
        return Err(io::Error::new(io::ErrorKind::InvalidData, expired));
    }
    let word = if session.handshake_kind() == Some(HandshakeKind::Resumed) { "resumed" } else { "full" };
    let is_h2 = session.alpn_protocol() == Some(b"h2");
    let peer = facts.map(|facts| Arc::new(facts.names));
    Ok((Accepted { io: ClientStream::Tls(Box::new(io)), is_h2, peer }, word))
}

fn unix_s() -> i64 {
    i64::try_from(unix_ms() / 1_000).unwrap_or(i64::MAX)
}

fn print(settings: &ServerTls) -> u64 {
    let pairs = settings.certificates.iter().flat_map(|one| [&one.certificate_file, &one.key_file]);
    files::print(pairs.chain(&settings.client_certificates.ca_files).map(PathBuf::as_path))
}

impl State {
    fn read(settings: &ServerTls, alpn: Alpn, ticketer: Option<Arc<dyn ProducesTickets>>) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let first = settings.certificates.first().map(|one| one.certificate_file.clone()).unwrap_or_default();
        let unusable =
            |error: &dyn std::fmt::Display| TlsError::Unusable { path: first.clone(), error: error.to_string() };
        let pairs =
            settings.certificates.iter().map(|one| pair(one.certificate_file.as_path(), &one.key_file, &provider));
        let pairs = pairs.collect::<Result<Vec<_>, _>>()?;
        let builder =
            ServerConfig::builder_with_provider(Arc::clone(&provider)).with_protocol_versions(versions(settings));
        let builder = builder.map_err(|error| unusable(&error))?;
        let clients = &settings.client_certificates;
        let builder = if clients.ca_files.is_empty() {
            builder.with_no_client_auth()
        } else {
            let roots = Arc::new(files::authorities(clients.ca_files.iter().map(PathBuf::as_path))?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if clients.required { verifier } else { verifier.allow_unauthenticated() };
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName::of(&pairs)));
        config.alpn_protocols = alpn.protocols();
        config.ticketer = match ticketer {
            Some(ticketer) => ticketer,
            None => rustls::crypto::ring::Ticketer::new().map_err(|error| unusable(&error))?,
        };
        Ok(Self {
            config: Arc::new(config),
            timeout: Duration::from_secs(settings.handshake_timeout_s.into()),
            handshakes_max: settings.handshakes_max,
            shown: pairs.into_iter().map(|pair| pair.facts).collect(),
        })
    }
}

fn pair(certificate_file: &Path, key_file: &Path, provider: &CryptoProvider) -> Result<Pair, TlsError> {
    files::pair(certificate_file, key_file, unix_s(), provider)
}

static TLS13_ONLY: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn versions(settings: &ServerTls) -> &'static [&'static SupportedProtocolVersion] {
    match settings.min_version {
        Version::Tls12 => rustls::ALL_VERSIONS,
        Version::Tls13 => TLS13_ONLY,
    }
}

/// Finds the certificate for the name a client asks for.
#[derive(Debug)]
struct ByName {
    /// By name in small letters; of a wildcard, what follows `*`.
    exact: HashMap<String, Arc<CertifiedKey>>,
    below: HashMap<String, Arc<CertifiedKey>>,
    first: Option<Arc<CertifiedKey>>,
}

impl ByName {
    fn of(pairs: &[Pair]) -> Self {
        let (mut exact, mut below) = (HashMap::new(), HashMap::new());
        for pair in pairs {
            let names = &pair.facts.names;
            // Only certificates without alternative names are known by their common name.
            let common = names.common_name.iter().filter(|_| names.dns.is_empty());
            for name in names.dns.iter().chain(common).map(|name| name.to_ascii_lowercase()) {
                let (names, name) = match name.strip_prefix('*') {
                    Some(rest) => (&mut below, rest.to_owned()),
                    None => (&mut exact, name),
                };
                names.entry(name).or_insert_with(|| Arc::clone(&pair.key));
            }
        }
        Self { exact, below, first: pairs.first().map(|pair| Arc::clone(&pair.key)) }
    }

    fn find(&self, name: Option<&str>) -> Option<&Arc<CertifiedKey>> {
        let by_name = name.and_then(|name| {
            let name = name.to_ascii_lowercase();
            let rest = name.find('.').and_then(|dot| name.get(dot..));
            self.exact.get(&name).or_else(|| self.below.get(rest?))
        });
        by_name.or(self.first.as_ref())
    }
}

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name()).cloned()
    }
}

/// One of the handshakes under way.
struct Room<'a>(&'a AtomicU32);

impl<'a> Room<'a> {
    fn take(under_way: &'a AtomicU32, most: u32) -> Option<Self> {
        let room = Self(under_way);
        // Taken first: what is given back by the guard is what was taken.
        if under_way.fetch_add(1, Relaxed) < most { Some(room) } else { None }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests;
