//! One plan at 1,000 pods: p50 and p99, plans per second and core, and nanoseconds per pod of each scorer.
//!
//! `cargo bench --bench plan [-- PODS BLOCKS]`. A fleet with random load, an index filled with prompts of 512 blocks that share
//! beginnings, and 5 % of the pods holding a part of the prompt that is planned for. Every plan takes another prompt, so
//! that the index is not cache-resident. Lookup, survey, filters, costs and pick are all in the time; so is a copy of the
//! prompt's marks. No table of results is kept here: numbers belong to a machine.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, clippy::indexing_slicing)]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use tidegate::base::{Mono, Rng, Tokens};
use tidegate::pods::health::Settings;
use tidegate::pods::{Facts, Fleet, Marks, PodSpec, Reading, Reservation, Role, Served, Table, Work};
use tidegate::prefix::{Chain, Fingerprint, Hits, Index, Limits};
use tidegate::scheduling::scorers::REGISTRY;
use tidegate::scheduling::{Candidates, Context, Desk, Detail, Profile, Query, Request, place};

const BLOCKS: usize = 512;
const PROMPT: Tokens = Tokens(32_768);
const NOW: Mono = Mono(50_000_000);

fn main() {
    let numbers: Vec<usize> = std::env::args().filter_map(|word| word.parse().ok()).collect();
    let pods = numbers.first().copied().unwrap_or(1_000);
    let blocks = numbers.get(1).copied().unwrap_or(10_000_000);
    let fleet = fleet(pods);
    let mut rng = Rng::new(1);
    let _booked = load(&fleet, &mut rng);
    let (index, prompts) = index(&fleet, blocks, &mut rng);
    println!("pods {pods}, blocks {} in the index, prompts {}", index.stats().blocks, prompts.len());
    plans(&fleet, &index, &prompts, &mut rng);
    scorers(&fleet, &mut rng);
}

fn fleet(pods: usize) -> Arc<Fleet> {
    let table = Table::new(Settings::default());
    let spec = |number: usize| PodSpec {
        addr: ([127, 0, (number / 250) as u8, (number % 250) as u8], 8_000).into(),
        authority: "a".into(),
        tls: None,
        rank: None,
        role: Role::Both,
        labels: BTreeMap::new(),
    };
    table.set((0..pods).map(spec).collect());
    for pod in &table.fleet().pods {
        let served = Served { name: "m".into(), parent: None, context_max: None, card: "{}".into() };
        pod.learn(Facts { served: Some(vec![served]), capacity: Some(Tokens(900_000)), ..Facts::default() });
        let reading =
            Reading { taken: NOW, running: Some(3), waiting: Some(0), kv_used: Some(0.5), ..Reading::default() };
        pod.read(reading);
    }
    table.refresh();
    table.fleet()
}

fn load(fleet: &Fleet, rng: &mut Rng) -> Vec<Reservation> {
    let mut booked = Vec::new();
    for pod in &fleet.pods {
        for _ in 0..rng.below(20) {
            let work = Work::new(Mono(NOW.0 - rng.below(500_000)), Tokens(20_000), Tokens(rng.below(8_000)));
            let mut booking = Reservation::dispatch(Arc::clone(pod), &work);
            if rng.below(5) > 0 {
                booking.first_token(NOW);
                booking.tokens(rng.below(500));
            }
            booked.push(booking);
        }
    }
    booked
}

/// Conversations in families of 16 that begin alike: up to a random depth all are as the first of the family. Each is held by one
/// pod; the first of every eighth family by 5 % of them. Returns the members of those.
fn index(fleet: &Fleet, blocks: usize, rng: &mut Rng) -> (Index, Vec<Fingerprint>) {
    let index = Index::new(Limits { bytes_max: 4 << 30, pod_tokens: Tokens(1 << 40), ..Limits::default() });
    let (mut hot, mut first, mut count) = (Vec::new(), Vec::<u64>::new(), 0_usize);
    while index.stats().blocks < blocks {
        let shared = if count.is_multiple_of(16) { 0 } else { rng.below(BLOCKS as u64) as usize };
        let mut chain = first.get(..shared).unwrap_or_default().to_vec();
        while chain.len() < BLOCKS {
            chain.push(rng.bits());
        }
        if count.is_multiple_of(16) {
            first.clone_from(&chain);
        }
        let prompt = Fingerprint::of_chains(vec![Chain::of(chain)], 1);
        let is_hot = (count / 16).is_multiple_of(8);
        let holders = if is_hot && count.is_multiple_of(16) { fleet.pods.len() / 20 } else { 1 };
        for _ in 0..holders.max(1) {
            let pod = &fleet.pods[rng.below(fleet.pods.len() as u64) as usize];
            let claim = index.claim(&prompt, pod.id);
            index.confirm(&prompt, claim);
        }
        if is_hot {
            hot.push(prompt);
        }
        count += 1;
    }
    (index, hot)
}

fn plans(fleet: &Fleet, index: &Index, prompts: &[Fingerprint], rng: &mut Rng) {
    let (profile, mut desk, mut hits) = (Profile::default(), Desk::default(), Hits::default());
    let rounds = 20_000;
    let (mut whole, mut lookups) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    let mut views = 0;
    for _ in 0..rounds {
        let prompt = &prompts[rng.below(prompts.len() as u64) as usize];
        let started = Instant::now();
        index.lookup_into(prompt, &mut hits);
        let looked = started.elapsed();
        let marks = Marks::of(&prompt.chains[0].blocks, 64.0);
        let request = Request::new("m", PROMPT);
        let query = Query { marks: Some(&marks), ..Query::new(fleet, &request, &hits, NOW) };
        black_box(place(&profile, &query, rng, Detail::Off, &mut desk));
        whole.push(started.elapsed());
        lookups.push(looked);
        views += desk.views().len();
    }
    let mean = whole.iter().sum::<std::time::Duration>() / rounds as u32;
    whole.sort_unstable();
    lookups.sort_unstable();
    let at = |all: &[std::time::Duration], share: f64| all[((all.len() - 1) as f64 * share) as usize];
    println!(
        "plan: p50 {:?}, p99 {:?}, {:.0} plans/s/core; of this lookup p50 {:?}, p99 {:?}; {} views each",
        at(&whole, 0.5),
        at(&whole, 0.99),
        1.0 / mean.as_secs_f64(),
        at(&lookups, 0.5),
        at(&lookups, 0.99),
        views / rounds
    );
}

fn scorers(fleet: &Fleet, rng: &mut Rng) {
    let held = fleet.pods.iter().filter(|_| rng.below(20) == 0).map(|pod| (pod.id, Tokens(20_000), Tokens(0)));
    let hits = Hits::made_up(PROMPT, held);
    let request = Request { session: Some(7), head: Some(9), ..Request::new("m", PROMPT) };
    let query = Query::new(fleet, &request, &hits, NOW);
    let mut desk = Desk::default();
    desk.survey(None, &query, 0);
    let cx: Context<'_> = desk.context(&query);
    let kept: Vec<u32> = (0..cx.pods.len() as u32).collect();
    let mut costs = vec![None; kept.len()];
    println!("a view has {} bytes", size_of_val(&cx.pods[0]));
    for one in REGISTRY {
        let scorer = (one.default)().build();
        let rounds = if one.name == "expression" { 20 } else { 2_000 };
        let started = Instant::now();
        for _ in 0..rounds {
            scorer.cost(&cx, &Candidates::new(cx.pods, &kept), black_box(&mut costs));
        }
        let each = started.elapsed().as_nanos() as f64 / f64::from(rounds) / kept.len() as f64;
        println!("{:>18}: {each:.2} ns per pod", one.name);
    }
}
