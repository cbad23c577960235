//! The dashboard's page: files compiled in, and the headers that keep it to itself.
//!
//! Nothing is loaded from elsewhere, nothing runs that is not one of these files, nobody may frame it. It only reads; what it shows
//! holds no prompt, key or body.
use super::answer::Answer;

/// Path of its events.
const EVENTS: &str = "/dashboard/events";

/// Type of its events.
pub(super) const EVENT_STREAM: &str = "text/event-stream";

/// Sent with every answer of the admin listener.
pub(super) const POLICY: &str = "Content-Security-Policy: default-src 'none'; script-src 'self'; style-src 'self'; \
    img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'\r\n\
    Referrer-Policy: no-referrer\r\nCross-Origin-Resource-Policy: same-origin\r\n";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// Path, type, text.
const FILES: &[(&str, &str, &str)] = &[
    ("/dashboard", HTML, include_str!("dashboard/index.html")),
    ("/dashboard/style.css", "text/css; charset=utf-8", include_str!("dashboard/style.css")),
    ("/dashboard/icon.svg", "image/svg+xml", include_str!("dashboard/icon.svg")),
    ("/dashboard/main.js", SCRIPT, include_str!("dashboard/main.js")),
    ("/dashboard/charts.js", SCRIPT, include_str!("dashboard/charts.js")),
    ("/dashboard/fleet.js", SCRIPT, include_str!("dashboard/fleet.js")),
    ("/dashboard/decisions.js", SCRIPT, include_str!("dashboard/decisions.js")),
    ("/dashboard/format.js", SCRIPT, include_str!("dashboard/format.js")),
];

/// One of the page's files, or the sign that its events are wanted. `/` is the page for whoever asks for HTML.
pub(super) fn reply(path: &str, wants_html: bool, is_get: bool) -> Option<Answer> {
    let path = path.split('?').next().unwrap_or_default();
    if path == EVENTS && is_get {
        return Some(Answer { status: 200, content_type: EVENT_STREAM, body: String::new(), allow: None });
    }
    let path = if path == "/" && wants_html { "/dashboard" } else { path.strip_suffix('/').unwrap_or(path) };
    let (_, content_type, text) = FILES.iter().find(|(name, ..)| *name == path)?;
    Some(Answer { status: 200, content_type, body: (*text).to_owned(), allow: None })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn file(path: &str, wants_html: bool) -> Option<Answer> {
        reply(path, wants_html, true)
    }

    #[test]
    fn the_page_is_there_for_browsers_and_under_its_own_name() {
        assert!(file("/", false).is_none(), "tools get the list of pages");
        for path in ["/dashboard", "/dashboard/", "/dashboard?theme=dark"] {
            assert!(file(path, false).unwrap().body.starts_with("<!doctype html>"), "{path}");
        }
        assert_eq!(file("/", true), file("/dashboard", false));
        assert!(file("/dashboard/none.js", true).is_none());
    }

    #[test]
    fn the_page_asks_for_its_own_files_only() {
        let mut asked = 0;
        for (path, _, text) in FILES {
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            for word in [
                "http://",
                "https://",
                "url(",
                "@import",
                "eval(",
                "innerHTML",
                "outerHTML",
                "insertAdjacent",
                " style=",
                "<style",
                "onclick=",
                "document.write",
            ] {
                assert!(
                    !outside.contains(word),
                    "{path} has {word}: the policy forbids it, or names from pods could become code"
                );
            }
            for mark in ["href=\"", "src=\"", "from \"."] {
                for rest in text.split(mark).skip(1).filter(|rest| !rest.starts_with('#')) {
                    let name = rest.split('"').next().unwrap();
                    let name = if mark == "from \"." { format!("/dashboard{name}") } else { name.to_owned() };
                    assert!(file(&name, false).is_some(), "{path} asks for {name}");
                    asked += 1;
                }
            }
        }
        assert!(asked >= FILES.len() - 1, "{asked} references: every file but the page is asked for");
        assert!(POLICY.contains("default-src 'none'") && !POLICY.contains("unsafe"));
    }

    #[test]
    fn scripts_are_valid_where_a_checker_is_at_hand() {
        let dir = std::env::temp_dir().join(format!("tidegate-dashboard-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (path, _, text) in FILES.iter().filter(|(_, content_type, _)| *content_type == SCRIPT) {
            let script = dir.join(path.rsplit('/').next().unwrap()).with_extension("mjs");
            std::fs::write(&script, text).unwrap();
            let Ok(checked) = std::process::Command::new("node").arg("--check").arg(&script).output() else {
                // No node on this machine: a browser would find it, see tests/dashboard.
                break;
            };
            assert!(checked.status.success(), "{path}: {}", String::from_utf8_lossy(&checked.stderr));
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
