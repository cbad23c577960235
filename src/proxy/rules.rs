//! What the data path goes by, resolved from configuration: limits, times, trust, names. Replaced whole on a reload.
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::lint::HeadLimits;
use crate::api::PathRules;
use crate::base::ModelName;

/// Times allowed towards pods, per model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Making a connection.
    pub connect: Duration,
    /// Dispatch to the first data of a stream.
    pub first_token: Duration,
    /// Dispatch to the end of an answer that is not a stream.
    pub answer: Duration,
    /// Silence inside a stream.
    pub between_tokens: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_token: Duration::from_mins(5),
            answer: Duration::from_hours(1),
            between_tokens: Duration::from_mins(5),
        }
    }
}

/// A network in CIDR notation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Any address in it.
    pub addr: IpAddr,
    /// Leading bits that must agree.
    pub prefix_bits: u8,
}

impl Network {
    /// Whether `addr` lies in it.
    pub fn has(&self, addr: IpAddr) -> bool {
        let agree = |a: u128, b: u128, width: u32| {
            let bits = u32::from(self.prefix_bits).min(width);
            bits == 0 || (a ^ b) >> (width - bits) == 0
        };
        match (self.addr, addr.to_canonical()) {
            (IpAddr::V4(own), IpAddr::V4(other)) => agree(own.to_bits().into(), other.to_bits().into(), 32),
            (IpAddr::V6(own), IpAddr::V6(other)) => agree(own.to_bits(), other.to_bits(), 128),
            _ => false,
        }
    }
}

/// Everything the data path goes by.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Bounds of a request head.
    pub head: HeadLimits,
    /// From a head's first byte to its last; also from accepting a connection to its first byte.
    pub head_timeout: Duration,
    /// Idle time between two requests of a connection.
    pub idle_timeout: Duration,
    /// Largest request body \[bytes\].
    pub body_bytes_max: u64,
    /// Time for a body, plus a second per `body_floor_bytes`.
    pub body_timeout: Duration,
    /// Slowest rate at which a body may come \[bytes/s\].
    pub body_floor_bytes: u64,
    /// A client that takes nothing for so long is cut off.
    pub write_timeout: Duration,
    /// Client connections at once.
    pub connections_max: u64,
    /// Bytes of bodies held at once; past 90 % large bodies are refused, past 95 % all are.
    pub memory_bytes_max: u64,
    /// Networks whose forwarding and routing fields are believed.
    pub trusted: Vec<Network>,
    /// Paths opened beyond the table.
    pub paths: PathRules,
    /// Times of models without their own.
    pub times: Times,
    /// Times by model.
    pub model_times: HashMap<ModelName, Times>,
    /// Other names of models: alias to the name pods know.
    pub aliases: HashMap<ModelName, ModelName>,
    /// Decisions are shown to every client that asks.
    pub explain: bool,
    /// Attempts per request at most.
    pub attempts_max: u32,
    /// Whether a request that a pod took without answering may go to another pod.
    pub retries_delivered: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            head: HeadLimits { head_bytes_max: 64 * 1024, fields_max: 100 },
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_bytes_max: 64 << 20,
            body_timeout: Duration::from_secs(30),
            body_floor_bytes: 8 * 1024,
            write_timeout: Duration::from_mins(2),
            connections_max: 10_000,
            memory_bytes_max: 1 << 30,
            trusted: Vec::new(),
            paths: PathRules::default(),
            times: Times::default(),
            model_times: HashMap::new(),
            aliases: HashMap::new(),
            explain: false,
            attempts_max: 2,
            retries_delivered: true,
        }
    }
}

impl Rules {
    /// Whether a hop is believed.
    pub fn is_trusted(&self, addr: IpAddr) -> bool {
        self.trusted.iter().any(|network| network.has(addr))
    }

    /// Times of a model.
    pub fn times(&self, model: &str) -> Times {
        self.model_times.get(model).copied().unwrap_or(self.times)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn check(network: (&str, u8), addr: &str, expected: bool) {
        let network = Network { addr: network.0.parse().unwrap(), prefix_bits: network.1 };
        assert_eq!(network.has(addr.parse().unwrap()), expected, "{network:?} {addr}");
    }

    #[test]
    fn networks_compare_leading_bits() {
        check(("10.0.0.0", 8), "10.255.1.2", true);
        check(("10.0.0.0", 8), "11.0.0.1", false);
        check(("0.0.0.0", 0), "8.8.8.8", true);
        check(("127.0.0.1", 32), "127.0.0.2", false);
        check(("10.0.0.0", 8), "::ffff:10.1.1.1", true);
        check(("fd00::", 8), "fd12::1", true);
        check(("fd00::", 8), "10.0.0.1", false);
    }
}
