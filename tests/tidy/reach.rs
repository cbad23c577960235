//! Nothing lies around: every Rust file is compiled, every dependency is used.
use std::collections::BTreeSet;

use crate::source::{Source, Tree, close, matches};

/// Folders whose `mod` lines `src/build.rs` writes, with the file that includes them.
const PLUG_INS: &[&str] = &["src/scheduling/filters/", "src/scheduling/scorers/", "src/scheduling/pickers/"];

/// Files that no `mod` line leads to.
pub(crate) fn dead_files(tree: &Tree) -> Vec<String> {
    let by_path = |path: &str| tree.sources.iter().find(|source| source.path == path);
    let mut open: Vec<&Source> = tree.sources.iter().filter(|source| is_root(&source.path)).collect();
    let mut alive: BTreeSet<&str> = open.iter().map(|source| source.path.as_str()).collect();
    while let Some(source) = open.pop() {
        let mut targets = targets(source);
        for folder in PLUG_INS.iter().filter(|_| source.path == "src/scheduling/mod.rs") {
            let plug_ins = tree.sources.iter().filter(|file| file.path.starts_with(folder));
            targets.extend(plug_ins.map(|file| file.path.clone()));
        }
        for target in targets.iter().filter_map(|target| by_path(target)) {
            if alive.insert(&target.path) {
                open.push(target);
            }
        }
    }
    let dead = tree.sources.iter().filter(|source| !alive.contains(source.path.as_str()));
    dead.map(|source| format!("{}: no `mod` line leads here; declare it or delete it", source.path)).collect()
}

fn is_root(path: &str) -> bool {
    let (folder, name) = path.rsplit_once('/').unwrap_or(("", path));
    let is_crate_root = folder.ends_with("src") && ["lib.rs", "main.rs", "build.rs"].contains(&name);
    let parts: Vec<&str> = path.split('/').collect();
    let is_test = match parts.as_slice() {
        ["tests", _] | ["tests", _, "main.rs"] | [_, "benches", _] => true,
        [member, "tests", _] | [member, "tests", _, "main.rs"] => *member != "src",
        _ => false,
    };
    is_crate_root || is_test || folder.ends_with("src/bin") || folder == "examples" || folder.ends_with("benches")
}

/// Files that a file declares as modules or includes.
fn targets(source: &Source) -> Vec<String> {
    let declared = source.declared_modules();
    let mut found: Vec<String> =
        declared.iter().flat_map(|(offset, name)| source.module_files(*offset, name)).collect();
    for start in matches(&source.code, "include!(") {
        found.extend(source.literal(start..close(&source.code, start + "include!".len())));
    }
    found
}

/// Dependencies that the package's code never names.
pub(crate) fn unused_dependencies(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for (path, manifest) in tree.texts.iter().filter(|(path, _)| path.ends_with("Cargo.toml") && !path.starts_with('.'))
    {
        let folder = path.trim_end_matches("Cargo.toml");
        for (section, name) in dependencies(manifest) {
            let is_used =
                tree.sources.iter().filter(|source| in_section(&source.path, folder, &section)).any(|source| {
                    let used = |offset: usize| section != "dependencies" || !source.in_test(offset);
                    let word = name.replace('-', "_");
                    let names = |offset: &usize| {
                        let tail = &source.code[offset + word.len()..];
                        used(*offset)
                            && !source.code[..*offset].ends_with("::")
                            && (tail.starts_with("::") || source.code[..*offset].trim_end().ends_with("use"))
                    };
                    matches(&source.code, &word).iter().any(names)
                });
            if !is_used {
                found.push(format!("{path}: `{name}` in [{section}] is not used; remove it"));
            }
        }
    }
    found
}

fn in_section(path: &str, folder: &str, section: &str) -> bool {
    let Some(inside) = path.strip_prefix(folder) else { return false };
    match section {
        "dependencies" => inside.starts_with("src/") && inside != "src/build.rs",
        "build-dependencies" => inside == "src/build.rs" || inside == "build.rs",
        _ => inside.starts_with("src/") || inside.starts_with("tests/"),
    }
}

/// (section, name in code) of a manifest's dependencies.
fn dependencies(manifest: &str) -> Vec<(String, String)> {
    let (mut section, mut found) = ("", Vec::new());
    for line in manifest.lines() {
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_end_matches(']');
            if let Some((table, name)) = section.split_once("dependencies.") {
                found.push((format!("{table}dependencies"), name.to_owned()));
            }
        } else if section.ends_with("dependencies") && !section.starts_with("workspace") {
            let name: String =
                line.chars().take_while(|letter| letter.is_alphanumeric() || "-_".contains(*letter)).collect();
            if !name.is_empty() {
                let kind = section.rsplit('.').next().unwrap_or(section);
                found.push((kind.to_owned(), name));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_mod_line_is_dead() {
        let tree = Tree::of([
            ("src/lib.rs", "pub mod flow;\npub mod scheduling;\n#[path = \"odd/name.rs\"]\nmod named;"),
            ("src/main.rs", ""),
            ("src/build.rs", ""),
            ("src/odd/name.rs", ""),
            ("src/flow/mod.rs", "mod queue; // mod comment;"),
            ("src/flow/queue.rs", "mod fair;"),
            ("src/flow/queue/fair.rs", ""),
            ("src/flow/comment.rs", ""),
            ("src/scheduling/mod.rs", ""),
            ("src/scheduling/scorers/load.rs", ""),
            ("src/scheduling/decide.rs", ""),
            ("tests/tidy.rs", "#[path = \"tidy/size.rs\"]\nmod size;"),
            ("tests/tidy/size.rs", ""),
            ("tests/kit/mod.rs", ""),
            ("tests/faults/main.rs", "#[path = \"../kit/pod.rs\"]\nmod pod;\nmod kill;"),
            ("tests/kit/pod.rs", ""),
            ("tests/faults/kill.rs", ""),
        ]);
        let found: Vec<String> =
            dead_files(&tree).iter().map(|line| line.split(':').next().unwrap().to_owned()).collect();
        assert_eq!(found, ["src/flow/comment.rs", "src/scheduling/decide.rs", "tests/kit/mod.rs"]);
    }

    #[test]
    fn an_unused_dependency_is_found() {
        let manifest = "[package]\nname = \"x\"\n[workspace.dependencies]\nserde = \"1\"\n\n[dependencies]\narc-swap = \"1\"\nserde.workspace = true\nlru = \"1\"\nmemchr = \"2\"\nhttp = \"1\"\n[dev-dependencies]\nproptest = \"1\"\n[dependencies.libc]\nversion = \"0.2\"\n";
        let code = "use arc_swap::ArcSwap;\nuse serde;\n// lru::LruCache\n#[cfg(test)]\nmod tests { use memchr::memchr; use proptest::prelude; }\nuse crate::http::X;\n";
        let tree = Tree::of([("Cargo.toml", manifest), ("src/lib.rs", code), ("loadtest/src/main.rs", "use lru::X;")]);
        let names: Vec<String> =
            unused_dependencies(&tree).iter().map(|line| line.split('`').nth(1).unwrap().to_owned()).collect();
        assert_eq!(names, ["lru", "memchr", "http", "libc"]);
    }
}
