//! TLS towards clients and towards pods: certificates from files that may change, who the other side is, why a handshake failed.
//!
//! [`Server`] does the handshakes of a listener, [`Connectors`] those with pods; both read their files again when these change and
//! keep what was good. rustls with ring: no C library, and no ciphers or versions that would have to be switched off.
mod certificate;
mod connector;
mod failure;
mod files;
mod server;
mod settings;
mod stream;

pub use certificate::{Facts, Peer};
pub use connector::{Connectors, Dial, authorities};
pub use failure::{advice, reason};
pub use files::TlsError;
pub use server::{Accepted, Alpn, Server};
pub use settings::{CertificateCaller, CertificateFiles, ClientCertificates, ServerTls, Version, is_server_name};
pub use stream::{ClientStream, PodStream};
