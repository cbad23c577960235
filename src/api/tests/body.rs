//! Reading a body: facts, refusals, limits, and agreement with another parser on random text.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use proptest::prelude::*;

use crate::api::{Anatomy, Api, BadBody};

fn read(api: Api, body: &str) -> Anatomy<'_> {
    Anatomy::read(api, body.as_bytes()).unwrap_or_else(|bad| panic!("{body}: {bad}"))
}

#[track_caller]
fn check_bad(body: &[u8], expected: &BadBody) {
    assert_eq!(Anatomy::read(Api::Chat, body).unwrap_err(), *expected);
}

const fn syntax(at: usize, what: &'static str) -> BadBody {
    BadBody::Syntax { at, what }
}

#[test]
fn facts_are_read_under_every_name() {
    let body = r#"{ "mod\u0065l" : "ti\u006ey","stream":"true","stream_options":{"include_usage":1},
        "max_tokens":5,"max_completion_tokens":"7","n":2,"priority":-3,"cache_salt":"a","previous_response_id":"resp_1"}"#;
    let seen = read(Api::Chat, body);
    assert_eq!(seen.model.as_deref(), Some("tiny"));
    assert!(seen.stream && seen.stream_usage && !seen.dangerous());
    assert_eq!((seen.max_tokens, seen.n, seen.priority), (Some(7), Some(2), Some(-3)));
    assert_eq!(seen.cache_salt.as_deref(), Some("a"));
    assert_eq!(seen.previous_response_id.as_deref(), Some("resp_1"));
    assert_eq!(seen.members.len(), 9);
    assert_eq!(read(Api::Responses, r#"{"max_output_tokens":4,"max_tokens":9}"#).max_tokens, Some(4));
    let ids = read(Api::GenerateTokens, r#"{"token_ids":[1],"sampling_params":{"max_tokens":4,"n":3}}"#);
    assert_eq!((ids.max_tokens, ids.n), (Some(4), Some(3)));
}

#[test]
fn a_response_that_is_kept_must_not_be_made_twice() {
    for (api, body, expected) in [
        (Api::Responses, r#"{"input":"x"}"#, false),
        (Api::Responses, r#"{"store":true}"#, true),
        (Api::Responses, r#"{"store":false,"background":true}"#, true),
        (Api::Responses, r#"{"store":true,"store":false}"#, false),
        (Api::Responses, r#"{"metadata":{"store":true}}"#, false),
        (Api::Chat, r#"{"store":true}"#, false),
    ] {
        assert_eq!(read(api, body).leaves_something(), expected, "{body}");
    }
}

#[test]
fn wrong_types_are_left_to_the_pod() {
    let seen =
        read(Api::Chat, r#"{"model":5,"stream":"perhaps","max_tokens":"many","n":-1,"messages":null,"cache_salt":{}}"#);
    assert_eq!((seen.model, seen.stream, seen.max_tokens, seen.n, seen.cache_salt), (None, false, None, None, None));
    assert!(read(Api::Chat, "{}").members.is_empty());
}

#[test]
fn what_python_accepts_passes() {
    for body in [
        "\u{feff}{}",
        " \t\r\n{ } \n",
        r#"{"a":NaN,"b":Infinity,"c":-Infinity,"d":-0.5e+10,"e":1E5}"#,
        r#"{"a":"\ud800","b":"\udc00x"}"#,
        "{\"a\":\"\u{7f}\u{80}é\u{1f600}\"}",
        r#"{"":[[],{},[{}],"",0]}"#,
    ] {
        read(Api::Chat, body);
    }
}

#[test]
fn malformed_text_is_refused_with_the_words_of_the_real_server() {
    let real: serde_json::Value =
        serde_json::from_str(include_str!("../../../tests/fixtures/vllm/err-bad-json.json")).unwrap();
    let bad = Anatomy::read(Api::Chat, br#"{"model":"tiny","messages":["#).unwrap_err();
    assert_eq!(real["error"]["param"], bad.param().unwrap().as_ref());
    assert_eq!(real["error"]["type"], bad.kind());
    let words = real["error"]["message"].as_str().unwrap();
    assert_eq!(words.replace(" 'input': '<dict of 0 items>',", ""), bad.to_string());
    check_bad(b"", &BadBody::Missing);
    check_bad(b" \n", &BadBody::Missing);
    check_bad(b"[1]", &BadBody::NotObject);
    check_bad(b"NaN", &BadBody::NotObject);
    check_bad(b"{\"a\":\"\xff\"}", &BadBody::Utf8 { at: 6 });
    check_bad("{\"é\":1,}".as_bytes(), &syntax(7, "Expecting property name enclosed in double quotes"));
    check_bad(b"{\"a\" 1}", &syntax(5, "Expecting ':' delimiter"));
    check_bad(b"{\"a\":1 \"b\":2}", &syntax(7, "Expecting ',' delimiter"));
    check_bad(b"{\"a\":[1 2]}", &syntax(8, "Expecting ',' delimiter"));
    check_bad(b"{\"a\":[1}", &syntax(7, "Expecting ',' delimiter"));
    check_bad(b"{\"a\":tru}", &syntax(5, "Expecting value"));
    check_bad(b"{\"a\":01}", &syntax(6, "Expecting ',' delimiter"));
    check_bad(b"{\"a\":\"x", &syntax(5, "Unterminated string starting at"));
    check_bad(b"{\"a\":\"x\n\"}", &syntax(7, "Invalid control character at"));
    check_bad(b"{\"a\":\"\\x\"}", &syntax(6, "Invalid \\escape"));
    check_bad(b"{\"a\":\"\\u12g4\"}", &syntax(7, "Invalid \\uXXXX escape"));
    check_bad(b"{} {}", &syntax(3, "Extra data"));
    check_bad(b"{\"a\":\x00}", &syntax(5, "Expecting value"));
}

#[test]
fn members_that_matter_may_come_once() {
    check_bad(br#"{"model":"a","mode\u006c":"b"}"#, &BadBody::Duplicate { member: "model" });
    check_bad(br#"{"stream":true,"stream":false}"#, &BadBody::Duplicate { member: "stream" });
    read(Api::Chat, r#"{"top_p":1,"top_p":1,"kv_transfer_params":1,"kv_transfer_params":2}"#);
    read(Api::Chat, r#"{"a":{"model":1,"model":2}}"#);
}

#[test]
fn limits_are_exact_and_hostile_bodies_end_early() {
    let nested = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth - 1), "]".repeat(depth - 1));
    let keys = |count: usize| (0..count).map(|index| format!("\"{index}\":0")).collect::<Vec<_>>().join(",");
    read(Api::Chat, &nested(64));
    check_bad(nested(65).as_bytes(), &BadBody::TooDeep);
    check_bad(nested(100_000).as_bytes(), &BadBody::TooDeep);
    check_bad("[".repeat(1_000_000).as_bytes(), &BadBody::TooDeep);
    check_bad("{\"a\":".repeat(1_000_000).as_bytes(), &BadBody::TooDeep);
    read(Api::Chat, &format!("{{{}}}", keys(10_000)));
    read(Api::Chat, &format!("{{\"a\":[{{{}}},{{{}}}]}}", keys(10_000), keys(10_000)));
    check_bad(format!("{{{}}}", keys(10_001)).as_bytes(), &BadBody::TooManyKeys);
    check_bad(format!("{{\"a\":{{{}}}}}", keys(1_000_000)).as_bytes(), &BadBody::TooManyKeys);
    let quoted = "\\\\".repeat(500_000);
    read(Api::Chat, &format!("{{\"a\":\"{quoted}\"}}"));
}

#[test]
fn refusals_never_quote_the_body() {
    for body in [&b"{\"secret\":\"secret"[..], b"{\"secret\" secret", b"{\"model\":\"secret\",\"model\":1}", b"secret"]
    {
        let bad = Anatomy::read(Api::Chat, body).unwrap_err();
        assert!(!format!("{bad}{:?}", bad.param()).contains("secret"), "{bad}");
    }
}

/// Random JSON text: values of a few kinds, with odd spacing.
pub(super) fn json_value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        "(true|false|null|-?(0|[1-9][0-9]{0,5})(\\.[0-9]{1,3})?([eE][-+]?[0-9]{1,2})?)",
        "\"([ -!#-\\[\\]-~éß€😀]|\\\\[\"\\\\/bfnrt]|\\\\u00[0-7][0-9a-f]){0,12}\"",
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        let space = "[ \n\t]{0,2}";
        prop_oneof![
            (space, proptest::collection::vec(inner.clone(), 0..4))
                .prop_map(|(space, items)| format!("[{space}{}{space}]", items.join(&format!("{space},")))),
            (space, proptest::collection::vec(("[a-e\\\\]{0,3}", inner), 0..4)).prop_map(|(space, items)| {
                let items: Vec<_> = items
                    .iter()
                    .map(|(key, value)| format!("{}{space}:{space}{value}", serde_json::Value::from(key.as_str())))
                    .collect();
                format!("{{{space}{}{space}}}", items.join(","))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn agrees_with_another_parser(value in json_value(), at in any::<prop::sample::Index>(), by in "[\\x00-\\x7e]", cut in 0..3) {
        let mut body = format!("{{\"k\": {value}}}");
        let at = at.index(body.len());
        if body.is_char_boundary(at) {
            match cut {
                0 => body.truncate(at),
                1 => body.insert_str(at, &by),
                _ => {}
            }
        }
        prop_assume!(!body.contains("NaN") && !body.contains("Infinity"));
        let expected = serde_json::from_str::<serde::de::IgnoredAny>(&body).is_ok();
        let seen = Anatomy::read(Api::Chat, body.as_bytes());
        prop_assert_eq!(seen.is_ok(), expected, "{} {:?}", body, seen.err());
    }

    #[test]
    fn never_panics(body in proptest::collection::vec(prop_oneof![Just(b'{'), Just(b'"'), Just(b'\\'), Just(b'['), any::<u8>()], 0..40)) {
        drop(Anatomy::read(Api::Chat, &body));
    }
}
