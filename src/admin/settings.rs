//! What configuration says about the admin listener: the top-level key `admin`.
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::tls::ServerTls;

/// Where the admin listener is unless configured otherwise.
pub const ADDR: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);

/// Who may change something through the admin listener.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Changes {
    /// Nobody.
    Nobody,
    /// Clients on this machine.
    #[default]
    Loopback,
    /// Everybody who can connect.
    Everybody,
}

impl Changes {
    /// Whether a client at `peer` may.
    pub const fn allows(self, peer: IpAddr) -> bool {
        match self {
            Self::Nobody => false,
            Self::Loopback => peer.to_canonical().is_loopback(),
            Self::Everybody => true,
        }
    }
}

/// Settings under `admin`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Address of the admin listener. It shows metrics and decisions to everybody who can connect.
    pub addr: SocketAddr,
    /// TLS on it. `callers` have no meaning here: who has a certificate of `ca_files` may look at everything.
    pub tls: ServerTls,
    /// Who may change something here (safe mode, pods): `nobody`, `loopback` (clients on this machine) or `everybody`.
    pub changes_from: Changes,
    /// Names under which browsers may open the dashboard, without a port. Addresses, `localhost`, names without a dot and names below
    /// `.local`, `.internal` and `.svc` always work; others could be a foreign page's (DNS rebinding).
    pub hosts: Vec<String>,
}

impl Settings {
    /// Paths and what is wrong there.
    pub fn problems(&self) -> Vec<(String, String)> {
        let is_name = |host: &&String| {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'))
        };
        let bad = self.hosts.iter().enumerate().filter(|(_, host)| !is_name(host));
        bad.map(|(index, _)| (format!("hosts[{index}]"), "write a name only, such as gate.example.com".to_owned()))
            .collect()
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self { addr: ADDR, tls: ServerTls::default(), changes_from: Changes::default(), hosts: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_a_name_without_anything_around_it() {
        let hosts = ["gate.example.com", "https://gate", "gate:9901", "", "*.example"].map(str::to_owned).to_vec();
        let problems = Settings { hosts, ..Settings::default() }.problems();
        let paths: Vec<_> = problems.iter().map(|(path, _)| path.as_str()).collect();
        assert_eq!(paths, ["hosts[1]", "hosts[2]", "hosts[3]", "hosts[4]"]);
    }
}
