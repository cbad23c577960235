//! From a body to facts: read it under its bounds, look at its anatomy, strip what endangers pods, name the model, hash the
//! prompt. What comes out is owned and can be sent as often as needed.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, header};
use parking_lot::Mutex;
use pingora::http::RequestHeader;

use super::asks::Asks;
use super::exchange::{End, Exchange};
use super::gate::Phase;
use super::memory;
use super::reply::Fault;
use super::rewrite::Targets;
use crate::api::{Anatomy, Api, BadBody, Edit, Form, dangers, splice, strip_dangerous};
use crate::base::{MODEL_NAME_BYTES_MAX, ModelName, PodId, Tokens};
use crate::disagg::{self, Obstacle, Sampling};
use crate::flow::{Arrival, BodyKey, Caller, Class, Reason, Replay, Trust, deadline_s};
use crate::observe::Stage;
use crate::pods::Fleet;
use crate::prefix::{Fingerprint, Seed};
use crate::runtime::now;

/// Bodies up to this size are taken even when memory is getting short.
const SMALL_BODY_BYTES: u64 = 64 * 1024;

/// Of a body, hashed from each end for its name; its middle enters by the prompt's hash, where there is a prompt.
const KEY_END_BYTES: usize = 8 * 1024;

/// The body as it goes to pods. Released when no other pod can be tried, so that a long answer does not hold its prompt.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Mutex<Bytes>,
    len: usize,
}

impl Body {
    fn new(bytes: Bytes) -> Self {
        Self { len: bytes.len(), bytes: Mutex::new(bytes) }
    }

    /// The bytes; none after [`Body::release`].
    pub(super) fn bytes(&self) -> Bytes {
        self.bytes.lock().clone()
    }

    /// Its length, also after it was released.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// Whether there was no body.
    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the bytes.
    pub(super) fn release(&self) {
        *self.bytes.lock() = Bytes::new();
    }
}

/// What the gate knows of a request once its body is read.
#[derive(Debug)]
pub(super) struct Facts {
    /// `None` for a route the gate does not understand.
    pub(super) api: Option<Api>,
    /// Model after aliases; empty if unknown, then any pod will do.
    pub(super) model: ModelName,
    /// Model whose bounds and budgets it is held to, and who is named in metrics and log: the same if a pod serves it. All
    /// others share the empty name, so that made-up names cost nobody memory.
    pub(super) account: ModelName,
    pub(super) is_stream: bool,
    pub(super) max_tokens: Option<Tokens>,
    /// What it asks of the engine beside tokens.
    pub(super) asks: Asks,
    /// What keeps it on one pod, and how its first token is chosen. Not looked at where no pod only prefills.
    pub(super) obstacle: Option<Obstacle>,
    pub(super) sampling: Sampling,
    pub(super) body: Body,
    /// Hash of the body for the poison guard.
    pub(super) body_hash: u64,
    /// Prompt blocks; `None` where there is no prompt.
    pub(super) prompt: Option<Fingerprint>,
    /// The pod that must have it, if it is there.
    pub(super) pinned: Option<PodId>,
    /// Whether it may be delivered to a second pod when the first broke under it.
    pub(super) replay: Replay,
    pub(super) caller: Caller,
    /// What a second before the first token is worth; `None` unless policy or request say a class.
    pub(super) urgency: Option<f64>,
}

impl Facts {
    /// A request that is passed on unread.
    pub(super) fn opaque(head: &RequestHeader, body: Bytes, pinned: Option<PodId>, secret: u64) -> Self {
        let is_harmless = matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS);
        Self {
            body_hash: body_hash(&body, None, secret ^ route_of(head)),
            api: None,
            model: "".into(),
            account: "".into(),
            is_stream: false,
            max_tokens: None,
            asks: Asks::default(),
            obstacle: Some(Obstacle::Api),
            sampling: Sampling::Unknown,
            body: Body::new(body),
            prompt: None,
            pinned,
            replay: if is_harmless { Replay::Harmless } else { Replay::Unknown },
            caller: Caller::open(Trust::Open),
            urgency: None,
        }
    }

    /// Tokens of the prompt as far as its size tells; of a recording it tells nothing.
    pub(super) fn tokens_guess(&self) -> Tokens {
        let is_text = !self.api.is_some_and(Api::takes_form);
        Tokens(if is_text { self.body.len() as u64 / 4 } else { 0 })
    }

    /// Name of the request for the poison guard; `None` without a body, since then there is nothing to tell requests apart.
    pub(super) fn body_key(&self) -> Option<BodyKey> {
        (!self.body.is_empty()).then(|| BodyKey { tenant: Arc::clone(&self.caller.tenant), hash: self.body_hash })
    }
}

/// Equal for equal bodies; different, up to collisions, for bodies that differ at an end, in length, or in a whole block of
/// their prompt. Without a prompt all bytes count.
fn body_hash(body: &[u8], prompt: Option<&Fingerprint>, secret: u64) -> u64 {
    let hash = |bytes: &[u8], seed| xxhash_rust::xxh3::xxh3_64_with_seed(bytes, seed);
    let Some(prompt) = prompt.filter(|_| body.len() > 2 * KEY_END_BYTES) else { return hash(body, secret) };
    let blocks = prompt.chains.iter().filter_map(|chain| chain.blocks.last());
    let middle = blocks.fold(body.len() as u64, |all, block| all.rotate_left(7) ^ block);
    let (first, rest) = body.split_at(KEY_END_BYTES);
    let last = rest.get(rest.len().saturating_sub(KEY_END_BYTES)..).unwrap_or_default();
    hash(last, hash(first, secret ^ middle))
}

fn route_of(head: &RequestHeader) -> u64 {
    let method = xxhash_rust::xxh3::xxh3_64(head.method.as_str().as_bytes());
    xxhash_rust::xxh3::xxh3_64_with_seed(head.uri.path().as_bytes(), method)
}

impl Exchange {
    /// Reads a JSON request and sends it to a pod that serves its model. Without an API the body is passed as it is.
    pub(super) async fn balanced(&mut self, api: Option<Api>) -> Result<(), End> {
        let body = self.read_body().await?;
        self.note.read_at = Some(now());
        self.traced("receive", self.note.started, None);
        self.at(Phase::Body);
        let due_after = |left_s| self.note.started.after(Duration::from_secs_f64(left_s));
        self.client.due = deadline_s(&self.client.head().headers).map(due_after);
        let facts = match api {
            Some(api) => loop {
                match self.facts(api, &body) {
                    Err(End::Fault(Fault::Absent(model, is_stream))) => {
                        self.appears(&model, is_stream.then_some(api)).await?;
                    }
                    made => break made?,
                }
            },
            None => self.facts_of_allowed(&body)?,
        };
        // If members were changed there are two of it.
        drop(body);
        self.placed(facts, api).await
    }

    /// Admits a request and sends it to a pod.
    pub(super) async fn placed(&mut self, facts: Facts, api: Option<Api>) -> Result<(), End> {
        if !facts.account.is_empty() {
            self.note.model = Some(ModelName::clone(&facts.account));
            let promised = self.identity.policy.slo.or(self.rules.slo(&facts.model));
            self.note.slo = promised.of(&self.client.head().headers, self.is_trusted);
            self.note.vouched = if self.is_trusted { self.note.slo } else { promised.configured() };
            self.in_flight.assign(self.gate.metrics.model(&facts.account));
        }
        self.note.is_stream = facts.is_stream;
        self.charge(&facts)?;
        let asked_at = now();
        let ticket = self.gate.guards.admit(asked_at, |ticket| Arrival {
            ticket,
            model: ModelName::clone(&facts.account),
            caller: facts.caller.clone(),
            body_bytes: facts.body.len() as u64,
            prompt_tokens: facts.tokens_guess(),
            deadline: None,
        });
        self.gate.metrics.stage(Stage::Admit, now().since(asked_at));
        let ticket = ticket.map_err(|refusal| match refusal.reason {
            Reason::RequestPoisoned => Fault::Poisoned,
            Reason::BodyTooLarge => Fault::BodyTooLarge(self.rules.memory_bytes_max),
            reason => Fault::Full(reason.as_str()),
        })?;
        let key = || facts.body_key();
        if self.gate.guards.poisoned(now(), key).is_some() {
            return Err(Fault::Poisoned.into());
        }
        self.ticket = Some(ticket);
        self.warm(api.filter(|_| facts.is_stream));
        self.enter(&facts).await?;
        self.attempts(&facts).await
    }

    /// Reads the whole body.
    pub(super) async fn read_body(&mut self) -> Result<Bytes, End> {
        let started = now();
        let fields = &self.client.head().headers;
        let encodings = fields.get_all(header::CONTENT_ENCODING).iter();
        if encodings.into_iter().any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"identity")) {
            return Err(Fault::ContentEncoding.into());
        }
        let bytes_max = self.rules.body_bytes_max;
        if self.client.announced_body().is_some_and(|announced| announced > bytes_max) {
            return Err(Fault::BodyTooLarge(bytes_max).into());
        }
        let (gate, held_max) = (Arc::clone(&self.gate), self.rules.memory_bytes_max);
        let mut held = gate.metrics.body_held.hold(0);
        let grow = |more: u64| {
            let bodies = memory::Stage::of(gate.metrics.body_held.value() + more, held_max);
            let is_large = held.amount() + more > SMALL_BODY_BYTES;
            match bodies.max(gate.memory.stage()) {
                memory::Stage::RefuseAll => Err(Fault::Memory),
                memory::Stage::RefuseLarge if is_large => Err(Fault::Memory),
                _ => {
                    held.grow(more);
                    Ok(())
                }
            }
        };
        let rules = &self.rules;
        let body = self.client.body(bytes_max, rules.body_timeout, rules.body_floor_bytes, grow).await?;
        self.note.bytes_in = body.len() as u64;
        self.body_held = Some(held);
        self.gate.metrics.stage(Stage::Body, now().since(started));
        Ok(body)
    }

    fn facts(&mut self, api: Api, body: &Bytes) -> Result<Facts, End> {
        if api.takes_form() {
            return self.facts_of_form(api, body);
        }
        let started = now();
        let anatomy = Anatomy::read(api, body).map_err(Fault::BadBody)?;
        if let Some(exceeded) = self.rules.fields.exceeded(&anatomy) {
            return Err(Fault::TooMuch(exceeded).into());
        }
        let read_at = now();
        self.gate.metrics.stage(Stage::Anatomy, read_at.since(started));
        let fleet = self.gate.table.fleet();
        let asked = anatomy.model.as_deref();
        if let Some(model) = self.absent(asked, &fleet) {
            self.permit(&model, asked)?;
            return Err(Fault::Absent(model, anatomy.stream).into());
        }
        let (model, rewritten) = self.model(asked, &fleet)?;
        self.classify(anatomy.priority);
        let additions = self.additions(api, &anatomy);
        let pinned = anatomy.previous_response_id.as_deref().and_then(|id| self.gate.affinity.pod(id));
        let caller = self.identity.caller.clone();
        let is_hashed = api.prefills() && !self.gate.safe_mode.load(std::sync::atomic::Ordering::Relaxed);
        let hashed = |model: &str| {
            let salt = additions.salt().or(anatomy.cache_salt.as_deref());
            let seed = Seed { model, salt, tenant: "", secret: self.gate.prefix_secret };
            is_hashed.then(|| Fingerprint::of(api, &anatomy, &seed).charged_to(&caller.tenant))
        };
        let (model, prompt) = match asked.and_then(|asked| self.rules.aliases.get(asked)) {
            Some(targets) if targets.are_several() => self.settled(targets, model, pinned, &fleet, hashed),
            _ => (ModelName::clone(&model), hashed(&model)),
        };
        self.permit(&model, asked)?;
        self.gate.metrics.stage(Stage::Fingerprint, now().since(read_at));
        let mut edits: Vec<Edit<'_>> = self.strip(&anatomy).to_vec();
        let name = rewritten.then(|| serde_json::Value::from(&*model).to_string());
        if let Some(name) = &name {
            edits.push(Edit { key: "model", value: Some(name.as_bytes()) });
        }
        edits.extend(additions.edits());
        let body = splice(body, &anatomy, &edits);
        let (obstacle, sampling) = if self.rules.disagg.can_split(&fleet) {
            (disagg::obstacle(&anatomy, disagg::connector(self.rules.disagg.connector)), Sampling::of(&anatomy))
        } else {
            (Some(Obstacle::Api), Sampling::Unknown)
        };
        Ok(Facts {
            obstacle,
            sampling,
            body_hash: body_hash(&body, prompt.as_ref(), self.gate.prefix_secret ^ route_of(self.client.head())),
            api: Some(api),
            is_stream: anatomy.stream,
            max_tokens: anatomy.max_tokens.map(Tokens),
            asks: Asks::of(&anatomy),
            pinned,
            body: Body::new(body),
            account: account_of(&model, &fleet),
            model,
            prompt,
            replay: if anatomy.leaves_something() { Replay::Unknown } else { Replay::Harmless },
            urgency: self.identity.stated.map(Class::urgency),
            caller,
        })
    }

    /// A form: any pod of its model. How much work there is in a recording is not known.
    fn facts_of_form(&mut self, api: Api, body: &Bytes) -> Result<Facts, End> {
        let content_type = self.client.head().headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes().to_vec());
        let form = Form::read(content_type.as_deref(), body).map_err(Fault::BadForm)?;
        let fleet = self.gate.table.fleet();
        if let Some(model) = self.absent(form.model, &fleet) {
            self.permit(&model, form.model)?;
            return Err(Fault::Absent(model, false).into());
        }
        let (model, rewritten) = self.model(form.model, &fleet)?;
        self.permit(&model, form.model)?;
        self.classify(None);
        (0..form.dangers()).for_each(|_| self.gate.metrics.stripped_members.inc("kv_transfer_params"));
        let sent = form.rewritten(body, rewritten.then_some(&*model));
        let head = self.client.head();
        Ok(Facts {
            api: Some(api),
            account: account_of(&model, &fleet),
            model,
            is_stream: form.stream,
            // It leaves nothing behind in the pod.
            replay: Replay::Harmless,
            urgency: self.identity.stated.map(Class::urgency),
            caller: self.identity.caller.clone(),
            ..Facts::opaque(head, sent, None, self.gate.prefix_secret)
        })
    }

    /// A WebSocket: any pod of the model, or of the only one there is.
    pub(super) fn facts_of_tunnel(&mut self, asked: Option<&str>) -> Result<Facts, End> {
        let fleet = self.gate.table.fleet();
        let (model, _) = self.model(asked, &fleet)?;
        if model.is_empty() {
            return Err(Fault::WhichModel.into());
        }
        self.permit(&model, asked)?;
        self.classify(None);
        let caller = self.identity.caller.clone();
        let opaque = Facts::opaque(self.client.head(), Bytes::new(), None, self.gate.prefix_secret);
        Ok(Facts { account: account_of(&model, &fleet), model, caller, ..opaque })
    }

    /// A path the operator opened: any pod of the model, if the body is JSON and names one. What endangers pods goes here
    /// too; so an object that can't be read is refused, since a pod may read it otherwise.
    fn facts_of_allowed(&self, body: &Bytes) -> Result<Facts, End> {
        let head = self.client.head();
        let opaque = |body: Bytes| {
            let caller = self.identity.caller.clone();
            Facts { caller, ..Facts::opaque(head, body, None, self.gate.prefix_secret) }
        };
        let anatomy = match Anatomy::read(Api::Invocations, body) {
            Ok(anatomy) => anatomy,
            Err(bad) => {
                let is_none = matches!(bad, BadBody::Missing | BadBody::NotObject);
                if !is_none && may_be_object(head, body) {
                    return Err(Fault::BadBody(bad).into());
                }
                // It names no model; whoever may use some only must name one.
                self.permit("", None)?;
                return Ok(opaque(Bytes::clone(body)));
            }
        };
        let mut facts = opaque(splice(body, &anatomy, self.strip(&anatomy)));
        let fleet = self.gate.table.fleet();
        let model = anatomy.model.as_deref().and_then(|asked| self.model(Some(asked), &fleet).ok());
        self.permit(model.as_ref().map_or("", |(model, _)| &**model), anatomy.model.as_deref())?;
        if let Some((model, false)) = model {
            facts.account = account_of(&model, &fleet);
            facts.model = model;
        }
        Ok(facts)
    }

    /// Edits that remove what endangers pods, counted.
    fn strip(&self, anatomy: &Anatomy<'_>) -> &'static [Edit<'static>] {
        let edits = strip_dangerous(anatomy);
        if !edits.is_empty() {
            dangers(anatomy).for_each(|kind| self.gate.metrics.stripped_members.inc(kind));
        }
        edits
    }

    /// The one of several names that this conversation has, and its prompt hashed for it.
    fn settled(
        &self,
        targets: &Targets,
        by_lot: ModelName,
        pinned: Option<PodId>,
        fleet: &Fleet,
        hashed: impl Fn(&str) -> Option<Fingerprint>,
    ) -> (ModelName, Option<Fingerprint>) {
        // Always the same one, so that a conversation has the same name whichever of them are served.
        let first = targets.names().next().cloned().unwrap_or(by_lot);
        let is_named = self.gate.routing().session(&self.client.head().headers).is_some();
        let guess = if is_named { None } else { hashed(&first) };
        let opening = guess.as_ref().and_then(|prompt| prompt.anchors.opening);
        let key = opening.map_or_else(|| self.lot(), |opening| opening.key);
        // What goes on with a response goes on with its model.
        let pod = pinned.and_then(|pod| fleet.find(pod));
        let served = pod.map(|pod| pod.facts.load());
        let is_served = |name: &str| {
            let own = served.as_ref().and_then(|facts| facts.served.as_ref());
            let has = own.is_none_or(|own| own.iter().any(|model| &*model.name == name));
            has && self.is_choice(name, fleet)
        };
        let chosen = targets.choose(key, is_served).unwrap_or(&first);
        let prompt = guess.filter(|_| *chosen == first).or_else(|| hashed(chosen));
        (ModelName::clone(chosen), prompt)
    }

    /// The name under which pods know a model that clients call otherwise, as long as nothing is known of the conversation.
    pub(super) fn target(&self, asked: &str, fleet: &Fleet) -> Option<&str> {
        let targets = self.rules.aliases.get(asked)?;
        targets.choose(self.lot(), |name| self.is_choice(name, fleet)).map(|name| &**name)
    }

    /// Whether one of several names may be chosen: somebody serves it, and the caller may use it.
    fn is_choice(&self, name: &str, fleet: &Fleet) -> bool {
        fleet.by_model.contains_key(name) && self.identity.policy.allows(name)
    }

    /// What decides between the names of a model where nothing is known of the conversation: the session, else chance.
    fn lot(&self) -> u64 {
        let session = self.gate.routing().session(&self.client.head().headers);
        session.unwrap_or_else(|| xxhash_rust::xxh3::xxh3_64(self.note.request_id.as_bytes()))
    }

    /// The model a request is for, and whether the body must be told so.
    fn model(&self, asked: Option<&str>, fleet: &Fleet) -> Result<(ModelName, bool), Fault> {
        if fleet.pods.is_empty() {
            return Err(Fault::NoPod("no_pods"));
        }
        let Some(asked) = asked else {
            let mut known = fleet.by_model.keys();
            return Ok(match (known.next(), known.next()) {
                (Some(only), None) => (ModelName::clone(only), false),
                _ => ("".into(), false),
            });
        };
        let (real, rewritten) = match self.target(asked, fleet) {
            Some(real) => (real, true),
            None => (asked, false),
        };
        if let Some((known, _)) = fleet.by_model.get_key_value(real) {
            return Ok((ModelName::clone(known), rewritten));
        }
        if fleet.unknown.is_empty() || real.len() > MODEL_NAME_BYTES_MAX {
            return Err(Fault::unknown_model(asked));
        }
        Ok((real.into(), rewritten))
    }
}

/// Whether a pod may find an object in a body that is no JSON to us. FastAPI parses it if the content type says JSON, older
/// ones also without any; Python guesses UTF-16 and UTF-32 by their mark or by zeros among the first bytes.
fn may_be_object(head: &RequestHeader, body: &[u8]) -> bool {
    let content_type = head.headers.get(header::CONTENT_TYPE);
    let is_json =
        content_type.is_none_or(|told| told.as_bytes().to_ascii_lowercase().windows(4).any(|part| part == b"json"));
    let text = body.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(body).trim_ascii_start();
    let is_wide = matches!(body, [0xFE, 0xFF, ..] | [0xFF, 0xFE, ..]) || body.iter().take(4).any(|byte| *byte == 0);
    is_json && (is_wide || text.starts_with(b"{"))
}

/// The model itself if a pod serves it, else the name that all others share.
fn account_of(model: &ModelName, fleet: &Fleet) -> ModelName {
    if fleet.by_model.contains_key(model) { ModelName::clone(model) } else { "".into() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn key(method: &Method, path: &str, body: &'static str) -> Option<BodyKey> {
        let head = RequestHeader::build(method.clone(), path.as_bytes(), None).unwrap();
        Facts::opaque(&head, Bytes::from_static(body.as_bytes()), None, 1).body_key()
    }

    #[test]
    fn poison_is_a_body_on_its_route() {
        let (post, path) = (&Method::POST, "/v1/completions");
        assert!(key(post, path, "{}").is_some());
        assert_eq!(key(post, path, "{}"), key(post, "/v1/completions?a=1", "{}"));
        assert_ne!(key(post, path, "{}"), key(post, path, "{ }"));
        assert_ne!(key(post, path, "{}"), key(post, "/v1/embeddings", "{}"));
        assert_ne!(key(post, path, "{}"), key(&Method::PUT, path, "{}"));
        assert_eq!(key(post, path, ""), None, "all requests without a body would be one");
    }

    #[test]
    fn what_a_pod_may_read_as_an_object_is_known() {
        let utf16: Vec<u8> = "{}".encode_utf16().flat_map(u16::to_le_bytes).collect();
        for (content_type, body, expected) in [
            (Some("application/json"), &b" {\"a\":1"[..], true),
            (Some("Application/X+JSON; charset=x"), b"\xEF\xBB\xBF{", true),
            (None, b"{", true),
            (None, &utf16, true),
            (None, b"\xFF\xFE{\0", true),
            (Some("text/plain"), b"{", false),
            (Some("application/json"), b"no JSON at all", false),
        ] {
            let mut head = RequestHeader::build(Method::POST, b"/x", None).unwrap();
            if let Some(content_type) = content_type {
                head.insert_header(header::CONTENT_TYPE, content_type).unwrap();
            }
            assert_eq!(may_be_object(&head, body), expected, "{content_type:?} {body:?}");
        }
    }

    #[test]
    fn reading_may_be_asked_twice() {
        for (method, expected) in [
            (Method::GET, Replay::Harmless),
            (Method::HEAD, Replay::Harmless),
            (Method::OPTIONS, Replay::Harmless),
            (Method::POST, Replay::Unknown),
            (Method::DELETE, Replay::Unknown),
        ] {
            let head = RequestHeader::build(method.clone(), b"/x", None).unwrap();
            assert_eq!(Facts::opaque(&head, Bytes::new(), None, 1).replay, expected, "{method}");
        }
    }
}
