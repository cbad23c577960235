//! Visits to a small server that answers what a test wants.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::format_collect)]
use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::super::test_server::{Pace, Server};
use super::super::{Credential, Settings};
use super::*;
use crate::base::Tokens;
use crate::pods::{PodSpec, Reservation, Role, Shut, Sleep, Standing, Table};

const METRICS: &str = include_str!("../../../tests/fixtures/vllm/metrics-idle.txt");
const MODELS: &str = include_str!("../../../tests/fixtures/vllm/models-tiny.json");

fn ok(body: &str) -> Vec<u8> {
    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

/// What a pod says now; a test changes it between visits.
#[derive(Clone, Default)]
struct Says(Arc<Mutex<BTreeMap<&'static str, Vec<u8>>>>);

impl Says {
    fn set(&self, path: &'static str, answer: Vec<u8>) -> &Self {
        self.0.lock().insert(path, answer);
        self
    }

    async fn serve(&self) -> Server {
        let says = self.clone();
        Server::start(Pace::Keep, move |head, _| {
            let path = head.split(' ').nth(1).unwrap();
            let missing = || b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec();
            says.0.lock().get(path).cloned().unwrap_or_else(missing)
        })
        .await
    }
}

struct Bench {
    table: Arc<Table>,
    visitor: Visitor,
    events: Arc<Mutex<Vec<String>>>,
}

impl Bench {
    fn new(addr: SocketAddr) -> Self {
        let table = Arc::new(Table::default());
        let spec = PodSpec {
            addr,
            authority: "pod:1".into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: BTreeMap::new(),
        };
        table.set(vec![spec]);
        let events = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&events);
        let observer = Box::new(move |event: Event<'_>| {
            let (name, pod) = match event {
                Event::Learnt(pod) => ("learnt", pod),
                Event::Restarted(pod) => ("restarted", pod),
                Event::Virtual(pod) => ("virtual", pod),
                Event::Scraped(pod) => ("scraped", pod),
                Event::Failed(pod) => ("failed", pod),
                Event::Refused(pod) => ("refused", pod),
            };
            seen.lock().push(format!("{name} {}", pod.id.0));
        });
        let settings = Settings { timeout_ms: 10_000, ..Settings::default() };
        let telemetry =
            Telemetry::new(Arc::clone(&table), settings, Arc::new(Credential::default()), Arc::default(), observer);
        Self { visitor: Visitor::new(telemetry, addr), table, events }
    }

    /// One visit at a time when the models are always due; answers what was told.
    async fn visit(&mut self) -> Vec<String> {
        self.visitor.visit(Mono(u64::MAX)).await;
        self.table.refresh();
        std::mem::take(&mut *self.events.lock())
    }

    fn pod(&self) -> Arc<Pod> {
        Arc::clone(&self.table.fleet().pods[0])
    }
}

#[tokio::test]
async fn a_first_visit_learns_everything() {
    let says = Says::default();
    says.set("/metrics", ok(METRICS)).set("/v1/models", ok(MODELS)).set("/version", ok("{\"version\":\"0.32.0\"}"));
    let server = says.serve().await;
    let mut bench = Bench::new(server.addr);
    let booking = Reservation::book(bench.pod(), Tokens(9), Tokens(9));
    assert_eq!(bench.visit().await, ["learnt 0", "scraped 0"]);
    let (pod, fleet) = (bench.pod(), bench.table.fleet());
    let facts = pod.facts.load();
    assert_eq!(
        (facts.block_tokens, facts.capacity, facts.version.as_deref()),
        (Some(32), Some(Tokens(16_384)), Some("0.32.0"))
    );
    let reading = (**pod.reading.load()).unwrap();
    assert_eq!((reading.running, reading.own.requests, reading.foreign()), (Some(0), 1, Some(0)));
    assert_eq!((fleet.serving("tiny"), fleet.is_tried()), (&[0][..], true));
    assert_eq!(bench.visit().await, ["scraped 0"], "nothing new");
    assert_eq!(server.connections(), 1, "the connection is kept");
    drop(booking);
}

#[tokio::test]
async fn a_restart_is_told_and_models_are_read_anew() {
    let says = Says::default();
    says.set("/metrics", ok(METRICS)).set("/v1/models", ok(MODELS));
    let server = says.serve().await;
    let mut bench = Bench::new(server.addr);
    bench.visit().await;
    says.set("/metrics", ok(&METRICS.replace("1.79532406114e+09", "1.79532999999e+09")));
    says.set("/v1/models", ok(&MODELS.replace("\"tiny\"", "\"large\"")));
    assert_eq!(bench.visit().await, ["restarted 0", "learnt 0", "scraped 0"]);
    assert!(matches!(bench.pod().standing(now()), Standing::Ramp(_)));
    let fleet = bench.table.fleet();
    assert_eq!((fleet.serving("large").len(), fleet.serving("tiny").len()), (1, 0));
    says.set("/metrics", ok(METRICS));
    assert_eq!(bench.visit().await[0], "virtual 0", "the old process is back: it never went");
    says.set("/metrics", ok(&METRICS.replace("1.79532406114e+09", "1.79532999999e+09")));
    assert!(!bench.visit().await.iter().any(|event| event.starts_with("restarted") || event.starts_with("virtual")));
}

#[tokio::test]
async fn ranks_become_pods_that_know_all_at_once() {
    let body: String = (0..3)
        .map(|rank| {
            let label = format!("engine=\"{rank}\"");
            format!(
                "vllm:num_requests_running{{{label}}} {rank}\n\
                 vllm:cache_config_info{{block_size=\"16\",{label},num_gpu_blocks=\"10\"}} 1\n"
            )
        })
        .collect();
    let says = Says::default();
    says.set("/metrics", ok(&body)).set("/v1/models", ok(MODELS));
    let server = says.serve().await;
    let mut bench = Bench::new(server.addr);
    bench.visit().await;
    let fleet = bench.table.fleet();
    assert_eq!((fleet.pods.len(), fleet.serving("tiny").len(), fleet.is_tried()), (3, 3, true));
    for (rank, pod) in (0..3).zip(&fleet.pods) {
        assert_eq!(pod.spec.rank, Some(rank));
        assert_eq!((**pod.reading.load()).unwrap().running, Some(rank));
        assert_eq!(pod.facts.load().capacity, Some(Tokens(160)));
    }
    says.set("/metrics", ok("nonsense"));
    bench.visit().await;
    assert_eq!(bench.table.fleet().pods.len(), 3, "nonsense takes no rank away");
}

#[tokio::test]
async fn what_fails_is_counted_and_ejects_nobody() {
    let says = Says::default();
    says.set("/v1/models", ok(MODELS));
    let server = says.serve().await;
    let mut bench = Bench::new(server.addr);
    assert_eq!(bench.visit().await, ["failed 0", "learnt 0"], "no metrics, but models");
    assert_eq!(bench.table.fleet().serving("tiny").len(), 1);
    says.set("/metrics", ok(METRICS)).set("/v1/models", ok("{\"data\":7}"));
    bench.visit().await;
    assert_eq!(bench.table.fleet().serving("tiny").len(), 1, "a bad list does not take the good one away");
    assert_eq!(bench.visitor.failures, 0);
    server.stop().await;
    for _ in 0..3 {
        assert_eq!(bench.visit().await, ["failed 0", "refused 0"]);
    }
    assert_eq!(bench.visitor.failures, 3);
    let sign = bench.pod().sign(now());
    assert_eq!((sign.standing, sign.is_dark), (Standing::Ready, true));
    assert!((**bench.pod().reading.load()).is_some(), "the last reading stays and grows old");
}

#[tokio::test]
async fn a_pod_that_hangs_is_tried_and_left() {
    let server = Server::start(Pace::Hang, |_, _| Vec::new()).await;
    let mut bench = Bench::new(server.addr);
    bench.visitor.telemetry.configure(Settings { timeout_ms: 20, ..Settings::default() });
    assert_eq!(bench.visit().await, ["failed 0"]);
    let fleet = bench.table.fleet();
    assert_eq!((fleet.is_tried(), fleet.serving("any").len()), (true, 1), "nothing is known: it takes part");
}

#[tokio::test]
async fn sleep_is_seen() {
    let says = Says::default();
    let asleep = METRICS.replace("sleep_state=\"awake\"} 1.0", "sleep_state=\"awake\"} 0.0");
    let server = says.set("/metrics", ok(&asleep)).set("/v1/models", ok(MODELS)).serve().await;
    let mut bench = Bench::new(server.addr);
    bench.visit().await;
    assert_eq!((bench.pod().facts.load().sleep, bench.pod().sign(now()).shut), (Sleep::Asleep, Some(Shut::Asleep)));
    says.set("/metrics", ok(METRICS));
    bench.visit().await;
    assert_eq!(bench.pod().sign(now()).shut, None);
}

#[tokio::test]
async fn an_address_that_left_the_fleet_is_not_asked() {
    let server = Server::start(Pace::Keep, |_, _| ok(METRICS)).await;
    let mut bench = Bench::new(server.addr);
    bench.table.set(Vec::new());
    assert!(bench.visit().await.is_empty());
    assert_eq!(server.connections(), 0);
}
