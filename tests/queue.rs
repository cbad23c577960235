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

use std::time::Duration;

use kit::wire::connect;
use kit::{Gate, chat, post, request};
use tidegate::sim::engine::EngineSettings;
use tidegate::sim::http::{Fleet, SimConfig};
use tokio::io::AsyncWriteExt;

const CHAT: &str = "/v1/chat/completions";

/// Pods that run two sequences at once, at the pace of a GPU.
async fn narrow(pods: usize, yaml: &str) -> (Gate, Fleet) {
    let engine = EngineSettings { sequences_max: 2, ..EngineSettings::default() };
    Gate::with_pods(pods, SimConfig { engine, speed: 1.0, ..SimConfig::default() }, yaml).await
}

fn running(fleet: &Fleet) -> u64 {
    fleet.pods.iter().map(tidegate::sim::http::SimPod::running).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn engines_keep_nobody_waiting_and_nobody_is_lost() {
    let (gate, fleet) = narrow(2, "").await;
    let addr = gate.addr();
    let ask = |number: u32| async move { post(addr, CHAT, "", &chat("sim", &format!("{number}"), true, 20)).await };
    let asked: Vec<_> = (0..24).map(|number| tokio::spawn(ask(number))).collect();
    let mut most = 0;
    while !asked.iter().all(tokio::task::JoinHandle::is_finished) {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_are_refused_with_the_time_to_come_back() {
    let (gate, _fleet) = narrow(1, "flow: {classes: {standard: {requests_max: 3}}}").await;
    let addr = gate.addr();
    let ask = |number: u32| async move { post(addr, CHAT, "", &chat("sim", &format!("{number}"), true, 60)).await };
    let asked: Vec<_> = (0..16).map(|number| tokio::spawn(ask(number))).collect();
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
    let ask = |number: u32| async move { post(addr, CHAT, "", &chat("sim", &format!("{number}"), true, 60)).await };
    let asked: Vec<_> = (0..12).map(|number| tokio::spawn(ask(number))).collect();
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
