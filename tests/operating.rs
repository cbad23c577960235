//! Running the gate: readiness, reload, safe mode, panics, explanations, drain, and what is (not) written down.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Duration;

use kit::wire::{ask, begin, connect, has, in_front_of, more, rest, until_closed};
use kit::{Gate, PATIENCE, chat, get, heard, post, raw, request};
use tidegate::app::App;
use tidegate::config::ServeArgs;
use tidegate::observe::Cause;
use tidegate::proxy::{Hook, Phase};
use tidegate::sim::http::{Fault, MetricsFault, Rule, Script, SimConfig, SimPod};
use tokio::task::JoinHandle;

const CHAT: &str = "/v1/chat/completions";

async fn pod() -> SimPod {
    SimPod::start(SimConfig::default()).await.unwrap()
}

/// Waits for a body of the admin listener that fits.
#[allow(clippy::disallowed_methods, reason = "polls: the admin listener tells nobody that it has changed")]
async fn admin_says(addr: SocketAddr, path: &str, status: u16, part: &str) {
    let said = tokio::time::timeout(PATIENCE, async {
        loop {
            let answer = get(addr, path).await;
            if answer.status == status && has(&answer.body, part) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(said.await.is_ok(), "{path} never says {status} {part}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_means_every_pod_was_tried() {
    let (good, hanging) = (pod().await, pod().await);
    hanging.script(Rule::new(Fault::Metrics(MetricsFault::Hang)));
    let args = ServeArgs {
        listen: Some("127.0.0.1:0".parse().unwrap()),
        admin: Some("127.0.0.1:0".parse().unwrap()),
        pod: vec![good.url(), hanging.url()],
        threads: Some(1),
        access_log: Some("off".into()),
        ..ServeArgs::default()
    };
    let app = tokio::task::spawn_blocking(|| App::start(args, None)).await.unwrap().unwrap();
    let admin = app.admin_addr();
    admin_says(admin, "/readyz", 503, "1 pods not tried yet").await;
    assert_eq!(get(admin, "/healthz").await.status, 200, "alive though not ready");
    hanging.script(Script::none());
    admin_says(admin, "/readyz", 200, "ready").await;
    assert!(app.is_ready());
    assert_eq!(post(app.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    tokio::task::spawn_blocking(move || app.close(Duration::from_secs(5))).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ready_with_no_pods_at_all() {
    let gate = Gate::start(&[], "pods: {list: []}").await;
    let answer = post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await;
    assert_eq!((answer.status, answer.header("x-tidegate-reason")), (503, Some("no_pods")), "{}", answer.text());
    assert!(answer.header("retry-after").is_some());
    assert_eq!(get(gate.addr(), "/health").await.status, 200);
    assert_eq!(get(gate.addr(), "/v1/models").await.json()["data"], serde_json::json!([]));
    gate.finish().await;
}

/// Models `sim` and `other`; requests for those without a pod wait.
fn asleep(pods: &[&SimPod], wait_max_s: u32) -> String {
    let pods = if pods.is_empty() { "pods: {list: []}\n".to_owned() } else { listed(pods) };
    format!(
        "{pods}models: {{sim: {{aliases: [small]}}, other: {{}}}}\nlisten: {{sse_keep_alive_s: 1}}\n\
         flow: {{from_zero: {{wait_max_s: {wait_max_s}, requests_max: 2}}}}\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_a_model_without_pods_wait_for_the_first_one() {
    let gate = Gate::start(&[], &asleep(&[], 60)).await;
    let (mut stream, _) = begin(gate.addr(), &request(CHAT, "", &chat("small", "x", true, 3)), |_| true).await;
    let addr = gate.addr();
    let plain = tokio::spawn(async move { post(addr, CHAT, "", &chat("sim", "x", false, 3)).await });
    gate.metric_reaches("tidegate_absent_requests{model=\"sim\"}", 2.0).await;
    for model in ["sim", "other", "unheard-of"] {
        let answer = post(gate.addr(), CHAT, "", &chat(model, "x", false, 1)).await;
        let reason = answer.header("x-tidegate-reason").map(str::to_owned);
        assert_eq!((answer.status, reason.as_deref()), (503, Some("no_pods")), "{model}: no more may wait");
    }
    // The client that streams is told that somebody is there.
    let seen = more(&mut stream, |bytes| has(bytes, ": keep-alive")).await;
    let first = pod().await;
    configure(&gate, &asleep(&[&first], 60));
    let answer = rest(&mut stream, seen).await;
    assert!(answer.status == 200 && answer.text().contains("[DONE]"), "{}", answer.text());
    let answer = plain.await.unwrap();
    assert_eq!(answer.status, 200);
    let waited: u64 = answer.header("x-tidegate-queue-ms").unwrap().parse().unwrap();
    assert!(waited > 500, "{waited}");
    gate.metric_reaches("tidegate_absent_requests{model=\"sim\"}", 0.0).await;
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    // Another model is still asleep: who leaves is counted no more.
    let (left, _) = begin(gate.addr(), &request(CHAT, "", &chat("other", "x", false, 3)), |_| true).await;
    gate.metric_reaches("tidegate_absent_requests{model=\"other\"}", 1.0).await;
    drop(left);
    gate.metric_reaches("tidegate_absent_requests{model=\"other\"}", 0.0).await;
    assert_eq!(first.served().len(), 3);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waited_long_enough_for_a_first_pod_is_refused() {
    let gate = Gate::start(&[], &asleep(&[], 2)).await;
    let deadline = "x-tidegate-deadline-ms: 200\r\n";
    let answer = post(gate.addr(), CHAT, deadline, &chat("sim", "x", false, 1)).await;
    assert_eq!((answer.status, answer.header("x-tidegate-reason")), (504, Some("deadline_passed")));
    let answer = post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await;
    assert_eq!((answer.status, answer.header("x-tidegate-reason")), (503, Some("no_pods")));
    assert!(answer.header("retry-after").is_some());
    gate.finish().await;
}

/// Replaces the configuration in one step, as operators should.
fn configure(gate: &Gate, yaml: &str) {
    std::fs::write(gate.file("next.yaml"), yaml).unwrap();
    std::fs::rename(gate.file("next.yaml"), gate.file("gate.yaml")).unwrap();
}

fn listed(pods: &[&SimPod]) -> String {
    let urls: Vec<_> = pods.iter().map(|pod| format!("{{url: '{}'}}", pod.url())).collect();
    format!("pods: {{list: [{}]}}\n", urls.join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_adds_a_pod_and_drops_no_stream() {
    let (first, second) = (pod().await, pod().await);
    let gate = Gate::start(&[], &listed(&[&first])).await;
    gate.knows_models().await;
    first.script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))));
    let long = request(CHAT, "", &chat("sim", &"long ".repeat(200), true, 400));
    let (mut io, begun) = begin(gate.addr(), &long, |bytes| has(bytes, "data: ")).await;

    configure(&gate, &(listed(&[&first, &second]) + "observe: {explain: true}\n"));
    gate.metric_reaches("tidegate_config_reloads_total{result=\"ok\"}", 1.0).await;
    let fleet = || gate.app().gate().table.fleet();
    gate.eventually("two pods", || fleet().pods.len() == 2).await;
    gate.knows_models().await;
    assert_eq!(gate.app().gate().index.stats().pods, 1, "one prompt is long enough");
    let kept: Vec<_> = fleet().pods.iter().map(|pod| pod.id).collect();
    let answer = post(gate.addr(), CHAT, "x-tidegate-explain: 1\r\n", &chat("sim", "y", false, 1)).await;
    assert!(answer.header("x-tidegate-decision").is_some(), "the new rules are in force");
    assert_eq!(second.served().len(), 1, "the new pod is the idle one");

    configure(&gate, "pods: {list: [{url: 'nonsense'}]}\nlimits: {body_bytes_max: a lot}\n");
    gate.metric_reaches("tidegate_config_reloads_total{result=\"bad\"}", 1.0).await;
    assert_eq!(fleet().pods.iter().map(|pod| pod.id).collect::<Vec<_>>(), kept, "the old ones stay");
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "z", false, 1)).await.status, 200);

    configure(&gate, &listed(&[&second]));
    gate.metric_reaches("tidegate_config_reloads_total{result=\"ok\"}", 2.0).await;
    gate.eventually("one pod", || fleet().pods.len() == 1).await;
    let answer = rest(&mut io, begun).await;
    assert!(answer.is_whole && has(&answer.body, "data: [DONE]"), "a removed pod finishes what it has");
    gate.eventually("a removed pod is forgotten", || gate.app().gate().index.stats().pods == 0).await;
    let lines = gate.finish().await;
    assert!(lines.iter().all(|line| line["cause"] == "ok"), "{lines:?}");
}

/// Sends chats one after another until told to stop; returns how many were answered.
fn load(addr: SocketAddr, number: usize, stop: &Arc<AtomicU64>) -> JoinHandle<u64> {
    let stop = Arc::clone(stop);
    tokio::spawn(async move {
        let (mut io, mut answered) = (connect(addr).await, 0);
        while stop.load(SeqCst) == 0 {
            let body = chat("sim", &format!("load {number} {answered}"), answered % 2 == 0, 6);
            let answer = ask(&mut io, &request(CHAT, "", &body)).await;
            assert_eq!((answer.status, answer.is_whole), (200, true), "{}", answer.text());
            assert!(answered % 2 == 1 || has(&answer.body, "data: [DONE]"));
            answered += 1;
        }
        answered
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn safe_mode_under_load_loses_nothing() {
    let (gate, fleet) = Gate::with_pods(3, SimConfig::default(), "").await;
    let stop = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..8).map(|number| load(gate.addr(), number, &stop)).collect();
    let (safe, normal) = ("tidegate_plans_total{mode=\"safe\"}", "tidegate_plans_total{mode=\"normal\"}");
    for _ in 0..3 {
        let before = gate.metric(normal).await;
        gate.metric_reaches(normal, before + 20.0).await;
        assert_eq!(gate.tell("/safe-mode", "on").await.json()["safe_mode"], true);
        assert!((gate.metric("tidegate_safe_mode").await - 1.0).abs() < 0.1);
        let before = gate.metric(safe).await;
        gate.metric_reaches(safe, before + 20.0).await;
        assert_eq!(gate.tell("/safe-mode", "off").await.json()["safe_mode"], false);
    }
    stop.store(1, SeqCst);
    let mut answered = 0;
    for client in clients {
        answered += client.await.unwrap();
    }
    let arrived: usize = fleet.pods.iter().map(|pod| pod.served().len()).sum();
    assert_eq!(arrived as u64, answered, "each once");
    let lines = gate.finish().await;
    assert_eq!(lines.len() as u64, answered);
    assert!(lines.iter().all(|line| line["cause"] == "ok" && line["attempts"] == 1));
}

/// A hook that panics once in the phase whose number is armed.
fn trap() -> (Arc<AtomicU64>, Hook) {
    let armed = Arc::new(AtomicU64::new(u64::MAX));
    let trap = Arc::clone(&armed);
    let hook = move |phase: Phase| {
        let number = phase as u64;
        let sprung = trap.compare_exchange(number, u64::MAX, SeqCst, SeqCst).is_ok();
        assert!(!sprung, "injected");
    };
    (armed, Box::new(hook))
}

fn events_in(bytes: &[u8]) -> usize {
    String::from_utf8_lossy(bytes).matches("data: ").count()
}

async fn panics(gate: &Gate) -> f64 {
    let text = gate.admin("/metrics").await;
    let series = text.lines().filter(|line| line.starts_with("tidegate_panics_total{"));
    series.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_panic_costs_one_request() {
    let (armed, hook) = trap();
    let pods = [pod().await, pod().await];
    let gate = Gate::with_hook(&[pods[0].addr(), pods[1].addr()], "", Some(hook)).await;
    gate.knows_models().await;
    for pod in &pods {
        let slow = |wait| Fault::SlowTokens(Duration::from_millis(wait));
        let script = Script::none().rule(Rule::new(slow(5)).marker("neighbour"));
        pod.script(script.rule(Rule::new(slow(1)).marker("victim")));
    }
    // Far from its end, so that no trap is sprung by it.
    let beside = request(CHAT, "", &chat("sim", "neighbour", true, 100_000));
    let (mut neighbour, _) = begin(gate.addr(), &beside, |bytes| events_in(bytes) >= 5).await;
    let mut wanted = 0.0;
    let phases = [Phase::Head, Phase::Body, Phase::Dispatch, Phase::Commit, Phase::Stream, Phase::Settle];
    for phase in phases {
        for is_stream in [false, true] {
            armed.store(phase as u64, SeqCst);
            let mut io = connect(gate.addr()).await;
            let answer = ask(&mut io, &request(CHAT, "", &chat("sim", "victim", is_stream, 50))).await;
            wanted += 1.0;
            match phase {
                // Small answers leave whole in one write, before the panic.
                Phase::Stream => assert_eq!((answer.status, answer.is_whole), (200, !is_stream)),
                Phase::Settle => assert!(answer.status == 200 && answer.is_whole),
                _ => {
                    assert_eq!((answer.status, answer.is_whole), (500, true), "{phase:?}: {}", answer.text());
                    assert_eq!(answer.json()["error"]["code"], 500);
                }
            }
            until_closed(&mut io).await;
            assert_eq!(armed.load(SeqCst), u64::MAX, "{phase:?} was reached");
        }
    }
    more(&mut neighbour, |bytes| events_in(bytes) >= 5).await;
    drop(neighbour);
    assert!((panics(&gate).await - wanted).abs() < 0.1, "{}", panics(&gate).await);
    for phase in phases {
        let counted = gate.metric(&format!("tidegate_panics_total{{phase=\"{}\"}}", phase.as_str())).await;
        assert!((counted - 2.0).abs() < 0.1, "{phase:?}: {counted}");
    }
    let lines = gate.finish().await;
    let count = |cause: &str| lines.iter().filter(|line| line["cause"] == cause).count();
    assert_eq!((lines.len(), count("gate_panic"), count("client_gone")), (13, 12, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planner_that_panics_ends_in_safe_mode() {
    let (armed, hook) = trap();
    let pods = [pod().await, pod().await];
    let gate = Gate::with_hook(&[pods[0].addr(), pods[1].addr()], "", Some(hook)).await;
    gate.knows_models().await;
    armed.store(Phase::Plan as u64, SeqCst);
    for _ in 0..3 {
        assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    }
    assert!((gate.metric("tidegate_safe_mode").await - 1.0).abs() < 0.1);
    assert!((gate.metric("tidegate_degradations_total{kind=\"planner_panicked\"}").await - 1.0).abs() < 0.1);
    assert!((panics(&gate).await - 1.0).abs() < 0.1);
    assert!(gate.admin("/safe-mode").await.contains("true"));
    assert_eq!(gate.tell("/safe-mode", "off").await.status, 200);
    assert_eq!(post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status, 200);
    let modes: Vec<_> = gate.finish().await.iter().map(|line| line["mode"].as_str().unwrap().to_owned()).collect();
    assert_eq!(modes, ["safe", "safe", "safe", "normal"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisions_are_explained_to_those_who_may_ask() {
    let pods = [pod().await, pod().await];
    let fields = "x-tidegate-explain: 1\r\nx-request-id: why-1\r\n";
    for (yaml, is_shown) in [("", false), ("observe: {explain: true}", true), ("trust: {callers: [127.0.0.1]}", true)] {
        let gate = in_front_of(&[&pods[0], &pods[1]], yaml).await;
        for is_stream in [false, true] {
            let answer = post(gate.addr(), CHAT, fields, &chat("sim", "x", is_stream, 2)).await;
            assert_eq!(answer.status, 200);
            assert_eq!(answer.header("x-tidegate-decision").is_some(), is_shown, "{yaml}");
            if let Some(shown) = answer.header("x-tidegate-decision") {
                let decision: serde_json::Value = serde_json::from_str(shown).unwrap();
                assert!(decision["chosen"].as_str().unwrap().starts_with("pod-"), "{decision}");
                assert_eq!(decision["rows"].as_array().unwrap().len(), 2, "{decision}");
            }
        }
        let plain = post(gate.addr(), CHAT, "", &chat("sim", "x", false, 2)).await;
        assert_eq!(plain.header("x-tidegate-decision"), None, "only on demand");
        let kept: serde_json::Value = serde_json::from_str(&gate.admin("/explain/why-1").await).unwrap();
        assert_eq!((kept["attempt"].as_u64(), kept["decision"]["mode"].as_str()), (Some(1), Some("normal")), "{kept}");
        assert!(gate.admin("/explain").await.contains("\"why-1\""));
        assert_eq!(get(gate.app().admin_addr(), "/explain/nobody").await.status, 404);
        gate.finish().await;
    }
    assert!(pods.iter().flat_map(SimPod::served).all(|arrival| arrival.header("x-tidegate-explain").is_none()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_finishes_what_runs() {
    let pod = pod().await;
    pod.script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))).marker("long"));
    let mut gate = in_front_of(&[&pod], "listen: {drain_accept_s: 1, drain_max_s: 20}").await;
    let (addr, admin) = (gate.addr(), gate.app().admin_addr());
    let long = |is_stream| request(CHAT, "", &chat("sim", "long", is_stream, 150));
    let (mut io, begun) = begin(addr, &long(true), |bytes| has(bytes, "data: ")).await;
    let plain = tokio::spawn(async move { raw(addr, &long(false)).await });
    let arrived =
        pod.wait_for(|log| log.iter().filter(|arrival| arrival.path == CHAT && arrival.body.is_some()).count() == 2);
    tokio::time::timeout(PATIENCE, arrived).await.unwrap();
    let mut idle = connect(addr).await;
    assert_eq!(ask(&mut idle, &request(CHAT, "", &chat("sim", "short", false, 1))).await.status, 200);

    let drained = gate.drain();
    admin_says(admin, "/readyz", 503, "draining").await;
    // Accepts go on for a while: balancers are slow to notice. One request per connection.
    let mut late = connect(addr).await;
    let answer = ask(&mut late, &request(CHAT, "", &chat("sim", "short", false, 1))).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(until_closed(&mut late).await.is_empty());
    assert!(until_closed(&mut idle).await.is_empty(), "idle connections are closed at the end of that time");
    let answer = rest(&mut io, begun).await;
    assert!(answer.is_whole && has(&answer.body, "data: [DONE]"), "{}", answer.text());
    let answer = plain.await.unwrap();
    assert!(answer.status == 200 && answer.is_whole, "{}", answer.text());
    drained.await.unwrap();
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "nobody listens");
    let lines = gate.lines();
    assert!(lines.len() == 4 && lines.iter().all(|line| line["cause"] == "ok"), "{lines:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_has_one_line_with_a_known_cause() {
    let (gate, fleet) = Gate::with_pods(2, SimConfig::default(), "limits: {timeouts: {head_s: 1}}").await;
    let good = |is_stream| chat("sim", "x", is_stream, 3);
    let mut wanted = Vec::new();
    for (fields, body, causes) in [
        ("", good(false), "ok"),
        ("", good(true), "ok"),
        ("", "{".to_owned(), "bad_body"),
        ("", chat("nobody", "x", false, 1), "unknown_model"),
        ("content-encoding: gzip\r\n", good(false), "unsupported_media"),
        ("x-sim-fault: status=500\r\n", good(false), "pod_error"),
        ("x-sim-fault: cut-at-event=3\r\n", good(true), "stream_broken"),
        ("x-sim-fault: no-good-ending\r\n", good(true), "truncated"),
        ("Transfer-Encoding: chunked\r\n", good(false), "bad_framing"),
    ] {
        post(gate.addr(), CHAT, fields, &body).await;
        wanted.push(causes);
    }
    for (path, cause) in
        [("/health", "local"), ("/nope", "unknown_route"), (CHAT, "method_not_allowed"), ("/sleep", "route_refused")]
    {
        get(gate.addr(), path).await;
        wanted.push(cause);
    }
    raw(gate.addr(), b"GET / HTTP/1.1\nHost: gate\n\n").await;
    wanted.push("bad_framing");
    raw(gate.addr(), b"GET / HT").await;
    wanted.push("head_timeout");
    drop(fleet);
    let lines = gate.finish().await;
    let causes: Vec<_> = lines.iter().map(|line| line["cause"].as_str().unwrap()).collect();
    assert_eq!(causes, wanted);
    let known: Vec<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
    for line in &lines {
        assert!(known.contains(&line["cause"].as_str().unwrap()) && line["request_id"].is_string(), "{line}");
        assert!(line["e2e_ms"].is_number() && line["status"].is_number(), "{line}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_and_keys_are_written_nowhere() {
    const MARK: &str = "canary-5b1f";
    let heard = heard::everything();
    let (gate, _fleet) = Gate::with_pods(2, SimConfig::default(), "observe: {explain: true}").await;
    let mut seen = String::new();
    let keys =
        format!("Authorization: Bearer {MARK}\r\nX-Api-Key: {MARK}\r\nCookie: {MARK}\r\nx-tidegate-explain: 1\r\n");
    let good = |is_stream| {
        chat("sim", &format!("say {MARK}"), is_stream, 3).replacen('{', &format!("{{\"user\":\"{MARK}\","), 1)
    };
    for (path, fields, body) in [
        (CHAT, "", good(false)),
        (CHAT, "", good(true)),
        (CHAT, "", good(false)[..80].to_owned()),
        (CHAT, "", format!("{{\"model\":\"sim\",\"{MARK}\":1,\"{MARK}\":[}}")),
        (CHAT, "", MARK.to_owned()),
        (CHAT, "", good(false).replacen('{', &format!("{{\"model\":\"{MARK}\","), 1)),
        (CHAT, "Content-Encoding: gzip\r\n", good(false)),
        (CHAT, "x-sim-fault: status=503\r\n", good(false)),
        (CHAT, "x-sim-fault: cut-at-event=3\r\n", good(true)),
        (CHAT, "x-sim-fault: garbage\r\n", good(true)),
        (CHAT, "Transfer-Encoding: chunked\r\n", good(false)),
        ("/v1/messages", "", good(true)),
        ("/v1/completions", "", good(true)),
        ("/nope", "", good(false)),
        ("/sleep", "", good(false)),
    ] {
        let answer = post(gate.addr(), path, &format!("{keys}{fields}"), &body).await;
        assert!(!answer.head.contains(MARK), "{path}, {fields}: {}", answer.head);
        if answer.status != 200 {
            assert!(!answer.text().contains(MARK), "{path}, {fields}: {}", answer.text());
        }
        seen.push_str(answer.header("x-tidegate-decision").unwrap_or_default());
        let id = answer.header("x-request-id").unwrap().to_owned();
        seen.push_str(&get(gate.app().admin_addr(), &format!("/explain/{id}")).await.text());
    }
    for path in ["/metrics", "/pods", "/explain", "/safe-mode", "/"] {
        seen.push_str(&gate.admin(path).await);
    }
    let lines = gate.finish().await;
    assert_eq!(lines.len(), 15);
    seen.push_str(&serde_json::Value::from(lines).to_string());
    assert!(!seen.contains(MARK), "{seen}");
    heard.lacks(MARK);
}
