//! Routes of a pooling server: embeddings, pooling, classify, score, rerank. Vectors are 8 made-up numbers from the seed.
use serde_json::Value;

use super::ask::{completion_prompts, model_of, text_tokens};
use super::config::SimConfig;
use super::json::{list, numbers, quote};
use super::refuse::Refused;
use crate::base::Rng;
use crate::sim::engine::content;

/// A pooling answer: prompts to compute, and the body once they are.
pub(super) struct Pooled {
    pub(super) prompts: Vec<Vec<u32>>,
    pub(super) body: String,
}

/// Answers a pooling route; `None` if there is no such route.
pub(super) fn pool(
    path: &str,
    body: &Value,
    id: &str,
    created: u64,
    config: &SimConfig,
) -> Option<Result<Pooled, Refused>> {
    Some(match path {
        "/v1/embeddings" => embed(body, id, created, config, ("embd", "embedding")),
        "/pooling" => embed(body, id, created, config, ("pool", "data")),
        "/classify" => classify(body, id, created, config),
        "/score" | "/v1/score" => score(body, id, created, config),
        "/rerank" | "/v1/rerank" | "/v2/rerank" => rerank(body, id, config),
        _ => return None,
    })
}

fn vector(prompt: &[u32]) -> Vec<f64> {
    let mut rng = Rng::new(content::seed(prompt, 0));
    (0..8).map(|_| (rng.unit() * 2.0 - 1.0) / 8.0_f64.sqrt()).collect()
}

fn relevance(prompt: &[u32]) -> f64 {
    Rng::new(content::seed(prompt, 0)).unit()
}

fn usage(prompts: &[Vec<u32>]) -> String {
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    format!(
        r#"{{"prompt_tokens":{tokens},"total_tokens":{tokens},"completion_tokens":0,"prompt_tokens_details":null,"completion_tokens_details":null}}"#
    )
}

fn text<'a>(body: &'a Value, names: &[&str]) -> Vec<&'a str> {
    match names.iter().find_map(|name| body.get(*name)) {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(items)) => {
            let words = |item: &'a Value| item.as_str().or_else(|| item.get("text").and_then(Value::as_str));
            items.iter().filter_map(words).collect()
        }
        _ => Vec::new(),
    }
}

fn embed(
    body: &Value,
    id: &str,
    created: u64,
    config: &SimConfig,
    (prefix, member): (&str, &str),
) -> Result<Pooled, Refused> {
    let Some(input) = body.get("input") else {
        return Err(Refused::field("missing", "body.input", "Field required", "<dict>"));
    };
    let model = model_of(body, config)?;
    let prompts = completion_prompts(input)?;
    let entry = |(index, prompt): (usize, &Vec<u32>)| {
        let kind = if member == "data" { "pooling" } else { "embedding" };
        format!(r#"{{"index":{index},"object":"{kind}","{member}":{}}}"#, numbers(vector(prompt)))
    };
    let entries = list(prompts.iter().enumerate().map(entry));
    let body = format!(
        r#"{{"id":"{prefix}-{id}","object":"list","created":{created},"model":{},"data":{entries},"usage":{}}}"#,
        quote(&model),
        usage(&prompts),
    );
    Ok(Pooled { prompts, body })
}

fn classify(body: &Value, id: &str, created: u64, config: &SimConfig) -> Result<Pooled, Refused> {
    let model = model_of(body, config)?;
    let prompts = completion_prompts(body.get("input").unwrap_or(&Value::Null))?;
    let entry = |(index, prompt): (usize, &Vec<u32>)| {
        let yes = relevance(prompt);
        let label = if yes > 0.5 { "LABEL_1" } else { "LABEL_0" };
        format!(r#"{{"index":{index},"label":"{label}","probs":{},"num_classes":2}}"#, numbers([1.0 - yes, yes]))
    };
    let entries = list(prompts.iter().enumerate().map(entry));
    let body = format!(
        r#"{{"id":"classify-{id}","object":"list","created":{created},"model":{},"data":{entries},"usage":{}}}"#,
        quote(&model),
        usage(&prompts),
    );
    Ok(Pooled { prompts, body })
}

fn score(body: &Value, id: &str, created: u64, config: &SimConfig) -> Result<Pooled, Refused> {
    let model = model_of(body, config)?;
    let (left, right) = (text(body, &["text_1", "queries", "data_1"]), text(body, &["text_2", "documents", "data_2"]));
    let pairs = right.iter().enumerate().map(|(at, document)| {
        let query = left.get(at).or_else(|| left.first()).copied().unwrap_or_default();
        text_tokens(&format!("{query}\n{document}"))
    });
    let prompts: Vec<Vec<u32>> = pairs.collect();
    let entry = |(index, prompt): (usize, &Vec<u32>)| {
        format!(r#"{{"index":{index},"object":"score","score":{:?}}}"#, relevance(prompt))
    };
    let entries = list(prompts.iter().enumerate().map(entry));
    let body = format!(
        r#"{{"id":"score-{id}","object":"list","created":{created},"model":{},"data":{entries},"usage":{}}}"#,
        quote(&model),
        usage(&prompts),
    );
    Ok(Pooled { prompts, body })
}

fn rerank(body: &Value, id: &str, config: &SimConfig) -> Result<Pooled, Refused> {
    let model = model_of(body, config)?;
    let query = text(body, &["query"]).first().copied().unwrap_or_default().to_owned();
    let documents = text(body, &["documents"]);
    let prompts: Vec<Vec<u32>> =
        documents.iter().map(|document| text_tokens(&format!("{query}\n{document}"))).collect();
    let mut order: Vec<(usize, f64)> = prompts.iter().map(|prompt| relevance(prompt)).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let entry = |(index, relevance): (usize, f64)| {
        let document = quote(documents.get(index).copied().unwrap_or_default());
        format!(
            r#"{{"index":{index},"document":{{"text":{document},"multi_modal":null}},"relevance_score":{relevance:?}}}"#
        )
    };
    let tokens: usize = prompts.iter().map(Vec::len).sum();
    let body = format!(
        r#"{{"id":"score-{id}","model":{},"usage":{{"prompt_tokens":{tokens},"total_tokens":{tokens}}},"results":{}}}"#,
        quote(&model),
        list(order.into_iter().map(entry)),
    );
    Ok(Pooled { prompts, body })
}
