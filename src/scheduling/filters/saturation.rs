//! Spares pods that are full while another is not.
//!
//! Reads: `load` (own bookings, current), `capacity` (scrape), `reading.waiting` if no older than `age_ms_max`.
//! Drops: pods with more predicted prefill than `wait_s_max`, more of their KV cache pinned than `kv_share_max`, or more requests
//!   waiting than `waiting_max`, if any pod is within all three.
//! Range: keep or drop. If all are full all stay: someone has to take it.
//! Unknown: without a capacity the KV share is not looked at, without a fresh reading neither is the engine's queue.
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::{Candidates, Context, Filter, PodView, Verdict};

/// Settings of `saturation`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Most predicted prefill before this request \[seconds\].
    pub wait_s_max: f64,
    /// Most of the KV cache that running requests of ours may pin, 0 to 1.
    pub kv_share_max: f64,
    /// Most requests waiting in the engine.
    pub waiting_max: u32,
    /// Oldest reading that is believed \[ms\].
    pub age_ms_max: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { wait_s_max: 2.0, kv_share_max: 0.95, waiting_max: 5, age_ms_max: 2000 }
    }
}

impl Saturation {
    /// Why a pod is full.
    fn full(&self, pod: &PodView) -> Option<&'static str> {
        let age_max = Duration::from_millis(self.0.age_ms_max);
        let pinned = pod.load.pinned_tokens.0 as f64;
        let is_full = |capacity: u64| pinned > self.0.kv_share_max * capacity as f64;
        let waiting = pod.reading_within(age_max).and_then(|reading| reading.waiting);
        if pod.load.wait_s > self.0.wait_s_max {
            Some("has a long queue")
        } else if pod.capacity.is_some_and(|capacity| is_full(capacity.0)) {
            Some("its KV cache is full")
        } else if waiting.is_some_and(|waiting| waiting > self.0.waiting_max) {
            Some("its engine queues")
        } else {
            None
        }
    }
}

#[derive(Debug)]
struct Saturation(Settings);

/// Makes the filter.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(Saturation(settings.clone()))
}

impl Filter for Saturation {
    fn judge(&self, _: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        if !pods.iter().any(|pod| self.full(pod).is_none()) {
            return;
        }
        for (pod, verdict) in pods.iter().zip(verdicts) {
            if let Some(why) = self.full(pod) {
                *verdict = Verdict::Drop(why);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, loaded, pod, read};

    #[test]
    fn full_pods_are_spared_while_one_is_open() {
        let mut waits = loaded(1, 3, 3, 9_999);
        waits.load.wait_s = 3.0;
        let mut holds = PodView { capacity: Some(Tokens(1000)), ..pod(2) };
        holds.load.pinned_tokens = Tokens(960);
        let mut queues = read(pod(3), None, 100);
        queues.reading.as_mut().unwrap().waiting = Some(9);
        let kept = |pods: &[_]| judged(&*build(&Settings::default()), &Request::new("m", Tokens(1)), pods);
        assert_eq!(kept(&[pod(0), waits, holds, queues]), [true, false, false, false]);
        assert_eq!(kept(&[waits, holds, queues]), [true, true, true]);
    }
}
