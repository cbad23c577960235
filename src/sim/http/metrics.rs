//! `/metrics`: the exposition of vLLM 0.32, as far as a router reads it, and its faults.
//!
//! Gauges come from the engines, `num_requests_running` from the requests in flight, so that a stream slowed by a script
//! counts as long as it is written. Numbers are written as prometheus_client does (`1.79532406114e+09`).
use std::time::Duration;

use super::config::{SimConfig, SimRole};
use super::pod::Life;
use super::script::MetricsFault;
use super::wire::Reply;
use crate::sim::engine::Stats;

const LATENCY: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2_560.0,
];
const INTERVAL: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
const WHOLE: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1_920.0, 7_680.0,
];
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0, 5_000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0,
];

/// A histogram with fixed bounds.
#[derive(Clone, Debug)]
struct Histogram {
    bounds: &'static [f64],
    counts: Vec<u64>,
    count: u64,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len()], count: 0, sum: 0.0 }
    }

    fn observe(&mut self, value: f64, times: u64) {
        let place = self.bounds.iter().position(|bound| value <= *bound);
        if let Some(count) = place.and_then(|place| self.counts.get_mut(place)) {
            *count += times;
        }
        self.count += times;
        self.sum += value * times as f64;
    }
}

/// History of one rank.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    /// Requests refused because the queue was full.
    pub(super) rejections: u64,
    stopped: u64,
    cut_short: u64,
    ttft: Histogram,
    interval: Histogram,
    whole: Histogram,
    decode: Histogram,
    prompt: Histogram,
    generated: Histogram,
    computed: Histogram,
}

impl Default for Figures {
    fn default() -> Self {
        Self {
            rejections: 0,
            stopped: 0,
            cut_short: 0,
            ttft: Histogram::new(LATENCY),
            interval: Histogram::new(INTERVAL),
            whole: Histogram::new(WHOLE),
            decode: Histogram::new(WHOLE),
            prompt: Histogram::new(TOKENS),
            generated: Histogram::new(TOKENS),
            computed: Histogram::new(TOKENS),
        }
    }
}

impl Figures {
    /// Books a request that was served whole.
    pub(super) fn served(
        &mut self,
        prompt: u64,
        generated: u64,
        cached: u64,
        ttft: Duration,
        whole: Duration,
        is_cut_short: bool,
    ) {
        let decode = whole.saturating_sub(ttft).as_secs_f64();
        let gaps = generated.saturating_sub(1);
        *(if is_cut_short { &mut self.cut_short } else { &mut self.stopped }) += 1;
        self.ttft.observe(ttft.as_secs_f64(), 1);
        if gaps > 0 {
            self.interval.observe(decode / gaps as f64, gaps);
        }
        self.whole.observe(whole.as_secs_f64(), 1);
        self.decode.observe(decode, 1);
        self.prompt.observe(prompt as f64, 1);
        self.generated.observe(generated as f64, 1);
        self.computed.observe(prompt.saturating_sub(cached) as f64, 1);
    }
}

/// A value of an engine.
type OfStats = fn(&Stats) -> u64;
/// A histogram of a rank.
type OfFigures = fn(&Figures) -> &Histogram;

/// The text of a page being written.
struct Page {
    text: String,
    model: String,
    since: f64,
}

impl Page {
    fn family(&mut self, name: &str, kind: &str) {
        for part in ["# HELP ", name, " See vLLM.\n# TYPE ", name, " ", kind, "\n"] {
            self.text.push_str(part);
        }
    }

    fn sample(&mut self, name: &str, labels: &str, value: f64) {
        let (open, close) = if labels.is_empty() { ("", "") } else { ("{", "}") };
        for part in [name, open, labels, close, " ", &number(value), "\n"] {
            self.text.push_str(part);
        }
    }

    fn labels(&self, rank: usize, more: &str) -> String {
        // prometheus_client sorts labels by name.
        let mut labels =
            vec![format!(r#"engine="{rank}""#), format!(r#"model_name="{}""#, self.model), more.to_owned()];
        labels.retain(|label| !label.is_empty());
        labels.sort();
        labels.join(",")
    }

    /// One family with a value per rank.
    fn each(&mut self, name: &str, kind: &str, values: impl Iterator<Item = f64>) {
        self.family(name, kind);
        for (rank, value) in values.enumerate() {
            let labels = self.labels(rank, "");
            self.sample(name, &labels, value);
        }
        if kind == "counter" {
            let name = format!("{}_created", name.trim_end_matches("_total"));
            self.family(&name, "gauge");
            let labels = self.labels(0, "");
            let since = self.since;
            self.sample(&name, &labels, since);
        }
    }

    fn histogram(&mut self, name: &str, rank: usize, histogram: &Histogram) {
        let mut total = 0;
        for (bound, count) in histogram.bounds.iter().zip(&histogram.counts) {
            total += count;
            let labels = self.labels(rank, &format!(r#"le="{}""#, number(*bound)));
            self.sample(&format!("{name}_bucket"), &labels, total as f64);
        }
        let labels = self.labels(rank, r#"le="+Inf""#);
        self.sample(&format!("{name}_bucket"), &labels, histogram.count as f64);
        let labels = self.labels(rank, "");
        self.sample(&format!("{name}_count"), &labels, histogram.count as f64);
        self.sample(&format!("{name}_sum"), &labels, histogram.sum);
    }
}

/// A number as prometheus_client's `floatToGoString` writes it.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    if value.is_nan() {
        return "NaN".to_owned();
    }
    let text = format!("{value:?}");
    match (text.split_once('.'), text.contains('e')) {
        (Some((whole, rest)), false) if value > 0.0 && whole.len() > 6 => {
            let (first, more) = whole.split_at(1);
            let digits = format!("{first}.{more}{rest}");
            format!("{}e+{:02}", digits.trim_end_matches('0').trim_end_matches('.'), whole.len() - 1)
        }
        _ => text,
    }
}

/// The page of a pod.
pub(super) fn render(config: &SimConfig, life: &Life) -> String {
    let ranks = life.ranks.figures();
    let text = page(config, life.started.as_secs_f64(), &ranks);
    if config.role == SimRole::Both || !config.handover.connector.tells() {
        return text;
    }
    let (expired, late) = life.leases.counts();
    let model = config.first_model();
    let counter = |name: &str, count: u64| {
        let count = number(count as f64);
        format!("# TYPE vllm:nixl_{name} counter\nvllm:nixl_{name}{{engine=\"0\",model_name=\"{model}\"}} {count}\n")
    };
    let expired = counter("num_kv_expired_reqs_total", expired);
    text + &expired + &counter("num_notifications_after_expiry_total", late)
}

fn page(config: &SimConfig, since: f64, ranks: &[(Stats, u64, Figures)]) -> String {
    let model = config.first_model().to_owned();
    let mut page = Page { text: String::with_capacity(32 << 10), model, since };
    page.family("process_start_time_seconds", "gauge");
    page.sample("process_start_time_seconds", "", since);
    gauges(&mut page, config, ranks);
    counters(&mut page, ranks);
    requests(&mut page, ranks);
    histograms(&mut page, ranks);
    cache_config(&mut page, config, ranks.len());
    page.text
}

fn gauges(page: &mut Page, config: &SimConfig, ranks: &[(Stats, u64, Figures)]) {
    let waiting = |stats: &Stats| f64::from(stats.waiting);
    let running = |stats: &Stats, in_flight: u64| in_flight.saturating_sub(u64::from(stats.waiting)) as f64;
    page.each("vllm:num_requests_running", "gauge", ranks.iter().map(|(stats, flying, _)| running(stats, *flying)));
    page.each("vllm:num_requests_waiting", "gauge", ranks.iter().map(|(stats, ..)| waiting(stats)));
    let by_reason = "vllm:num_requests_waiting_by_reason";
    page.family(by_reason, "gauge");
    for (rank, (stats, ..)) in ranks.iter().enumerate() {
        for (reason, value) in [("capacity", waiting(stats)), ("deferred", 0.0)] {
            let labels = page.labels(rank, &format!(r#"reason="{reason}""#));
            page.sample(by_reason, &labels, value);
        }
    }
    if config.role == SimRole::Decode {
        page.family("vllm:num_requests_kv_fetch_by_stage", "gauge");
        for stage in ["waiting_to_start", "in_progress", "completed_waiting"] {
            let labels = page.labels(0, &format!(r#"stage="{stage}""#));
            page.sample("vllm:num_requests_kv_fetch_by_stage", &labels, 0.0);
        }
    }
    page.family("vllm:engine_sleep_state", "gauge");
    for rank in 0..ranks.len() {
        for (state, value) in [("awake", 1.0), ("weights_offloaded", 0.0), ("discard_all", 0.0)] {
            let labels = page.labels(rank, &format!(r#"sleep_state="{state}""#));
            page.sample("vllm:engine_sleep_state", &labels, value);
        }
    }
    page.each("vllm:kv_cache_usage_perc", "gauge", ranks.iter().map(|(stats, ..)| stats.usage()));
    if !config.adapters.is_empty() {
        page.family("vllm:lora_requests_info", "gauge");
        let labels = r#"max_lora="4",running_lora_adapters="",waiting_lora_adapters="""#;
        let since = page.since;
        page.sample("vllm:lora_requests_info", labels, since);
    }
}

fn counters(page: &mut Page, ranks: &[(Stats, u64, Figures)]) {
    let mut each = |name: &str, value: fn(&Stats) -> u64| {
        page.each(name, "counter", ranks.iter().map(|(stats, ..)| value(stats) as f64));
    };
    each("vllm:prefix_cache_queries_total", |stats| stats.lookup_tokens);
    each("vllm:prefix_cache_hits_total", |stats| stats.hit_tokens);
    each("vllm:external_prefix_cache_queries_total", |_| 0);
    each("vllm:external_prefix_cache_hits_total", |_| 0);
    each("vllm:num_preemptions_total", |stats| stats.preemptions);
    each("vllm:prompt_tokens_total", |stats| stats.prompt_tokens);
    each("vllm:prompt_tokens_cached_total", |stats| stats.hit_tokens);
    each("vllm:generation_tokens_total", |stats| stats.generated_tokens);
    let mut by_source = |name: &str, sources: &[(&str, OfStats)]| {
        page.family(name, "counter");
        for (rank, (stats, ..)) in ranks.iter().enumerate() {
            for (source, value) in sources {
                let labels = page.labels(rank, &format!(r#"source="{source}""#));
                page.sample(name, &labels, value(stats) as f64);
            }
        }
    };
    by_source(
        "vllm:prompt_tokens_by_source_total",
        &[
            ("local_compute", |stats| stats.prompt_tokens.saturating_sub(stats.hit_tokens + stats.given_tokens)),
            ("local_cache_hit", |stats| stats.hit_tokens),
            ("external_kv_transfer", |stats| stats.given_tokens),
        ],
    );
    by_source(
        "vllm:prompt_tokens_cached_by_source_total",
        &[
            ("device", |stats| stats.hit_tokens),
            ("host", |_| 0),
            ("p2p", |_| 0),
            ("disk", |_| 0),
            ("external_unspecified", |_| 0),
        ],
    );
}

fn requests(page: &mut Page, ranks: &[(Stats, u64, Figures)]) {
    page.family("vllm:request_success_total", "counter");
    for (rank, (_, _, figures)) in ranks.iter().enumerate() {
        let reasons =
            [("stop", figures.stopped), ("length", figures.cut_short), ("abort", 0), ("error", 0), ("repetition", 0)];
        for (reason, count) in reasons {
            let labels = page.labels(rank, &format!(r#"finished_reason="{reason}""#));
            page.sample("vllm:request_success_total", &labels, count as f64);
        }
    }
    page.family("vllm:admission_rejections_total", "counter");
    let rejections: u64 = ranks.iter().map(|(_, _, figures)| figures.rejections).sum();
    for (reason, count) in [("max_num_queued_reqs", rejections), ("max_num_queued_tokens", 0)] {
        let labels = format!(r#"model_name="{}",reason="{reason}""#, page.model);
        page.sample("vllm:admission_rejections_total", &labels, count as f64);
    }
}

fn histograms(page: &mut Page, ranks: &[(Stats, u64, Figures)]) {
    let all: [(&str, OfFigures); 10] = [
        ("vllm:time_to_first_token_seconds", |figures| &figures.ttft),
        ("vllm:inter_token_latency_seconds", |figures| &figures.interval),
        ("vllm:request_time_per_output_token_seconds", |figures| &figures.interval),
        ("vllm:e2e_request_latency_seconds", |figures| &figures.whole),
        ("vllm:request_inference_time_seconds", |figures| &figures.whole),
        ("vllm:request_prefill_time_seconds", |figures| &figures.ttft),
        ("vllm:request_decode_time_seconds", |figures| &figures.decode),
        ("vllm:request_prompt_tokens", |figures| &figures.prompt),
        ("vllm:request_generation_tokens", |figures| &figures.generated),
        ("vllm:request_prefill_kv_computed_tokens", |figures| &figures.computed),
    ];
    for (name, histogram) in all {
        page.family(name, "histogram");
        for (rank, (_, _, figures)) in ranks.iter().enumerate() {
            page.histogram(name, rank, histogram(figures));
        }
    }
}

fn cache_config(page: &mut Page, config: &SimConfig, ranks: usize) {
    page.family("vllm:cache_config_info", "gauge");
    let engine = &config.engine;
    let tokens = u64::from(engine.blocks) * u64::from(engine.block_tokens);
    let caching = if engine.prefix_caching { "True" } else { "False" };
    for rank in 0..ranks {
        let labels = format!(
            r#"_block_size_resolved="True",block_size="{size}",cache_dtype="auto",enable_prefix_caching="{caching}",engine="{rank}",gpu_memory_utilization="0.92",hash_block_size="None",kv_cache_max_concurrency="{:?}",kv_cache_size_tokens="{tokens}",num_cpu_blocks="None",num_gpu_blocks="{}",num_gpu_blocks_override="None",prefix_caching_hash_algo="sha256",sliding_window="None""#,
            tokens as f64 / config.max_model_len.max(1) as f64,
            engine.blocks,
            size = engine.block_tokens,
        );
        page.sample("vllm:cache_config_info", &labels, 1.0);
    }
}

/// What a lying or broken `/metrics` answers; `None` for one that hangs.
pub(super) fn broken(fault: MetricsFault, config: &SimConfig, life: &Life) -> Option<Reply> {
    let kind = Some("text/plain; version=1.0.0; charset=utf-8");
    let text = match fault {
        MetricsFault::Hang => return None,
        MetricsFault::Error => return Some(Reply::with(500, Some("text/plain"), b"Internal Server Error".to_vec())),
        MetricsFault::Garbage => "<html>{{{ not \u{0} metrics }}} 1 2 3\nvllm:num_requests_running{engine=\"0\"".into(),
        MetricsFault::Idle => {
            let idle = Stats { blocks: config.engine.blocks, ..Stats::default() };
            let ranks: Vec<_> = (0..life.ranks.count()).map(|_| (idle, 0, Figures::default())).collect();
            page(config, life.started.as_secs_f64(), &ranks)
        }
        MetricsFault::Huge => "vllm:filler_total{engine=\"0\",model_name=\"sim\"} 1.0\n".repeat((64 << 20) / 53),
        MetricsFault::NotANumber => {
            let figures = life.ranks.figures();
            let page = page(config, life.started.as_secs_f64(), &figures);
            page.lines()
                .map(|line| match line.rsplit_once(' ') {
                    Some((name, _)) if name.starts_with("vllm:") && !name.contains("_total") => format!("{name} NaN\n"),
                    _ => format!("{line}\n"),
                })
                .collect()
        }
    };
    Some(Reply::with(200, kind, text.into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_spelt_as_prometheus_client_does() {
        for (value, text) in [
            (0.0, "0.0"),
            (256.0, "256.0"),
            (1_795_324_061.14, "1.79532406114e+09"),
            (0.001, "0.001"),
            (1_000_000.0, "1e+06"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
