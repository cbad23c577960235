//! Pods that die under load, fleets that fail as a whole, requests that kill pods, pods that come back empty, and
//! conversations that stay where their prefix is.
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

use std::sync::Arc;
use std::time::{Duration, Instant};

use kit::line::{Line, arrival, attempts, named_request};
use kit::{Answer, Gate, chat, events, post, request};
use tidegate::runtime::now;
use tidegate::sim::content::expected;
use tidegate::sim::http::{Ended, Fault, Fleet, Framing, Rule, Script, SimConfig};
use tokio::task::JoinSet;

const CHAT: &str = "/v1/chat/completions";
/// Telemetry that is soon up to date.
const QUICK: &str = "telemetry:\n  interval_ms: 50\n";
const TRUSTED: &str = "trust:\n  callers: [\"127.0.0.0/8\"]\n";

/// Sends `count` requests at once, streamed as `is_stream` says. Gives body, whether streamed, and answer of each.
fn at_once(
    gate: &Gate,
    count: usize,
    is_stream: fn(usize) -> bool,
    max_tokens: u32,
) -> JoinSet<(String, bool, Answer)> {
    let mut tasks = JoinSet::new();
    for number in 0..count {
        let (addr, is_stream) = (gate.addr(), is_stream(number));
        let body = chat("sim", &format!("question {number}"), is_stream, max_tokens);
        tasks.spawn(async move {
            let answer = post(addr, CHAT, "", &body).await;
            (body, is_stream, answer)
        });
    }
    tasks
}

fn text_of(answer: &Answer, is_stream: bool) -> String {
    if !is_stream {
        return answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    }
    let pieces =
        events(&answer.body).into_iter().filter_map(|event| serde_json::from_str::<serde_json::Value>(&event).ok());
    pieces.filter_map(|piece| piece["choices"][0]["delta"]["content"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_of_four_pods_loses_no_uncommitted_request() {
    // A queue would soon keep them from the pod that is silent.
    let (gate, fleet) = Gate::with_pods(4, SimConfig::default(), "flow: {queue: {enabled: false}}").await;
    for pod in &fleet.pods {
        pod.script(Script::always(Fault::SlowTokens(Duration::from_millis(20))));
    }
    // What reaches the first pod stays there: plain requests unanswered, some streams before their first token, others in
    // their midst.
    let held = |fault, marker: &'static str| Rule::new(fault).marker(marker);
    let script =
        Script::from(held(Fault::Silent, "\"stream\":false")).rule(held(Fault::SilenceAtEvent(5), "\"stream\":true"));
    let before_the_first = |marker| held(Fault::SilenceAtEvent(0), marker);
    fleet.pods[0].script(script.rule(before_the_first("4\"")).rule(before_the_first("8\"")));
    let mut tasks = at_once(&gate, 200, |number| number % 2 == 0, 40);
    let table = gate.app().gate().table.fleet();
    let victim = table.pods.iter().find(|pod| pod.spec.addr == fleet.pods[0].addr()).unwrap();
    let is_full = || {
        let load = victim.load.now();
        attempts(&fleet) >= 200 && load.prefilling >= 2 && load.requests - load.prefilling >= 4
    };
    gate.eventually("all are at pods, and the victim has some in every phase", is_full).await;
    fleet.pods[0].stop().await;
    let (mut good, mut broken) = (0, 0);
    while let Some(done) = tasks.join_next().await {
        let (body, is_stream, answer) = done.unwrap();
        assert_eq!((answer.status, answer.is_whole), (200, true), "streamed: {is_stream}: {}", answer.text());
        let wanted = expected(CHAT, body.as_bytes(), fleet.pods[1].config()).unwrap();
        let (events, text) = (events(&answer.body), text_of(&answer, is_stream));
        if is_stream && answer.text().contains("\"error\":{") {
            assert!(events.last().unwrap().contains("\"error\":{") && !answer.text().contains("[DONE]"));
            assert!(wanted.texts[0].starts_with(&text));
            broken += 1;
        } else {
            assert_eq!(text, wanted.texts[0]);
            good += 1;
        }
    }
    assert!(broken >= 1, "the pod that died had streams");
    let lines = gate.finish().await;
    assert_eq!(lines.len(), 200);
    let of = |cause: &str| lines.iter().filter(|line| line["cause"] == cause).count();
    assert_eq!((of("ok"), of("stream_broken")), (good, broken));
    let retried = lines.iter().filter(|line| line["attempts"] == 2).count();
    assert!(retried >= 1 && lines.iter().all(|line| line["attempts"].as_u64() <= Some(2)), "{retried} retried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_fails_as_a_whole_is_not_hit_twice_as_hard() {
    let every_second: fn(usize) -> bool = |number| number % 2 == 0;
    // With and without a queue, in which they wait for pods that ask to be spared.
    let (all_go, short) = ("flow: {queue: {enabled: false}}", "flow: {classes: {standard: {wait_max_s: 2}}}");
    for (fault, is_stream, yaml) in [
        (Fault::Refuse, every_second, all_go),
        (Fault::Status(503, None), every_second, all_go),
        (Fault::Status(429, Some(1)), every_second, all_go),
        (Fault::ErrorEvent(0), |_| true, all_go),
        (Fault::Refuse, every_second, short),
        (Fault::Status(503, None), every_second, short),
    ] {
        let (gate, fleet) = Gate::with_pods(4, SimConfig::default(), yaml).await;
        for pod in &fleet.pods {
            pod.script(Script::always(fault.clone()));
        }
        let mut tasks = at_once(&gate, 150, is_stream, 4);
        while let Some(done) = tasks.join_next().await {
            let (_, is_stream, answer) = done.unwrap();
            assert!(answer.is_whole, "{fault:?}");
            assert!(answer.status >= 429 || fault == Fault::ErrorEvent(0), "{fault:?} {is_stream}: {}", answer.text());
        }
        let made = attempts(&fleet);
        assert!(made as f64 <= 1.10 * 150.0 + 3.0, "{fault:?}: {made} attempts for 150 requests");
        let lines = gate.finish().await;
        let told: u64 = lines.iter().map(|line| line["attempts"].as_u64().unwrap()).sum();
        assert_eq!((lines.len(), told), (150, made as u64), "{fault:?}: the access lines tell every attempt");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_is_gone_is_told_soon_and_tried_within_the_budget() {
    let (gate, fleet) = Gate::with_pods(4, SimConfig::default(), "").await;
    fleet.stop().await;
    let began = Instant::now();
    let first = post(gate.addr(), CHAT, "", &chat("sim", "anyone?", false, 4)).await;
    let took = began.elapsed();
    assert_eq!((first.status, first.header("x-tidegate-reason")), (503, Some("no_endpoint")));
    assert!(took < Duration::from_secs(1), "{took:?}");
    let mut tasks = at_once(&gate, 149, |number| number % 2 == 0, 4);
    while let Some(done) = tasks.join_next().await {
        let (_, _, answer) = done.unwrap();
        assert_eq!(answer.status, 503, "{}", answer.text());
        assert!(answer.header("retry-after").is_some() && answer.is_whole);
    }
    let lines = gate.finish().await;
    let made: u64 = lines.iter().map(|line| line["attempts"].as_u64().unwrap()).sum();
    assert!(lines.len() == 150 && made as f64 <= 1.10 * 150.0 + 3.0, "{made} attempts for 150 requests");
}

const RESTARTS: &str = "tidegate_pod_events_total{event=\"restarted\"}";

/// Serves some requests on every pod and waits until telemetry has seen that: counters that fall tell a restart at once, and
/// the gate has pooled connections.
async fn warm(gate: &Gate) {
    for number in 0..60 {
        let answer = post(gate.addr(), CHAT, "", &chat("sim", &format!("warm {number}"), false, 8)).await;
        assert_eq!(answer.status, 200);
    }
    scraped(gate).await;
}

/// Waits until every pod was scraped again.
async fn scraped(gate: &Gate) {
    let from = now();
    let is_new =
        |pod: &Arc<tidegate::pods::Pod>| pod.reading.load().as_ref().as_ref().is_some_and(|one| one.taken > from);
    gate.eventually("scraped since", || gate.app().gate().table.fleet().pods.iter().all(is_new)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_kills_pods_is_quarantined_after_two() {
    for (is_warm, is_revived) in [(false, false), (true, false), (true, true)] {
        let (gate, fleet) = Gate::with_pods(5, SimConfig::default(), QUICK).await;
        if is_warm {
            warm(&gate).await;
        }
        for pod in &fleet.pods {
            pod.script(Script::from(Rule::new(Fault::Crash).marker("deadly")));
        }
        let deadly = chat("sim", "deadly question", false, 4);
        let first = post(gate.addr(), CHAT, "", &deadly).await;
        assert!([502, 503].contains(&first.status), "{}", first.text());
        let dead: Vec<_> = fleet.pods.iter().filter(|pod| !pod.is_up()).collect();
        assert_eq!(dead.len(), 2, "two attempts, two deaths");
        if is_revived {
            for pod in &dead {
                pod.restart().await.unwrap();
            }
            gate.metric_reaches(RESTARTS, 2.0).await;
        } else {
            let failed = gate.metric("tidegate_scrapes_total{result=\"failed\"}").await;
            gate.metric_reaches("tidegate_scrapes_total{result=\"failed\"}", failed + 8.0).await;
        }
        let again = post(gate.addr(), CHAT, "", &deadly).await;
        let reason = again.header("x-tidegate-reason");
        assert_eq!((again.status, reason), (500, Some("request_poisoned")), "warm {is_warm}, revived {is_revived}");
        assert_eq!(fleet.pods.iter().filter(|pod| !pod.is_up()).count(), if is_revived { 0 } else { 2 });
        for number in 0..20 {
            let other =
                post(gate.addr(), CHAT, "", &chat("sim", &format!("harmless {number}"), number % 2 == 0, 4)).await;
            assert!(other.status == 200 || !is_revived && other.status == 503, "{}", other.text());
        }
        let lines = gate.finish().await;
        let poisoned: Vec<_> = lines.iter().filter(|line| line["cause"] == "poisoned").collect();
        assert!(poisoned.len() == 1 && poisoned[0]["attempts"] == 0, "{poisoned:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_served_well_is_no_killer() {
    let (gate, fleet) = Gate::with_pods(3, SimConfig::default(), QUICK).await;
    warm(&gate).await;
    // The same probe over and over, as health checks send it; twice the pod under it is killed for other reasons.
    for round in 0..2 {
        let slow = || Script::from(Rule::new(Fault::SlowHead(Duration::from_millis(300))).marker("ping"));
        fleet.pods.iter().for_each(|pod| pod.script(slow()));
        let (id, bytes) = named_request(CHAT, &chat("sim", "ping", false, 4));
        let mut line = Line::ask(gate.addr(), &bytes).await;
        let has_it = |pod: &&_| is_at(pod, &id);
        gate.eventually("at a pod", || fleet.pods.iter().any(|pod| has_it(&pod))).await;
        let victim = fleet.pods.iter().find(has_it).unwrap();
        arrival(victim, &id, |one| one.body.is_some()).await;
        victim.stop().await;
        let answer = line.answer().await;
        assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
        victim.restart().await.unwrap();
        gate.metric_reaches(RESTARTS, f64::from(round) + 1.0).await;
        warm(&gate).await;
    }
    let again = post(gate.addr(), CHAT, "", &chat("sim", "ping", false, 4)).await;
    assert_eq!(again.status, 200, "{}", again.text());
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["cause"] == "ok"), "{lines:?}");
    assert_eq!(lines.iter().filter(|line| line["attempts"] == 2).count(), 2);
}

fn is_at(pod: &tidegate::sim::http::SimPod, id: &str) -> bool {
    pod.served().iter().any(|one| one.header("x-request-id") == Some(id))
}

/// Tokens the gate thinks the pods hold of this prompt: the largest hit in the decision.
async fn hit(gate: &Gate, body: &str) -> u64 {
    let answer = post(gate.addr(), CHAT, "x-tidegate-explain: 1\r\n", body).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let shown: serde_json::Value = serde_json::from_str(answer.header("x-tidegate-decision").unwrap()).unwrap();
    shown["rows"].as_array().unwrap().iter().map(|row| row["hit_tokens"].as_u64().unwrap()).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_restarts_at_its_address_is_known_to_be_empty() {
    let yaml = format!("{TRUSTED}{QUICK}");
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), &yaml).await;
    let body = chat("sim", &"a long document. ".repeat(400), false, 4);
    assert_eq!(hit(&gate, &body).await, 0);
    assert!(hit(&gate, &body).await > 500, "the second time most of it is a hit");
    scraped(&gate).await;
    fleet.pods[0].restart().await.unwrap();
    gate.metric_reaches(RESTARTS, 1.0).await;
    assert_eq!(hit(&gate, &body).await, 0, "the pod's cache is gone and the gate knows");
    assert!(hit(&gate, &body).await > 500);
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["cause"] == "ok"));
}

/// A conversation of several turns; gives the pods that served it, by turn.
async fn converse(gate: &Gate, fleet: &Fleet, topic: usize) -> Vec<usize> {
    let opening = format!("conversation {topic} begins. {}", format!("fact {topic}; ").repeat(200));
    let mut messages = vec![serde_json::json!({"role": "user", "content": opening})];
    let mut places = Vec::new();
    for turn in 0..5 {
        let body = serde_json::json!({"model": "sim", "max_tokens": 16, "messages": messages}).to_string();
        let (id, bytes) = named_request(CHAT, &body);
        let answer = Line::ask(gate.addr(), &bytes).await.answer().await;
        assert_eq!(answer.status, 200);
        let said = answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
        messages.push(serde_json::json!({"role": "assistant", "content": said}));
        messages.push(serde_json::json!({"role": "user", "content": format!("and then, {turn}?")}));
        places.push(fleet.pods.iter().position(|pod| is_at(pod, &id)).unwrap());
    }
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conversations_stay_with_their_prefix_and_spread_over_pods() {
    let (gate, fleet) = Gate::with_pods(3, SimConfig::default(), "").await;
    let mut homes = Vec::new();
    for topic in 0..12 {
        let places = converse(&gate, &fleet, topic).await;
        assert!(places.iter().all(|place| *place == places[0]), "conversation {topic} moved: {places:?}");
        homes.push(places[0]);
    }
    homes.sort_unstable();
    homes.dedup();
    assert!(homes.len() >= 2, "twelve conversations live on one pod of three");
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["cause"] == "ok" && line["attempts"] == 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_comes_back_serves_again() {
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "pods:\n  health:\n    ejection_s: 0.2\n").await;
    for round in 0..3 {
        fleet.pods[0].stop().await;
        for number in 0..20 {
            let body = chat("sim", &format!("down {round} {number}"), number % 2 == 0, 4);
            assert_eq!(post(gate.addr(), CHAT, "", &body).await.status, 200);
        }
        fleet.pods[0].restart().await.unwrap();
        let answer = kit::line::until_hit(&gate, &fleet.pods[0], CHAT, |number| {
            chat("sim", &format!("back {round} {number}"), false, 4)
        })
        .await;
        assert_eq!(answer.status, 200);
    }
    let ended = |log: Vec<tidegate::sim::http::Arrival>| log.iter().all(|one| one.ended == Some(Ended::Complete));
    assert!(ended(fleet.pods[0].served()));
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["cause"] == "ok"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_survives_the_faults_of_pods() {
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "").await;
    let mut line = Line::open(gate.addr()).await;
    for (number, fault) in
        [Fault::Status(500, None), Fault::Refuse, Fault::Status(503, Some(1))].into_iter().enumerate()
    {
        for pod in &fleet.pods {
            pod.script(Script::always(fault.clone()));
        }
        line.send(&request(CHAT, "", &chat("sim", "bad", false, 4))).await;
        assert!(line.answer().await.status >= 500, "{fault:?}");
        fleet.pods.iter().for_each(|pod| pod.script(Script::none()));
        line.send(&request(CHAT, "", &chat("sim", &format!("good {number}"), number % 2 == 0, 4))).await;
        assert_eq!(line.answer().await.status, 200, "{fault:?}");
    }
    assert_eq!(gate.finish().await.len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn attempts_share_one_deadline() {
    let yaml = "limits:\n  timeouts:\n    first_token_s: 2\n";
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), yaml).await;
    for pod in &fleet.pods {
        // The first attempt fails late, the second never answers.
        let late = Rule::new(Fault::SlowHead(Duration::from_millis(1_700))).header("x-late", "1");
        pod.script(Script::from(late).rule(Rule::new(Fault::Framing(Framing::Garbage))));
    }
    let began = Instant::now();
    let pending = tokio::spawn(post_late(gate.addr()));
    gate.eventually("at a pod", || attempts(&fleet) == 1).await;
    let other = fleet.pods.iter().find(|pod| pod.served().is_empty()).unwrap();
    other.script(Script::always(Fault::Silent));
    let answer = pending.await.unwrap();
    let took = began.elapsed();
    assert_eq!(answer.status, 504, "{}", answer.text());
    assert_eq!(attempts(&fleet), 2);
    assert!(took < Duration::from_millis(3_400), "two attempts within one deadline of 2 s took {took:?}");
    gate.finish().await;
}

async fn post_late(addr: std::net::SocketAddr) -> Answer {
    post(addr, CHAT, "x-late: 1\r\n", &chat("sim", "late", true, 4)).await
}
