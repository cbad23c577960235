//! Models that are configured and have no pods: their requests wait for the first one, and are counted so that somebody starts it.
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::sleep;

use super::attempt::{Cut, watch};
use super::exchange::{End, Exchange};
use super::reply::Fault;
use crate::api::Api;
use crate::base::ModelName;
use crate::pods::Fleet;
use crate::runtime::now;

/// How often somebody looks whether there is a pod by now: starting one takes far longer.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Who waits for the first pod of which model.
#[derive(Debug, Default)]
pub struct Absent(Mutex<BTreeMap<ModelName, u64>>);

/// One that waits.
struct Waits<'a> {
    all: &'a Absent,
    model: ModelName,
}

impl Absent {
    /// Requests that wait, by model.
    pub fn census(&self) -> Vec<(ModelName, u64)> {
        self.0.lock().iter().map(|(model, count)| (ModelName::clone(model), *count)).collect()
    }

    fn enter(&self, model: &ModelName, most: u32) -> Option<Waits<'_>> {
        let mut all = self.0.lock();
        if all.values().sum::<u64>() >= u64::from(most) {
            return None;
        }
        *all.entry(ModelName::clone(model)).or_default() += 1;
        Some(Waits { all: self, model: ModelName::clone(model) })
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        let mut all = self.all.0.lock();
        if let Some(count) = all.get_mut(&self.model) {
            *count -= 1;
        }
        all.retain(|_, count| *count > 0);
    }
}

impl Exchange {
    /// The model that is asked for, if it is configured and has no pod, and one may wait for that.
    pub(super) fn absent(&self, asked: Option<&str>, fleet: &Fleet) -> Option<ModelName> {
        if self.rules.bounds.from_zero.wait_max_s == 0 {
            return None;
        }
        let asked = asked?;
        let model = self.target(asked, fleet).unwrap_or(asked);
        let (model, _) = self.rules.model_times.get_key_value(model)?;
        (!fleet.by_model.contains_key(model)).then(|| ModelName::clone(model))
    }

    /// Waits for the first pod of a model.
    pub(super) async fn appears(&mut self, model: &ModelName, stream: Option<Api>) -> Result<(), End> {
        let (gate, rules) = (Arc::clone(&self.gate), Arc::clone(&self.rules));
        let settings = &rules.bounds.from_zero;
        let until = self.note.started.after(Duration::from_secs(settings.wait_max_s.into()));
        let Some(_waits) = gate.absent.enter(model, settings.requests_max) else {
            return Err(Fault::NoPod("no_pods").into());
        };
        self.warm(stream);
        let began = now();
        while !gate.table.fleet().by_model.contains_key(model) {
            if now() >= until {
                return Err(Fault::NoPod("no_pods").into());
            }
            let never = std::future::pending::<()>();
            if let Err(Cut::Left(left)) = watch(&mut self.client, pin!(sleep(LOOK_EVERY)), never).await {
                return Err(left.into());
            }
        }
        self.note.queued_us += now().since(began).as_micros() as u64;
        self.traced("queue", began, Some(("tidegate.queue.for", "a_pod_of_the_model")));
        // What is promised counts from here: nobody could have kept it.
        self.note.read_at = Some(now());
        Ok(())
    }

    /// Sends comments until the answer of a stream begins, if so configured.
    pub(super) fn warm(&mut self, stream: Option<Api>) {
        if let Some((every, api)) = self.rules.comment_every.zip(stream.filter(|api| api.generates())) {
            self.client.keep_warm(api, every, &self.note.request_id);
        }
    }
}
