//! The Grafana dashboard and the alert rules ask for metrics and labels that the gate exports, and read them as what they are.
//!
//! Every expression is taken apart: a name must be in the table of metrics (which a test holds to the exposition), its labels those
//! of the metric, values of closed lists in the list, `rate` and `increase` over counters only.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::BTreeSet;

use serde_json::Value;
use tidegate::export::prometheus::{CLASSES, STANDINGS};
use tidegate::observe::{Cause, Definition, Kind, MetricName};

/// Labels that Prometheus adds, and that of buckets.
const ADDED: [&str; 3] = ["instance", "job", "le"];
/// Metrics of Prometheus itself.
const FOREIGN: [&str; 1] = ["up"];

/// What an expression uses a series for.
#[derive(Debug, PartialEq, Eq)]
struct Series {
    name: String,
    /// Label, values asked for.
    matchers: Vec<(String, String)>,
    /// Followed by a range.
    is_range: bool,
    /// The function right before it.
    function: String,
}

fn is_word(letter: char) -> bool {
    letter.is_ascii_alphanumeric() || letter == '_' || letter == ':'
}

/// Series of an expression, and labels it groups by.
fn take_apart(expression: &str) -> (Vec<Series>, Vec<String>) {
    let (mut series, mut groups) = (Vec::new(), Vec::new());
    let (mut rest, mut function) = (expression, String::new());
    while let Some(first) = rest.chars().next() {
        if first == '[' {
            rest = rest.split_once(']').unwrap().1;
            continue;
        }
        if !is_word(first) {
            rest = &rest[first.len_utf8()..];
            continue;
        }
        let word = &rest[..rest.find(|letter| !is_word(letter)).unwrap_or(rest.len())];
        rest = &rest[word.len()..];
        let next = rest.trim_start();
        if ["by", "without", "on", "ignoring"].contains(&word) {
            let (list, after) = next.strip_prefix('(').unwrap().split_once(')').unwrap();
            groups.extend(list.split(',').map(|label| label.trim().to_owned()).filter(|label| !label.is_empty()));
            rest = after;
        } else if word.starts_with("tidegate_") || FOREIGN.contains(&word) {
            let mut matchers = Vec::new();
            if let Some(inside) = rest.strip_prefix('{') {
                let (inside, after) = inside.split_once('}').unwrap();
                rest = after;
                matchers = inside.split(',').filter(|part| !part.is_empty()).map(matcher).collect();
            }
            let is_range = rest.starts_with('[');
            series.push(Series { name: word.to_owned(), matchers, is_range, function: std::mem::take(&mut function) });
        } else if next.starts_with('(') || next.starts_with("by ") {
            word.clone_into(&mut function);
        } else {
            let is_known = word.starts_with(|letter: char| letter.is_ascii_digit())
                || ["and", "or", "unless", "offset"].contains(&word);
            assert!(is_known, "`{word}` in {expression} is no metric of the gate, function or operator");
        }
    }
    (series, groups)
}

fn matcher(text: &str) -> (String, String) {
    let (label, value) = text.split_once('=').unwrap_or_else(|| panic!("{text}"));
    (label.trim_end_matches('!').to_owned(), value.trim_matches(['~', '"']).to_owned())
}

/// The metric of a series, and whether it is a histogram's part.
fn metric(name: &str) -> Option<(Definition, bool)> {
    let find = |name: &str| MetricName::ALL.iter().map(|metric| metric.definition()).find(|metric| metric.name == name);
    let part = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
    let part = part.and_then(find).filter(|metric| metric.kind == Kind::Histogram);
    part.map(|metric| (metric, true))
        .or_else(|| find(name).filter(|metric| metric.kind != Kind::Histogram).map(|metric| (metric, false)))
}

/// What is wrong with an expression.
fn faults(expression: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (series, groups) = take_apart(expression);
    let mut labels: BTreeSet<&str> = ADDED.into();
    for one in series.iter().filter(|one| !FOREIGN.contains(&&*one.name)) {
        let Some((definition, is_part)) = metric(&one.name) else {
            faults.push(format!("no metric {}", one.name));
            continue;
        };
        labels.extend(definition.labels);
        let is_counter = is_part || definition.kind == Kind::Counter;
        let is_rate = ["rate", "increase", "irate"].contains(&&*one.function);
        if one.is_range != is_rate || (is_rate && !is_counter) {
            faults.push(format!("{}({}) of a {:?}", one.function, one.name, definition.kind));
        }
        for (label, value) in &one.matchers {
            if !definition.labels.contains(&&**label) && !ADDED.contains(&&**label) {
                faults.push(format!("{} has no label {label}", one.name));
            }
            let causes: Vec<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
            let known = [("cause", &*causes), ("standing", &STANDINGS), ("class", &CLASSES)];
            let list = known.iter().find(|(name, _)| name == label && one.name != "tidegate_retries_total");
            for word in value.split('|').filter(|word| !word.starts_with('$')) {
                if list.is_some_and(|(_, list)| !list.contains(&word)) {
                    faults.push(format!("{} has no {label} {word}", one.name));
                }
            }
        }
    }
    let unknown = groups.iter().filter(|label| !labels.contains(label.as_str()));
    faults.extend(unknown.map(|label| format!("groups by {label}, which no metric in it has")));
    faults
}

/// Every `expr` below a value.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(members) => {
            for (key, value) in members {
                match value {
                    Value::String(text) if key == "expr" => found.push(text.clone()),
                    _ => expressions(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

fn check(file: &str, value: &Value, least: usize) {
    let mut found = Vec::new();
    expressions(value, &mut found);
    assert!(found.len() >= least, "{file}: {} expressions", found.len());
    for expression in found {
        let faults = faults(&expression);
        assert!(faults.is_empty(), "{file}: {faults:?} in {expression}");
    }
}

#[test]
fn the_grafana_dashboard_asks_for_what_there_is() {
    let board: Value = serde_json::from_str(include_str!("../docker/grafana/dashboards/tidegate.json")).unwrap();
    check("tidegate.json", &board, 40);
    let panels = board["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are distinct");
    for panel in panels {
        let place = &panel["gridPos"];
        assert!(place["x"].as_u64().unwrap() + place["w"].as_u64().unwrap() <= 24, "{panel}");
    }
    for variable in board["templating"]["list"].as_array().unwrap() {
        if let Some(query) = variable["definition"].as_str() {
            let (name, label) =
                query.strip_prefix("label_values(").unwrap().trim_end_matches(')').split_once(", ").unwrap();
            let (definition, _) = metric(name).unwrap_or_else(|| panic!("{name}"));
            assert!(definition.labels.contains(&label) || ADDED.contains(&label), "{query}");
        }
    }
}

#[test]
fn the_alerts_ask_for_what_there_is_and_say_what_to_do() {
    let rules: Value = serde_yaml::from_str(include_str!("../docker/prometheus/tidegate.rules.yml")).unwrap();
    check("tidegate.rules.yml", &rules, 15);
    let mut names = BTreeSet::new();
    for rule in rules["groups"].as_array().unwrap().iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        assert!(names.insert(rule["alert"].as_str().unwrap()), "{rule} twice");
        assert!(["page", "ticket"].contains(&rule["labels"]["severity"].as_str().unwrap()), "{rule}");
        for text in ["summary", "description"] {
            assert!(rule["annotations"][text].as_str().is_some_and(|text| text.len() > 20), "{rule}");
        }
    }
    let tried: Value = serde_yaml::from_str(include_str!("../docker/prometheus/tidegate.test.yml")).unwrap();
    assert!(tried["tests"].as_array().unwrap().len() >= 3);
    let config: Value = serde_yaml::from_str(include_str!("../docker/prometheus/prometheus.yml")).unwrap();
    assert_eq!(config["rule_files"][0], "tidegate.rules.yml");
}

#[test]
fn a_wrong_expression_is_found() {
    for good in [
        r#"sum by (model) (rate(tidegate_requests_total{cause=~"ok|truncated"}[5m])) > 0.5 and tidegate_safe_mode == 1"#,
        r#"histogram_quantile(0.95, sum by (le, model) (rate(tidegate_ttft_seconds_bucket{model=~"$model"}[$__rate_interval])))"#,
        r#"up{job="tidegate"} == 0 or (tidegate_panics_total unless tidegate_panics_total offset 15m) > 0"#,
    ] {
        assert_eq!(faults(good), [""; 0], "{good}");
    }
    for bad in [
        "tidegate_no_such_metric",
        "tidegate_ttft_seconds",
        "tidegate_safe_mode_bucket",
        r#"tidegate_requests_in_flight{pod="a"}"#,
        r#"tidegate_requests_total{cause="bad_luck"}"#,
        r#"tidegate_pod_standing{standing=~"ready|out"}"#,
        "rate(tidegate_safe_mode[5m])",
        "sum(tidegate_requests_total[5m])",
        "sum by (tenant) (tidegate_safe_mode)",
    ] {
        assert!(!faults(bad).is_empty(), "{bad}");
    }
}
