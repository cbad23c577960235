//! From text to [`Tree`]: shape errors, at least one for every top-level key that has one.
//!
//! A YAML reader stops at its first error. To tell more at once, each top-level key is read again by itself, with all other
//! lines blank so that places stay right.
use serde_yaml::{DefaultMessageFormatter, Error, MessageFormatter};

use super::build::Config;
use super::locate::Node;
use super::problem::{Problem, Problems};
use super::schema::describe;
use super::tree::Tree;

/// All problems of a configuration text; empty means it is good. Files it names are not opened.
pub fn check(text: &str) -> Vec<Problem> {
    match parse(text).and_then(|tree| Config::build(tree, text, &[])) {
        Ok(_) => Vec::new(),
        Err(Problems(problems)) => problems,
    }
}

/// The tree of a text, or all shape errors.
pub fn parse(text: &str) -> Result<Tree, Problems> {
    let is_empty = text.lines().all(|line| line.trim_start().starts_with('#') || matches!(line.trim(), "" | "---"));
    if is_empty {
        return Ok(Tree::default());
    }
    let first = match serde_yaml::from_str::<Tree>(text) {
        Ok(tree) => return Ok(tree),
        Err(first) => first,
    };
    let node = Node::read(text);
    let mut problems: Vec<Problem> = Vec::new();
    for part in node.iter().flat_map(|node| parts(node, text)) {
        match serde_yaml::from_str::<Tree>(&part) {
            Err(error) if !is_unknown_anchor(&error) => problems.push(problem(&error, text, node.as_ref())),
            _ => {}
        }
    }
    if problems.is_empty() {
        problems.push(problem(&first, text, node.as_ref()));
    }
    Err(Problems(problems))
}

/// The text once per top-level key, with only that key's lines.
fn parts(node: &Node, text: &str) -> Vec<String> {
    let Node::Map(members) = node else { return Vec::new() };
    let starts: Vec<u64> = members.iter().map(|(_, (line, _), _)| *line).collect();
    let ends = starts.iter().skip(1).copied().chain([u64::MAX]);
    let only = |(start, end): (&u64, u64)| {
        let lines = text.lines().zip(1..).map(|(line, number)| if (*start..end).contains(&number) { line } else { "" });
        lines.flat_map(|line| [line, "\n"]).collect()
    };
    starts.iter().zip(ends).map(only).collect()
}

fn is_unknown_anchor(error: &Error) -> bool {
    matches!(error.without_snippet(), Error::UnknownAnchor { .. })
}

fn problem(error: &Error, text: &str, node: Option<&Node>) -> Problem {
    let error = error.without_snippet();
    let place = error.location().map(|location| (location.line(), location.column())).filter(|place| place.0 > 0);
    let path = place.zip(node).map(|(place, node)| node.path_at(place)).unwrap_or_default();
    let mut problem = Problem::new(path, DefaultMessageFormatter.format_message(error));
    if let Error::SerdeUnknownField { field, expected, .. } = error {
        problem.message = format!("unknown field `{}`", field.escape_debug());
        problem.instead = match nearest(field, expected) {
            Some(near) => format!("did you mean `{near}`? possible here: {}", expected.join(", ")),
            None => format!("possible here: {}", expected.join(", ")),
        };
    } else if let Some(described) = describe(&problem.path) {
        if problem.message.starts_with("invalid ") {
            "this cannot be read".clone_into(&mut problem.message);
        }
        problem.instead = format!("write {described}");
    }
    match place {
        Some((line, column)) => problem.at(text, line, column),
        None => problem,
    }
}

/// The name that `field` is probably a slip of.
fn nearest<'a>(field: &str, expected: &[&'a str]) -> Option<&'a str> {
    let limit = field.len() / 3 + 1;
    let best = expected.iter().map(|name| (distance(field, name), *name)).min()?;
    let is_part = |name: &&&str| name.contains(field) || (!name.is_empty() && field.contains(**name));
    if best.0 <= limit { Some(best.1) } else { expected.iter().find(is_part).copied() }
}

/// Levenshtein distance of short names.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().take(64).enumerate() {
        let mut next = vec![i + 1];
        for ((y, above), diagonal) in b.bytes().zip(row.iter().skip(1)).zip(&row) {
            let left = next.last().copied().unwrap_or(0);
            next.push((diagonal + usize::from(x != y)).min(above + 1).min(left + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;

    fn places(text: &str) -> Vec<(String, Option<u64>)> {
        check(text).into_iter().map(|problem| (problem.path, problem.line)).collect()
    }

    #[test]
    fn nothing_written_is_the_default() {
        for text in ["", "# only a comment\n", "---\n"] {
            assert_eq!(parse(text), Ok(Tree::default()));
        }
    }

    #[test]
    fn every_top_level_key_tells_its_error() {
        let text = "listen:\n  adr: 1\nlimits:\n  body_bytes_max: lots\n\nobserve:\n  log: loud\nbogus: 1\nadmin:\n  addr: 127.0.0.1:1\n";
        let problems = check(text);
        let lines: Vec<_> = problems.iter().map(|problem| problem.line).collect();
        assert_eq!(lines, [Some(2), Some(4), Some(7), Some(8)], "{problems:#?}");
        assert_eq!(problems[0].path, "listen.adr");
        assert!(problems[0].instead.starts_with("did you mean `addr`?"), "{}", problems[0]);
        assert_eq!(problems[1].path, "limits.body_bytes_max");
        assert!(problems[1].instead.contains("Largest request body, in bytes"), "{}", problems[1]);
        assert!(problems[3].instead.contains("possible here: listen, admin"), "{}", problems[3]);
        assert!(problems[0].to_string().contains("2 |   adr: 1\n  |   ^"), "{}", problems[0]);
    }

    #[test]
    fn problems_read_well() {
        let text = "limits:\n  body_bytes_max: lots\npods:\n  list:\n    - {url: 'http://a:1', roll: both}\n";
        let shown = Problems(check(text)).to_string();
        let expected = "\
line 2, column 19: limits.body_bytes_max: this cannot be read
  |
2 |   body_bytes_max: lots
  |                   ^
  = write a whole number (Largest request body, in bytes; more is answered 413)

line 5, column 27: pods.list[0].roll: unknown field `roll`
  |
5 |     - {url: 'http://a:1', roll: both}
  |                           ^
  = did you mean `role`? possible here: url, role, labels, tls";
        assert_eq!(shown, expected, "\n{shown}");
    }

    #[test]
    fn text_that_is_no_yaml_or_no_tree_is_told() {
        for text in
            ["listen: [", "- a\n- b\n", "just text", "listen:\n  addr: 1\n  addr: 2\n", "\t- a: [", "a: &x [*y]\n"]
        {
            let problems = check(text);
            assert!(!problems.is_empty() && !problems[0].message.is_empty(), "{text:?}");
        }
    }

    #[test]
    fn an_anchor_of_another_key_is_no_problem() {
        let text = "limits:\n  timeouts: {head_s: &ten 10}\npods:\n  resolve_interval_s: *ten\n";
        assert_eq!(places(text), []);
        assert_eq!(places(&format!("{text}bogus: 1\n")), [("bogus".to_owned(), Some(5))]);
    }
}
