//! The prefill leg of a request on two pods: what is sent, and what must be in the answer.
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::time::{Sleep, sleep, timeout};

use super::attempt::{Failed, STALE_WITHIN, failure_of};
use super::exchange::{End, Exchange};
use super::intake::Facts;
use super::legs::{Handed, expired};
use super::plan::Choice;
use super::reply::Fault;
use super::side::{can_hand_over, decode_params};
use super::trial::Trial;
use super::upstream::{self, PodConn, PodFault};
use crate::api::usage_of_body;
use crate::base::{Mono, Tokens};
use crate::disagg::{BadReply, Lease, Legs as Asked, PrefillFault, Proof, connector, prefill_body};
use crate::flow::Failure;
use crate::pods::{Attempt, Lien, Outcome};
use crate::runtime::now;

/// Largest answer of a prefill leg.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// While a prefill runs, the gate looks so often whether it has answered: the lease counts from the look before the last.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Exchange {
    /// The prefill leg: its answer, or how it failed.
    pub(super) async fn prefill_leg(
        &mut self,
        facts: &Facts,
        choice: &Choice,
        alarm: Pin<&mut Sleep>,
    ) -> Result<Result<Handed, (PrefillFault, Failed)>, End> {
        let lost = || (PrefillFault::Lost, Failed::new(Failure::BrokenUncommitted, Fault::PodClosed));
        let Some(api) = facts.api else { return Ok(Err(lost())) };
        let refused = || (PrefillFault::Refused, Failed::new(Failure::Busy, Fault::PodClosed));
        if !can_hand_over(&self.gate, &self.rules.disagg, &choice.pod).await {
            tracing::warn!(pod = %choice.pod.id, error = %BadReply::NoEngine, "no prefill is sent there");
            return Ok(Err(refused()));
        }
        let Some(health) = Attempt::begin(&choice.pod, now(), choice.leave) else { return Ok(Err(refused())) };
        let settings = &self.rules.disagg;
        // The engine pairs and logs by it: one that the client chose may come twice.
        let request_id = format!("{}-p{:016x}", self.note.request_id, self.rng.bits());
        let connector = connector(settings.connector);
        let params = connector.prefill_params(&request_id);
        let asked = Asked {
            params: params.as_deref(),
            alternatives: settings.sentinel && facts.sampling.needs_alternatives(),
            token_ids: settings.pass_token_ids,
        };
        let own = self.body_for(facts, &choice.pod);
        let Some(body) = prefill_body(api, &own, &asked) else { return Ok(Err(lost())) };
        let limit = settings.prefill_timeout();
        let mut trial = Trial::begin(&self.gate, facts, choice, health);
        let expired_before = expired(&choice.pod);
        let head = self.pod_head(choice, Some(body.len()), &request_id);
        let mut deadline = pin!(sleep(limit));
        let began = now();
        let exchange = self.prefill_exchange(facts, choice, &head, &body);
        let asked = tokio::select! {
            biased;
            asked = exchange => asked?,
            () = alarm => Err((PrefillFault::Late, Failed::new(Failure::FirstByteTimeout, Fault::FirstByteTimeout))),
            () = &mut deadline => Err((PrefillFault::Late, Failed::new(Failure::FirstByteTimeout, Fault::FirstByteTimeout))),
        };
        let (reply, quiet) = match asked {
            Ok(asked) => asked,
            Err((fault, failed)) => {
                match (fault, failed.outcome()) {
                    (PrefillFault::Judged, _) => trial.over(Outcome::Good),
                    (_, Some(outcome)) => trial.over(outcome),
                    (_, None) => {}
                }
                drop(trial);
                self.broke(facts, choice, &failed, began);
                return Ok(Err((fault, failed)));
            }
        };
        self.in_flight.model().legs.prefill.observe(now().since(began));
        trial.answered(http::StatusCode::OK);
        let usage = usage_of_body(api, &reply);
        let tokens = usage.map_or(choice.prompt, |usage| Tokens(usage.prompt_tokens));
        let lien = Lien::new(Arc::clone(&choice.pod), tokens);
        trial.settled(usage, Outcome::Good);
        let settings = &self.rules.disagg;
        let params = match decode_params(&self.gate, settings, &choice.pod, &request_id, &reply).await {
            Ok(params) => params,
            Err(error) => {
                tracing::warn!(pod = %choice.pod.id, %error, "a prefill cannot be used");
                return Ok(Err(lost()));
            }
        };
        let proof = Proof::of(api, &reply, facts.sampling).filter(|_| settings.sentinel);
        let lease = Lease::new(quiet, settings.lease());
        let prefiller = Arc::clone(&choice.pod);
        let request_id = connector.is_paired_by_request_id().then_some(request_id);
        Ok(Ok(Handed { params, request_id, lease, proof, expired_before, prefiller, tokens, lien }))
    }

    /// Sends the prefill and reads its answer; with it the last instant at which there was none yet.
    async fn prefill_exchange(
        &mut self,
        facts: &Facts,
        choice: &Choice,
        head: &[u8],
        body: &Bytes,
    ) -> Result<Result<(Bytes, Mono), (PrefillFault, Failed)>, End> {
        let connect_within = self.rules.times(&facts.model).connect;
        let spec = &choice.pod.spec;
        let dial = match self.gate.pod_tls.dial(spec.tls.as_ref()) {
            Ok(dial) => dial,
            Err(error) => return Ok(Err((PrefillFault::Refused, Failed::of(&PodFault::Connect(error))))),
        };
        let mut stale = false;
        loop {
            let pooled = (!stale).then(|| upstream::checkout(spec.addr, dial.as_ref(), now())).flatten();
            let mut conn = match pooled {
                Some(conn) => conn,
                None => match self.connect(spec.addr, dial.clone(), connect_within).await? {
                    Ok(conn) => conn,
                    Err(fault) => return Ok(Err((PrefillFault::Refused, Failed::of(&fault)))),
                },
            };
            let began = now();
            let asked = ask(&mut conn, head, body);
            let left = self.client.left();
            let asked = tokio::select! {
                biased;
                asked = asked => asked,
                // Closing the connection aborts the prefill, and nothing stays pinned (vLLM 0.32).
                left = left => return Err(left.into()),
            };
            return Ok(match asked {
                Ok((status, reply, quiet)) if status.is_success() => {
                    upstream::checkin(conn, now());
                    Ok((reply, quiet))
                }
                Ok((status, ..)) => {
                    upstream::checkin(conn, now());
                    let failure = failure_of(status).unwrap_or(Failure::ServerError);
                    let fault = match status.as_u16() {
                        429 | 503 => PrefillFault::Refused,
                        400..=499 => PrefillFault::Judged,
                        _ => PrefillFault::Lost,
                    };
                    Err((fault, Failed::new(failure, Fault::PodClosed)))
                }
                // It was idle for too long, most likely.
                Err(PodFault::ClosedEarly) if conn.reused && now().since(began) < STALE_WITHIN => {
                    let key = facts.body_key();
                    self.gate.guards.broke(now(), choice.pod.id, began, key);
                    stale = true;
                    continue;
                }
                Err(fault) => Err((PrefillFault::Lost, Failed::of(&fault))),
            });
        }
    }
}

/// The rest of a body of bounded size.
pub(super) async fn rest(conn: &mut PodConn, most: usize) -> Result<Bytes, PodFault> {
    let mut body = BytesMut::new();
    while let Some(piece) = conn.body().await? {
        body.extend_from_slice(&piece);
        if body.len() > most {
            return Err(PodFault::Junk("the answer is too large"));
        }
    }
    Ok(body.freeze())
}

/// Sends a prefill; its status, its answer, and the last instant at which the answer had not come.
async fn ask(conn: &mut PodConn, head: &[u8], body: &[u8]) -> Result<(http::StatusCode, Bytes, Mono), PodFault> {
    conn.send(head, body).await?;
    let mut looks = (now(), now());
    let head = loop {
        match timeout(LOOK_EVERY, conn.head(false)).await {
            Ok(head) => break head?,
            // Nothing had come when it was last looked; the look may itself have been late, so the one before counts.
            Err(_) => looks = (looks.1, now()),
        }
    };
    let body = rest(conn, REPLY_BYTES_MAX).await?;
    Ok((head.status, body, looks.0))
}
