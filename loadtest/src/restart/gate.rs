//! A gate as a process: how it is started, told what to do, and how it ended.

use crate::process::{Scratch, Started};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Longest wait for a gate to say something.
const PATIENCE: Duration = Duration::from_secs(30);

/// One gate.
pub(super) struct Gate {
    started: Started,
    log: PathBuf,
    config: PathBuf,
    pid_file: PathBuf,
    /// Where clients connect.
    pub(super) addr: SocketAddr,
    /// Where operators look.
    pub(super) admin: SocketAddr,
}

impl Gate {
    /// Starts one in front of these pods and waits until it is ready.
    pub(super) async fn start(
        program: &Path,
        pods: &[SocketAddr],
        scratch: &Scratch,
        name: &str,
        drain_max_s: u32,
    ) -> io::Result<Self> {
        let file = |ending: &str| scratch.file(&format!("{name}.{ending}"));
        let (log, config, pid_file) = (file("log"), file("yaml"), file("pid"));
        std::fs::write(&config, text(drain_max_s, 0))?;
        let mut arguments: Vec<String> =
            ["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--access-log", "off"]
                .map(str::to_owned)
                .to_vec();
        arguments.extend(["--config".to_owned(), config.display().to_string()]);
        arguments.extend(["--pid-file".to_owned(), pid_file.display().to_string()]);
        for pod in pods {
            arguments.extend(["--pod".to_owned(), format!("http://{pod}")]);
        }
        let started = Started::new(program, &arguments, &log)?;
        let none = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut gate = Self { started, log, config, pid_file, addr: none, admin: none };
        gate.wait("ready", || gate.log().contains(" ready")).await?;
        gate.addr = gate.told(" addr=")?;
        gate.admin = gate.told(" admin=")?;
        Ok(gate)
    }

    /// Everything it has said.
    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn told(&self, key: &str) -> io::Result<SocketAddr> {
        let log = self.log();
        let word = log.lines().filter(|line| line.contains("serving")).find_map(|line| line.split(key).nth(1));
        let word = word.and_then(|rest| rest.split_whitespace().next()).and_then(|word| word.parse().ok());
        word.ok_or_else(|| io::Error::other(format!("the gate does not say{key}; is its log not `info`?")))
    }

    /// The process that serves, by the file it wrote.
    pub(super) fn pid(&self) -> u32 {
        let text = std::fs::read_to_string(&self.pid_file).unwrap_or_default();
        text.trim().parse().unwrap_or_else(|_| self.started.pid())
    }

    /// Sends a signal to the process that serves.
    pub(super) fn signal(&self, name: &str) -> io::Result<()> {
        let sent = Command::new("kill").args(["-s", name, &self.pid().to_string()]).status()?;
        if sent.success() { Ok(()) } else { Err(io::Error::other(format!("no process to send {name} to"))) }
    }

    /// Writes a changed configuration and has it read; returns once the gate says that this one is in force.
    pub(super) async fn reload(&self, drain_max_s: u32, number: u32) -> io::Result<()> {
        let aside = self.config.with_extension("next");
        std::fs::write(&aside, text(drain_max_s, number))?;
        std::fs::rename(&aside, &self.config)?;
        let before = self.log().matches("configuration reloaded").count();
        self.signal("HUP")?;
        self.wait("configuration reloaded", || self.log().matches("configuration reloaded").count() > before).await
    }

    /// Hands everything over to a new process; returns once that one serves.
    pub(super) async fn upgrade(&self) -> io::Result<()> {
        let before = self.pid();
        self.signal("USR2")?;
        self.wait("another process has taken over", || self.pid() != before).await
    }

    /// Exit code of the process that was started here, once it has ended.
    pub(super) fn code(&mut self) -> Option<i32> {
        self.started.code()
    }

    async fn wait(&self, what: &str, is_so: impl Fn() -> bool) -> io::Result<()> {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !is_so() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.map_err(|_| io::Error::other(format!("the gate never says `{what}`:\n{}", self.log())))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // One that took over is no child of ours.
        if self.pid() != self.started.pid() {
            drop(self.signal("KILL"));
        }
    }
}

/// A configuration; another number is another configuration.
fn text(drain_max_s: u32, number: u32) -> String {
    format!(
        "listen: {{drain_max_s: {drain_max_s}}}\nlimits: {{body_bytes_max: {}}}\nobserve: {{log: info}}\n",
        (1 << 24) + number
    )
}
