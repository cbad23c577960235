//! Where a known part ends inside a block: what is believed beyond the blocks, and what is not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use crate::api::{Anatomy, Api};
use crate::base::{PodId, Tokens};
use crate::prefix::{Extension, Fingerprint, Index, Seed};

const POD: PodId = PodId(1);

fn of(api: Api, body: &serde_json::Value) -> Fingerprint {
    let text = body.to_string();
    Fingerprint::of(api, &Anatomy::read(api, text.as_bytes()).unwrap(), &Seed { model: "m", ..Seed::default() })
}

fn chat(messages: &[(&str, String)]) -> Fingerprint {
    let messages: Vec<_> =
        messages.iter().map(|(role, text)| serde_json::json!({"role":role,"content":text})).collect();
    of(Api::Chat, &serde_json::json!({ "messages": messages }))
}

/// A pod serves the prompt of so many tokens, of which so many were cached, and answers.
fn serve(index: &Index, prompt: &Fingerprint, (tokens, cached): (u64, u64), answer: Option<(&str, u64)>) {
    let claim = index.claim(prompt, POD);
    index.confirm(prompt, claim);
    index.learn(prompt, claim, Tokens(tokens), Some(Tokens(cached)));
    if let Some((text, tokens_more)) = answer {
        let mut extension = Extension::of(Api::Chat, prompt).unwrap();
        extension.body(
            serde_json::json!({"choices":[{"message":{"role":"assistant","content":text}}]}).to_string().as_bytes(),
        );
        index.extend(prompt, claim, &extension.close().unwrap(), Some(Tokens(tokens + tokens_more)));
    }
}

fn hit(index: &Index, prompt: &Fingerprint) -> u64 {
    index.lookup(prompt).depth(POD).0
}

#[test]
fn the_next_turn_counts_the_rest_of_the_last_one() {
    let index = Index::default();
    index.set_capacity(POD, Tokens(100_000), Tokens(16));
    let user = ("user", "How is the water today? ".repeat(20));
    let first = chat(std::slice::from_ref(&user));
    serve(&index, &first, (130, 0), Some(("Fine.", 6)));
    let next =
        |answer: &str| chat(&[user.clone(), ("assistant", answer.into()), ("user", "And the wind? ".repeat(40))]);
    assert_eq!(hit(&index, &next("Fine.")), 128, "136 tokens, in whole blocks of the pod");
    assert_eq!(hit(&index, &next("It was changed")), 128, "the prompt is shared still: 130 tokens");
    let other = chat(&[("user", format!("{} And tomorrow?", user.1))]);
    assert!(hit(&index, &other) < 128, "goes on inside the message: {}", hit(&index, &other));
}

#[test]
fn texts_without_messages_go_on_only_where_nothing_else_did() {
    let index = Index::default();
    let text = |more: &str| of(Api::Completions, &serde_json::json!({"prompt": "tide ".repeat(60) + more}));
    serve(&index, &text(""), (80, 0), None);
    assert_eq!(hit(&index, &text(&"ebb ".repeat(100))), 80);
    for more in ["flow ", "neap ", "spring "] {
        serve(&index, &text(&more.repeat(100)), (200, 80), None);
    }
    let siblings = hit(&index, &text(&"ebb ".repeat(100)));
    assert!(siblings < 80, "others went on from there, elsewhere in the block perhaps: {siblings}");
}

#[test]
fn a_shared_message_ends_where_the_next_begins() {
    let index = Index::default();
    index.set_capacity(POD, Tokens(100_000), Tokens(16));
    let system = ("system", "Answer like a harbour master would. ".repeat(13));
    let ask = |what: &str| chat(&[system.clone(), ("user", what.repeat(30))]);
    serve(&index, &ask("Ships? "), (200, 0), None);
    serve(&index, &ask("Boats? "), (200, 112), None);
    assert_eq!(hit(&index, &ask("Rafts? ")), 112);
}

#[test]
fn what_was_told_of_a_shared_length_is_corrected_by_two_that_agree_and_by_no_deeper_hit() {
    let index = Index::default();
    index.set_capacity(POD, Tokens(100_000), Tokens(16));
    let system = ("system", "Answer like a harbour master would. ".repeat(13));
    let ask = |what: &str| chat(&[system.clone(), ("user", what.repeat(30))]);
    serve(&index, &ask("Ships? "), (200, 0), None);
    // A pod that was warm before this gate came tells of more than is shared.
    serve(&index, &ask("Boats? "), (200, 144), None);
    assert_eq!(hit(&index, &ask("Rafts? ")), 144);
    serve(&index, &ask("Rafts? "), (200, 112), None);
    serve(&index, &ask("Buoys? "), (200, 112), None);
    assert_eq!(hit(&index, &ask("Locks? ")), 112);
    serve(&index, &ask("Locks? "), (400, 384), None);
    assert_eq!(hit(&index, &ask("Wharf? ")), 112, "so deep a hit is one of something else");
}
