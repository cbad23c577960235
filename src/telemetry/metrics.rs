//! Reads the few of vLLM's metrics that routing needs out of the Prometheus text format.
//!
//! A scrape of vLLM 0.32 is 60–70 KB in 800 lines, of which about twenty matter, so lines are told apart by name before
//! anything else is looked at. Every `vllm:` metric carries `engine="<data-parallel rank>"`. A metric that is missing, NaN,
//! infinite or negative is `None`; a line that is no metric is skipped. Nothing here allocates per line, and no input panics.
use crate::base::{Mono, Tokens};
use crate::pods::{LoadNow, Reading, Sleep, Witness};

/// Most engines of one endpoint that are kept.
const ENGINES_MAX: usize = crate::pods::table::RANKS_MAX as usize;

/// What one `/metrics` answer says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Scrape {
    /// `process_start_time_seconds`.
    pub(super) started_at_s: Option<f64>,
    /// One per engine, by rank.
    pub(super) engines: Vec<Engine>,
}

/// The metrics of one engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Engine {
    /// Data-parallel rank; 0 where there is no label.
    pub(super) rank: u32,
    running: Option<f64>,
    waiting: Option<f64>,
    waiting_capacity: Option<f64>,
    kv_used: Option<f64>,
    prefix_queries: Option<u64>,
    prefix_hits: Option<u64>,
    preemptions: Option<u64>,
    generated: Option<u64>,
    kv_expired: Option<u64>,
    block_tokens: Option<u64>,
    blocks: Option<u64>,
    kv_tokens: Option<u64>,
    awake: Option<bool>,
}

impl Scrape {
    /// Reads an answer's body.
    pub(super) fn parse(body: &[u8]) -> Self {
        let mut scrape = Self::default();
        let mut rest = body;
        while !rest.is_empty() {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let (line, tail) = rest.split_at(end);
            scrape.line(line);
            rest = tail.get(1..).unwrap_or_default();
        }
        scrape.engines.sort_by_key(|engine| engine.rank);
        scrape
    }

    /// How many data-parallel ranks the endpoint has: engines `0..k`. `None` if there is no engine, or a rank is missing.
    pub(super) fn ranks(&self) -> Option<u32> {
        let last = self.engines.last()?.rank;
        (usize::try_from(last).ok()?.checked_add(1) == Some(self.engines.len())).then(|| last + 1)
    }

    /// What the answer says about the process behind it.
    pub(super) fn witness(&self) -> Witness {
        let sum =
            |counter: fn(&Engine) -> Option<u64>| self.engines.iter().filter_map(counter).reduce(u64::saturating_add);
        Witness {
            started_at_s: self.started_at_s,
            counters: [
                sum(|engine| engine.prefix_queries),
                sum(|engine| engine.prefix_hits),
                sum(|engine| engine.preemptions),
                sum(|engine| engine.generated),
            ],
        }
    }

    fn line(&mut self, line: &[u8]) {
        if let Some(name) = line.strip_prefix(b"vllm:") {
            self.vllm_line(name);
        } else if let Some(rest) = line.strip_prefix(b"process_start_time_seconds") {
            self.started_at_s = value_of(after_labels(rest)).or(self.started_at_s);
        }
    }

    fn vllm_line(&mut self, line: &[u8]) {
        let end = line.iter().position(|byte| matches!(byte, b'{' | b' ' | b'\t')).unwrap_or(line.len());
        let (name, rest) = line.split_at(end);
        let Some(metric) = Metric::of(name) else { return };
        let Some(value) = value_of(after_labels(rest)) else { return };
        let rank = label(rest, b"engine").map_or(Some(0), number).and_then(|rank| u32::try_from(rank).ok());
        let Some(engine) = rank.and_then(|rank| self.engine(rank)) else { return };
        engine.take(metric, rest, value);
    }

    fn engine(&mut self, rank: u32) -> Option<&mut Engine> {
        let known = self.engines.iter().position(|engine| engine.rank == rank);
        if known.is_none() && self.engines.len() < ENGINES_MAX {
            self.engines.push(Engine { rank, ..Engine::default() });
            return self.engines.last_mut();
        }
        self.engines.get_mut(known?)
    }
}

impl Engine {
    /// The gauges as a reading taken `now`, while this gate had `own` in flight.
    pub(super) fn reading(&self, now: Mono, own: LoadNow) -> Reading {
        let count = |value: f64| value as u32;
        Reading {
            taken: now,
            own,
            running: self.running.map(count),
            waiting: self.waiting_capacity.or(self.waiting).map(count),
            kv_used: self.kv_used.map(|share| share.min(1.0)),
            prefix_queries: self.prefix_queries,
            prefix_hits: self.prefix_hits,
            preemptions: self.preemptions,
            generated: self.generated,
            kv_expired: self.kv_expired,
        }
    }

    /// KV block size in tokens.
    pub(super) fn block_tokens(&self) -> Option<u32> {
        self.block_tokens.and_then(|tokens| u32::try_from(tokens).ok()).filter(|tokens| *tokens > 0)
    }

    /// KV capacity in tokens: told as such, else blocks times their size.
    pub(super) fn capacity(&self) -> Option<Tokens> {
        let by_blocks = || self.block_tokens?.checked_mul(self.blocks?);
        self.kv_tokens.or_else(by_blocks).filter(|tokens| *tokens > 0).map(Tokens)
    }

    /// Whether the engine sleeps; awake if it does not say.
    pub(super) fn sleep(&self) -> Sleep {
        if self.awake == Some(false) { Sleep::Asleep } else { Sleep::Awake }
    }

    fn take(&mut self, metric: Metric, labels: &[u8], value: f64) {
        match metric {
            Metric::Running => self.running = Some(value),
            Metric::Waiting => self.waiting = Some(value),
            Metric::WaitingByReason => {
                if label(labels, b"reason") == Some(b"capacity") {
                    self.waiting_capacity = Some(value);
                }
            }
            Metric::KvUsed => self.kv_used = Some(value),
            Metric::PrefixQueries => self.prefix_queries = Some(value as u64),
            Metric::PrefixHits => self.prefix_hits = Some(value as u64),
            Metric::Preemptions => self.preemptions = Some(value as u64),
            Metric::Generated => self.generated = Some(value as u64),
            Metric::KvExpired => self.kv_expired = Some(self.kv_expired.unwrap_or(0).saturating_add(value as u64)),
            Metric::CacheConfig => {
                self.block_tokens = label(labels, b"block_size").and_then(number);
                self.blocks = label(labels, b"num_gpu_blocks").and_then(number);
                self.kv_tokens = label(labels, b"kv_cache_size_tokens").and_then(number);
            }
            Metric::SleepState => {
                if label(labels, b"sleep_state") == Some(b"awake") {
                    self.awake = Some(value > 0.0);
                }
            }
        }
    }
}

/// The metrics that are read (vLLM 0.32; the last name of KV usage is from before its V1 engine).
#[derive(Clone, Copy)]
enum Metric {
    Running,
    Waiting,
    WaitingByReason,
    KvUsed,
    PrefixQueries,
    PrefixHits,
    Preemptions,
    Generated,
    KvExpired,
    CacheConfig,
    SleepState,
}

impl Metric {
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"num_requests_running" => Self::Running,
            b"num_requests_waiting" => Self::Waiting,
            b"num_requests_waiting_by_reason" => Self::WaitingByReason,
            b"kv_cache_usage_perc" | b"gpu_cache_usage_perc" => Self::KvUsed,
            b"prefix_cache_queries_total" => Self::PrefixQueries,
            b"prefix_cache_hits_total" => Self::PrefixHits,
            b"num_preemptions_total" => Self::Preemptions,
            b"generation_tokens_total" => Self::Generated,
            b"nixl_num_kv_expired_reqs_total" | b"nixl_num_notifications_after_expiry_total" => Self::KvExpired,
            b"cache_config_info" => Self::CacheConfig,
            b"engine_sleep_state" => Self::SleepState,
            _ => return None,
        })
    }
}

/// Labels of a line, in order, values as written (escapes and all: none of the values read here has one).
struct Labels<'a>(&'a [u8]);

impl<'a> Iterator for Labels<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let start = self.0.iter().position(|byte| !matches!(byte, b',' | b' ' | b'\t'))?;
        let text = self.0.get(start..)?;
        let equals = text.iter().position(|byte| matches!(byte, b'=' | b'}'))?;
        let (key, rest) = text.split_at(equals);
        let value = rest.strip_prefix(b"=")?.trim_ascii_start().strip_prefix(b"\"")?;
        let end = quote_end(value)?;
        self.0 = value.get(end + 1..)?;
        Some((key.trim_ascii_end(), value.get(..end)?))
    }
}

/// Where a quoted value ends: the first quote that is not escaped.
fn quote_end(value: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        let at = from + memchr::memchr2(b'"', b'\\', value.get(from..)?)?;
        if value.get(at) == Some(&b'"') {
            return Some(at);
        }
        from = at + 2;
    }
}

fn label<'a>(labels: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    Labels(labels.strip_prefix(b"{")?).find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// What follows the labels, if there are any; nothing if they never end.
fn after_labels(rest: &[u8]) -> &[u8] {
    let Some(inside) = rest.strip_prefix(b"{") else { return rest };
    let mut labels = Labels(inside);
    while labels.next().is_some() {}
    let end = labels.0.trim_ascii_start();
    end.strip_prefix(b",").unwrap_or(end).trim_ascii_start().strip_prefix(b"}").unwrap_or_default()
}

/// The value (before an optional timestamp), if it is a number that a gauge or counter here can have.
fn value_of(rest: &[u8]) -> Option<f64> {
    if !rest.first().is_some_and(u8::is_ascii_whitespace) {
        return None;
    }
    let word = rest.split(u8::is_ascii_whitespace).find(|word| !word.is_empty())?;
    std::str::from_utf8(word).ok()?.parse().ok().filter(|value: &f64| value.is_finite() && *value >= 0.0)
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
