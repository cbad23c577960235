//! A request's turn: what it asks of the queue, the wait, and the pod it is let go to.
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Sleep;

use super::attempt::Tried;
use super::client::Left;
use super::exchange::{End, Exchange};
use super::gate::Phase;
use super::intake::Facts;
use super::legs::Legs;
use super::plan::{Choice, Pair, Part};
use super::reply::Fault;
use super::trial::Trial;
use super::waitroom::{Permit, Said};
use crate::api::Usage;
use crate::base::{Mono, PodId, Tokens};
use crate::flow::queue::Toll;
use crate::flow::{Bound, Pool, TicketId, Wish};
use crate::pods::Leave;
use crate::runtime::now;

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
        // Where nobody is in good standing, whoever is forced to take it takes it now; what prefills nothing needs no room; and there
        // is no queue for what is for no known model.
        let is_forced = !matches!(choice.leave, Leave::Granted) && facts.pinned != Some(choice.pod.id);
        let is_queued = self.rules.bounds.queue.enabled && facts.prompt.is_some() && !facts.account.is_empty();
        let is_exempt = is_forced || !is_queued;
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
                        let outcome = if left == Left::Overdue { "overdue" } else { "left" };
                        self.gate.metrics.queue_outcomes.inc(outcome);
                        return Err(left.into());
                    }
                };
                self.gate.metrics.queue_outcomes.inc(if called.is_ok() { "waited" } else { "refused" });
                let waited = now().since(asked);
                self.note.queued_us += waited.as_micros() as u64;
                self.traced("queue", asked, Some(("tidegate.queue.for", "room_on_a_pod")));
                if let Some(waits) =
                    self.gate.metrics.queue_waits.get(facts.caller.class as usize).filter(|_| called.is_ok())
                {
                    waits.observe(waited);
                }
                let mut permit = called.map_err(Fault::Queue)?;
                // Many leave at once when a page is closed: who has left by now is not sent.
                tokio::task::yield_now().await;
                tokio::select! {
                    biased;
                    left = self.client.left() => {
                        permit.cost(0);
                        return Err(left.into());
                    }
                    () = std::future::ready(()) => {}
                }
                later(alarm.as_mut(), waited);
                permit
            }
        };
        self.note.was_granted = true;
        let fleet = self.gate.table.fleet();
        // A pod that left a moment ago is as good as one that refuses: the one that was chosen before may still be there.
        let other = fleet.find(permit.pod).filter(|pod| pod.id != choice.pod.id).map(Arc::clone);
        let choice = match other {
            Some(pod) => choice.on(pod),
            None => choice,
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
        self.booked();
        let ended = self.legs(facts, pair, tried, alarm).await;
        if let Some(permit) = &self.permit {
            permit.eased(self.note.pod.or(partner));
        }
        self.let_go();
        ended
    }

    /// What the permit was for is booked on its pod.
    pub(super) fn booked(&self) {
        self.permit.iter().for_each(Permit::booked);
    }

    /// Keeps a permit; ends when it is taken back.
    pub(super) fn hold(&mut self, permit: Option<Permit>) -> impl Future<Output = ()> + use<> {
        let recalled = permit.as_ref().map(Permit::recalled);
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

    /// Another pod needed the one it was sent to: it waits again, as if it had not been sent.
    pub(super) fn taken_back(&mut self, since: Mono, alarm: Pin<&mut Sleep>) {
        self.gate.metrics.queue_outcomes.inc("recalled");
        self.note.attempts = self.note.attempts.saturating_sub(1);
        later(alarm, now().since(since));
        self.let_go_unused();
    }

    /// Gives the permit back of which no use was made.
    pub(super) fn let_go_unused(&mut self) {
        self.permit.iter_mut().for_each(|permit| permit.cost(0));
        self.let_go();
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
        let class = facts.caller.class;
        let arrived = self.note.read_at.unwrap_or(self.note.started);
        // What comes after its own deadline is of no use to it either.
        let own_s = self.client.due.map(|due| due.since(arrived).as_secs_f64());
        let promised = self.note.slo.ttft_s.into_iter().chain(own_s).reduce(f64::min);
        let slack_s = promised.unwrap_or_else(|| class.order_s());
        let is_prefill = choice.part == Part::Prefill;
        let output = if is_prefill { 0.0 } else { choice.output };
        let places = choice.places.iter().map(|place| (place.pod, place.hit, place.worse_s));
        let toll = Toll::of(choice.pod.load.step.get(), (choice.prompt, choice.hit), output, places);
        Wish {
            ticket,
            pool: Pool { model: facts.account.clone(), is_prefill },
            class,
            tenant: Arc::clone(&facts.caller.tenant),
            weight: self.identity.policy.weight,
            cost_us: toll.cost_us,
            kv: toll.kv,
            places: toll.places,
            cold_us: toll.cold_us,
            bound: (is_prefill || facts.pinned == Some(choice.pod.id)).then_some(Bound { pod: choice.pod.id, partner }),
            is_restricted: choice.is_restricted,
            tried: tried.to_vec(),
            body_bytes: facts.body.len() as u64,
            arrived,
            deadline: arrived.after(Duration::from_secs_f64(slack_s)),
            is_promised: promised.is_some(),
            is_again: self.note.attempts > 0 || self.note.was_granted,
        }
    }
}

/// The time that pods have for a request does not pass while it waits.
fn later(mut alarm: Pin<&mut Sleep>, waited: Duration) {
    let deadline = alarm.deadline() + waited;
    alarm.as_mut().reset(deadline);
}

/// What a request cost that ended well \[microseconds\].
fn settled_us(choice: &Choice, usage: &Usage) -> u64 {
    let cached = usage.cached_tokens.unwrap_or(choice.hit.0);
    let cost_s =
        choice.pod.load.step.get().request(Tokens(usage.prompt_tokens), Tokens(cached), usage.completion_tokens as f64);
    (cost_s * 1e6) as u64
}
