//! A profile: which filters, scorers and picker make a decision. Built once from settings, shared by all requests.
//!
//! The guards (model, role, awake, health, excluded) always run, first and in that order; naming one in the settings
//! changes its settings, not its place. Without them a request could reach a pod that cannot serve it or that it already
//! failed on. The default profile is meant to need no tuning.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::expression::BadExpression;
use super::filters::{self, FilterSettings};
use super::marginal::Rates;
use super::pickers::{self, PickerSettings};
use super::plugin::{Filter, Picker, Scorer};
use super::scorers::{self, ScorerSettings};

/// Most filters of a profile, guards included.
pub const FILTERS_MAX: usize = 32;
/// Filters that always run.
const GUARDS: usize = 5;
/// Most scorers of a profile.
pub const SCORERS_MAX: usize = 32;

/// Settings under `routing.profiles.<name>`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ProfileSettings {
    /// Filters, each as `- name: {settings}`. `model`, `role`, `awake`, `health` and `excluded` always run; list one only to
    /// change its settings. The others run after these, in the order written.
    pub filters: Vec<FilterSettings>,
    /// Scorers, each as `- name: {weight: 1, ...}`. The cost of a pod is the sum of weight times cost; lower is better.
    pub scorers: Vec<ScorerSettings>,
    /// How one of the pods left is taken, as `name: {settings}`.
    pub picker: PickerSettings,
}

impl Default for ProfileSettings {
    fn default() -> Self {
        Self {
            filters: Vec::new(),
            scorers: vec![ScorerSettings::MarginalCost(scorers::marginal_cost::Settings::default())],
            picker: PickerSettings::Best(pickers::best::Settings::default()),
        }
    }
}

/// What is wrong with the settings of a profile.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BadProfile {
    /// More filters than [`FILTERS_MAX`] or scorers than [`SCORERS_MAX`].
    #[error("a profile has at most {FILTERS_MAX} filters and {SCORERS_MAX} scorers; remove some")]
    TooMany,
    /// A plug-in is listed twice.
    #[error("`{0}` is listed twice; keep one of the two")]
    Twice(&'static str),
    /// An expression that can't be used.
    #[error("the expression under `{0}` can't be used: {1}")]
    Expression(&'static str, BadExpression),
    /// A weight below 0, infinite or not a number.
    #[error("the weight of `{0}` is {1}; write a number from 0 up (a higher weight makes its cost count more)")]
    Weight(&'static str, f64),
}

/// A filter ready to run.
#[derive(Debug)]
pub(super) struct NamedFilter {
    pub(super) name: &'static str,
    pub(super) filter: Box<dyn Filter>,
}

/// A scorer ready to run.
#[derive(Debug)]
pub(super) struct WeighedScorer {
    pub(super) name: &'static str,
    pub(super) weight: f64,
    pub(super) scorer: Box<dyn Scorer>,
}

/// A way to decide. Immutable.
#[derive(Debug)]
pub struct Profile {
    pub(super) filters: Vec<NamedFilter>,
    pub(super) scorers: Vec<WeighedScorer>,
    pub(super) picker: Box<dyn Picker>,
}

impl Default for Profile {
    fn default() -> Self {
        Self::made(&ProfileSettings::default())
    }
}

impl Profile {
    /// The profile these settings describe, or everything that is wrong with them.
    pub fn new(settings: &ProfileSettings) -> Result<Self, Vec<BadProfile>> {
        let mut problems = Vec::new();
        if guards_and(&settings.filters).count() > FILTERS_MAX || settings.scorers.len() > SCORERS_MAX {
            problems.push(BadProfile::TooMany);
        }
        let filters = settings.filters.iter().map(FilterSettings::name);
        twice(filters.collect(), &mut problems);
        twice(settings.scorers.iter().map(ScorerSettings::name).collect(), &mut problems);
        for scorer in &settings.scorers {
            let weight = scorer.weight();
            if !weight.is_finite() || weight < 0.0 {
                problems.push(BadProfile::Weight(scorer.name(), weight));
            }
        }
        problems.extend(settings.filters.iter().filter_map(|one| match one {
            FilterSettings::Expression(own) => Some(BadProfile::Expression("filters", own.problem()?)),
            _ => None,
        }));
        problems.extend(settings.scorers.iter().filter_map(|one| match one {
            ScorerSettings::Expression(own) => Some(BadProfile::Expression("scorers", own.problem()?)),
            _ => None,
        }));
        if problems.is_empty() { Ok(Self::made(settings)) } else { Err(problems) }
    }

    /// The constants of the marginal cost, if a pod's place among the others follows from that cost alone.
    pub(super) fn marginal(&self) -> Option<&Rates> {
        let [only] = self.scorers.as_slice() else { return None };
        let is_plain = self.filters.len() == GUARDS && self.picker.takes_best();
        only.scorer.marginal().filter(|_| is_plain)
    }

    fn made(settings: &ProfileSettings) -> Self {
        let filter = |one: FilterSettings| NamedFilter { name: one.name(), filter: one.build() };
        let scorer =
            |one: &ScorerSettings| WeighedScorer { name: one.name(), weight: one.weight(), scorer: one.build() };
        Self {
            filters: guards_and(&settings.filters).map(filter).collect(),
            scorers: settings.scorers.iter().map(scorer).collect(),
            picker: settings.picker.build(),
        }
    }
}

/// The guards with their settings from `listed` where given, then the rest of `listed`.
fn guards_and(listed: &[FilterSettings]) -> impl Iterator<Item = FilterSettings> + '_ {
    let guards: [_; GUARDS] = [
        FilterSettings::Model(filters::model::Settings::default()),
        FilterSettings::Role(filters::role::Settings::default()),
        FilterSettings::Awake(filters::awake::Settings::default()),
        FilterSettings::Health(filters::health::Settings::default()),
        FilterSettings::Excluded(filters::excluded::Settings::default()),
    ];
    let names = guards.each_ref().map(FilterSettings::name);
    let guards = guards.into_iter().map(|guard| {
        let given = listed.iter().find(|one| one.name() == guard.name());
        given.cloned().unwrap_or(guard)
    });
    guards.chain(listed.iter().filter(move |one| !names.contains(&one.name())).cloned())
}

fn twice(mut names: Vec<&'static str>, problems: &mut Vec<BadProfile>) {
    names.sort_unstable();
    let repeated = names.windows(2).filter_map(|pair| match pair {
        [one, other] if one == other => Some(*one),
        _ => None,
    });
    let mut repeated: Vec<_> = repeated.collect();
    repeated.dedup();
    problems.extend(repeated.into_iter().map(BadProfile::Twice));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    const NAMES: [&str; GUARDS] = ["model", "role", "awake", "health", "excluded"];

    fn read(yaml: &str) -> Result<ProfileSettings, String> {
        serde_yaml::from_str(yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn guards_always_run_first() {
        let names = |yaml: &str| {
            let profile = Profile::new(&read(yaml).unwrap()).unwrap();
            profile.filters.iter().map(|filter| filter.name).collect::<Vec<_>>()
        };
        assert_eq!(names("{}"), NAMES);
        assert_eq!(names("filters: [{excluded: {}}, {health: {}}]"), NAMES);
    }

    #[test]
    fn settings_read_as_documented() {
        let text = "scorers:\n  - prefix-hit: {weight: 2}\n  - active-requests: {}\npicker:\n  power-of-two: {}\n";
        let settings = read(text).unwrap();
        let weights: Vec<_> = settings.scorers.iter().map(|one| (one.name(), one.weight().to_string())).collect();
        assert_eq!(weights, [("prefix-hit", "2".to_owned()), ("active-requests", "1".to_owned())]);
        assert_eq!(settings.picker.name(), "power-of-two");
        assert!(read("scorers: [{nothing: {}}]").unwrap_err().contains("nothing"));
        assert!(read("scorers: [{prefix-hit: {wait: 2}}]").unwrap_err().contains("wait"));
    }

    #[test]
    fn all_problems_are_told_at_once() {
        let text = "scorers: [{prefix-hit: {weight: -1}}, {active-requests: {weight: .nan}}, {prefix-hit: {}}]";
        let problems = Profile::new(&read(text).unwrap()).unwrap_err();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(problems[0], BadProfile::Twice("prefix-hit"));
    }
}
