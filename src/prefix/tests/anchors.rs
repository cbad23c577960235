//! What two gates with different secrets agree on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use crate::api::{Anatomy, Api};
use crate::prefix::{Anchors, Fingerprint, Seed};

fn anchors(api: Api, body: &str, seed: &Seed<'_>) -> Anchors {
    let anatomy = Anatomy::read(api, body.as_bytes()).unwrap();
    Fingerprint::of(api, &anatomy, seed).anchors
}

fn chat(messages: &str) -> Anchors {
    anchors(Api::Chat, &format!(r#"{{"model":"m","messages":[{messages}]}}"#), &Seed { model: "m", ..Seed::default() })
}

const SYSTEM: &str = r#"{"role":"system","content":"Be brief."}"#;
const USER: &str = r#"{"role":"user","content":"Hello"}"#;
const MORE: &str = r#"{"role":"assistant","content":"Hi."},{"role":"user","content":"And now?"}"#;

#[test]
fn turns_of_a_conversation_have_one_opening_and_conversations_one_lead() {
    let first = chat(&format!("{SYSTEM},{USER}"));
    let second = chat(&format!("{SYSTEM}, {USER} ,{MORE}"));
    let other = chat(&format!("{SYSTEM},{}", USER.replace("Hello", "Salut")));
    assert_eq!((first.lead, first.opening), (second.lead, second.opening));
    assert_eq!((first.lead, first.past), (other.lead, None));
    assert_ne!(first.opening.map(|anchor| anchor.key), other.opening.map(|anchor| anchor.key));
    let (opening, past) = (second.opening.unwrap(), second.past.unwrap());
    assert!(first.lead.unwrap().bytes < opening.bytes && opening.bytes < past, "{second:?}");
    assert_eq!(chat(USER).lead, None);
}

#[test]
fn the_secret_does_not_enter_but_the_scope_does() {
    let body = format!(r#"{{"messages":[{SYSTEM},{USER}]}}"#);
    let of = |seed: Seed<'_>| anchors(Api::Chat, &body, &seed);
    let base = Seed { model: "m", ..Seed::default() };
    assert_eq!(of(base), of(Seed { secret: 7, ..base }));
    for scope in [Seed { model: "n", ..base }, Seed { salt: Some("s"), ..base }, Seed { tenant: "t", ..base }] {
        assert_ne!(of(base), of(scope));
    }
}

#[test]
fn all_conversation_apis_have_them_and_plain_prompts_have_none() {
    let seed = Seed { model: "m", ..Seed::default() };
    let messages = format!(r#"{{"system":"Be brief.","messages":[{USER},{MORE}],"max_tokens":5}}"#);
    let messages = anchors(Api::Messages, &messages, &seed);
    let responses = anchors(Api::Responses, &format!(r#"{{"instructions":"x","input":[{USER},{MORE}]}}"#), &seed);
    for found in [messages, responses] {
        assert!(found.lead.is_some() && found.opening.is_some() && found.past.is_some(), "{found:?}");
    }
    assert!(anchors(Api::Responses, r#"{"input":"Hello"}"#, &seed).opening.is_some());
    assert_eq!(anchors(Api::Completions, r#"{"prompt":"Hello"}"#, &seed), Anchors::default());
}

#[test]
fn media_are_counted() {
    let image = r#"{"type":"image_url","image_url":{"url":"data:x"}}"#;
    let body =
        format!(r#"{{"messages":[{{"role":"user","content":[{image},{{"type":"text","text":"?"}},{image}]}}]}}"#);
    let of = |body: &str| {
        Fingerprint::of(Api::Chat, &Anatomy::read(Api::Chat, body.as_bytes()).unwrap(), &Seed::default()).media
    };
    assert_eq!([of(&body), of(&format!(r#"{{"messages":[{USER}]}}"#))], [2, 0]);
}
