//! Routes without a body: health, version, models, load, and the development routes that answer about state.
use super::config::SimConfig;
use super::json::quote;
use super::pod::Life;
use super::wire::Reply;

/// The version it claims.
const VERSION: &str = "0.32.0";

/// Answers a `GET`; `None` if there is no such route.
pub(super) fn get(path: &str, config: &SimConfig, life: &Life, created: u64) -> Option<Reply> {
    Some(match path {
        "/health" | "/ping" => Reply::with(200, None, Vec::new()),
        "/version" => Reply::json(format!(r#"{{"version":"{VERSION}"}}"#)),
        "/load" => Reply::json(r#"{"server_load":0}"#.to_owned()),
        "/is_sleeping" => Reply::json(r#"{"is_sleeping":false}"#.to_owned()),
        "/is_paused" => Reply::json(r#"{"is_paused":false}"#.to_owned()),
        "/kv_event_sources" => Reply::json("{}".to_owned()),
        "/v1/models" => Reply::json(models(config, created)),
        "/metrics" => {
            let kind = Some("text/plain; version=1.0.0; charset=utf-8");
            Reply::with(200, kind, super::metrics::render(config, life).into_bytes())
        }
        _ => return None,
    })
}

fn models(config: &SimConfig, created: u64) -> String {
    let card = |name: &String, parent: Option<&str>| {
        let root = quote(&format!("./{name}"));
        let (limit, parent) = match parent {
            None => (config.max_model_len.to_string(), "null".to_owned()),
            Some(parent) => ("null".to_owned(), quote(parent)),
        };
        let name = quote(name);
        format!(
            r#"{{"id":{name},"object":"model","created":{created},"owned_by":"vllm","root":{root},"parent":{parent},"max_model_len":{limit},"permission":[{{"id":"modelperm-{created:016x}","object":"model_permission","created":{created},"allow_create_engine":false,"allow_sampling":true,"allow_logprobs":true,"allow_search_indices":false,"allow_view":true,"allow_fine_tuning":false,"organization":"*","group":null,"is_blocking":false}}]}}"#
        )
    };
    let parent = config.first_model();
    let cards = config.models.iter().map(|name| card(name, None));
    let all: Vec<String> = cards.chain(config.adapters.iter().map(|name| card(name, Some(parent)))).collect();
    format!(r#"{{"object":"list","data":[{}]}}"#, all.join(","))
}
