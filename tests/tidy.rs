//! House-keeping as tests: arrows between rooms, sizes, headers, bans, dead files, unused dependencies.
//!
//! Each rule is a table or a function in `tidy/` with tests that prove it can fail; here they run over the repository.
//! A failing line says where, what, and what to write instead. No dependencies: this must never be what breaks.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::io::Write;
use std::path::Path;
use std::sync::LazyLock;

#[path = "tidy/arrows.rs"]
mod arrows;
#[path = "tidy/bans.rs"]
mod bans;
#[path = "tidy/reach.rs"]
mod reach;
#[path = "tidy/size.rs"]
mod size;
#[path = "tidy/source.rs"]
mod source;

use source::Tree;

/// The repository, read once.
fn repository() -> &'static Tree {
    static TREE: LazyLock<Tree> = LazyLock::new(|| Tree::read(Path::new(env!("CARGO_MANIFEST_DIR"))));
    assert!(TREE.sources.iter().any(|source| source.path == "src/lib.rs"), "the tree was not found");
    &TREE
}

/// Fails with one line per offence.
fn check(rule: fn(&Tree) -> Vec<String>) {
    let offences = rule(repository());
    assert!(offences.is_empty(), "{} offence(s):\n{}\n", offences.len(), offences.join("\n"));
}

/// Shown although the test passes: the harness keeps back only what the print macros write.
fn report(line: &str) {
    let mut stderr = std::io::stderr();
    writeln!(stderr, "tidy: {line}").unwrap();
}

#[test]
fn rooms_import_only_what_the_arrow_table_allows() {
    check(arrows::offences);
}

#[test]
fn no_rooms_import_each_other_in_a_circle() {
    let cycle = arrows::largest_cycle(repository());
    report(&format!("largest import cycle: {}", cycle.len()));
    assert!(cycle.is_empty(), "these rooms import each other in a circle: {}", cycle.join(", "));
}

#[test]
fn files_are_short() {
    let tree = repository();
    let (median, largest) = size::spread(tree);
    report(&format!("{} files, median {median} lines, largest {largest}", tree.sources.len()));
    check(size::long_files);
}

#[test]
fn functions_fit_a_screen() {
    check(size::long_functions);
}

#[test]
fn files_say_what_they_are() {
    check(size::headless_files);
}

#[test]
fn nothing_banned_is_used() {
    check(bans::offences);
}

#[test]
fn nothing_banned_is_written() {
    check(bans::words);
}

#[test]
fn every_file_is_compiled() {
    check(reach::dead_files);
}

#[test]
fn every_dependency_is_used() {
    check(reach::unused_dependencies);
}
