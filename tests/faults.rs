//! What a client gets when a pod fails before anything of its answer was passed on: another pod's answer where the rules
//! allow it, else one clear error; and that interim answers, early answers and dying pooled connections harm nobody.
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

use std::time::Duration;

use kit::line::{Leave, Line, arrival, assert_line, attempts, named_request, until_hit};
use kit::{Answer, Gate, PATIENCE, chat, events, post, request};
use tidegate::sim::http::{Cut, Ended, Fault, Fleet, Framing, MetricsFault, Rule, Script, SimConfig};

const CHAT: &str = "/v1/chat/completions";

/// Deadlines short enough to be waited for.
const SHORT: &str = "limits:\n  timeouts:\n    first_token_s: 1\n    answer_s: 1\n    between_tokens_s: 1\n";

/// What is expected of a fault that meets a request before anything of an answer passed.
struct Case {
    fault: Fault,
    /// Status, cause, and attempts when there is no other pod.
    alone: (u16, &'static str),
    /// Whether another pod is asked.
    is_retried: bool,
}

const fn case(fault: Fault, status: u16, cause: &'static str, is_retried: bool) -> Case {
    Case { fault, alone: (status, cause), is_retried }
}

fn cases() -> Vec<Case> {
    vec![
        case(Fault::Refuse, 502, "pod_closed", true),
        case(Fault::CutAtByte(0, Cut::Fin), 502, "pod_closed", true),
        case(Fault::CutAtByte(30, Cut::Reset), 502, "pod_closed", true),
        case(Fault::CutAtByte(30, Cut::Fin), 502, "pod_closed", true),
        case(Fault::Status(503, Some(1)), 503, "pod_busy", true),
        case(Fault::Status(429, Some(1)), 429, "pod_busy", true),
        case(Fault::Status(429, None), 429, "pod_busy", true),
        case(Fault::Status(502, None), 502, "pod_error", true),
        case(Fault::Status(504, None), 504, "pod_error", true),
        case(Fault::Status(500, None), 500, "pod_error", false),
        case(Fault::Status(400, None), 400, "pod_client_fault", false),
        case(Fault::Status(401, None), 401, "pod_client_fault", false),
        case(Fault::Framing(Framing::Garbage), 502, "pod_garbage", true),
        case(Fault::Framing(Framing::Http09), 502, "pod_garbage", true),
        case(Fault::Framing(Framing::BadChunkSize), 502, "pod_garbage", true),
        case(Fault::Framing(Framing::TwoContentLengths), 502, "pod_garbage", true),
        case(Fault::Framing(Framing::LengthAndChunked), 502, "pod_garbage", true),
        case(Fault::HugeHead(2 << 20), 502, "pod_garbage", false),
    ]
}

/// An error is the gate's or the pod's, in the shape of the API.
fn assert_error(answer: &Answer, status: u16, what: &Fault) {
    assert_eq!(answer.status, status, "{what:?}: {}", answer.text());
    assert!(answer.is_whole, "{what:?}");
    assert_eq!(answer.json()["error"]["code"], status, "{what:?}");
    assert!(answer.header("x-request-id").is_some(), "{what:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_without_another_pod_is_one_clear_error() {
    for is_stream in [false, true] {
        for Case { fault, alone: (status, cause), .. } in cases() {
            let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
            fleet.pods[0].script(Script::always(fault.clone()));
            let answer = post(gate.addr(), CHAT, "", &chat("sim", "hello", is_stream, 4)).await;
            assert_error(&answer, status, &fault);
            assert_eq!(attempts(&fleet), 1, "{fault:?}");
            assert_line(&gate.finish().await, cause, 1);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_with_another_pod_is_hidden_where_the_rules_allow() {
    for (number, Case { fault, alone: (status, _), is_retried }) in cases().into_iter().enumerate() {
        let is_stream = number % 2 == 0;
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
        fleet.pods[0].script(Script::always(fault.clone()));
        let body = |number| chat("sim", &format!("hello {number}"), is_stream, 4);
        let answer = until_hit(&gate, &fleet.pods[0], CHAT, body).await;
        if is_retried {
            assert_eq!(answer.status, 200, "{fault:?}: {}", answer.text());
            assert!(answer.is_whole, "{fault:?}");
        } else {
            assert_error(&answer, status, &fault);
        }
        let lines = gate.finish().await;
        let last = lines.last().unwrap();
        assert_eq!(last["attempts"], if is_retried { 2 } else { 1 }, "{fault:?}");
        assert_eq!(last["cause"] == "ok", is_retried, "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusing_pod_costs_no_request_and_all_refusing_say_no_endpoint() {
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
    fleet.pods[0].stop().await;
    for number in 0..24 {
        let answer = post(gate.addr(), CHAT, "", &chat("sim", &format!("one {number}"), number % 2 == 0, 4)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["cause"] == "ok"));
    let retried = lines.iter().filter(|line| line["attempts"] == 2).count();
    assert!((1..=3).contains(&retried), "{retried} requests met the dead pod; it is out after three");

    let (gate, fleet) = Gate::with_pods(3, SimConfig::default(), "").await;
    fleet.stop().await;
    let answer = post(gate.addr(), CHAT, "", &chat("sim", "nobody there", true, 4)).await;
    assert_error(&answer, 503, &Fault::Refuse);
    assert_eq!(answer.header("x-tidegate-reason"), Some("no_endpoint"));
    assert!(answer.header("retry-after").is_some());
    assert_line(&gate.finish().await, "connect_failed", 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_refusal_passes_unchanged_with_its_retry_after() {
    for (status, retry_after) in [(503, Some(7)), (429, Some(3)), (500, None)] {
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
        for pod in &fleet.pods {
            pod.script(Script::always(Fault::Status(status, retry_after)));
        }
        let body = chat("sim", "busy", false, 4);
        let direct = post(fleet.pods[0].addr(), CHAT, "", &body).await;
        let answer = post(gate.addr(), CHAT, "", &body).await;
        assert_eq!((answer.status, &answer.body), (status, &direct.body));
        assert_eq!(answer.header("retry-after"), direct.header("retry-after"));
        let attempts = if status == 500 { 1 } else { 2 };
        assert_line(&gate.finish().await, if status == 500 { "pod_error" } else { "pod_busy" }, attempts);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_pod_is_given_up_at_the_deadline_and_told_so() {
    for (fault, is_stream, cause) in [
        (Fault::Silent, true, "first_byte_timeout"),
        (Fault::Silent, false, "first_byte_timeout"),
        (Fault::SilenceAfterHead, true, "first_byte_timeout"),
        (Fault::SilenceAfterHead, false, "answer_timeout"),
    ] {
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), SHORT).await;
        for pod in &fleet.pods {
            pod.script(Script::always(fault.clone()));
        }
        let answer = post(gate.addr(), CHAT, "", &chat("sim", "anyone?", is_stream, 4)).await;
        assert_error(&answer, 504, &fault);
        let pod = fleet.pods.iter().find(|pod| !pod.served().is_empty()).unwrap();
        let log = tokio::time::timeout(
            PATIENCE,
            pod.wait_for(|log| log.iter().any(|one| one.ended == Some(Ended::ClientLeft))),
        );
        assert!(log.await.is_ok(), "{fault:?}: the pod's request was not aborted");
        assert_eq!(attempts(&fleet), 1, "{fault:?}: a request that timed out is not tried again");
        assert_line(&gate.finish().await, cause, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dying_answer_that_is_not_a_stream_is_cut_and_not_ended() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    fleet.pods[0].script(Script::always(Fault::Framing(Framing::ShortBody)));
    let mut line = Line::ask(gate.addr(), &request(CHAT, "", &chat("sim", "short", false, 4))).await;
    let answer = line.answer().await;
    assert_eq!((answer.status, answer.is_whole), (200, false), "{}", answer.text());
    assert!(line.is_closed().await);
    assert_line(&gate.finish().await, "stream_broken", 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interim_answers_are_passed_over() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    fleet.pods[0].script(Script::always(Fault::Interim(vec![100, 103, 102])));
    for is_stream in [false, true] {
        let mut line = Line::open(gate.addr()).await;
        for _ in 0..3 {
            line.send(&request(CHAT, "", &chat("sim", "soon", is_stream, 4))).await;
            let answer = line.answer().await;
            assert_eq!((answer.status, answer.is_whole), (200, true));
            assert!(answer.head.starts_with("HTTP/1.1 200"), "no interim head reaches the client: {}", answer.head);
        }
    }
    assert_eq!(fleet.pods[0].served().len(), 6);
    assert_eq!(gate.finish().await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_answer_passes_though_the_pod_never_reads_the_body() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let body = chat("sim", &"word ".repeat(1_250_000), true, 4);
    assert!(body.len() > 6_000_000);
    for (status, cause) in [(413, "pod_client_fault"), (401, "pod_client_fault"), (500, "pod_error")] {
        fleet.pods[0].script(Script::always(Fault::EarlyAnswer(status)));
        let answer = post(gate.addr(), CHAT, "", &body).await;
        assert_error(&answer, status, &Fault::EarlyAnswer(status));
        fleet.pods[0].script(Script::none());
        let small = post(gate.addr(), CHAT, "", &chat("sim", "small", true, 4)).await;
        assert_eq!((small.status, small.is_whole), (200, true), "{cause}");
    }
    let lines = gate.finish().await;
    let causes: Vec<_> = lines.iter().map(|line| line["cause"].as_str().unwrap()).collect();
    assert_eq!(causes, ["pod_client_fault", "ok", "pod_client_fault", "ok", "pod_error", "ok"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_accepted_body_replays_to_the_byte() {
    let config = SimConfig { log_body_bytes_max: 8 << 20, max_model_len: 8 << 20, ..SimConfig::default() };
    for kilobytes in [1, 63, 65, 1_500] {
        let (gate, fleet) = Gate::with_pods(2, config.clone(), "").await;
        fleet.pods[0].script(Script::always(Fault::CutAtByte(0, Cut::Fin)));
        let body = |number| chat("sim", &format!("{number} {}", "text ".repeat(kilobytes * 205)), false, 2);
        let answer = until_hit(&gate, &fleet.pods[0], CHAT, body).await;
        assert_eq!(answer.status, 200);
        let (first, second) = (fleet.pods[0].served(), fleet.pods[1].served());
        assert_eq!(first[0].body, second.last().unwrap().body, "{kilobytes} KB");
        assert!(first[0].body.as_ref().unwrap().len() > kilobytes * 1_024);
        gate.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pooled_connection_that_dies_is_never_a_clients_error() {
    for (keep_alive, script) in [
        (Duration::ZERO, Script::none()),
        (Duration::from_millis(1), Script::none()),
        (Duration::from_secs(5), Script::always(Fault::CloseAfter)),
    ] {
        let (gate, fleet) = Gate::with_pods(1, SimConfig { keep_alive, ..SimConfig::default() }, "").await;
        fleet.pods[0].script(script);
        for number in 0..150 {
            let answer = post(gate.addr(), CHAT, "", &chat("sim", "again", number % 3 == 0, 2)).await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{keep_alive:?}: {}", answer.text());
        }
        let lines = gate.finish().await;
        assert!(lines.len() == 150 && lines.iter().all(|line| line["cause"] == "ok" && line["attempts"] == 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_waits_for_100_continue_is_invited() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let body = chat("sim", "may I?", true, 4);
    let whole = request(CHAT, "Expect: 100-continue\r\n", &body);
    let head = &whole[..whole.len() - body.len()];
    let mut line = Line::ask(gate.addr(), head).await;
    line.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    line.send(body.as_bytes()).await;
    let answer = line.answer().await;
    assert_eq!((answer.status, answer.is_whole), (200, true));
    assert_eq!(fleet.pods[0].served()[0].header("expect"), None, "the gate has the body already");
    let refused = Line::ask(gate.addr(), &request("/v1/nope", "Expect: 100-continue\r\n", "")).await.answer().await;
    assert_eq!(refused.status, 404);
    assert!(refused.head.starts_with("HTTP/1.1 404"), "nobody invites a body that is not wanted");
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_fail_or_lie_harm_no_request() {
    use MetricsFault::{Error, Garbage, Hang, Huge, Idle, NotANumber};
    for fault in [Hang, Garbage, Error, Huge, Idle, NotANumber] {
        let fleet = Fleet::start(2, SimConfig::default()).await.unwrap();
        fleet.pods[0].script(Script::always(Fault::Metrics(fault)));
        let gate = Gate::start(&fleet.addrs(), "telemetry:\n  timeout_ms: 100\n").await;
        for number in 0..30 {
            let body = chat("sim", &format!("{fault:?} {number}"), number % 2 == 0, 4);
            let answer = post(gate.addr(), CHAT, "", &body).await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{fault:?}: {}", answer.text());
        }
        let lines = gate.finish().await;
        assert!(lines.iter().all(|line| line["cause"] == "ok" && line["attempts"] == 1), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_always_says_idle_gets_no_more_than_its_share_and_a_half() {
    let (gate, fleet) = Gate::with_pods(4, SimConfig::default(), "flow: {queue: {enabled: false}}").await;
    for (number, pod) in fleet.pods.iter().enumerate() {
        let slow = Script::always(Fault::Silent);
        pod.script(if number == 0 { slow.rule(Rule::new(Fault::Metrics(MetricsFault::Idle))) } else { slow });
    }
    let mut lines = Vec::new();
    for number in 0..100 {
        let (_, bytes) = named_request(CHAT, &chat("sim", &format!("{number} held"), number % 2 == 0, 4));
        lines.push(Line::ask(gate.addr(), &bytes).await);
    }
    gate.eventually("all are at pods", || attempts(&fleet) == 100).await;
    let share = fleet.pods[0].served().len();
    assert!(share <= 37, "the liar got {share} of 100 requests among four pods");
    for line in lines {
        line.leave(Leave::Close).await;
    }
    assert_eq!(gate.finish().await.len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_error_event_before_the_first_token_is_tried_elsewhere() {
    for (path, body) in [
        (CHAT, chat("sim", "first", true, 4)),
        ("/v1/completions", r#"{"model":"sim","prompt":"first","stream":true,"max_tokens":4}"#.to_owned()),
    ] {
        let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
        fleet.pods[0].script(Script::always(Fault::ErrorEvent(0)));
        let answer = until_hit(&gate, &fleet.pods[0], path, |_| body.clone()).await;
        assert_eq!((answer.status, answer.is_whole), (200, true));
        let seen = events(&answer.body);
        assert_eq!(seen.last().map(String::as_str), Some("[DONE]"));
        assert!(!answer.text().contains("\"error\":{"), "{}", answer.text());
        fleet.pods[1].script(Script::always(Fault::ErrorEvent(0)));
        let (id, bytes) = named_request(path, &body);
        let passed = Line::ask(gate.addr(), &bytes).await.answer().await;
        let direct = post(fleet.pods[1].addr(), path, "", &body).await;
        assert_eq!((passed.status, &passed.body), (200, &direct.body), "the pods' own error event passes unchanged");
        for pod in &fleet.pods {
            arrival(pod, &id, |one| one.ended == Some(Ended::Complete)).await;
        }
        let lines = gate.finish().await;
        assert_eq!(
            (lines.last().unwrap()["cause"].as_str(), lines.last().unwrap()["attempts"].as_u64()),
            (Some("pod_error_event"), Some(2))
        );
    }
}

/// The gate as a process of its own that may open few files; gives its address.
struct Cramped(std::process::Child);

impl Cramped {
    fn start(pod: &str, files: u32) -> (Self, std::net::SocketAddr) {
        use std::io::BufRead as _;
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        let flags =
            ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "1", "--access-log", "off"];
        let mut child = std::process::Command::new("sh")
            .args(["-c", &script, env!("CARGO_BIN_EXE_tidegate")])
            .args(flags)
            .args(["--pod", pod])
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = std::io::BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("serving")).unwrap();
        let addr = line.split("addr=").nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap();
        // Read on, or the gate would stop at a full pipe.
        std::thread::spawn(move || lines.for_each(drop));
        (Self(child), addr)
    }
}

impl Drop for Cramped {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gate_out_of_descriptors_says_so_and_recovers_alone() {
    let pod = tidegate::sim::http::SimPod::start(SimConfig::default()).await.unwrap();
    let (_gate, addr) = Cramped::start(&pod.url(), 80);
    let good = |number: u32| chat("sim", &format!("good {number}"), true, 4);
    let served = tokio::time::timeout(PATIENCE, async { while post(addr, CHAT, "", &good(0)).await.status != 200 {} });
    assert!(served.await.is_ok(), "the gate never served");
    pod.script(Script::from(Rule::new(Fault::SilenceAtEvent(3)).marker("held")));
    let mut held = Vec::new();
    let refused = loop {
        let body = chat("sim", &format!("held {}", held.len()), true, 4);
        let mut line = Line::ask(addr, &request(CHAT, "", &body)).await;
        // Either it streams, or the gate has no socket for the pod, or none to accept with: then it answers later.
        match tokio::time::timeout(Duration::from_secs(2), line.until("\r\n\r\n")).await {
            Ok(()) if line.is_good() => held.push(line),
            Ok(()) => break Some(line.answer().await),
            Err(_) => break None,
        }
        assert!(held.len() < 80, "80 descriptors hold more than 80 streams");
    };
    if let Some(refused) = refused {
        assert_eq!((refused.status, refused.header("x-tidegate-reason")), (503, Some("exhausted")));
        assert!(refused.header("retry-after").is_some());
    }
    assert!(held.len() > 5, "{} streams", held.len());
    drop(held);
    let again = tokio::time::timeout(PATIENCE, async { while post(addr, CHAT, "", &good(1)).await.status != 200 {} });
    assert!(again.await.is_ok(), "the gate did not recover");
}
