//! Background tasks that are watched: a panic is logged, and dropping the handle ends the task.
#![allow(clippy::disallowed_methods, reason = "the one place that spawns")]
use std::future::Future;

use tokio::task::JoinHandle;

/// Handle of a supervised task. Dropping it aborts the task; [`Task::detach`] lets it run on.
#[derive(Debug)]
#[must_use = "dropping the handle ends the task"]
pub struct Task(Option<JoinHandle<()>>);

/// Starts `future` on the current runtime; a panic in it is reported under `name`, not lost.
pub fn supervise<F>(name: &'static str, future: F) -> Task
where
    F: Future<Output = ()> + Send + 'static,
{
    let inner = tokio::spawn(future);
    Task(Some(tokio::spawn(Guarded { inner, name }.watch())))
}

/// Aborts the inner task when the watching one is dropped.
struct Guarded {
    inner: JoinHandle<()>,
    name: &'static str,
}

impl Guarded {
    async fn watch(mut self) {
        if let Err(ended) = (&mut self.inner).await
            && ended.is_panic()
        {
            tracing::error!(task = self.name, "background task panicked");
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.inner.abort();
    }
}

impl Task {
    /// Lets the task run on without a handle, to its own end or the runtime's.
    pub fn detach(mut self) {
        self.0.take();
    }

    /// Waits for the end of the task.
    pub async fn ended(mut self) {
        if let Some(handle) = self.0.take() {
            let _ended_or_aborted = handle.await;
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.abort();
        }
    }
}

/// Lets a connection's task run on its own on this worker's runtime; a panic in it ends that task only.
pub fn spawn_connection<F>(future: F)
where
    F: Future<Output = ()> + Send + 'static,
{
    drop(tokio::spawn(future));
}
