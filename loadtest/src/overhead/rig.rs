//! The processes of the harness: two backends and in front of them nginx, the bare Pingora proxy and the gate, each with one worker thread.
//!
//! Ports are free ones of 127.0.0.1; files live in a directory that goes with the rig. Dropping the rig ends every process it started.

use super::Args;
use crate::body::{Shape, nonce, templates};
use crate::client::Connection;
use crate::process::{Scratch, Started};
use crate::report::Report;
use crate::target::free_port;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const NGINX_CONF: &str = include_str!("../../nginx.conf.in");
const INSTALL: &str = "nginx was not found. Install it (Debian: apt-get update && apt-get install nginx-light) or name one with --nginx PATH or NGINX=PATH";

/// A proxy under measurement.
pub(super) struct Proxy {
    /// `nginx`, `bare` or `gate`.
    pub(super) name: &'static str,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Its process.
    pub(super) started: Started,
}

/// Everything that runs.
pub(super) struct Rig {
    /// In the order of a round; the gate is the last one if there is one.
    pub(super) proxies: Vec<Proxy>,
    gate: Option<(PathBuf, Vec<String>)>,
    pods: Vec<SocketAddr>,
    backends: Vec<Started>,
    scratch: Scratch,
}

impl Rig {
    /// Starts all and waits until every proxy answers.
    pub(super) async fn start(args: &Args, report: &Report) -> io::Result<Self> {
        let scratch = Scratch::new()?;
        let mut rig = Self { proxies: vec![], gate: None, pods: vec![], backends: vec![], scratch };
        for number in 0..2 {
            let (address, log) = (free_port()?, rig.scratch.file(&format!("backend-{number}.log")));
            let arguments = ["backend".to_owned(), "--listen".to_owned(), address.to_string()];
            rig.backends.push(Started::new(&std::env::current_exe()?, &arguments, &log)?);
            rig.pods.push(address);
            first_answer(address, Duration::from_secs(10)).await?;
        }
        rig.gate = args.gate.clone().map(|path| (path, args.gate_arg.clone()));
        let nginx = rig.nginx(args)?;
        rig.proxies.push(nginx);
        let names: &[&str] = if rig.gate.is_some() { &["bare", "gate"] } else { &["bare"] };
        for name in names {
            let proxy = rig.launch(name)?;
            rig.proxies.push(proxy);
        }
        for proxy in &mut rig.proxies {
            if let Err(error) = first_answer(proxy.address, Duration::from_secs(20)).await {
                let log = std::fs::read_to_string(rig.scratch.file(&format!("{}.log", proxy.name))).unwrap_or_default();
                let state = if proxy.started.is_over() { "has ended" } else { "does not answer" };
                return Err(io::Error::other(format!("{} {state} ({error}); it said:\n{log}", proxy.name)));
            }
            report.say(format!("{:>5} at {} (pid {})", proxy.name, proxy.address, proxy.started.pid()));
        }
        Ok(rig)
    }

    /// Names in the order of a round.
    pub(super) fn names(&self) -> Vec<&'static str> {
        self.proxies.iter().map(|proxy| proxy.name).collect()
    }

    /// Starts one more process of the proxy `name` (`bare` or `gate`).
    pub(super) fn launch(&self, name: &str) -> io::Result<Proxy> {
        let address = free_port()?;
        let log = self.scratch.file(&format!("{name}.log"));
        let mut arguments: Vec<String> = vec!["--listen".into(), address.to_string(), "--threads".into(), "1".into()];
        let pods = self.pods.iter();
        let (name, program) = if let (Some((path, more)), "gate") = (&self.gate, name) {
            arguments.insert(0, "serve".into());
            arguments.extend(["--admin".into(), free_port()?.to_string()]);
            arguments.extend(pods.flat_map(|pod| ["--pod".into(), format!("http://{pod}")]));
            arguments.extend(more.iter().cloned());
            ("gate", path.clone())
        } else {
            arguments.insert(0, "bare-pingora".into());
            arguments.extend(pods.flat_map(|pod| ["--pod".into(), pod.to_string()]));
            ("bare", std::env::current_exe()?)
        };
        Ok(Proxy { name, address, started: Started::new(&program, &arguments, &log)? })
    }

    fn nginx(&self, args: &Args) -> io::Result<Proxy> {
        let program = find(&args.nginx).ok_or_else(|| io::Error::other(INSTALL))?;
        let address = free_port()?;
        let dir = self.scratch.path().display().to_string();
        let mut conf = NGINX_CONF.replace("@DIR@", &dir).replace("@LISTEN@", &address.to_string());
        let buffer = args.nginx_log_buffer.as_ref().map_or(String::new(), |size| format!(" buffer={size} flush=1s"));
        conf = conf.replace("@LOG_BUFFER@", &buffer);
        for (mark, pod) in ["@POD_A@", "@POD_B@"].iter().zip(&self.pods) {
            conf = conf.replace(mark, &pod.to_string());
        }
        let path = self.scratch.file("nginx.conf");
        std::fs::write(&path, conf)?;
        let arguments: Vec<String> =
            ["-p", &dir, "-e", &format!("{dir}/nginx-error.log"), "-c", &path.display().to_string()]
                .map(str::to_owned)
                .into();
        let mut stop = Command::new(&program);
        stop.args(&arguments).args(["-s", "stop"]);
        let started = Started::new(&program, &arguments, &self.scratch.file("nginx.log"))?.stopped_by(stop);
        Ok(Proxy { name: "nginx", address, started })
    }
}

/// The program at this path or, for a bare name, on PATH or in the folders Debian keeps servers in.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/usr/local/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Asks until a chat request is answered with 200.
pub(crate) async fn first_answer(address: SocketAddr, patience: Duration) -> io::Result<()> {
    let shape = Shape {
        bytes: 230,
        prefixes: 1,
        model: crate::MODEL.to_owned(),
        max_tokens: 1,
        stream: false,
        interval_us: None,
        ..Shape::default()
    };
    let template = templates(&shape, "/v1/chat/completions").pop().ok_or_else(|| io::Error::other("no template"))?;
    let end = Instant::now() + patience;
    loop {
        let answer = async { Connection::open(address).await?.ask(&template, nonce(0), &mut ()).await };
        let last = match tokio::time::timeout(Duration::from_secs(2), answer).await {
            Ok(Ok(answer)) if answer.status == 200 => return Ok(()),
            Ok(Ok(answer)) => format!("status {}", answer.status),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "timeout".to_owned(),
        };
        if Instant::now() > end {
            return Err(io::Error::other(format!("no good answer from {address}: {last}")));
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
