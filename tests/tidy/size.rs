//! Sizes: lines of files and of functions, and the header that every file opens with.
//!
//! A file is counted with its tests, a function from its `fn` to its closing bracket: what a reader has to scroll.
use crate::source::{Tree, close, matches};

pub(crate) const FILE_LINES_MAX: usize = 600;
pub(crate) const FUNCTION_LINES_MAX: usize = 70;

/// Files that are too long.
pub(crate) fn long_files(tree: &Tree) -> Vec<String> {
    let lengths = tree.sources.iter().map(|source| (source.text.lines().count(), &source.path));
    let long = lengths.filter(|(lines, _)| *lines > FILE_LINES_MAX);
    long.map(|(lines, path)| format!("{path}: {lines} lines, at most {FILE_LINES_MAX}; split it by subject")).collect()
}

/// (median, largest) lines of a file.
pub(crate) fn spread(tree: &Tree) -> (usize, usize) {
    let mut lengths: Vec<usize> = tree.sources.iter().map(|source| source.text.lines().count()).collect();
    lengths.sort_unstable();
    (lengths.get(lengths.len() / 2).copied().unwrap_or(0), lengths.last().copied().unwrap_or(0))
}

/// Functions that do not fit a screen.
pub(crate) fn long_functions(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for source in &tree.sources {
        for start in matches(&source.code, "fn ") {
            let Some(end) = body_end(&source.code, start) else { continue };
            let lines = source.code[start..end].lines().count();
            if lines > FUNCTION_LINES_MAX {
                let name = source.code[start + 3..].split(['(', '<']).next().unwrap_or_default();
                found.push(format!(
                    "{}: fn {name} has {lines} lines, at most {FUNCTION_LINES_MAX}; move its steps out",
                    source.at(start)
                ));
            }
        }
    }
    found
}

/// End of the body of the function at `start`; `None` for a declaration or a function type.
fn body_end(code: &str, start: usize) -> Option<usize> {
    let mut at = start;
    loop {
        match code.as_bytes().get(at)? {
            b'{' => return Some(close(code, at)),
            b'(' | b'[' => at = close(code, at),
            b';' | b'}' | b')' | b',' | b'=' => return None,
            _ => at += 1,
        }
    }
}

/// Files that do not say what they are.
pub(crate) fn headless_files(tree: &Tree) -> Vec<String> {
    let headless = tree.sources.iter().filter(|source| !source.text.starts_with("//!"));
    headless
        .map(|source| {
            format!("{}: starts without a `//!` header; say what, why, units, what it must not do", source.path)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(lines: usize) -> Tree {
        let body = "    step();\n".repeat(lines - 2);
        Tree::of([(
            "src/a.rs",
            format!("//! A.\nfn walk<F: Fn(u8) -> u8>(f: F) -> [u8; 2] {{\n{body}}}\nfn b() {{}}\n"),
        )])
    }

    #[test]
    fn a_function_longer_than_a_screen_is_found() {
        assert_eq!(long_functions(&function(70)), [""; 0]);
        assert_eq!(long_functions(&function(71)), ["src/a.rs:2: fn walk has 71 lines, at most 70; move its steps out"]);
        let declared = format!("trait T {{ fn a(&self) -> u8;\n{} }}", "\n".repeat(90));
        assert_eq!(long_functions(&Tree::of([("src/a.rs", declared)])), [""; 0]);
    }

    #[test]
    fn a_long_file_and_a_file_without_header_are_found() {
        let tree = Tree::of([("src/a.rs", "//! A.\n".repeat(600)), ("src/b.rs", "// b\n".repeat(601))]);
        assert_eq!(long_files(&tree), ["src/b.rs: 601 lines, at most 600; split it by subject"]);
        assert_eq!(headless_files(&tree).len(), 1);
        assert_eq!(spread(&tree), (601, 601));
    }
}
