//! Routes that the gate answers itself, and those that pass to a pod without a model: models, health, version, responses by
//! id, CORS preflight.
use bytes::Bytes;

use super::exchange::{End, Exchange};
use super::intake::Facts;
use super::reply::Fault;
use crate::api::Api;
use crate::base::PodId;

impl Exchange {
    /// The union of what all pods serve, each model and adapter once, as far as the tenant may use them.
    pub(super) async fn models(&mut self) -> Result<(), End> {
        self.note.route = "models";
        self.identify()?;
        let mut cards = self.gate.table.fleet().models();
        cards.retain(|served| self.identity.policy.allows(&served.name));
        let mut body = String::from("{\"object\":\"list\",\"data\":[");
        for (number, served) in cards.iter().enumerate() {
            if number > 0 {
                body.push(',');
            }
            body.push_str(&served.card);
        }
        body.push_str("]}");
        self.json("models", Bytes::from(body)).await
    }

    /// The gate's own liveness, as vLLM's `/health`: an empty 200.
    pub(super) async fn alive(&mut self) -> Result<(), End> {
        self.json("health", Bytes::new()).await
    }

    /// The gate's version.
    pub(super) async fn version(&mut self) -> Result<(), End> {
        self.json("version", Bytes::from(concat!("{\"version\":\"tidegate-", env!("CARGO_PKG_VERSION"), "\"}"))).await
    }

    /// `/v1/responses/{id}`: the pod that made the id, else any pod, whose 404 is then the answer.
    pub(super) async fn response_by_id(&mut self, id: &str) -> Result<(), End> {
        self.note.route = "response_by_id";
        self.note.api = Some(Api::Responses);
        self.identify()?;
        let maker = self.gate.affinity.pod(id);
        let query = self.client.head().uri.query().unwrap_or_default();
        let is_stream = query.split('&').any(|pair| pair == "stream=true");
        self.anywhere(maker, Some(Api::Responses), is_stream).await
    }

    /// A CORS preflight passes to any pod.
    pub(super) async fn preflight(&mut self) -> Result<(), End> {
        self.note.route = "preflight";
        self.anywhere(None, None, false).await
    }

    /// Sends the request as it is to `pinned`, if it is there, else to any pod.
    async fn anywhere(&mut self, pinned: Option<PodId>, api: Option<Api>, is_stream: bool) -> Result<(), End> {
        let body = self.read_body().await?;
        let opaque = Facts::opaque(self.client.head(), body, pinned, self.gate.prefix_secret);
        let facts = Facts { api, is_stream, caller: self.identity.caller.clone(), ..opaque };
        if self.gate.table.fleet().pods.is_empty() {
            return Err(Fault::NoPod("no_pods").into());
        }
        self.attempts(&facts).await
    }
}
