//! The index told the truth: what is coming, what answers are worth, what a short hit means.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use crate::base::{PodId, Tokens};
use crate::prefix::{Answered, BLOCK_BYTES, Chain, Claim, Fingerprint, Index, Limits};

const POD: PodId = PodId(1);

/// A prompt of blocks that are chained like real ones, 64 tokens each at the prior ratio.
fn prompt(path: &str) -> Fingerprint {
    let mut hash = 1_u64;
    let mut chained = |letter: u8| {
        hash = xxhash_rust::xxh3::xxh3_64_with_seed(&[letter], hash);
        hash
    };
    let blocks: Vec<_> = path.bytes().map(&mut chained).collect();
    let bytes = (blocks.len() * BLOCK_BYTES) as u64;
    let chain = Chain { blocks, bytes, ..Chain::default() };
    Fingerprint { chains: vec![chain], bytes, model: 1, ..Fingerprint::default() }
}

fn index() -> Index {
    let index = Index::new(Limits { pod_tokens: Tokens(64_000), ..Limits::default() });
    index.set_capacity(POD, Tokens(64_000), Tokens(16));
    index
}

/// One request from dispatch to its end, with a hit of `cached` tokens.
fn serve(index: &Index, path: &str, cached: Option<u64>) -> Claim {
    let prompt = prompt(path);
    let claim = index.claim(&prompt, POD);
    index.confirm(&prompt, claim);
    index.learn(&prompt, claim, Tokens(path.len() as u64 * 64), cached.map(Tokens));
    claim
}

fn answer(index: &Index, path: &str, claim: Claim, more: &str) {
    let whole = prompt(&format!("{path}{more}"));
    let blocks = whole.chains[0].blocks[path.len()..].to_vec();
    index.extend(&prompt(path), claim, &Answered { blocks, bytes: whole.bytes }, None);
}

fn depth(index: &Index, path: &str) -> u64 {
    index.lookup(&prompt(path)).depth(POD).0
}

#[test]
fn what_another_request_computes_now_is_coming() {
    let index = index();
    serve(&index, "aaaa", None);
    let claim = index.claim(&prompt("aaaabbbb"), POD);
    let hits = index.lookup(&prompt("aaaabbbbc"));
    assert_eq!((hits.depth(POD), hits.coming(POD)), (Tokens(8 * 64), Tokens(4 * 64)));
    assert_eq!(index.lookup(&prompt("aaaac")).coming(POD), Tokens(0), "what was there is there");
    index.confirm(&prompt("aaaabbbb"), claim);
    let hits = index.lookup(&prompt("aaaabbbbc"));
    assert_eq!((hits.depth(POD), hits.coming(POD)), (Tokens(8 * 64), Tokens(0)));
    assert_eq!(hits.iter().collect::<Vec<_>>(), [(POD, Tokens(8 * 64), Tokens(0))]);
}

#[test]
fn an_answer_is_held_behind_its_prompt_unless_the_pod_began_anew() {
    let index = index();
    let claim = serve(&index, "aaaa", None);
    answer(&index, "aaaa", claim, "xy");
    assert_eq!((depth(&index, "aaaaxyz"), index.lookup(&prompt("aaaaxyz")).coming(POD)), (6 * 64, Tokens(0)));
    index.wipe(POD);
    answer(&index, "aaaa", claim, "xy");
    assert_eq!((depth(&index, "aaaaxyz"), index.stats().blocks), (0, 0));
}

#[test]
fn answers_that_come_back_changed_are_not_counted_on() {
    let index = index();
    for turn in 0..60_u8 {
        let path = format!("{}aaaaaaaaaaaaaaaa", turn as char);
        let claim = serve(&index, &path, None);
        answer(&index, &path, claim, "xxxxxxxx");
        serve(&index, &format!("{path}xxxxxxxxbbbb"), Some(path.len() as u64 * 64));
    }
    let claim = serve(&index, "~aaaaaaaaaaaaaaaa", None);
    answer(&index, "~aaaaaaaaaaaaaaaa", claim, "xxxxxxxx");
    let hit = depth(&index, "~aaaaaaaaaaaaaaaaxxxxxxxxbbbb");
    assert!((17 * 64..18 * 64).contains(&hit), "the prompt is, the answer is not: {hit}");
}

#[test]
fn a_short_hit_where_a_deeper_one_was_reported_is_an_eviction() {
    let index = index();
    serve(&index, "old old old old", None);
    serve(&index, "aaaaaaaa", None);
    serve(&index, "aaaaaaaabb", Some(8 * 64));
    assert!(depth(&index, "old old old old") > 0);
    serve(&index, "aaaaaaaabb", Some(64));
    assert_eq!(depth(&index, "old old old old"), 0, "what was used before it must be gone too");
    assert_eq!(depth(&index, "aaaaaaaabbc"), 10 * 64, "it was computed again just now");
    assert!(index.stats().evicted_blocks >= 15);
    serve(&index, "new", None);
    serve(&index, "aaaaaaaabb", Some(64));
    assert_eq!(depth(&index, "newx"), 3 * 64, "the second time nothing deeper is known");
    assert!(depth(&index, "aaaaaaaabb") < 600, "so hits like this are worth less");
}

#[test]
fn short_hits_elsewhere_teach_what_hits_are_worth_where_they_end() {
    let index = index();
    for turn in 0..60_u8 {
        let path = format!("{}aaaaaaaaaaaaaaaa", turn as char);
        serve(&index, &path, None);
        serve(&index, &format!("{path}bbbb"), Some(8 * 64));
    }
    serve(&index, "~aaaaaaaaaaaaaaaa", None);
    let hit = depth(&index, "~aaaaaaaaaaaaaaaabbbb");
    assert!((7 * 64..9 * 64).contains(&hit), "about half: {hit}");
    assert!(depth(&index, "~aaaaaaaaaaaaaaaa") > 16 * 64, "an end at a boundary of another kind is not concerned");
}

#[test]
fn what_was_not_there_yet_or_was_not_asked_of_the_cache_teaches_nothing() {
    let index = index();
    for _ in 0..50 {
        let claim = index.claim(&prompt("aaaaaaaa"), POD);
        let second = index.claim(&prompt("aaaaaaaabb"), POD);
        index.confirm(&prompt("aaaaaaaa"), claim);
        index.confirm(&prompt("aaaaaaaabb"), second);
        index.learn(&prompt("aaaaaaaabb"), second, Tokens(640), Some(Tokens(0)));
        index.wipe(POD);
    }
    let skips = Fingerprint { skips_cache: true, ..prompt("aaaaaaaa") };
    let whole = serve(&index, "aaaaaaaa", None);
    assert_eq!((whole.expected, index.lookup(&skips).depth(POD)), (Tokens(0), Tokens(0)));
    for _ in 0..50 {
        let claim = index.claim(&skips, POD);
        index.learn(&skips, claim, Tokens(512), Some(Tokens(0)));
    }
    assert_eq!(depth(&index, "aaaaaaaabb"), 8 * 64);
}

#[test]
fn exact_usage_places_hits_by_tokens_not_by_bytes() {
    let index = index();
    let first = prompt("aaaaaaaa");
    let claim = index.claim(&first, POD);
    index.confirm(&first, claim);
    index.learn(&first, claim, Tokens(2_048), None);
    let dense = index.lookup(&prompt("aaaaaaaabbbbbbbb"));
    assert!((2_020..=2_048).contains(&dense.depth(POD).0), "{dense:?}");
    assert!(dense.prompt_tokens.0 > 2_400, "{dense:?}");
}

#[test]
fn what_running_requests_have_generated_takes_room() {
    let index = Index::new(Limits { pod_tokens: Tokens(10 * 64), ..Limits::default() });
    serve(&index, "abcdefgh", None);
    index.set_pinned(POD, Tokens(5 * 64));
    serve(&index, "x", None);
    assert!(index.pod_blocks(POD) <= 6, "{}", index.pod_blocks(POD));
    index.set_pinned(POD, Tokens(1_000_000));
    serve(&index, "yz", None);
    assert!(index.pod_blocks(POD) <= 1);
}

#[test]
fn a_tenant_with_more_than_its_share_makes_room_for_others() {
    let limits = Limits { bytes_max: 60_000, pod_tokens: Tokens(1 << 30), tenant_share: 0.4 };
    let index = Index::new(limits);
    let of = |tenant: &str, number: u32| {
        let path: String = format!("{tenant}{number:04}").repeat(3);
        prompt(&path).charged_to(tenant)
    };
    let send = |tenant: &str, number| {
        let prompt = of(tenant, number);
        let claim = index.claim(&prompt, POD);
        index.confirm(&prompt, claim);
        assert!(index.stats().bytes <= 60_000);
    };
    (0..20).for_each(|number| send("small", number));
    (0..5_000).for_each(|number| send("flood", number));
    let held = |tenant: &str, count| (0..count).filter(|n| !index.lookup(&of(tenant, *n)).is_empty()).count();
    assert_eq!(held("small", 20), 20);
    assert!(held("flood", 5_000) > 50);
    index.assert_sound();
}
