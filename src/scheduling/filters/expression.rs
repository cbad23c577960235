//! Keeps the pods for which a CEL expression of the operator's own is true.
//!
//! Reads: the values listed in `scheduling::expression::NAMES`, each as fresh as its source; nothing else.
//! Drops: pods for which `keep` is false. With `or_all` (the default) nobody is dropped if it is false for all.
//! Range: keep or drop. All numbers are doubles: write `2.0`, not `2`.
//! Unknown: a pod on which the expression needs something unknown stays.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::expression::{BadExpression, Expression as Compiled, Kind};
use crate::scheduling::{Candidates, Context, Filter, PodView, Verdict};

/// Settings of `expression`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The CEL expression that is true for pods to keep, for example `waiting < 5.0`.
    pub keep: String,
    /// Whether all stay if it is false for all; else the request gets no pod.
    pub or_all: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { keep: "true".into(), or_all: true }
    }
}

impl Settings {
    /// What is wrong with the expression.
    pub fn problem(&self) -> Option<BadExpression> {
        Compiled::compile(&self.keep, Kind::Bool).err()
    }
}

#[derive(Debug)]
struct Expression {
    keep: Option<Compiled>,
    or_all: bool,
}

/// Makes the filter. A bad expression, which configuration refuses, keeps everybody.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(Expression { keep: Compiled::compile(&settings.keep, Kind::Bool).ok(), or_all: settings.or_all })
}

impl Filter for Expression {
    fn judge(&self, cx: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        let Some(keep) = &self.keep else { return };
        let keeps = |pod: &PodView| keep.truth(cx, pod).unwrap_or(true);
        for (pod, verdict) in pods.iter().zip(verdicts.iter_mut()) {
            if !keeps(pod) {
                *verdict = Verdict::Drop("its expression is false");
            }
        }
        if self.or_all && verdicts.iter().all(|verdict| !verdict.keeps()) {
            verdicts.fill(Verdict::Keep);
        }
    }

    fn is_lasting(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{judged, loaded};

    #[test]
    fn keeps_what_it_says() {
        let pods = [loaded(0, 2, 0, 0), loaded(1, 5, 0, 0)];
        let kept = |keep: &str, or_all| {
            let settings = Settings { keep: keep.into(), or_all };
            judged(&*build(&settings), &Request::new("m", Tokens(1)), &pods)
        };
        assert_eq!((kept("requests < 3.0", true), kept("requests > 9.0", true)), (vec![true, false], vec![true, true]));
        assert_eq!(
            (kept("requests > 9.0", false), kept("kv_used < 0.5", false)),
            (vec![false, false], vec![true, true])
        );
    }
}
