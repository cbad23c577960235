//! Flags of `tidegate serve`. A flag overrides the file.
use std::net::SocketAddr;
use std::path::PathBuf;

use super::build::Override;
use super::tree::Tree;
use crate::disagg::Decider;
use crate::discovery::PodEntry;
use crate::observe::LogLevel;
use crate::pods::Role;

/// Flags of `tidegate serve`.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct ServeArgs {
    /// Configuration file; read again when it changes.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address for clients, HTTP/1.1 [default: 127.0.0.1:8080].
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Address for clients that speak HTTP/2 without TLS.
    #[arg(long, value_name = "ADDR")]
    pub listen_h2c: Option<SocketAddr>,
    /// Address for operators: health, metrics, decisions [default: 127.0.0.1:9901].
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// A pod, as http://host:port; may be repeated. Pods given by flags replace those of the file.
    #[arg(long, value_name = "URL")]
    pub pod: Vec<String>,
    /// A pod that only prefills; may be repeated.
    #[arg(long, value_name = "URL")]
    pub prefill: Vec<String>,
    /// A pod that decodes; may be repeated.
    #[arg(long, value_name = "URL")]
    pub decode: Vec<String>,
    /// One pod or two per request, where some pods only prefill: cost, always, never, uncached_tokens [default: cost].
    #[arg(long, value_name = "NAME", value_parser = decider)]
    pub decider: Option<Decider>,
    /// Worker threads [default: one per processor].
    #[arg(long, value_name = "N")]
    pub threads: Option<u16>,
    /// Let every client ask for decisions with `x-tidegate-explain: 1`.
    #[arg(long)]
    pub explain: bool,
    /// Where access lines go: `-`, `off` or a file.
    #[arg(long, value_name = "TARGET", allow_hyphen_values = true)]
    pub access_log: Option<String>,
    /// File to write the process id to once ready.
    #[arg(long, value_name = "FILE")]
    pub pid_file: Option<PathBuf>,
    /// Level of the program's own log: off, error, warn, info, debug, trace.
    #[arg(long, value_name = "LEVEL", value_parser = level)]
    pub log: Option<LogLevel>,
}

fn decider(word: &str) -> Result<Decider, String> {
    serde_json::from_value(word.into()).map_err(|_| "write cost, always, never or uncached_tokens".to_owned())
}

fn level(word: &str) -> Result<LogLevel, String> {
    use LogLevel::{Debug, Error, Info, Off, Trace, Warn};
    let levels = [Off, Error, Warn, Info, Debug, Trace];
    let known = levels.into_iter().find(|level| level.as_str() == word);
    known.ok_or_else(|| "write off, error, warn, info, debug or trace".to_owned())
}

impl ServeArgs {
    /// Puts the flags over the tree; returns which paths they override.
    pub(super) fn apply(&self, tree: &mut Tree) -> Vec<Override> {
        let mut overrides = Vec::new();
        let roles = [(&self.pod, Role::Both), (&self.prefill, Role::Prefill), (&self.decode, Role::Decode)];
        if roles.iter().any(|(urls, _)| !urls.is_empty()) {
            let entry = |url: &String, role| PodEntry { url: url.clone(), role, ..PodEntry::default() };
            tree.pods.list = roles.iter().flat_map(|(urls, role)| urls.iter().map(|url| entry(url, *role))).collect();
            overrides.push(("pods.list", "--pod, --prefill or --decode"));
        }
        if let Some(addr) = self.listen {
            tree.listen.addr = addr;
            overrides.push(("listen.addr", "--listen"));
        }
        if let Some(addr) = self.listen_h2c {
            tree.listen.h2c_addr = Some(addr);
            overrides.push(("listen.h2c_addr", "--listen-h2c"));
        }
        if let Some(addr) = self.admin {
            tree.admin.addr = addr;
            overrides.push(("admin.addr", "--admin"));
        }
        if let Some(decider) = self.decider {
            tree.disaggregation.decider = decider;
        }
        if let Some(threads) = self.threads {
            tree.listen.threads = Some(threads);
            overrides.push(("listen.threads", "--threads"));
        }
        if let Some(target) = &self.access_log {
            tree.observe.access_log.clone_from(target);
            overrides.push(("observe.access_log", "--access-log"));
        }
        if let Some(level) = self.log {
            tree.observe.log = level;
        }
        tree.observe.explain |= self.explain;
        overrides
    }
}
