//! A cost of the operator's own: a CEL expression over values of the pod and the request.
//!
//! Formula: as written in `cost`, for example `wait_s + prefill_s + 0.01 * requests`; lower is better. All numbers are doubles.
//! Reads: the values listed in `scheduling::expression::NAMES`, each as fresh as its source; nothing else.
//! Range: any finite number \[as written\].
//! Unknown: an expression that needs something unknown on a pod has an unknown cost there, which counts as the mean of the
//!   others; so has one that gives no number.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scheduling::expression::{BadExpression, Expression as Compiled, Kind};
use crate::scheduling::{Candidates, Context, Range, Scorer};

/// Settings of `expression`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// How much a cost of 1 counts in the total.
    pub weight: f64,
    /// The CEL expression that gives the cost, for example `wait_s + prefill_s`.
    pub cost: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { weight: 1.0, cost: "requests".into() }
    }
}

impl Settings {
    /// What is wrong with the expression.
    pub fn problem(&self) -> Option<BadExpression> {
        Compiled::compile(&self.cost, Kind::Number).err()
    }
}

#[derive(Debug)]
struct Expression(Option<Compiled>);

/// Makes the scorer. A bad expression, which configuration refuses, has an unknown cost everywhere.
pub fn build(settings: &Settings) -> Box<dyn Scorer> {
    Box::new(Expression(Compiled::compile(&settings.cost, Kind::Number).ok()))
}

impl Scorer for Expression {
    fn range(&self) -> Range {
        Range { low: f64::NEG_INFINITY, high: f64::INFINITY, unit: "as written" }
    }

    fn cost(&self, cx: &Context<'_>, pods: &Candidates<'_>, costs: &mut [Option<f64>]) {
        let Some(compiled) = &self.0 else { return };
        for (pod, cost) in pods.iter().zip(costs) {
            *cost = compiled.number(cx, pod);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{costs, loaded};

    #[test]
    fn costs_as_written() {
        let settings = |cost: &str| Settings { cost: cost.into(), ..Settings::default() };
        let pods = [loaded(0, 2, 0, 0), loaded(1, 5, 0, 0)];
        let request = Request::new("m", Tokens(1));
        assert_eq!(costs(&*build(&settings("requests * 3.0")), &request, &pods), [Some(6.0), Some(15.0)]);
        assert_eq!(costs(&*build(&settings("nonsense(")), &request, &pods), [None, None]);
        assert!(settings("nonsense(").problem().is_some() && settings("wait_s").problem().is_none());
    }
}
