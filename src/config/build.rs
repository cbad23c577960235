//! From [`Tree`] to [`Config`]: everything that has a shape but makes no sense is found here, all at once.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::locate::{Node, join};
use super::problem::{Problem, Problems};
use super::sections::{NOT_A_HEADER, Prefix, Routing, is_header};
use super::shown::Shown;
use super::tree::Tree;
use crate::base::ModelName;
use crate::discovery::{self, PodSource};
use crate::flow::SloSettings;
use crate::pods::Role;
use crate::proxy::settings::{Limits, Listen, Model, Timeouts, Trust};
use crate::{admin, disagg, export, flow, observe, telemetry};

/// Most headers that may name a class: each is looked for in every request.
const CLASS_HEADERS_MAX: usize = 16;

/// What the configuration means. Each part is handed to its room.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// Where operators look.
    pub admin: admin::Settings,
    /// Where requests go.
    pub pods: discovery::Settings,
    /// Pod endpoints before resolution.
    pub sources: Vec<PodSource>,
    /// Names of models and what differs for them.
    pub models: ModelNames,
    /// Who is believed.
    pub trust: Trust,
    /// How a pod is chosen.
    pub routing: Routing,
    /// Prefix index.
    pub prefix: Prefix,
    /// How much the gate holds at once.
    pub flow: flow::GateSettings,
    /// Retries.
    pub retry: flow::RetrySettings,
    /// Prefill and decode on two pods.
    pub disaggregation: disagg::Settings,
    /// Limits and deadlines.
    pub limits: Limits,
    /// How pods are watched.
    pub telemetry: telemetry::Settings,
    /// What is logged and counted.
    pub observe: observe::Settings,
    /// Where access lines go.
    pub access_log: export::Target,
    /// The whole as operators may see it.
    pub shown: Shown,
}

/// What a name that clients use stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelRule {
    /// Name under `models`.
    pub name: ModelName,
    /// Names the pods know, with their weights; to be written into the body if it differs from what the client wrote.
    pub targets: Vec<(ModelName, u32)>,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// What is promised.
    pub slo: SloSettings,
}

impl ModelRule {
    /// Names the pods know.
    pub fn names(&self) -> impl Iterator<Item = &ModelName> {
        self.targets.iter().map(|(name, _)| name)
    }
}

/// Rules by every name and alias of a configured model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelNames(HashMap<ModelName, Arc<ModelRule>>);

impl ModelNames {
    /// The rule for a name as clients write it; `None` if nothing is configured for it.
    pub fn rule(&self, name: &str) -> Option<&Arc<ModelRule>> {
        self.0.get(name)
    }

    /// The names pods know a model by that clients call `name`.
    pub fn upstream(&self, name: &str) -> Vec<ModelName> {
        self.rule(name).map_or_else(|| vec![name.into()], |rule| rule.names().cloned().collect())
    }

    /// All names and aliases with their rules.
    pub fn iter(&self) -> impl Iterator<Item = (&ModelName, &Arc<ModelRule>)> {
        self.0.iter()
    }
}

/// A path that was overridden, and the flag that did it.
pub(super) type Override = (&'static str, &'static str);

/// Path, what is wrong and what to write instead.
type Found = Vec<(String, String)>;

impl Config {
    /// Checks a tree and gives it its meaning. `text` is where it was read from, for places; problems under an overridden
    /// path are told of the flag.
    pub(super) fn build(tree: Tree, text: &str, overrides: &[Override]) -> Result<Self, Problems> {
        let mut found = Found::new();
        let sources = sources(&tree.pods, &mut found);
        let models = models(&tree.models, &tree.limits.timeouts, &mut found);
        let access_log = tree.observe.access_log.parse().unwrap_or_else(|hint: &str| {
            found.push(("observe.access_log".into(), hint.into()));
            export::Target::Off
        });
        sections(&tree, &mut found);
        identity(&tree.flow, &mut found);
        if !found.is_empty() {
            return Err(Problems(placed(found, text, overrides)));
        }
        let shown = Shown::of(&tree);
        Ok(Self {
            shown,
            listen: tree.listen,
            admin: tree.admin,
            pods: tree.pods,
            sources,
            models,
            trust: tree.trust,
            routing: tree.routing,
            prefix: tree.prefix,
            flow: tree.flow,
            retry: tree.retry,
            disaggregation: tree.disaggregation,
            limits: tree.limits,
            telemetry: tree.telemetry,
            observe: tree.observe,
            access_log,
        })
    }

    /// Keys that differ in `new` and take effect only after a restart. All others are taken when the file is read again.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        let (prefix, observe) = (&self.prefix, &self.observe);
        let (traces, new_traces) = (&observe.traces, &new.observe.traces);
        let keys = [
            ("listen.addr", self.listen.addr == new.listen.addr),
            ("listen.h2c_addr", self.listen.h2c_addr == new.listen.h2c_addr),
            ("listen.tls", self.listen.tls.is_on() == new.listen.tls.is_on()),
            ("admin.tls", self.admin.tls.is_on() == new.admin.tls.is_on()),
            ("listen.threads", self.listen.threads == new.listen.threads),
            ("admin.addr", self.admin.addr == new.admin.addr),
            ("admin.changes_from", self.admin.changes_from == new.admin.changes_from),
            ("prefix.index_bytes_max", prefix.index_bytes_max == new.prefix.index_bytes_max),
            ("prefix.pod_tokens_default", prefix.pod_tokens_default == new.prefix.pod_tokens_default),
            ("prefix.tenant_share", prefix.tenant_share.to_bits() == new.prefix.tenant_share.to_bits()),
            ("pods.state_file", self.pods.state_file == new.pods.state_file),
            ("prefix.snapshot_file", prefix.snapshot_file == new.prefix.snapshot_file),
            ("prefix.secret_file", prefix.secret_file == new.prefix.secret_file),
            ("observe.access_log", self.access_log == new.access_log),
            ("observe.decisions_max", observe.decisions_max == new.observe.decisions_max),
            ("observe.log", observe.log == new.observe.log),
            ("observe.models_max", observe.models_max == new.observe.models_max),
            ("observe.traces.endpoint", traces.endpoint == new_traces.endpoint),
            ("observe.traces.ca_file", traces.ca_file == new_traces.ca_file),
            ("observe.traces.authorization_file", traces.authorization_file == new_traces.authorization_file),
            ("observe.traces.service_name", traces.service_name == new_traces.service_name),
        ];
        keys.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| key).collect()
    }
}

fn sources(pods: &discovery::Settings, found: &mut Found) -> Vec<PodSource> {
    found.extend(pods.problems().into_iter().map(|(field, hint)| (format!("pods.{field}"), hint)));
    let sources = pods.sources().unwrap_or_default();
    for (index, source) in sources.iter().enumerate() {
        let is_same = |other: &PodSource| (&other.host, other.port) == (&source.host, source.port);
        if let Some(twin) = sources.iter().take(index).position(is_same) {
            let hint = format!("is the same as pods.list[{twin}]; remove one of the two");
            found.push((format!("pods.list[{index}].url"), hint));
        }
    }
    let has = |role: Role| sources.iter().any(|source| source.role == role);
    // Kubernetes or a file may have the others.
    let is_all = pods.kubernetes.sources.is_empty() && pods.files.is_empty();
    if is_all && has(Role::Prefill) && !has(Role::Decode) && !has(Role::Both) {
        let hint = "some pods only prefill and none decodes; add one with `role: decode` or `role: both` (`--decode`, `--pod`)";
        found.push(("pods.list".into(), hint.into()));
    }
    sources
}

fn models(models: &BTreeMap<String, Model>, timeouts: &Timeouts, found: &mut Found) -> ModelNames {
    let mut rules: HashMap<ModelName, Arc<ModelRule>> = HashMap::new();
    for (name, model) in models {
        let path = join("models", name);
        if name.is_empty() || model.rewrite_to.as_deref() == Some("") {
            found.push((path.clone(), "a model needs a name; write the one clients use".into()));
        }
        let own = &model.timeouts;
        for (field, value) in [
            ("first_token_s", own.first_token_s),
            ("answer_s", own.answer_s),
            ("between_tokens_s", own.between_tokens_s),
            ("connect_ms", own.connect_ms),
        ] {
            if value == Some(0) {
                let hint = "0 would end everything at once; write 1 or more, or leave it out";
                found.push((format!("{path}.timeouts.{field}"), hint.into()));
            }
        }
        let targets = targets(name, model, &path, found);
        found.extend(model.slo.problems().into_iter().map(|(field, hint)| (format!("{path}.slo.{field}"), hint)));
        let rule = ModelRule { name: name.as_str().into(), targets, timeouts: timeouts.with(own), slo: model.slo };
        let rule = Arc::new(rule);
        // What is allowed and promised goes by the name the pods know.
        let is_other = |other: &&Arc<ModelRule>| {
            other.names().any(|name| rule.names().any(|own| own == name))
                && (other.slo != rule.slo || other.timeouts != rule.timeouts)
        };
        if let Some(other) = rules.values().find(is_other) {
            let hint =
                format!("`{}` has the same model of the pods; give both the same `timeouts` and `slo`", other.name);
            found.push((path.clone(), hint));
        }
        rules.insert(Arc::clone(&rule.name), Arc::clone(&rule));
        for (index, alias) in model.aliases.iter().enumerate() {
            let taken = models.contains_key(alias) || rules.contains_key(alias.as_str());
            if taken || alias.is_empty() {
                let hint = "this name is taken already; write one that is used nowhere else".to_owned();
                found.push((format!("{path}.aliases[{index}]"), hint));
            }
            rules.insert(alias.as_str().into(), Arc::clone(&rule));
        }
    }
    ModelNames(rules)
}

/// The names that pods know a model by, with their weights.
fn targets(name: &str, model: &Model, path: &str, found: &mut Found) -> Vec<(ModelName, u32)> {
    if model.targets.is_empty() {
        return vec![(model.rewrite_to.as_deref().unwrap_or(name).into(), 1)];
    }
    if model.rewrite_to.is_some() {
        found.push((format!("{path}.rewrite_to"), "leave it out: `targets` says what the model is called".into()));
    }
    if model.targets.iter().all(|target| target.weight == 0) {
        found.push((format!("{path}.targets"), "one of the weights must be more than 0".into()));
    }
    for (index, target) in model.targets.iter().enumerate() {
        let is_twice = model.targets.iter().take(index).any(|other| other.model == target.model);
        if target.model.is_empty() || is_twice {
            let hint = if is_twice { "is written twice; add up the weights" } else { "write the name the pods know" };
            found.push((format!("{path}.targets[{index}].model"), hint.into()));
        }
    }
    model.targets.iter().map(|target| (target.model.as_str().into(), target.weight)).collect()
}

fn sections(tree: &Tree, found: &mut Found) {
    let rooms = [
        ("listen", tree.listen.problems()),
        ("limits", tree.limits.problems()),
        ("telemetry", tree.telemetry.problems()),
        ("disaggregation", tree.disaggregation.problems()),
        ("flow.slo", tree.flow.slo.problems()),
        ("flow.queue", tree.flow.queue.problems()),
        ("flow.sessions", tree.flow.sessions.problems()),
        ("flow.classes", tree.flow.classes.problems()),
        ("observe.traces", tree.observe.traces.problems()),
    ];
    for (key, problems) in rooms {
        found.extend(problems.into_iter().map(|(field, hint)| (format!("{key}.{field}"), hint)));
    }
    let listeners = [("listen.tls", &tree.listen.tls), ("admin.tls", &tree.admin.tls)];
    for (key, tls) in listeners {
        found.extend(tls.problems().into_iter().map(|(field, hint)| (format!("{key}.{field}"), hint)));
    }
    if !tree.admin.tls.client_certificates.callers.is_empty() {
        found.push(("admin.tls.client_certificates.callers".into(), "has no meaning here; remove it".into()));
    }
    let is_taken = |addr| tree.admin.addr == addr && tree.admin.addr.port() != 0;
    if is_taken(tree.listen.addr) || tree.listen.h2c_addr.is_some_and(is_taken) {
        found.push(("admin.addr".into(), "clients connect there already; write another port".into()));
    }
    if !(0.0..=1.0).contains(&tree.retry.budget_share) {
        found.push(("retry.budget_share".into(), "write a share from 0 to 1".into()));
    }
    found.extend(tree.admin.problems().into_iter().map(|(path, hint)| (format!("admin.{path}"), hint)));
    found.extend(tree.routing.problems().into_iter().map(|(path, hint)| (format!("routing.{path}"), hint)));
    if !(0.0..=1.0).contains(&tree.prefix.tenant_share) {
        found.push(("prefix.tenant_share".into(), "write a share from 0 to 1".into()));
    }
    let ranges = [
        ("retry.attempts_max", u64::from(tree.retry.attempts_max), 1, 2),
        ("flow.gates", u64::from(tree.flow.gates), 1, 1_000),
        ("flow.requests_max", tree.flow.requests_max, 1, u64::MAX),
        ("flow.requests_per_model_max", tree.flow.requests_per_model_max, 1, u64::MAX),
        ("flow.body_bytes_held_max", tree.flow.body_bytes_held_max, tree.limits.body_bytes_max, u64::MAX),
        ("prefix.pod_tokens_default", tree.prefix.pod_tokens_default, 1, u64::MAX),
        ("prefix.index_bytes_max", tree.prefix.index_bytes_max, 1 << 20, u64::MAX),
        ("observe.decisions_max", u64::from(tree.observe.decisions_max), 1, 1_000_000),
        ("observe.models_max", u64::from(tree.observe.models_max), 1, 65_000),
    ];
    for (path, value, least, most) in ranges {
        if !(least..=most).contains(&value) {
            let range = if most == u64::MAX { format!("{least} or more") } else { format!("{least} to {most}") };
            found.push((path.into(), format!("{value} is out of range; write {range}")));
        }
    }
}

fn identity(flow: &flow::GateSettings, found: &mut Found) {
    for (tenant, field, hint) in flow::tenant::problems(&flow.tenants) {
        let place = if tenant.is_empty() { "flow.tenants".to_owned() } else { join("flow.tenants", tenant) };
        found.push((if field.is_empty() { place } else { format!("{place}.{field}") }, hint));
    }
    for (index, name) in flow.class_headers.iter().enumerate().filter(|(_, name)| !is_header(name)) {
        found.push((format!("flow.class_headers[{index}]"), format!("`{}`: {NOT_A_HEADER}", name.escape_debug())));
    }
    if flow.class_headers.len() > CLASS_HEADERS_MAX {
        found.push(("flow.class_headers".into(), format!("too many; name {CLASS_HEADERS_MAX} or fewer")));
    }
}

fn placed(found: Found, text: &str, overrides: &[Override]) -> Vec<Problem> {
    let node = Node::read(text);
    let mut problems: Vec<Problem> = found
        .into_iter()
        .map(|(path, hint)| {
            if let Some((_, flag)) = overrides.iter().find(|(prefix, _)| path.starts_with(prefix)) {
                return Problem::new(*flag, hint);
            }
            let place = node.as_ref().and_then(|node| node.place(&path));
            let problem = Problem::new(path, hint);
            match place {
                Some((line, column)) => problem.at(text, line, column),
                None => problem,
            }
        })
        .collect();
    problems.sort_by_key(|problem| (problem.line.is_none(), problem.line, problem.column));
    problems
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::shape::{check, parse};
    use super::*;

    #[test]
    fn all_semantic_problems_come_at_once_with_their_lines() {
        let text = "\
pods:
  list:
    - url: https://a:8000/v1
    - {url: 'http://b:1'}
    - url: ftp://b:1
  resolve_interval_s: 0
models:
  org/m.1:
    aliases: [m, x, m]
    timeouts:
      answer_s: 0
  x: {}
limits:
  timeouts: {head_s: 0}
admin:
  addr: 127.0.0.1:8080
observe:
  access_log: ''
";
        let places: Vec<_> = check(text).into_iter().map(|problem| (problem.line.unwrap(), problem.path)).collect();
        let expected = [
            (3, "pods.list[0].url"),
            (5, "pods.list[2].url"),
            (6, "pods.resolve_interval_s"),
            (9, "models.\"org/m.1\".aliases[1]"),
            (9, "models.\"org/m.1\".aliases[2]"),
            (11, "models.\"org/m.1\".timeouts.answer_s"),
            (14, "limits.timeouts.head_s"),
            (16, "admin.addr"),
            (18, "observe.access_log"),
        ];
        assert_eq!(places, expected.map(|(line, path)| (line, path.to_owned())));
    }

    #[test]
    fn tls_is_checked_without_its_files() {
        assert_eq!(check(include_str!("../../conf/tls.yaml")), []);
        let text = "\
listen:
  tls:
    handshakes_max: 0
    client_certificates:
      callers:
        - {dns: a, tenant: 'a b'}
admin:
  tls:
    client_certificates: {ca_files: [x], callers: [{dns: a, trusted: true}]}
pods:
  list:
    - {url: 'https://a', tls: {key_file: x}}
";
        let places: Vec<_> = check(text).into_iter().map(|problem| (problem.line.unwrap(), problem.path)).collect();
        let expected = [
            (3, "listen.tls.handshakes_max"),
            (5, "listen.tls.client_certificates.callers"),
            (5, "listen.tls.client_certificates.callers"),
            (9, "admin.tls.client_certificates.ca_files"),
            (9, "admin.tls.client_certificates.callers"),
            (12, "pods.list[0].tls.certificate_file"),
        ];
        assert_eq!(places, expected.map(|(line, path)| (line, path.to_owned())));
    }

    #[test]
    fn a_pod_is_listed_once() {
        let text = "pods:\n  list:\n  - url: http://b:1\n  - url: http://b:2\n  - url: http://b:1\n";
        let problems = check(text);
        assert_eq!(problems.iter().map(|problem| problem.line).collect::<Vec<_>>(), [Some(5)]);
    }

    #[test]
    fn somebody_must_decode() {
        let of = |more: &str| check(&format!("pods:\n  list:\n  - {{url: 'http://p:1', role: prefill}}\n{more}"));
        assert_eq!(of("").first().map(|problem| problem.path.clone()), Some("pods.list".to_owned()));
        assert!(of("  - {url: 'http://d:1', role: decode}\n").is_empty() && of("  - url: http://d:1\n").is_empty());
    }

    #[test]
    fn one_model_of_the_pods_has_one_promise() {
        let of = |fast: &str| {
            check(&format!("models:\n  a: {{rewrite_to: m, slo: {{ttft_ms: 9}}}}\n  b: {{rewrite_to: m{fast}}}\n"))
        };
        assert!(of(", slo: {ttft_ms: 9}").is_empty());
        assert_eq!(of("").first().map(|problem| problem.path.clone()), Some("models.b".to_owned()));
        assert_eq!(of(", slo: {ttft_ms: 9}, timeouts: {answer_s: 7}").len(), 1);
    }

    #[test]
    fn targets_are_names_with_weights() {
        let of = |model: &str| check(&format!("models:\n  a: {model}\n"));
        let good = "{targets: [{model: v1, weight: 95}, {model: v2, weight: 5}]}";
        assert!(of(good).is_empty());
        let config = Config::build(parse(&format!("models: {{a: {good}}}")).unwrap(), "", &[]).unwrap();
        assert_eq!(config.models.upstream("a"), ["v1".into(), "v2".into()]);
        for (bad, place) in [
            ("{rewrite_to: x, targets: [{model: v1, weight: 1}]}", "models.a.rewrite_to"),
            ("{targets: [{model: v1, weight: 0}]}", "models.a.targets"),
            ("{targets: [{model: v1, weight: 1}, {model: v1, weight: 2}]}", "models.a.targets[1].model"),
            ("{targets: [{model: '', weight: 1}]}", "models.a.targets[0].model"),
        ] {
            assert_eq!(of(bad).first().map(|problem| problem.path.clone()).as_deref(), Some(place), "{bad}");
        }
        assert_eq!(of("{targets: [{model: v1}]}").len(), 1, "a weight is written down");
    }

    #[test]
    fn tenants_are_checked_where_they_are_written() {
        let text = "\
flow:
  gates: 0
  class_headers: [x-ok, 'not ok']
  tenants:
    a.b: {class: interactive, classes: [batch]}
    c:
      limits: {requests_per_minute: 0}
";
        let places: Vec<_> = check(text).into_iter().map(|problem| (problem.line.unwrap(), problem.path)).collect();
        let expected = [
            (2, "flow.gates"),
            (3, "flow.class_headers[1]"),
            (5, "flow.tenants.\"a.b\".classes"),
            (7, "flow.tenants.c.limits.requests_per_minute"),
        ];
        assert_eq!(places, expected.map(|(line, path)| (line, path.to_owned())));
    }

    #[test]
    fn names_lead_to_their_model() {
        let text =
            "models:\n  big:\n    aliases: [gpt-4o]\n    rewrite_to: org/big\n    timeouts: {first_token_s: 9}\n";
        let config = Config::build(parse(text).unwrap(), text, &[]).unwrap();
        for name in ["big", "gpt-4o"] {
            let rule = config.models.rule(name).unwrap();
            assert_eq!((&*rule.name, rule.timeouts.first_token_s), ("big", 9));
            assert_eq!(config.models.upstream(name), ["org/big".into()]);
        }
        assert!(config.models.rule("org/big").is_none());
    }

    #[test]
    fn restart_is_asked_for_only_where_needed() {
        let old = Config::build(Tree::default(), "", &[]).unwrap();
        let mut new = old.clone();
        new.limits.body_bytes_max += 1;
        new.limits.connections_max += 1;
        new.limits.memory_bytes_max = Some(1 << 40);
        new.flow.requests_max += 1;
        new.retry.attempts_max = 1;
        new.routing.safe_mode = true;
        new.observe.is_client_logged ^= true;
        assert!(old.needs_restart(&new).is_empty());
        new.listen.threads = Some(2);
        new.admin.changes_from = admin::settings::Changes::Everybody;
        new.prefix.index_bytes_max += 1;
        new.prefix.pod_tokens_default += 1;
        new.observe.log = observe::LogLevel::Debug;
        let expected = [
            "listen.threads",
            "admin.changes_from",
            "prefix.index_bytes_max",
            "prefix.pod_tokens_default",
            "observe.log",
        ];
        assert_eq!(old.needs_restart(&new), expected);
    }
}
