//! The good client that runs beside the bad ones: small chats at a steady rate, on connections of its own.
//!
//! It measures in windows, one per part of the sweep, so that a part that hurts others is named. A request that fails is a fault of the gate.

use super::Args;
use crate::backend::GOOD_MARK;
use crate::body::{Shape, nonce, templates};
use crate::client::Connection;
use crate::histogram::Histogram;
use crate::report::Report;
use serde_json::json;
use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::JoinHandle;

/// Always allowed on top, in microseconds: below it a loaded machine's scheduler is what is measured.
const SLACK_US: f64 = 50_000.0;
const CONNECTIONS: u32 = 4;

/// What the good client saw during one part.
#[derive(Clone, Default)]
pub(crate) struct Window {
    times: Histogram,
    failures: Vec<String>,
}

impl Window {
    /// One line for a person.
    pub(crate) fn line(&self) -> String {
        format!("{} failed, ms {}", self.failures.len(), self.times.line())
    }
}

/// The running client.
pub(crate) struct Good {
    window: Rc<RefCell<Window>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Good {
    /// Starts it; must run inside a `LocalSet`.
    pub(crate) fn start(args: &Args) -> Self {
        let shape = Shape {
            bytes: 1000,
            prefixes: 8,
            model: args.model.clone(),
            max_tokens: 4,
            stream: true,
            interval_us: Some(0),
            user: Some(GOOD_MARK.to_owned()),
            ..Shape::default()
        };
        let templates = Rc::new(templates(&shape, "/v1/chat/completions"));
        let window = Rc::new(RefCell::new(Window::default()));
        let gap = Duration::from_secs_f64(f64::from(CONNECTIONS) / args.good_rate.clamp(1.0, 1000.0));
        let task = |number: u32| {
            let (target, templates, window) = (args.target, templates.clone(), window.clone());
            tokio::task::spawn_local(async move {
                let mut connection: Option<Connection> = None;
                let mut next = tokio::time::interval(gap);
                for count in 0u64.. {
                    next.tick().await;
                    let Some(template) = templates.get(count as usize % templates.len()) else { return };
                    let work = async {
                        let mut open = match connection.take() {
                            Some(open) => open,
                            None => Connection::open(target).await?,
                        };
                        let answer = open.ask(template, nonce(count << 8 | u64::from(number)), &mut ()).await?;
                        let keep = answer.keep;
                        let is_good = answer.status == 200 && answer.done && answer.errors == 0;
                        if !is_good {
                            return Err(io::Error::other(format!("status {}, done {}", answer.status, answer.done)));
                        }
                        Ok::<_, io::Error>((answer.total, keep.then_some(open)))
                    };
                    match tokio::time::timeout(Duration::from_secs(10), work).await {
                        Ok(Ok((total, open))) => {
                            connection = open;
                            window.borrow_mut().times.add(total);
                        }
                        Ok(Err(error)) => window.borrow_mut().failures.push(error.to_string()),
                        Err(_) => window.borrow_mut().failures.push("timeout".to_owned()),
                    }
                }
            })
        };
        let tasks = (0..CONNECTIONS).map(task).collect();
        Self { window, tasks }
    }

    /// What was seen since the last call.
    pub(crate) fn window(&self) -> Window {
        self.window.take()
    }

    /// Ends it.
    pub(crate) async fn stop(self) {
        for task in self.tasks {
            task.abort();
            drop(task.await);
        }
    }
}

/// Holds every window against the first one.
pub(crate) fn judge(windows: &[(&str, Window)], factor: f64, report: &mut Report) {
    let p99 = |window: &Window| window.times.quantile_us(0.99).unwrap_or(f64::INFINITY);
    let alone = windows.first().map_or(f64::INFINITY, |(_, window)| p99(window));
    let bound = (alone * factor).max(alone + SLACK_US);
    let mut rows = Vec::new();
    for (name, window) in windows {
        report.say(format!("good client, {name}: {}", window.line()));
        rows.push(json!({"part": name, "failures": window.failures, "times": window.times.json()}));
        if let Some(first) = window.failures.first() {
            report.miss(format!("good client, {name}: {} requests failed, the first: {first}", window.failures.len()));
        }
        if p99(window) > bound {
            report.miss(format!(
                "good client, {name}: p99 {:.1} ms, alone {:.1} ms",
                p99(window) / 1000.0,
                alone / 1000.0
            ));
        }
    }
    report.put("good_client", rows);
}
