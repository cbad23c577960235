//! What discovery and telemetry do to the table, and what readers find.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::super::pod::tests::spec;
use super::super::reading::Facts;
use super::super::{Reservation, Standing};
use super::*;
use crate::base::{Mono, Rng, Tokens};

fn ids(pods: &[Arc<Pod>]) -> Vec<u32> {
    pods.iter().map(|pod| pod.id.0).collect()
}

fn served(names: &[&str]) -> Facts {
    let model = |name: &&str| Served { name: (*name).into(), parent: None, context_max: None, card: "{}".into() };
    Facts { served: Some(names.iter().map(model).collect()), ..Facts::default() }
}

#[test]
fn what_stays_keeps_its_id_and_no_id_comes_back() {
    let table = Table::default();
    let (added, removed) = table.set(vec![spec(1), spec(2), spec(1)]);
    assert_eq!((ids(&added), removed.len()), (vec![0, 1], 0));
    let gone = Arc::clone(&table.fleet().pods[0]);
    let booking = Reservation::book(Arc::clone(&gone), Tokens(5), Tokens(5));
    let (added, removed) = table.set(vec![spec(2), spec(3)]);
    assert_eq!((ids(&added), ids(&removed)), (vec![2], vec![0]));
    let (added, _) = table.set(vec![spec(1), spec(2), spec(3)]);
    assert_eq!((ids(&added), ids(&table.fleet().pods)), (vec![3], vec![1, 2, 3]));
    assert_eq!(
        table.fleet().find(PodId(3)).unwrap().load.now().requests,
        0,
        "the newcomer at the old address is empty"
    );
    assert!(table.fleet().find(PodId(0)).is_none());
    drop(booking);
    assert_eq!(gone.load.now().requests, 0);
}

#[test]
fn models_are_indexed_and_the_unknown_take_part_only_when_nobody_is_known() {
    let table = Table::default();
    table.set(vec![spec(1), spec(2), spec(3)]);
    let fleet = table.fleet();
    assert_eq!((fleet.serving("a"), fleet.is_tried()), (&[0, 1, 2][..], false));
    assert!(fleet.pods[0].learn(served(&["a", "b", "a"])));
    assert!(!fleet.pods[0].learn(served(&["a", "b", "a"])), "nothing new");
    fleet.pods[1].learn(served(&["b"]));
    table.refresh();
    let fleet = table.fleet();
    assert_eq!((fleet.serving("a"), fleet.serving("b"), fleet.serving("c")), (&[0][..], &[0, 1][..], &[2][..]));
    fleet.pods[2].learn(served(&[]));
    table.refresh();
    let fleet = table.fleet();
    assert!(fleet.serving("c").is_empty(), "all are known and none serves it");
    let models: Vec<String> = fleet.models().iter().map(|served| served.name.to_string()).collect();
    assert_eq!(models, ["a", "b"]);
    fleet.pods.iter().for_each(|pod| pod.tried());
    assert!(fleet.is_tried());
}

#[test]
fn while_only_a_prefill_pod_has_told_its_models_the_others_are_tried() {
    let table = Table::default();
    table.set(vec![PodSpec { role: Role::Prefill, ..spec(1) }, PodSpec { role: Role::Decode, ..spec(2) }]);
    table.fleet().pods[0].learn(served(&["a"]));
    table.refresh();
    assert_eq!(table.fleet().serving("a"), [1]);
    table.fleet().pods[1].learn(served(&["a"]));
    table.refresh();
    assert_eq!(table.fleet().serving("a"), [0, 1]);
}

#[test]
fn an_endpoint_with_ranks_becomes_as_many_pods_and_others_keep_their_ids() {
    let table = Table::default();
    table.set(vec![spec(1), spec(2)]);
    assert!(table.set_ranks(spec(1).addr, 1).added.is_empty());
    let change = table.set_ranks(spec(2).addr, 3);
    assert_eq!((ids(&change.added), ids(&change.removed)), (vec![2, 3, 4], vec![1]));
    assert!(table.set_ranks(spec(2).addr, 3).added.is_empty());
    let ranks: Vec<Option<u32>> = table.fleet().pods.iter().map(|pod| pod.spec.rank).collect();
    assert_eq!(ranks, [None, Some(0), Some(1), Some(2)]);
    assert_eq!(table.fleet().endpoint(&spec(2).addr).count(), 3);
    let (added, removed) = table.set(vec![spec(2), spec(1)]);
    assert!(added.is_empty() && removed.is_empty(), "discovery telling the same changes nothing");
    table.set(vec![spec(1)]);
    assert_eq!(ids(&table.set(vec![spec(1), spec(2)]).0), [5], "an endpoint that was away is asked anew");
    let change = table.set_ranks(spec(2).addr, u32::MAX);
    assert_eq!(change.added.len(), RANKS_MAX as usize);
}

#[test]
fn only_pods_new_to_a_fleet_at_work_ramp() {
    let table = Table::default();
    table.set(vec![spec(1)]);
    table.set(vec![spec(1), spec(2)]);
    let fleet = table.fleet();
    assert!(fleet.pods.iter().all(|pod| pod.standing(Mono(1)) == Standing::Ready));
    Reservation::book(Arc::clone(&fleet.pods[0]), Tokens(1), Tokens(1)).served();
    let (added, _) = table.set(vec![spec(1), spec(2), spec(3)]);
    assert!(matches!(added[0].standing(Mono(1)), Standing::Ramp(_)));
}

#[test]
fn settings_reach_pods_that_are_there_and_pods_to_come() {
    let table = Table::default();
    table.set(vec![spec(1)]);
    table.configure(Settings { connect_failures_max: 1, ejected_share_max: 0.25, ..Settings::default() });
    assert_eq!(table.fleet().ejected_share_max.to_string(), "0.25", "at once, not with the next change of the pods");
    table.set(vec![spec(1), spec(2)]);
    for pod in &table.fleet().pods {
        pod.health.lock().on(Mono(0), super::super::Outcome::ConnectFailed);
        assert!(matches!(pod.standing(Mono(0)), Standing::Ejected(_)), "{}", pod.id);
    }
    assert_eq!(table.fleet().ejected_share_max.to_string(), "0.25");
}

#[test]
fn a_thousand_pods_change_in_little_work() {
    let (table, mut rng) = (Table::default(), Rng::new(5));
    for _ in 0..100 {
        let specs: Vec<PodSpec> = (0..1_000).map(|_| spec(rng.below(4_000) as u32)).collect();
        let distinct: HashSet<&PodSpec> = specs.iter().collect();
        let count = distinct.len();
        table.set(specs);
        let fleet = table.fleet();
        assert_eq!(fleet.pods.len(), count);
        assert!(fleet.pods.windows(2).all(|pair| pair[0].id < pair[1].id));
        assert!(fleet.pods.iter().all(|pod| fleet.find(pod.id).is_some_and(|found| Arc::ptr_eq(found, pod))));
    }
}
