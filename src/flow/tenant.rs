//! What a tenant may do: classes, models, promises, limits. Settings under `flow.tenants`, and the same resolved for look-up.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, LazyLock};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::caller::{Caller, Class};
use super::keys::tenant_name_problem;
use super::slo::SloSettings;
use crate::base::ModelName;

/// Most tenants with settings of their own; each has series of metrics.
pub const TENANTS_MAX: usize = 1_000;

/// Settings under `flow.tenants.<name>`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantSettings {
    /// Class of its requests that ask for none; unset means `standard`.
    pub class: Option<Class>,
    /// Classes its requests may ask for; unset means its class and all less urgent ones.
    pub classes: Option<Vec<Class>>,
    /// Models and adapters it may use, by any of their names; unset means all. To this tenant the others do not exist.
    pub models: Option<Vec<String>>,
    /// What its requests are promised, where it differs from the model's promise and from `flow.slo`.
    pub slo: SloSettings,
    /// Its share where requests have to wait, against other tenants of the same class; 2 gets twice as much as 1.
    pub weight: f64,
    /// What it may use.
    pub limits: TenantLimits,
}

impl Default for TenantSettings {
    fn default() -> Self {
        let limits = TenantLimits::default();
        Self { class: None, classes: None, models: None, slo: SloSettings::default(), weight: 1.0, limits }
    }
}

/// Settings under `flow.tenants.<name>.limits`. Each is divided by `flow.gates`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TenantLimits {
    /// Requests held at once, to the end of their streams; unset means no limit.
    pub concurrent_max: Option<u64>,
    /// Requests per minute; unset means no limit. A minute's worth may come at once.
    pub requests_per_minute: Option<u64>,
    /// Prompt and answer tokens per minute; unset means no limit. A minute's worth may come at once.
    pub tokens_per_minute: Option<u64>,
}

impl TenantLimits {
    /// Whether anything is limited.
    pub const fn is_any(&self) -> bool {
        self.concurrent_max.is_some() || self.requests_per_minute.is_some() || self.tokens_per_minute.is_some()
    }
}

/// Everything that makes no sense, as (tenant, field or nothing, what to write instead); no tenant means all of them.
pub fn problems(tenants: &BTreeMap<String, TenantSettings>) -> Vec<(&str, String, String)> {
    let mut found = Vec::new();
    if tenants.len() > TENANTS_MAX {
        let hint = format!("{} tenants are too many; name {TENANTS_MAX} or fewer", tenants.len());
        found.push(("", String::new(), hint));
    }
    for (name, settings) in tenants {
        if let Some(hint) = tenant_name_problem(name) {
            found.push((name, String::new(), hint));
        }
        if name == "other" {
            let hint = "in metrics this is the name of all tenants without an entry; write another one";
            found.push((name, String::new(), hint.into()));
        }
        let mut add = |field: &str, hint: String| found.push((name.as_str(), field.to_owned(), hint));
        settings.slo.problems().into_iter().for_each(|(field, hint)| add(&format!("slo.{field}"), hint));
        if !(settings.weight.is_finite() && (0.001..=1_000.0).contains(&settings.weight)) {
            add("weight", format!("{} is no share; write 0.001 to 1000", settings.weight));
        }
        if let Some(classes) = &settings.classes
            && !classes.contains(&settings.class.unwrap_or_default())
        {
            let own = settings.class.unwrap_or_default().as_str();
            add("classes", format!("its own class `{own}` is not among them; add it, or set another `class`"));
        }
        if settings.models.as_ref().is_some_and(Vec::is_empty) {
            add("models", "no model is allowed; name some, or leave it out for all".into());
        }
        let limits = settings.limits;
        for (field, value) in [
            ("limits.concurrent_max", limits.concurrent_max),
            ("limits.requests_per_minute", limits.requests_per_minute),
            ("limits.tokens_per_minute", limits.tokens_per_minute),
        ] {
            if let Some(value) = value.filter(|value| !(1..=1_000_000_000_000).contains(value)) {
                add(field, format!("{value} is no limit; write 1 to 1000000000000, or leave it out"));
            }
        }
    }
    found
}

/// One tenant's settings, resolved.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Class of requests that ask for none; `None`: none is stated, so they count as standard and nothing follows from it.
    pub class: Option<Class>,
    /// Classes its requests may ask for.
    pub classes: Vec<Class>,
    /// Names by which pods know the models it may use; `None` means all.
    pub models: Option<HashSet<ModelName>>,
    /// What its requests are promised, before what models promise.
    pub slo: SloSettings,
    /// Its share, against other tenants of the same class.
    pub weight: f64,
    /// What it may use.
    pub limits: TenantLimits,
}

impl Policy {
    /// The meaning of settings. `upstream` gives the names by which pods know a model.
    pub fn new(settings: &TenantSettings, upstream: impl Fn(&str) -> Vec<ModelName>) -> Self {
        let own = settings.class.unwrap_or_default();
        let lower = || Class::ALL.into_iter().filter(|class| *class >= own).collect();
        Self {
            class: settings.class,
            classes: settings.classes.clone().unwrap_or_else(lower),
            models: settings.models.as_ref().map(|names| names.iter().flat_map(|name| upstream(name)).collect()),
            slo: settings.slo,
            weight: settings.weight,
            limits: settings.limits,
        }
    }

    /// Whether a model may be used; the empty name stands for whichever model a pod serves.
    pub fn allows(&self, model: &str) -> bool {
        self.models.as_ref().is_none_or(|models| models.contains(model))
    }
}

/// The policies of all tenants.
#[derive(Clone, Debug)]
pub struct Tenants {
    named: HashMap<Arc<str>, Arc<Policy>>,
    default: Arc<Policy>,
}

impl Default for Tenants {
    fn default() -> Self {
        Self::new(&BTreeMap::new(), |name| vec![name.into()])
    }
}

impl Tenants {
    /// The meaning of `flow.tenants`.
    pub fn new(settings: &BTreeMap<String, TenantSettings>, upstream: impl Fn(&str) -> Vec<ModelName>) -> Self {
        let made = |(name, settings): (&String, &TenantSettings)| {
            (Arc::from(name.as_str()), Arc::new(Policy::new(settings, &upstream)))
        };
        let named: HashMap<Arc<str>, Arc<Policy>> = settings.iter().map(made).collect();
        let own = named.get(Caller::OPEN_TENANT).cloned();
        let default = own.unwrap_or_else(|| Arc::new(Policy::new(&TenantSettings::default(), &upstream)));
        Self { named, default }
    }

    /// The policy of a tenant; one that is not configured has that of the tenant `default`, though limits count for it alone.
    pub fn policy(&self, tenant: &str) -> &Arc<Policy> {
        self.named.get(tenant).unwrap_or(&self.default)
    }

    /// Names that are configured, and `default`: only these are in metrics.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let default = (!self.named.contains_key(Caller::OPEN_TENANT)).then_some(Caller::OPEN_TENANT);
        self.named.keys().map(|name| &**name).chain(default)
    }

    /// The tenant of everybody on a gate without keys.
    pub fn open() -> Arc<str> {
        static OPEN: LazyLock<Arc<str>> = LazyLock::new(|| Caller::OPEN_TENANT.into());
        Arc::clone(&OPEN)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn a_tenant_may_what_its_policy_says() {
        let gold = TenantSettings {
            class: Some(Class::Interactive),
            models: Some(vec!["alias".into()]),
            ..TenantSettings::default()
        };
        let chosen =
            TenantSettings { classes: Some(vec![Class::Standard, Class::Interactive]), ..TenantSettings::default() };
        let settings = BTreeMap::from([("gold".to_owned(), gold), ("chosen".to_owned(), chosen)]);
        let upstream = |name: &str| vec![if name == "alias" { "real".into() } else { ModelName::from(name) }];
        let tenants = Tenants::new(&settings, upstream);
        assert!(problems(&settings).is_empty());
        assert_eq!(tenants.policy("gold").classes, Class::ALL);
        assert!(tenants.policy("gold").allows("real") && !tenants.policy("gold").allows("alias"));
        assert!(!tenants.policy("gold").allows(""), "whichever model there is may be one that is not allowed");
        assert_eq!(tenants.policy("nobody").classes, [Class::Standard, Class::Batch]);
        assert_eq!((tenants.policy("nobody").class, tenants.policy("nobody").allows("")), (None, true));
        assert_eq!(tenants.policy("chosen").classes, [Class::Standard, Class::Interactive]);
        let mut names: Vec<_> = tenants.names().collect();
        names.sort_unstable();
        assert_eq!(names, ["chosen", "default", "gold"]);
    }

    #[test]
    fn nonsense_is_told_with_its_place() {
        let bad = TenantSettings {
            class: Some(Class::Batch),
            classes: Some(vec![Class::Standard]),
            models: Some(Vec::new()),
            slo: SloSettings { ttft_ms: Some(0), itl_ms: None },
            weight: f64::NAN,
            limits: TenantLimits {
                concurrent_max: Some(0),
                requests_per_minute: None,
                tokens_per_minute: Some(u64::MAX),
            },
        };
        let plain = |name: &str| (name.to_owned(), TenantSettings::default());
        let settings = BTreeMap::from([plain("a b"), plain("other"), ("t".to_owned(), bad)]);
        let places: Vec<_> = problems(&settings).iter().map(|(name, field, _)| format!("{name}:{field}")).collect();
        let expected = [
            "a b:",
            "other:",
            "t:slo.ttft_ms",
            "t:weight",
            "t:classes",
            "t:models",
            "t:limits.concurrent_max",
            "t:limits.tokens_per_minute",
        ];
        assert_eq!(places, expected);
    }
}
