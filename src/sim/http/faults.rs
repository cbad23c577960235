//! The script at work: counts matches and gathers the faults of one request into a plan that the writer follows.
use std::time::Duration;

use bytes::Bytes;
use memchr::memmem;

use super::head::Head;
use super::script::{Cut, Fault, Framing, KvFault, MetricsFault, Rule, Script};

/// A script with its counters.
#[derive(Default)]
pub(super) struct Faults {
    rules: Vec<(Rule, u64)>,
}

impl Faults {
    /// Starts counting anew.
    pub(super) fn new(script: Script) -> Self {
        Self { rules: script.rules.into_iter().map(|rule| (rule, 0)).collect() }
    }

    /// Whether there is nothing to look up.
    pub(super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The fault of a connection just accepted.
    pub(super) fn of_connection(&mut self) -> Option<Fault> {
        let mut found = None;
        for (rule, count) in self.rules.iter_mut().filter(|(rule, _)| rule.is_for_connections) {
            *count += 1;
            if rule.matches.contains(count) {
                found.get_or_insert_with(|| rule.fault.clone());
            }
        }
        found
    }

    /// Adds the faults of a request: by its head, or, when `body` is given, those that look for a marker in it.
    pub(super) fn of_request(&mut self, head: &Head, body: Option<&[u8]>, plan: &mut Plan) {
        for (rule, count) in self.rules.iter_mut().filter(|(rule, _)| !rule.is_for_connections) {
            let is_seen = match (&rule.marker, body) {
                (None, None) => true,
                (Some(marker), Some(body)) => memmem::find(body, marker).is_some(),
                _ => false,
            };
            if !is_seen || !is_path_of(rule, head) || !is_header_of(rule, head) {
                continue;
            }
            *count += 1;
            if rule.matches.contains(count) {
                plan.add(&rule.fault);
            }
        }
    }
}

fn is_path_of(rule: &Rule, head: &Head) -> bool {
    match (&rule.path, &rule.fault) {
        (Some(prefix), _) => head.path.starts_with(prefix.as_str()),
        (None, Fault::Metrics(_)) => head.path == "/metrics",
        (None, _) => head.method == "POST",
    }
}

fn is_header_of(rule: &Rule, head: &Head) -> bool {
    rule.header.as_ref().is_none_or(|(name, value)| head.field(name) == Some(value.as_str()))
}

/// Everything that shall go wrong with one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    pub(super) is_refused: bool,
    pub(super) is_silent: bool,
    pub(super) is_crash: bool,
    pub(super) early_answer: Option<u16>,
    pub(super) status: Option<(u16, Option<u64>)>,
    pub(super) cut_at_byte: Option<(u64, Cut)>,
    pub(super) cut_at_event: Option<(u64, Cut)>,
    pub(super) silence_at_event: Option<u64>,
    pub(super) slow_head: Option<Duration>,
    pub(super) slow_body: Option<Duration>,
    pub(super) slow_tokens: Option<Duration>,
    pub(super) error_after: Option<u64>,
    pub(super) is_without_good_ending: bool,
    pub(super) is_without_final_chunk: bool,
    pub(super) is_open_after_end: bool,
    pub(super) is_split: bool,
    pub(super) is_closed_after: bool,
    pub(super) framing: Option<Framing>,
    pub(super) raw: Option<Bytes>,
    pub(super) head_filler: usize,
    pub(super) event_filler: usize,
    pub(super) interim: Vec<u16>,
    pub(super) metrics: Option<MetricsFault>,
    pub(super) kv: KvPlan,
}

/// What shall go wrong when KV blocks are handed over.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KvPlan {
    pub(super) gives_nothing: bool,
    pub(super) lacks_port: bool,
    pub(super) expires: bool,
    pub(super) stalls: Option<Duration>,
    pub(super) fails: bool,
    pub(super) garbles: bool,
}

impl KvPlan {
    fn add(&mut self, fault: KvFault) {
        match fault {
            KvFault::Nothing => self.gives_nothing = true,
            KvFault::LacksPort => self.lacks_port = true,
            KvFault::Expires => self.expires = true,
            KvFault::Stalls(wait) => self.stalls = Some(wait),
            KvFault::Fails => self.fails = true,
            KvFault::Garbles => self.garbles = true,
        }
    }
}

impl Plan {
    /// Adds one fault.
    pub(super) fn add(&mut self, fault: &Fault) {
        match fault {
            Fault::Refuse => self.is_refused = true,
            Fault::Silent => self.is_silent = true,
            Fault::CutAtByte(at, how) => self.cut_at_byte = Some((*at, *how)),
            Fault::CutAtEvent(at, how) => self.cut_at_event = Some((*at, *how)),
            Fault::SilenceAfterHead => self.silence_at_event = Some(0),
            Fault::SilenceAtEvent(at) => self.silence_at_event = Some(*at),
            Fault::SlowHead(wait) => self.slow_head = Some(*wait),
            Fault::SlowBody(wait) => self.slow_body = Some(*wait),
            Fault::SlowTokens(wait) => self.slow_tokens = Some(*wait),
            Fault::ErrorEvent(after) => self.error_after = Some(*after),
            Fault::NoGoodEnding => self.is_without_good_ending = true,
            Fault::NoFinalChunk => self.is_without_final_chunk = true,
            Fault::OpenAfterEnd => self.is_open_after_end = true,
            Fault::Framing(how) => self.framing = Some(*how),
            Fault::Raw(bytes) => self.raw = Some(bytes.clone()),
            Fault::HugeHead(bytes) => self.head_filler = *bytes,
            Fault::HugeEvent(bytes) => self.event_filler = *bytes,
            Fault::SplitBytes => self.is_split = true,
            Fault::Status(code, retry_after) => self.status = Some((*code, *retry_after)),
            Fault::EarlyAnswer(code) => self.early_answer = Some(*code),
            Fault::Interim(codes) => self.interim.extend(codes),
            Fault::Crash => self.is_crash = true,
            Fault::Metrics(how) => self.metrics = Some(*how),
            Fault::CloseAfter => self.is_closed_after = true,
            Fault::Kv(fault) => self.kv.add(*fault),
        }
    }
}
