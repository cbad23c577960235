//! The access log: a bounded channel and one writer thread.
//!
//! A line that finds the channel full is dropped and counted in `access_log_dropped_total`; a request never waits for a disk
//! or a pipe. Lines are written in batches. A file is opened again when it was moved away, so that rotation by rename works.
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::observe::{AccessRecord, Metrics, access::LINE_BYTES};

/// Lines that may wait for the writer.
pub const LINES_MAX: usize = 8_192;

/// Bytes written at once at most, except for one longer line.
pub const BATCH_BYTES: usize = 256 * 1024;

/// How long the writer waits for more lines once it has one. A writer that slept is woken once per batch, not per line.
const LINGER: Duration = Duration::from_millis(10);

/// How often the writer looks whether its file was moved away.
const ROTATION_CHECK: Duration = Duration::from_secs(1);

/// Where access lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}

impl FromStr for Target {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "" => Err("write `-` for standard output, `off`, or the path of a file"),
            "-" => Ok(Self::Stdout),
            "off" => Ok(Self::Off),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// Handle of the access log. Cloning shares the writer. When the last handle is dropped the writer ends after the lines it
/// has.
#[derive(Clone, Debug)]
pub struct AccessLog {
    lines: Option<SyncSender<String>>,
    metrics: Arc<Metrics>,
}

/// Waits for the writer's end, so that no line is lost at shutdown.
#[derive(Debug)]
pub struct Writer(Option<JoinHandle<()>>);

impl Writer {
    /// Returns true when every handle is dropped and every line is written, or false after `limit`: lines may be lost then.
    pub fn join_within(&mut self, limit: Duration) -> bool {
        let until = crate::runtime::now().after(limit);
        while self.0.as_ref().is_some_and(|thread| !thread.is_finished()) {
            if crate::runtime::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(thread) = self.0.take()
            && thread.join().is_err()
        {
            tracing::error!("access log writer panicked");
        }
        true
    }
}

impl AccessLog {
    /// Opens the target and starts the writer. Fails if the file cannot be opened or the thread not be started.
    pub fn start(target: &Target, metrics: Arc<Metrics>) -> io::Result<(Self, Writer)> {
        let sink: Box<dyn Sink> = match target {
            Target::Off => return Ok((Self { lines: None, metrics }, Writer(None))),
            Target::Stdout => Box::new(Plain(io::stdout())),
            Target::File(path) => Box::new(Rotating::open(path)?),
        };
        Self::with_sink(sink, LINES_MAX, metrics)
    }

    fn with_sink(sink: Box<dyn Sink>, lines_max: usize, metrics: Arc<Metrics>) -> io::Result<(Self, Writer)> {
        let (sender, receiver) = sync_channel(lines_max);
        let counters = Arc::clone(&metrics);
        let thread = std::thread::Builder::new()
            .name("access-log".into())
            .spawn(move || write_lines(&receiver, sink, &counters))?;
        Ok((Self { lines: Some(sender), metrics }, Writer(Some(thread))))
    }

    /// Whether lines go anywhere; if not, callers can spare themselves building one.
    pub const fn is_on(&self) -> bool {
        self.lines.is_some()
    }

    /// Hands a line to the writer, or counts it as dropped.
    pub fn write(&self, record: &AccessRecord<'_>) {
        let Some(lines) = &self.lines else { return };
        let mut line = String::with_capacity(LINE_BYTES);
        record.to_json_line(&mut line);
        if lines.try_send(line).is_err() {
            self.metrics.access_log_dropped.fetch_add(1, Relaxed);
        }
    }
}

trait Sink: Send {
    fn write_batch(&mut self, batch: &[u8]) -> io::Result<()>;
    /// Called about once a second.
    fn check(&mut self) {}
}

struct Plain<W>(W);

impl<W: Write + Send> Sink for Plain<W> {
    fn write_batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.0.write_all(batch)?;
        self.0.flush()
    }
}

struct Rotating {
    path: PathBuf,
    file: File,
}

impl Rotating {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { path: path.to_path_buf(), file })
    }
}

impl Sink for Rotating {
    fn write_batch(&mut self, batch: &[u8]) -> io::Result<()> {
        self.file.write_all(batch)
    }

    fn check(&mut self) {
        let is_same = match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
            _ => false,
        };
        if !is_same && let Ok(fresh) = Self::open(&self.path) {
            *self = fresh;
        }
    }
}

fn write_lines(lines: &Receiver<String>, mut sink: Box<dyn Sink>, metrics: &Metrics) {
    let mut batch = Vec::with_capacity(BATCH_BYTES);
    let (mut since_check, mut is_failing) = (crate::runtime::now(), false);
    loop {
        let is_open = match lines.recv_timeout(ROTATION_CHECK) {
            Ok(line) => {
                batch.extend_from_slice(line.as_bytes());
                std::thread::sleep(LINGER);
                true
            }
            Err(RecvTimeoutError::Timeout) => true,
            Err(RecvTimeoutError::Disconnected) => false,
        };
        let mut count = u64::from(!batch.is_empty());
        while batch.len() < BATCH_BYTES
            && let Ok(line) = lines.try_recv()
        {
            batch.extend_from_slice(line.as_bytes());
            count += 1;
        }
        if crate::runtime::now().since(since_check) >= ROTATION_CHECK {
            sink.check();
            since_check = crate::runtime::now();
        }
        if count > 0 {
            let outcome = sink.write_batch(&batch);
            if let Err(error) = &outcome {
                metrics.access_log_dropped.fetch_add(count, Relaxed);
                if !is_failing {
                    tracing::error!(%error, "access log cannot be written; lines are dropped and counted");
                }
            }
            is_failing = outcome.is_err();
            batch.clear();
        }
        if !is_open {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::sync::Mutex;

    use super::*;
    use crate::observe::{Cause, MetricLimits};

    struct Gated {
        gate: Receiver<()>,
        out: Arc<Mutex<Vec<u8>>>,
    }

    impl Sink for Gated {
        fn write_batch(&mut self, batch: &[u8]) -> io::Result<()> {
            let _open_or_gone = self.gate.recv();
            self.out.lock().unwrap().extend_from_slice(batch);
            Ok(())
        }
    }

    fn record(id: &str) -> AccessRecord<'_> {
        AccessRecord::new(0, id, "POST", "chat", Cause::Ok)
    }

    #[test]
    fn a_stuck_writer_drops_and_counts_but_never_blocks() {
        let metrics = Metrics::new(MetricLimits::default());
        let (open_gate, gate) = sync_channel(1);
        let out = Arc::new(Mutex::new(Vec::new()));
        let sink = Box::new(Gated { gate, out: Arc::clone(&out) });
        let (log, mut writer) = AccessLog::with_sink(sink, 4, Arc::clone(&metrics)).unwrap();
        for number in 0..1_000 {
            log.write(&record(&number.to_string()));
        }
        let dropped = metrics.access_log_dropped.load(Relaxed);
        assert!(dropped > 0);
        drop(log);
        assert!(!writer.join_within(Duration::ZERO), "its sink is stuck");
        drop(open_gate);
        assert!(writer.join_within(Duration::from_secs(20)));
        let written = String::from_utf8(out.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count() as u64 + dropped, 1_000);
        assert!(written.lines().all(|line| serde_json::from_str::<serde_json::Value>(line).is_ok()));
    }

    #[test]
    fn a_moved_file_is_opened_again() {
        let folder = std::env::temp_dir().join(format!("tidegate-access-log-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, moved) = (folder.join("access.log"), folder.join("access.log.1"));
        let mut sink = Rotating::open(&path).unwrap();
        sink.write_batch(b"1\n").unwrap();
        sink.check();
        std::fs::rename(&path, &moved).unwrap();
        sink.check();
        sink.write_batch(b"2\n").unwrap();
        assert_eq!((std::fs::read(&moved).unwrap(), std::fs::read(&path).unwrap()), (b"1\n".to_vec(), b"2\n".to_vec()));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn targets() {
        assert_eq!("-".parse(), Ok(Target::Stdout));
        assert_eq!("off".parse(), Ok(Target::Off));
        assert_eq!("/tmp/x".parse(), Ok(Target::File("/tmp/x".into())));
        assert!("".parse::<Target>().is_err());
        let metrics = Metrics::new(MetricLimits::default());
        let (log, mut writer) = AccessLog::start(&Target::Off, metrics).unwrap();
        assert!(!log.is_on());
        log.write(&record("x"));
        assert!(writer.join_within(Duration::ZERO));
    }
}
