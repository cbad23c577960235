//! The canonical stream, API by API: what must not matter does not, what must does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::fmt::Write as _;

use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::api::{Anatomy, Api};
use crate::base::Rng;
use crate::prefix::{Anchors, Boundary, Chain, Fingerprint, Seed};

/// What the index sees of a body. Names for other gates are taken from the JSON as it came, and left out.
fn of_text(api: Api, text: &str) -> Fingerprint {
    let seed = Seed { model: "tiny", secret: 7, ..Seed::default() };
    let print = Fingerprint::of(api, &Anatomy::read(api, text.as_bytes()).unwrap(), &seed);
    Fingerprint { anchors: Anchors::default(), ..print }
}

fn of(api: Api, body: &Value) -> Fingerprint {
    of_text(api, &body.to_string())
}

/// JSON with random white space, escapes and order of members; the order is kept inside of `kept` members.
fn spelled(value: &Value, rng: &mut Rng, kept: bool, out: &mut String) {
    let space = |rng: &mut Rng, out: &mut String| *out += ["", " ", "\n", "\t "][rng.below(4) as usize];
    match value {
        Value::String(text) => spelled_text(text, rng, out),
        Value::Array(list) => {
            out.push('[');
            for (at, element) in list.iter().enumerate() {
                *out += if at > 0 { "," } else { "" };
                space(rng, out);
                spelled(element, rng, kept, out);
                space(rng, out);
            }
            out.push(']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            let from = rng.below(members.len().max(1) as u64) as usize;
            if !kept {
                members.rotate_left(from);
            }
            out.push('{');
            for (at, (key, value)) in members.into_iter().enumerate() {
                *out += if at > 0 { "," } else { "" };
                space(rng, out);
                spelled_text(key, rng, out);
                space(rng, out);
                out.push(':');
                spelled(value, rng, kept || matches!(&**key, "tools" | "parameters" | "input" | "documents"), out);
            }
            space(rng, out);
            out.push('}');
        }
        other => *out += &other.to_string(),
    }
}

fn spelled_text(text: &str, rng: &mut Rng, out: &mut String) {
    out.push('"');
    for letter in text.chars() {
        let needs = matches!(letter, '"' | '\\') || letter < ' ';
        if needs || rng.below(6) == 0 {
            let mut units = [0; 2];
            for unit in letter.encode_utf16(&mut units) {
                write!(out, "\\u{unit:04x}").unwrap();
            }
        } else {
            out.push(letter);
        }
    }
    out.push('"');
}

fn long(word: &str) -> String {
    format!("{word} é😀\"\\\n ").repeat(60)
}

/// One rich body for each API.
fn bodies() -> Vec<(Api, Value)> {
    let call = json!({"id":"c1","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}});
    let tool = json!({"type":"function","function":{"name":"f","description":"d","parameters":{"type":"object"}}});
    let chat = json!({
        "messages":[
            {"role":"system","content":long("sys")},
            {"role":"user","name":"bob","content":[
                {"type":"text","text":long("look")},
                {"type":"image_url","image_url":{"url":"data:x","detail":"low"}},
            ]},
            {"role":"assistant","content":"hm","reasoning_content":"because","tool_calls":[call]},
            {"role":"tool","tool_call_id":"c1","content":long("result")},
        ],
        "tools":[tool],
        "chat_template_kwargs":{"enable_thinking":false,"style":"dry"},
        "reasoning_effort":"low",
    });
    let messages = json!({
        "system":[{"type":"text","text":long("sys"),"cache_control":{"type":"ephemeral"}}],
        "tools":[{"name":"f","description":"d","input_schema":{"type":"object"}}],
        "messages":[
            {"role":"user","content":long("ask")},
            {"role":"assistant","content":[{"type":"tool_use","id":"t1","name":"f","input":{"a":1}}]},
            {"role":"user","content":[{"type":"tool_result","tool_use_id":"t1","content":[{"type":"text","text":"ok"}]}]},
        ],
    });
    let responses = json!({
        "instructions":long("sys"),
        "reasoning":{"effort":"low"},
        "input":[
            {"type":"message","role":"user","content":[{"type":"input_text","text":long("ask")}]},
            {"type":"function_call","id":"fc","call_id":"c","name":"f","arguments":"{}","status":"completed"},
            {"type":"function_call_output","call_id":"c","output":long("out")},
        ],
        "tools":[tool],
    });
    vec![
        (Api::ChatBatch, json!({"messages":[chat["messages"], chat["messages"]]})),
        (Api::Chat, chat),
        (Api::Messages, messages),
        (Api::Responses, responses),
        (Api::Completions, json!({"prompt":[long("a"), long("b")],"cache_salt":"s"})),
        (Api::Embeddings, json!({"input":[long("a"), long("b")],"truncate_prompt_tokens":9})),
        (Api::EmbedV2, json!({"texts":[long("a"), long("b")]})),
        (Api::Rerank, json!({"query":long("q"),"documents":[long("a"), {"text":long("b")}]})),
        (Api::Score, json!({"queries":long("q"),"documents":[long("a"), long("b")]})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn spelling_never_matters(seed in any::<u64>()) {
        let mut rng = Rng::new(seed);
        for (api, body) in bodies() {
            let mut text = String::new();
            spelled(&body, &mut rng, false, &mut text);
            let (plain, odd) = (of(api, &body), of_text(api, &text));
            prop_assert!(plain.blocks() > 2);
            prop_assert_eq!(plain, odd, "{:?}", api);
        }
    }
}

#[track_caller]
fn check_differ(api: Api, body: &Value, change: impl Fn(&mut Value)) {
    let mut other = body.clone();
    change(&mut other);
    assert_ne!(of(api, body), of(api, &other), "{api:?}: {other}");
}

#[track_caller]
fn check_same(api: Api, body: &Value, change: impl Fn(&mut Value)) {
    let mut other = body.clone();
    change(&mut other);
    assert_eq!(of(api, body), of(api, &other), "{api:?}: {other}");
}

fn body_of(api: Api) -> Value {
    bodies().into_iter().find(|(known, _)| *known == api).unwrap().1
}

#[test]
fn what_a_template_shows_matters() {
    let chat = body_of(Api::Chat);
    check_differ(Api::Chat, &chat, |body| body["chat_template_kwargs"]["enable_thinking"] = json!(true));
    check_differ(Api::Chat, &chat, |body| body["reasoning_effort"] = json!("high"));
    check_differ(Api::Chat, &chat, |body| body["messages"][1]["name"] = json!("eve"));
    check_differ(Api::Chat, &chat, |body| body["messages"][1]["content"][1]["image_url"]["url"] = json!("data:y"));
    check_differ(Api::Chat, &chat, |body| body["messages"][2]["tool_calls"][0]["function"]["name"] = json!("g"));
    check_differ(Api::Chat, &chat, |body| body["tools"][0]["function"]["parameters"] = json!({}));
    check_differ(Api::Chat, &chat, |body| body["mm_processor_kwargs"] = json!({"size":1}));
    check_differ(Api::Chat, &chat, |body| body["add_special_tokens"] = json!(true));
    let responses = body_of(Api::Responses);
    check_differ(Api::Responses, &responses, |body| body["reasoning"]["effort"] = json!("high"));
    check_differ(Api::Responses, &responses, |body| body["input"][1]["arguments"] = json!("{\"a\":1}"));
    check_differ(Api::Responses, &responses, |body| body["previous_response_id"] = json!("resp_1"));
    let messages = body_of(Api::Messages);
    check_differ(Api::Messages, &messages, |body| body["tools"][0]["input_schema"] = json!({}));
    check_differ(Api::Messages, &messages, |body| body["messages"][1]["content"][0]["input"]["a"] = json!(2));
    check_differ(Api::Completions, &body_of(Api::Completions), |body| body["add_special_tokens"] = json!(false));
    check_differ(Api::Embeddings, &body_of(Api::Embeddings), |body| body["truncate_prompt_tokens"] = json!(10));
}

#[test]
fn what_no_template_shows_does_not() {
    let chat = body_of(Api::Chat);
    check_same(Api::Chat, &chat, |body| body["temperature"] = json!(1));
    check_same(Api::Chat, &chat, |body| body["tool_choice"] = json!("none"));
    check_same(Api::Chat, &chat, |body| body["add_special_tokens"] = json!(false));
    check_same(Api::Chat, &chat, |body| body["messages"][0]["tool_calls"] = json!([]));
    check_same(Api::Chat, &chat, |body| body["messages"][1]["content"][1]["uuid"] = json!(null));
    let responses = body_of(Api::Responses);
    check_same(Api::Responses, &responses, |body| body["input"][1]["status"] = json!("in_progress"));
    check_same(Api::Responses, &responses, |body| body["input"][1]["id"] = json!("other"));
    check_same(Api::Responses, &responses, |body| body["reasoning"]["summary"] = json!("auto"));
    let messages = body_of(Api::Messages);
    let mark = || json!({"type":"ephemeral"});
    check_same(Api::Messages, &messages, |body| body["tools"][0]["cache_control"] = mark());
    check_same(Api::Messages, &messages, |body| body["messages"][2]["content"][0]["cache_control"] = mark());
    check_same(Api::Messages, &messages, |body| {
        body["messages"][2]["content"][0]["content"][0]["cache_control"] = mark();
    });
    check_same(Api::Messages, &messages, |body| {
        body["system"][0].as_object_mut().map(Map::clear);
        body["system"] = json!(long("sys"));
    });
}

#[test]
fn requests_that_skip_the_cache_are_known() {
    let skips = |api, body: Value| of(api, &body).skips_cache;
    assert!(skips(Api::Chat, json!({"messages":[],"prompt_logprobs":0})));
    assert!(skips(Api::Completions, json!({"prompt":"a","echo":true,"logprobs":1})));
    assert!(skips(Api::GenerateTokens, json!({"token_ids":[1],"sampling_params":{"prompt_logprobs":1}})));
    assert!(!skips(Api::Chat, json!({"messages":[],"prompt_logprobs":null,"logprobs":true})));
    assert!(!skips(Api::Completions, json!({"prompt":"a","logprobs":1})));
}

#[test]
fn a_boundary_is_of_the_kind_that_lies_there() {
    let text = "x".repeat(1_000);
    let message = |role: &str| json!({"role":role,"content":text});
    let body = json!({"messages":[message("user"), message("assistant")],"tools":[{"t":text}]});
    let print = of(Api::Chat, &body);
    let kinds: Vec<_> = (0..=print.blocks() as u32).map(|at| print.chains[0].boundary(at)).collect();
    let at = |kind| kinds.iter().enumerate().filter(|(_, other)| **other == kind).map(|(at, _)| at).collect::<Vec<_>>();
    assert_eq!(at(Boundary::Tools), [0, 1, 2, 3], "{kinds:?}");
    assert_eq!(at(Boundary::Message), [7, print.blocks()], "{kinds:?}");
    let plain = of(Api::Completions, &json!({"prompt":text}));
    assert_eq!([0, 3].map(|at| plain.chains[0].boundary(at)), [Boundary::Middle, Boundary::Message]);
    assert_eq!(Chain::default().boundary(0), Boundary::Message);
}
