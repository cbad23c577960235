//! Everything the program logs, at every level, for tests that hold that something is never written.
use std::sync::Arc;

use parking_lot::Mutex;

/// What was logged in this process so far.
#[derive(Clone, Default)]
pub struct Heard(Arc<Mutex<Vec<u8>>>);

/// Listens from now on. Once per process.
pub fn everything() -> Heard {
    let heard = Heard::default();
    let writer = heard.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing_subscriber::filter::LevelFilter::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).unwrap();
    tracing_log::LogTracer::init().unwrap();
    heard
}

impl Heard {
    /// Whether a line was logged that contains all of `marks`.
    pub fn has(&self, marks: &[&str]) -> bool {
        let log = String::from_utf8(self.0.lock().clone()).unwrap();
        log.lines().any(|line| marks.iter().all(|mark| line.contains(mark)))
    }

    /// Fails if anything was logged that contains `mark`, or nothing at all.
    pub fn lacks(&self, mark: &str) {
        let log = String::from_utf8(self.0.lock().clone()).unwrap();
        let told: Vec<_> = log.lines().filter(|line| line.contains(mark)).take(5).collect();
        assert!(log.len() > 100 && told.is_empty(), "{told:#?}");
    }
}

impl std::io::Write for Heard {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
