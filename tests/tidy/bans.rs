//! What may not be written, where, and what to write instead.
//!
//! Clippy knows types and finds more; this table also covers what it cannot see (rooms, comments, other languages). A ban
//! with a lint is lifted by `#[allow(clippy::<lint>, reason = "...")]` on the item, the same mark that clippy asks for.
use crate::arrows::{PURE, room_of};
use crate::source::{Tree, matches};

/// Where a match was found.
struct Place<'a> {
    path: &'a str,
    room: &'a str,
    in_test: bool,
    in_const: bool,
}

struct Ban {
    words: &'static [&'static str],
    /// The clippy lint whose excuse counts here as well.
    lint: &'static str,
    applies: fn(&Place) -> bool,
    instead: &'static str,
}

impl Place<'_> {
    fn is_product(&self) -> bool {
        !self.in_test && self.path.starts_with("src/") && self.path != "src/build.rs"
    }

    /// Runs when the gate runs, so that a panic there ends something.
    fn may_not_panic(&self) -> bool {
        !self.in_test && !self.in_const && self.room != "main"
    }

    fn is_pure(&self) -> bool {
        !self.in_test && PURE.contains(&self.room)
    }
}

const BANS: &[Ban] = &[
    Ban {
        words: &[".unwrap()", ".unwrap_err()"],
        lint: "unwrap_used",
        applies: |place| place.may_not_panic(),
        instead: "return the error, or `let ... else` with what to do",
    },
    Ban {
        words: &[".expect(", ".expect_err("],
        lint: "expect_used",
        applies: |place| place.may_not_panic(),
        instead: "return the error; for a programmer error say why it cannot happen in an `allow` with a reason",
    },
    Ban {
        words: &["panic!", "unimplemented!"],
        lint: "panic",
        applies: |place| place.may_not_panic(),
        instead: "return an error: input must not end the gate",
    },
    Ban { words: &["todo!", "dbg!"], lint: "todo", applies: |_| true, instead: "finish it or leave it out" },
    Ban {
        words: &["println!", "print!", "eprintln!", "eprint!"],
        lint: "print_stdout",
        applies: |place| place.is_product() && place.room != "main",
        instead: "log a field with `tracing`, or return the text to main",
    },
    Ban {
        words: &["Instant::now", "SystemTime::now", "UNIX_EPOCH.elapsed"],
        lint: "disallowed_methods",
        applies: |place| place.is_product() && place.room != "runtime",
        instead: "take `now: Mono` as an argument; at the edge call `runtime::now()`",
    },
    Ban {
        words: &["tokio::spawn", "task::spawn", "spawn_local"],
        lint: "disallowed_methods",
        applies: |place| place.is_product() && place.room != "runtime",
        instead: "`runtime::supervise(name, future)`, which reports and is awaited at shutdown",
    },
    Ban {
        words: &["std::env", "env::var", "env::args"],
        lint: "disallowed_methods",
        applies: |place| place.is_product() && !["config", "main", "app"].contains(&place.room),
        instead: "add a setting to the room's own settings struct; only `config` and `main` read the environment",
    },
    Ban {
        words: &["unbounded_channel", "unbounded", "std::sync::mpsc::channel", "sync::mpsc::channel"],
        lint: "disallowed_methods",
        applies: |place| !place.in_test,
        instead: "`channel(limit)` with a named maximum and a metric at the limit",
    },
    Ban {
        words: &["time::sleep", "thread::sleep", "sleep_until"],
        lint: "disallowed_methods",
        applies: |place| place.in_test,
        instead: "wait for the event itself (a channel, a read to its end) or pause time",
    },
    Ban {
        words: &["#[ignore"],
        lint: "",
        applies: |_| true,
        instead: "make the test run everywhere, or let it say `SKIPPED: ...` by itself",
    },
    Ban {
        words: &[
            "tokio::",
            "pingora::",
            "pingora_core::",
            "pingora_proxy::",
            "kube::",
            "prometheus::",
            "tracing::",
            "log::",
        ],
        lint: "",
        applies: |place| place.is_pure(),
        instead: "a room that decides takes values and returns values with its reasons; the caller waits, sends and logs",
    },
    Ban {
        words: &[
            "std::time::Instant",
            "SystemTime",
            "std::thread",
            "thread::spawn",
            ".await",
            "rand::",
            "std::fs",
            "std::net::Tcp",
        ],
        lint: "",
        applies: |place| place.is_pure(),
        instead: "take `now: Mono`, `&mut Rng` or the value read as an argument",
    },
];

/// Words that only the machine knows on which something was written. Spelled in halves: this file is searched as well.
const WORKPLACE: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("../sha", "red")];

/// Marks of unfinished work and of decoration in comments.
const COMMENT_BANS: &[(&str, &str)] = &[
    (concat!("TO", "DO"), "do it, or say what is missing in a sentence with its condition"),
    (concat!("FIX", "ME"), "fix it, or say what is wrong in a sentence with its condition"),
    (concat!("//", " ----"), "no banners; split the file"),
    (concat!("//", " ===="), "no banners; split the file"),
    (concat!("//", "////"), "no banners; split the file"),
];

/// Banned words in code.
pub(crate) fn offences(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for source in &tree.sources {
        let room = room_of(&source.path).unwrap_or_default();
        for ban in BANS {
            for (offset, word) in
                ban.words.iter().flat_map(|word| matches(&source.code, word).into_iter().map(move |at| (at, word)))
            {
                let place = Place {
                    path: &source.path,
                    room: &room,
                    in_test: source.in_test(offset),
                    in_const: source.in_const(offset),
                };
                let is_own_module = word.ends_with("::") && source.code[..offset].ends_with("::");
                if (ban.applies)(&place) && !is_own_module && !source.is_excused(ban.lint, offset) {
                    found.push(format!("{}: `{word}` is banned here; instead: {}", source.at(offset), ban.instead));
                }
            }
        }
    }
    found
}

/// Banned words in comments, and words of the workplace in any file.
pub(crate) fn words(tree: &Tree) -> Vec<String> {
    let mut found = Vec::new();
    for source in &tree.sources {
        for (word, instead) in COMMENT_BANS {
            for offset in matches(&source.comments, word) {
                found.push(format!("{}: `{word}` in a comment; instead: {instead}", source.at(offset)));
            }
        }
    }
    let sources = tree.sources.iter().map(|source| (&source.path, &source.text));
    for (path, text) in sources.chain(tree.texts.iter().map(|(path, text)| (path, text))) {
        for (number, line) in text.lines().enumerate() {
            for word in WORKPLACE.iter().filter(|word| line.contains(*word)) {
                found.push(format!("{path}:{}: `{word}` is a path of one machine; instead: a path from the repository's root, or a setting", number + 1));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(path: &str, text: &str) -> usize {
        let tree = Tree::of([(path, text)]);
        offences(&tree).len() + words(&tree).len()
    }

    /// The snippet is refused in the first place and accepted in the second.
    fn check(text: &str, refused: &str, accepted: &str) {
        assert_ne!(found(refused, text), 0, "{refused}: {text}");
        assert_eq!(found(accepted, text), 0, "{accepted}: {text}");
    }

    #[test]
    fn panics_and_prints() {
        check("fn a() { b.unwrap() }", "src/flow/a.rs", "src/main.rs");
        check("fn a() { b.expect(\"x\") }", "src/flow/a.rs", "tests/a.rs");
        check("fn a() { panic!(\"x\") }", "src/flow/a.rs", "src/flow/tests.rs");
        check("fn a() { println!(\"x\") }", "src/flow/a.rs", "loadtest/src/report.rs");
        check("fn a() { eprintln!(\"x\") }", "src/proxy/a.rs", "src/main.rs");
        assert_ne!(found("tests/a.rs", "fn a() { todo!() }"), 0);
        assert_ne!(found("tests/a.rs", "fn a() { dbg!(1) }"), 0);
        assert_eq!(found("src/flow/a.rs", "fn a() { b.unwrap_or(1); c.expect_byte(2) }"), 0);
        assert_eq!(found("src/flow/a.rs", "const MAX: NonZero<u8> = NonZero::new([1; 2].len()).unwrap();"), 0);
        assert_ne!(found("src/flow/a.rs", "const MAX: u8 = 1; fn a() { b.unwrap() }"), 0);
        assert_ne!(found("src/flow/a.rs", "const fn a() { b.unwrap() }"), 0);
    }

    #[test]
    fn clocks_tasks_environment_and_channels() {
        check("let a = std::time::Instant::now();", "src/proxy/a.rs", "src/runtime/clock.rs");
        check("let a = SystemTime::now();", "src/export/a.rs", "src/runtime/clock.rs");
        check("fn a() { tokio::spawn(b) }", "src/telemetry/a.rs", "src/runtime/task.rs");
        check("fn a() { std::env::var(\"A\") }", "src/proxy/a.rs", "src/config/load.rs");
        check("let a = tokio::sync::mpsc::unbounded_channel();", "src/proxy/a.rs", "tests/a.rs");
        check("fn a() { tokio::time::sleep(b) }", "tests/a.rs", "src/telemetry/a.rs");
        check("#[cfg(test)] mod tests { fn a() { tokio::time::sleep(b) } }", "src/proxy/a.rs", "README.md");
    }

    #[test]
    fn rooms_that_decide_touch_nothing() {
        for text in [
            "use tokio::sync::Mutex;",
            "use pingora::http::X;",
            "use pingora_core::Y;",
            "use kube::Api;",
            "use prometheus::X;",
            "tracing::warn!();",
            "log::warn!();",
            "use std::time::Instant;",
            "fn a() { b.await }",
            "use std::thread;",
        ] {
            for room in ["base", "api", "prefix", "pods", "scheduling", "flow", "observe", "sim/engine"] {
                check(text, &format!("src/{room}/a.rs"), "src/proxy/a.rs");
            }
        }
        assert_eq!(
            found("src/observe/a.rs", "#[cfg(test)] mod tests { use std::thread; } use super::log::Line; // tokio::"),
            0
        );
    }

    #[test]
    fn an_allow_with_a_reason_lifts_a_ban() {
        let allowed = "#[allow(clippy::expect_used, reason = \"cannot fail\")]\nfn a() { b.expect(\"x\") }";
        check("#[allow(clippy::expect_used)]\nfn a() { b.expect(\"x\") }", "src/flow/a.rs", "tests/a.rs");
        assert_eq!(found("src/flow/a.rs", allowed), 0);
    }

    #[test]
    fn ignored_tests_banners_and_machine_paths() {
        assert_ne!(found("tests/a.rs", "#[ignore = \"slow\"]\nfn a() {}"), 0);
        assert_ne!(found("src/flow/a.rs", concat!("// TO", "DO later")), 0);
        assert_ne!(found("src/flow/a.rs", concat!("//", " -------- part")), 0);
        for path in ["README.md", ".ci/run", "src/flow/a.rs", "tests/x/serve.sh"] {
            assert_ne!(found(path, concat!("see /ro", "ot/x")), 0, "{path}");
            assert_ne!(found(path, concat!("see ../sha", "red/x")), 0, "{path}");
        }
    }
}
