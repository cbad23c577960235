//! The loop over a whole fleet, and the pauses between visits.
#![allow(clippy::unwrap_used)]
use std::collections::BTreeMap;

use tokio::sync::mpsc;

use super::super::test_server::{Pace, Server};
use super::*;
use crate::base::PodId;
use crate::pods::{PodSpec, Role};

fn spec(addr: SocketAddr) -> PodSpec {
    PodSpec {
        addr,
        authority: addr.to_string().into(),
        tls: None,
        rank: None,
        role: Role::Both,
        labels: BTreeMap::new(),
    }
}

#[tokio::test]
async fn pods_that_come_are_visited_and_pods_that_go_are_left() {
    let body = "vllm:num_requests_running{engine=\"0\"} 1\n";
    let answer =
        move |_: &str, _| format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes();
    let (one, two) = (Server::start(Pace::Keep, answer).await, Server::start(Pace::Keep, answer).await);
    let table = Arc::new(Table::default());
    let (sender, mut scraped) = mpsc::channel::<PodId>(1_000);
    let observer = Box::new(move |event: Event<'_>| {
        if let Event::Scraped(pod) = event {
            sender.try_send(pod.id).ok();
        }
    });
    let settings = Settings { interval_ms: 10, ..Settings::default() };
    let telemetry = Telemetry::new(Arc::clone(&table), settings, Arc::default(), Arc::default(), observer);
    let task = supervise("telemetry", telemetry.run());
    table.set(vec![spec(one.addr)]);
    assert_eq!((scraped.recv().await, scraped.recv().await), (Some(PodId(0)), Some(PodId(0))));
    table.set(vec![spec(two.addr)]);
    while scraped.recv().await != Some(PodId(1)) {}
    while scraped.try_recv().is_ok() {}
    for _ in 0..3 {
        assert_eq!(scraped.recv().await, Some(PodId(1)));
    }
    drop(task);
    while scraped.recv().await.is_some() {}
}

#[test]
fn pauses_keep_the_interval_the_rate_and_the_backoff() {
    let telemetry =
        Telemetry::new(Arc::default(), Settings::default(), Arc::default(), Arc::default(), Box::new(|_| {}));
    let seed = 3;
    let mut rng = Rng::new(seed);
    for (endpoints, failures, expected_ms) in
        [(4, 0, 250), (1_000, 0, 2_000), (4, 1, 500), (4, 3, 2_000), (4, 99, 5_000), (10_000, 9, 20_000)]
    {
        telemetry.endpoints.store(endpoints, Relaxed);
        let pauses: Vec<u128> = (0..200).map(|_| telemetry.pause(failures, &mut rng).as_millis()).collect();
        let (least, most) = (pauses.iter().min().unwrap(), pauses.iter().max().unwrap());
        assert!(
            *least >= expected_ms * 9 / 10 - 1 && *most <= expected_ms * 11 / 10,
            "{least}..{most} of {expected_ms}"
        );
        assert!(most > least, "jitter, seed {seed}");
    }
}
