//! Processes this tool starts, and what the kernel says of any process: CPU time and memory.
//!
//! CPU time is the sum over the process and its descendants. The scheduler's own count in nanoseconds is used where it agrees with the
//! ticks of `stat` (it misses threads that ended); otherwise the ticks. A child is ended, by its id, when its handle is dropped.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Length of a tick of `/proc/PID/stat` (USER_HZ is 100 on every Linux this runs on).
const TICK: Duration = Duration::from_millis(10);

/// A started process; dropping it ends it.
pub(crate) struct Started {
    child: Child,
    /// Command to end it in an orderly way, if killing would leave children behind.
    stop: Option<Command>,
}

impl Started {
    /// Starts `program` with its output in `log`.
    pub(crate) fn new(program: &Path, arguments: &[String], log: &Path) -> io::Result<Self> {
        let out = fs::File::create(log)?;
        let errors = out.try_clone()?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .map_err(|error| io::Error::other(format!("cannot start {}: {error}", program.display())))?;
        Ok(Self { child, stop: None })
    }

    /// Ends the process with this command instead of a kill.
    pub(crate) fn stopped_by(mut self, stop: Command) -> Self {
        self.stop = Some(stop);
        self
    }

    /// Process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its exit code, once it has ended by itself.
    pub(crate) fn code(&mut self) -> Option<i32> {
        self.child.try_wait().ok().flatten().and_then(|status| status.code())
    }

    /// Whether it has ended by itself.
    pub(crate) fn is_over(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)))
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let asked = self.stop.as_mut().is_some_and(|stop| stop.status().is_ok_and(|status| status.success()));
        if !asked {
            drop(self.child.kill());
        }
        drop(self.child.wait());
    }
}

/// A directory of this run, removed at the end.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// A new directory below the system's temporary directory.
    pub(crate) fn new() -> io::Result<Self> {
        let path = std::env::temp_dir().join(format!("loadtest-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    /// Path of a file in it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

/// CPU time used so far by a process and its descendants.
pub(crate) fn cpu_time(pid: u32) -> io::Result<Duration> {
    let mut sum = Duration::ZERO;
    for pid in family(pid) {
        let ticks = ticks(pid)?;
        let fine = scheduler_time(pid).unwrap_or_default();
        let agrees = fine + 2 * TICK + ticks / 50 >= ticks;
        sum += if agrees { fine } else { ticks };
    }
    Ok(sum)
}

fn ticks(pid: u32) -> io::Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let mut numbers = fields.split_whitespace().skip(11).filter_map(|field| field.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(user), Some(system)) => Ok(TICK * (user + system)),
        _ => Err(io::Error::other(format!("/proc/{pid}/stat cannot be read"))),
    }
}

/// Nanoseconds on a CPU, over all live threads.
fn scheduler_time(pid: u32) -> io::Result<Duration> {
    let mut sum = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        sum += text.split_whitespace().next().and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
    }
    Ok(Duration::from_nanos(sum))
}

/// The process and all its descendants.
fn family(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(pid) = all.get(at).copied() {
        at += 1;
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            all.extend(text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
    }
    all
}

/// Resident memory of one process in bytes.
pub(crate) fn resident_bytes(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.map(|number| number * 1024).ok_or_else(|| io::Error::other(format!("/proc/{pid}/status shows no VmRSS")))
}

/// Soft limit of open descriptors of this process.
pub(crate) fn descriptors() -> u64 {
    let text = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Max open files"));
    line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse().ok()).unwrap_or(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn own_accounting_grows_with_work() {
        let pid = std::process::id();
        let before = cpu_time(pid).unwrap();
        let mut dice = crate::schedule::Dice::new(1);
        let start = std::time::Instant::now();
        let mut sum = 0u64;
        while start.elapsed() < Duration::from_millis(60) {
            sum = sum.wrapping_add(dice.bits());
        }
        let used = cpu_time(pid).unwrap().checked_sub(before).unwrap();
        assert!(used > Duration::ZERO, "work of {sum} must show, saw {used:?}");
        assert!(resident_bytes(pid).unwrap() > 1 << 20);
        assert!(descriptors() >= 64);
    }

    #[test]
    fn a_dropped_child_is_gone() {
        let scratch = Scratch::new().unwrap();
        let mut started = Started::new(Path::new("/bin/sleep"), &["60".to_owned()], &scratch.file("log")).unwrap();
        let pid = started.pid();
        assert!(!started.is_over());
        assert!(family(std::process::id()).contains(&pid), "children are part of the family");
        drop(started);
        assert!(cpu_time(pid).is_err());
    }
}
