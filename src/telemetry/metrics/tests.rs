//! Real scrapes give the right values; anything else gives fewer, and never a panic.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::format_collect)]
use proptest::prelude::*;

use super::*;

const IDLE: &[u8] = include_bytes!("../../../tests/fixtures/vllm/metrics-idle.txt");
const BUSY: &[u8] = include_bytes!("../../../tests/fixtures/vllm/metrics-busy-excerpt.txt");
const PREFILL: &[u8] = include_bytes!("../../../tests/fixtures/vllm/metrics-prefill-nixl.txt");
const DECODE: &[u8] = include_bytes!("../../../tests/fixtures/vllm/metrics-decode-nixl.txt");

fn reading(body: &[u8]) -> Reading {
    Scrape::parse(body).engines[0].reading(Mono(1), LoadNow::default())
}

#[test]
fn a_real_scrape() {
    let scrape = Scrape::parse(IDLE);
    assert_eq!((scrape.started_at_s, scrape.ranks()), (Some(1.795_324_061_14e9), Some(1)));
    let engine = &scrape.engines[0];
    assert_eq!((engine.block_tokens(), engine.capacity()), (Some(32), Some(Tokens(16_384))));
    assert_eq!(engine.sleep(), Sleep::Awake);
    let expected = Reading {
        taken: Mono(1),
        own: LoadNow::default(),
        running: Some(0),
        waiting: Some(0),
        kv_used: Some(0.0),
        prefix_queries: Some(1_031),
        prefix_hits: Some(256),
        preemptions: Some(0),
        generated: Some(83),
        kv_expired: None,
    };
    assert_eq!(reading(IDLE), expected);
    assert_eq!(scrape.witness().counters, [Some(1_031), Some(256), Some(0), Some(83)]);
}

#[test]
fn real_scrapes_of_a_busy_server_and_of_a_pair() {
    let busy = reading(BUSY);
    assert_eq!((busy.running, busy.waiting, busy.kv_used), (Some(2), Some(2), Some(0.074_363_992_172_211_35)));
    assert_eq!((busy.generated, Scrape::parse(BUSY).started_at_s), (None, None));
    assert_eq!(reading(PREFILL).prefix_hits, Some(1_728));
    assert_eq!(reading(DECODE).generated, Some(136));
    assert_eq!((reading(PREFILL).kv_expired, reading(DECODE).kv_expired), (Some(10), Some(0)));
    assert_eq!(Scrape::parse(DECODE).engines[0].capacity(), Some(Tokens(16_384)));
}

#[test]
fn ranks_are_engines_without_a_gap() {
    let body = |ranks: &[&str]| -> String {
        ranks
            .iter()
            .map(|rank| format!("vllm:num_requests_running{{engine=\"{rank}\",model_name=\"m\"}} {rank}\n"))
            .collect()
    };
    for (ranks, expected) in [
        (&["0"][..], Some(1)),
        (&["1", "0", "2"], Some(3)),
        (&["0", "2"], None),
        (&["1"], None),
        (&["x"], None),
        (&[], None),
        (&["0", "4294967295"], None),
    ] {
        assert_eq!(Scrape::parse(body(ranks).as_bytes()).ranks(), expected, "{ranks:?}");
    }
    let scrape = Scrape::parse(body(&["1", "0"]).as_bytes());
    assert_eq!(scrape.engines[1].reading(Mono(0), LoadNow::default()).running, Some(1));
    let many: String = (0..3_000).map(|rank| format!("vllm:num_requests_running{{engine=\"{rank}\"}} 1\n")).collect();
    assert_eq!(Scrape::parse(many.as_bytes()).engines.len(), ENGINES_MAX);
}

/// The value of the one gauge of this line.
fn check(line: &str, expected: Option<f64>) {
    let scrape = Scrape::parse(line.as_bytes());
    assert_eq!(scrape.engines.first().and_then(|engine| engine.kv_used), expected, "{line}");
}

#[test]
fn spellings_of_a_line() {
    check("vllm:kv_cache_usage_perc 0.25", Some(0.25));
    check("vllm:kv_cache_usage_perc\t2.5e-01 1395066363000\r", Some(0.25));
    check("vllm:kv_cache_usage_perc{} 1", Some(1.0));
    check("vllm:gpu_cache_usage_perc{engine=\"0\"} .5", Some(0.5));
    check("vllm:kv_cache_usage_perc{ model_name = \"a\\\"} 7, b\\\\\" , engine=\"0\", } +1E-1", Some(0.1));
    check("vllm:kv_cache_usage_perc{model_name=\"\\n\",engine=\"3\"} 0.5", Some(0.5));
    for value in ["NaN", "+Inf", "-Inf", "-1", "", "x", "1.0.0", "0x10"] {
        check(&format!("vllm:kv_cache_usage_perc{{engine=\"0\"}} {value}"), None);
    }
    for line in [
        "vllm:kv_cache_usage_perc0.5",
        "vllm:kv_cache_usage_perc{engine=\"0\" 0.5",
        "vllm:kv_cache_usage_perc{engine=\"0} 0.5",
        "vllm:kv_cache_usage_perc{engine} 0.5",
        "vllm:kv_cache_usage_perc{engine=\"0\"}0.5",
        "vllm:kv_cache_usage_perc_total 0.5",
        "# vllm:kv_cache_usage_perc 0.5",
        " vllm:kv_cache_usage_perc 0.5",
        "vllm:",
    ] {
        check(line, None);
    }
}

#[test]
fn sleep_and_capacity() {
    let engine = |body: &str| Scrape::parse(body.as_bytes()).engines[0];
    let asleep = "vllm:engine_sleep_state{engine=\"0\",sleep_state=\"discard_all\"} 1.0\n\
                  vllm:engine_sleep_state{engine=\"0\",sleep_state=\"awake\"} 0.0";
    assert_eq!(engine(asleep).sleep(), Sleep::Asleep);
    let blocks = "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"10\",kv_cache_size_tokens=\"None\"} 1.0";
    assert_eq!(engine(blocks).capacity(), Some(Tokens(160)));
    let nonsense = "vllm:cache_config_info{block_size=\"18446744073709551615\",num_gpu_blocks=\"10\"} 1.0";
    assert_eq!((engine(nonsense).capacity(), engine(nonsense).block_tokens()), (None, None));
    let nothing = "vllm:cache_config_info{block_size=\"None\"} 1.0";
    assert_eq!((engine(nothing).capacity(), engine(nothing).sleep()), (None, Sleep::Awake));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(body in proptest::collection::vec(any::<u8>(), 0..600)) {
        Scrape::parse(&body);
    }

    #[test]
    fn anything_that_looks_like_metrics_is_survived(
        pieces in proptest::collection::vec(proptest::sample::select(vec![
            "vllm:", "num_requests_running", "kv_cache_usage_perc", "cache_config_info", "process_start_time_seconds",
            "{", "}", "\"", "\\", "=", ",", " ", "\n", "engine", "0", "1e309", "-", "NaN", "block_size", "\u{e9}",
        ]), 0..80)
    ) {
        let scrape = Scrape::parse(pieces.concat().as_bytes());
        prop_assert!(scrape.engines.len() <= ENGINES_MAX);
        prop_assert!(scrape.started_at_s.is_none_or(f64::is_finite));
    }

    #[test]
    fn a_real_scrape_with_one_byte_changed_or_cut_is_survived(at in 0..IDLE.len(), byte: u8) {
        let mut body = IDLE.to_vec();
        body[at] = byte;
        Scrape::parse(&body);
        Scrape::parse(&body[..at]);
    }
}
