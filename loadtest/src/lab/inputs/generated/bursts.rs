//! Requests as in `mixed`, but in bursts: a quiet rate, and at times a multiple of it for some seconds.
use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use super::Mixed;
use crate::lab::script::{Draw as _, Script, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Bursts {
    /// What requests look like; its rate is the quiet one.
    pub(crate) of: Mixed,
    /// How many times the quiet rate a burst is.
    pub(crate) times: f64,
    /// From the end of a burst to the next, mean \[s\].
    pub(crate) every_s: f64,
    /// Length of a burst, mean \[s\].
    pub(crate) last_s: f64,
}

impl Default for Bursts {
    fn default() -> Self {
        let of = Mixed { rate: 4.0, prompt_tokens: 2_000.0, output_tokens: 250.0, ..Mixed::default() };
        Self { of, times: 8.0, every_s: 60.0, last_s: 6.0 }
    }
}

impl Bursts {
    pub(in super::super) fn script(&self, seed: u64) -> Script {
        let mut rng = Rng::new(mix(seed, 0xB025));
        let mut sessions = Vec::new();
        let (mut at, mut is_burst) = (0.0, false);
        let mut turns_at = rng.exponential(self.every_s);
        while at < self.of.secs {
            let rate = if is_burst { self.of.rate * self.times } else { self.of.rate };
            let next = at + rng.exponential(1.0 / rate);
            if next > turns_at {
                at = turns_at;
                is_burst = !is_burst;
                turns_at += rng.exponential(if is_burst { self.last_s } else { self.every_s });
                continue;
            }
            at = next;
            let own = mix(sessions.len() as u64, mix(seed, 6));
            sessions.push(self.of.session(&mut rng, (at * 1e6) as u64, own));
        }
        Script { sessions, has_template: true }
    }
}
