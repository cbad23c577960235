//! From a request to its answer: routing, authorisation, and the common way of everything that generates.
use bytes::Bytes;
use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::ask::{Ask, Face, parse};
use super::audio;
use super::chat::{self, ChatStream};
use super::completions::{self, CompletionStream, GenerateStream};
use super::config::{Serves, SimRole};
use super::connection::{Exchange, shape_of};
use super::dialect::{Dialect, Events, data, finish, stream};
use super::handover::{self, Loaded};
use super::host;
use super::messages::{self, MessageStream};
use super::metrics;
use super::plain;
use super::pooling;
use super::ranks::{Run, Sequence, Transfer};
use super::refuse::{Refused, Shape, detail};
use super::responses::{Frame, ResponseStream};
use super::tokens;
use super::transfer::{Asks, SimConnector};
use super::wire::{Reply, Step};
use crate::sim::engine::Refusal;

/// What a path is.
enum Route<'a> {
    Get,
    Generate(Face),
    Pool,
    Audio,
    Tokenize,
    Detokenize,
    CountTokens,
    Render(Face),
    Stored { id: &'a str, is_cancel: bool },
    Ping,
    SideChannel,
    Bootstrap,
    Development,
    Unknown,
}

fn route(path: &str, serves: Serves) -> Route<'_> {
    let generate = |face| if serves == Serves::Generate { Route::Generate(face) } else { Route::Unknown };
    match path {
        "/health" | "/version" | "/load" | "/metrics" | "/v1/models" | "/is_sleeping" | "/is_paused"
        | "/kv_event_sources" => Route::Get,
        "/ping" => Route::Ping,
        "/tokenize" => Route::Tokenize,
        "/detokenize" => Route::Detokenize,
        "/v1/messages/count_tokens" => Route::CountTokens,
        "/v1/chat/completions" => generate(Face::Chat),
        "/v1/completions" => generate(Face::Completions),
        "/v1/responses" => generate(Face::Responses),
        "/v1/messages" => generate(Face::Messages),
        "/inference/v1/generate" => generate(Face::Generate),
        "/v1/audio/transcriptions" | "/v1/audio/translations" if serves == Serves::Generate => Route::Audio,
        "/v1/chat/completions/render" => Route::Render(Face::Chat),
        "/v1/completions/render" => Route::Render(Face::Completions),
        "/reset_prefix_cache"
        | "/reset_mm_cache"
        | "/reset_encoder_cache"
        | "/sleep"
        | "/wake_up"
        | "/pause"
        | "/resume"
        | "/abort_requests"
        | "/collective_rpc" => Route::Development,
        "/v1/embeddings" | "/pooling" | "/classify" | "/score" | "/v1/score" | "/rerank" | "/v1/rerank"
        | "/v2/rerank" => {
            if serves == Serves::Pooling {
                Route::Pool
            } else {
                Route::Unknown
            }
        }
        _ if path.starts_with(handover::SIDE_CHANNEL) => Route::SideChannel,
        "/query" => Route::Bootstrap,
        _ => match path.strip_prefix("/v1/responses/") {
            Some(rest) if serves == Serves::Generate && !rest.is_empty() => match rest.strip_suffix("/cancel") {
                Some(id) => Route::Stored { id, is_cancel: true },
                None if !rest.contains('/') => Route::Stored { id: rest, is_cancel: false },
                None => Route::Unknown,
            },
            _ => Route::Unknown,
        },
    }
}

/// Answers a request.
pub(super) async fn answer(x: &mut Exchange<'_>) -> Step {
    let head = x.head;
    let config = &x.pod.config;
    if head.method == "OPTIONS" && head.field("access-control-request-method").is_some() {
        return x.wire.reply(&preflight()).await;
    }
    if let Some(key) = &config.api_key {
        let bearer = head.field("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if head.path.starts_with("/v1") && bearer != Some(key.as_str()) {
            let body = br#"{"error":"Unauthorized"}"#.to_vec();
            return x.wire.reply(&Reply::with(401, Some("application/json"), body)).await;
        }
    }
    let route = route(&head.path, config.serves);
    let method = match route {
        Route::Get | Route::SideChannel | Route::Bootstrap | Route::Stored { is_cancel: false, .. } => "GET",
        Route::Ping if head.method == "GET" => "GET",
        Route::Unknown => return x.wire.reply(&detail(404)).await,
        _ => "POST",
    };
    if head.method != method {
        let mut reply = detail(405);
        reply.fields.push(("allow", method.to_owned()));
        return x.wire.reply(&reply).await;
    }
    let reply = match route {
        Route::Generate(face) => return generate(x, face).await,
        Route::Pool => return pool(x).await,
        Route::Audio => return listen(x).await,
        Route::Get | Route::Ping => match x.plan.metrics.filter(|_| head.path == "/metrics") {
            Some(fault) => match metrics::broken(fault, config, x.life) {
                Some(reply) => reply,
                None => return x.wire.fall_silent().await,
            },
            None => plain::get(&head.path, config, x.life, x.created).unwrap_or_else(|| detail(404)),
        },
        Route::Development => {
            if head.path == "/reset_prefix_cache" {
                x.life.ranks.reset_caches();
            }
            Reply::with(200, None, Vec::new())
        }
        Route::SideChannel => {
            let called = x.life.leases.called(&x.life.engine, &head.path, &config.handover);
            called.unwrap_or_else(|| detail(404))
        }
        Route::Bootstrap if config.handover.connector == SimConnector::Mooncake && config.role == SimRole::Prefill => {
            Reply::json(serde_json::json!({"0": {"engine_id": x.life.engine, "worker_addr": {}}}).to_string())
        }
        Route::Stored { id, is_cancel } => stored(x, id, is_cancel),
        Route::Tokenize | Route::Detokenize | Route::CountTokens | Route::Render(_) => {
            body_of(x).and_then(|body| pure(x, &route, &body)).map_or_else(|refused| refuse(x, &refused), Reply::json)
        }
        Route::Bootstrap | Route::Unknown => detail(404),
    };
    x.wire.reply(&reply).await
}

/// Answers that are functions of the body.
fn pure(x: &Exchange<'_>, route: &Route<'_>, body: &Value) -> Result<String, Refused> {
    let config = &x.pod.config;
    match route {
        Route::Tokenize => tokens::tokenize(body, config),
        Route::Detokenize => tokens::to_text(body, config),
        Route::CountTokens => tokens::count(body, config),
        Route::Render(face) if config.scale_out => {
            Ask::read(*face, body, &[], config).map(|ask| tokens::render(&ask, &x.id, *face == Face::Completions))
        }
        _ => Err(not_enabled()),
    }
}

fn not_enabled() -> Refused {
    let message = "This endpoint is only available with --enable-scale-out.".to_owned();
    Refused { status: 403, kind: "PermissionDeniedError", message, param: None }
}

fn preflight() -> Reply {
    let mut reply = Reply::with(200, Some("text/plain; charset=utf-8"), b"OK".to_vec());
    reply.fields = vec![
        ("access-control-allow-origin", "*".to_owned()),
        ("access-control-allow-methods", "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT".to_owned()),
        ("access-control-max-age", "600".to_owned()),
    ];
    reply
}

fn body_of(x: &Exchange<'_>) -> Result<Value, Refused> {
    parse(&x.body, x.head.field("content-type"))
}

fn refuse(x: &Exchange<'_>, refused: &Refused) -> Reply {
    refused.reply(shape_of(x.head))
}

fn stored(x: &Exchange<'_>, id: &str, is_cancel: bool) -> Reply {
    match x.life.responses.get(id) {
        None => unknown_id(id).reply(Shape::OpenAi),
        Some(_) if is_cancel => {
            let message = "Cannot cancel a synchronous response.".to_owned();
            Refused { status: 400, message, ..unknown_id(id) }.reply(Shape::OpenAi)
        }
        Some(stored) => Reply::json(stored.body),
    }
}

fn unknown_id(id: &str) -> Refused {
    Refused {
        status: 404,
        kind: "invalid_request_error",
        message: format!("Response with id '{id}' not found."),
        param: Some("response_id".to_owned()),
    }
}

/// The rank asked for: a number in range, or none. vLLM ignores what is not a number.
fn rank_of(x: &Exchange<'_>) -> Result<Option<usize>, Refused> {
    let asked = x.head.field("x-data-parallel-rank").and_then(|value| value.trim().parse::<i64>().ok());
    let count = x.life.ranks.count();
    match asked {
        None => Ok(None),
        Some(rank) => match usize::try_from(rank) {
            Ok(rank) if rank < count => Ok(Some(rank)),
            _ => {
                let message = format!("data_parallel_rank {rank} is out of range [0, {count}).");
                Err(Refused::request(message, None))
            }
        },
    }
}

/// Enters sequences into an engine.
fn enter(x: &Exchange<'_>, ask: &Ask, transfer: Transfer) -> Result<Run, Refused> {
    let rank = rank_of(x)?;
    let is_base = ask.model == x.pod.config.first_model() || x.pod.config.models.contains(&ask.model);
    let adapter = if is_base { "" } else { ask.model.as_str() };
    let root = xxh3_64(format!("{adapter}\0{}", ask.salt.as_deref().unwrap_or("")).as_bytes());
    let sequences: Vec<Sequence<'_>> = ask
        .wanted
        .iter()
        .map(|wanted| Sequence {
            prompt: ask.prompts.get(wanted.prompt).map(Vec::as_slice).unwrap_or_default(),
            root,
            output_tokens: wanted.tokens,
            seed: wanted.seed,
        })
        .collect();
    enter_sequences(x, rank, &sequences, ask.is_streamed, transfer)
}

fn enter_sequences(
    x: &Exchange<'_>,
    rank: Option<usize>,
    sequences: &[Sequence<'_>],
    is_streamed: bool,
    transfer: Transfer,
) -> Result<Run, Refused> {
    x.life.leases.settle(host::now());
    x.life.ranks.enter(rank, sequences, is_streamed, transfer).map_err(|refusal| match refusal {
        Refusal::Busy => Refused::busy(),
        Refusal::TooLarge => {
            let tokens = sequences.iter().map(|sequence| sequence.prompt.len() as u64).max().unwrap_or(0);
            Refused::too_long(x.pod.config.max_model_len, tokens, None)
        }
    })
}

/// Reads the body of a generate route; with it the tokens of an earlier response that it continues.
fn read(x: &Exchange<'_>, face: Face, body: &Value) -> Result<Ask, Refused> {
    let previous = body.get("previous_response_id").and_then(Value::as_str).filter(|_| face == Face::Responses);
    let history = previous.map(|id| x.life.responses.get(id).map(|stored| stored.tokens).ok_or_else(|| unknown_id(id)));
    let history = history.transpose()?.unwrap_or_default();
    Ask::read(face, body, &history, &x.pod.config)
}

/// Everything that generates tokens.
async fn generate(x: &mut Exchange<'_>, face: Face) -> Step {
    let body = match body_of(x) {
        Ok(body) => body,
        Err(refused) => return x.wire.reply(&refused.reply(Shape::OpenAi)).await,
    };
    if face == Face::Generate && !x.pod.config.scale_out {
        return x.wire.reply(&not_enabled().reply(Shape::OpenAi)).await;
    }
    let asks = x.pod.config.handover.connector.asks(x.pod.config.role, &x.id, &body);
    if asks == Asks::Death {
        x.pod.crash();
        return x.wire.reply(&Refused::internal().reply(Shape::OpenAi)).await;
    }
    let mut ask = match read(x, face, &body) {
        Ok(ask) => ask,
        Err(refused) => {
            handover::reject(x, &asks).await?;
            let reply = refuse(x, &refused);
            return x.wire.reply(&reply).await;
        }
    };
    // A stream never tells where its blocks are (vLLM 0.32).
    let keeps = matches!(asks, Asks::Keep(_)) && !ask.is_streamed;
    let mut transfer = Transfer { keeps, ..Transfer::default() };
    if let Asks::Load(peer) = &asks {
        if ask.is_streamed {
            x.wire.begin_stream().await?;
        }
        match handover::load(x, peer, ask.prompt_tokens()).await? {
            Loaded::Given { is_wrong } => {
                (transfer.is_given, transfer.is_wrong) = (true, is_wrong);
                ask.told_cached = handover::told_cached(&body);
            }
            Loaded::Recomputes => {}
            Loaded::Failed => return fail(x, face, &ask).await,
        }
    }
    let run = match enter(x, &ask, transfer) {
        Ok(run) => run,
        Err(refused) => {
            let reply = refuse(x, &refused);
            return x.wire.reply(&reply).await;
        }
    };
    if run.is_wrong() {
        ask.wanted.iter_mut().for_each(|wanted| wanted.seed = !wanted.seed);
    }
    ask.keeps = if let (Asks::Keep(name), true) = (asks, keeps) { Some(name) } else { None };
    let previous = body.get("previous_response_id").and_then(Value::as_str).map(str::to_owned);
    let previous = previous.as_deref();
    let is_stored = body.get("store").and_then(Value::as_bool) != Some(false);
    // A stream may last long; its body is not needed any more.
    drop(body);
    x.body = Bytes::new();
    if ask.is_streamed {
        streamed(x, face, &ask, run, previous, is_stored).await
    } else {
        whole(x, face, &ask, run, previous, is_stored).await
    }
}

/// The blocks could not be loaded.
async fn fail(x: &mut Exchange<'_>, face: Face, ask: &Ask) -> Step {
    if !ask.is_streamed {
        return x.wire.reply(&Refused::internal().reply(Shape::OpenAi)).await;
    }
    // The opening is made of the engine's first output, which is this failure (vLLM 0.32's chat stream).
    let (mut opening, id) = (Events::new(), x.id.clone());
    match face {
        Face::Chat => ChatStream::new(ask, &id, x.created, false).opening(0, &mut opening),
        Face::Messages => MessageStream::new(ask, &id, false).opening(0, &mut opening),
        Face::Responses => ResponseStream::new(&frame(x, ask, None)).early(&mut opening),
        Face::Completions | Face::Generate => {}
    }
    for event in &opening {
        x.wire.event(event).await?;
    }
    let body = Refused::internal().body(if face == Face::Messages { Shape::Anthropic } else { Shape::OpenAi });
    x.wire.event(&data(&body)).await?;
    x.wire.event(&data("[DONE]")).await?;
    x.wire.end_stream().await
}

/// The frame of a response.
fn frame<'a>(x: &Exchange<'_>, ask: &'a Ask, previous: Option<&'a str>) -> Frame<'a> {
    let config = &x.pod.config;
    let room = config.max_model_len.saturating_sub(ask.prompt_tokens());
    Frame {
        ask,
        id: format!("resp_{}", x.id),
        created: x.created,
        previous,
        output_max: ask.output_max.unwrap_or(room),
        has_details: config.prompt_tokens_details,
    }
}

async fn streamed(
    x: &mut Exchange<'_>,
    face: Face,
    ask: &Ask,
    run: Run,
    previous: Option<&str>,
    is_stored: bool,
) -> Step {
    let (id, created, has_details) = (x.id.clone(), x.created, x.pod.config.prompt_tokens_details);
    match face {
        Face::Chat => stream(x, ask, run, &mut ChatStream::new(ask, &id, created, has_details)).await,
        Face::Completions => stream(x, ask, run, &mut CompletionStream::new(ask, &id, created, has_details)).await,
        Face::Messages => stream(x, ask, run, &mut MessageStream::new(ask, &id, has_details)).await,
        Face::Generate => stream(x, ask, run, &mut GenerateStream::new(ask, &id)).await,
        Face::Responses => {
            let frame = frame(x, ask, previous);
            stream(x, ask, run, &mut ResponseStream::new(&frame)).await?;
            if is_stored {
                x.life.responses.put(frame.stored(0));
            }
            Ok(())
        }
    }
}

async fn whole(
    x: &mut Exchange<'_>,
    face: Face,
    ask: &Ask,
    mut run: Run,
    previous: Option<&str>,
    is_stored: bool,
) -> Step {
    finish(x, ask, &run).await?;
    let hit = ask.told_cached.unwrap_or_else(|| run.cached());
    let cached = x.pod.config.prompt_tokens_details.then_some(hit);
    let body = match face {
        Face::Chat => chat::whole(ask, &x.id, x.created, cached),
        Face::Completions => completions::whole(ask, &x.id, x.created, cached),
        Face::Generate => completions::generated(ask, &x.id, x.created, cached),
        Face::Messages => messages::whole(ask, &x.id, cached),
        Face::Responses => {
            let frame = frame(x, ask, previous);
            if is_stored {
                x.life.responses.put(frame.stored(hit));
            }
            frame.whole(hit)
        }
    };
    let body = match &ask.keeps {
        Some(name) => with_params(&body, &handover::keep(x, &mut run, name, ask.prompt_tokens())),
        None => body,
    };
    let mut reply = Reply::json(body);
    if matches!(face, Face::Chat | Face::Completions) {
        reply.fields.extend(load_report(x).map(|report| ("endpoint-load-metrics", report)));
    }
    run.complete(ask.output_max.is_some());
    x.wire.reply(&reply).await
}

/// The answer with what it says of its blocks.
fn with_params(body: &str, params: &Value) -> String {
    let empty = r#""kv_transfer_params":null"#;
    if body.contains(empty) {
        return body.replacen(empty, &format!(r#""kv_transfer_params":{params}"#), 1);
    }
    let rest = body.strip_suffix('}').unwrap_or(body);
    format!(r#"{rest},"kv_transfer_params":{params}}}"#)
}

/// The ORCA load report, if the client asks for it.
fn load_report(x: &Exchange<'_>) -> Option<String> {
    let format = x.head.field("endpoint-load-metrics-format")?;
    let figures = x.life.ranks.figures();
    let (stats, ..) = figures.first()?;
    let (waiting, usage) = (f64::from(stats.waiting), stats.usage());
    Some(if format.eq_ignore_ascii_case("json") {
        format!(
            r#"JSON {{"named_metrics": {{"num_requests_waiting": {waiting:?}, "kv_cache_usage_perc": {usage:?}}}}}"#
        )
    } else {
        format!("TEXT named_metrics.num_requests_waiting={waiting:?}, named_metrics.kv_cache_usage_perc={usage:?}")
    })
}

/// Everything that computes prompts only.
async fn listen(x: &mut Exchange<'_>) -> Step {
    match audio::read(x.head.field("content-type"), &x.body, &x.pod.config) {
        Err((status, message)) => {
            let told = serde_json::json!({"error": {"message": message, "type": "BadRequestError", "code": status}});
            x.wire.reply(&Reply::with(status, Some("application/json"), told.to_string().into_bytes())).await
        }
        Ok(recording) if recording.is_stream => {
            x.wire.begin_stream().await?;
            for event in recording.events(&x.id, x.created) {
                x.wire.event(&data(&event)).await?;
            }
            x.wire.event(&data("[DONE]")).await?;
            x.wire.end_stream().await
        }
        Ok(recording) => x.wire.reply(&Reply::json(recording.answer())).await,
    }
}

async fn pool(x: &mut Exchange<'_>) -> Step {
    let pooled = match body_of(x) {
        Ok(body) => pooling::pool(&x.head.path, &body, &x.id, x.created, &x.pod.config),
        Err(refused) => Some(Err(refused)),
    };
    let entered = pooled.map(|pooled| {
        pooled.and_then(|pooled| {
            let one = |prompt| Sequence { prompt, root: 0, output_tokens: 0, seed: 0 };
            let sequences: Vec<Sequence<'_>> = pooled.prompts.iter().map(|prompt| one(prompt.as_slice())).collect();
            let run = enter_sequences(x, rank_of(x)?, &sequences, false, Transfer::default())?;
            Ok((run, pooled.body))
        })
    });
    match entered {
        None => x.wire.reply(&detail(404)).await,
        Some(Err(refused)) => {
            let reply = refuse(x, &refused);
            x.wire.reply(&reply).await
        }
        Some(Ok((run, body))) => {
            while !run.is_done() {
                x.wire.until(run.changed()).await?;
            }
            run.complete(false);
            x.wire.reply(&Reply::json(body)).await
        }
    }
}
