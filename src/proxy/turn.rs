//! A request's turn: what it asks of the queue, the wait, and the pod it is let go to.
use std::pin::Pin;
use std::sync::Arc;

use tokio::time::Sleep;

use super::attempt::{Trial, Tried};
use super::exchange::{End, Exchange};
use super::gate::Phase;
use super::intake::Facts;
use super::legs::Legs;
use super::plan::{Choice, Pair, Part};
use super::reply::Fault;
use super::waitroom::{Permit, Said};
use crate::api::Usage;
use crate::base::{PodId, Tokens};
use crate::flow::{Class, Pool, TicketId, Wish};
use crate::pods::{Leave, StepTime};
use crate::runtime::now;

/// Times to the first token by which requests without a promise are ordered \[seconds\].
const ORDER_S: [f64; Class::ALL.len()] = [5.0, 30.0, 600.0];

/// What a request costs a pod: its prefill, and the part of decode steps that its answer takes \[microseconds\].
fn cost_us(step: StepTime, prompt: Tokens, cached: Tokens, output: f64) -> u64 {
    let prefill = step.prefill(prompt.less(cached).0, cached.0);
    let slot = output * (step.c + step.d * prompt.0 as f64);
    ((prefill + slot) * 1e6) as u64
}

impl Exchange {
    /// Waits for the turn of a request at the pod that was chosen for it, or at another.
    pub(super) async fn turn(
        &mut self,
        facts: &Facts,
        choice: Choice,
        partner: Option<PodId>,
        tried: &[PodId],
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<(Option<Permit>, Choice), End> {
        // Where nobody is in good standing, whoever is forced to take it takes it now; and what prefills nothing needs no room.
        let is_forced = !matches!(choice.leave, Leave::Granted) && facts.pinned.is_none();
        let is_exempt = !self.rules.bounds.queue.enabled || is_forced || facts.prompt.is_none();
        let Some(ticket) = self.ticket.as_ref().map(super::guards::Ticket::id).filter(|_| !is_exempt) else {
            return Ok((None, choice));
        };
        let wish = self.wish(facts, &choice, ticket, partner, tried);
        let asked = now();
        let permit = match self.gate.waitroom.ask(&self.gate, wish) {
            Said::Go(permit) => {
                self.gate.metrics.queue_outcomes.inc("at_once");
                permit
            }
            Said::Refused(refusal) => {
                self.gate.metrics.queue_outcomes.inc("refused");
                return Err(Fault::Queue(refusal).into());
            }
            Said::Wait(waiting) => {
                self.at(Phase::Queue);
                let called = tokio::select! {
                    biased;
                    called = waiting.called() => called,
                    left = self.client.left() => {
                        self.gate.metrics.queue_outcomes.inc("left");
                        return Err(left.into());
                    }
                };
                self.gate.metrics.queue_outcomes.inc(if called.is_ok() { "waited" } else { "refused" });
                let waited = now().since(asked);
                self.note.queued_us += waited.as_micros() as u64;
                if let Some(waits) =
                    self.gate.metrics.queue_waits.get(facts.caller.class as usize).filter(|_| called.is_ok())
                {
                    waits.observe(waited);
                }
                // Many leave at once when a page is closed: who has left by now is not sent.
                tokio::task::yield_now().await;
                tokio::select! {
                    biased;
                    left = self.client.left() => return Err(left.into()),
                    () = std::future::ready(()) => {}
                }
                // The time that a pod has begins when it is asked.
                let deadline = alarm.deadline() + waited;
                alarm.as_mut().reset(deadline);
                called.map_err(Fault::Queue)?
            }
        };
        let choice = if permit.pod == choice.pod.id {
            choice
        } else {
            let fleet = self.gate.table.fleet();
            let Some(pod) = fleet.find(permit.pod) else { return Err(Fault::NoPod("no_pods").into()) };
            choice.on(Arc::clone(pod))
        };
        Ok((Some(permit), choice))
    }

    /// Serves a request on two pods, once both have room.
    pub(super) async fn both(
        &mut self,
        facts: &Facts,
        mut pair: Box<Pair>,
        tried: &mut Vec<PodId>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Legs, End> {
        let partner = Some(pair.decode.pod.id);
        let (permit, prefill) = self.turn(facts, pair.prefill, partner, tried, alarm.as_mut()).await?;
        pair = Box::new(Pair { prefill, decode: pair.decode });
        drop(self.hold(permit));
        // Its blocks are worth more than the room: it is not taken back.
        if let Some(permit) = &self.permit {
            permit.commit();
        }
        let ended = self.legs(facts, pair, tried, alarm).await;
        self.let_go();
        ended
    }

    /// Keeps a permit whose pod is booked; ends when it is taken back.
    pub(super) fn hold(&mut self, permit: Option<Permit>) -> impl Future<Output = ()> + use<> {
        let recalled = permit.as_ref().map(Permit::recalled);
        permit.iter().for_each(Permit::booked);
        self.permit = permit;
        async move {
            match recalled {
                Some(recalled) => recalled.await,
                None => std::future::pending().await,
            }
        }
    }

    /// One attempt, unless the pod is wanted for somebody else before anything reached the client: then `None`.
    pub(super) async fn attempt_unless(
        &mut self,
        recalled: impl Future<Output = ()>,
        facts: &Facts,
        choice: &Choice,
        trial: &mut Trial<'_>,
        alarm: Pin<&mut Sleep>,
    ) -> Result<Option<Tried>, End> {
        let tried = tokio::select! {
            biased;
            tried = self.attempt(facts, choice, trial, alarm) => Some(tried?),
            () = recalled => None,
        };
        Ok(tried.filter(|_| !self.was_recalled()))
    }

    /// Whether the permit was taken back.
    fn was_recalled(&self) -> bool {
        self.permit.as_ref().is_some_and(Permit::was_recalled)
    }

    /// Gives the permit back, after all that was booked.
    pub(super) fn let_go(&mut self) {
        self.permit = None;
    }

    /// Gives the permit back and says what the request really cost.
    pub(super) fn paid(&mut self, choice: &Choice, usage: Option<&Usage>) {
        if let Some((permit, usage)) = self.permit.as_mut().zip(usage) {
            permit.cost(settled_us(choice, usage));
        }
        self.let_go();
    }

    fn wish(&self, facts: &Facts, choice: &Choice, ticket: TicketId, partner: Option<PodId>, tried: &[PodId]) -> Wish {
        let (prompt, step) = (choice.prompt, choice.pod.load.step.get());
        let prefill_us = |hit: Tokens| (step.prefill(prompt.less(hit).0, hit.0) * 1e6) as u64;
        let class = facts.caller.class;
        let promised = self.note.slo.ttft_s;
        let slack_s = promised.or_else(|| ORDER_S.get(class as usize).copied()).unwrap_or(60.0);
        let arrived = self.note.read_at.unwrap_or(self.note.started);
        let is_prefill = choice.part == Part::Prefill;
        let output = if is_prefill { 0.0 } else { choice.output };
        Wish {
            ticket,
            pool: Pool { model: facts.account.clone(), is_prefill },
            class,
            tenant: Arc::clone(&facts.caller.tenant),
            weight: self.identity.policy.weight,
            cost_us: cost_us(step, prompt, choice.hit, output),
            kv: Tokens(prompt.0 + (0.5 * output) as u64),
            places: choice.places.iter().map(|(pod, hit)| (*pod, prefill_us(*hit))).collect(),
            cold_us: prefill_us(Tokens(0)),
            partner,
            tried: tried.to_vec(),
            is_pinned: facts.pinned == Some(choice.pod.id),
            body_bytes: facts.body.len() as u64,
            arrived,
            deadline: arrived.after(std::time::Duration::from_secs_f64(slack_s)),
            is_promised: promised.is_some(),
            is_again: self.note.attempts > 0,
        }
    }
}

/// What a request cost that ended well \[microseconds\].
fn settled_us(choice: &Choice, usage: &Usage) -> u64 {
    let cached = usage.cached_tokens.unwrap_or(choice.hit.0);
    let step = choice.pod.load.step.get();
    cost_us(step, Tokens(usage.prompt_tokens), Tokens(cached), usage.completion_tokens as f64)
}
