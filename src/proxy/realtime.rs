//! `/v1/realtime`: a WebSocket to a pod of the model that the query names. Until the pod has switched protocols it is a
//! request like any other, tried elsewhere when a pod fails; then bytes go both ways unread until one side closes.
use std::time::Duration;

use http::header::{self, HeaderValue};
use tokio::time::{sleep, timeout};

use super::attempt::{Failed, Tried};
use super::exchange::{End, Exchange};
use super::headers::{self, Frame};
use super::intake::Facts;
use super::reply::Fault;
use super::trial::Trial;
use super::upstream::{PodConn, PodHead};
use crate::flow::Failure;
use crate::observe::Cause;
use crate::pods::Outcome;
use crate::runtime::now;

/// A WebSocket on which neither side says anything is closed after this time. Servers ping far more often (uvicorn: 20 s).
const QUIET_MAX: Duration = Duration::from_mins(5);

/// What one side did.
enum Said {
    ByClient(bytes::Bytes),
    ByPod(bytes::Bytes),
    /// One of them closed, or nobody said anything for too long.
    Over,
    PodBroke,
}

impl Exchange {
    /// Connects a WebSocket to a pod.
    pub(super) async fn realtime(&mut self) -> Result<(), End> {
        self.note.route = "realtime";
        self.trace_begins();
        self.identify()?;
        if !self.client.wants_websocket() {
            return Err(Fault::NotAWebSocket.into());
        }
        let asked = asked_model(self.client.head().uri.query().unwrap_or_default())?;
        self.note.is_tunnel = true;
        self.note.read_at = Some(now());
        let facts = self.facts_of_tunnel(asked.as_deref())?;
        self.placed(facts, None).await
    }

    /// Passes on what both sides say until one closes.
    pub(super) async fn tunnel(
        &mut self,
        facts: &Facts,
        head: PodHead,
        mut conn: PodConn,
        trial: &mut Trial<'_>,
    ) -> Result<Tried, End> {
        let garbage = || Failed::new(Failure::Garbage, Fault::PodGarbage);
        let built = headers::to_client(head.status, head.headers, Frame::Open, false).and_then(|mut out| {
            out.insert_header(header::CONNECTION, HeaderValue::from_static("Upgrade"))?;
            out.insert_header(header::UPGRADE, HeaderValue::from_static("websocket"))?;
            out.insert_header("x-request-id", &*self.note.request_id)?;
            Ok(out)
        });
        let Ok(out) = built else { return Ok(Tried::Failed(garbage())) };
        if let Err(failed) = self.commit(facts, trial, head.status) {
            return Ok(Tried::Failed(failed));
        }
        self.client.switch(out).await?;
        let write_within = self.rules.write_timeout;
        let broke = loop {
            let said = tokio::select! {
                said = self.client.tunnelled() => said.map_or(Said::Over, Said::ByClient),
                said = conn.body() => match said {
                    Ok(Some(bytes)) => Said::ByPod(bytes),
                    Ok(None) => Said::Over,
                    Err(_) => Said::PodBroke,
                },
                () = sleep(QUIET_MAX) => Said::Over,
            };
            match said {
                Said::ByClient(bytes) => {
                    self.note.bytes_in += bytes.len() as u64;
                    if !matches!(timeout(write_within, conn.write(&bytes)).await, Ok(Ok(()))) {
                        break true;
                    }
                }
                Said::ByPod(bytes) => {
                    trial.heard(now());
                    self.client.write(bytes).await?;
                }
                Said::Over => break false,
                Said::PodBroke => break true,
            }
        };
        self.note.cause = Some(if broke { Cause::StreamBroken } else { Cause::Ok });
        self.client.cut().await;
        Ok(Tried::Done(None, if broke { Outcome::Broken } else { Outcome::Good }))
    }
}

/// The model that a query names, decoded; not twice, since a pod may read the other.
fn asked_model(query: &str) -> Result<Option<String>, Fault> {
    let mut named = form_urlencoded::parse(query.as_bytes()).filter(|(key, _)| key == "model");
    match (named.next(), named.next()) {
        (None, _) => Ok(None),
        (Some((_, model)), None) if !model.is_empty() => Ok(Some(model.into_owned())),
        _ => Err(Fault::WhichModel),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_model_is_named_once_or_not_at_all() {
        let named = |query| asked_model(query).map_err(|fault| fault.row().status);
        assert_eq!(named(""), Ok(None));
        assert_eq!(named("a=b&model=org%2Fname"), Ok(Some("org/name".into())));
        assert_eq!(named("model=a&model=a"), Err(400));
        assert_eq!(named("model="), Err(400));
    }
}
