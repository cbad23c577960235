//! What is booked for an attempt: load, health, a claim in the prefix index; given back when it ends, however that is.
use std::sync::Arc;

use http::StatusCode;

use super::gate::Gate;
use super::intake::Facts;
use super::legs::Fed;
use super::plan::{Choice, Part};
use crate::api::Usage;
use crate::base::{Mono, PodId, Tokens};
use crate::disagg::{Check, Sentinel};
use crate::pods::{Attempt, Outcome, Reservation};
use crate::prefix::{Claim, Extension};
use crate::runtime::now;
use crate::scheduling::{Guesses, Meter};

/// What was booked for an attempt; whatever is not settled is given back when it is dropped.
pub(super) struct Trial<'a> {
    gate: Arc<Gate>,
    facts: &'a Facts,
    pub(super) pod: PodId,
    pub(super) started: Mono,
    health: Option<Attempt>,
    booked: Reservation,
    meter: Meter,
    claim: Option<Claim>,
    guesses: Guesses,
    is_confirmed: bool,
    part: Part,
    /// What the answer adds to the prompt.
    pub(super) extension: Option<Box<Extension>>,
    /// For a decode: whose blocks it reads.
    pub(super) fed: Option<Box<Fed>>,
    /// For a decode: watches over its first token.
    pub(super) sentinel: Option<Box<Sentinel>>,
}

impl<'a> Trial<'a> {
    pub(super) fn begin(gate: &Arc<Gate>, facts: &'a Facts, choice: &Choice, health: Attempt) -> Self {
        let started = now();
        let work = choice.work(started, facts.is_stream);
        let meter = Meter::new(&choice.pod, &work, choice.is_plain(facts));
        let prompt = facts.prompt.as_ref();
        gate.index.set_pinned(choice.pod.id, choice.pod.load.now().generated_tokens);
        Self {
            facts,
            pod: choice.pod.id,
            started,
            health: Some(health),
            booked: Reservation::dispatch(Arc::clone(&choice.pod), &work),
            meter,
            claim: prompt.map(|prompt| gate.index.claim(prompt, choice.pod.id)),
            guesses: choice.guesses,
            is_confirmed: false,
            part: choice.part,
            fed: None,
            sentinel: None,
            extension: facts
                .api
                .filter(|_| choice.part != Part::Prefill)
                .zip(prompt)
                .and_then(|(api, prompt)| Extension::of(api, prompt))
                .map(Box::new),
            gate: Arc::clone(gate),
        }
    }

    /// The first data came. A success says that the prompt is in the pod's cache; a failure of the pod's own is no sign of
    /// health.
    pub(super) fn answered(&mut self, status: StatusCode) {
        let now = now();
        self.booked.first_token(now);
        if status.is_server_error() {
            return;
        }
        self.meter.first_token(now, self.booked.pod(), 0);
        if let Some(health) = &mut self.health {
            health.answered(now);
        }
        self.gate.guards.answered(now, &self.facts.account, self.pod);
        if let Some((prompt, claim)) = self.facts.prompt.as_ref().zip(self.claim).filter(|_| status.is_success()) {
            self.gate.index.confirm(prompt, claim);
            self.is_confirmed = true;
        }
    }

    /// `events` of the stream came, the first of them with [`Trial::answered`].
    pub(super) fn came(&mut self, at: Mono, events: u64) {
        self.booked.tokens(events);
        self.meter.events(at, self.booked.pod(), events);
    }

    /// The pod it is booked on.
    pub(super) fn booked_on(&self) -> &Arc<crate::pods::Pod> {
        self.booked.pod()
    }

    /// Bytes of the answer came.
    pub(super) fn heard(&self, at: Mono) {
        if let Some(health) = &self.health {
            health.heard(at);
        }
    }

    /// It ended well for the pod; `usage` is what the pod told.
    pub(super) fn settled(mut self, usage: Option<Usage>, outcome: Outcome) {
        if let Some((usage, (prompt, claim))) = usage.zip(self.facts.prompt.as_ref().zip(self.claim)) {
            // A decoder that was given the KV tells what the prefiller had cached.
            let cached = usage.cached_tokens.map(Tokens).filter(|_| self.part != Part::Decode);
            self.gate.index.learn(prompt, claim, Tokens(usage.prompt_tokens), cached);
            if let Some(cached) = cached {
                self.gate.peers.learn(&self.guesses, self.pod, claim.expected, cached);
            }
        }
        if outcome == Outcome::Good {
            let generates = self.facts.api.is_some_and(crate::api::Api::generates);
            let generated =
                usage.filter(|_| generates && self.part != Part::Prefill).map(|usage| usage.completion_tokens);
            let each = generated.map(|tokens| Tokens(tokens / u64::from(self.facts.asks.answers.max(1))));
            let cached = usage.filter(|_| self.part != Part::Decode);
            let cached = cached.and_then(|told| Some((Tokens(told.prompt_tokens), Tokens(told.cached_tokens?))));
            self.gate.latency.learn(self.booked.pod(), &self.meter, &self.facts.model, each, cached);
            self.answer_ended(usage);
            self.booked.served();
            // That a body can be prefilled does not say that it can be decoded.
            if self.part != Part::Prefill {
                self.gate.guards.served(now(), || self.facts.body_key());
            }
        }
        self.over(outcome);
    }

    /// The pod holds its answer behind the prompt.
    fn answer_ended(&mut self, usage: Option<Usage>) {
        let answer = self.extension.take().and_then(|extension| extension.close());
        if let Some((answer, (prompt, claim))) = answer.zip(self.facts.prompt.as_ref().zip(self.claim)) {
            let tokens = usage.map(|usage| Tokens(usage.prompt_tokens) + Tokens(usage.completion_tokens));
            self.gate.index.extend(prompt, claim, &answer, tokens);
        }
    }

    /// What the check of the first token says; `None`: more of the answer is needed.
    pub(super) fn checked(&self) -> Option<Check> {
        self.sentinel.as_ref().map_or(Some(Check::Open), |sentinel| sentinel.said())
    }

    /// Whether an answer that should show what was handed over has shown nothing at all.
    pub(super) fn is_mute(&self) -> bool {
        self.fed.is_some()
            && self.sentinel.as_ref().is_some_and(|sentinel| sentinel.said().is_none() && !sentinel.has_text())
    }

    /// Tells the pod's health how it went.
    pub(super) fn over(&mut self, outcome: Outcome) {
        if let Some(health) = self.health.take() {
            health.end(now(), outcome);
        }
    }
}

impl Drop for Trial<'_> {
    fn drop(&mut self) {
        if !self.is_confirmed
            && let Some((prompt, claim)) = self.facts.prompt.as_ref().zip(self.claim)
        {
            self.gate.index.withdraw(prompt, claim);
        }
    }
}
