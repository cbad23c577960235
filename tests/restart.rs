//! The gate as a process: signals, exit codes, sockets that are handed over, and what clients notice of it: nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use std::io::BufRead as _;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use kit::wire::{ask, begin, connect, has, rest};
use kit::{PATIENCE, chat, get, post, request};
use tidegate::sim::http::{Fault, Rule, SimConfig, SimPod};
use tokio::io::AsyncWriteExt as _;
use tokio::task::JoinHandle;

const CHAT: &str = "/v1/chat/completions";

/// A gate in a folder of its own, started by the link `gate` there.
struct Process {
    dir: PathBuf,
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
}

impl Process {
    async fn start(pod: &SimPod, yaml: &str) -> Self {
        Self::start_with(pod, yaml, |_| {}).await
    }

    /// The same with something about the command changed.
    async fn start_with(pod: &SimPod, yaml: &str, change: impl FnOnce(&mut Command)) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-restart-{}-{}", std::process::id(), NUMBER.fetch_add(1, SeqCst));
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("gate.yaml"), yaml).unwrap();
        symlink(env!("CARGO_BIN_EXE_tidegate"), dir.join("gate")).unwrap();
        let mut command = Command::new(dir.join("gate"));
        command
            .args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--threads", "2"])
            .args(["--access-log", "off", "--pod", &pod.url(), "--config"])
            .arg(dir.join("gate.yaml"))
            .arg("--pid-file")
            .arg(dir.join("pid"))
            .stderr(Stdio::piped());
        change(&mut command);
        let mut child = command.spawn().unwrap();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let (lines, kept) = (std::io::BufReader::new(child.stderr.take().unwrap()).lines(), Arc::clone(&log));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| kept.lock().unwrap().push(line)));
        let gate = Self { dir, child, log };
        gate.says("ready").await;
        let served = async { while post(gate.addr(), CHAT, "", &chat("sim", "x", false, 1)).await.status != 200 {} };
        tokio::time::timeout(PATIENCE, served).await.expect("the gate serves");
        gate
    }

    /// Waits until the log has `count` lines with `part`.
    #[allow(clippy::disallowed_methods, reason = "polls: a process tells of itself by its log only")]
    async fn says_times(&self, part: &str, count: usize) {
        let said = tokio::time::timeout(PATIENCE, async {
            while self.log.lock().unwrap().iter().filter(|line| line.contains(part)).count() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        });
        assert!(said.await.is_ok(), "never said {part}: {:#?}", self.log.lock().unwrap());
    }

    async fn says(&self, part: &str) {
        self.says_times(part, 1).await;
    }

    fn told(&self, key: &str) -> SocketAddr {
        let log = self.log.lock().unwrap();
        let line = log.iter().find(|line| line.contains("serving") && line.contains(key)).unwrap();
        line.split(key).nth(1).unwrap().split_whitespace().next().unwrap().parse().unwrap()
    }

    fn addr(&self) -> SocketAddr {
        self.told(" addr=")
    }

    fn admin(&self) -> SocketAddr {
        self.told(" admin=")
    }

    fn configure(&self, yaml: &str) {
        std::fs::write(self.dir.join("next"), yaml).unwrap();
        std::fs::rename(self.dir.join("next"), self.dir.join("gate.yaml")).unwrap();
    }

    async fn metric(&self, name: &str) -> u64 {
        let text = get(self.admin(), "/metrics").await.text();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned));
        line.map_or(0, |value| value.parse().unwrap())
    }

    fn kill(&self, signal: &str) {
        kill(signal, self.child.id());
    }

    /// Which process serves, by the file it wrote.
    fn pid(&self) -> u32 {
        std::fs::read_to_string(self.dir.join("pid")).unwrap().trim().parse().unwrap()
    }

    /// Exit code of the process that was started first.
    #[allow(clippy::disallowed_methods, reason = "polls: std has no wait with a limit")]
    async fn ended(&mut self) -> Option<i32> {
        let ended = async {
            loop {
                if let Some(status) = self.child.try_wait().unwrap() {
                    return status.code();
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("the process ends")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            kill("KILL", self.child.id());
        }
        let _is_gone = self.child.wait();
        // A process that took over; it is not ours to wait for.
        if self.dir.join("pid").exists() && self.pid() != self.child.id() {
            kill("KILL", self.pid());
        }
        std::fs::remove_dir_all(&self.dir).unwrap();
    }
}

fn kill(signal: &str, pid: u32) {
    let status = Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).stderr(Stdio::null()).status();
    assert!(status.unwrap().success() || signal == "KILL");
}

async fn pod() -> SimPod {
    SimPod::start(SimConfig::default()).await.unwrap()
}

/// Clients with connections that they use as long as they may. Returns what failed, and how many were answered.
struct Load(Arc<AtomicBool>, Vec<JoinHandle<(u32, Vec<String>)>>);

impl Load {
    fn start(addr: SocketAddr) -> Self {
        let stop = Arc::<AtomicBool>::default();
        let client = |number| {
            let stop = Arc::clone(&stop);
            tokio::spawn(async move {
                let (mut answered, mut failed) = (0, Vec::new());
                let body = request(CHAT, "", &chat("sim", &format!("load {number}"), number % 2 == 0, 2));
                let mut io = connect(addr).await;
                while !stop.load(SeqCst) {
                    let answer = ask(&mut io, &body).await;
                    if answer.status == 200 && answer.is_whole {
                        answered += 1;
                    } else {
                        failed.push(format!("{} {}", answer.status, answer.text()));
                    }
                    if answer.status == 0 || answer.header("connection") == Some("close") {
                        io = connect(addr).await;
                    }
                }
                (answered, failed)
            })
        };
        let clients = (0..4).map(client).collect();
        Self(stop, clients)
    }

    async fn all_good(self) {
        self.0.store(true, SeqCst);
        let mut all = 0;
        for client in self.1 {
            let (answered, failed) = client.await.unwrap();
            assert!(failed.is_empty(), "{failed:?}");
            all += answered;
        }
        assert!(all > 20, "{all} requests are no load");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_reloads_fail_nobody_and_a_bad_file_is_refused() {
    let pod = pod().await;
    let gate = Process::start(&pod, "").await;
    let load = Load::start(gate.addr());
    let first = gate.metric("tidegate_config_hash").await;
    for number in 0..100 {
        gate.configure(&format!("listen: {{drain_max_s: {}}}\n", 90 + number));
        gate.kill("HUP");
        gate.says_times("configuration reloaded", number + 1).await;
    }
    load.all_good().await;
    gate.configure(
        "observe: {explain: true}\nlisten: {addr: '127.0.0.1:0', drain_max_s: 9}\nadmin: {changes_from: nobody}\n",
    );
    gate.kill("HUP");
    gate.says("admin.changes_from").await;
    gate.says_times("configuration reloaded", 101).await;
    let generation = gate.metric("tidegate_config_generation").await;
    assert!(generation > 2 && gate.metric("tidegate_config_hash").await != first);
    assert_eq!(gate.metric("tidegate_config_needs_restart{key=\"admin.changes_from\"}").await, 1);
    assert_eq!(gate.metric("tidegate_config_last_reload_successful").await, 1);
    let shown = get(gate.admin(), "/config").await.json();
    assert_eq!(
        (shown["generation"].as_u64(), shown["settings"]["observe"]["explain"].as_bool()),
        (Some(generation), Some(true))
    );
    gate.configure("observe: {explain: maybe}\n");
    gate.kill("HUP");
    gate.says("configuration not taken").await;
    gate.says("^").await;
    assert_eq!(gate.metric("tidegate_config_last_reload_successful").await, 0);
    assert_eq!(gate.metric("tidegate_config_generation").await, generation, "the old one stays");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_loses_nobody_and_ends_with_0() {
    let pod = pod().await;
    pod.script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))).marker("long"));
    let mut gate = Process::start(&pod, "listen: {drain_accept_s: 1, drain_max_s: 20}").await;
    let (addr, admin) = (gate.addr(), gate.admin());
    let short = request(CHAT, "", &chat("sim", "short", false, 1));
    let long = request(CHAT, "", &chat("sim", "long", true, 150));
    let (mut io, begun) = begin(addr, &long, |bytes| has(bytes, "data: ")).await;
    let mut idle = connect(addr).await;
    assert_eq!(ask(&mut idle, &short).await.status, 200);
    gate.kill("TERM");
    gate.says("draining").await;
    assert_eq!(get(admin, "/readyz").await.status, 503);
    for (what, answer) in [("new", ask(&mut connect(addr).await, &short).await), ("kept", ask(&mut idle, &short).await)]
    {
        assert_eq!((answer.status, answer.header("connection")), (200, Some("close")), "{what}");
    }
    let answer = rest(&mut io, begun).await;
    assert!(answer.is_whole && has(&answer.body, "data: [DONE]"), "{}", answer.text());
    assert_eq!(gate.ended().await, Some(0));
    assert!(tokio::net::TcpStream::connect(addr).await.is_err(), "nobody listens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_cuts_and_says_so() {
    let pod = pod().await;
    pod.script(Rule::new(Fault::SilenceAtEvent(3)).marker("held"));
    let mut gate = Process::start(&pod, "listen: {drain_accept_s: 60, drain_max_s: 600}").await;
    let held = request(CHAT, "", &chat("sim", "held", true, 50));
    let (mut io, begun) = begin(gate.addr(), &held, |bytes| has(bytes, "data: ")).await;
    gate.kill("TERM");
    gate.says("draining").await;
    gate.kill("INT");
    let answer = rest(&mut io, begun).await;
    assert!(!has(&answer.body, "data: [DONE]") && has(&answer.body, "error"), "{}", answer.text());
    assert_eq!(gate.ended().await, Some(3));
    gate.says("told a second time").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upgrade_is_noticed_by_nobody() {
    let pod = pod().await;
    pod.script(Rule::new(Fault::SlowTokens(Duration::from_millis(20))).marker("long"));
    let mut gate = Process::start(&pod, "listen: {drain_accept_s: 1, drain_max_s: 20}").await;
    let (addr, link) = (gate.addr(), gate.dir.join("gate"));
    let replace = |with: &Path| {
        symlink(with, link.with_extension("next")).unwrap();
        std::fs::rename(link.with_extension("next"), &link).unwrap();
    };
    let load = Load::start(addr);
    // A program that ends at once.
    replace(Path::new("/bin/false"));
    gate.kill("USR2");
    gate.says("not upgraded").await;
    assert_eq!(gate.pid(), gate.child.id());
    // The real one, while a stream runs.
    replace(Path::new(env!("CARGO_BIN_EXE_tidegate")));
    let long = request(CHAT, "", &chat("sim", "long", true, 150));
    let (mut io, begun) = begin(addr, &long, |bytes| has(bytes, "data: ")).await;
    gate.kill("USR2");
    gate.says("another process has taken over").await;
    assert_ne!(gate.pid(), gate.child.id());
    let answer = rest(&mut io, begun).await;
    assert!(answer.is_whole && has(&answer.body, "data: [DONE]"), "{}", answer.text());
    assert_eq!(gate.ended().await, Some(0));
    load.all_good().await;
    assert_eq!(get(gate.admin(), "/readyz").await.status, 200, "the new one answers operators");
    kill("TERM", gate.pid());
    gate.says_times("drain ended", 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_told_to_end_does_not_wait_for_a_new_binary() {
    let pod = pod().await;
    let mut gate = Process::start(&pod, "listen: {drain_accept_s: 0}").await;
    let (link, slow) = (gate.dir.join("gate"), gate.dir.join("slow"));
    std::fs::write(&slow, "#!/bin/sh\necho taking over >&2\nexec sleep 1000\n").unwrap();
    std::fs::set_permissions(&slow, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(&slow, &link).unwrap();
    gate.kill("USR2");
    gate.says("taking over").await;
    gate.kill("TERM");
    gate.says("not upgraded").await;
    assert_eq!(gate.ended().await, Some(0));
    gate.says("the gate was told to end").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_manager_holds_the_socket_and_hears_how_it_is() {
    let pod = pod().await;
    let path = std::env::temp_dir().join(format!("tidegate-manager-{}", std::process::id()));
    let manager = UnixDatagram::bind(&path).unwrap();
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = held.local_addr().unwrap();
    // A client that came before the gate.
    let mut early = connect(addr).await;
    early.write_all(&request(CHAT, "", &chat("sim", "early", false, 1))).await.unwrap();
    let given = held.try_clone().unwrap();
    let mut gate = Process::start_with(&pod, "listen: {drain_accept_s: 0}", |command| {
        command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "100000");
        command.env("LISTEN_FDS", "1").env("LISTEN_FDNAMES", "listen");
        command.fd_mappings(vec![FdMapping { parent_fd: OwnedFd::from(given), child_fd: 3 }]).unwrap();
    })
    .await;
    assert_eq!(gate.addr(), addr, "the inherited socket");
    assert_eq!(rest(&mut early, Vec::new()).await.status, 200);
    gate.kill("HUP");
    gate.says("configuration reloaded").await;
    gate.kill("TERM");
    assert_eq!(gate.ended().await, Some(0));
    manager.set_nonblocking(true).unwrap();
    let (mut told, mut text) = (Vec::new(), [0; 200]);
    while let Ok(count) = manager.recv(&mut text) {
        told.push(String::from_utf8_lossy(&text[..count]).split('\n').next().unwrap().to_owned());
    }
    assert!(told.iter().any(|state| state == "WATCHDOG=1"), "{told:?}");
    told.retain(|state| state != "WATCHDOG=1");
    assert_eq!(told, ["READY=1", "RELOADING=1", "READY=1", "STOPPING=1"]);
    assert!(std::net::TcpStream::connect(addr).is_ok(), "the manager still holds the socket");
    std::fs::remove_file(path).unwrap();
}
