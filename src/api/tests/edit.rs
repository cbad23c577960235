//! Splicing: what goes, what stays, and that the rest survives byte for byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::Value;

use super::body::json_value;
use crate::api::{Anatomy, Api, Edit, splice, strip_dangerous};

#[track_caller]
fn check(body: &str, edits: &[(&str, Option<&str>)], expected: &str) {
    let edits: Vec<_> = edits.iter().map(|(key, value)| Edit { key, value: value.map(str::as_bytes) }).collect();
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    let out = splice(&bytes, &Anatomy::read(Api::Chat, &bytes).unwrap(), &edits);
    assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
}

#[track_caller]
fn check_strip(api: Api, body: &str, expected: &str) {
    let bytes = Bytes::copy_from_slice(body.as_bytes());
    let anatomy = Anatomy::read(api, &bytes).unwrap();
    assert_eq!(anatomy.dangerous(), body != expected);
    let out = splice(&bytes, &anatomy, strip_dangerous(&anatomy));
    assert_eq!(std::str::from_utf8(&out).unwrap(), expected);
    assert!(!Anatomy::read(api, &out).unwrap().dangerous());
}

#[test]
fn exactly_one_comma_goes_with_a_member() {
    check(r#"{ "a" : 1 , "b" : 2 , "c" : 3 }"#, &[("a", None)], r#"{   "b" : 2 , "c" : 3 }"#);
    check(r#"{ "a" : 1 , "b" : 2 , "c" : 3 }"#, &[("b", None)], r#"{ "a" : 1   , "c" : 3 }"#);
    check(r#"{ "a" : 1 , "b" : 2 , "c" : 3 }"#, &[("c", None)], r#"{ "a" : 1 , "b" : 2   }"#);
    check(r#"{"a":1,"b":2,"c":3}"#, &[("a", None), ("b", None)], r#"{"c":3}"#);
    check(r#"{"a":1,"b":2,"c":3}"#, &[("c", None), ("b", None)], r#"{"a":1}"#);
    check(r#"{"a":1,"b":2,"a":3}"#, &[("a", None)], r#"{"b":2}"#);
    check(r#"{"a":1}"#, &[("a", None)], "{}");
    check(r#"{"a":1}"#, &[("z", None)], r#"{"a":1}"#);
}

#[test]
fn members_are_replaced_in_place_or_appended() {
    check(r#"{"a": 1.0, "b":2}"#, &[("a", Some("[7]"))], r#"{"a": [7], "b":2}"#);
    check(r#"{"a":1,"b":2,"a":3}"#, &[("a", Some("9"))], r#"{"a":9,"b":2}"#);
    check(r#"{"a":1 }"#, &[("b", Some("2")), ("c\"", Some("3"))], r#"{"a":1,"b":2,"c\"":3 }"#);
    check("{ }", &[("b", Some("2"))], "{\"b\":2 }");
    check(r#"{"a":1}"#, &[("a", None), ("b", Some("2"))], r#"{"b":2}"#);
    check(r#"{"a":1}"#, &[("a", None), ("a", Some("2"))], r#"{"a":2}"#);
}

#[test]
fn dangerous_members_go_wherever_the_pod_reads_them() {
    for api in Api::ALL {
        check_strip(
            api,
            r#"{"kv_transfer_params":{"do_remote_prefill":true}, "kv_transfer\u005fparams" :{},"model":"m","\u0065c_transfer_params":1}"#,
            r#"{ "model":"m"}"#,
        );
        check_strip(
            api,
            r#"{"model":"m","x":{"kv_transfer_params":1}}"#,
            r#"{"model":"m","x":{"kv_transfer_params":1}}"#,
        );
    }
    check_strip(
        Api::GenerateTokens,
        r#"{"sampling_params":{"n":1,"extra_args":{"kv_transfer\u005fparams":{},"a":1,"kv_transfer_params":2}},"token_ids":[1]}"#,
        r#"{"sampling_params":{"n":1,"extra_args":{"a":1}},"token_ids":[1]}"#,
    );
    check_strip(Api::Chat, r#"{"vllm_xargs":{"ec_transfer_params":{}}}"#, r#"{"vllm_xargs":{}}"#);
    check_strip(
        Api::GenerateTokens,
        r#"{"sampling_params":{"kv_transfer_params":{},"extra_args":{"b":1,"ec_transfer_params":2}},"a":1}"#,
        r#"{"sampling_params":{"extra_args":{"b":1}},"a":1}"#,
    );
    check(
        r#"{"vllm_xargs":{"kv_transfer_params":1},"a":1}"#,
        &[("kv_transfer_params", Some("{}"))],
        r#"{"vllm_xargs":{},"a":1,"kv_transfer_params":{}}"#,
    );
}

#[test]
fn a_harmless_body_is_not_copied() {
    let body = Bytes::from_static(b"{\"a\":1}");
    let anatomy = Anatomy::read(Api::Chat, &body).unwrap();
    assert_eq!(splice(&body, &anatomy, strip_dangerous(&anatomy)).as_ptr(), body.as_ptr());
}

/// A key as written, and what it means.
fn key() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop_oneof![
        Just(("kv_transfer_params", "kv_transfer_params")),
        Just(("kv_transfer\\u005fparams", "kv_transfer_params")),
        Just(("\\u006bv_transfer_params", "kv_transfer_params")),
        Just(("ec_transfer_params", "ec_transfer_params")),
        Just(("temperature", "temperature")),
        Just(("a\\\"b", "a\"b")),
        Just(("unknown", "unknown")),
        Just(("", "")),
    ]
}

fn is_subsequence(part: &[u8], whole: &[u8]) -> bool {
    let mut rest = whole.iter();
    part.iter().all(|byte| rest.any(|other| other == byte))
}

proptest! {
    #[test]
    fn whatever_stays_survives(
        members in proptest::collection::vec((key(), json_value(), "[ \n\t]{0,2}", "[ \r]{0,2}"), 0..7),
        added in proptest::option::of(json_value()),
    ) {
        let texts: Vec<_> = members.iter().map(|((key, _), value, a, b)| format!("{a}\"{key}\"{b}:{a}{value}{b}")).collect();
        let body = Bytes::from(format!("{{{}}}", texts.join(",")));
        let mut expected: Value = serde_json::from_slice(&body).unwrap();
        let anatomy = Anatomy::read(Api::Chat, &body).unwrap();
        let object = expected.as_object_mut().unwrap();
        object.remove("kv_transfer_params");
        object.remove("ec_transfer_params");
        let mut edits = vec![Edit { key: "kv_transfer_params", value: None }, Edit { key: "ec_transfer_params", value: None }];
        if let Some(added) = &added {
            object.insert("unknown".into(), serde_json::from_str(added).unwrap());
            edits.push(Edit { key: "unknown", value: Some(added.as_bytes()) });
        }
        let out = splice(&body, &anatomy, &edits);
        let seen: Value = serde_json::from_slice(&out).unwrap();
        prop_assert_eq!(&seen, &expected);
        if added.is_none() {
            let stays = |member: &&((&str, &str), String, String, String)| !member.0.1.ends_with("_transfer_params");
            let gone: usize = members.iter().filter(|member| !stays(member)).map(|((key, _), value, a, b)| key.len() + 3 + a.len() + b.len() + value.len()).sum();
            let removed = members.len() - members.iter().filter(stays).count();
            let commas = members.len().saturating_sub(1) - members.iter().filter(stays).count().saturating_sub(1);
            prop_assert_eq!(out.len(), body.len() - gone - commas, "removed {}", removed);
            prop_assert!(is_subsequence(&out, &body));
        }
    }
}
