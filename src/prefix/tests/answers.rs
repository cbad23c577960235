//! An answer extends its prompt by the very blocks that the next turn has there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::api::{Anatomy, Api, SseScan};
use crate::prefix::{Answered, Extension, Fingerprint, Seed};

fn of(api: Api, body: &Value) -> Fingerprint {
    let text = body.to_string();
    let seed = Seed { model: "tiny", secret: 7, ..Seed::default() };
    Fingerprint::of(api, &Anatomy::read(api, text.as_bytes()).unwrap(), &seed)
}

/// The events by which a pod sends these pieces of text.
fn stream(api: Api, pieces: &[&str]) -> String {
    let event = |name: &str, data: Value| match name {
        "" => format!("data: {data}\n\n"),
        name => format!("event: {name}\ndata: {data}\n\n"),
    };
    let begin = match api {
        Api::Chat => event("", json!({"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]})),
        Api::Responses => event("response.output_item.added", json!({"item":{"type":"message"}})),
        Api::Messages => event("content_block_start", json!({"content_block":{"type":"text","text":""}})),
        _ => String::new(),
    };
    let pieces = pieces.iter().map(|piece| match api {
        Api::Chat => event("", json!({"choices":[{"index":0,"delta":{"content":piece}}]})),
        Api::Responses => event("response.output_text.delta", json!({"content_index":0,"delta":piece})),
        Api::Messages => event("content_block_delta", json!({"delta":{"type":"text_delta","text":piece}})),
        _ => event("", json!({"choices":[{"index":0,"text":piece}]})),
    });
    begin + &pieces.collect::<String>() + "data: [DONE]\n\n"
}

fn whole(api: Api, text: &str) -> Value {
    match api {
        Api::Chat => json!({"choices":[{"message":{"role":"assistant","content":text}}]}),
        Api::Responses => json!({"output":[{"type":"message","content":[{"type":"output_text","text":text}]}]}),
        Api::Messages => json!({"content":[{"type":"text","text":text}]}),
        _ => json!({"choices":[{"text":text}]}),
    }
}

/// A first turn and the turn after it.
fn turns(api: Api, user: &str, answer: &str) -> (Value, Value) {
    let mut turns = [vec![json!({"role":"user","content":user})], vec![]];
    turns[1] = turns[0].clone();
    turns[1].push(match api {
        Api::Responses => {
            json!({"type":"message","id":"m","role":"assistant","content":[{"type":"output_text","text":answer}]})
        }
        Api::Messages => json!({"role":"assistant","content":[{"text":answer,"type":"text"}]}),
        _ => json!({"content":answer,"role":"assistant"}),
    });
    turns[1].push(json!({"role":"user","content":"and then? ".repeat(60)}));
    let [first, second] = turns;
    match api {
        Api::Responses => {
            (json!({"instructions":"be good","input":user}), json!({"instructions":"be good","input":second}))
        }
        Api::Completions => (json!({"prompt":user}), json!({"prompt":format!("{user}{answer} and then?")})),
        Api::Messages => (json!({"system":"s","messages":first}), json!({"system":"s","messages":second})),
        _ => (json!({"tools":[{"t":1}],"messages":first}), json!({"tools":[{"t":1}],"messages":second})),
    }
}

fn answered(api: Api, prompt: &Fingerprint, bytes: &[u8], cut: usize) -> Option<Answered> {
    let mut extension = Extension::of(api, prompt)?;
    let mut scan = SseScan::new(api);
    for chunk in bytes.chunks(cut.max(1)) {
        scan.feed_to(chunk, &mut |event| extension.event(event));
    }
    extension.close()
}

#[track_caller]
fn check(api: Api, user: &str, pieces: &[&str], cut: usize) {
    let answer = pieces.concat();
    let (first, second) = turns(api, user, &answer);
    let (first, second) = (of(api, &first), of(api, &second));
    let before = first.blocks();
    let got = answered(api, &first, stream(api, pieces).as_bytes(), cut);
    let expected = &second.chains[0].blocks[before..];
    let blocks = got.as_ref().map_or(&[][..], |answered| &answered.blocks);
    assert!(expected.starts_with(blocks), "{api:?}");
    let bytes = first.bytes as usize % 256 + answer.len();
    assert!(blocks.len() >= bytes / 256, "{api:?}: {} blocks of {bytes} bytes", blocks.len());
    let mut from_body = Extension::of(api, &first).unwrap();
    from_body.body(whole(api, &answer).to_string().as_bytes());
    assert_eq!(from_body.close(), got, "{api:?}: streamed and whole");
}

const APIS: [Api; 4] = [Api::Chat, Api::Completions, Api::Responses, Api::Messages];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn an_answer_is_found_in_the_next_turn(
        user in 0..700_usize,
        pieces in proptest::collection::vec("[a-z \\n\"\\\\é😀]{0,120}", 0..30),
        cut in 1..400_usize,
    ) {
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        for api in APIS {
            check(api, &"x".repeat(user + 1), &pieces, cut);
        }
    }
}

#[test]
fn what_comes_back_otherwise_extends_nothing() {
    let user = "hello ".repeat(100);
    let text = "some answer ".repeat(100);
    let long = stream(Api::Chat, &[&text]);
    let base = json!({"messages":[{"role":"user","content":user}]});
    assert!(answered(Api::Chat, &of(Api::Chat, &base), long.as_bytes(), 4_000).is_some());
    let thinks = json!({"choices":[{"delta":{"reasoning_content":"hm"}}]});
    assert_eq!(answered(Api::Chat, &of(Api::Chat, &base), format!("data: {thinks}\n\n{long}").as_bytes(), 64), None);
    for (member, value) in [("n", json!(2)), ("continue_final_message", json!(true))] {
        let mut body = base.clone();
        body[member] = value;
        assert!(Extension::of(Api::Chat, &of(Api::Chat, &body)).is_none(), "{body}");
    }
    for body in [json!({"prompt":[user, text]}), json!({"prompt":[1,2,3]}), json!({"prompt":user,"echo":true})] {
        assert!(Extension::of(Api::Completions, &of(Api::Completions, &body)).is_none(), "{body}");
    }
    let prefilled = json!({"messages":[{"role":"user","content":user},{"role":"assistant","content":"Well, "}]});
    assert!(Extension::of(Api::Messages, &of(Api::Messages, &prefilled)).is_none());
    let continued = json!({"previous_response_id":"resp_1","input":user});
    assert!(Extension::of(Api::Responses, &of(Api::Responses, &continued)).is_none());
    assert!(Extension::of(Api::Embeddings, &of(Api::Embeddings, &json!({"input":user}))).is_none());
}

#[test]
fn an_event_too_long_to_be_kept_ends_the_text_and_nothing_is_shown() {
    let prompt = of(Api::Chat, &json!({"messages":[{"role":"user","content":"top secret"}]}));
    let mut extension = Extension::of(Api::Chat, &prompt).unwrap();
    let shown = format!("{extension:?} {prompt:?}");
    assert!(!shown.contains("secret") && !shown.contains("115, 101, 99"), "{shown}");
    let mut scan = SseScan::new(Api::Chat);
    for piece in ["a".repeat(300), "b".repeat(40_000), "c".repeat(3_000)] {
        for chunk in stream(Api::Chat, &[&piece]).as_bytes().chunks(1_000) {
            scan.feed_to(chunk, &mut |event| extension.event(event));
        }
    }
    assert_eq!(extension.close().unwrap().blocks.len(), 1);
}
