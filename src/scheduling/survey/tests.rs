//! Fleets of real pods with booked load: what is cut is not missed, and what must be seen is.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::BTreeMap;
use std::sync::Arc;

use super::*;
use crate::pods::health::Settings;
use crate::pods::{Facts, Outcome, PodSpec, Reservation, Role, Served, Table, Work};
use crate::scheduling::{Candidates, Mode, marginal};

const NOW: Mono = Mono(50_000_000);

fn fleet(pods: u16, ranks: u32) -> (Table, Arc<Fleet>) {
    let table = Table::new(Settings::default());
    let spec = |number: u16| PodSpec {
        addr: ([127, 0, 0, 1], 1_000 + number / ranks as u16).into(),
        authority: "a".into(),
        tls: None,
        rank: (ranks > 1).then(|| u32::from(number) % ranks),
        role: if number % 10 == 9 { Role::Prefill } else { Role::Both },
        labels: BTreeMap::new(),
    };
    table.set((0..pods).map(spec).collect());
    for pod in &table.fleet().pods {
        let served = Served { name: "m".into(), parent: None, context_max: None, card: "{}".into() };
        pod.learn(Facts { served: Some(vec![served]), capacity: Some(Tokens(300_000)), ..Facts::default() });
    }
    table.refresh();
    let fleet = table.fleet();
    (table, fleet)
}

/// Books a random load; dropping the result gives it back.
fn load(fleet: &Fleet, rng: &mut Rng) -> Vec<Reservation> {
    let mut booked = Vec::new();
    for pod in &fleet.pods {
        for _ in 0..rng.below(12) {
            let prompt = 500 + rng.below(20_000);
            let work = Work::new(Mono(NOW.0 - rng.below(500_000)), Tokens(prompt), Tokens(rng.below(prompt)));
            let mut booking = Reservation::dispatch(Arc::clone(pod), &work);
            if rng.below(4) > 0 {
                booking.first_token(NOW);
                booking.tokens(rng.below(500));
            }
            booked.push(booking);
        }
    }
    booked
}

fn any_hits(fleet: &Fleet, prompt: u64, rng: &mut Rng) -> Hits {
    let holders: Vec<_> = fleet.pods.iter().filter(|_| rng.below(20) == 0).map(|pod| pod.id).collect();
    let held = holders.into_iter().map(|pod| (pod, Tokens(rng.below(prompt)), Tokens(0)));
    Hits::made_up(Tokens(prompt), held.collect::<Vec<_>>())
}

#[test]
fn the_pod_of_a_cut_fleet_costs_no_more_than_the_best_of_all() {
    let (_table, fleet) = fleet(1_000, 1);
    let (mut cut, mut whole, profile) = (Desk::default(), Desk::default(), Profile::default());
    let (mut good, rounds) = (0, 200);
    for seed in 0..rounds {
        let mut rng = Rng::new(seed);
        let _booked = if seed % 10 == 0 { load(&fleet, &mut rng) } else { Vec::new() };
        let prompt = 200 + rng.below(60_000);
        let hits = any_hits(&fleet, prompt, &mut rng);
        let request = Request::new("m", Tokens(prompt));
        let query = Query::new(&fleet, &request, &hits, NOW);
        let chosen = place(&profile, &query, &mut rng, Detail::Off, &mut cut).chosen.unwrap();
        assert!(cut.views().len() <= BEST && cut.left_out.pods > 800, "seed {seed}");
        whole.survey(None, &query, 0);
        let cx = whole.context(&query);
        let kept: Vec<u32> = (0..cx.pods.len() as u32).collect();
        let all = Candidates::new(cx.pods, &kept);
        let ask = Ask::of(&request, profile.marginal().unwrap(), &marginal::means(&cx, &all));
        let able = cx.pods.iter().filter(|pod| pod.role == Role::Both);
        let least = able.map(|pod| ask.cost(pod, NOW)).fold(f64::INFINITY, f64::min);
        let cost = ask.cost(cx.pods.iter().find(|pod| pod.id == chosen).unwrap(), NOW);
        good += u64::from(cost <= least * 1.01);
    }
    assert!(good * 100 >= rounds * 99, "{good} of {rounds}");
}

#[test]
fn equals_of_a_cut_fleet_all_have_their_turn() {
    let (_table, fleet) = fleet(600, 1);
    let (mut desk, profile, hits) = (Desk::default(), Profile::default(), Hits::default());
    let request = Request::new("m", Tokens(900));
    let query = Query::new(&fleet, &request, &hits, NOW);
    let mut rng = Rng::new(3);
    let mut seen: Vec<_> =
        (0..3_000).map(|_| place(&profile, &query, &mut rng, Detail::Off, &mut desk).chosen.unwrap()).collect();
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 500, "{} of 540 pods", seen.len());
}

#[test]
fn pods_in_trouble_are_seen_and_counted_against_the_whole_fleet() {
    let (_table, fleet) = fleet(600, 1);
    for pod in fleet.pods.iter().take(50) {
        (0..3).for_each(|_| pod.health.lock().on(NOW, Outcome::ConnectFailed));
    }
    let (mut desk, profile, hits) = (Desk::default(), Profile::default(), Hits::default());
    let pinned = Request { pinned: Some(PodId(555)), ..Request::new("m", Tokens(900)) };
    let query = Query::new(&fleet, &pinned, &hits, NOW);
    let decision = place(&profile, &query, &mut Rng::new(1), Detail::Off, &mut desk);
    assert_eq!((decision.chosen, decision.mode), (Some(PodId(555)), Mode::Pinned));
    assert_eq!(decision.considered as usize, 50 - 5 + 1 + BEST);
    let free = Request { pinned: None, ..pinned };
    let query = Query { request: &free, ..query };
    let decision = place(&profile, &query, &mut Rng::new(1), Detail::Off, &mut desk);
    assert_eq!(decision.mode, Mode::Normal, "50 of 600 out is no panic");
    assert!(decision.chosen.unwrap() >= PodId(50));
}

#[test]
fn ranks_of_one_engine_see_each_others_decodes_and_a_rank_can_be_asked_for() {
    let (_table, fleet) = fleet(8, 4);
    let mut booking = Reservation::book(Arc::clone(&fleet.pods[1]), Tokens(10), Tokens(10));
    booking.first_token(NOW);
    let (mut desk, hits, request) = (Desk::default(), Hits::default(), Request::new("m", Tokens(900)));
    let query = Query::new(&fleet, &request, &hits, NOW);
    desk.survey(None, &query, 0);
    let peers: Vec<_> = desk.views().iter().map(|pod| pod.peers_decoding).collect();
    assert_eq!(peers, [1, 0, 1, 1, 0, 0, 0, 0]);
    desk.survey(None, &Query { rank: Some(2), ..query }, 0);
    assert_eq!(desk.views().iter().map(|pod| pod.id.0).collect::<Vec<_>>(), [2, 6]);
    desk.survey(None, &Query { rank: Some(9), ..query }, 0);
    assert_eq!(desk.views().len(), 8);
}
