//! What clients are promised about time: by configuration, and by what they ask for themselves.
use http::HeaderMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Slo;

/// Fields that ask for a time to first token; the first one given counts. The others are llm-d's.
const TTFT_FIELDS: [&str; 3] = ["x-tidegate-ttft-slo-ms", "x-llm-d-slo-ttft-ms", "x-slo-ttft-ms"];
/// Fields that ask for a time between tokens.
const ITL_FIELDS: [&str; 3] = ["x-tidegate-itl-slo-ms", "x-llm-d-slo-tpot-ms", "x-slo-tpot-ms"];

/// Field that says for how long an answer is of use: a stream must have begun by then, any other answer be complete.
const DEADLINE_FIELDS: [&str; 1] = ["x-tidegate-deadline-ms"];

/// For how long an answer to a request is of use, if it says so \[seconds since it came\].
pub fn deadline_s(fields: &HeaderMap) -> Option<f64> {
    asked_s(fields, &DEADLINE_FIELDS)
}

/// Promises, under `flow.slo` and `models.<name>.slo`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SloSettings {
    /// Time to the first token, in milliseconds; unset promises none.
    pub ttft_ms: Option<u32>,
    /// Mean time between tokens of an answer, in milliseconds; unset promises none.
    pub itl_ms: Option<u32>,
}

impl SloSettings {
    /// Everything that makes no sense, as (field, what to write instead).
    pub fn problems(&self) -> Vec<(&'static str, String)> {
        let fields = [("ttft_ms", self.ttft_ms), ("itl_ms", self.itl_ms)];
        let bad = fields.into_iter().filter_map(|(field, value)| Some((field, value?)));
        let bad = bad.filter(|(_, value)| !is_possible(f64::from(*value)));
        bad.map(|(field, value)| (field, format!("{value} is no promise; write 1 to 86400000, or leave it out")))
            .collect()
    }

    /// These, and those of `general` where there are none.
    #[must_use]
    pub fn or(self, general: Self) -> Self {
        Self { ttft_ms: self.ttft_ms.or(general.ttft_ms), itl_ms: self.itl_ms.or(general.itl_ms) }
    }

    /// What is configured.
    pub fn configured(self) -> Slo {
        let seconds = |ms: Option<u32>| ms.map(|ms| f64::from(ms) / 1e3);
        Slo { ttft_s: seconds(self.ttft_ms), itl_s: seconds(self.itl_ms) }
    }

    /// What a request is promised. Its own fields may loosen what is configured; they tighten it only if the caller
    /// `is_trusted`, since a promise is what pods and queues are spent on. Where nothing is configured they count as they are.
    pub fn of(self, fields: &HeaderMap, is_trusted: bool) -> Slo {
        let promised = |names: &[&str], configured: Option<f64>| match (asked_s(fields, names), configured) {
            (Some(asked), Some(configured)) if !is_trusted => Some(asked.max(configured)),
            (asked, configured) => asked.or(configured),
        };
        let configured = self.configured();
        Slo { ttft_s: promised(&TTFT_FIELDS, configured.ttft_s), itl_s: promised(&ITL_FIELDS, configured.itl_s) }
    }
}

/// What the first of these fields that is given says \[seconds\]; what is no number is not heeded.
fn asked_s(fields: &HeaderMap, names: &[&str]) -> Option<f64> {
    let value = names.iter().find_map(|name| fields.get(*name))?;
    let ms: f64 = value.to_str().ok()?.trim().parse().ok()?;
    is_possible(ms).then_some(ms / 1e3)
}

fn is_possible(ms: f64) -> bool {
    (0.1..=86_400_000.0).contains(&ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |&(name, value): &(&'static str, &'static str)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn a_client_may_loosen_what_is_promised_and_a_trusted_one_may_tighten_it() {
        let set = SloSettings { ttft_ms: Some(500), itl_ms: None };
        let of = |pairs: &[_], is_trusted| {
            let slo = set.of(&fields(pairs), is_trusted);
            (slo.ttft_s, slo.itl_s)
        };
        assert_eq!(of(&[], false), (Some(0.5), None));
        assert_eq!(of(&[("x-tidegate-ttft-slo-ms", "200")], false), (Some(0.5), None));
        assert_eq!(of(&[("x-tidegate-ttft-slo-ms", "200")], true), (Some(0.2), None));
        assert_eq!(of(&[("x-llm-d-slo-ttft-ms", " 900 "), ("x-slo-tpot-ms", "40")], false), (Some(0.9), Some(0.04)));
        for nonsense in ["", "-5", "0", "NaN", "inf", "1e99", "soon"] {
            assert_eq!(of(&[("x-tidegate-ttft-slo-ms", nonsense)], true), (Some(0.5), None), "{nonsense}");
        }
    }

    #[test]
    fn a_deadline_is_any_callers_to_set() {
        assert_eq!(deadline_s(&fields(&[("x-tidegate-deadline-ms", "1500")])), Some(1.5));
        assert_eq!(deadline_s(&fields(&[])), None);
        assert_eq!(deadline_s(&fields(&[("x-tidegate-deadline-ms", "tomorrow")])), None);
    }

    #[test]
    fn a_model_has_its_own_promises_and_the_general_ones_beside_them() {
        let general = SloSettings { ttft_ms: Some(500), itl_ms: Some(50) };
        let own = SloSettings { ttft_ms: Some(90), itl_ms: None };
        assert_eq!(own.or(general), SloSettings { ttft_ms: Some(90), itl_ms: Some(50) });
        assert!(general.problems().is_empty());
        let bad = SloSettings { ttft_ms: Some(0), itl_ms: Some(u32::MAX) };
        assert_eq!(bad.problems().iter().map(|(field, _)| *field).collect::<Vec<_>>(), ["ttft_ms", "itl_ms"]);
    }
}
