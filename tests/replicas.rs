//! What a gate knows of prompts it did not see in this life: from its own last one, and of other gates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::disallowed_methods)]
mod kit;

use kit::wire::{begin, has};
use kit::{Gate, chat, post, request};
use tidegate::sim::http::{Fleet, SimConfig};

const CHAT: &str = "/v1/chat/completions";

/// A conversation of one turn with a long system prompt of this name.
fn ask(name: &str, question: &str) -> String {
    let system = format!("{name} knows the tides of every harbour. ").repeat(200);
    serde_json::json!({
        "model": "sim",
        "max_tokens": 2,
        "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
    })
    .to_string()
}

fn cached(answer: &kit::Answer) -> u64 {
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_pods_hold_is_known_after_a_restart() {
    let snapshot = std::env::temp_dir().join(format!("tidegate-replicas-{}", std::process::id()));
    let yaml = format!("prefix: {{snapshot_file: {}}}", snapshot.display());
    let fleet = Fleet::start(4, SimConfig::default()).await.unwrap();
    for life in 0..2 {
        let gate = Gate::start(&fleet.addrs(), &yaml).await;
        gate.knows_models().await;
        let tokens = cached(&post(gate.addr(), CHAT, "", &ask("Ann", "When?")).await);
        assert_eq!(tokens > 1_000, life > 0, "{tokens} tokens were cached in life {life}");
        let line = gate.finish().await.pop().unwrap();
        assert_eq!(line["hit_estimate_tokens"].as_u64().unwrap() > 1_000, life > 0, "{line}");
    }
    assert!(snapshot.is_file());
    for path in [snapshot.clone(), format!("{}.secret", snapshot.display()).into()] {
        std::fs::remove_file(path).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gates_that_share_nothing_send_a_shared_prompt_to_one_pod() {
    let slow = SimConfig { speed: 1.0, ..SimConfig::default() };
    let fleet = Fleet::start(8, slow).await.unwrap();
    let gates = [Gate::start(&fleet.addrs(), "").await, Gate::start(&fleet.addrs(), "").await];
    let mut streams = Vec::new();
    for gate in &gates {
        gate.knows_models().await;
        let long = request(CHAT, "", &chat("sim", "count", true, 100_000));
        streams.push(begin(gate.addr(), &long, |bytes| has(bytes, "data: ")).await);
    }
    for gate in &gates {
        gate.eventually("others seen", || gate.app().gate().peers.share() > 0.2).await;
    }
    for name in ["Ben", "Cleo", "Dora"] {
        assert_eq!(cached(&post(gates[0].addr(), CHAT, "", &ask(name, "When?")).await), 0);
        let tokens = cached(&post(gates[1].addr(), CHAT, "", &ask(name, "Where?")).await);
        assert!(tokens > 1_000, "{name}: {tokens} tokens were cached at the pod of the other gate");
    }
    drop(streams);
    for gate in gates {
        gate.finish().await;
    }
}
