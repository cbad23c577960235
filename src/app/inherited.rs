//! Listening sockets that were open before this process: from systemd (socket activation) or from the process it replaces.
//!
//! Both speak the same protocol: descriptors from 3 on, counted by `LISTEN_FDS`, named by `LISTEN_FDNAMES`.
#![allow(
    clippy::disallowed_methods,
    reason = "the service manager, and the process that is replaced, speak through the environment"
)]
use std::net::{SocketAddr, TcpListener};

use listenfd::ListenFd;

/// Most sockets that are taken over.
const SOCKETS_MAX: usize = 16;

/// What was inherited and not claimed yet.
#[derive(Debug, Default)]
pub(super) struct Inherited(Vec<(String, TcpListener)>);

impl Inherited {
    /// Takes what there is. A descriptor that is no listening TCP socket is told of and left alone.
    pub(super) fn take() -> Self {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':').map(str::to_owned);
        let mut fds = ListenFd::from_env();
        let mut found = Vec::new();
        for position in 0..fds.len().min(SOCKETS_MAX) {
            let name = names.next().unwrap_or_default();
            match fds.take_tcp_listener(position) {
                Ok(Some(socket)) => found.push((name, socket)),
                Ok(None) => {}
                Err(error) => tracing::error!(position, name, %error, "an inherited socket cannot be used"),
            }
        }
        Self(found)
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The socket of this name, else the one that listens on `addr`.
    pub(super) fn claim(&mut self, name: &str, addr: SocketAddr) -> Option<TcpListener> {
        let listens_there = |socket: &TcpListener| socket.local_addr().is_ok_and(|at| at == addr);
        let position = self.0.iter().position(|(known, _)| known == name);
        let position = position.or_else(|| self.0.iter().position(|(_, socket)| listens_there(socket)))?;
        let (_, socket) = self.0.swap_remove(position);
        let at = socket.local_addr().map_or_else(|error| error.to_string(), |at| at.to_string());
        tracing::info!(name, at, "listens on an inherited socket");
        Some(socket)
    }

    /// Closes what nobody claimed: its clients would wait for ever.
    pub(super) fn close_rest(self) {
        for (name, _) in self.0 {
            tracing::warn!(
                name,
                "an inherited socket has neither a known name (listen, h2c, admin) nor a configured address"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_name_goes_before_an_address() {
        let socket = || TcpListener::bind("127.0.0.1:0").unwrap();
        let (a, b) = (socket(), socket());
        let (at_a, at_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
        let mut inherited = Inherited(vec![("other".into(), a), ("listen".into(), b)]);
        let got = |socket: Option<TcpListener>| socket.map(|socket| socket.local_addr().unwrap());
        assert_eq!(got(inherited.claim("listen", at_a)), Some(at_b));
        assert_eq!(got(inherited.claim("admin", at_b)), None);
        assert_eq!(got(inherited.claim("admin", at_a)), Some(at_a));
        inherited.close_rest();
    }
}
