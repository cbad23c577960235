//! One visit at one address: scrape, read the models if it is time, publish, tell.
//!
//! What was learnt of an address is kept here and given to each of its pods (data-parallel ranks). Only the first failure
//! and the first success after it are logged, so a pod that is down for a day fills no log.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use super::fetch::{Answer, Caps, FetchError, Line};
use super::metrics::{Engine, Scrape};
use super::models;
use super::scraper::{Event, Telemetry};
use crate::base::{Mono, Rng};
use crate::pods::{Facts, Life, Lives, Pod, Served};
use crate::runtime::now;

/// How soon `/v1/models` is asked again after it failed.
const MODELS_RETRY: Duration = Duration::from_secs(1);

/// What is known of one address.
pub(super) struct Visitor {
    telemetry: Arc<Telemetry>,
    addr: SocketAddr,
    line: Option<Line>,
    lives: Lives,
    served: Option<Vec<Served>>,
    version: Option<String>,
    models_due: Mono,
    version_due: bool,
    failures: u32,
    /// Last told of this address: (part, what is wrong with it).
    complaints: Vec<(&'static str, String)>,
}

impl Visitor {
    pub(super) fn new(telemetry: Arc<Telemetry>, addr: SocketAddr) -> Self {
        Self {
            telemetry,
            addr,
            line: None,
            lives: Lives::default(),
            served: None,
            version: None,
            models_due: Mono::ZERO,
            version_due: true,
            failures: 0,
            complaints: Vec::new(),
        }
    }

    /// Time to the next visit.
    pub(super) fn pause(&self, rng: &mut Rng) -> Duration {
        self.telemetry.pause(self.failures, rng)
    }

    /// One visit. Nothing is asked if the address is no longer in the fleet.
    pub(super) async fn visit(&mut self, began: Mono) {
        let pods = self.pods();
        if pods.is_empty() {
            return;
        }
        let scraped = self.ask("/metrics").await;
        // Somebody who refuses the connection refuses the next one too; all others may still tell their models.
        let is_reached = !matches!(scraped, Err(FetchError::Connect(_) | FetchError::Tls(..)));
        let is_refused = matches!(scraped, Err(FetchError::Connect(io::ErrorKind::ConnectionRefused)));
        let scrape = self.judge("metrics", scraped).map(|answer| Scrape::parse(&answer.body));
        match &scrape {
            Some(scrape) => {
                self.settle("metrics");
                self.take(scrape);
            }
            None => pods.iter().for_each(|pod| (self.telemetry.observer)(Event::Failed(pod))),
        }
        if is_refused {
            for pod in &pods {
                (self.telemetry.observer)(Event::Refused(pod));
            }
        }
        if is_reached && began >= self.models_due {
            self.read_models().await;
        }
        self.publish(scrape.as_ref());
        self.failures = if scrape.is_some() { 0 } else { self.failures.saturating_add(1) };
        self.pods().iter().for_each(|pod| pod.tried());
    }

    fn pods(&self) -> Vec<Arc<Pod>> {
        self.telemetry.table.fleet().endpoint(&self.addr).cloned().collect()
    }

    async fn ask(&mut self, path: &str) -> Result<Answer, FetchError> {
        let settings = self.telemetry.settings.load_full();
        let caps = Caps { timeout: Duration::from_millis(settings.timeout_ms), body_bytes: settings.body_max_bytes };
        let key = self.telemetry.credential.key();
        let first = self.pods().into_iter().next();
        let tls = first.as_ref().and_then(|pod| pod.spec.tls.as_ref());
        let kept = self.line.take().filter(|line| line.is_for(tls));
        let mut line = kept.unwrap_or_else(|| {
            let authority = first.as_ref().map(|pod| Arc::clone(&pod.spec.authority));
            let authority = authority.unwrap_or_else(|| self.addr.to_string().into());
            Line::new(self.addr, authority, tls.cloned(), Arc::clone(&self.telemetry.connectors))
        });
        let answer = line.get(path, key.as_deref().map(String::as_str), caps).await;
        self.line = Some(line);
        answer
    }

    /// The answer if it is a good one. Counts contact, and tells what is wrong, once.
    fn judge(&mut self, part: &'static str, answer: Result<Answer, FetchError>) -> Option<Answer> {
        let is_answer = answer.is_ok();
        for pod in self.pods() {
            if is_answer { pod.reached() } else { pod.unreached() }
        }
        match answer {
            Ok(answer) if answer.status == 200 => Some(answer),
            Ok(Answer { status: status @ (401 | 403), .. }) => {
                self.complain(part, format!("status {status}; does pods.credential_file hold the pod's key?"));
                None
            }
            Ok(Answer { status, .. }) => {
                self.complain(part, format!("status {status}"));
                None
            }
            Err(error) => {
                self.complain(part, error.to_string());
                None
            }
        }
    }

    /// Takes a scrape's news of the process and its ranks.
    fn take(&mut self, scrape: &Scrape) {
        let pods = self.pods();
        let now = now();
        match self.lives.see(now, scrape.witness()) {
            Life::Same => {}
            Life::Restarted => {
                self.models_due = Mono::ZERO;
                self.version_due = true;
                for pod in &pods {
                    tracing::info!(pod = %pod.id, authority = %pod.spec.authority, "pod restarted");
                    pod.restarted(now);
                    (self.telemetry.observer)(Event::Restarted(pod));
                }
            }
            Life::Virtual => {
                if let Some(pod) = pods.first() {
                    tracing::warn!(
                        pod = %pod.id,
                        authority = %pod.spec.authority,
                        "several servers answer at this address in turn; load and prefix cache cannot be told apart. \
                         Give the pods' own addresses, or a name that resolves to each of them"
                    );
                    (self.telemetry.observer)(Event::Virtual(pod));
                }
            }
        }
        if let Some(count) = scrape.ranks()
            && self.telemetry.table.set_ranks(self.addr, count).added.len() > 1
        {
            tracing::info!(addr = %self.addr, ranks = count, "endpoint has several data-parallel ranks");
        }
    }

    async fn read_models(&mut self) {
        let interval = Duration::from_millis(self.telemetry.settings.load().models_interval_ms);
        let answer = self.ask("/v1/models").await;
        let answer = self.judge("models", answer);
        let read = answer.map(|answer| models::models(&answer.body));
        self.models_due = now().after(if matches!(read, Some(Ok(_))) { interval } else { interval.min(MODELS_RETRY) });
        match read {
            Some(Ok(served)) => {
                self.settle("models");
                self.served = Some(served);
            }
            Some(Err(error)) => self.complain("models", error.to_string()),
            None => return,
        }
        if self.version_due
            && let Ok(answer) = self.ask("/version").await
        {
            // A server without a version is one all the same: asked once per start.
            self.version_due = false;
            self.version = models::version(&answer.body);
        }
    }

    /// Gives what is known to the address's pods.
    fn publish(&self, scrape: Option<&Scrape>) {
        let now = now();
        let mut is_stale = false;
        for pod in self.pods() {
            let rank = pod.spec.rank.unwrap_or(0);
            let engine = scrape.and_then(|scrape| scrape.engines.iter().find(|engine| engine.rank == rank));
            let before = pod.facts.load_full();
            let facts = self.facts(&before, scrape, engine);
            if facts != *before {
                is_stale |= pod.learn(facts);
                (self.telemetry.observer)(Event::Learnt(&pod));
            }
            if let Some(engine) = engine {
                pod.read(engine.reading(now, pod.load.now()));
            }
            if scrape.is_some() {
                (self.telemetry.observer)(Event::Scraped(&pod));
            }
        }
        if is_stale {
            self.telemetry.stale.notify_one();
        }
    }

    fn facts(&self, before: &Facts, scrape: Option<&Scrape>, engine: Option<&Engine>) -> Facts {
        Facts {
            served: self.served.clone().or_else(|| before.served.clone()),
            started_at_s: scrape.and_then(|scrape| scrape.started_at_s).or(before.started_at_s),
            block_tokens: engine.and_then(Engine::block_tokens).or(before.block_tokens),
            capacity: engine.and_then(Engine::capacity).or(before.capacity),
            version: self.version.clone().or_else(|| before.version.clone()),
            sleep: engine.map_or(before.sleep, Engine::sleep),
        }
    }

    fn complain(&mut self, part: &'static str, what: String) {
        if self.complaints.iter().any(|told| *told == (part, what.clone())) {
            return;
        }
        if let Some(pod) = self.pods().first() {
            tracing::warn!(pod = %pod.id, authority = %pod.spec.authority, part, problem = what, "telemetry failed");
        }
        self.complaints.retain(|told| told.0 != part);
        self.complaints.push((part, what));
    }

    fn settle(&mut self, part: &'static str) {
        let before = self.complaints.len();
        self.complaints.retain(|told| told.0 != part);
        if self.complaints.len() < before
            && let Some(pod) = self.pods().first()
        {
            tracing::info!(pod = %pod.id, authority = %pod.spec.authority, part, "telemetry works again");
        }
    }
}

#[cfg(test)]
mod tests;
