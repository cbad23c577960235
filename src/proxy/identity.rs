//! Who sends a request, as the data path sees it: key to tenant before the body is read, then class, models, salt and limits.
use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderValue};

use super::exchange::{Exchange, Note};
use super::intake::Facts;
use super::quota::Ticket;
use super::reply::Fault;
use super::rules::Rules;
use crate::api::{Anatomy, Api, Edit};
use crate::flow::{Bounds, Caller, Class, Denied, Policy, Tenants, Trust, Used, asked};
use crate::observe::{Cause, Fault as Blame, Metrics};
use crate::runtime::now;

/// Length of an answer that nothing is known of \[tokens\].
const OUTPUT_TOKENS: u64 = 300;

/// Who sends a request, and what that means.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) caller: Caller,
    pub(super) policy: Arc<Policy>,
    /// The class, if the policy or the request says one: only then anything follows from it for the choice of a pod.
    pub(super) stated: Option<Class>,
    /// Whether the request was let in, so that it may be told of in log and metrics under this name.
    is_known: bool,
    ticket: Option<Ticket>,
    /// Prompt that was charged \[tokens\].
    prompt_tokens: u64,
}

impl Identity {
    /// Nobody in particular.
    pub(super) fn unknown(rules: &Rules, is_trusted: bool) -> Self {
        let trust = if is_trusted { Trust::Trusted } else { Trust::Open };
        Self::of(Tenants::open(), rules, trust)
    }

    fn of(tenant: Arc<str>, rules: &Rules, trust: Trust) -> Self {
        let policy = Arc::clone(rules.tenants.policy(&tenant));
        let caller = Caller { tenant, class: policy.class.unwrap_or_default(), trust };
        Self { caller, stated: policy.class, policy, is_known: false, ticket: None, prompt_tokens: 0 }
    }

    /// The tenant as log lines name it.
    pub(super) fn tenant(&self) -> Option<&str> {
        self.is_known.then_some(&*self.caller.tenant)
    }

    /// The class as log lines name it.
    pub(super) fn class(&self) -> Option<&'static str> {
        self.is_known.then_some(self.caller.class.as_str())
    }

    /// The request ended: gives back what it held, charges what it used, counts it.
    pub(super) fn settle(self, note: &Note, cause: Cause, status: u16, metrics: &Metrics) {
        if let Some(ticket) = self.ticket {
            ticket.settle(used(note, cause, status, self.prompt_tokens));
        }
        if !self.is_known {
            return;
        }
        let tenant = metrics.tenants.of(&self.caller.tenant);
        tenant.requests.inc(self.caller.class.as_str());
        if let Some(usage) = note.usage {
            tenant.add_tokens(usage.prompt_tokens, usage.completion_tokens);
        }
    }
}

/// What a request used: what its usage says, else what was seen of it. A pod that failed before its answer began costs nothing;
/// a client that left before costs its prompt, which may have been computed.
fn used(note: &Note, cause: Cause, status: u16, prompt_tokens: u64) -> Used {
    if note.attempts == 0 {
        return Used::Nothing;
    }
    match note.usage {
        Some(usage) => Used::Tokens(usage.prompt_tokens.saturating_add(usage.completion_tokens)),
        None if status >= 400 => Used::Tokens(0),
        // Events of a stream stand for its tokens.
        None if note.committed => Used::Tokens(prompt_tokens.saturating_add(note.events)),
        None if cause.fault() == Blame::Client => Used::Tokens(prompt_tokens),
        None => Used::Tokens(0),
    }
}

/// What is spliced into a body for the pod.
#[derive(Debug, Default)]
pub(super) struct Additions {
    salt: Option<String>,
    salt_json: String,
    priority: Option<String>,
}

impl Additions {
    /// The salt the pod's cache will know the prompt by, if it is not the client's own.
    pub(super) fn salt(&self) -> Option<&str> {
        self.salt.as_deref()
    }

    /// As edits.
    pub(super) fn edits(&self) -> impl Iterator<Item = Edit<'_>> {
        let salt = self.salt.is_some().then_some(("cache_salt", &self.salt_json));
        let priority = self.priority.as_ref().map(|priority| ("priority", priority));
        let all = salt.into_iter().chain(priority);
        all.map(|(key, value)| Edit { key, value: Some(value.as_bytes()) })
    }
}

impl Exchange {
    /// Finds out who asks. Refuses who has no key where keys are configured; the body is not read before.
    pub(super) fn identify(&mut self) -> Result<(), Fault> {
        let certified = self.rules.certified(&self.client.conn).and_then(|caller| caller.tenant.as_deref());
        let known = self.rules.keys.as_ref().map(|keys| keys.tenant(presented(&self.client.head().headers)));
        // A key counts before the certificate: what many share may speak for each of them.
        let tenant = match (known, certified) {
            (Some(Ok(tenant)), _) => Arc::clone(tenant),
            (Some(Err(Denied::Missing)) | None, Some(tenant)) => tenant.into(),
            (Some(Err(denied)), _) => return Err(Fault::Denied(denied)),
            (None, None) => Tenants::open(),
        };
        self.identity = Identity { is_known: true, ..Identity::of(tenant, &self.rules, self.identity.caller.trust) };
        Ok(())
    }

    /// Settles the class: what the policy says, what a header asks for, else the `priority` of the body.
    pub(super) fn classify(&mut self, priority: Option<i64>) {
        let fields = &self.client.head().headers;
        let word = self.rules.class_headers.iter().find_map(|name| fields.get(name));
        // What is no text is no class either.
        let word = word.map(|word| word.to_str().unwrap_or_default());
        let identity = &mut self.identity;
        let chosen = asked::choose(&identity.policy, identity.caller.trust, word, priority);
        if let Some(ignored) = chosen.ignored {
            self.gate.metrics.class_ignored.inc(ignored.as_str());
        }
        identity.stated = chosen.class;
        identity.caller.class = chosen.class.unwrap_or_default();
    }

    /// Refuses a model the tenant may not use, as if there were none: what else is served is not its business.
    pub(super) fn permit(&self, model: &str, asked: Option<&str>) -> Result<(), Fault> {
        let is_allowed = self.identity.policy.allows(model);
        if is_allowed { Ok(()) } else { Err(Fault::unknown_model(asked.unwrap_or_default())) }
    }

    /// The priority pods are told, where they schedule by it.
    pub(super) fn pod_priority(&self) -> Option<u64> {
        self.rules.bounds.pods_use_priority.then(|| asked::pod_priority(self.identity.caller.class))
    }

    /// What goes into the body for the pod: a salt of the tenant's own, the priority of its class.
    pub(super) fn additions(&self, api: Api, anatomy: &Anatomy<'_>) -> Additions {
        let own = anatomy.cache_salt.as_deref();
        let is_salted = self.rules.isolates_tenants && api.prefills();
        let salt = is_salted.then(|| self.gate.salt_key.salt(&self.identity.caller.tenant, own));
        Additions {
            salt_json: salt.as_ref().map(|salt| format!("\"{salt}\"")).unwrap_or_default(),
            salt,
            priority: self.pod_priority().filter(|_| api.prefills()).map(|priority| priority.to_string()),
        }
    }

    /// Takes the request from what its tenant may use; refused with the time until it may be.
    pub(super) fn charge(&mut self, facts: &Facts) -> Result<(), Fault> {
        let bounds = Bounds { limits: self.identity.policy.limits, gates: self.rules.bounds.gates };
        if !bounds.limits.is_any() {
            return Ok(());
        }
        let (prompt, output) = self.estimate(facts);
        let tenant = &self.identity.caller.tenant;
        match self.gate.quotas.admit(now(), tenant, bounds, prompt.saturating_add(output)) {
            Ok(ticket) => {
                self.identity.ticket = Some(ticket);
                self.identity.prompt_tokens = prompt;
                Ok(())
            }
            Err(refusal) => {
                self.gate.metrics.tenants.of(tenant).refused.inc(refusal.reason.as_str());
                Err(Fault::Limited(refusal.reason, whole_seconds(refusal.retry_after)))
            }
        }
    }

    /// Tokens a request is thought to take: of its prompt, and of its answers as far as the client lets them grow.
    fn estimate(&self, facts: &Facts) -> (u64, u64) {
        let Some(api) = facts.api.filter(|api| api.prefills()) else { return (0, 0) };
        let bytes = facts.prompt.as_ref().map_or(facts.body.len() as u64, |prompt| prompt.bytes);
        let expected = || self.gate.latency.expected(&facts.model).map_or(OUTPUT_TOKENS, |mean| mean.max(0.0) as u64);
        let each = facts.max_tokens.map_or_else(expected, |most| most.0);
        let output = if api.generates() { each.saturating_mul(facts.asks.answers.into()) } else { 0 };
        (bytes.div_ceil(4), output)
    }
}

/// Rounded up, and never 0: a client that comes too early is only refused again.
fn whole_seconds(wait: Option<Duration>) -> u32 {
    let seconds = wait.unwrap_or_default().as_micros().div_ceil(1_000_000).max(1);
    u32::try_from(seconds).unwrap_or(u32::MAX)
}

/// Keys a request presents, in the ways of OpenAI, Anthropic and Azure.
fn presented(fields: &HeaderMap) -> impl Iterator<Item = &[u8]> {
    let bearer = fields.get(header::AUTHORIZATION).and_then(bearer);
    let others = ["x-api-key", "api-key"].into_iter().filter_map(|name| fields.get(name)).map(HeaderValue::as_bytes);
    bearer.into_iter().chain(others).map(<[u8]>::trim_ascii)
}

fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let (scheme, key) = value.as_bytes().split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(key)
}

/// Accounts of tenants that are neither configured nor have a key are of no use any more.
pub(super) fn is_tenant(rules: &Rules, tenant: &str) -> bool {
    let mut certified = rules.certified.iter().filter_map(|caller| caller.tenant.as_deref());
    rules.tenants.names().any(|name| name == tenant)
        || certified.any(|name| name == tenant)
        || rules.keys.as_ref().is_some_and(|keys| keys.knows(tenant))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::base::Mono;

    #[test]
    fn keys_come_under_three_names() {
        let of = |pairs: &[(&'static str, &'static str)]| {
            let pair = |&(name, value)| (header::HeaderName::from_static(name), HeaderValue::from_static(value));
            let fields: HeaderMap = pairs.iter().map(pair).collect();
            presented(&fields).map(|key| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(of(&[("authorization", "bearer  k1 "), ("x-api-key", "k2"), ("api-key", "k3")]), ["k1", "k2", "k3"]);
        assert_eq!(of(&[("authorization", "Basic eDp5"), ("api-key", "k3")]), ["k3"]);
        assert!(of(&[("authorization", "Bearer"), ("cookie", "k")]).is_empty());
    }

    #[test]
    fn clients_are_told_whole_seconds() {
        for (micros, seconds) in [(0, 1), (1, 1), (1_000_000, 1), (1_000_001, 2), (u64::MAX, u32::MAX)] {
            assert_eq!(whole_seconds(Some(Duration::from_micros(micros))), seconds);
        }
        assert_eq!(whole_seconds(None), 1);
    }

    #[test]
    fn what_was_used_follows_from_how_it_ended() {
        let note =
            |attempts, committed, events| Note { attempts, committed, events, ..Note::new("r".into(), Mono::ZERO) };
        assert_eq!(used(&note(0, false, 0), Cause::RefusedSaturated, 429, 9), Used::Nothing);
        assert_eq!(used(&note(1, true, 5), Cause::ClientGone, 200, 9), Used::Tokens(14));
        assert_eq!(used(&note(1, false, 0), Cause::ClientGone, 0, 9), Used::Tokens(9));
        assert_eq!(used(&note(2, false, 0), Cause::PodClosed, 502, 9), Used::Tokens(0));
        let usage = crate::api::Usage { prompt_tokens: 3, completion_tokens: 4, cached_tokens: None };
        let told = Note { usage: Some(usage), ..note(1, true, 5) };
        assert_eq!(used(&told, Cause::Ok, 200, 9), Used::Tokens(7));
    }
}
