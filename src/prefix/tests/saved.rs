//! The index over a restart of the gate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use proptest::prelude::*;

use super::history::prompt;
use crate::base::{PodId, Tokens};
use crate::prefix::{Answered, BadSnapshot, Index, Limits, PodName, Snapshot};

const SECRET: u64 = 42;

fn name(pod: PodId) -> PodName {
    PodName {
        address: format!("pod-{pod}:8000"),
        rank: (pod.0 > 0).then_some(pod.0),
        started_at_s: 1e9 + f64::from(pod.0),
    }
}

/// Sends a prompt with `answered` blocks of answer behind it.
fn serve(index: &Index, path: &[u8], answered: usize, pod: PodId) {
    let (short, long) = (prompt(&path[..path.len() - answered]), prompt(path));
    let claim = index.claim(&short, pod);
    index.confirm(&short, claim);
    index.learn(&short, claim, Tokens(short.bytes / 3), None);
    if answered > 0 {
        let blocks = long.chains[0].blocks[path.len() - answered..].to_vec();
        index.extend(&short, claim, &Answered { blocks, bytes: long.bytes }, Some(Tokens(long.bytes / 3)));
    }
}

fn restored(bytes: &[u8], limits: Limits) -> (Index, Snapshot) {
    let mut snapshot = Snapshot::read(bytes, SECRET).unwrap();
    let index = Index::new(limits);
    index.begin_with(&snapshot);
    for pod in 0..3 {
        index.adopt(&mut snapshot, &name(PodId(pod)), PodId(pod + 10));
    }
    (index, snapshot)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn a_restored_index_answers_and_evicts_as_before(
        sent in proptest::collection::vec((0..3_u32, proptest::collection::vec(0..3_u8, 2..9), 0..2_usize), 1..40),
        claims in proptest::collection::vec((0..3_u32, proptest::collection::vec(0..3_u8, 1..9)), 0..4),
    ) {
        let limits = Limits { pod_tokens: Tokens(20 * 85), ..Limits::default() };
        let old = Index::new(limits);
        for (pod, path, answered) in &sent {
            serve(&old, path, *answered, PodId(*pod));
        }
        let bytes_before = old.snapshot(SECRET, |pod| Some(name(pod)));
        let (new, snapshot) = restored(&bytes_before, limits);
        prop_assert!(snapshot.is_done());
        new.assert_sound();
        for pod in 0..3 {
            prop_assert_eq!(old.pod_blocks(PodId(pod)), new.pod_blocks(PodId(pod + 10)));
        }
        for (_, path, _) in &sent {
            let (before, after) = (old.lookup(&prompt(path)), new.lookup(&prompt(path)));
            prop_assert_eq!(before.prompt_tokens, after.prompt_tokens);
            for pod in 0..3 {
                prop_assert_eq!(before.depth(PodId(pod)), after.depth(PodId(pod + 10)));
            }
        }
        for pod in 0..3 {
            for (index, pod) in [(&old, PodId(pod)), (&new, PodId(pod + 10))] {
                index.set_capacity(pod, Tokens(6 * 85), Tokens(1));
                serve(index, b"zz", 0, pod);
            }
            prop_assert_eq!(old.pod_blocks(PodId(pod)), new.pod_blocks(PodId(pod + 10)));
            for (_, path, _) in &sent {
                let (before, after) = (old.lookup(&prompt(path)), new.lookup(&prompt(path)));
                prop_assert_eq!(before.depth(PodId(pod)), after.depth(PodId(pod + 10)));
            }
        }
        // Claims are of requests that end with the gate.
        for (pod, path) in &claims {
            old.claim(&prompt(path), PodId(*pod));
        }
        let (with_claims, _) = restored(&old.snapshot(SECRET, |pod| Some(name(pod))), limits);
        with_claims.assert_sound();
        prop_assert_eq!(with_claims.lookup(&prompt(&sent[0].1)).coming(PodId(sent[0].0 + 10)), Tokens(0));
    }

    #[test]
    fn damage_is_seen_and_never_a_panic(at in 0..2_000_usize, to in any::<u8>(), cut in 0..2_000_usize) {
        let index = Index::default();
        serve(&index, b"abcdef", 2, PodId(1));
        serve(&index, b"abcxyz", 1, PodId(2));
        let good = index.snapshot(SECRET, |pod| Some(name(pod)));
        let mut bad = good.clone();
        let at = at % bad.len();
        bad[at] = to;
        prop_assert_eq!(Snapshot::read(&bad, SECRET).is_err(), bad != good);
        let cut = cut % good.len();
        prop_assert!(Snapshot::read(&good[..cut], SECRET).is_err());
    }
}

#[test]
fn only_the_same_secret_and_the_same_process_are_believed() {
    let index = Index::default();
    for pod in 0..3 {
        serve(&index, b"abcdef", 0, PodId(pod));
    }
    let bytes = index.snapshot(SECRET, |pod| (pod != PodId(2)).then(|| name(pod)));
    assert_eq!(Snapshot::read(&bytes, 43).unwrap_err(), BadSnapshot::OtherSecret);
    assert_eq!(Snapshot::read(b"", SECRET).unwrap_err(), BadSnapshot::Foreign);
    assert_eq!(Snapshot::read(b"TIDEGATE\x07\0\0\0", SECRET).unwrap_err(), BadSnapshot::Foreign);
    let mut snapshot = Snapshot::read(&bytes, SECRET).unwrap();
    let index = Index::default();
    let restarted = PodName { started_at_s: 2e9, ..name(PodId(0)) };
    assert_eq!(index.adopt(&mut snapshot, &restarted, PodId(0)), 0);
    assert_eq!(index.adopt(&mut snapshot, &name(PodId(0)), PodId(0)), 0, "it was told to be another process");
    assert_eq!(index.adopt(&mut snapshot, &name(PodId(2)), PodId(2)), 0, "it had no name");
    let same = PodName { started_at_s: name(PodId(1)).started_at_s + 0.5, ..name(PodId(1)) };
    assert_eq!(index.adopt(&mut snapshot, &same, PodId(1)), 6);
    assert!(snapshot.is_done());
}
