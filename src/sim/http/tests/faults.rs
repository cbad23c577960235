//! Every fault, as a client sees it.
use std::time::Duration;

use serde_json::json;
use tokio::time::timeout;

use super::super::{Cut, Ended, Fault, Framing, MetricsFault, Rule, Script, SimConfig, SimPod, expect::expected};
use super::client::{Answer, Client, get, post, request};

const CHAT: &str = "/v1/chat/completions";

fn body(stream: bool) -> String {
    json!({"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "stream": stream})
        .to_string()
}

/// What a stream looks like under a fault.
async fn under(fault: Fault) -> Answer {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    pod.script(Script::always(fault));
    let answer = post(&pod, CHAT, &body(true)).await;
    timeout(Duration::from_secs(10), pod.wait_for(|all| all.iter().all(|one| one.ended.is_some()))).await.unwrap();
    assert_eq!(pod.running(), 0);
    answer
}

/// All bytes of a stream under a fault, until the pod closes.
async fn bytes_under(fault: Fault) -> Vec<u8> {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    pod.script(Script::always(fault));
    let mut client = Client::connect(&pod).await;
    client.send(&request("POST", CHAT, &body(true), "")).await;
    client.rest().await
}

#[tokio::test]
async fn cuts_are_exact_to_the_byte() {
    for cut in [0_u64, 1, 17, 200, 500] {
        let bytes = bytes_under(Fault::CutAtByte(cut, Cut::Fin)).await;
        assert_eq!(bytes.len() as u64, cut);
    }
    assert!(bytes_under(Fault::CutAtByte(40, Cut::Reset)).await.len() <= 40);
    for count in 0..4 {
        let answer = under(Fault::CutAtEvent(count, Cut::Fin)).await;
        assert_eq!((answer.status(), answer.events().len() as u64, answer.is_whole), (200, count, false));
    }
}

#[tokio::test]
async fn bad_endings_lack_what_they_should() {
    let full = under(Fault::Interim(Vec::new())).await;
    assert_eq!((full.is_whole, full.events().last().map(String::as_str)), (true, Some("[DONE]")));
    let answer = under(Fault::NoGoodEnding).await;
    assert!(answer.is_whole && !answer.text().contains("[DONE]"));
    let answer = under(Fault::NoFinalChunk).await;
    assert!(!answer.is_whole && answer.text().contains("[DONE]"));
    for (after, events) in [(0, 2), (2, 5)] {
        let answer = under(Fault::ErrorEvent(after)).await;
        assert_eq!((answer.status(), answer.is_whole, answer.events().len()), (200, true, events));
        assert_eq!(
            answer.events()[events - 2].as_str(),
            r#"{"error":{"message":"Internal server error","type":"InternalServerError","param":null,"code":500}}"#
        );
    }
}

#[tokio::test]
async fn silence_lasts_until_the_client_leaves() {
    let faults = [Fault::Silent, Fault::SilenceAfterHead, Fault::SilenceAtEvent(2), Fault::OpenAfterEnd];
    let marks = ["", "\r\n\r\n", "assistant", "[DONE]"];
    for (fault, mark) in faults.into_iter().zip(marks) {
        let pod = SimPod::start(SimConfig::default()).await.unwrap();
        pod.script(Script::always(fault));
        let mut client = Client::connect(&pod).await;
        client.send(&request("POST", CHAT, &body(true), "")).await;
        assert!(client.until(mark).await);
        pod.wait_for(|all| all.iter().any(|one| one.body.is_some())).await;
        assert_eq!(pod.log()[0].ended, None);
        drop(client);
        let log = pod.wait_for(|all| all[0].ended.is_some()).await;
        assert_eq!(log[0].ended, Some(Ended::ClientLeft));
        assert!(log[0].ended_at > Some(log[0].at));
    }
}

#[tokio::test]
async fn refusals_happen_at_accept_and_after_the_head() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    pod.script(Rule::at_accept(Fault::Refuse).times(1));
    let mut client = Client::connect(&pod).await;
    assert!(client.rest().await.is_empty());
    assert_eq!(get(&pod, "/health").await.status(), 200);
    pod.script(Rule::new(Fault::Refuse).nth(2));
    let statuses = [post(&pod, CHAT, &body(false)).await, post(&pod, CHAT, &body(false)).await];
    assert_eq!(statuses.map(|answer| answer.status()), [200, 0]);
    assert_eq!(post(&pod, CHAT, &body(false)).await.status(), 200);
}

#[tokio::test]
async fn statuses_carry_retry_after_and_the_shape_of_the_api() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    pod.script(Script::always(Fault::Status(429, Some(7))));
    let answer = post(&pod, CHAT, &body(true)).await;
    assert_eq!((answer.status(), answer.field("retry-after")), (429, Some("7")));
    assert_eq!(answer.json()["error"]["code"], 429);
    pod.script(Script::always(Fault::Status(500, None)));
    assert_eq!(post(&pod, "/v1/messages", &body(true)).await.json()["type"], "error");
}

#[tokio::test]
async fn an_early_answer_does_not_wait_for_the_body() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    pod.script(Script::always(Fault::EarlyAnswer(413)));
    let mut client = Client::connect(&pod).await;
    client.send(format!("POST {CHAT} HTTP/1.1\r\nhost: p\r\ncontent-length: 1000000\r\n\r\n{{").as_bytes()).await;
    let answer = client.answer().await;
    assert_eq!((answer.status(), answer.field("connection")), (413, Some("close")));
    assert_eq!(pod.log()[0].body, None);
}

#[tokio::test]
async fn interim_answers_come_first_and_sizes_can_be_absurd() {
    let bytes = bytes_under(Fault::Interim(vec![103])).await;
    assert!(bytes.starts_with(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n"));
    let head = under(Fault::HugeHead(2 << 20)).await;
    assert_eq!((head.status(), head.field("x-filler").unwrap().len(), head.is_whole), (200, 2 << 20, true));
    let event = under(Fault::HugeEvent(4 << 20)).await;
    assert!(event.is_whole && event.events()[2].len() > 4 << 20);
    let split = under(Fault::SplitBytes).await;
    assert!(split.is_whole);
    assert_eq!(split.streamed_text(), expected(CHAT, body(true).as_bytes(), &SimConfig::default()).unwrap().texts[0]);
}

#[tokio::test]
async fn broken_framing_is_sent_as_scripted() {
    for (framing, mark) in [
        (Framing::Garbage, "\u{15}\u{3}"),
        (Framing::Http09, "{\"object\""),
        (Framing::BadChunkSize, "zz\r\n"),
        (Framing::TwoContentLengths, "content-length: 9"),
        (Framing::LengthAndChunked, "transfer-encoding: chunked"),
        (Framing::ShortBody, "content-length: 100"),
    ] {
        let bytes = bytes_under(Fault::Framing(framing)).await;
        assert!(memchr::memmem::find(&bytes, mark.as_bytes()).is_some(), "{framing:?}");
    }
    assert_eq!(bytes_under(Fault::Raw("anything".into())).await, b"anything");
}

#[tokio::test]
async fn rules_match_by_header_marker_and_path_and_add_up() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    pod.script(
        Script::none()
            .rule(Rule::new(Fault::Status(503, None)).header("x-who", "me"))
            .rule(Rule::new(Fault::NoGoodEnding).marker("\"x\""))
            .rule(Rule::new(Fault::CutAtEvent(2, Cut::Fin)).path("/v1/completions")),
    );
    let mut client = Client::connect(&pod).await;
    assert_eq!(client.post(CHAT, &body(true), "X-Who: me\r\n").await.status(), 503);
    assert!(!client.post(CHAT, &body(true), "").await.text().contains("[DONE]"));
    let answer = client.post("/v1/completions", r#"{"prompt":"y","max_tokens":5,"stream":true}"#, "").await;
    assert_eq!(answer.events().len(), 2);
    let mut client = Client::connect(&pod).await;
    let answer = client.post(CHAT, &body(true), "x-sim-fault: slow-tokens=1, cut-at-event=3\r\n").await;
    assert_eq!((answer.events().len(), answer.is_whole), (3, false));
}

#[tokio::test]
async fn metrics_can_hang_lie_and_break() {
    let pod = SimPod::start(SimConfig::default()).await.unwrap();
    let page = |fault| {
        pod.script(Script::always(Fault::Metrics(fault)));
        get(&pod, "/metrics")
    };
    assert_eq!(page(MetricsFault::Error).await.status(), 500);
    assert!(page(MetricsFault::Garbage).await.text().contains("<html>"));
    assert!(
        page(MetricsFault::NotANumber)
            .await
            .text()
            .contains("vllm:kv_cache_usage_perc{engine=\"0\",model_name=\"sim\"} NaN")
    );
    assert!(page(MetricsFault::Huge).await.body.len() > 60 << 20);
    let idle = page(MetricsFault::Idle).await.text();
    assert!(idle.contains("vllm:num_requests_running{engine=\"0\",model_name=\"sim\"} 0.0"));
    assert!(timeout(Duration::from_millis(200), page(MetricsFault::Hang)).await.is_err());
    assert_eq!(get(&pod, "/health").await.status(), 200);
}
