//! What configuration says of prefill and decode on two pods: the section `disaggregation`.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::connectors::connector;
use crate::pods::{Fleet, PodSpec};

/// How the pods hand over KV blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ConnectorName {
    /// `NixlConnector`: the decoder pulls the blocks.
    #[default]
    Nixl,
    /// `NixlPushConnector` (experimental in vLLM): the prefiller writes the blocks.
    NixlPush,
    /// `MooncakeConnector`.
    Mooncake,
    /// `OffloadingConnector` with its peer-to-peer tier.
    Offloading,
    /// Storage that all pods share.
    SharedStorage,
}

/// What decides between one pod and two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decider {
    /// Whatever is predicted to cost less, for this request at this moment.
    #[default]
    Cost,
    /// Two pods whenever it can be done.
    Always,
    /// One pod.
    Never,
    /// Two pods if at least `uncached_tokens_min` tokens of the prompt are not in the decoder's cache.
    UncachedTokens,
}

/// What becomes of a request whose prefill failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// A decode pod does it all.
    #[default]
    Fallback,
    /// The client gets an error.
    Fail,
}

/// Settings under `disaggregation`. They count only where some pods have the role `prefill`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How the pods hand over KV blocks: `nixl`, `nixl-push`, `mooncake`, `offloading`, `shared-storage`. Only `nixl` was proven on
    /// real engines, the others on simulated pods that check what vLLM 0.32 reads.
    pub connector: ConnectorName,
    /// What decides between one pod and two: `cost`, `always`, `never`, `uncached_tokens`.
    pub decider: Decider,
    /// For `uncached_tokens`: fewer tokens to compute than this stay with the decode pod.
    pub uncached_tokens_min: u64,
    /// What becomes of a request whose prefill failed: `fallback` (a decode pod does it all) or `fail`.
    pub on_prefill_failure: Fallback,
    /// How long a prefill pod keeps blocks that nobody has fetched, in seconds. Must be what the pods have: an answer of a prefill
    /// that is used too late gives wrong text. Unset: 30 for NIXL (`kv_lease_duration`), 480 for Mooncake
    /// (`VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT`), 60 for offloading (`unbound_store_timeout_s`).
    pub lease_s: Option<f64>,
    /// Port of the prefill pods' side service, where the decode pods are told of it: Mooncake's bootstrap server (8998) or the
    /// port of the peer-to-peer tier (7777, plus the rank). A pod with the label `kv-port` has its own.
    pub kv_port: Option<u16>,
    /// Experimental: a decode pod may be asked for the prefill too, if it holds more of the prompt than the one that is to decode: that
    /// pulls the prefix from a warm peer. Only with `nixl`, where every pod is started with `"kv_role":"kv_both"`.
    pub pull_from_decoders: bool,
    /// Longest time for a prefill, in seconds.
    pub prefill_timeout_s: f64,
    /// Check, before anything reaches the client, that the decoder read what the prefiller wrote: its first token against the
    /// prefiller's own and, with NIXL, if that came late, the prefill pod's count of leases that ran out.
    pub sentinel: bool,
    /// Make each pair's first contact when it is discovered, by a request of a few tokens.
    pub prewarm: bool,
    /// Labels that a prefill pod and a decode pod must have in common to be used together, such as `rack` or `fabric`.
    pub pair_labels: Vec<String>,
    /// How long a pair that failed to hand over is not used, in seconds.
    pub suspect_s: f64,
    /// Hand the prefiller's token ids to the decoder, so that it need not tokenize (vLLM 0.30 and newer).
    pub pass_token_ids: bool,
    /// Put the prefill pod's own address in place of the host it tells, for pods that tell `localhost`.
    pub rewrite_host: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connector: ConnectorName::default(),
            decider: Decider::default(),
            uncached_tokens_min: 512,
            on_prefill_failure: Fallback::default(),
            lease_s: None,
            kv_port: None,
            pull_from_decoders: false,
            prefill_timeout_s: 120.0,
            sentinel: true,
            prewarm: true,
            pair_labels: Vec::new(),
            suspect_s: 30.0,
            pass_token_ids: false,
            rewrite_host: false,
        }
    }
}

impl Settings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        for (field, value, least) in [
            ("lease_s", self.lease_s.unwrap_or(30.0), 5.0),
            ("prefill_timeout_s", self.prefill_timeout_s, 0.1),
            ("suspect_s", self.suspect_s, 0.0),
        ] {
            if !(least..=86_400.0).contains(&value) {
                problems.push((field, format!("{value} is out of range; write {least} to 86400 seconds")));
            }
        }
        if self.pull_from_decoders && self.connector != ConnectorName::Nixl {
            problems.push(("pull_from_decoders", "only `nixl` can do that; leave it out".to_owned()));
        }
        problems
    }

    /// Whether there are pods to prefill for others.
    pub fn can_split(&self, fleet: &Fleet) -> bool {
        fleet.has_prefill || self.pull_from_decoders && fleet.pods.len() > 1
    }

    /// See [`Settings::lease_s`].
    pub fn lease(&self) -> Duration {
        self.lease_s.map_or_else(|| connector(self.connector).lease(), Duration::from_secs_f64)
    }

    /// Port of a prefill pod's side service: its label `kv-port`, else as configured, else the connector's own; of a rank behind
    /// it, so many further. 0 where there is none.
    pub fn port(&self, pod: &PodSpec) -> u16 {
        let label = pod.labels.get("kv-port").and_then(|port| port.parse().ok());
        let first = label.or(self.kv_port).or_else(|| connector(self.connector).port()).unwrap_or(0);
        let is_by_rank = self.connector == ConnectorName::Offloading;
        first.saturating_add(if is_by_rank { pod.rank.unwrap_or(0) as u16 } else { 0 })
    }

    /// See [`Settings::prefill_timeout_s`].
    pub fn prefill_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.prefill_timeout_s)
    }

    /// See [`Settings::suspect_s`].
    pub fn suspect(&self) -> Duration {
        Duration::from_secs_f64(self.suspect_s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nonsense_is_told() {
        assert_eq!(Settings::default().problems(), []);
        let bad = Settings { lease_s: Some(2.0), prefill_timeout_s: f64::NAN, ..Settings::default() };
        let fields: Vec<_> = bad.problems().into_iter().map(|problem| problem.0).collect();
        assert_eq!(fields, ["lease_s", "prefill_timeout_s"]);
        let pull = Settings { pull_from_decoders: true, connector: ConnectorName::Mooncake, ..Settings::default() };
        assert_eq!(pull.problems().len(), 1);
    }
}
