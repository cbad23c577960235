//! Scanning streams and answers captured from a real server, cut at any byte.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use proptest::prelude::*;

use crate::api::{Api, First, SseScan, Usage, response_id_of_body, usage_of_body};

const CHAT: &str = include_str!("../../../tests/fixtures/vllm/chat-stream-usage.sse");
const CONTINUOUS: &str = include_str!("../../../tests/fixtures/vllm/chat-stream-usage-continuous.sse");
const BATCH: &str = include_str!("../../../tests/fixtures/vllm/compl-batch-stream.sse");
const GENERATE: &str = include_str!("../../../tests/fixtures/vllm/generate-stream.sse");
const MESSAGES: &str = include_str!("../../../tests/fixtures/vllm/messages-stream.sse");
const RESPONSES: &str = include_str!("../../../tests/fixtures/vllm/responses-stream.sse");
const BROKEN: &str = ": hi\n\ndata: {\"error\": {\"message\":\"x\",\"code\":500}}\n\ndata: [DONE]\n\n";

const fn usage(prompt_tokens: u64, completion_tokens: u64, cached_tokens: Option<u64>) -> Usage {
    Usage { prompt_tokens, completion_tokens, cached_tokens }
}

/// All a scan tells at the end, and every boundary it told on the way.
fn scan(api: Api, chunks: &[&[u8]]) -> (SseScan, u64, Vec<usize>, u64) {
    let (mut scan, mut at, mut boundaries, mut events, mut errors) = (SseScan::new(api), 0, Vec::new(), 0, 0);
    for chunk in chunks {
        let marks = scan.feed(chunk);
        boundaries.extend(marks.boundary.map(|boundary| at + boundary));
        events += marks.events;
        errors += u64::from(marks.error);
        at += chunk.len();
    }
    assert_eq!(events, scan.events());
    (scan, events, boundaries, errors)
}

#[track_caller]
fn check(api: Api, text: &str, events: u64, expected: Option<Usage>) -> SseScan {
    let (scan, seen, boundaries, errors) = scan(api, &[text.as_bytes()]);
    assert_eq!((seen, scan.usage(), errors), (events, expected, 0));
    assert_eq!((scan.first(), scan.is_done(), scan.at_boundary()), (Some(First::Good), true, true));
    assert_eq!(boundaries, [text.len()]);
    let cut = text.rfind("\n\n").unwrap();
    let cut = text[..cut].rfind("\n\n").unwrap() + 2;
    let mut short = SseScan::new(api);
    short.feed(&text.as_bytes()[..cut]);
    assert!(!short.is_done() && short.at_boundary(), "the good ending is the last event");
    scan
}

#[test]
fn captured_streams() {
    check(Api::Chat, CHAT, 7, Some(usage(13, 4, Some(0))));
    check(Api::Chat, CONTINUOUS, CONTINUOUS.matches("data: ").count() as u64, Some(usage(13, 3, Some(0))));
    check(Api::Completions, BATCH, 6, Some(usage(4, 4, Some(0))));
    check(Api::GenerateTokens, GENERATE, 4, None);
    check(Api::Messages, MESSAGES, 8, Some(usage(13, 3, Some(0))));
    let responses = check(Api::Responses, RESPONSES, 11, Some(usage(13, 3, Some(0))));
    assert_eq!(responses.response_id(), Some("resp_a27f34c08d1cc296"));
}

#[test]
fn errors_first_and_later() {
    let (broken, events, _, errors) = scan(Api::Chat, &[BROKEN.as_bytes()]);
    assert_eq!((broken.first(), broken.has_error(), events, errors), (Some(First::Error), true, 2, 1));
    let first = |api, text: &str| {
        let (scan, ..) = scan(api, &[text.as_bytes()]);
        (scan.first(), scan.has_error())
    };
    assert_eq!(first(Api::Chat, ": ping\n\n: ping\n\n"), (None, false));
    assert_eq!(first(Api::Chat, "data: {\"id\":1}\n\ndata: {\"error\":{}}\n\n"), (Some(First::Good), true));
    assert_eq!(first(Api::Chat, "data:{ \"error\" : {}}\r\n\r\n"), (Some(First::Error), true));
    assert_eq!(first(Api::Chat, "data: {\"error\":null}\n\n"), (Some(First::Good), false));
    assert_eq!(first(Api::Messages, "event: error\r\ndata: {}\r\n\r\n"), (Some(First::Error), true));
    assert_eq!(first(Api::Messages, "data: {\"type\":\"error\",\"error\":{}}\n\n"), (Some(First::Error), true));
    assert_eq!(
        first(Api::Chat, "data: {\"choices\":[{\"delta\":{\"content\":\"{\\\"error\\\":1}\"}}]}\n\n"),
        (Some(First::Good), false)
    );
    assert_eq!(first(Api::Chat, "data: {\"error\":{}}\n"), (None, false), "the event has not ended");
}

#[test]
fn text_about_usage_is_not_usage() {
    let text = "data: {\"choices\":[{\"delta\":{\"content\":\"\\\"usage\\\":{\\\"prompt_tokens\\\":9}\"}}],\"usage\":null}\n\n";
    assert_eq!(scan(Api::Chat, &[text.as_bytes()]).0.usage(), None);
    let tool =
        "data: {\"usage\":{\"input_tokens\":3,\"output_tokens\":1},\"tools\":[{\"usage\":{\"type\":\"string\"}}]}\n\n";
    assert_eq!(scan(Api::Responses, &[tool.as_bytes()]).0.usage(), Some(usage(3, 1, None)));
}

#[test]
fn huge_events_are_judged_early_and_kept_bounded() {
    let text = format!(
        "data: {{\"choices\":[\"{}\"],\"usage\":{{\"prompt_tokens\":5,\"completion_tokens\":1}}}}\n\n",
        "x".repeat(4 << 20)
    );
    for size in [text.len(), 1 << 16, 1000] {
        let mut scan = SseScan::new(Api::Chat);
        let mut first_at = None;
        for (index, chunk) in text.as_bytes().chunks(size).enumerate() {
            scan.feed(chunk);
            if scan.first().is_some() {
                first_at.get_or_insert(index * size);
            }
            assert!(scan.kept_bytes() <= 64 * 1024, "{}", scan.kept_bytes());
        }
        assert!(first_at.unwrap() < 32 * 1024);
        assert_eq!((scan.events(), scan.usage()), (1, Some(usage(5, 1, None))), "chunks of {size}");
        assert!(scan.at_boundary());
    }
}

#[test]
fn whole_answers() {
    let body = |api, text: &str| usage_of_body(api, text.as_bytes());
    assert_eq!(body(Api::Chat, include_str!("../../../tests/fixtures/vllm/chat.json")).unwrap().prompt_tokens, 13);
    assert!(body(Api::Completions, include_str!("../../../tests/fixtures/vllm/compl-batch.json")).is_some());
    let generate = body(Api::GenerateTokens, include_str!("../../../tests/fixtures/vllm/generate.json"));
    assert_eq!(generate, Some(usage(4, 4, Some(0))));
    assert_eq!(
        body(Api::Messages, include_str!("../../../tests/fixtures/vllm/messages.json")),
        Some(usage(13, 4, Some(0)))
    );
    assert_eq!(body(Api::Rerank, include_str!("../../../tests/fixtures/vllm/rerank.json")), Some(usage(5, 0, None)));
    let responses = include_str!("../../../tests/fixtures/vllm/responses.json");
    assert_eq!(body(Api::Responses, responses), Some(usage(13, 4, Some(0))));
    assert_eq!(response_id_of_body(Api::Responses, responses.as_bytes()).as_deref(), Some("resp_bd4ec022414aa594"));
    assert_eq!(response_id_of_body(Api::Chat, responses.as_bytes()), None);
    assert_eq!(body(Api::Chat, include_str!("../../../tests/fixtures/vllm/err-too-long.json")), None);
    assert_eq!(body(Api::Chat, "{\"usage\":"), None);
}

proptest! {
    #[test]
    fn cuts_do_not_matter(which in 0..8_usize, cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12), every in 0..40_usize) {
        let crlf = CHAT.replace('\n', "\r\n");
        let long = format!("{MESSAGES}event: x\ndata: {{\"a\":\"{}\"}}\n\n: c\n\ndata: 1\n\n", "y".repeat(40_000));
        let (api, text) = [
            (Api::Chat, CHAT), (Api::Chat, CONTINUOUS), (Api::Completions, BATCH), (Api::Messages, MESSAGES),
            (Api::Responses, RESPONSES), (Api::Chat, BROKEN), (Api::Chat, &crlf), (Api::Messages, &long),
        ][which];
        let bytes = text.as_bytes();
        let mut at: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len())).collect();
        if every > 0 && which != 7 {
            at.extend((0..bytes.len()).step_by(every));
        }
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let chunks: Vec<_> = at.windows(2).map(|pair| &bytes[pair[0]..pair[1]]).collect();
        let (whole, events, ends, errors) = scan(api, &[bytes]);
        let (cut, cut_events, cut_ends, cut_errors) = scan(api, &chunks);
        prop_assert_eq!((events, errors, ends.last()), (cut_events, cut_errors, cut_ends.last()));
        prop_assert_eq!(
            (whole.first(), whole.has_error(), whole.is_done(), whole.usage(), whole.response_id(), whole.at_boundary()),
            (cut.first(), cut.has_error(), cut.is_done(), cut.usage(), cut.response_id(), cut.at_boundary())
        );
    }
}
