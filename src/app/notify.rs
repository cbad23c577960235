//! Tells the service manager (systemd's `sd_notify` protocol) how the process is. Without one it does nothing.
#![allow(
    clippy::disallowed_methods,
    reason = "the service manager, and the process that is replaced, speak through the environment"
)]
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// Where the service manager listens, if there is one.
#[derive(Clone, Debug)]
pub(super) struct Notify(Option<OsString>);

impl Notify {
    pub(super) fn from_env() -> Self {
        Self(std::env::var_os("NOTIFY_SOCKET"))
    }

    /// Sends a state. What cannot be told is logged: the gate serves all the same.
    pub(super) fn tell(&self, state: &str) {
        if let Some(path) = &self.0
            && let Err(error) = send(path.as_bytes(), state)
        {
            tracing::warn!(%error, state, "the service manager cannot be told");
        }
    }

    /// Tells that settings are being read again; `READY=1` ends it.
    pub(super) fn reloading(&self) {
        let at = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
        let at = at.map_or(0, |at| Duration::from(at).as_micros());
        self.tell(&format!("RELOADING=1\nMONOTONIC_USEC={at}"));
    }
}

fn send(path: &[u8], state: &str) -> io::Result<()> {
    let addr = match path.split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &addr).map(|_sent| ())
}

/// How often the watchdog must be fed, if one watches this process: half of its patience.
pub(super) fn watchdog_interval() -> Option<Duration> {
    let is_ours = std::env::var("WATCHDOG_PID").map_or(true, |pid| pid == std::process::id().to_string());
    let patience_us: u64 = std::env::var("WATCHDOG_USEC").ok()?.parse().ok()?;
    (is_ours && patience_us > 0).then(|| Duration::from_micros(patience_us / 2))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn states_reach_either_kind_of_address() {
        let path = std::env::temp_dir().join(format!("tidegate-notify-{}", std::process::id()));
        let name = format!("tidegate-notify-{}", std::process::id());
        let there = UnixDatagram::bind(&path).unwrap();
        let hidden = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (socket, at) in [(there, path.clone().into_os_string()), (hidden, format!("@{name}").into())] {
            let notify = Notify(Some(at));
            notify.tell("READY=1");
            notify.reloading();
            let mut heard = [0; 100];
            let read = socket.recv(&mut heard).unwrap();
            assert_eq!(heard.get(..read), Some(b"READY=1".as_slice()));
            let read = socket.recv(&mut heard).unwrap();
            let text = String::from_utf8_lossy(heard.get(..read).unwrap());
            let since = text.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
            assert!(since.parse::<u64>().unwrap() > 0);
        }
        std::fs::remove_file(path).unwrap();
        Notify(None).tell("READY=1");
    }
}
