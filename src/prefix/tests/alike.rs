//! Fingerprints: what is the same prompt, what shares a prefix, what does not.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use crate::api::{Anatomy, Api};
use crate::prefix::{BLOCK_BYTES, Fingerprint, Seed};

const SEED: Seed<'_> = Seed { model: "tiny", salt: None, tenant: "", secret: 7 };

fn of(api: Api, body: &str) -> Fingerprint {
    Fingerprint::of(api, &Anatomy::read(api, body.as_bytes()).unwrap(), &SEED)
}

fn shared(a: &Fingerprint, b: &Fingerprint) -> usize {
    a.chains[0].blocks.iter().zip(&b.chains[0].blocks).take_while(|(a, b)| a == b).count()
}

/// All of a fingerprint but how an answer would continue it, which depends on the API.
fn seen(print: &Fingerprint) -> (&[crate::prefix::Chain], u64, Option<u64>) {
    (&print.chains, print.bytes, print.exact_tokens)
}

fn long(word: &str) -> String {
    format!("{word} ").repeat(200)
}

#[track_caller]
fn check_same(a: (Api, &str), b: (Api, &str)) {
    let (left, right) = (of(a.0, a.1), of(b.0, b.1));
    assert!(left.blocks() > 0);
    assert_eq!(seen(&left), seen(&right), "{}\n{}", a.1, b.1);
}

#[test]
fn spelling_spacing_and_order_do_not_matter() {
    let text = long("é😀\\n/");
    let plain = format!(r#"{{"model":"tiny","messages":[{{"role":"user","content":"{text}"}}],"tools":[{{"a":1}}]}}"#);
    let text = text.replace('é', "\\u00e9").replace('😀', "\\ud83d\\ude00").replace('/', "\\/");
    let odd = format!(
        r#"{{ "tools" : [ {{"a" : 1}} ], "temperature":1, "messages" : [ {{ "content":"{text}" , "role":"\u0075ser" }} ] }}"#
    );
    check_same((Api::Chat, &plain), (Api::Chat, &odd));
    let parts = plain
        .replace("\"content\":\"", "\"content\":[{\"type\":\"text\",\"text\":\"")
        .replace("\"}],\"to", "\"}]}],\"to");
    check_same((Api::Chat, &plain), (Api::Chat, &parts));
    let nothing = plain.replace("\"messages\"", "\"documents\":null,\"chat_template_kwargs\":{},\"messages\"");
    check_same((Api::Chat, &plain), (Api::Chat, &nothing));
}

#[test]
fn the_same_conversation_is_the_same_on_every_api() {
    let (system, user) = (long("be good"), long("hello"));
    let chat =
        format!(r#"{{"messages":[{{"role":"system","content":"{system}"}},{{"role":"user","content":"{user}"}}]}}"#);
    let messages = format!(
        r#"{{"system":[{{"type":"text","text":"{system}","cache_control":{{}}}}],"messages":[{{"role":"user","content":[{{"type":"text","text":"{user}"}}]}}],"max_tokens":1}}"#
    );
    let responses = format!(r#"{{"instructions":"{system}","input":"{user}"}}"#);
    let items = format!(
        r#"{{"instructions":"{system}","input":[{{"type":"message","role":"user","content":[{{"type":"input_text","text":"{user}"}}]}}]}}"#
    );
    check_same((Api::Chat, &chat), (Api::Messages, &messages));
    check_same((Api::Chat, &chat), (Api::Responses, &responses));
    check_same((Api::Chat, &chat), (Api::Responses, &items));
    check_same((Api::Chat, &chat), (Api::Invocations, &chat));
}

#[test]
fn a_longer_conversation_shares_what_came_before() {
    let user = long("hello");
    let short = format!(r#"{{"messages":[{{"role":"user","content":"{user}"}}]}}"#);
    let more = short.replace("}]}", r#"},{"role":"assistant","content":null,"tool_calls":[{"id":"1"}]},{"role":"tool","content":"ok","tool_call_id":"1"}]}"#);
    let (short, more) = (of(Api::Chat, &short), of(Api::Chat, &more));
    assert_eq!(shared(&short, &more), short.blocks());
    assert_eq!(short.bytes as usize / BLOCK_BYTES, short.blocks());
    assert!(more.bytes > short.bytes);
}

#[test]
fn what_differs_in_the_prompt_differs_from_there_on() {
    let base = format!(r#"{{"messages":[{{"role":"user","content":"{}"}}]}}"#, long("hello"));
    let (tail, early) = (base.replace("hello \"", "hallo \""), base.replacen("hello", "hallo", 1));
    assert_eq!(shared(&of(Api::Chat, &base), &of(Api::Chat, &tail)), of(Api::Chat, &base).blocks());
    for other in [
        early,
        base.replace("user", "tool"),
        base.replace("{\"messages", "{\"tools\":[1],\"messages"),
        base.replace("{\"messages", "{\"chat_template_kwargs\":{\"a\":1},\"messages"),
    ] {
        assert_eq!(shared(&of(Api::Chat, &base), &of(Api::Chat, &other)), 0, "{other}");
    }
    let anatomy = Anatomy::read(Api::Chat, base.as_bytes()).unwrap();
    let with = |seed: Seed<'_>| Fingerprint::of(Api::Chat, &anatomy, &seed).chains[0].blocks[0];
    let mut firsts = vec![
        with(SEED),
        with(Seed { model: "other", ..SEED }),
        with(Seed { salt: Some(""), ..SEED }),
        with(Seed { salt: Some("a"), ..SEED }),
        with(Seed { tenant: "a", ..SEED }),
        with(Seed { secret: 8, ..SEED }),
    ];
    firsts.sort_unstable();
    firsts.dedup();
    assert_eq!(firsts.len(), 6);
}

#[test]
fn images_count_by_their_content() {
    let body = |url: &str| {
        format!(
            r#"{{"messages":[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"{url}"}}}},{{"type":"text","text":"{}"}}]}}]}}"#,
            long("what")
        )
    };
    let huge = format!("data:image/png;base64,{}", "A/".repeat(100_000));
    check_same((Api::Chat, &body(&huge)), (Api::Chat, &body(&huge.replace('/', "\\/"))));
    assert_eq!(shared(&of(Api::Chat, &body("a")), &of(Api::Chat, &body("b"))), 0);
    assert!(of(Api::Chat, &body(&huge)).bytes < 2_000);
}

#[test]
fn every_prompt_of_a_request_is_a_chain() {
    let chains = |api, body: &str| of(api, body).chains.len();
    assert_eq!(chains(Api::Completions, r#"{"prompt":"a"}"#), 1);
    assert_eq!(chains(Api::Completions, r#"{"prompt":["a","b","c"]}"#), 3);
    assert_eq!(chains(Api::Completions, r#"{"prompt":[[1,2],[3]]}"#), 2);
    assert_eq!(chains(Api::Embeddings, r#"{"input":["a","b"]}"#), 2);
    assert_eq!(
        chains(Api::ChatBatch, r#"{"messages":[[{"role":"user","content":"a"}],[{"role":"user","content":"b"}]]}"#),
        2
    );
    assert_eq!(chains(Api::Rerank, r#"{"query":"q","documents":["a","b"]}"#), 2);
    assert_eq!(chains(Api::Score, r#"{"text_1":"a","text_2":"b"}"#), 1);
    assert_eq!(chains(Api::Score, r#"{"queries":["a","b"],"documents":["c","d"]}"#), 2);
    assert_eq!(chains(Api::Tokenize, r#"{"prompt":"a"}"#), 0);
    assert_eq!(chains(Api::Chat, r#"{"messages":5}"#) + chains(Api::Completions, r#"{"prompt":null}"#), 0);
    let ids = of(Api::GenerateTokens, &format!("{{\"token_ids\":[{}9]}}", "12, ".repeat(129)));
    assert_eq!((ids.exact_tokens, ids.blocks()), (Some(130), 2));
    assert_eq!(of(Api::Completions, r#"{"prompt":["a"]}"#).exact_tokens, None);
}

#[test]
fn work_is_bounded_and_what_is_beyond_is_counted() {
    let many = of(Api::Completions, &format!("{{\"prompt\":[{}\"x\"]}}", "\"abcd\",".repeat(50_000)));
    assert_eq!(many.chains.len(), 1_024);
    assert!(many.bytes > 200_000, "{}", many.bytes);
    let query = "q".repeat(1 << 20);
    let pairs = of(Api::Rerank, &format!("{{\"query\":\"{query}\",\"documents\":[{}\"x\"]}}", "\"d\",".repeat(1_000)));
    assert_eq!(pairs.blocks(), 16_384);
    assert!(pairs.bytes > 1_000 << 20, "{}", pairs.bytes);
}
