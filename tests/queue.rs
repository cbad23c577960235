//! Who waits for room on a pod: engines keep nobody waiting, nobody is lost, and who leaves is never sent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    missing_docs
)]
mod kit;

use std::net::SocketAddr;
use std::time::Duration;

use kit::line::Line;
use kit::wire::connect;
use kit::{Answer, Gate, chat, post, request};
use tidegate::base::Rng;
use tidegate::sim::engine::EngineSettings;
use tidegate::sim::http::{Fault, Fleet, Rule, Script, SimConfig};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;

const CHAT: &str = "/v1/chat/completions";

/// Pods that run two sequences at once, at the pace of a GPU.
async fn narrow(pods: usize, yaml: &str) -> (Gate, Fleet) {
    let engine = EngineSettings { sequences_max: 2, ..EngineSettings::default() };
    Gate::with_pods(pods, SimConfig { engine, speed: 1.0, ..SimConfig::default() }, yaml).await
}

fn running(fleet: &Fleet) -> u64 {
    fleet.pods.iter().map(tidegate::sim::http::SimPod::running).sum()
}

/// So many clients at once, each with a prompt of its own.
fn ask_all(gate: SocketAddr, count: u32, tokens: u32) -> Vec<JoinHandle<Answer>> {
    let ask =
        move |number: u32| async move { post(gate, CHAT, "", &chat("sim", &format!("{number}"), true, tokens)).await };
    (0..count).map(|number| tokio::spawn(ask(number))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_keep_nobody_waiting_and_nobody_is_lost() {
    let (gate, fleet) = narrow(2, "").await;
    let addr = gate.addr();
    let asked = ask_all(addr, 24, 20);
    let mut most = 0;
    while !asked.iter().all(JoinHandle::is_finished) {
        most = most.max(running(&fleet));
        tokio::task::yield_now().await;
    }
    let mut waited = 0;
    for one in asked {
        let answer = one.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
        waited += u64::from(answer.header("x-tidegate-queue-ms").is_some());
    }
    // Two run, two wait at most, and one more may be on its way.
    assert!(most <= 2 * (2 + 2 + 1), "{most} at once on two pods");
    assert!(waited >= 10, "{waited} waited");
    assert_eq!(gate.metric("tidegate_queue_total{outcome=\"waited\"}").await as u64, waited);
    assert_eq!(
        gate.metric("tidegate_queue_requests{model=\"sim\",role=\"decode\",class=\"standard\"}").await as u64,
        0
    );
    let lines = gate.finish().await;
    assert_eq!(lines.iter().filter(|line| line["queue_ms"].is_number()).count() as u64, waited);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_waiting_is_never_sent() {
    let (gate, fleet) = narrow(1, "").await;
    let series = "tidegate_queue_requests{model=\"sim\",role=\"decode\",class=\"standard\"}";
    let waiting = async |what: &str, is_so: &dyn Fn(usize) -> bool| {
        let begun = tokio::time::Instant::now();
        while !is_so(gate.metric(series).await as usize) {
            assert!(
                begun.elapsed() < kit::PATIENCE,
                "{what}: {} {}",
                fleet.pods[0].served().len(),
                gate.metric(series).await
            );
        }
    };
    let mut lines = Vec::new();
    for number in 0..12 {
        let mut line = connect(gate.addr()).await;
        let body = chat("sim", &format!("number {number} of them"), true, 2_000);
        line.write_all(&request(CHAT, "", &body)).await.unwrap();
        waiting("it came", &|waiting| fleet.pods[0].served().len() + waiting > number).await;
        lines.push(line);
    }
    assert!(gate.admin("/queue").await.contains("\"class\":\"standard\",\"requests\":"), "live");
    // Two run, and no more than three are sent ahead of their turn: the last six wait.
    lines.truncate(6);
    waiting("they left", &|waiting| fleet.pods[0].served().len() + waiting <= 6).await;
    drop(lines);
    waiting("nobody waits any more", &|waiting| waiting == 0).await;
    gate.eventually("all gone", || running(&fleet) == 0).await;
    for sent in fleet.pods[0].served() {
        let body = String::from_utf8_lossy(&sent.body.unwrap()).into_owned();
        assert!((0..6).any(|number| body.contains(&format!("number {number} of"))), "{body}");
    }
    gate.finish().await;
}

/// Whoever is called and leaves in the same moment gives his turn back, whichever was first.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_as_his_turn_comes_gives_it_back() {
    const SEED: u64 = 7;
    println!("seed {SEED}");
    let engine = EngineSettings { sequences_max: 2, ..EngineSettings::default() };
    let (gate, fleet) = Gate::with_pods(1, SimConfig { engine, speed: 50.0, ..SimConfig::default() }, "").await;
    let addr = gate.addr();
    for round in 0..8 {
        let stays = ask_all(addr, 8, 4);
        let leaves = (0..40_u64).map(|number| {
            // Time in which turns come and go, told apart by what the scheduler does meanwhile.
            let steps = Rng::new(SEED + 100 * round + number).below(3_000);
            tokio::spawn(async move {
                let mut line = connect(addr).await;
                let body = chat("sim", &format!("round {round}, one of {number}"), true, 4);
                line.write_all(&request(CHAT, "", &body)).await.unwrap();
                for _ in 0..steps {
                    tokio::task::yield_now().await;
                }
            })
        });
        for one in leaves.collect::<Vec<_>>() {
            one.await.unwrap();
        }
        for one in stays {
            let answer = one.await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    assert!(gate.metric("tidegate_queue_total{outcome=\"left\"}").await > 0.0, "some left while they waited");
    gate.eventually("all gone", || running(&fleet) == 0).await;
    // Had one turn been lost, there would be room for nobody.
    for one in ask_all(addr, 4, 4) {
        assert_eq!(one.await.unwrap().status, 200);
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_are_refused_with_the_time_to_come_back() {
    let (gate, _fleet) = narrow(1, "flow: {classes: {standard: {requests_max: 3}}}").await;
    let addr = gate.addr();
    let asked = ask_all(addr, 16, 60);
    let (mut good, mut refused) = (0, 0);
    for one in asked {
        let answer = one.await.unwrap();
        if answer.status == 200 {
            good += 1;
            continue;
        }
        assert_eq!((answer.status, answer.header("x-tidegate-reason")), (429, Some("queue_full")));
        let seconds: u64 = answer.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=600).contains(&seconds));
        refused += 1;
    }
    assert!(good >= 5 && refused >= 6, "{good} {refused}");
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_would_come_too_late_is_refused_at_once() {
    let (gate, _fleet) = narrow(1, "flow: {slo: {ttft_ms: 400}}").await;
    let addr = gate.addr();
    let ask = |number: u32| async move {
        let begun = tokio::time::Instant::now();
        let answer = post(addr, CHAT, "", &chat("sim", &format!("{number}"), true, 100)).await;
        (answer, begun.elapsed())
    };
    let asked: Vec<_> = (0..40).map(|number| tokio::spawn(ask(number))).collect();
    let mut refused = Vec::new();
    for one in asked {
        let (answer, took) = one.await.unwrap();
        if answer.status == 429 {
            assert_eq!(answer.header("x-tidegate-reason"), Some("predicted_late"), "{}", answer.head);
            refused.push(took);
        } else {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    }
    assert!(!refused.is_empty());
    assert!(refused.iter().all(|took| *took < Duration::from_secs(10)), "{refused:?}");
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn switched_off_all_go_at_once() {
    let (gate, fleet) = narrow(1, "flow: {queue: {enabled: false}}").await;
    let addr = gate.addr();
    let asked = ask_all(addr, 12, 60);
    gate.eventually("all at the pod", || running(&fleet) == 12).await;
    for one in asked {
        assert_eq!(one.await.unwrap().status, 200);
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_class_does_not_wait_behind_the_others_and_they_still_get_their_share() {
    let (gate, _fleet) =
        narrow(1, "flow: {tenants: {default: {class: standard, classes: [interactive, standard, batch]}}}").await;
    let addr = gate.addr();
    let ask = |number: u32| async move {
        let class = ["batch", "standard", "interactive"][number as usize % 3];
        let fields = format!("x-tidegate-class: {class}\r\n");
        let answer = post(addr, CHAT, &fields, &chat("sim", &format!("{number}"), true, 30)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let ms: u64 = answer.header("x-tidegate-queue-ms").map_or(0, |ms| ms.parse().unwrap());
        (class, ms)
    };
    let asked: Vec<_> = (0..36).map(|number| tokio::spawn(ask(number))).collect();
    let mut waits = std::collections::BTreeMap::<&str, Vec<u64>>::new();
    for one in asked {
        let (class, ms) = one.await.unwrap();
        waits.entry(class).or_default().push(ms);
    }
    let mean = |class: &str| waits[class].iter().sum::<u64>() / waits[class].len() as u64;
    let (first, second, last) = (mean("interactive"), mean("standard"), mean("batch"));
    assert!(first * 3 < second * 2 && second < last, "{waits:?}");
    for class in ["interactive", "standard", "batch"] {
        assert!(gate.metric(&format!("tidegate_queue_wait_seconds_count{{class=\"{class}\"}}")).await > 0.0);
    }
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_class_gives_way_before_its_first_token_and_is_served_later() {
    let classes = "{default: {class: standard, classes: [interactive, standard, batch]}}";
    let (gate, fleet) = narrow(1, &format!("flow: {{tenants: {classes}}}")).await;
    let addr = gate.addr();
    let ask = |fields: &'static str, prompt: &'static str, tokens| {
        tokio::spawn(async move { post(addr, CHAT, fields, &chat("sim", prompt, true, tokens)).await })
    };
    let (batch, first) =
        ("x-tidegate-class: batch\r\n", "x-tidegate-class: interactive\r\nx-tidegate-ttft-slo-ms: 400\r\n");
    // Two run for long, two wait in the engine: nobody else is sent there.
    let mut running = Vec::new();
    for prompt in ["a", "b"] {
        let mut line = Line::ask(addr, &request(CHAT, batch, &chat("sim", prompt, true, 300))).await;
        line.until("\"content\":\"").await;
        running.push(line);
    }
    let mut asked = Vec::new();
    for (number, prompt) in ["c", "d"].into_iter().enumerate() {
        asked.push(ask(batch, prompt, 5));
        gate.eventually("it is there", || fleet.pods[0].served().len() == number + 3).await;
    }
    let urgent = ask(first, "urgent", 5);
    gate.metric_reaches("tidegate_queue_total{outcome=\"recalled\"}", 1.0).await;
    for one in asked.into_iter().chain([urgent]) {
        let answer = one.await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    drop(running);
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["attempts"] == 1), "being taken back is no attempt: {lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_of_no_use_any_more_is_taken_off_its_pod() {
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), "").await;
    let addr = gate.addr();
    let held = |fault, marker: &'static str| Rule::new(fault).marker(marker);
    fleet.pods[0].script(
        Script::from(held(Fault::Silent, "silent"))
            .rule(held(Fault::SilenceAtEvent(0), "hesitant"))
            .rule(held(Fault::SlowTokens(Duration::from_millis(100)), "slow")),
    );
    // More of them than a pod may fail in a row.
    for number in 0..12 {
        let (prompt, is_stream) = if number % 2 == 0 { ("silent", false) } else { ("hesitant", true) };
        let answer = post(
            addr,
            CHAT,
            "x-tidegate-deadline-ms: 40\r\n",
            &chat("sim", &format!("{prompt} {number}"), is_stream, 3),
        )
        .await;
        assert_eq!((answer.status, answer.header("x-tidegate-reason")), (504, Some("deadline_passed")), "{prompt}");
    }
    gate.eventually("nothing is left there", || running(&fleet) == 0).await;
    let line = post(addr, CHAT, "x-tidegate-deadline-ms: 2000\r\n", &chat("sim", "slow", true, 25)).await;
    assert_eq!(line.status, 200, "the pod is as good as before");
    assert!(line.is_whole && line.text().contains("[DONE]"), "what has begun in time is not cut");
    let lines = gate.finish().await;
    assert_eq!(lines.iter().filter(|line| line["cause"] == "deadline_passed").count(), 12);
}
