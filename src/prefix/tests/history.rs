//! The index on scripted and random histories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use proptest::prelude::*;

use crate::base::{PodId, Tokens};
use crate::prefix::{Answered, BLOCK_BYTES, Chain, Claim, Fingerprint, Index, Limits};

/// A prompt whose blocks are chained like real ones: each depends on all letters before it.
pub(super) fn prompt(path: &[u8]) -> Fingerprint {
    let mut hash = 1_u64;
    let blocks: Vec<_> = path
        .iter()
        .map(|letter| {
            hash = xxhash_rust::xxh3::xxh3_64_with_seed(&[*letter], hash);
            hash
        })
        .collect();
    let bytes = (blocks.len() * BLOCK_BYTES) as u64;
    let chain = Chain { blocks, bytes, ..Chain::default() };
    Fingerprint { chains: vec![chain], bytes, model: 1, ..Fingerprint::default() }
}

/// Blocks of the prompt a pod holds; at the prior ratio a block is 64 tokens, and the last token never counts.
fn depth(index: &Index, path: &[u8], pod: u32) -> usize {
    let tokens = index.lookup(&prompt(path)).depth(PodId(pod)).0;
    tokens.div_ceil(64) as usize
}

fn index(pod_blocks: u64) -> Index {
    Index::new(Limits { pod_tokens: Tokens(pod_blocks * 64), ..Limits::default() })
}

#[test]
fn a_claim_counts_at_once_and_a_withdrawn_one_not_at_all() {
    let index = index(1_000);
    let first = index.claim(&prompt(b"aaaa"), PodId(1));
    assert_eq!((first.expected, depth(&index, b"aaaabb", 1), depth(&index, b"aaaa", 2)), (Tokens(0), 4, 0));
    index.confirm(&prompt(b"aaaa"), first);
    let more = index.claim(&prompt(b"aaaabb"), PodId(1));
    assert_eq!(more.expected, Tokens(256));
    assert_eq!(depth(&index, b"aaaabb", 1), 6);
    index.withdraw(&prompt(b"aaaabb"), more);
    assert_eq!((depth(&index, b"aaaabb", 1), index.stats().blocks), (4, 4));
}

#[test]
fn one_of_two_claims_withdrawn_leaves_the_other() {
    let index = index(1_000);
    let claims = [index.claim(&prompt(b"abc"), PodId(1)), index.claim(&prompt(b"abc"), PodId(1))];
    index.withdraw(&prompt(b"abc"), claims[0]);
    assert_eq!(depth(&index, b"abc", 1), 3);
    index.withdraw(&prompt(b"abc"), claims[1]);
    assert_eq!((depth(&index, b"abc", 1), index.stats().blocks), (0, 0));
}

#[test]
fn a_pod_that_left_leaves_nothing() {
    let index = index(1_000);
    let claim = index.claim(&prompt(b"abc"), PodId(1));
    index.claim(&prompt(b"abd"), PodId(2));
    index.set_capacity(PodId(3), Tokens(64), Tokens(16));
    index.keep(|pod| pod == PodId(2));
    assert_eq!((depth(&index, b"abc", 1), depth(&index, b"abd", 2), index.stats().pods), (0, 3, 1));
    index.confirm(&prompt(b"abc"), claim);
    assert_eq!(depth(&index, b"abc", 1), 0, "a claim of before comes to nothing");
    // Its capacity is forgotten too: the number that was 64 tokens holds the default again.
    let path = vec![b'x'; 8];
    index.claim(&prompt(&path), PodId(3));
    assert_eq!(depth(&index, &path, 3), 8);
    index.keep(|_| false);
    assert_eq!((index.stats().blocks, index.stats().pods), (0, 0));
    index.assert_sound();
}

#[test]
fn a_wipe_forgets_the_pod_and_its_open_claims() {
    let index = index(1_000);
    let claim = index.claim(&prompt(b"abc"), PodId(1));
    index.claim(&prompt(b"abd"), PodId(2));
    index.wipe(PodId(1));
    index.confirm(&prompt(b"abc"), claim);
    assert_eq!((depth(&index, b"abc", 1), depth(&index, b"abc", 2), index.stats().blocks), (0, 2, 3));
}

#[test]
fn the_least_recent_goes_first_and_tails_before_heads() {
    let index = index(5);
    index.claim(&prompt(b"abc"), PodId(1));
    index.claim(&prompt(b"xyz"), PodId(1));
    assert_eq!((depth(&index, b"abc", 1), depth(&index, b"xyz", 1)), (2, 3));
    index.claim(&prompt(b"ab"), PodId(1));
    index.claim(&prompt(b"m"), PodId(1));
    assert_eq!((depth(&index, b"abc", 1), depth(&index, b"xyz", 1), depth(&index, b"m", 1)), (2, 2, 1));
    index.set_capacity(PodId(1), Tokens(2 * 64), Tokens(16));
    index.claim(&prompt(b"mmmmm"), PodId(1));
    assert_eq!((depth(&index, b"mmmmm", 1), index.pod_blocks(PodId(1))), (2, 2));
}

#[test]
fn usage_teaches_exact_tokens_and_how_much_of_a_hit_is_true() {
    let index = index(1_000);
    assert_eq!(index.lookup(&prompt(b"aaaa")).prompt_tokens, Tokens(256));
    let claim = index.claim(&prompt(b"aaaa"), PodId(1));
    index.confirm(&prompt(b"aaaa"), claim);
    index.learn(&prompt(b"aaaa"), claim, Tokens(300), Some(Tokens(0)));
    assert_eq!(index.lookup(&prompt(b"aaaa")).prompt_tokens, Tokens(300));
    let more = index.lookup(&prompt(b"aaaab"));
    assert!((360..380).contains(&more.prompt_tokens.0), "{more:?}");
    for _ in 0..100 {
        let claim = index.claim(&prompt(b"aaaa"), PodId(1));
        index.learn(&prompt(b"aaaa"), claim, Tokens(300), Some(Tokens(claim.expected.0 / 2)));
    }
    let half = index.lookup(&prompt(b"aaaa")).depth(PodId(1)).0;
    assert!((140..165).contains(&half), "{half}");
}

#[test]
fn a_pod_that_has_evicted_a_beginning_has_proven_nothing_behind_it_on_any_branch() {
    let index = index(1_000);
    let first = index.claim(&prompt(b"ab"), PodId(1));
    index.learn(&prompt(b"ab"), first, Tokens(128), Some(Tokens(128)));
    let branch = index.claim(&prompt(b"ac"), PodId(1));
    // Something newer keeps the first chain from being evicted with what was not used since.
    index.claim(&prompt(b"ab"), PodId(1));
    index.learn(&prompt(b"ac"), branch, Tokens(128), Some(Tokens(0)));
    index.assert_sound();
    assert_eq!(depth(&index, b"ab", 1), 2);
}

#[test]
fn memory_is_bounded() {
    let index = Index::new(Limits { bytes_max: 20_000, ..Limits::default() });
    for round in 0..2_000_u32 {
        let path: Vec<u8> = round.to_le_bytes().iter().cycle().take(40).copied().collect();
        index.claim(&prompt(&path), PodId(round % 7));
        assert!(index.stats().bytes <= 20_000, "{:?}", index.stats());
    }
    assert!(index.stats().evicted_blocks > 0 && index.stats().blocks > 0);
}

#[derive(Clone, Debug)]
enum Step {
    Claim(u32, Vec<u8>),
    Confirm(usize),
    Withdraw(usize),
    Learn(usize, Option<u64>),
    Extend(usize, Vec<u8>),
    Pinned(u32, u64),
    Wipe(u32),
    Capacity(u32, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let path = proptest::collection::vec(0..2_u8, 1..9);
    prop_oneof![
        6 => (0..3_u32, path).prop_map(|(pod, path)| Step::Claim(pod, path)),
        3 => (0..20_usize).prop_map(Step::Confirm),
        3 => (0..20_usize).prop_map(Step::Withdraw),
        3 => (0..20_usize, proptest::option::of(0..600_u64)).prop_map(|(at, cached)| Step::Learn(at, cached)),
        2 => (0..20_usize, proptest::collection::vec(0..2_u8, 1..4)).prop_map(|(at, more)| Step::Extend(at, more)),
        1 => (0..3_u32, 0..1_000_u64).prop_map(|(pod, pinned)| Step::Pinned(pod, pinned)),
        1 => (0..3_u32).prop_map(Step::Wipe),
        1 => (0..3_u32, 0..20_u64).prop_map(|(pod, blocks)| Step::Capacity(pod, blocks)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn random_histories_keep_the_invariants(steps in proptest::collection::vec(step(), 1..60)) {
        let index = index(12);
        let mut open: Vec<(Claim, Vec<u8>)> = Vec::new();
        let mut sent: Vec<(u32, Vec<u8>)> = Vec::new();
        for step in steps {
            match step {
                Step::Claim(pod, path) => {
                    let hits = index.lookup(&prompt(&path));
                    let before = hits.depth(PodId(pod));
                    prop_assert!(hits.coming(PodId(pod)) <= before);
                    let claim = index.claim(&prompt(&path), PodId(pod));
                    prop_assert!(claim.expected >= before);
                    open.push((claim, path.clone()));
                    sent.push((pod, path));
                }
                Step::Confirm(at) if at < open.len() => {
                    let (claim, path) = open.swap_remove(at);
                    index.confirm(&prompt(&path), claim);
                }
                Step::Withdraw(at) if at < open.len() => {
                    let (claim, path) = open.swap_remove(at);
                    index.withdraw(&prompt(&path), claim);
                }
                Step::Learn(at, cached) if at < open.len() => {
                    let (claim, path) = &open[at];
                    let tokens = Tokens(path.len() as u64 * 64);
                    index.learn(&prompt(path), *claim, tokens, cached.map(Tokens));
                }
                Step::Extend(at, more) if at < open.len() => {
                    let (claim, path) = &open[at];
                    let whole = [&path[..], &more].concat();
                    let long = prompt(&whole);
                    let blocks = long.chains[0].blocks[path.len()..].to_vec();
                    index.extend(&prompt(path), *claim, &Answered { blocks, bytes: long.bytes }, None);
                    sent.push((claim.pod.0, whole));
                }
                Step::Pinned(pod, pinned) => index.set_pinned(PodId(pod), Tokens(pinned)),
                Step::Wipe(pod) => {
                    index.wipe(PodId(pod));
                    sent.retain(|(other, _)| *other != pod);
                    prop_assert_eq!(index.pod_blocks(PodId(pod)), 0);
                }
                Step::Capacity(pod, blocks) => {
                    index.set_capacity(PodId(pod), Tokens(blocks * 64), Tokens(1));
                    let claim = index.claim(&prompt(&[9]), PodId(pod));
                    index.withdraw(&prompt(&[9]), claim);
                    prop_assert!(index.pod_blocks(PodId(pod)) <= blocks.max(1));
                }
                _ => {}
            }
            index.assert_sound();
            for pod in 0..3 {
                for (_, path) in &sent {
                    let most = sent.iter().filter(|(other, _)| *other == pod);
                    let most = most.map(|(_, other)| other.iter().zip(path).take_while(|(a, b)| a == b).count()).max();
                    let held = index.held_blocks(&prompt(path), PodId(pod)) as usize;
                    prop_assert!(held <= most.unwrap_or(0), "no pod holds what it was never sent");
                }
            }
        }
        for pod in 0..3 {
            index.wipe(PodId(pod));
        }
        prop_assert_eq!((index.stats().blocks, index.stats().pods), (0, 0));
    }
}
