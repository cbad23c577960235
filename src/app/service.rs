//! A gate as a service: signals in, exit code out; told to the service manager on the way.
//!
//! ```text
//! SIGHUP            reads the configuration again
//! SIGUSR2           starts the program anew with the same sockets; leaves once that is ready, stays if it is not
//! SIGTERM, SIGINT   drains and ends with 0; a second one cuts what still runs and ends with 3
//! ```
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use super::notify::{Notify, watchdog_interval};
use super::{App, upgrade};
use crate::runtime::replace;

/// Exit code after a drain that was cut by a second signal.
pub const EXIT_CUT: u8 = 3;
/// How often a gate that is not ready yet is asked.
const ASK_EVERY: Duration = Duration::from_millis(20);

enum Wish {
    Reload,
    Upgrade,
    End,
}

struct Signals {
    reload: Signal,
    upgrade: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            reload: signal(SignalKind::hangup())?,
            upgrade: signal(SignalKind::user_defined2())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::End,
            _ = self.interrupt.recv() => Wish::End,
            _ = self.reload.recv() => Wish::Reload,
            _ = self.upgrade.recv() => Wish::Upgrade,
        }
    }

    /// The next wish to end; others come too late.
    async fn end(&mut self) {
        while !matches!(self.next().await, Wish::End) {
            tracing::warn!("the gate drains: too late for a reload or an upgrade");
        }
    }
}

/// What a service is run with, beside the gate.
#[derive(Debug)]
pub struct Service {
    runtime: Runtime,
    signals: Signals,
    notify: Notify,
    pid_file: Option<PathBuf>,
}

impl std::fmt::Debug for Signals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signals")
    }
}

impl Service {
    /// Listens to signals from now on, so that none of the start is lost.
    pub fn listen(pid_file: Option<PathBuf>) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = runtime.block_on(async { Signals::listen() })?;
        Ok(Self { runtime, signals, notify: Notify::from_env(), pid_file })
    }

    /// Serves until told to end; returns the exit code.
    pub fn run(mut self, app: App) -> io::Result<u8> {
        let mut is_told = false;
        feed_watchdog(&app, self.notify.clone())?;
        loop {
            if !is_told && app.is_ready() {
                is_told = true;
                self.ready()?;
            }
            let wish = self.runtime.block_on(async {
                let patience = if is_told { Duration::MAX } else { ASK_EVERY };
                tokio::time::timeout(patience, self.signals.next()).await.ok()
            });
            match wish {
                None => {}
                Some(Wish::Reload) => {
                    self.notify.reloading();
                    app.reload();
                    self.notify.tell("READY=1");
                }
                Some(Wish::Upgrade) => {
                    app.save_prefixes();
                    tracing::info!("starting the program that takes over");
                    let (started, is_over) = self.upgrade(&app);
                    match started {
                        Ok(pid) => {
                            self.notify.tell(&format!("MAINPID={pid}\nREADY=1"));
                            tracing::info!(pid, "another process has taken over; draining");
                            return Ok(self.leave(app, true));
                        }
                        Err(error) => tracing::error!(%error, "not upgraded; this process goes on serving"),
                    }
                    if is_over {
                        return Ok(self.end(app));
                    }
                }
                Some(Wish::End) => return Ok(self.end(app)),
            }
        }
    }

    fn end(self, app: App) -> u8 {
        self.notify.tell("STOPPING=1");
        self.leave(app, false)
    }

    /// Starts the program that takes over; whether this one was told to end meanwhile, which gives the other up.
    fn upgrade(&mut self, app: &App) -> (io::Result<u32>, bool) {
        let given_up = AtomicBool::new(false);
        let (done, mut is_done) = oneshot::channel();
        std::thread::scope(|scope| {
            // Nobody hears it only if this thread panics.
            scope.spawn(|| drop(done.send(upgrade::start(app.sockets(), &given_up))));
            let started = self.runtime.block_on(async {
                loop {
                    tokio::select! {
                        started = &mut is_done => return started,
                        wish = self.signals.next() => match wish {
                            Wish::End => given_up.store(true, Relaxed),
                            Wish::Reload | Wish::Upgrade => tracing::warn!("an upgrade is under way: ask again when it is over"),
                        }
                    }
                }
            });
            (
                started.unwrap_or_else(|_| Err(io::Error::other("the thread that starts it ended"))),
                given_up.load(Relaxed),
            )
        })
    }

    /// The gate is ready: says so to whom it may concern.
    fn ready(&self) -> io::Result<()> {
        if let Some(path) = &self.pid_file {
            replace(path, format!("{}\n", std::process::id()).as_bytes())?;
        }
        if upgrade::is_taking_over() {
            // It may have died meanwhile; then there is nobody to tell, and all the more reason to serve.
            if let Err(error) = upgrade::took_over() {
                tracing::warn!(%error, "the process that is replaced cannot be told");
            }
        } else {
            self.notify.tell("READY=1");
        }
        tracing::info!("ready");
        Ok(())
    }

    /// Drains while a second signal is listened to.
    fn leave(mut self, app: App, is_replaced: bool) -> u8 {
        let hurry = app.hurry();
        let is_cut = Arc::clone(&hurry);
        // Runs until the process ends.
        let listener = std::thread::Builder::new().name("signals".into()).spawn(move || {
            self.runtime.block_on(self.signals.end());
            tracing::warn!("told a second time to end: what still runs is cut");
            hurry.store(true, Relaxed);
        });
        if let Err(error) = listener {
            tracing::error!(%error, "a second signal will not be heard");
        }
        if is_replaced {
            app.retire();
        } else {
            app.drain();
        }
        if is_cut.load(Relaxed) { EXIT_CUT } else { 0 }
    }
}

/// Feeds the service manager's watchdog as long as the control thread and every worker run.
fn feed_watchdog(app: &App, notify: Notify) -> io::Result<()> {
    let Some(interval) = watchdog_interval() else { return Ok(()) };
    let health = app.health();
    std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        loop {
            if health() {
                notify.tell("WATCHDOG=1");
            } else {
                tracing::error!("a thread hangs: the watchdog is not fed");
            }
            std::thread::sleep(interval);
        }
    })?;
    Ok(())
}
