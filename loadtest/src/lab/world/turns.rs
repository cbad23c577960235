//! Requests that wait at a gate for their turn, and what they hold once they had it.
use tidegate::base::{Mono, PodId};
use tidegate::flow::TicketId;
use tidegate::flow::queue::{Effect, Event};
use tidegate::flow::sessions;
use tidegate::sim::engine::Prompt;

use super::{Happening, World};
use crate::lab::gate::{Choice, Replica, Terms};
use crate::lab::record::End;

/// Where a request is to go once it is its turn.
pub(super) struct Turn {
    pub(super) choice: Choice,
    /// Who decodes, if two pods serve it.
    pub(super) decode: Option<Choice>,
    pub(super) prompt: Prompt,
}

fn ticket(number: usize) -> TicketId {
    TicketId(number as u64)
}

impl World<'_> {
    fn terms(&self, number: usize) -> Option<Terms> {
        let (flight, record) = self.flights.get(number).zip(self.log.records.get(number))?;
        let promise = self.cell.promise(&self.cell.slo, record.class, record.prompt_tokens);
        Some(Terms {
            number: number as u64,
            class: record.class,
            tenant: record.tenant,
            arrived: Mono(record.arrived),
            ttft_s: promise.ttft_s,
            body_bytes: 4 * record.prompt_tokens,
            is_again: !flight.tried.is_empty(),
        })
    }

    /// Asks whether the session of a request may be active, before anything else.
    pub(super) fn enter(&mut self, number: usize) {
        let Some((terms, flight)) = self.terms(number).zip(self.flights.get(number)) else { return };
        let gate = flight.gate;
        let effects = flight
            .asked
            .as_ref()
            .zip(self.gates.get_mut(gate as usize))
            .and_then(|(asked, replica)| replica.enters(self.now, &terms, asked));
        let Some(effects) = effects else { return self.let_in(number) };
        if let Some(share) = self.shares.get_mut(terms.tenant as usize) {
            share.waiting += 1;
        }
        self.entered(gate, effects);
    }

    fn let_in(&mut self, number: usize) {
        let prompt =
            self.flights.get(number).and_then(|flight| flight.made.as_ref()).map(|made| self.tokens.prompt(made));
        if let Some(prompt) = prompt {
            self.dispatch(number, prompt);
        }
    }

    /// Does what a gate says of sessions.
    fn entered(&mut self, gate: u32, effects: Vec<sessions::Effect>) {
        for effect in effects {
            match effect {
                sessions::Effect::Grant(ticket) => {
                    self.waits_no_more(ticket.0 as usize);
                    self.let_in(ticket.0 as usize);
                }
                sessions::Effect::Refuse(ticket, refusal) => {
                    let after = refusal.retry_after.unwrap_or_default();
                    self.refused(ticket.0 as usize, after.as_micros() as u64);
                }
            }
        }
        self.arm(gate);
    }

    /// A request is over for its session; `told` is what its pod said.
    pub(super) fn leave(&mut self, number: usize, told: Option<sessions::Told>) {
        let Some(flight) = self.flights.get(number) else { return };
        let gate = flight.gate;
        let effects = self.gates.get_mut(gate as usize).map(|replica| replica.leaves(self.now, number as u64, told));
        self.entered(gate, effects.unwrap_or_default());
    }

    /// Asks the gate's queue for the turn of a request.
    pub(super) fn ask(&mut self, number: usize, turn: Turn) {
        let Some((terms, flight)) = self.terms(number).zip(self.flights.get_mut(number)) else { return };
        let gate = flight.gate;
        let Some(replica) = self.gates.get(gate as usize) else { return };
        let Some(wish) = replica.wish(&terms, &turn.choice, turn.decode.as_ref(), &flight.tried) else { return };
        flight.waits = Some(turn);
        if let Some(share) = self.shares.get_mut(terms.tenant as usize) {
            share.waiting += 1;
        }
        self.tell(gate, Event::Asks(wish));
    }

    /// Tells a gate's queue what happened, and does what it says.
    pub(super) fn tell(&mut self, gate: u32, event: Event) {
        let Some(replica) = self.gates.get_mut(gate as usize) else { return };
        let effects = replica.on(self.now, event);
        self.effects(gate, effects);
    }

    /// Does what a queue says.
    pub(super) fn effects(&mut self, gate: u32, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Grant(ticket, pod) => self.granted(ticket.0 as usize, pod),
                Effect::Refuse(ticket, refusal) => {
                    let after = refusal.retry_after.unwrap_or_default();
                    self.refused(ticket.0 as usize, after.as_micros() as u64);
                }
                Effect::Holds(pod, held) => {
                    if let Some(replica) = self.gates.get(gate as usize) {
                        replica.holds(pod, held);
                    }
                }
                Effect::Recall(ticket) => self.recalled(ticket.0 as usize),
            }
        }
        self.arm(gate);
    }

    fn arm(&mut self, gate: u32) {
        let wanted = self.gates.get(gate as usize).and_then(Replica::alarm);
        let Some((wanted, alarm)) = wanted.zip(self.alarms.get_mut(gate as usize)) else { return };
        if alarm.is_none_or(|at| at > wanted) {
            *alarm = Some(wanted);
            self.plan(wanted.0.max(self.now.0), Happening::Alarm(gate));
        }
    }

    /// A gate's queue is asked again.
    pub(super) fn alarm(&mut self, gate: u32) {
        if let Some(alarm) = self.alarms.get_mut(gate as usize).filter(|at| at.is_some_and(|at| at <= self.now)) {
            *alarm = None;
            let effects = self.gates.get_mut(gate as usize).map(|replica| replica.look(self.now));
            self.entered(gate, effects.unwrap_or_default());
            self.tell(gate, Event::Tick);
        }
    }

    fn granted(&mut self, number: usize, pod: PodId) {
        let Some(flight) = self.flights.get_mut(number) else { return };
        let Some(turn) = flight.waits.take() else { return };
        self.waits_no_more(number);
        let Some(flight) = self.flights.get_mut(number) else { return };
        flight.permit = Some(pod);
        let gate = flight.gate;
        let Some(replica) = self.gates.get(gate as usize) else { return };
        let choice = replica.moved(turn.choice, pod);
        self.go(number, Turn { choice, ..turn });
        self.tell(gate, Event::Booked(ticket(number)));
    }

    fn waits_no_more(&mut self, number: usize) {
        let tenant = self.log.records.get(number).map_or(0, |record| record.tenant);
        if let Some(share) = self.shares.get_mut(tenant as usize) {
            share.waiting -= 1;
        }
    }

    /// A request is refused; who obeys comes again later.
    fn refused(&mut self, number: usize, after_us: u64) {
        self.waits_no_more(number);
        let now = self.now.0;
        let Some((flight, record)) = self.flights.get_mut(number).zip(self.log.records.get_mut(number)) else { return };
        flight.waits = None;
        if !self.cell.clients.obeys {
            return self.end(number, End::Refused);
        }
        (record.end, record.ended) = (End::Refused, now);
        self.leave(number, None);
        let Some(flight) = self.flights.get_mut(number) else { return };
        (flight.asked, flight.made) = (None, None);
        let session = flight.session;
        self.plan(now + after_us, Happening::Arrive(session));
    }

    /// A request is taken back from its pod, and waits again.
    fn recalled(&mut self, number: usize) {
        let ranks = self.cell.fleet.ranks.max(1) as usize;
        let Some(flight) = self.flights.get_mut(number) else { return };
        flight.trial = None;
        let at = flight.at as usize;
        let prompt = flight.made.as_ref().map(|made| self.tokens.prompt(made));
        let id = self.gates.get(flight.gate as usize).and_then(|gate| gate.id(at));
        flight.tried.retain(|tried| Some(*tried) != id);
        if let Some(group) = self.groups.get_mut(at / ranks) {
            group.abort(at % ranks, number as u64);
        }
        self.permit_ends(number, Some(0));
        if let Some(prompt) = prompt {
            self.dispatch(number, prompt);
        }
    }

    /// The first token of a request came, or its prefill is done.
    pub(super) fn committed(&mut self, number: usize) {
        let Some(flight) = self.flights.get(number) else { return };
        let Some((permit, gate)) = flight.permit.map(|permit| (permit, flight.gate)) else { return };
        let here = self.gates.get(gate as usize).and_then(|replica| replica.id(flight.at as usize));
        self.tell(gate, Event::Committed(ticket(number)));
        if let Some(other) = here.filter(|here| *here != permit) {
            self.tell(gate, Event::Eased(other));
        }
    }

    /// A request ended well: its permit ends with what it cost.
    pub(super) fn paid(&mut self, number: usize) {
        let Some((flight, record)) = self.flights.get(number).zip(self.log.records.get(number)) else { return };
        let completion = u64::from(flight.answer.tokens);
        let told = flight.has_usage.then_some(());
        let cost_us = told.and_then(|()| {
            let gate = self.gates.get(flight.gate as usize)?;
            gate.cost_us(flight.at as usize, record.prompt_tokens, record.cached, completion)
        });
        if let Some((share, cost_us)) = self.shares.get_mut(record.tenant as usize).zip(cost_us) {
            share.served_us += cost_us;
        }
        self.permit_ends(number, cost_us);
    }

    /// A request needs its permit no more.
    pub(super) fn permit_ends(&mut self, number: usize, cost_us: Option<u64>) {
        let Some(flight) = self.flights.get_mut(number) else { return };
        let Some(permit) = flight.permit.take() else { return };
        let gate = flight.gate;
        let here = self.gates.get(gate as usize).and_then(|replica| replica.id(flight.at as usize));
        self.tell(gate, Event::Over(ticket(number), cost_us));
        if let Some(other) = here.filter(|here| *here != permit) {
            self.tell(gate, Event::Eased(other));
        }
    }
}
