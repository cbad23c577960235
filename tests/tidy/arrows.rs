//! Which room may import which: the table, the imports found, and cycles among them.
//!
//! A room is a folder or file directly under `src/`; `sim/engine` is a room of its own because it is pure. Imports in
//! test code are held to the same table, except that rooms that speak to pods may test against `sim`.
use std::collections::{BTreeMap, BTreeSet};

use crate::source::{Source, Tree, close, is_word, matches};

/// Room, level, rooms it may import.
pub(crate) const ARROWS: &[(&str, u8, &[&str])] = &[
    ("base", 0, &[]),
    ("api", 1, &["base"]),
    ("prefix", 1, &["api", "base"]),
    ("pods", 1, &["base"]),
    ("observe", 1, &["base"]),
    ("scheduling", 2, &["prefix", "pods", "api", "base"]),
    ("flow", 2, &["pods", "api", "base"]),
    ("disagg", 2, &["scheduling", "prefix", "pods", "api", "base"]),
    ("autoscale", 2, &["flow", "pods", "base"]),
    ("runtime", 3, &["base"]),
    ("tls", 3, &["pods", "observe", "runtime", "base"]),
    ("discovery", 3, &["pods", "prefix", "observe", "tls", "runtime", "base"]),
    ("telemetry", 3, &["pods", "prefix", "observe", "tls", "runtime", "base"]),
    ("export", 3, &["observe", "pods", "tls", "base", "runtime"]),
    ("proxy", 3, &["scheduling", "flow", "disagg", "api", "prefix", "pods", "observe", "tls", "runtime", "base"]),
    (
        "admin",
        3,
        &[
            "scheduling",
            "flow",
            "disagg",
            "autoscale",
            "api",
            "prefix",
            "pods",
            "observe",
            "export",
            "tls",
            "runtime",
            "base",
        ],
    ),
    ("sim/engine", 1, &["api", "base"]),
    ("sim", 3, &["sim/engine", "api", "base", "runtime"]),
    (
        "config",
        4,
        &[
            "scheduling",
            "flow",
            "disagg",
            "autoscale",
            "api",
            "prefix",
            "pods",
            "observe",
            "discovery",
            "telemetry",
            "proxy",
            "admin",
            "export",
            "sim",
            "sim/engine",
            "tls",
            "runtime",
            "base",
        ],
    ),
];

/// Rooms that decide: values in, values out.
pub(crate) const PURE: &[&str] =
    &["base", "api", "prefix", "pods", "scheduling", "flow", "disagg", "autoscale", "observe", "sim/engine"];

/// Rooms whose tests may talk to a simulated pod.
const TESTED_ON_PODS: &[&str] = &["proxy", "telemetry", "discovery", "admin"];

/// Files that put the rooms together. They know all and decide nothing; no room imports them.
const WIRING: &[&str] = &["app", "demo", "main", "lib"];

/// One room naming another.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Import {
    pub(crate) from: String,
    pub(crate) to: String,
    pub(crate) at: String,
    pub(crate) in_test: bool,
    is_reexport: bool,
}

/// Room of a file; `None` outside of `src/`.
pub(crate) fn room_of(path: &str) -> Option<String> {
    let inside = path.strip_prefix("src/")?.trim_end_matches(".rs");
    let parts: Vec<&str> = inside.split('/').filter(|part| *part != "mod").collect();
    Some(room_of_path(&parts))
}

fn room_of_path(parts: &[&str]) -> String {
    match parts {
        ["sim", "engine", ..] => "sim/engine".into(),
        [first, ..] => (*first).into(),
        [] => "lib".into(),
    }
}

/// Every import of a room by another room.
pub(crate) fn imports(tree: &Tree) -> Vec<Import> {
    let mut rooms: BTreeSet<String> = tree.sources.iter().filter_map(|source| room_of(&source.path)).collect();
    rooms.extend(ARROWS.iter().map(|(room, ..)| *room).chain(["app", "demo"]).map(str::to_owned));
    let mut found = BTreeSet::new();
    for source in &tree.sources {
        let Some(from) = room_of(&source.path) else { continue };
        for (offset, path) in paths(source) {
            let parts: Vec<&str> = path.iter().map(String::as_str).collect();
            let to = room_of_path(&parts);
            if to != from && rooms.contains(&to) && !["lib", "build"].contains(&to.as_str()) {
                let line_start = source.code[..offset].rfind('\n').map_or(0, |end| end + 1);
                let is_reexport = source.code[line_start..offset].trim_start().starts_with("pub ");
                let (at, in_test) = (source.at(offset), source.in_test(offset));
                found.insert(Import { from: from.clone(), to, at, in_test, is_reexport });
            }
        }
    }
    found.into_iter().collect()
}

/// Absolute module paths (first two names are enough) that a file spells with `crate::`, `tidegate::` or `super::`.
fn paths(source: &Source) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for root in ["crate::", "tidegate::"] {
        for offset in matches(&source.code, root) {
            spell(&source.code, offset + root.len(), &[], offset, &mut found);
        }
    }
    for offset in matches(&source.code, "super::") {
        if source.code[..offset].ends_with("super::") {
            continue;
        }
        let mut module = module_at(source, offset);
        let mut at = offset;
        while source.code[at..].starts_with("super::") {
            module.pop();
            at += "super::".len();
        }
        spell(&source.code, at, &module, offset, &mut found);
    }
    found
}

/// Adds the path or the group of paths that starts at `at`, below `module`.
fn spell(code: &str, at: usize, module: &[String], offset: usize, found: &mut Vec<(usize, Vec<String>)>) {
    let rest = &code[at..];
    if rest.starts_with('{') {
        let end = close(code, at) - 1;
        let mut start = at + 1;
        while start < end {
            start += code[start..end].len() - code[start..end].trim_start().len();
            spell(code, start, module, offset, found);
            start = member_end(code, start, end);
        }
        return;
    }
    let name: String = rest.chars().take_while(|letter| is_word(*letter)).collect();
    let mut path = module.to_vec();
    let tail = &rest[name.len()..];
    let end = at + name.len();
    path.push(name);
    if tail.starts_with("::") && path.len() < 2 {
        spell(code, end + 2, &path, offset, found);
    } else {
        found.push((offset, path));
    }
}

fn member_end(code: &str, start: usize, end: usize) -> usize {
    let mut at = start;
    while at < end {
        match code.as_bytes()[at] {
            b',' => return at + 1,
            b'{' => at = close(code, at),
            _ => at += 1,
        }
    }
    end
}

/// Module path of a byte: that of the file, and of inline modules around it.
fn module_at(source: &Source, offset: usize) -> Vec<String> {
    let inside = source.path.trim_start_matches("src/").trim_end_matches(".rs");
    let parts = inside.split('/').filter(|part| !["mod", "lib", "main"].contains(part));
    let mut module: Vec<String> = parts.map(str::to_owned).collect();
    for start in matches(&source.code, "mod ") {
        let rest = &source.code[start + 4..];
        let name: String = rest.chars().take_while(|letter| is_word(*letter)).collect();
        if rest[name.len()..].trim_start().starts_with('{') {
            let open = start + 4 + rest.find('{').unwrap_or(0);
            if (open..close(&source.code, open)).contains(&offset) {
                module.push(name);
            }
        }
    }
    module
}

/// Imports that the table does not allow, and rooms that it does not know.
pub(crate) fn offences(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for room in tree.sources.iter().filter_map(|source| room_of(&source.path)).collect::<BTreeSet<_>>() {
        let is_known = ARROWS.iter().any(|(name, ..)| *name == room);
        if !is_known && room != "build" && !WIRING.contains(&room.as_str()) {
            found.push(format!("room `{room}` is not in the arrow table; give it a level and arrows there"));
        }
    }
    for import in imports(tree) {
        if WIRING.contains(&import.from.as_str()) {
            continue;
        }
        let Some((from, _, allowed)) = ARROWS.iter().find(|(room, ..)| *room == import.from) else { continue };
        let is_test_pod =
            import.in_test && TESTED_ON_PODS.contains(from) && ["sim", "sim/engine"].contains(&import.to.as_str());
        if !allowed.contains(&import.to.as_str()) && !is_test_pod {
            let list = if allowed.is_empty() { "nothing".to_owned() } else { allowed.join(", ") };
            found.push(format!("{}: room `{from}` may not import `{}`; allowed: {list}", import.at, import.to));
        } else if import.is_reexport && !import.to.starts_with(&format!("{from}/")) {
            found.push(format!(
                "{}: room `{from}` re-exports `{}`; import it where it is used (one way in)",
                import.at, import.to
            ));
        }
    }
    found
}

/// Rooms in the largest import cycle, tests aside; empty if there is none.
pub(crate) fn largest_cycle(tree: &Tree) -> Vec<String> {
    let mut arrows: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for import in imports(tree).into_iter().filter(|import| !import.in_test) {
        arrows.entry(import.from).or_default().insert(import.to);
    }
    cycle_of(&arrows)
}

fn cycle_of(arrows: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let reach = |from: &String| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(room) = open.pop() {
            open.extend(arrows.get(room).into_iter().flatten().filter(|next| seen.insert((*next).clone())));
        }
        seen
    };
    let reached: BTreeMap<&String, BTreeSet<String>> = arrows.keys().map(|room| (room, reach(room))).collect();
    let round = |room: &String| {
        let mutual = |other: &&String| reached[room].contains(*other) && reached[*other].contains(room);
        reached.keys().copied().filter(mutual).cloned().collect::<Vec<_>>()
    };
    arrows.keys().map(round).max_by_key(Vec::len).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str, text: &str, expected: &[&str]) {
        let found = offences(&Tree::of([(path, text)]));
        assert_eq!(found, expected, "{path}: {text}");
    }

    #[test]
    fn a_forbidden_import_is_found_in_every_spelling() {
        let offence = "src/prefix/index.rs:1: room `prefix` may not import `flow`; allowed: api, base";
        check("src/prefix/index.rs", "use crate::flow::Caller;", &[offence]);
        check("src/prefix/index.rs", "use crate::{api::Api, flow::{Caller, Class}};", &[offence]);
        check("src/prefix/index.rs", "fn a() -> crate::flow::Caller {}", &[offence]);
        check("src/prefix/index.rs", "use super::super::flow::Caller;", &[offence]);
        check(
            "src/prefix/mod.rs",
            "use super::flow;",
            &["src/prefix/mod.rs:1: room `prefix` may not import `flow`; allowed: api, base"],
        );
        check("src/prefix/index.rs", "mod inner { use super::super::super::flow; }", &[offence]);
        check(
            "src/base/rng.rs",
            "use crate::pods::Pod;",
            &["src/base/rng.rs:1: room `base` may not import `pods`; allowed: nothing"],
        );
        check(
            "src/flow/a.rs",
            "use crate::app::App;",
            &["src/flow/a.rs:1: room `flow` may not import `app`; allowed: pods, api, base"],
        );
        check(
            "src/pods/a.rs",
            "use crate::config::Config;",
            &["src/pods/a.rs:1: room `pods` may not import `config`; allowed: base"],
        );
    }

    #[test]
    fn what_is_allowed_passes() {
        check(
            "src/prefix/index.rs",
            "use crate::{api::Api, base::Mono};\nuse super::block::Block; // crate::flow::x\n",
            &[],
        );
        check("src/prefix/index.rs", "mod tests { use super::super::block; }", &[]);
        check("src/app.rs", "use crate::{flow::Caller, config::Config, proxy::Proxy};", &[]);
        check("src/main.rs", "use tidegate::config::Config;", &[]);
        check("src/sim/http.rs", "use crate::sim::engine::Engine; use super::engine::Clock;", &[]);
    }

    #[test]
    fn the_pure_engine_is_a_room_of_its_own() {
        let offence = "src/sim/engine/mod.rs:1: room `sim/engine` may not import `sim`; allowed: api, base";
        check("src/sim/engine/mod.rs", "use super::http::SimPod;", &[offence]);
        check("src/sim/engine/mod.rs", "use crate::sim::http::SimPod;", &[offence]);
    }

    #[test]
    fn tests_may_use_simulated_pods_where_pods_are_spoken_to() {
        let text = "#[cfg(test)]\nmod tests { use crate::sim::http::SimPod; }";
        check("src/telemetry/scrape.rs", text, &[]);
        check("src/flow/a.rs", text, &["src/flow/a.rs:2: room `flow` may not import `sim`; allowed: pods, api, base"]);
    }

    #[test]
    fn unknown_rooms_and_reexports_are_found() {
        check("src/utils.rs", "//! x", &["room `utils` is not in the arrow table; give it a level and arrows there"]);
        let text = "pub use crate::pods::Pod;";
        check(
            "src/flow/mod.rs",
            text,
            &["src/flow/mod.rs:1: room `flow` re-exports `pods`; import it where it is used (one way in)"],
        );
    }

    #[test]
    fn cycles_are_found() {
        let tree = Tree::of([
            ("src/api/mod.rs", "use crate::pods::A;"),
            ("src/pods/mod.rs", "use crate::flow::A;"),
            ("src/flow/mod.rs", "use crate::{api::A, base::B};"),
            ("src/base/mod.rs", "#[cfg(test)]\nuse crate::flow::A;"),
        ]);
        assert_eq!(largest_cycle(&tree), ["api", "flow", "pods"]);
    }

    #[test]
    fn the_table_itself_points_down() {
        let level = |name: &str| ARROWS.iter().find(|(room, ..)| *room == name).unwrap().1;
        let mut arrows = BTreeMap::new();
        for (room, _, allowed) in ARROWS {
            for other in *allowed {
                assert!(level(other) <= level(room), "{room} -> {other} points up");
                arrows.entry((*room).to_owned()).or_insert_with(BTreeSet::new).insert((*other).to_owned());
            }
        }
        assert!(cycle_of(&arrows).is_empty());
        for room in PURE {
            assert!(level(room) <= 2, "{room} is pure and thus below level 3");
        }
    }
}
