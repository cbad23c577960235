//! Replaces the program without closing its sockets: the new process inherits them, and this one goes on until the new one
//! has said that it is ready.
#![allow(
    clippy::disallowed_methods,
    reason = "the service manager, and the process that is replaced, speak through the environment"
)]
use std::io::{self, Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};

use crate::runtime::now;

/// Set for a process that takes over; it says on standard input, a pipe, that it is ready.
const MARK: &str = "TIDEGATE_TAKES_OVER";
/// How often it is looked whether the new process is still wanted.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What it says.
const READY: &[u8] = b"ready\n";
/// First inherited descriptor.
const FIRST_FD: i32 = 3;
/// Longest time for the new process to become ready.
pub(super) const READY_WITHIN: Duration = Duration::from_mins(1);

/// Whether this process replaces another that still runs.
pub(super) fn is_taking_over() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Tells the process that is replaced that it may leave.
pub(super) fn took_over() -> io::Result<()> {
    let mut pipe = std::fs::File::from(io::stdin().as_fd().try_clone_to_owned()?);
    pipe.write_all(READY)
}

/// Starts the program that is at this one's path now, with its arguments and these sockets. Returns when it is ready; one that
/// does not become so, or is `given_up`, is ended.
pub(super) fn start(sockets: &[(&'static str, TcpListener)], given_up: &AtomicBool) -> io::Result<u32> {
    let mut args = std::env::args_os();
    let program = args.next().ok_or_else(|| io::Error::other("the path of this program is not known"))?;
    let mut mappings = Vec::new();
    for ((_, socket), child_fd) in sockets.iter().zip(FIRST_FD..) {
        mappings.push(FdMapping { parent_fd: OwnedFd::from(socket.try_clone()?), child_fd });
    }
    let names: Vec<_> = sockets.iter().map(|(name, _)| *name).collect();
    let (mut said, says) = io::pipe()?;
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::from(OwnedFd::from(says)));
    command.env(MARK, "1").env("LISTEN_FDS", sockets.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
    // These name the process that is replaced. Its successor is watched as soon as systemd knows it.
    command.env_remove("LISTEN_PID").env_remove("WATCHDOG_PID").env_remove("LISTEN_PIDFDID");
    command.fd_mappings(mappings).map_err(io::Error::other)?;
    let mut child = command.spawn()?;
    // It holds the other end of the pipe.
    drop(command);
    let (heard, hears) = mpsc::channel();
    std::thread::Builder::new().name("takeover".into()).spawn(move || {
        let mut word = [0; READY.len()];
        drop(heard.send(said.read_exact(&mut word).map(|()| word)));
    })?;
    let until = now().after(READY_WITHIN);
    loop {
        match hears.recv_timeout(LOOK_EVERY) {
            Ok(Ok(word)) if word == READY => return Ok(child.id()),
            Err(RecvTimeoutError::Timeout) if given_up.load(Relaxed) => {
                return Err(ended(&mut child, "the gate was told to end"));
            }
            Err(RecvTimeoutError::Timeout) if now() < until => {}
            Err(_) => return Err(ended(&mut child, "it was not ready in time")),
            Ok(_) => return Err(ended(&mut child, "it ended, or closed its standard input, before it was ready")),
        }
    }
}

/// Ends what is left of a process that failed, and says how.
fn ended(child: &mut Child, why: &str) -> io::Error {
    let _is_gone_already = child.kill();
    match child.wait() {
        Ok(status) => io::Error::other(format!("{why} ({status}); its own log says more")),
        Err(error) => error,
    }
}
