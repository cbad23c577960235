//! Writes down why: verdicts and costs per pod while a decision is made. Only used when detail is asked for; allocates.
//!
//! The rows of all pods are gathered, then cut to the bound: the chosen pod, the others by cost, the dropped ones by id.
use super::decision::{FilterCell, ROWS_MAX, ReadingCell, Row, ScoreCell};
use super::plugin::{Offer, Verdict};
use super::view::PodView;
use crate::base::PodId;

/// Reasons per pod, by position in the context.
#[derive(Debug, Default)]
pub(super) struct Trace {
    notes: Vec<Note>,
}

#[derive(Clone, Debug, Default)]
struct Note {
    filters: Vec<FilterCell>,
    scores: Vec<ScoreCell>,
    total: Option<f64>,
}

impl Trace {
    pub(super) fn new(pods: usize) -> Self {
        Self { notes: vec![Note::default(); pods] }
    }

    pub(super) fn judged(&mut self, filter: &'static str, kept: &[u32], verdicts: &[Verdict]) {
        for (&position, &verdict) in kept.iter().zip(verdicts) {
            self.note(position, |note| note.filters.push(FilterCell { filter, verdict }));
        }
    }

    pub(super) fn scored(
        &mut self,
        scorer: &'static str,
        kept: &[u32],
        counts: impl Iterator<Item = (Option<f64>, f64)>,
    ) {
        for (&position, (cost, counted)) in kept.iter().zip(counts) {
            self.note(position, |note| note.scores.push(ScoreCell { scorer, cost, counted, terms: Vec::new() }));
        }
    }

    /// Adds a term to what the last scorer said of a pod.
    pub(super) fn term(&mut self, position: u32, name: &'static str, value: f64) {
        self.note(position, |note| {
            if let Some(score) = note.scores.last_mut() {
                score.terms.push((name, value));
            }
        });
    }

    pub(super) fn totalled(&mut self, kept: &[u32], offers: &[Offer]) {
        for (&position, offer) in kept.iter().zip(offers) {
            self.note(position, |note| note.total = Some(offer.cost));
        }
    }

    fn note(&mut self, position: u32, write: impl FnOnce(&mut Note)) {
        if let Some(note) = self.notes.get_mut(position as usize) {
            write(note);
        }
    }

    /// The bounded rows, in a fixed order that does not depend on the order of the pods.
    pub(super) fn rows(self, pods: &[PodView], chosen: Option<PodId>) -> Vec<Row> {
        let mut all: Vec<_> = pods.iter().zip(self.notes).collect();
        all.sort_by(|(a_pod, a), (b_pod, b)| {
            let group = |pod: &PodView, note: &Note| (Some(pod.id) != chosen, note.total.is_none());
            let cost = |note: &Note| note.total.unwrap_or(0.0);
            let by_cost = cost(a).total_cmp(&cost(b));
            group(a_pod, a).cmp(&group(b_pod, b)).then(by_cost).then(a_pod.id.cmp(&b_pod.id))
        });
        all.truncate(ROWS_MAX);
        all.into_iter().map(|(pod, note)| row(pod, note)).collect()
    }
}

fn row(pod: &PodView, note: Note) -> Row {
    Row {
        pod: pod.id,
        hit_tokens: pod.hit.0,
        coming_tokens: pod.coming.0,
        guessed_tokens: pod.guessed.0,
        requests: pod.load.requests,
        decoding: pod.load.decoding(),
        queued_tokens: pod.load.prefill_tokens.0,
        wait_s: pod.load.wait_s,
        pinned_tokens: pod.load.pinned_tokens.0,
        capacity_tokens: pod.capacity.map(|tokens| tokens.0),
        step: pod.step.terms().to_vec(),
        reading: pod.reading.as_ref().zip(pod.age).map(|(reading, age)| ReadingCell {
            age_ms: u64::try_from(age.as_millis()).unwrap_or(u64::MAX),
            running: reading.running,
            waiting: reading.waiting,
            kv_used: reading.kv_used.filter(|used| used.is_finite()),
            foreign: pod.foreign,
        }),
        filters: note.filters,
        scores: note.scores,
        total: note.total,
    }
}
