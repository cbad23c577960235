//! When a pod is taken out, for how long, and how it comes back.
//!
//! The defaults answer pods that die (out after three refused connections), that answer nonsense (five broken answers) and
//! that fail now and then (under 80 % good), and let a pod come back by one probe and a ramp instead of by a flood.
use std::time::Duration;

/// Passive health of pods.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Refused or timed-out connections in a row after which a pod is taken out.
    pub connect_failures_max: u32,
    /// Broken answers or 5xx in a row (503 apart) after which a pod is taken out.
    pub gateway_errors_max: u32,
    /// How long a pod is out the first time, in seconds. Doubles with each further time in a row.
    pub ejection_s: f64,
    /// Longest time a pod is out before it is tried again, in seconds.
    pub ejection_max_s: f64,
    /// Window over which the share of good answers is taken, in seconds.
    pub window_s: f64,
    /// Answers the window must hold before its share counts.
    pub window_samples_min: u32,
    /// Share of good answers (0 to 1) below which a pod is taken out.
    pub success_share_min: f64,
    /// Time after which a new or recovered pod gets its full share again, in seconds.
    pub ramp_s: f64,
    /// Good answers after which a new or recovered pod gets its full share, whatever the time.
    pub ramp_completions: u32,
    /// Longest time a pod's `Retry-After` is believed, in seconds.
    pub retry_after_max_s: f64,
    /// How long a pod is spared after a 429 or 503 without `Retry-After`, in milliseconds.
    pub busy_default_ms: u64,
    /// Share of a model's serving pods (0 to 1) that may be out at once. If more are, all are used again.
    pub ejected_share_max: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            connect_failures_max: 3,
            gateway_errors_max: 5,
            ejection_s: 5.0,
            ejection_max_s: 60.0,
            window_s: 10.0,
            window_samples_min: 20,
            success_share_min: 0.8,
            ramp_s: 30.0,
            ramp_completions: 32,
            retry_after_max_s: 30.0,
            busy_default_ms: 1_000,
            ejected_share_max: 0.5,
        }
    }
}

impl Settings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let mut problems = Vec::new();
        let counts = [
            ("connect_failures_max", self.connect_failures_max),
            ("gateway_errors_max", self.gateway_errors_max),
            ("window_samples_min", self.window_samples_min),
            ("ramp_completions", self.ramp_completions),
        ];
        for (field, count) in counts {
            if count == 0 {
                problems.push((field, "must be at least 1".to_owned()));
            }
        }
        let times = [
            ("ejection_s", self.ejection_s),
            ("ejection_max_s", self.ejection_max_s),
            ("window_s", self.window_s),
            ("ramp_s", self.ramp_s),
            ("retry_after_max_s", self.retry_after_max_s),
        ];
        for (field, seconds) in times {
            if !(0.1..=86_400.0).contains(&seconds) {
                problems.push((field, "must be between 0.1 and 86400 seconds".to_owned()));
            }
        }
        if self.ejection_max_s < self.ejection_s {
            problems.push(("ejection_max_s", "must not be less than ejection_s".to_owned()));
        }
        for (field, share) in
            [("success_share_min", self.success_share_min), ("ejected_share_max", self.ejected_share_max)]
        {
            if !(0.0..=1.0).contains(&share) {
                problems.push((field, "must be between 0 and 1".to_owned()));
            }
        }
        problems
    }

    /// How long the `nth` ejection in a row (from 1) lasts.
    pub(super) fn ejection(&self, nth: u32) -> Duration {
        let doublings = nth.saturating_sub(1).min(30);
        seconds((self.ejection_s * f64::from(1_u32 << doublings)).min(self.ejection_max_s))
    }
}

/// A duration from settings; nonsense becomes zero.
pub(super) fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_sound_and_ejections_double_to_the_cap() {
        let settings = Settings::default();
        assert_eq!(settings.problems(), []);
        let waits: Vec<u64> = (1..8).map(|nth| settings.ejection(nth).as_secs()).collect();
        assert_eq!(waits, [5, 10, 20, 40, 60, 60, 60]);
        assert_eq!(settings.ejection(u32::MAX).as_secs(), 60);
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let settings = Settings {
            gateway_errors_max: 0,
            ejection_s: f64::NAN,
            ejection_max_s: -1.0,
            success_share_min: 80.0,
            ..Settings::default()
        };
        let fields: Vec<&str> = settings.problems().iter().map(|problem| problem.0).collect();
        assert_eq!(fields, ["gateway_errors_max", "ejection_s", "ejection_max_s", "success_share_min"]);
    }
}
