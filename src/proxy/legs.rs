//! A request on two pods: the prefill on one, then the decode on another, which brings over the KV blocks. What to do next is
//! decided by [`Life`]; here it is done.
//!
//! Until the first token was checked nothing reaches the client, so every failure before it is planned anew: another pair,
//! another decoder, or one pod for all of it.
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use super::attempt::{Cut, Failed, STALE_WITHIN, Tried, watch};
use super::exchange::{End, Exchange};
use super::gate::Phase;
use super::intake::Facts;
use super::plan::{Avoid, Choice, Pair, Planned};
use super::reply::Fault;
use super::side::expired_now;
use super::trial::Trial;
use super::upstream::{self, PodConn, PodFault};
use crate::base::{Mono, PodId, Tokens};
use crate::disagg::{
    Act, Check, DecodeFault, Event, Fallback, Lease, Life, Outcome as Ended, PrefillFault, Proof, Rules, Sentinel,
    Want, connector, decode_body, salted,
};
use crate::flow::{Failure, Setback, classify};
use crate::pods::{Attempt, Lien, Outcome, Pod};
use crate::runtime::{now, spawn_connection};

/// Time to ask a prefill pod whether leases ran out.
const LOOK_WITHIN: Duration = Duration::from_secs(2);

/// Whose blocks a decode reads.
pub(super) struct Fed {
    prefiller: Arc<Pod>,
    lease: Lease,
    /// Leases that had run out on the prefill pod before this one began; `None`: not known.
    expired_before: Option<u64>,
    tokens: Tokens,
    sent: Mono,
    /// What the check before the commit said.
    said: Option<Check>,
    /// What the prefill pod said when it was asked.
    looked: Option<Looked>,
    /// The prefill pod's room and link until the decoder has the blocks.
    held: Option<(Lien, Busy)>,
}

/// What a prefill pod says of leases since one began there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looked {
    /// None ran out.
    Same,
    /// Some ran out.
    More,
    /// It does not say, or cannot be asked.
    Unknown,
}

impl Fed {
    /// When the lease has surely ended if no heartbeat came.
    pub(super) fn ends(&self) -> Mono {
        self.lease.ends()
    }
}

/// What a prefill handed over.
pub(super) struct Handed {
    /// `kv_transfer_params` of the decode leg.
    pub(super) params: Option<Vec<u8>>,
    /// `X-Request-Id` of the decode leg, if it must be the prefill's.
    pub(super) request_id: Option<String>,
    pub(super) lease: Lease,
    pub(super) proof: Option<Proof>,
    pub(super) expired_before: Option<u64>,
    pub(super) prefiller: Arc<Pod>,
    pub(super) tokens: Tokens,
    pub(super) lien: Lien,
}

/// How it ended on two pods.
pub(super) enum Legs {
    /// The client has its answer.
    Answered,
    /// Nothing reached the client and nothing more is tried.
    Failed(Failed),
    /// One pod does it all, from the start; what failed last.
    Alone(Option<Failed>),
}

/// One request under way on two pods.
struct Course {
    life: Life,
    prefill: Choice,
    decode: Choice,
    /// Prefill pods that were asked.
    prefillers: Vec<PodId>,
    /// What a prefill handed over and no decoder was sent yet.
    handed: Option<Handed>,
    /// The decoder's room, taken before the prefill starts.
    room: Option<Lien>,
    /// What failed last.
    last: Option<Failed>,
}

impl Course {
    /// Goes on with this pair.
    fn take(&mut self, pair: Pair) {
        (self.prefill, self.decode) = (pair.prefill, pair.decode);
        self.room = Some(Lien::coming(Arc::clone(&self.decode.pod), self.decode.prompt));
    }

    fn failed(&mut self, fault: DecodeFault, failed: Failed) -> Act {
        self.last = Some(failed);
        self.life.on(Event::DecodeFailed(fault), now())
    }
}

impl Exchange {
    /// Serves a request on the pods of `pair`, or on others if they fail. Pods that must not be asked again are added to `tried`.
    pub(super) async fn legs(
        &mut self,
        facts: &Facts,
        pair: Box<Pair>,
        tried: &mut Vec<PodId>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Legs, End> {
        let rules = Rules {
            falls_back: self.rules.disagg.on_prefill_failure == Fallback::Fallback,
            decodes_max: self.rules.retry.attempts_max.clamp(1, 2) as u8,
            ..Rules::default()
        };
        let (life, mut act) = Life::begin(rules);
        let room = Some(Lien::coming(Arc::clone(&pair.decode.pod), pair.decode.prompt));
        let Pair { prefill, decode } = *pair;
        let (prefillers, handed, last) = (Vec::new(), None, None);
        let mut course = Course { life, prefill, decode, prefillers, handed, room, last };
        loop {
            act = match act {
                Act::Prefill => self.prefill(facts, &mut course, alarm.as_mut()).await?,
                Act::Decode => {
                    self.leg_begins("decode", course.decode.pod.id);
                    let act = self.decode(facts, &mut course, tried, alarm.as_mut()).await?;
                    let failed = course.last.as_ref().filter(|_| act != Act::Finish(Ended::Answered));
                    self.leg_ends(failed.map(|failed| failed.fault.row().cause.as_str()));
                    act
                }
                Act::Plan(want) => self.plan_again(facts, &mut course, want, tried),
                Act::Alone => {
                    self.let_run_out(course.handed.take(), "unused");
                    (self.note.prefill_pod, self.note.prefilled_at) = (None, None);
                    return Ok(Legs::Alone(course.last));
                }
                Act::Finish(Ended::Answered) => return Ok(Legs::Answered),
                Act::Finish(_) | Act::Send | Act::Commit => {
                    self.let_run_out(course.handed.take(), "unused");
                    let failed = course.last.unwrap_or_else(|| Failed::new(Failure::Handover, Fault::PodClosed));
                    return Ok(Legs::Failed(failed));
                }
            };
        }
    }

    /// Chooses other pods.
    fn plan_again(&mut self, facts: &Facts, course: &mut Course, want: Want, tried: &[PodId]) -> Act {
        let event = match want {
            Want::Decoder => {
                let prefiller = course.handed.as_ref().map_or(course.prefill.pod.id, |handed| handed.prefiller.id);
                match self.choose_decoder(facts, prefiller, tried) {
                    Some(decode) => {
                        course.decode = decode;
                        Event::Planned
                    }
                    None => Event::NotPlanned,
                }
            }
            Want::Pair => {
                self.gate.metrics.disagg_tokens_twice.fetch_add(course.prefill.uncached().0, Relaxed);
                let avoid = Avoid { pods: tried, prefillers: &course.prefillers };
                match self.choose_legs(facts, &avoid) {
                    Ok(Planned::Two(pair)) => {
                        course.take(*pair);
                        Event::Planned
                    }
                    _ => Event::NotPlanned,
                }
            }
        };
        course.life.on(event, now())
    }

    async fn prefill(&mut self, facts: &Facts, course: &mut Course, mut alarm: Pin<&mut Sleep>) -> Result<Act, End> {
        course.prefillers.push(course.prefill.pod.id);
        self.note.prefill_pod = Some(course.prefill.pod.id);
        self.leg_begins("prefill", course.prefill.pod.id);
        let done = self.prefill_leg(facts, &course.prefill, alarm.as_mut()).await?;
        self.leg_ends(done.as_ref().err().map(|(_, failed)| failed.fault.row().cause.as_str()));
        Ok(match done {
            Ok(done) => {
                let lease = done.lease;
                self.permit.iter().for_each(|permit| permit.committed(None));
                self.note.prefilled_at = Some(now());
                course.handed = Some(done);
                course.life.on(Event::PrefillDone(lease), now())
            }
            Err((fault, failed)) => {
                self.gate.metrics.disagg_replans.inc(match fault {
                    PrefillFault::Refused => "prefill_refused",
                    PrefillFault::Lost => "prefill_lost",
                    PrefillFault::Judged => "prefill_judged",
                    PrefillFault::Late => "prefill_late",
                });
                course.last = Some(failed);
                if alarm.is_elapsed() {
                    // The request's own time is up: no decoder is to blame for that.
                    return Ok(Act::Finish(Ended::Failed));
                }
                course.life.on(Event::PrefillFailed(fault), now())
            }
        })
    }

    /// Connects to the decoder and books it; what to do next if that fails.
    async fn reach<'a>(
        &mut self,
        facts: &'a Facts,
        course: &mut Course,
        tried: &mut Vec<PodId>,
    ) -> Result<Result<(PodConn, Trial<'a>), Act>, End> {
        course.room = None;
        let pod = course.decode.pod.id;
        let Some(health) = Attempt::begin(&course.decode.pod, now(), course.decode.leave) else {
            tried.push(pod);
            let failed = Failed::new(Failure::Busy, Fault::PodClosed);
            return Ok(Err(course.failed(DecodeFault::Unreached, failed)));
        };
        let mut trial = Trial::begin(&self.gate, facts, &course.decode, health);
        let (addr, connect_within) = (course.decode.pod.spec.addr, self.rules.times(&facts.model).connect);
        let dial = self.gate.pod_tls.dial(course.decode.pod.spec.tls.as_ref());
        if let Ok(dial) = &dial
            && let Some(conn) = upstream::checkout(addr, dial.as_ref(), now())
        {
            return Ok(Ok((conn, trial)));
        }
        let connected = match dial {
            Ok(dial) => self.connect(addr, dial, connect_within).await,
            Err(error) => Ok(Err(PodFault::Connect(error))),
        };
        match connected {
            Ok(Ok(conn)) => Ok(Ok((conn, trial))),
            Ok(Err(fault)) => {
                let failed = Failed::of(&fault);
                failed.outcome().into_iter().for_each(|outcome| trial.over(outcome));
                drop(trial);
                self.broke(facts, &course.decode, &failed, now());
                self.gate.metrics.disagg_replans.inc("decoder_unreached");
                tried.push(pod);
                Ok(Err(course.failed(DecodeFault::Unreached, failed)))
            }
            Err(end) => {
                self.let_run_out(course.handed.take(), "orphan");
                Err(end)
            }
        }
    }

    /// The decode leg, from the connection to the end of the answer. Returns what to do next.
    async fn decode(
        &mut self,
        facts: &Facts,
        course: &mut Course,
        tried: &mut Vec<PodId>,
        mut alarm: Pin<&mut Sleep>,
    ) -> Result<Act, End> {
        let (mut conn, mut trial) = match self.reach(facts, course, tried).await? {
            Ok(reached) => reached,
            Err(act) => return Ok(act),
        };
        let pod = course.decode.pod.id;
        let Some(ready) = course.handed.take() else { return Ok(course.life.on(Event::NotPlanned, now())) };
        let body = decode_body(&self.body_for(facts, &course.decode.pod), ready.params.as_deref());
        let request_id = ready.request_id.as_deref().unwrap_or(&self.note.request_id);
        let head = self.pod_head(&course.decode, Some(body.len()), request_id);
        let timing = self.gate.pairs.timing(ready.prefiller.id, pod);
        let sent = now();
        let act = course.life.on(Event::Sending(timing), sent);
        if act != Act::Send {
            self.gate.metrics.disagg_replans.inc("lease_too_old");
            self.let_run_out(Some(ready), "too_old");
            return Ok(act);
        }
        let prefiller = ready.prefiller.id;
        self.sending(facts, &mut trial, ready, sent);
        self.let_go_unseen(facts, &mut trial, pod);
        self.note.pod = Some(pod);
        (self.note.prompt, self.note.hit) = (course.decode.prompt, course.decode.hit);
        let was_pooled = conn.reused;
        let asked = match self.ask(&mut conn, &head, &body, alarm.as_mut()).await? {
            Ok(answer) => {
                trial.heard(now());
                if facts.is_stream {
                    self.gate.pairs.took_in(pod, now().since(sent));
                }
                self.relay(facts, answer, conn, &mut trial, alarm.as_mut()).await?
            }
            Err(failed) => Tried::Failed(failed),
        };
        match asked {
            Tried::Done(usage, outcome) => {
                if outcome == Outcome::Broken {
                    self.gate.guards.broke(now(), pod, sent, facts.body_key());
                    self.gate.cut(&course.decode.pod);
                }
                let check = trial.checked().unwrap_or(Check::Open);
                trial.settled(usage, outcome);
                course.life.on(Event::First(check), now());
                Ok(course.life.on(Event::Ended, now()))
            }
            Tried::Failed(failed) => {
                let said = trial.fed.as_ref().and_then(|fed| fed.said);
                if was_pooled && failed.failure == Failure::NoHead && now().since(sent) < STALE_WITHIN {
                    // A connection of the pool that was dead already is not the pod's fault. But nobody knows whether the
                    // decoder has begun to read, so the lease is not used again.
                    self.gate.metrics.disagg_replans.inc("connection_stale");
                    // But a body may also kill a pod that fast.
                    self.broke(facts, &course.decode, &failed, sent);
                    course.last = Some(failed);
                    return Ok(course.life.on(Event::DecodeFailed(DecodeFault::Broken), now()));
                }
                failed.outcome().into_iter().for_each(|outcome| trial.over(outcome));
                drop(trial);
                let pair = (prefiller, &course.decode);
                let event = self.decode_failed(facts, pair, &failed, said, tried, sent).await?;
                course.last = Some(failed);
                Ok(course.life.on(event, now()))
            }
        }
    }

    /// The lease is about to be used.
    fn sending(&mut self, facts: &Facts, trial: &mut Trial<'_>, ready: Handed, sent: Mono) {
        self.gate.metrics.disagg_leases.inc("used");
        self.in_flight.model().legs.lease_age.observe(ready.lease.age(sent));
        let Handed { lease, proof, expired_before, prefiller, tokens, lien, .. } = ready;
        self.gate.pairs.busy(prefiller.id, true);
        let busy = Busy(Arc::clone(&self.gate), prefiller.id);
        let proof = proof.unwrap_or(Proof::Any);
        trial.sentinel = facts.api.map(|api| Box::new(Sentinel::new(api, proof)));
        trial.fed = Some(Box::new(Fed {
            prefiller,
            lease,
            expired_before,
            tokens,
            sent,
            said: None,
            looked: None,
            held: Some((lien, busy)),
        }));
        self.note.attempts += 1;
        self.in_flight.model().attempt();
        self.at(Phase::Dispatch);
    }

    /// The first token of an answer that is not streamed is not seen: the prefill pod has its room and its link back when the
    /// blocks are likely to be over.
    fn let_go_unseen(&self, facts: &Facts, trial: &mut Trial<'_>, decoder: PodId) {
        let Some(fed) = trial.fed.as_mut().filter(|_| !facts.is_stream) else { return };
        let wire = self.gate.pairs.wire(fed.prefiller.id, decoder, fed.sent);
        let takes = Duration::from_secs_f64(wire.setup_s + wire.token_s * fed.tokens.0 as f64);
        let held = fed.held.take();
        spawn_connection(async move {
            sleep(takes).await;
            drop(held);
        });
    }

    /// What a failed decode means for the life of the request.
    async fn decode_failed(
        &mut self,
        facts: &Facts,
        (prefiller, choice): (PodId, &Choice),
        failed: &Failed,
        said: Option<Check>,
        tried: &mut Vec<PodId>,
        sent: Mono,
    ) -> Result<Event, End> {
        let pod = choice.pod.id;
        self.broke(facts, choice, failed, sent);
        let broken = Event::DecodeFailed(DecodeFault::Broken);
        let (cause, event) = match (failed.failure, said) {
            (Failure::Handover, Some(Check::Differs)) => ("wrong_token", Event::First(Check::Differs)),
            (Failure::Handover, Some(Check::Expired)) => ("lease_expired", Event::First(Check::Expired)),
            (Failure::Handover, _) => ("kv_load_failed", broken),
            (Failure::Busy, _) => ("decoder_refused", broken),
            (Failure::FirstByteTimeout, _) => ("decoder_late", Event::DecodeFailed(DecodeFault::Late)),
            _ => ("decoder_died", broken),
        };
        self.gate.metrics.disagg_replans.inc(cause);
        if failed.failure == Failure::Handover {
            self.gate.pairs.failed(prefiller, pod, now().after(self.rules.disagg.suspect()));
            tracing::warn!(
                prefill = %prefiller, decode = %pod, cause,
                "handing over KV blocks failed; the pair is not used for a while"
            );
            // Not charged to the budget of retries: no more than what was under way goes this way before the pair is out.
            return Ok(event);
        }
        tried.push(pod);
        let setback = Setback {
            class: classify(failed.failure),
            pod,
            started: sent,
            failed: now(),
            attempts: self.note.attempts,
            replay: facts.replay,
            has_other_pod: true,
        };
        let is_granted = self.granted(facts, &setback).await?;
        Ok(if is_granted { event } else { Event::DecodeFailed(DecodeFault::Late) })
    }

    /// The body as a pod gets it: under another salt if its prefix cache cannot be trusted.
    pub(super) fn body_for(&self, facts: &Facts, pod: &Pod) -> Bytes {
        let body = facts.body.bytes();
        match (self.gate.pairs.epoch(pod.name), facts.api) {
            (Some(epoch), Some(api)) => salted(api, &body, epoch),
            _ => body,
        }
    }

    /// Why an answer whose first data is there must not reach the client; `None`: it may.
    pub(super) async fn unsound(&mut self, trial: &mut Trial<'_>) -> Result<Option<Failed>, End> {
        let check = trial.checked().unwrap_or(Check::Open);
        let is_weak = trial.sentinel.as_ref().is_some_and(|sentinel| sentinel.is_weak());
        let Some(fed) = &trial.fed else { return Ok(None) };
        let is_late = fed.lease.may_be_over(now());
        let needs_look = self.rules.disagg.sentinel && (is_late || is_weak && check == Check::Differs);
        let prefiller = Arc::clone(&fed.prefiller);
        let looked = match fed.looked {
            Some(looked) => looked,
            None if needs_look => self.look(trial).await?,
            None => Looked::Same,
        };
        let said = match (check, looked) {
            // Rounding may break ties in two ways; blocks that were let go are told of.
            (Check::Differs, Looked::Same) if is_weak => Check::Open,
            (Check::Differs, _) => Check::Differs,
            (_, Looked::More) | (Check::Open, Looked::Unknown) => Check::Expired,
            (check, _) => check,
        };
        self.gate.metrics.disagg_sentinel.inc(said.as_str());
        if let Some(fed) = &mut trial.fed {
            fed.said = Some(said);
        }
        if matches!(said, Check::Agrees | Check::Open) {
            return Ok(None);
        }
        if let Some(pod) = self.gate.table.fleet().find(trial.pod) {
            self.gate.pairs.distrust(pod.name, self.rng.bits());
        }
        self.gate.index.wipe(trial.pod);
        tracing::error!(
            decode = %trial.pod, prefill = %prefiller.id, said = said.as_str(),
            "a decode pod may have read KV blocks that were let go: its answer is thrown away and what it has cached is not \
             used any more. Do the prefill pods have the lease that disaggregation.lease_s says?"
        );
        Ok(Some(Failed::new(Failure::Handover, Fault::PodClosed)))
    }

    /// Asks the prefill pod of a decode whether leases ran out since, and keeps what it says.
    pub(super) async fn look(&mut self, trial: &mut Trial<'_>) -> Result<Looked, End> {
        let Some(fed) = &mut trial.fed else { return Ok(Looked::Unknown) };
        if !connector(self.rules.disagg.connector).counts_expired() {
            fed.looked = Some(Looked::Same);
            return Ok(Looked::Same);
        }
        let (prefiller, before) = (Arc::clone(&fed.prefiller), fed.expired_before);
        let look = expired_now(&self.gate, &prefiller);
        let found = match watch(&mut self.client, pin!(sleep(LOOK_WITHIN)), look).await {
            Ok(found) => found,
            Err(Cut::Late) => None,
            Err(Cut::Left(left)) => return Err(left.into()),
        };
        let looked = match (before, found) {
            (_, Some(0)) => Looked::Same,
            (Some(before), Some(count)) if count <= before => Looked::Same,
            (Some(_), Some(_)) => Looked::More,
            _ => Looked::Unknown,
        };
        fed.looked = Some(looked);
        Ok(looked)
    }

    /// The decoder has the blocks: the pair is known to work, and the prefill pod has its room back.
    pub(super) fn handed_over(&self, trial: &mut Trial<'_>, is_success: bool, is_stream: bool) {
        let pod = Arc::clone(trial.booked_on());
        let Some(fed) = &mut trial.fed else { return };
        // Its own transfer counts until it was learnt from.
        let _held = fed.held.take();
        if !is_success {
            return;
        }
        let took = now().since(fed.sent);
        let (load, step) = (pod.load.now(), pod.load.step.get());
        let first_step = step.decode(f64::from(load.requests), load.context_tokens.0 as f64);
        // Of an answer that is not streamed the first token is not seen.
        let seen = is_stream.then_some((took, load.wait_s + first_step));
        self.gate.pairs.handed_over(fed.prefiller.id, pod.id, fed.tokens, seen);
        if is_stream {
            self.in_flight.model().legs.handover.observe(took);
        }
    }

    /// A lease that nobody will come for: the prefill pod keeps the blocks until it ends.
    fn let_run_out(&self, handed: Option<Handed>, end: &'static str) {
        let Some(Handed { lease, lien, .. }) = handed else { return };
        self.gate.metrics.disagg_leases.inc(end);
        spawn_connection(async move {
            sleep(lease.ends().since(now())).await;
            drop(lien);
        });
    }
}

/// A transfer out of a prefill pod, while it lasts.
struct Busy(Arc<super::gate::Gate>, PodId);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.pairs.busy(self.1, false);
    }
}

/// Leases that ran out on the endpoint of a pod, by its last reading.
pub(super) fn expired(pod: &Pod) -> Option<u64> {
    pod.reading.load().as_ref().as_ref().and_then(|reading| reading.kv_expired)
}
