//! TLS on both sides: clients with HTTP/1.1 and HTTP/2 inside, certificates of either side, pods behind TLS, and what is refused.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use bytes::Bytes;
use http::Request;
use kit::heard::{self, Heard};
use kit::keys::KeysFile;
use kit::tls::{Ca, Folder, Pair, der, dial, shown, wrap};
use kit::wire::{has, only_arrival};
use kit::{Answer, Gate, PATIENCE, chat, events, post, read_answer, request};
use rustls::{ClientConfig, HandshakeKind};
use tidegate::sim::http::{Fleet, SimConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const CHAT: &str = "/v1/chat/completions";
/// Three hundred years ago would do; this is the year 2001.
const PAST: i64 = 1_000_000_001;

/// Listens to the log of this process, once for all tests here.
fn log() -> &'static Heard {
    static HEARD: std::sync::OnceLock<Heard> = std::sync::OnceLock::new();
    HEARD.get_or_init(heard::everything)
}

/// A gate whose listener has a certificate for `gate.example`; `more` is what else is under `listen.tls`.
async fn start(more: &str, rest: &str) -> (Gate, Fleet, Folder, Ca) {
    let (folder, ca) = (Folder::new(), Ca::new());
    folder.write("gate", &ca.issue(&["gate.example"]));
    folder.write("other", &ca.issue(&["*.other.example"]));
    std::fs::write(folder.path("ca.pem"), ca.pem()).unwrap();
    let more = more.replace("CA", &folder.path("ca.pem").display().to_string());
    let yaml = format!(
        "listen:\n  tls:\n    certificates: [{}, {}]\n{more}\n{rest}\n",
        folder.entry("gate"),
        folder.entry("other")
    );
    let (gate, fleet) = Gate::with_pods(1, SimConfig::default(), &yaml).await;
    (gate, fleet, folder, ca)
}

async fn ask(addr: SocketAddr, config: &Arc<ClientConfig>, bytes: &[u8]) -> std::io::Result<Answer> {
    let mut io = dial(addr, config, "gate.example").await?;
    io.write_all(bytes).await?;
    // What was refused shows at the first read: in TLS 1.3 the client is done before the server has looked.
    let mut first = [0; 1];
    tokio::time::timeout(PATIENCE, io.read_exact(&mut first)).await.unwrap()?;
    let mut whole = std::io::Cursor::new(first).chain(io);
    Ok(read_answer(&mut whole).await)
}

fn short() -> Vec<u8> {
    request(CHAT, "", &chat("sim", "in tls", false, 3))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http1_and_http2_stream_inside_and_the_name_chooses_the_certificate() {
    let (gate, fleet, folder, ca) = start("", "").await;
    let body = chat("sim", "streamed", true, 9);
    let http1 = ca.client(None, &[]);
    let answer = ask(gate.addr(), &http1, &request(CHAT, "", &body)).await.unwrap();
    assert_eq!((answer.status, events(&answer.body).last().map(String::as_str)), (200, Some("[DONE]")));
    let arrival = only_arrival(&fleet);
    assert_eq!((arrival.header("x-forwarded-proto"), arrival.body.as_deref()), (Some("https"), Some(body.as_bytes())));
    // The lint looks at what was inside.
    let smuggled = b"GET /v1/models HTTP/1.1\r\nHost: gate\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(ask(gate.addr(), &http1, smuggled).await.unwrap().status, 400);
    let io = dial(gate.addr(), &ca.client(None, &["h2", "http/1.1"]), "x.other.example").await.unwrap();
    let other = std::fs::read_to_string(folder.path("other.crt")).unwrap();
    assert_eq!(shown(&io), der(&Pair { certificate: other, key: String::new() }));
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut send, connection) = h2::client::handshake(io).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    for _ in 0..3 {
        let head = Request::builder().method("POST").uri(format!("https://x.other.example{CHAT}")).body(()).unwrap();
        let (answer, mut stream) = send.send_request(head, false).unwrap();
        stream.send_data(Bytes::from(body.clone()), true).unwrap();
        let mut answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
        assert_eq!(answer.status(), 200);
        let mut bytes = Vec::new();
        while let Some(piece) = tokio::time::timeout(PATIENCE, answer.body_mut().data()).await.unwrap() {
            bytes.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(events(&bytes).last().map(String::as_str), Some("[DONE]"));
        send = send.ready().await.unwrap();
    }
    // Who goes on with a session does not pay for a whole handshake, and neither side's first one did go on.
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut io = dial(gate.addr(), &http1, "gate.example").await.unwrap();
        io.write_all(&short()).await.unwrap();
        assert_eq!(read_answer(&mut io).await.status, 200);
        kinds.push(io.get_ref().1.handshake_kind());
    }
    assert_eq!(kinds.last(), Some(&Some(HandshakeKind::Resumed)));
    assert!(gate.metric("tidegate_tls_handshakes_total{result=\"full\"}").await >= 2.0);
    assert!(gate.metric("tidegate_tls_handshakes_total{result=\"resumed\"}").await >= 1.0);
    let until = "tidegate_tls_certificate_expiry_timestamp_seconds{certificate=\"listen.tls.certificates[1]\"}";
    assert!((gate.metric(until).await - 4e9).abs() < 1.0);
    // Without TLS nothing is served there, and the listener beside it still is.
    assert_eq!(kit::get(gate.addr(), "/v1/models").await.status, 0);
    assert_eq!(kit::get(gate.app().h2c_addr().unwrap(), "/v1/models").await.status, 200);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_change_under_load_without_a_failed_handshake() {
    let (gate, _fleet, folder, ca) = start("", "").await;
    let (addr, stop, served) = (gate.addr(), Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let load = (0..4).map(|_| {
        let (config, stop, served) = (ca.client(None, &[]), Arc::clone(&stop), Arc::clone(&served));
        tokio::spawn(async move {
            while !stop.load(SeqCst) {
                assert_eq!(ask(addr, &config, &short()).await.expect("a handshake").status, 200);
                served.fetch_add(1, SeqCst);
            }
        })
    });
    let load: Vec<_> = load.collect();
    let renewed = ca.issue_until(&["gate.example"], 3_900_000_000);
    let metric = || gate.app().gate().metrics.certificates.lock().get("listen.tls.certificates[0]").copied();
    // First half of it: refused, the old one stays.
    std::fs::write(folder.path("gate.crt"), &renewed.certificate).unwrap();
    let refused = || gate.app().gate().metrics.config_reloads.value("bad") > 0;
    gate.eventually("a pair that does not match is refused", refused).await;
    assert_eq!(metric(), Some(4_000_000_000));
    folder.write("gate", &renewed);
    gate.eventually("renewed", || metric() == Some(3_900_000_000)).await;
    let so_far = served.load(SeqCst);
    gate.eventually("load goes on", || served.load(SeqCst) > so_far + 20).await;
    stop.store(true, SeqCst);
    for task in load {
        task.await.expect("no handshake failed");
    }
    let io = dial(addr, &ca.client(None, &[]), "gate.example").await.unwrap();
    assert_eq!(shown(&io), der(&renewed));
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_show_certificates_that_stand_for_tenants() {
    let heard = log();
    let keys = KeysFile::new(&[("canary-key", "by-key")]);
    let callers = "    client_certificates:
      ca_files: [CA]
      callers:
        - {uri: 'spiffe://example.org/ns/*', tenant: a}
        - {dns: ops.example, tenant: ops, trusted: true}
        - {common_name: old.example, tenant: c}";
    let (gate, _fleet, _folder, ca) = start(callers, &keys.yaml("", "")).await;
    let stranger = Ca::new();
    let with = |own: &Pair| ca.client(Some(own), &[]);
    for (config, reason, advice) in [
        (ca.client(None, &[]), "no_certificate", "showed no certificate"),
        (with(&stranger.issue(&["ops.example"])), "unknown_ca", "authority that is not configured"),
        (with(&ca.issue_until(&["ops.example"], PAST)), "expired", "has expired"),
    ] {
        assert!(ask(gate.addr(), &config, &short()).await.is_err(), "{reason}");
        gate.eventually(reason, || gate.app().gate().metrics.tls_handshakes.value(reason) == 1).await;
        // The line comes after the count.
        gate.eventually(advice, || heard.has(&["TLS handshake with a client failed", reason, advice])).await;
    }
    let ops = with(&ca.issue(&["ops.example"]));
    let tell = request(CHAT, "x-tidegate-explain: 1\r\n", &chat("sim", "x", false, 1));
    let told = ask(gate.addr(), &ops, &tell).await.unwrap();
    assert!(told.status == 200 && told.header("x-tidegate-decision").is_some(), "{}", told.head);
    let workload = with(&ca.issue(&["spiffe://example.org/ns/chat"]));
    let answer = ask(gate.addr(), &workload, &tell).await.unwrap();
    assert!(answer.status == 200 && answer.header("x-tidegate-decision").is_none());
    let with_key = request(CHAT, "x-api-key: canary-key\r\n", &chat("sim", "x", false, 1));
    assert_eq!(ask(gate.addr(), &workload, &with_key).await.unwrap().status, 200);
    let bad_key = request(CHAT, "x-api-key: guess\r\n", &chat("sim", "x", false, 1));
    assert_eq!(ask(gate.addr(), &workload, &bad_key).await.unwrap().status, 401, "a bad key is not made good");
    assert_eq!(ask(gate.addr(), &with(&ca.issue(&["nobody.example"])), &short()).await.unwrap().status, 401);
    assert_eq!(ask(gate.addr(), &with(&ca.issue(&["old.example"])), &short()).await.unwrap().status, 200);
    let lines = gate.finish().await;
    let tenants: Vec<_> = lines.iter().filter_map(|line| line["tenant"].as_str()).collect();
    assert_eq!(tenants, ["ops", "a", "by-key", "c"]);
}

/// A gate in front of one pod inside TLS, as this entry of `pods.list` says.
async fn in_front_of(addr: SocketAddr, host: &str, tls: &str) -> Gate {
    let yaml = format!("pods:\n  list:\n    - {{url: 'https://{host}:{}', tls: {{{tls}}}}}\n", addr.port());
    Gate::start(&[], &yaml).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_inside_tls_are_verified_and_shown_a_certificate() {
    let heard = log();
    let (folder, ca, clients) = (Folder::new(), Ca::new(), Ca::new());
    std::fs::write(folder.path("ca.pem"), ca.pem()).unwrap();
    folder.write("own", &clients.issue(&["gate.example"]));
    let ca_file = format!("ca_file: {}", folder.path("ca.pem").display());
    let own = folder.entry("own").trim_matches(['{', '}']).to_owned();
    let fleet = Fleet::start(1, SimConfig::default()).await.unwrap();
    let pod = fleet.addrs()[0];
    let good = ca.issue(&["127.0.0.1", "localhost", "vllm.example"]);
    for (pair, needs_own, host, tls) in [
        (&good, false, "127.0.0.1", ca_file.clone()),
        (&good, false, "localhost", ca_file.clone()),
        (&good, true, "127.0.0.1", format!("{ca_file}, {own}")),
        (&ca.issue(&["vllm.example"]), false, "127.0.0.1", format!("{ca_file}, server_name: vllm.example")),
        (&Ca::new().issue(&["x"]), false, "127.0.0.1", "insecure_skip_verify: true".to_owned()),
    ] {
        let addr = wrap(pod, pair, needs_own.then_some(&clients)).await;
        let gate = in_front_of(addr, host, &tls).await;
        gate.eventually("models known over TLS", || gate.app().gate().table.fleet().unknown.is_empty()).await;
        for is_stream in [true, false] {
            let body = chat("sim", &"long ".repeat(60_000), is_stream, 9);
            let answer = post(gate.addr(), CHAT, "", &body).await;
            assert!(answer.status == 200 && answer.is_whole, "{host} {tls}: {}", answer.text());
            assert_eq!(only_arrival(&fleet).body.as_deref(), Some(body.as_bytes()));
        }
        gate.finish().await;
    }
    assert!(heard.has(&["ERROR", "insecure_skip_verify is on"]));
    for (pair, needs_own, host, reason) in [
        (Ca::new().issue(&["127.0.0.1"]), false, "127.0.0.1", "unknown_ca"),
        (ca.issue_until(&["127.0.0.1"], PAST), false, "127.0.0.1", "expired"),
        (ca.issue(&["vllm.example"]), false, "127.0.0.1", "wrong_name"),
        (ca.issue(&["127.0.0.1"]), false, "localhost", "wrong_name"),
        (good.clone(), true, "127.0.0.1", ""),
    ] {
        let addr = wrap(pod, &pair, needs_own.then_some(&clients)).await;
        let gate = in_front_of(addr, host, &ca_file).await;
        let failures = || gate.app().gate().metrics.pod_tls_failures.all();
        if !reason.is_empty() {
            gate.eventually(reason, || failures().iter().any(|(word, count)| *word == reason && *count > 0)).await;
            assert!(heard.has(&["WARN", "TLS handshake with a pod failed", reason, &addr.to_string()]));
        }
        let answer = post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await;
        assert!(matches!(answer.status, 404 | 502 | 503), "{reason}: {}", answer.text());
        assert!(!has(&answer.body, &addr.port().to_string()) && !has(answer.head.as_bytes(), &addr.port().to_string()));
        assert!(fleet.pods[0].served().is_empty(), "{reason}: the pod was asked");
        gate.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fails_the_handshake_costs_a_retry_and_new_credentials_are_taken() {
    let (folder, ca) = (Folder::new(), Ca::new());
    std::fs::write(folder.path("ca.pem"), ca.pem()).unwrap();
    let fleet = Fleet::start(2, SimConfig::default()).await.unwrap();
    let pods = fleet.addrs();
    let (good, later) = (ca.issue(&["127.0.0.1"]), Ca::new());
    let (one, other) = (wrap(pods[0], &good, None).await, wrap(pods[1], &later.issue(&["127.0.0.1"]), None).await);
    let yaml = format!(
        "pods:\n  list:\n    - url: https://{one}\n    - url: https://{other}\n  tls: {{ca_file: {}}}\n",
        folder.path("ca.pem").display()
    );
    // Telemetry would keep the bad pod out: as long as it was never heard, nobody is sent there. So first it is good.
    std::fs::write(folder.path("ca.pem"), ca.pem() + &later.pem()).unwrap();
    let gate = Gate::start(&[], &yaml).await;
    let known = || gate.app().gate().table.fleet().unknown.is_empty();
    gate.eventually("both known", known).await;
    std::fs::write(folder.path("ca.pem"), ca.pem()).unwrap();
    let failed = || gate.app().gate().metrics.pod_tls_failures.value("unknown_ca") > 0;
    gate.eventually("the other is not believed any more", failed).await;
    for number in 0..8 {
        let answer = post(gate.addr(), CHAT, "", &chat("sim", &format!("{number} x"), false, 2)).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert!(fleet.pods[1].served().is_empty(), "only the good one");
    std::fs::write(folder.path("ca.pem"), later.pem() + &ca.pem()).unwrap();
    let read = || {
        let fleet = gate.app().gate().table.fleet();
        fleet
            .pods
            .iter()
            .map(|pod| pod.reading.load().as_ref().as_ref().map(|reading| reading.taken))
            .collect::<Vec<_>>()
    };
    let before = read();
    let back = || read().iter().zip(&before).all(|(now, then)| now > then);
    gate.eventually("believed again", back).await;
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn handshakes_that_do_not_end_and_floods_inside_are_cut() {
    let (gate, _fleet, _folder, ca) = start("    handshake_timeout_s: 1\n    handshakes_max: 1", "").await;
    let mut slow = kit::wire::connect(gate.addr()).await;
    slow.write_all(&[0x16, 3, 1]).await.unwrap();
    let refused = || gate.app().gate().metrics.refused.value("handshakes") > 0;
    // With one handshake under way the next one is closed at once; when it is over, there is room again.
    while !refused() {
        drop(dial(gate.addr(), &ca.client(None, &[]), "gate.example").await);
    }
    assert!(kit::wire::until_closed(&mut slow).await.is_empty());
    assert_eq!(gate.app().gate().metrics.tls_handshakes.value("timeout"), 1);
    let mut plain = kit::wire::connect(gate.addr()).await;
    plain.write_all(b"GET / HTTP/1.1\r\nHost: gate\r\n\r\n").await.unwrap();
    kit::wire::until_closed(&mut plain).await;
    gate.eventually("told apart", || gate.app().gate().metrics.tls_handshakes.value("not_tls") == 1).await;
    let settings = [&b"\0\0\0\x04\0\0\0\0\0"[..]; 1].concat();
    for (name, flood) in [
        ("PING", [&b"\0\0\x08\x06\0\0\0\0\0"[..], &[0; 8]].concat()),
        ("SETTINGS", settings.clone()),
        ("PRIORITY", [&b"\0\0\x05\x02\0\0\0\0\x01"[..], &[0; 5]].concat()),
    ] {
        let io = dial(gate.addr(), &ca.client(None, &["h2"]), "gate.example").await.unwrap();
        let (mut read, mut write) = tokio::io::split(io);
        let bytes = [&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &settings, &flood.repeat(30_000)].concat();
        let writing = tokio::spawn(async move {
            drop(write.write_all(&bytes).await);
            drop(write.flush().await);
            write
        });
        let mut piece = vec![0; 64 * 1024];
        let closed = tokio::time::timeout(PATIENCE, async { while let Ok(1..) = read.read(&mut piece).await {} });
        assert!(closed.await.is_ok(), "{name}");
        drop(writing.await.unwrap());
    }
    assert_eq!(ask(gate.addr(), &ca.client(None, &[]), &short()).await.unwrap().status, 200);
    gate.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_served_inside_tls() {
    let (folder, ca) = (Folder::new(), Ca::new());
    folder.write("admin", &ca.issue(&["gate.example"]));
    std::fs::write(folder.path("ca.pem"), ca.pem()).unwrap();
    let fleet = Fleet::start(1, SimConfig::default()).await.unwrap();
    let yaml = format!(
        "admin:\n  tls:\n    certificates: [{}]\n    client_certificates: {{ca_files: [{}]}}\n",
        folder.entry("admin"),
        folder.path("ca.pem").display()
    );
    let gate = Gate::start(&fleet.addrs(), &yaml).await;
    let get = b"GET /metrics HTTP/1.1\r\nHost: gate\r\nConnection: close\r\n\r\n";
    let own = ca.client(Some(&ca.issue(&["prometheus.example"])), &[]);
    let answer = ask(gate.app().admin_addr(), &own, get).await.unwrap();
    assert!(answer.status == 200 && has(&answer.body, "admin.tls.certificates[0]"));
    assert!(ask(gate.app().admin_addr(), &ca.client(None, &[]), get).await.is_err());
    gate.finish().await;
}
