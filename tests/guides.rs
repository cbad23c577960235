//! What the guides promise exists: metrics, settings, files they link to, and configurations that they print.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::path::Path;

use serde_json::Value;
use tidegate::config::{check, schema};
use tidegate::observe::{Cause, Definition, Kind, MetricName};

const GUIDES: [&str; 5] =
    ["README.md", "conf/OPERATING.md", "conf/MIGRATING.md", "conf/systemd/README.md", "k8s/README.md"];

fn read(guide: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(guide)).unwrap()
}

/// Text between single backticks, outside of blocks.
fn spans(text: &str) -> Vec<String> {
    let outside: Vec<&str> = text.split("```").step_by(2).collect();
    outside.iter().flat_map(|part| part.split('`').skip(1).step_by(2)).map(str::to_owned).collect()
}

/// Blocks of a kind.
fn blocks<'a>(text: &'a str, kind: &str) -> Vec<&'a str> {
    text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix(kind)?.strip_prefix('\n')).collect()
}

/// Whether a metric has this name and these labels, written as `tidegate_x{label="value"}`.
fn is_metric(span: &str) -> bool {
    let (name, rest) = span.split_once('{').unwrap_or((span, ""));
    if let Some(start) = name.strip_suffix('*') {
        return MetricName::ALL.iter().any(|metric| metric.definition().name.starts_with(start));
    }
    let all = MetricName::ALL.iter().map(|metric| metric.definition());
    let is_it = |metric: &Definition| {
        let is_part = metric.kind == Kind::Histogram && name.strip_suffix("_bucket") == Some(metric.name);
        metric.name == name || is_part
    };
    let labels: Vec<_> = rest.trim_end_matches('}').split(',').filter(|label| !label.is_empty()).collect();
    let causes: Vec<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
    let cause = labels.iter().find_map(|label| label.strip_prefix("cause=")).map(|cause| cause.trim_matches('"'));
    if cause.is_some_and(|cause| !causes.contains(&cause)) {
        return false;
    }
    let mut found = all.filter(is_it);
    found.any(|metric| labels.iter().all(|label| metric.labels.contains(&label.split(['=', '!']).next().unwrap())))
}

/// Whether a path such as `flow.tenants.<name>.limits` leads to a setting.
fn is_setting(path: &str) -> bool {
    let root: Value = serde_json::from_str(&schema()).unwrap();
    let mut here = vec![root.clone()];
    for word in path.split('.') {
        here = here.iter().flat_map(|value| below(&root, value, word)).collect();
    }
    !here.is_empty()
}

/// What a schema says of a member, through references and alternatives.
fn below(root: &Value, value: &Value, word: &str) -> Vec<Value> {
    if let Some(place) = value["$ref"].as_str() {
        return below(root, root.pointer(place.trim_start_matches('#')).unwrap(), word);
    }
    if let Some(found) = value["properties"].get(word) {
        return vec![found.clone()];
    }
    if word.starts_with('<') && value["properties"].is_object() {
        return value["properties"].as_object().unwrap().values().cloned().collect();
    }
    let is_name = word.starts_with('<') || word.chars().all(|letter| letter.is_ascii_uppercase());
    let mut found: Vec<Value> =
        value.get("additionalProperties").filter(|more| is_name && more.is_object()).cloned().into_iter().collect();
    for key in ["anyOf", "oneOf", "allOf"] {
        found.extend(value[key].as_array().into_iter().flatten().flat_map(|one| below(root, one, word)));
    }
    found
}

/// Top-level keys of the configuration.
fn sections() -> Vec<String> {
    let root: Value = serde_json::from_str(&schema()).unwrap();
    root["properties"].as_object().unwrap().keys().cloned().collect()
}

#[test]
fn metrics_that_guides_name_exist() {
    assert!(
        is_metric("tidegate_pods")
            && is_metric("tidegate_requests_total{cause=\"ok\"}")
            && is_metric("tidegate_disagg_*")
    );
    assert!(!is_metric("tidegate_pod") && !is_metric("tidegate_pods{cause=\"ok\"}") && !is_metric("tidegate_none_*"));
    assert!(!is_metric("tidegate_requests_total{cause=\"fine\"}"));
    for guide in GUIDES {
        let text = read(guide);
        let named: Vec<_> = spans(&text).into_iter().filter(|span| span.starts_with("tidegate_")).collect();
        let unknown: Vec<_> =
            named.iter().filter(|span| *span != "tidegate_*" && *span != "tidegate_" && !is_metric(span)).collect();
        assert!(unknown.is_empty(), "{guide}: {unknown:?}");
        assert!(guide != "conf/OPERATING.md" || named.len() > 40, "{guide}: {} metrics", named.len());
    }
}

#[test]
fn settings_that_guides_name_exist() {
    for good in
        ["flow.tenants.<name>.limits", "models.NAME.targets", "pods.kubernetes.sources", "listen.tls.certificates"]
    {
        assert!(is_setting(good), "{good}");
    }
    assert!(!is_setting("flow.tenant") && !is_setting("pods.list.nothing.at.all"));
    let sections = sections();
    for guide in GUIDES {
        let text = read(guide);
        let mut count = 0;
        for span in spans(&text) {
            let path = span.split([':', ' ', '=', '[']).next().unwrap();
            let is_path = path.split_once('.').is_some_and(|(section, rest)| {
                let is_plain = |letter: char| letter.is_ascii_alphanumeric() || "_.<>".contains(letter);
                sections.iter().any(|one| one == section)
                    && rest.chars().all(is_plain)
                    && rest.split('.').all(|word| word != "yaml")
            });
            if is_path {
                assert!(is_setting(path), "{guide}: no setting {path}");
                count += 1;
            }
        }
        assert!(guide != "conf/OPERATING.md" || count > 30, "{guide}: {count} settings");
    }
}

#[test]
fn configurations_that_guides_print_are_good() {
    for guide in ["conf/OPERATING.md", "conf/MIGRATING.md", "README.md"] {
        let text = read(guide);
        let printed = blocks(&text, "yaml");
        assert!(!printed.is_empty(), "{guide}");
        // One uses a scorer that the reader is about to write.
        for block in printed.into_iter().filter(|block| !block.contains("my-scorer")) {
            let problems = check(block);
            assert!(problems.is_empty(), "{guide}:\n{block}\n{problems:?}");
        }
    }
}

#[test]
fn links_lead_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for guide in GUIDES {
        let text = read(guide);
        let (folder, mut count) = (root.join(guide).parent().unwrap().to_owned(), 0);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            let (path, anchor) = link.split_once('#').unwrap_or((link, ""));
            if link.starts_with("http") {
                continue;
            }
            count += 1;
            let target = if path.is_empty() { root.join(guide) } else { folder.join(path) };
            assert!(target.exists(), "{guide}: {link}");
            if !anchor.is_empty() {
                let there = std::fs::read_to_string(&target).unwrap();
                let is_it = |line: &str| line.starts_with('#') && anchor_of(line) == anchor;
                assert!(there.lines().any(is_it), "{guide}: {link}");
            }
        }
        assert!(count > 0 || guide.contains("systemd"), "{guide}");
    }
}

/// The anchor of a heading, as GitHub makes it.
fn anchor_of(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    text.chars()
        .filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter))
        .map(|letter| if letter == ' ' { '-' } else { letter })
        .collect()
}
