//! Which path and method is what. The table is that of a vLLM 0.32 server (generate and pooling, development mode
//! included); what a pod has beyond it is unknown here and refused.
//!
//! Paths are compared byte by byte and never normalised: a path with `%`, `//`, a dot segment or anything else a server
//! behind might read in another way matches nothing, operator's patterns included.
use http::Method;
use thiserror::Error;

use super::kind::Api;

/// What a path and method mean to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// A body to be balanced by the model it names.
    Balanced(Api),
    /// `GET /v1/models`: the union over pods.
    Models,
    /// `GET /v1/realtime`: a WebSocket.
    Realtime,
    /// `/v1/responses/{id}`: goes to the pod that made the id.
    ResponseById {
        /// The id as written in the path.
        id: &'a str,
        /// `POST …/cancel`, else `GET`.
        cancel: bool,
    },
    /// `GET /health`, answered by the gate.
    Health,
    /// `GET` or `POST /ping`, answered by the gate.
    Ping,
    /// `GET /version`, answered by the gate.
    Version,
    /// `OPTIONS` on a path that is served: passed to any pod.
    Preflight,
    /// A pod's development, administration or telemetry route, not opened by the operator.
    Refused,
    /// A path the operator opened: passed to any pod of the model as it is.
    Allowed,
    /// The path is served, but not with this method: 405 `{"detail":"Method Not Allowed"}`.
    MethodNotAllowed {
        /// For the `Allow` header.
        allow: &'static str,
    },
    /// No such path: 404 `{"detail":"Not Found"}`.
    Unknown,
}

/// Routes with a body that names a model, all `POST`.
const BALANCED: [(&str, Api); 31] = [
    ("/v1/chat/completions", Api::Chat),
    ("/v1/completions", Api::Completions),
    ("/v1/responses", Api::Responses),
    ("/v1/messages", Api::Messages),
    ("/v1/messages/count_tokens", Api::CountTokens),
    ("/v1/embeddings", Api::Embeddings),
    ("/tokenize", Api::Tokenize),
    ("/detokenize", Api::Detokenize),
    ("/v1/chat/completions/batch", Api::ChatBatch),
    ("/inference/v1/generate", Api::GenerateTokens),
    ("/invocations", Api::Invocations),
    ("/generative_scoring", Api::GenerativeScoring),
    ("/v1/systemone", Api::SystemOne),
    ("/pooling", Api::Pooling),
    ("/classify", Api::Classify),
    ("/score", Api::Score),
    ("/v1/score", Api::Score),
    ("/rerank", Api::Rerank),
    ("/v1/rerank", Api::Rerank),
    ("/v2/rerank", Api::Rerank),
    ("/v2/embed", Api::EmbedV2),
    ("/v1/chat/completions/render", Api::Render),
    ("/v1/completions/render", Api::Render),
    ("/v1/responses/render", Api::Render),
    ("/v1/messages/render", Api::RenderMessages),
    ("/v1/chat/completions/derender", Api::Render),
    ("/v1/completions/derender", Api::Render),
    ("/v1/responses/derender", Api::Render),
    ("/v1/messages/derender", Api::RenderMessages),
    ("/v1/audio/transcriptions", Api::Transcriptions),
    ("/v1/audio/translations", Api::Translations),
];

/// Routes that change a pod, or tell about it and its other users. Refused with every method.
const REFUSED: [&str; 37] = [
    "/metrics",
    "/load",
    "/server_info",
    "/kv_event_sources",
    "/sleep",
    "/wake_up",
    "/is_sleeping",
    "/pause",
    "/resume",
    "/is_paused",
    "/reset_prefix_cache",
    "/reset_mm_cache",
    "/reset_encoder_cache",
    "/release_kv_cache_memory",
    "/collective_rpc",
    "/abort_requests",
    "/inference/v1/abort_requests",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/init_weight_transfer_engine",
    "/shutdown_weight_transfer_engine",
    "/start_weight_update",
    "/start_draft_weight_update",
    "/update_weights",
    "/finish_weight_update",
    "/update_weight_version",
    "/weight_info",
    "/weight_checker",
    "/get_world_size",
    "/scale_elastic_ep",
    "/is_scaling_elastic_ep",
    "/start_profile",
    "/stop_profile",
    "/openapi.json",
    "/docs",
    "/docs/oauth2-redirect",
    "/redoc",
];

/// A pattern of allowed paths that cannot be used; the text says why.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("path pattern {pattern:?}: {problem}")]
pub struct BadPattern {
    /// The pattern as given.
    pub pattern: String,
    /// What to write instead.
    pub problem: &'static str,
}

/// Paths the operator opened beyond the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathRules {
    exact: Vec<Box<str>>,
    prefixes: Vec<Box<str>>,
}

impl PathRules {
    /// Rules from patterns: an exact path, or one that ends in `*` for all paths that begin so. A refused path is opened
    /// by its exact pattern only, so that `/v1/*` does not open LoRA loading by the way.
    pub fn new(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, BadPattern> {
        let mut rules = Self::default();
        for pattern in patterns {
            let pattern = pattern.as_ref();
            let bad = |problem| Err(BadPattern { pattern: pattern.to_owned(), problem });
            let (path, is_prefix) = pattern.strip_suffix('*').map_or((pattern, false), |path| (path, true));
            if !path.starts_with('/') {
                return bad("begin it with '/'");
            }
            if path.contains('*') {
                return bad("'*' may stand at the end only");
            }
            if !is_plain(path) {
                return bad("use plain ASCII without '%', '?', '#', '\\', '//' and dot segments");
            }
            if is_prefix { rules.prefixes.push(path.into()) } else { rules.exact.push(path.into()) }
        }
        Ok(rules)
    }

    fn opens(&self, path: &str, is_refused: bool) -> bool {
        self.exact.iter().any(|exact| **exact == *path)
            || (!is_refused && self.prefixes.iter().any(|prefix| path.starts_with(&**prefix)))
    }
}

/// Looks up a request. `path` is the target's path without the query.
pub fn route<'a>(method: &Method, path: &'a str, rules: &PathRules) -> Route<'a> {
    if !is_plain(path) {
        return Route::Unknown;
    }
    if let Some((served, allow)) = served(method, path) {
        return match served {
            _ if method == Method::OPTIONS => Route::Preflight,
            Some(route) => route,
            None => Route::MethodNotAllowed { allow },
        };
    }
    let is_refused = REFUSED.contains(&path);
    if rules.opens(path, is_refused) {
        return Route::Allowed;
    }
    if is_refused { Route::Refused } else { Route::Unknown }
}

/// The route of a path the gate serves, if the method fits, and the methods that fit.
fn served<'a>(method: &Method, path: &'a str) -> Option<(Option<Route<'a>>, &'static str)> {
    if let Some((_, api)) = BALANCED.iter().find(|(known, _)| *known == path) {
        return Some(((method == Method::POST).then_some(Route::Balanced(*api)), "POST"));
    }
    let get = |route: Route<'a>| Some(((method == Method::GET).then_some(route), "GET"));
    match path {
        "/health" => get(Route::Health),
        "/version" => get(Route::Version),
        "/v1/models" => get(Route::Models),
        "/v1/realtime" => get(Route::Realtime),
        "/ping" => {
            let fits = method == Method::GET || method == Method::POST;
            Some((fits.then_some(Route::Ping), "GET, POST"))
        }
        _ => {
            let rest = path.strip_prefix("/v1/responses/")?;
            match rest.strip_suffix("/cancel") {
                Some(id) if is_id(id) => {
                    let route = Route::ResponseById { id, cancel: true };
                    Some(((method == Method::POST).then_some(route), "POST"))
                }
                None if is_id(rest) => get(Route::ResponseById { id: rest, cancel: false }),
                _ => None,
            }
        }
    }
}

fn is_id(id: &str) -> bool {
    !id.is_empty() && !id.contains('/')
}

/// Can this path be read in one way only?
fn is_plain(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'%' | b'?' | b'#' | b'\\'))
        && !path.contains("//")
        && path.split('/').all(|segment| segment != "." && segment != "..")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn check(method: &str, path: &str, expected: Route<'_>) {
        let rules = PathRules::new(["/sleep", "/v1/*", "/extra"]).unwrap();
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        assert_eq!(route(&method, path, &rules), expected, "{method} {path}");
    }

    #[test]
    fn every_route_of_the_real_servers_is_known() {
        let lists = [
            include_str!("../../tests/fixtures/vllm/routes-generate.txt"),
            include_str!("../../tests/fixtures/vllm/routes-pooling.txt"),
        ];
        for line in lists.iter().flat_map(|list| list.lines()) {
            let (path, methods) = line.split_once(", Methods: ").unwrap();
            let path = path.replace("{response_id}", "resp_1");
            for method in methods.split(", ") {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                let found = route(&method, &path, &PathRules::default());
                assert!(!matches!(found, Route::Unknown | Route::MethodNotAllowed { .. }), "{line}: {found:?}");
            }
        }
    }

    #[test]
    fn methods_are_judged_as_the_pod_would() {
        check("POST", "/v1/chat/completions", Route::Balanced(Api::Chat));
        check("GET", "/v1/chat/completions", Route::MethodNotAllowed { allow: "POST" });
        check("HEAD", "/health", Route::MethodNotAllowed { allow: "GET" });
        check("OPTIONS", "/v1/chat/completions", Route::Preflight);
        check("OPTIONS", "/metrics", Route::Refused);
        check("OPTIONS", "/nothing", Route::Unknown);
        check("POST", "/ping", Route::Ping);
        check("GET", "/v1/responses/resp_1", Route::ResponseById { id: "resp_1", cancel: false });
        check("POST", "/v1/responses/resp_1/cancel", Route::ResponseById { id: "resp_1", cancel: true });
        check("GET", "/v1/responses/resp_1/cancel", Route::MethodNotAllowed { allow: "POST" });
        check("POST", "/v1/responses/render", Route::Balanced(Api::Render));
    }

    #[test]
    fn operators_open_paths_and_a_wildcard_opens_no_refused_one() {
        check("POST", "/sleep", Route::Allowed);
        check("POST", "/extra", Route::Allowed);
        check("GET", "/v1/anything/else", Route::Allowed);
        check("POST", "/v1/load_lora_adapter", Route::Refused);
        check("POST", "/wake_up", Route::Refused);
        check("GET", "/extra/", Route::Unknown);
        for bad in ["sleep", "/a*b", "/a/../b", "/%73leep", "", "*"] {
            assert!(PathRules::new([bad]).is_err(), "{bad}");
        }
    }

    #[test]
    fn tricks_reach_nothing() {
        for path in [
            "/%73leep",
            "//sleep",
            "/./sleep",
            "/v1/../sleep",
            "/v1/%2e%2e/wake_up",
            "/v1//models",
            "/v1/.",
            "/v1\\models",
            "/v1/mod\u{e9}ls",
            "*",
            "",
            "http://a/sleep",
            "/sleep/",
            "/SLEEP",
            "/wake_up ",
        ] {
            check("POST", path, Route::Unknown);
        }
    }
}
