//! How long an engine step takes, learnt from our own requests: deadlines, `Retry-After` and the ranking cost go by it.
//!
//! One model per **variant** (pods of one model, hardware and engine configuration), shared by its pods, with one slow factor
//! per pod. `a`, `c` and `d` come only from gaps between tokens without a prefill of ours in flight; `b` and `e` only from first
//! tokens that had nothing of ours to wait for; see [`Meter`] for what is clean and `fit` for how it is made robust. Before the
//! first sample, and in what was never varied, the prior holds. Pure: the data path and the policy lab call the same functions:
//!
//! ```text
//! let mut meter = Meter::new(&pod, &work, is_plain);           before Reservation::dispatch
//! meter.first_token(now, &pod, events); meter.events(now, &pod, events);
//! latency.learn(&pod, &meter, model, generated, cached);       once the request is over
//! latency.refresh(&fleet);                                     about once a second: publishes to every pod
//! ```
//! Readers take [`Pod::load`]`.step`, without a lock. A writer that finds its variant busy drops its samples.
mod fit;
mod meter;
#[cfg(test)]
mod tests;
mod variant;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parking_lot::{Mutex, RwLock};

pub use meter::{Batch, Meter, Sample};
pub use variant::{REGIMES, Report, Variant};

use crate::base::{ModelName, Tokens};
use crate::pods::{Fleet, Pod};

/// Most variants told apart; pods of further ones keep the prior.
pub const VARIANTS_MAX: usize = 64;
/// Most models whose answers are measured.
const MODELS_MAX: usize = 1_024;
/// Answers a model's mean remembers.
const ANSWERS_MEMORY: f64 = 200.0;

/// The latency model of all variants. Shared by all request tasks.
#[derive(Debug, Default)]
pub struct Latency {
    variants: RwLock<HashMap<Arc<str>, Arc<Mutex<Variant>>>>,
    answers: RwLock<HashMap<ModelName, Mutex<Mean>>>,
    dropped: AtomicU64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mean {
    seen: f64,
    mean: f64,
}

impl Latency {
    /// Takes what a request that is over has shown. As `usage` told them: `generated`, tokens of its answer; `cached`, those of its
    /// prompt, and of these from the cache.
    pub fn learn(
        &self,
        pod: &Pod,
        meter: &Meter,
        model: &str,
        generated: Option<Tokens>,
        cached: Option<(Tokens, Tokens)>,
    ) {
        if let Some(tokens) = generated.filter(|tokens| tokens.0 > 0) {
            self.answered(model, tokens);
        }
        for sample in meter.samples(pod, generated, cached) {
            self.observe(pod, &sample);
        }
    }

    /// Takes one observation; says whether there was room for it.
    pub fn observe(&self, pod: &Pod, sample: &Sample) -> bool {
        let Some(variant) = self.variant(pod) else { return false };
        let Some(mut variant) = variant.try_lock() else {
            self.dropped.fetch_add(1, Relaxed);
            return false;
        };
        // Published with the next refresh, to all pods alike: what was seen on one pod must not make it look unlike the others.
        variant.observe(pod.id, sample);
        true
    }

    /// Publishes what is known to every pod of the fleet, new ones included, and forgets those that left.
    pub fn refresh(&self, fleet: &Fleet) {
        let mut live: Vec<Arc<str>> = Vec::new();
        for pod in &fleet.pods {
            let name = variant_of(pod);
            self.publish(pod, &name);
            if !live.contains(&name) {
                live.push(name);
            }
        }
        let mut variants = self.variants.write();
        variants.retain(|name, _| live.contains(name));
        for variant in variants.values() {
            variant.lock().keep(|pod| fleet.find(pod).is_some());
        }
    }

    /// Tells a pod what is known of its variant.
    fn publish(&self, pod: &Pod, variant: &str) {
        let known = self.variants.read().get(variant).cloned();
        if let Some(variant) = known {
            pod.load.step.set(variant.lock().step(pod.id));
        }
    }

    /// Mean length of a model's answers \[tokens\]; `None` before the first.
    pub fn expected(&self, model: &str) -> Option<f64> {
        self.answers.read().get(model).map(|mean| mean.lock().mean)
    }

    /// Samples dropped because two came at once.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// What is known of each variant, by name.
    pub fn reports(&self) -> Vec<(Arc<str>, Report)> {
        let variants = self.variants.read();
        let mut all: Vec<_> =
            variants.iter().map(|(name, variant)| (Arc::clone(name), variant.lock().report())).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    fn answered(&self, model: &str, tokens: Tokens) {
        let learn = |mean: &Mutex<Mean>| {
            let mut mean = mean.lock();
            mean.seen = (mean.seen + 1.0).min(ANSWERS_MEMORY);
            mean.mean += (tokens.0 as f64 - mean.mean) / mean.seen;
        };
        if let Some(mean) = self.answers.read().get(model) {
            return learn(mean);
        }
        let mut answers = self.answers.write();
        if answers.len() < MODELS_MAX {
            learn(answers.entry(model.into()).or_default());
        }
    }

    fn variant(&self, pod: &Pod) -> Option<Arc<Mutex<Variant>>> {
        let name = variant_of(pod);
        if let Some(variant) = self.variants.read().get(&name) {
            return Some(Arc::clone(variant));
        }
        let mut variants = self.variants.write();
        let has_room = variants.len() < VARIANTS_MAX || variants.contains_key(&name);
        has_room.then(|| Arc::clone(variants.entry(name).or_default()))
    }
}

/// Name of the pods that are alike: the operator's label `variant` if there is one, else the base model, with what the engine
/// tells of its configuration (KV capacity, block size, version).
pub fn variant_of(pod: &Pod) -> Arc<str> {
    if let Some(label) = pod.spec.labels.get("variant") {
        return label.as_str().into();
    }
    let facts = pod.facts.load();
    let base = facts.served.iter().flatten().find(|served| served.parent.is_none());
    let model = base.map_or("unknown", |served| &*served.name);
    let number = |value: Option<u64>| value.map_or_else(|| "?".to_owned(), |value| value.to_string());
    let capacity = number(facts.capacity.map(|tokens| tokens.0));
    let block = number(facts.block_tokens.map(u64::from));
    let version = facts.version.as_deref().unwrap_or("?");
    format!("{model}/{capacity}/{block}/{version}").into()
}
