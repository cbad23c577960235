//! TLS of the listeners, and everything that is read again when files of certificates change.
use std::sync::Arc;

use super::StartError;
use crate::config::Config;
use crate::observe::Metrics;
use crate::proxy::Gate;
use crate::tls::{Alpn, Server, ServerTls};

/// TLS of the listeners, where there is any.
#[derive(Debug)]
pub(super) struct Listeners {
    pub(super) clients: Option<Arc<Server>>,
    pub(super) admin: Option<Arc<Server>>,
}

impl Listeners {
    /// Reads the files; what cannot be used stops the start.
    pub(super) fn open(config: &Config, metrics: &Arc<Metrics>) -> Result<Self, StartError> {
        let open = |settings: &ServerTls, place, alpn| {
            Server::open(settings, place, alpn, metrics).map_err(|error| StartError::Tls { place, error })
        };
        Ok(Self {
            clients: open(&config.listen.tls, "listen.tls", Alpn::Http2)?,
            admin: open(&config.admin.tls, "admin.tls", Alpn::Http1)?,
        })
    }

    /// Looks at all files of certificates again, those towards pods too.
    pub(super) fn refresh(&self, config: &Config, gate: &Gate) {
        let of = [(&self.clients, &config.listen.tls, "listen.tls"), (&self.admin, &config.admin.tls, "admin.tls")];
        for (server, settings, place) in of {
            match server.as_ref().map(|server| server.refresh(settings)) {
                None | Some(Ok(false)) => {}
                Some(Ok(true)) => {
                    gate.metrics.config_reloads.inc("ok");
                    tracing::info!(place, "certificates reloaded");
                }
                Some(Err(error)) => {
                    gate.metrics.config_reloads.inc("bad");
                    tracing::error!(%error, place, "certificates not reloaded, the last good ones stay");
                }
            }
        }
        gate.pod_tls.refresh();
    }
}
