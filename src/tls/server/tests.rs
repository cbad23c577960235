//! Certificates as files on a disk: what is taken, what is refused, which one is shown.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use super::super::settings::CertificateFiles;
use super::*;
use crate::observe::MetricLimits;

/// A folder for one test.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("tidegate-tls-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    /// Writes a certificate for `names`, valid for some days from today, and its key.
    fn pair(&self, file: &str, names: &[&str], days: i64) -> CertificateFiles {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap();
        params.not_before = time_of(-40);
        params.not_after = time_of(days);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.0.join(format!("{file}.crt")), certificate.pem()).unwrap();
        std::fs::write(self.0.join(format!("{file}.key")), key.serialize_pem()).unwrap();
        self.files(file, file)
    }

    fn files(&self, certificate: &str, key: &str) -> CertificateFiles {
        CertificateFiles {
            certificate_file: self.0.join(format!("{certificate}.crt")),
            key_file: self.0.join(format!("{key}.key")),
        }
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

fn time_of(days: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(unix_s() + days * 86_400).unwrap()
}

fn with(certificates: Vec<CertificateFiles>) -> ServerTls {
    ServerTls { certificates, ..ServerTls::default() }
}

fn open(settings: &ServerTls) -> Result<Arc<Server>, TlsError> {
    let metrics = Metrics::new(MetricLimits::default());
    Server::open(settings, "listen.tls", Alpn::Http2, &metrics).map(Option::unwrap)
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place() {
    let folder = Folder::new("refused");
    let (a, b, old) = (folder.pair("a", &["a"], 9), folder.pair("b", &["b"], 9), folder.pair("old", &["a"], -1));
    std::fs::write(folder.0.join("text.crt"), "no certificate").unwrap();
    std::fs::write(folder.0.join("text.key"), "no key").unwrap();
    for (files, expected) in [
        (folder.files("a", "b"), "is not that of the certificate"),
        (folder.files("missing", "a"), "cannot read"),
        (folder.files("a", "missing"), "missing.key"),
        (folder.files("text", "a"), "holds no certificate in PEM form"),
        (folder.files("a", "text"), "holds no private key in PEM form"),
        (old, "has expired"),
    ] {
        let error = open(&with(vec![files])).unwrap_err().to_string();
        assert!(error.contains(expected) && !error.contains("BEGIN"), "{error}");
    }
    assert!(open(&with(vec![a, b])).is_ok());
    let metrics = Metrics::new(MetricLimits::default());
    assert!(Server::open(&ServerTls::default(), "x", Alpn::Http1, &metrics).unwrap().is_none());
}

#[test]
fn the_last_good_certificate_stays() {
    let folder = Folder::new("reload");
    let settings = with(vec![folder.pair("a", &["a"], 9)]);
    let server = open(&settings).unwrap();
    let until = || *server.metrics.certificates.lock().get("listen.tls.certificates[0]").unwrap();
    let first = until();
    assert!(!server.refresh(&settings).unwrap());
    // A renewed certificate whose key has not come yet.
    let key = std::fs::read(folder.0.join("a.key")).unwrap();
    folder.pair("a", &["a"], 90);
    let renewed = std::fs::read(folder.0.join("a.key")).unwrap();
    std::fs::write(folder.0.join("a.key"), key).unwrap();
    assert!(server.refresh(&settings).is_err());
    assert!(!server.refresh(&settings).unwrap(), "told once");
    assert_eq!(until(), first);
    std::fs::write(folder.0.join("a.key"), renewed).unwrap();
    assert!(server.refresh(&settings).unwrap());
    assert_eq!(until(), first + 81 * 86_400);
    // What mounted secrets do: the folder behind a link is another one.
    let (one, other) = (Folder::new("link-one"), Folder::new("link-other"));
    one.pair("a", &["a"], 9);
    other.pair("a", &["a"], 19);
    let link = folder.0.join("data");
    std::os::unix::fs::symlink(&one.0, &link).unwrap();
    let settings = with(vec![CertificateFiles { certificate_file: link.join("a.crt"), key_file: link.join("a.key") }]);
    assert!(server.refresh(&settings).unwrap());
    std::fs::remove_file(&link).unwrap();
    assert!(server.refresh(&settings).is_err(), "gone");
    std::os::unix::fs::symlink(&other.0, &link).unwrap();
    assert!(server.refresh(&settings).unwrap());
    assert_eq!(until(), first + 10 * 86_400);
}

#[test]
fn the_certificate_follows_the_name() {
    let folder = Folder::new("names");
    let one = |file: &str, names: &[&str]| {
        let files = folder.pair(file, names, 9);
        pair(&files.certificate_file, &files.key_file, &rustls::crypto::ring::default_provider()).unwrap()
    };
    let pairs = [one("a", &["a.example"]), one("wild", &["*.b.example"]), one("c", &["c.b.example", "C.example"])];
    let by_name = ByName::of(&pairs);
    for (name, expected) in [
        (None, 0),
        (Some("a.example"), 0),
        (Some("nobody.example"), 0),
        (Some("x.b.example"), 1),
        (Some("y.x.b.example"), 0),
        (Some("b.example"), 0),
        (Some("C.B.example"), 2),
        (Some("c.example"), 2),
    ] {
        let found = by_name.find(name).unwrap();
        let position = pairs.iter().position(|pair| Arc::ptr_eq(&pair.key, found));
        assert_eq!(position, Some(expected), "{name:?}");
    }
}

#[test]
fn handshakes_are_counted() {
    let under_way = AtomicU32::new(0);
    let (one, two) = (Room::take(&under_way, 2), Room::take(&under_way, 2));
    assert!(one.is_some() && Room::take(&under_way, 2).is_none());
    drop(one);
    assert!(Room::take(&under_way, 2).is_some());
    drop(two);
    assert_eq!(under_way.load(Relaxed), 0);
}
