//! The lab on small cells: nothing is lost, the same seed gives the same bytes, what must hold of any policy holds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
use std::path::{Path, PathBuf};

use super::batch::{Batch, Outcome, Run};
use super::cell::{Cell, Suite};
use super::policies::Policy;
use super::render::{Answer, Pool, Tokens, body};
use super::script::{Class, Recipe, Role};
use super::summary::Summary;
use crate::report::Report;

fn cell(yaml: &str) -> Cell {
    serde_yaml::from_str(yaml).unwrap_or_else(|error| panic!("{yaml}: {error}"))
}

fn run(cells: &[&str], policies: &[&str], seeds: u64, threads: usize) -> Outcome {
    let policies = policies.iter().map(|name| Policy::of(name, Path::new("no-such-folder")).unwrap()).collect();
    let cells = cells.iter().map(|yaml| cell(yaml)).collect();
    let batch = Batch::with(cells, policies, (1..=seeds).collect(), fixtures(), Vec::new());
    batch.run(threads, &Report::new(None)).unwrap()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lab/fixtures")
}

fn summary<'a>(outcome: &'a Outcome, policy: &str) -> &'a Summary {
    &outcome.runs.iter().find(|run| run.policy == policy).unwrap().summary
}

const SMALL: [&str; 6] = [
    "{name: shared, workload: {b2b: {rate: 4, secs: 40, groups: 12, system_tokens: 2000, output_tokens: 60}}, fleet: {pods: 3, kv_tokens: 60000}}",
    "{name: agents, workload: {agent: {sessions: 12, turns: 6, ramp_s: 5}}, fleet: {pods: 3, kv_tokens: 400000}, gate: {count: 3}}",
    "{name: stripped, workload: {chat: {rate: 1, secs: 40, reasoning_share: 0.5}}, fleet: {pods: 2, ranks: 2}, clients: {streamed: 0.5, usage: 0.5}}",
    "{name: tight, workload: {mixed: {rate: 5, secs: 40, prompt_tokens: 500, output_tokens: 300, long_output_share: 0.2, long_output_tokens: [500, 1500]}}, fleet: {pods: 2, kv_tokens: 8000}}",
    "{name: restart, workload: {bursts: {of: {rate: 3, secs: 40}, every_s: 8}}, fleet: {pods: 3}, restart: {pod: 1, at_s: 20}, clients: {foreign: 0.3}}",
    "{name: scrapes, workload: {mixed: {rate: 4, secs: 30, prefixes: 5}}, fleet: {pods: 3, speeds: [1, 0.5]}, gate: {scrape_delay_ms: 5000, scrapes_max: 9}}",
];

#[test]
fn the_same_seed_gives_the_same_bytes_on_any_number_of_threads_and_another_seed_others() {
    let bytes = |outcome: &Outcome| serde_json::to_string(outcome).unwrap();
    let first = run(&SMALL, &["default", "random"], 1, 1);
    assert_eq!(bytes(&first), bytes(&run(&SMALL, &["default", "random"], 1, 3)));
    let two = run(&SMALL[..1], &["random"], 2, 1);
    assert_ne!(two.runs[0].summary, two.runs[1].summary);
}

#[test]
fn every_request_ends_and_the_books_are_empty_then() {
    for Run { cell, policy, summary, .. } in run(&SMALL, &["default", "round-robin", "active-requests"], 2, 2).runs {
        let name = format!("{cell} {policy}");
        assert_eq!(summary.good + summary.broken + summary.refused, summary.requests, "{name}");
        assert_eq!((summary.leaked, summary.unfinished), (0, 0), "{name}");
        assert!(summary.requests > 50, "{name}: {} requests", summary.requests);
        assert_eq!(summary.broken > 0, cell == "restart", "{name}: {} broken", summary.broken);
        assert_eq!(summary.refused, 0, "{name}");
        assert!(summary.ttft_s.mean > 0.0 && summary.e2e_s.p99 >= summary.e2e_s.p50, "{name}");
        assert!(summary.oracle_lru <= summary.oracle_belady + 1e-9, "{name}: {summary:?}");
        assert!(summary.oracle_belady <= summary.oracle_infinite + 1e-9, "{name}: {summary:?}");
        assert!(summary.hit <= summary.oracle_infinite + 0.02, "{name}: {summary:?}");
        assert!((summary.preemptions > 0) <= (cell == "tight"), "{name}");
    }
}

#[test]
fn following_prefixes_pays_where_they_are_shared_and_the_shortest_queue_balances() {
    let outcome = run(&SMALL[..1], &["default", "active-requests", "round-robin"], 1, 2);
    let [aware, shortest, turns] =
        ["default", "active-requests", "round-robin"].map(|policy| summary(&outcome, policy));
    assert!(aware.hit > shortest.hit + 0.1, "{} {}", aware.hit, shortest.hit);
    assert!(aware.ttft_s.mean < shortest.ttft_s.mean && aware.e2e_s.mean < turns.e2e_s.mean);
    assert!(shortest.imbalance <= aware.imbalance, "{} {}", shortest.imbalance, aware.imbalance);
}

#[test]
fn what_the_gate_does_not_see_costs_belief_and_a_restart_is_noticed() {
    let agents = |more: &str| {
        let yaml = format!(
            "{{name: a, workload: {{agent: {{sessions: 10, turns: 8, ramp_s: 5}}}}, fleet: {{pods: 2, kv_tokens: 900000}}{more}}}"
        );
        run(&[&yaml], &["default"], 1, 1).runs[0].summary.clone()
    };
    let plain = agents("");
    assert!(plain.belief_error < 0.05, "{plain:?}");
    let restarted = agents(", restart: {pod: 0, at_s: 60}");
    assert!(restarted.hit < plain.hit, "{} {}", restarted.hit, plain.hit);
    let blind = agents(", restart: {pod: 0, at_s: 60}, gate: {scrape_ms: 0}");
    assert!(blind.belief_error > restarted.belief_error, "{} {}", blind.belief_error, restarted.belief_error);
}

/// On two pods: all end, the books are empty then, nobody is given what he has, and a prefill pod that restarts loses nothing.
#[test]
fn two_pods_serve_a_request_if_the_policy_says_so() {
    let workload = "together: [{mixed: {rate: 4, secs: 30, prompt_tokens: 3000, output_tokens: 80}}, {agent: {sessions: 5, turns: 4, ramp_s: 5}}]";
    let cell = |more: &str| {
        format!(
            "{{name: two, workload: {{{workload}}}, fleet: {{pods: 4, prefill_pods: 2, kv_tokens: 400000}}, clients: {{streamed: 0.7}}{more}}}"
        )
    };
    let deciders =
        ["cost", "always", "never"].map(|decider| format!("{decider}={{disaggregation: {{decider: {decider}}}}}"));
    for more in ["", ", restart: {pod: 1, at_s: 15}", ", restart: {pod: 3, at_s: 15}", ", gate: {count: 2}"] {
        let outcome = run(&[&cell(more)], &deciders.each_ref().map(String::as_str), 1, 2);
        for Run { policy, summary, .. } in &outcome.runs {
            let name = format!("{policy}{more}");
            assert_eq!(summary.good + summary.broken, summary.requests, "{name}");
            assert_eq!((summary.leaked, summary.unfinished), (0, 0), "{name}");
            assert!(summary.broken == 0 || more.contains("pod: 3"), "{name}: {}", summary.broken);
            assert!(
                match policy.as_str() {
                    "always" => summary.remote >= 1.0,
                    "never" => summary.remote <= 0.0,
                    _ => summary.remote > 0.0,
                },
                "{name}: {}",
                summary.remote
            );
            assert!(!more.is_empty() || summary.belief_error < 0.1, "{name}: {}", summary.belief_error);
        }
    }
}

#[test]
fn a_prompt_too_large_for_any_pod_is_refused_and_nothing_else() {
    let yaml = "{name: x, workload: {mixed: {rate: 2, secs: 30, long_prompt_share: 0.3, long_prompt_tokens: [30000, 40000]}}, fleet: {pods: 2, kv_tokens: 20000}}";
    let summary = run(&[yaml], &["default"], 1, 1).runs[0].summary.clone();
    assert!(summary.refused > 0 && summary.refused + summary.good == summary.requests, "{summary:?}");
}

#[test]
fn traces_are_read_as_their_formats_say() {
    let script = |yaml: &str| cell(yaml).workload.script(&fixtures(), 1).unwrap();
    let mooncake = script("{name: m, workload: {mooncake: {file: mooncake.jsonl, speed: 2, copies: 2}}}");
    assert_eq!(mooncake.requests(), 6);
    let Recipe::Fresh(messages) = &mooncake.sessions[0].turns[0].recipe else { panic!("not fresh") };
    let pieces = &messages[0].pieces;
    assert_eq!(pieces.iter().map(|piece| piece.tokens).collect::<Vec<_>>(), [512, 512, 76]);
    assert!(pieces.iter().all(|piece| (2.5..=5.0).contains(&piece.bytes_per_token)));
    let starts: Vec<u64> = mooncake.sessions.iter().map(|session| session.start_us).collect();
    assert!(starts.contains(&1_500_000) && starts.is_sorted(), "{starts:?}");

    let weka = script("{name: w, workload: {weka: {file: weka.jsonl, sessions: 5, think_max_s: 10, speed: 2}}}");
    assert_eq!((weka.sessions.len(), weka.requests()), (1, 3));
    let turns = &weka.sessions[0].turns;
    assert!(matches!(turns[1].recipe, Recipe::Branch { parent: 0, tokens: 192, .. }), "{:?}", turns[1].recipe);
    assert_eq!([turns[0].think_us, turns[1].think_us, turns[2].think_us], [0, 2_000_000, 5_000_000]);

    let azure = script("{name: a, workload: {azure: {file: azure.csv, speed: 1}}}");
    assert_eq!((azure.requests(), azure.sessions[1].start_us / 1_000), (2, 4_314));
    assert_eq!(azure.sessions[1].turns[0].output_tokens, 109);

    let missing = cell("{name: m, workload: {mooncake: {file: none.jsonl}}}").workload.script(&fixtures(), 1);
    assert!(missing.unwrap_err().to_string().contains("none.jsonl"));
}

/// A conversation's prompt goes on from the answer the engine generated, unless the template strips its reasoning; and a
/// branch shares exactly what it says, as tokens and as bytes.
#[test]
fn prompts_share_what_they_should_on_both_sides() {
    let pool = Pool::new();
    for (reasoning, goes_on) in [(0, true), (300, false)] {
        let yaml = "{name: c, workload: {chat: {rate: 1, secs: 30, turns: 4}}}";
        let script = cell(yaml).workload.script(&fixtures(), 3).unwrap();
        let session = script.sessions.iter().find(|session| session.turns.len() > 1).unwrap();
        let tokens = Tokens { block_tokens: 16, has_template: true };
        let mut first = tokens.make(&session.turns[0], 0, |_| None);
        let prompt = tokens.prompt(&first);
        let text = body(&pool, &first.messages, true);
        let answer = Answer { seed: 9, tokens: 700, reasoning };
        tokens.answered(&mut first, answer);
        let first = std::sync::Arc::new(first);
        let second = tokens.make(&session.turns[1], 1, |_| Some(std::sync::Arc::clone(&first)));
        let later = tokens.prompt(&second);
        let whole = (prompt.tokens / 16) as usize;
        assert_eq!(prompt.blocks[..whole], later.blocks[..whole]);
        assert_eq!(second.messages[first.messages.len() - 1].role, Role::Assistant);
        let longer = body(&pool, &second.messages, true);
        let shared = text.iter().zip(&longer).take_while(|(a, b)| a == b).count();
        assert!(shared > text.len() - 20, "{shared} of {}", text.len());
        // What the engine generated after the prompt: its first block is the later prompt's only if nothing was stripped.
        let generated = tidegate::sim::engine::content::token(9, 0);
        let at = whole * 16 - (prompt.tokens as usize - prompt.tail.len());
        assert_eq!(at, 0);
        let mut block = prompt.tail.clone();
        block.extend((0..16 - prompt.tail.len() as u64).map(|index| tidegate::sim::engine::content::token(9, index)));
        assert_eq!(block[prompt.tail.len()], generated);
        let expected = tidegate::sim::engine::Prompt::of(&block, prompt.tip, 16).tip;
        assert_eq!(later.blocks[whole] == expected, goes_on, "reasoning {reasoning}");
    }
}

/// The lists are frozen: a change of a generator or a default would change what all earlier figures mean. Tokens are rounded
/// to three digits, as mathematical functions differ a little between platforms.
#[test]
fn the_frozen_cells_are_what_they_were() {
    let told = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../conf/lab").join(name);
        let suite = Suite::read(&path).unwrap();
        let mut told =
            format!("{:?}", suite.cells.iter().map(|cell| (&cell.fleet, &cell.gate, &cell.slo)).collect::<Vec<_>>());
        for cell in suite.cells {
            if cell.workload.file().is_none() {
                let script = cell.workload.script(&fixtures(), 1).unwrap();
                let turns = || script.sessions.iter().flat_map(|session| &session.turns);
                let sums = [
                    turns().map(|turn| f64::from(turn.output_tokens)).sum::<f64>(),
                    turns().map(|turn| turn.think_us as f64).sum(),
                    turns().map(|turn| prompt_tokens(&turn.recipe)).sum(),
                ];
                let line = format!("{} {} {:?}", cell.name, script.requests(), sums.map(|sum| format!("{sum:.2e}")));
                told.push_str(&line);
            }
        }
        let text = std::fs::read_to_string(path).unwrap().replace('\r', "");
        (text_digest(&text), text_digest(&told))
    };
    let frozen = [
        ("tuning.yaml", 0xEB7F_D385_F674_CA63, 0x11D6_C485_668B_626D),
        ("validation.yaml", 0x026E_EDAD_5D19_395F, 0x2736_50BC_3506_FB8A),
        ("disagg.yaml", 0x1232_19D7_CCB2_41D2, 0x9911_734A_24AE_1402),
    ];
    let said: Vec<_> = frozen.iter().map(|(name, ..)| (*name, told(name).0, told(name).1)).collect();
    assert_eq!(said, frozen);
}

fn prompt_tokens(recipe: &Recipe) -> f64 {
    match recipe {
        Recipe::Fresh(messages) | Recipe::Continue(messages) => {
            messages.iter().flat_map(|message| &message.pieces).map(|piece| f64::from(piece.tokens)).sum()
        }
        Recipe::Branch { add, .. } => f64::from(add.tokens),
    }
}

fn text_digest(text: &str) -> u64 {
    text.bytes().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[test]
fn a_queue_at_the_gate_keeps_engines_from_queueing_and_loses_nobody() {
    let cell = "{name: crowd, workload: {together: [{chat: {rate: 3, secs: 60, interactive_share: 0.4, think_s: 1}}, {mixed: {rate: 4, secs: 60, class: batch, long_prompt_share: 0.05}}]}, fleet: {pods: 2, kv_tokens: 200000}, clients: {tenants: [1, 3]}, slo: {itl_s: 9}, promises: {standard: 9, batch: 0}}";
    let policies = [
        "queue={flow: {queue: {refuse_beyond: 0}, classes: {interactive: {wait_max_s: 9000}, standard: {wait_max_s: 9000}, batch: {wait_max_s: 80000}}}}",
        "fifo={}",
    ];
    let policies = policies.map(|text| Policy::of(text, Path::new("no-such-folder")).unwrap());
    let cells = vec![self::cell(cell)];
    let batch = Batch::with(cells, policies.into(), vec![1], fixtures(), Vec::new());
    let outcome = batch.run(2, &Report::new(None)).unwrap();
    let (queue, fifo) = (summary(&outcome, "queue"), summary(&outcome, "fifo"));
    for one in [queue, fifo] {
        assert_eq!((one.good, one.leaked, one.unfinished), (one.requests, 0, 0));
    }
    assert!(fifo.waiting > 4.0 && queue.waiting < 2.0, "{} {}", fifo.waiting, queue.waiting);
    let p90 = |one: &Summary, class| one.service.classes[&class].ttft_s.p90;
    assert!(
        p90(queue, Class::Interactive) * 4.0 < p90(fifo, Class::Interactive),
        "{:?} {:?}",
        queue.service,
        fifo.service
    );
    assert!(
        queue.service.classes[&Class::Interactive].waited_s.p90 < queue.service.classes[&Class::Standard].waited_s.p90
    );
}
