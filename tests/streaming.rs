//! Streams to their end: bytes pass unchanged at any cut, a broken stream says so and never ends well, a client that leaves
//! stops its pod, and one that does not read stops it too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::explicit_write,
    clippy::naive_bytecount
)]
#![allow(clippy::disallowed_methods, reason = "tests measure time and start clients")]
mod kit;

use std::time::{Duration, Instant};

use kit::line::{Leave, Line, aborted, arrival, assert_line, named_request};
use kit::{Gate, chat, events, post, request};
use serde_json::Value;
use tidegate::base::Mono;
use tidegate::runtime::now;
use tidegate::sim::http::{Cut, Ended, Fault, Rule, Script, SimConfig};

const CHAT: &str = "/v1/chat/completions";
const SHORT: &str = "limits:\n  timeouts:\n    first_token_s: 30\n    between_tokens_s: 1\n    write_s: 1\n";
/// Far more than sockets hold between pod and client.
const MUCH: usize = 64 << 20;

/// An API's path, a streamed request to it, and what stands in its good ending only.
fn apis() -> Vec<(&'static str, String, &'static str)> {
    let body =
        |prompt: &str| format!(r#"{{"model":"sim",{prompt},"stream":true,"max_tokens":12,"max_output_tokens":12}}"#);
    let talk = r#""messages":[{"role":"user","content":"tell me"}]"#;
    vec![
        (CHAT, body(talk), "[DONE]"),
        ("/v1/completions", body(r#""prompt":"tell me""#), "[DONE]"),
        ("/v1/responses", body(r#""input":"tell me""#), "response.completed"),
        ("/v1/messages", body(talk), "message_stop"),
    ]
}

/// The gate's error event is the last one, has the API's shape, and there is one only.
fn assert_broken(path: &str, body: &[u8], good_ending: &str, word: &str) {
    let text = String::from_utf8_lossy(body);
    assert!(!text.contains(good_ending), "{path} ends well: {text}");
    let events = events(body);
    let errors = events.iter().filter(|event| event.contains("\"error\"")).count();
    assert_eq!(errors, 1, "{path}: {text}");
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    let message = last["error"]["message"].as_str().unwrap();
    assert!(message.contains(word), "{path}: {message}");
    match path {
        "/v1/messages" => assert_eq!(last["type"], "error"),
        "/v1/responses" => {
            assert_eq!((last["type"].as_str(), last["message"].as_str()), (Some("error"), Some(message)));
        }
        _ => assert!(last["error"]["code"].is_u64() && last["error"]["type"].is_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_stream_says_so_on_every_api() {
    for (path, body, good_ending) in apis() {
        for (fault, word, cause) in [
            (Fault::CutAtEvent(5, Cut::Fin), "broke", "stream_broken"),
            (Fault::CutAtEvent(5, Cut::Reset), "broke", "stream_broken"),
            (Fault::CutAtByte(1_200, Cut::Fin), "broke", "stream_broken"),
            (Fault::SilenceAtEvent(5), "idle_timeout", "idle_timeout"),
            (Fault::NoGoodEnding, "truncated", "truncated"),
        ] {
            let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), SHORT).await;
            for pod in &fleet.pods {
                pod.script(Script::always(fault.clone()));
            }
            let mut line = Line::ask(gate.addr(), &request(path, "", &body)).await;
            let answer = line.answer().await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{path} {fault:?}");
            assert_broken(path, &answer.body, good_ending, word);
            assert!(line.is_closed().await, "{path} {fault:?}: the connection stays open");
            assert_line(&gate.finish().await, cause, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_broken_after_its_good_ending_was_good() {
    for (path, body, good_ending) in apis() {
        for fault in [Fault::NoFinalChunk, Fault::OpenAfterEnd] {
            let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
            fleet.pods[0].script(Script::always(fault.clone()));
            let mut line = Line::open(gate.addr()).await;
            for _ in 0..2 {
                let began = Instant::now();
                line.send(&request(path, "", &body)).await;
                let answer = line.answer().await;
                assert_eq!((answer.status, answer.is_whole), (200, true), "{path} {fault:?}");
                assert!(
                    answer.text().contains(good_ending) && !answer.text().contains("\"error\""),
                    "{path} {fault:?}"
                );
                assert!(began.elapsed() < Duration::from_secs(2), "{path}: complete at once, not when the pod closes");
            }
            let lines = gate.finish().await;
            assert!(lines.len() == 2 && lines.iter().all(|line| line["cause"] == "ok"), "{lines:?}");
            let log = fleet.pods[0].served();
            assert_ne!(log[0].connection, log[1].connection, "a pod's connection without an end is not used again");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn events_cut_anywhere_arrive_as_the_same_bytes() {
    let config = SimConfig { request_id_headers: true, ..SimConfig::default() };
    for (path, body, good_ending) in apis() {
        let (gate, fleet) = Gate::with_pods(1, config.clone(), "").await;
        // Ids and times in the events come from the request's id and the second: ask the pod itself under the same id.
        let mut is_same = false;
        for _ in 0..5 {
            let (_, bytes) = named_request(path, &body);
            fleet.pods[0].script(Script::none());
            let whole = Line::ask(fleet.pods[0].addr(), &bytes).await.answer().await;
            fleet.pods[0].script(Script::always(Fault::SplitBytes));
            let split = Line::ask(gate.addr(), &bytes).await.answer().await;
            assert!(split.status == 200 && split.is_whole && split.text().contains(good_ending), "{path}");
            is_same = unaged(&whole.body) == unaged(&split.body);
            if is_same {
                break;
            }
        }
        assert!(is_same, "{path}: bytes differ");
        let lines = gate.finish().await;
        assert!(lines.iter().all(|line| line["cause"] == "ok"), "{lines:?}");
    }
}

/// Without what depends on the state of the pod's cache, which the first of two equal requests has filled.
fn unaged(body: &[u8]) -> String {
    let mut text = String::from_utf8_lossy(body).into_owned();
    for key in ["cached_tokens\":", "cache_read_input_tokens\":", "input_tokens\":", "created_cache_tokens\":"] {
        let mut from = 0;
        while let Some(at) = text[from..].find(key) {
            let start = from + at + key.len();
            let end = start + text[start..].find([',', '}']).unwrap();
            text.replace_range(start..end, "n");
            from = start;
        }
    }
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_event_of_4_mib_passes() {
    for (path, body, good_ending) in apis() {
        let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
        fleet.pods[0].script(Script::always(Fault::HugeEvent(4 << 20)));
        let answer = post(gate.addr(), path, "", &body).await;
        assert_eq!((answer.status, answer.is_whole), (200, true), "{path}");
        let filler = answer.body.iter().filter(|byte| **byte == b'x').count();
        assert!(filler >= 4 << 20 && answer.text().contains(good_ending), "{path}: {filler} bytes of filler");
        assert_line(&gate.finish().await, "ok", 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_event_after_tokens_passes_as_the_only_one() {
    for (path, body, _) in apis() {
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
        for pod in &fleet.pods {
            pod.script(Script::always(Fault::ErrorEvent(3)));
        }
        let (_, bytes) = named_request(path, &body);
        let answer = Line::ask(gate.addr(), &bytes).await.answer().await;
        let direct = Line::ask(fleet.pods[0].addr(), &bytes).await.answer().await;
        assert_eq!((answer.status, answer.is_whole), (200, true), "{path}");
        let names = |body: &[u8]| events(body).iter().map(String::len).collect::<Vec<_>>();
        assert_eq!(names(&answer.body), names(&direct.body), "{path}: {}", answer.text());
        assert_line(&gate.finish().await, "pod_error_event", 1);
    }
}

/// Where a client leaves: the pod's fault that holds the request there, whether it streams, and events to see first.
#[allow(clippy::type_complexity, reason = "a table, read by eye")]
const PHASES: &[(&str, fn() -> Script, bool, usize)] = &[
    ("waiting for the head", || Script::always(Fault::Silent), true, 0),
    ("waiting for the head, not streamed", || Script::always(Fault::Silent), false, 0),
    ("before the first token", || Script::always(Fault::SilenceAfterHead), true, 0),
    ("before the answer, not streamed", || Script::always(Fault::SilenceAfterHead), false, 0),
    ("between tokens", || Script::always(Fault::SilenceAtEvent(4)), true, 3),
    ("while tokens flow", || Script::always(Fault::SlowTokens(Duration::from_millis(5))), true, 3),
    ("generating, not streamed", || Script::always(Fault::SlowTokens(Duration::from_millis(5))), false, 0),
    ("while a refusal is read", refusal_without_body, true, 0),
];

fn refusal_without_body() -> Script {
    Script::always(Fault::Status(503, None)).rule(Rule::new(Fault::SlowBody(Duration::from_mins(1))))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_stops_its_pod_in_every_phase() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let pod = &fleet.pods[0];
    let (mut count, mut slowest) = (0, (Duration::ZERO, ""));
    for (phase, script, is_stream, seen) in PHASES {
        pod.script(script());
        for how in [Leave::Close, Leave::Reset, Leave::HalfClose] {
            let (id, bytes) = named_request(CHAT, &chat("sim", phase, *is_stream, 20_000));
            let mut line = Line::ask(gate.addr(), &bytes).await;
            arrival(pod, &id, |one| one.body.is_some()).await;
            line.until_events(*seen).await;
            let left: Mono = now();
            let line = line.leave(how).await;
            let took = aborted(pod, &id, left).await;
            assert!(took < Duration::from_secs(1), "{phase}, {how:?}: the pod saw it after {took:?}");
            if let Some(mut line) = line {
                assert!(!line.answer().await.is_whole, "{phase}: a half-closed client gets no good answer");
            }
            count += 1;
            slowest = slowest.max((took, phase));
        }
    }
    report(&format!("{count} departures, slowest abort after {:?} ({})", slowest.0, slowest.1));
    let lines = gate.finish().await;
    assert_eq!(lines.len(), count);
    assert!(lines.iter().all(|line| line["cause"] == "client_gone" && line["attempts"] == 1), "{lines:?}");
}

/// Shown although the test passes.
fn report(line: &str) {
    use std::io::Write as _;
    writeln!(std::io::stderr(), "streaming: {line}").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_it_sends_never_reaches_a_pod() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    for how in [Leave::Close, Leave::Reset, Leave::HalfClose] {
        let bytes = request(CHAT, "", &chat("sim", &"half ".repeat(20_000), true, 4));
        let line = Line::ask(gate.addr(), &bytes[..bytes.len() / 2]).await;
        gate.eventually("half the body is held", || gate.app().gate().metrics.body_held.value() > 0).await;
        if let Some(mut line) = line.leave(how).await {
            assert_eq!(line.answer().await.status, 400);
        }
        gate.eventually("let go", || gate.app().gate().metrics.body_held.value() == 0).await;
    }
    assert_eq!(fleet.pods[0].served().len(), 0);
    let lines = gate.finish().await;
    assert!(lines.len() == 3 && lines.iter().all(|line| line["attempts"] == 0), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_does_not_read_pauses_its_pod_and_is_given_up() {
    let plain = format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {MUCH}\r\n\r\n");
    let plain = [plain.as_bytes(), &vec![b' '; MUCH]].concat();
    for (is_stream, fault) in [(true, Fault::HugeEvent(MUCH)), (false, Fault::Raw(plain.into()))] {
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), SHORT).await;
        let slow = Rule::new(fault).header("x-marker", "slow");
        for pod in &fleet.pods {
            pod.script(slow.clone());
        }
        let (id, bytes) = named_request(CHAT, &chat("sim", "too much", is_stream, 4));
        let bytes = String::from_utf8(bytes).unwrap().replacen("x-request-id", "x-marker: slow\r\nx-request-id", 1);
        let line = Line::ask(gate.addr(), bytes.as_bytes()).await;
        let is_there = |pod: &&_| has_arrived(pod, &id);
        gate.eventually("at a pod", || fleet.pods.iter().any(|pod| is_there(&pod))).await;
        for number in 0..20 {
            let other = post(gate.addr(), CHAT, "", &chat("sim", &format!("other {number}"), true, 4)).await;
            assert_eq!((other.status, other.is_whole), (200, true), "others go on");
        }
        let pod = fleet.pods.iter().find(is_there).unwrap();
        let arrival = arrival(pod, &id, |one| one.ended.is_some()).await;
        assert_eq!(arrival.ended, Some(Ended::ClientLeft));
        let taken = arrival.bytes_sent >> 20;
        report(&format!("a client that read nothing let its pod send {taken} MiB of {}", MUCH >> 20));
        assert!(taken < 40, "the pod could send {taken} MiB: sockets hold less, so the gate took the rest");
        // The client is still there, and still reads nothing: the gate lets go of it all the same.
        let lines = gate.finish().await;
        drop(line);
        let stalled: Vec<_> = lines.iter().filter(|line| line["cause"] != "ok").collect();
        assert_eq!(stalled.len(), 1);
        assert_eq!(stalled[0]["cause"], "client_stalled", "{stalled:?}");
    }
}

fn has_arrived(pod: &tidegate::sim::http::SimPod, id: &str) -> bool {
    pod.served().iter().any(|one| one.header("x-request-id") == Some(id))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_gets_every_byte() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    fleet.pods[0].script(Script::always(Fault::HugeEvent(24 << 20)));
    let mut line = Line::ask(gate.addr(), &request(CHAT, "", &chat("sim", "slowly", true, 4))).await;
    line.until_events(1).await;
    let answer = line.answer_in_sips(1_500).await;
    assert!(answer.is_whole);
    assert!(answer.body.iter().filter(|byte| **byte == b'x').count() >= 24 << 20);
    assert_line(&gate.finish().await, "ok", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_pipelines_gets_one_answer_and_may_leave_too() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let pod = &fleet.pods[0];
    for is_stream in [false, true] {
        pod.script(Script::always(Fault::SlowTokens(Duration::from_millis(5))));
        let twice = request(CHAT, "", &chat("sim", "two at once", is_stream, 20)).repeat(2);
        let mut line = Line::ask(gate.addr(), &twice).await;
        let answer = line.answer().await;
        assert_eq!((answer.status, answer.is_whole), (200, true), "{}", answer.text());
        assert!(line.is_closed().await, "the second request is not served: the client sends it again elsewhere");

        pod.script(Script::always(Fault::Silent));
        let (id, bytes) = named_request(CHAT, &chat("sim", "two and gone", is_stream, 20));
        let mut line = Line::ask(gate.addr(), &bytes).await;
        arrival(pod, &id, |one| one.body.is_some()).await;
        line.send(&bytes).await;
        let left = now();
        line.leave(Leave::Close).await;
        let took = aborted(pod, &id, left).await;
        assert!(took < Duration::from_secs(1), "the pod saw it after {took:?}");
    }
    assert_eq!(gate.finish().await.len(), 4);
}

const WARM: &str = "listen:\n  sse_keep_alive_s: 1\nlimits:\n  timeouts:\n    first_token_s: 3\n";
const COMMENT: &str = ": keep-alive\n\n";

/// Takes the comments off the beginning of a stream.
fn without_comments(text: &str) -> &str {
    let rest = text.trim_start_matches(COMMENT);
    assert!(rest.len() < text.len() && !rest.contains(COMMENT), "comments, and only before the answer: {text}");
    rest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_waits_gets_comments_if_so_configured_and_then_the_same_answer() {
    for (path, body, good_ending) in apis() {
        for (yaml, has_comments) in [(WARM, true), ("", false)] {
            let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), yaml).await;
            fleet.pods[0].script(Script::from(Rule::new(Fault::SlowHead(Duration::from_millis(1_500))).times(1)));
            let mut line = Line::open(gate.addr()).await;
            line.send(&request(path, "", &body)).await;
            let answer = line.answer().await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{path}");
            let text = answer.text();
            let text = if has_comments { without_comments(&text) } else { &text };
            assert!(text.contains(good_ending) && !text.contains("keep-alive"), "{path}: {text}");
            // The connection is good for another, which comes at once.
            line.send(&request(path, "", &body)).await;
            let answer = line.answer().await;
            assert!(answer.text().contains(good_ending) && !answer.text().contains(COMMENT), "{path}");
            let lines = gate.finish().await;
            assert!(lines.len() == 2 && lines.iter().all(|line| line["cause"] == "ok"), "{lines:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_goes_wrong_after_a_comment_is_told_by_one_event() {
    let mut cases = tokio::task::JoinSet::new();
    for (path, body, good_ending) in apis() {
        for (fault, word, cause) in [
            (Fault::Silent, "in time", "first_byte_timeout"),
            (Fault::Status(400, None), "", "pod_client_fault"),
            (Fault::Status(500, None), "", "pod_error"),
            (Fault::Status(503, Some(1)), "", "pod_busy"),
        ] {
            cases.spawn(goes_wrong(path, body.clone(), good_ending, fault, word, cause));
        }
    }
    while let Some(ended) = cases.join_next().await {
        ended.unwrap();
    }
}

async fn goes_wrong(path: &str, body: String, good_ending: &str, fault: Fault, word: &str, cause: &str) {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), WARM).await;
    let slow = Rule::new(Fault::SlowHead(Duration::from_millis(1_500)));
    fleet.pods[0].script(Script::from(slow).rule(Rule::new(fault.clone())));
    let mut line = Line::ask(gate.addr(), &request(path, "", &body)).await;
    let answer = line.answer().await;
    assert_eq!((answer.status, answer.is_whole), (200, true), "{path} {fault:?}");
    let text = answer.text();
    let text = without_comments(&text);
    assert!(!text.contains(good_ending), "{path} {fault:?}: {text}");
    let errors: Vec<Value> = events(text.as_bytes()).iter().map(|one| serde_json::from_str(one).unwrap()).collect();
    assert_eq!(errors.len(), 1, "{path} {fault:?}: {text}");
    let message = errors[0]["error"]["message"].as_str().unwrap();
    assert!(message.contains(word) && !message.is_empty(), "{path} {fault:?}: {text}");
    assert_eq!(text.starts_with("event: error\n"), !path.ends_with("completions"), "{path}: {text}");
    let lines = gate.finish().await;
    assert_eq!(lines[0]["cause"], cause, "{path} {fault:?}: {lines:?}");
    assert_eq!(lines[0]["status"], 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_while_it_is_kept_warm_stops_its_pod() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), WARM).await;
    fleet.pods[0].script(Script::always(Fault::SlowBody(Duration::from_mins(1))));
    let (id, asked) = named_request(CHAT, &chat("sim", "wait", true, 5));
    let mut line = Line::ask(gate.addr(), &asked).await;
    line.until(COMMENT).await;
    let left = now();
    line.leave(Leave::Close).await;
    aborted(&fleet.pods[0], &id, left).await;
    let lines = gate.finish().await;
    assert_eq!((&lines[0]["cause"], &lines[0]["committed"]), (&"client_gone".into(), &false.into()), "{lines:?}");
}
