//! From configuration to what rooms are built with.
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use crate::api::PathRules;
use crate::base::{ModelName, Tokens};
use crate::config::{CacheIsolation, Config};
use crate::flow::{Keys, Tenants};
use crate::prefix::Limits;
use crate::proxy::{Routing, Rules, Selection, Targets, Times};
use crate::scheduling::{Profile, ProfileSettings};

/// Rules of the data path.
pub(super) fn rules(config: &Config, keys: Option<Arc<Keys>>) -> Rules {
    let paths = PathRules::new(&config.listen.paths.allow).unwrap_or_default();
    let mut rules = Rules::of(&config.listen, &config.limits, &config.trust, paths);
    for (name, rule) in config.models.iter() {
        if rule.targets.len() > 1 || rule.names().any(|own| own != name) {
            rules.aliases.insert(ModelName::clone(name), Targets::new(rule.targets.iter().cloned()));
        }
        for own in rule.names() {
            rules.slos.insert(ModelName::clone(own), rule.slo);
            rules.model_times.insert(ModelName::clone(own), Times::from(&rule.timeouts));
        }
    }
    rules.connections_max = rules.connections_max.min(descriptors().unwrap_or(u64::MAX) / 2);
    rules.trace_share = config.observe.traces.sample;
    rules.explain = config.observe.explain;
    rules.is_client_logged = config.observe.is_client_logged;
    rules.retry = config.retry.clone();
    rules.bounds = config.flow.clone();
    rules.disagg = config.disaggregation.clone();
    rules.memory_bytes_max = config.flow.body_bytes_held_max;
    rules.keys = keys;
    rules.tenants = Tenants::new(&config.flow.tenants, |name| config.models.upstream(name));
    rules.class_headers = config.flow.class_headers.iter().filter_map(|name| name.parse().ok()).collect();
    rules.isolates_tenants = config.prefix.cache_isolation == CacheIsolation::Tenant;
    rules
}

/// How pods are chosen. Configuration was checked, so a bad profile can't get here; the default would serve in its place.
pub(super) fn routing(config: &Config) -> Routing {
    let made = |settings: &ProfileSettings| Arc::new(Profile::new(settings).unwrap_or_default());
    let routing = &config.routing;
    let named: HashMap<&str, Arc<Profile>> =
        routing.profiles.iter().map(|(name, settings)| (name.as_str(), made(settings))).collect();
    let selections = routing.select.iter().filter_map(|one| {
        let name = one.header.as_ref().and_then(|name| name.parse().ok());
        Some(Selection {
            models: one.models.iter().flat_map(|name| config.models.upstream(name)).collect(),
            header: name.map(|name| (name, one.value.clone())),
            profile: Arc::clone(named.get(one.profile.as_str())?),
        })
    });
    Routing {
        profile: made(&routing.profile),
        selections: selections.collect(),
        session_header: routing.session_header.as_ref().and_then(|name| name.parse().ok()),
        session_cookie: routing.session_cookie.clone(),
    }
}

/// Whether strangers may use the gate's key for pods: it has one, asks for none, and listens where others than this machine
/// connect.
fn lends_its_key(config: &Config) -> bool {
    let mut addrs = std::iter::once(config.listen.addr).chain(config.listen.h2c_addr);
    let lends = config.pods.credential_file.is_some() && config.flow.keys_file.is_none();
    lends && addrs.any(|addr| !addr.ip().to_canonical().is_loopback())
}

/// Tells what is allowed but dangerous.
pub(super) fn warn(config: &Config) {
    if lends_its_key(config) {
        tracing::warn!(
            "pods.credential_file is set and clients are not asked for keys: whoever can connect to the listening \
             address uses the pods with the gate's key; put authentication in front, or listen on a loopback address"
        );
    }
}

/// Bounds of the prefix index.
pub(super) fn index_limits(config: &Config) -> Limits {
    Limits {
        bytes_max: usize::try_from(config.prefix.index_bytes_max).unwrap_or(usize::MAX),
        pod_tokens: Tokens(config.prefix.pod_tokens_default),
        tenant_share: config.prefix.tenant_share,
    }
}

/// One worker per processor that the process may use (container quotas respected).
pub fn workers_default() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// An unpredictable number.
pub(super) fn seed() -> io::Result<u64> {
    random().map(u64::from_ne_bytes)
}

/// Bytes that nobody can foresee.
pub(super) fn random<const COUNT: usize>() -> io::Result<[u8; COUNT]> {
    let mut bytes = [0; COUNT];
    getrandom::fill(&mut bytes)
        .map_err(|error| io::Error::other(format!("the system gives no random numbers: {error}")))?;
    Ok(bytes)
}

/// Memory the process uses.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Memory the container may use (cgroup v2, then v1); `None` outside of one or without a bound.
pub(super) fn container_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let max = read("/sys/fs/cgroup/memory.max").or_else(|| read("/sys/fs/cgroup/memory/memory.limit_in_bytes"))?;
    // Version 1 writes "no bound" as a number near 2^63.
    (max < 1 << 60).then_some(max)
}

/// Descriptors the process may open.
fn descriptors() -> Option<u64> {
    let limits = std::fs::read_to_string("/proc/self/limits").ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::expect_used)]
    use super::*;

    #[test]
    fn a_key_that_strangers_may_use_is_told_of() {
        for (addr, h2c_addr, has_key, expected) in [
            ("127.0.0.1:1", None, true, false),
            ("[::1]:1", None, true, false),
            ("0.0.0.0:1", None, false, false),
            ("0.0.0.0:1", None, true, true),
            ("[::]:1", None, true, true),
            ("127.0.0.1:1", Some("10.0.0.1:2"), true, true),
        ] {
            let mut config = crate::config::load(&crate::config::ServeArgs::default()).expect("defaults are good");
            config.listen.addr = addr.parse().expect("an address");
            config.listen.h2c_addr = h2c_addr.map(|addr| addr.parse().expect("an address"));
            config.pods.credential_file = has_key.then(|| "key".into());
            assert_eq!(lends_its_key(&config), expected, "{addr} {h2c_addr:?}");
            config.flow.keys_file = Some("keys".into());
            assert!(!lends_its_key(&config));
        }
    }

    #[test]
    fn the_system_tells_its_limits() {
        assert!(descriptors().is_some_and(|count| count > 0));
        assert!(workers_default() > 0);
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        assert_ne!(seed().ok(), seed().ok());
    }
}
