//! Who is held and who is not, in histories that are written out and in random ones.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::base::Rng;
use crate::flow::ClassSettings;

const CAPACITY: u64 = 1_000_000;

/// A conversation: its prompt is blocks of its own, after some that all share.
#[derive(Clone)]
struct Talk {
    number: u64,
    class: Class,
    tenant: &'static str,
    blocks: usize,
    /// Tokens of its next prompt that are cached if nothing is evicted.
    cached: u64,
}

impl Talk {
    fn new(number: u64, blocks: usize) -> Self {
        Self { number, class: Class::Standard, tenant: "t", blocks, cached: 512 }
    }

    fn prompt(&self) -> Vec<u64> {
        (0..self.blocks as u64)
            .map(|block| if block < 8 && self.number < 1_000 { block } else { (self.number + 1) << 32 | block })
            .collect()
    }
}

/// Sessions before a fleet whose caches are those of one pool, least recently used.
struct World {
    sessions: Sessions,
    now: Mono,
    tickets: u64,
    refused: BTreeMap<TicketId, Refusal>,
    granted: Vec<TicketId>,
    /// Part of what should be cached that is.
    found: f64,
    /// Most of a prompt that the gate knows to be cached.
    known: u64,
}

impl World {
    fn new() -> Self {
        let mut sessions = Sessions::new(SessionSettings::default(), Classes::default());
        let crew = Crew { capacity: Tokens(CAPACITY), pods: 1.0 };
        sessions.on(Mono(1), Event::Pods("m".into(), crew));
        Self {
            sessions,
            now: Mono(1_000_000),
            tickets: 0,
            refused: BTreeMap::new(),
            granted: vec![],
            found: 1.0,
            known: u64::MAX,
        }
    }

    fn on(&mut self, event: Event<'_>) {
        for effect in self.sessions.on(self.now, event) {
            match effect {
                Effect::Grant(ticket) => self.granted.push(ticket),
                Effect::Refuse(ticket, refusal) => drop(self.refused.insert(ticket, refusal)),
            }
        }
        assert_eq!(self.sessions.invariants(), Ok(()));
    }

    fn ask(&mut self, talk: &Talk) -> TicketId {
        self.tickets += 1;
        let ticket = TicketId(self.tickets);
        let blocks = talk.prompt();
        self.on(Event::Asks(Ask {
            ticket,
            model: "m".into(),
            class: talk.class,
            tenant: talk.tenant.into(),
            weight: 1.0,
            named: None,
            blocks: &blocks,
            body_bytes: 100_000,
            prefill_s: talk.blocks as f64 * 64.0 * 100e-6,
            answer_s: 0.1,
            stream_s: 1.0,
            arrived: self.now,
            due: None,
        }));
        ticket
    }

    fn end(&mut self, ticket: TicketId, talk: &mut Talk, cached: u64) {
        let prompt = talk.blocks as u64 * 64;
        self.on(Event::Over(
            ticket,
            Some(Told {
                prompt: Tokens(prompt),
                cached: Tokens(cached),
                believed: Tokens(cached.min(self.known)),
                generated: Tokens(64),
            }),
        ));
        talk.cached = prompt;
        talk.blocks = if talk.blocks < 700 { talk.blocks + 17 } else { talk.blocks };
    }

    fn is_granted(&self, ticket: TicketId) -> bool {
        self.granted.contains(&ticket)
    }

    fn pass(&mut self, seconds: f64) {
        self.now = self.now.after(Duration::from_secs_f64(seconds));
        self.on(Event::Tick);
    }

    /// Turns of all until they have come back often enough to be known.
    fn warm(&mut self, talks: &mut [Talk], rounds: usize) {
        for _ in 0..rounds {
            for talk in talks.iter_mut() {
                let ticket = self.ask(talk);
                if self.is_granted(ticket) {
                    let cached = talk.cached as f64 * self.found;
                    self.end(ticket, talk, cached as u64);
                } else {
                    self.on(Event::Over(ticket, None));
                }
                self.pass(0.2);
            }
        }
    }
}

/// A fleet that is full of sessions that come back: twenty of 45,000 tokens.
fn full() -> (World, Vec<Talk>) {
    let mut world = World::new();
    let mut talks: Vec<Talk> = (0..20).map(|number| Talk::new(number, 640)).collect();
    world.warm(&mut talks, 4);
    (world, talks)
}

#[test]
fn sessions_that_began_before_the_gate_did_fill_the_caches_as_others_do() {
    let mut world = World::new();
    let began = |number| Talk { cached: 639 * 64, ..Talk::new(number, 640) };
    let mut talks: Vec<Talk> = (0..20).map(began).collect();
    world.known = 512;
    world.warm(&mut talks, 4);
    let late = world.ask(&Talk::new(100, 640));
    assert!(!world.is_granted(late), "{:?}", world.sessions.census().next());
}

#[test]
fn a_new_session_waits_while_those_that_come_back_fill_the_caches() {
    let (mut world, mut talks) = full();
    let census = world.sessions.census().next().unwrap().1;
    assert!(census.room.is_some() && census.active == 20, "{census:?}");
    let late = world.ask(&Talk::new(100, 640));
    assert!(!world.is_granted(late) && world.sessions.waiting() == 1, "{:?}", world.refused);
    let known: Vec<TicketId> = talks.iter().map(|talk| world.ask(talk)).collect();
    assert!(known.iter().all(|ticket| world.is_granted(*ticket)), "one that was let in is not interrupted");
    for (ticket, talk) in known.into_iter().zip(&mut talks) {
        world.end(ticket, talk, talk.cached);
    }
    // All but one come back until the one was away for too long.
    for _ in 0..60 {
        world.warm(&mut talks[1..], 1);
        if world.is_granted(late) {
            return;
        }
    }
    panic!("never let in: {:?}", world.sessions.census().next());
}

#[test]
fn the_first_class_short_prompts_and_unknown_pods_never_wait() {
    let (mut world, _) = full();
    let first = world.ask(&Talk { class: Class::Interactive, ..Talk::new(101, 640) });
    let short = world.ask(&Talk::new(102, 3));
    assert!(world.is_granted(first) && world.is_granted(short));
    let waits = world.ask(&Talk::new(103, 640));
    assert!(!world.is_granted(waits));
    world.on(Event::Pods("m".into(), Crew::default()));
    assert!(world.is_granted(waits), "without knowing the caches nobody is held");
}

#[test]
fn what_never_comes_back_is_never_held() {
    let mut world = World::new();
    for number in 0..400 {
        let mut talk = Talk::new(number, 640);
        let ticket = world.ask(&talk);
        assert!(world.is_granted(ticket), "{number}: {:?}", world.sessions.census().next());
        world.end(ticket, &mut talk, 0);
        world.pass(1.0);
    }
}

#[test]
fn where_computing_again_is_cheap_nobody_is_held() {
    let mut world = World::new();
    let mut talks: Vec<Talk> = (0..60).map(|number| Talk::new(number, 640)).collect();
    for _ in 0..4 {
        for talk in &mut talks {
            let ticket = world.ask(talk);
            assert!(world.is_granted(ticket));
            world.end(ticket, talk, 0);
            // One turn in 20 seconds of a pod that needs five for it.
            world.pass(20.0);
        }
    }
}

#[test]
fn where_those_that_fit_would_leave_the_fleet_idle_nobody_is_held() {
    let mut world = World::new();
    let mut talks: Vec<Talk> = (0..120).map(|number| Talk::new(number, 640)).collect();
    for round in 0..4 {
        for talk in &mut talks {
            let ticket = world.ask(talk);
            // A turn every 7 seconds of a pod that needs 4 for it: 0.6 of its time. The 20 that fit ask for a tenth of it.
            assert!(world.is_granted(ticket), "{round}: {:?}", world.sessions.census().next());
            world.end(ticket, talk, 0);
            world.pass(7.0);
        }
    }
}

#[test]
fn a_client_that_leaves_and_one_that_waits_for_too_long_are_out() {
    let (mut world, mut talks) = full();
    let (leaves, waits) = (world.ask(&Talk::new(100, 640)), world.ask(&Talk::new(101, 640)));
    world.on(Event::Over(leaves, None));
    assert_eq!(world.sessions.waiting(), 1);
    world.found = 0.9;
    for _ in 0..40 {
        world.warm(&mut talks, 1);
    }
    let refusal = world.refused.get(&waits).expect("two minutes are over");
    assert_eq!(refusal.reason, Reason::SessionLimit);
    assert!(refusal.retry_after.is_some_and(|after| (1..=72).contains(&after.as_secs())), "{refusal:?}");
    assert!(!world.is_granted(leaves));
}

#[test]
fn a_promised_first_token_that_would_come_too_late_is_refused_at_once() {
    let (mut world, _) = full();
    let blocks = Talk::new(100, 640).prompt();
    let ask = |ticket, due_s| Ask {
        ticket: TicketId(ticket),
        model: "m".into(),
        class: Class::Standard,
        tenant: "t".into(),
        weight: 1.0,
        named: None,
        blocks: &blocks,
        body_bytes: 100_000,
        prefill_s: 1.0,
        answer_s: 0.1,
        stream_s: 1.0,
        arrived: world.now,
        due: Some(world.now.after(Duration::from_secs_f64(due_s))),
    };
    let now = world.now;
    assert!(matches!(world.sessions.on(now, Event::Asks(ask(900, 1.0)))[..], [Effect::Refuse(TicketId(900), _)]));
}

#[test]
fn room_goes_to_the_tenant_that_holds_least_and_there_to_the_session_that_came_first() {
    let (mut world, mut talks) = full();
    let first = world.ask(&Talk::new(100, 640));
    world.pass(0.1);
    let other = world.ask(&Talk { tenant: "other", ..Talk::new(101, 640) });
    world.pass(0.1);
    let third = world.ask(&Talk::new(102, 640));
    assert_eq!(world.sessions.waiting(), 3);
    let before = world.granted.len();
    for _ in 0..60 {
        world.warm(&mut talks[3..], 1);
    }
    let order: Vec<TicketId> =
        world.granted[before..].iter().copied().filter(|one| [first, other, third].contains(one)).collect();
    assert_eq!(order, [other, first, third]);
}

#[test]
fn a_refused_session_keeps_its_place() {
    let (mut world, mut talks) = full();
    let early = Talk::new(100, 640);
    let ticket = world.ask(&early);
    world.found = 0.9;
    for _ in 0..40 {
        world.warm(&mut talks, 1);
    }
    assert!(world.refused.contains_key(&ticket));
    let newcomer = world.ask(&Talk::new(101, 640));
    let again = world.ask(&early);
    let next = world.sessions.pools.get("m").unwrap().next().unwrap();
    assert_eq!(next, again, "{newcomer:?} came later");
}

fn share(world: &World) -> f64 {
    world.sessions.census().next().unwrap().1.kv_share
}

#[test]
fn a_minute_of_misses_is_made_up_for() {
    let (mut world, mut talks) = full();
    let newcomers: Vec<Talk> = (100..110).map(|number| Talk::new(number, 640)).collect();
    let mut turns = |world: &mut World, found, rounds| {
        world.found = found;
        for round in 0..rounds {
            world.ask(&newcomers[round % newcomers.len()]);
            world.warm(&mut talks, 1);
        }
    };
    turns(&mut world, 0.0, 80);
    let low = share(&world);
    assert!(low < 0.7, "{low}");
    turns(&mut world, 1.0, 600);
    assert!(share(&world) > 0.85, "{low}, and an hour later {}", share(&world));
}

#[test]
fn another_tenants_prompt_takes_nobodys_session() {
    let (mut world, talks) = full();
    let mut other = Talk { tenant: "other", ..talks[0].clone() };
    other.blocks += 100;
    let ticket = world.ask(&other);
    assert!(!world.is_granted(ticket), "it begins like one that is active");
    let ticket = world.ask(&talks[0]);
    assert!(world.is_granted(ticket));
}

#[test]
fn a_branch_of_a_session_leaves_its_trunk_alone() {
    let (mut world, talks) = full();
    let mut branch = talks[0].clone();
    let trunk = world.ask(&talks[0]);
    branch.blocks += 17;
    let branched = world.ask(&branch);
    let again = world.ask(&talks[0]);
    assert!([trunk, branched, again].iter().all(|one| world.is_granted(*one)));
    let names = world.sessions.census().next().unwrap().1.active;
    assert_eq!(names, 21);
}

#[test]
fn all_requests_of_a_session_are_let_in_together() {
    let (mut world, mut talks) = full();
    let wide = Talk::new(100, 640);
    let all: Vec<TicketId> = (0..4).map(|_| world.ask(&wide)).collect();
    let other = world.ask(&Talk { tenant: "other", ..Talk::new(101, 640) });
    let mine = world.ask(&Talk { class: Class::Interactive, ..Talk::new(102, 640) });
    assert!(!all.iter().chain([&other]).any(|one| world.is_granted(*one)) && world.is_granted(mine));
    // One more of it, of the class that is never held, and the others are held no longer either.
    let first = world.ask(&Talk { class: Class::Interactive, ..wide.clone() });
    assert!(world.is_granted(first) && all.iter().all(|one| world.is_granted(*one)) && !world.is_granted(other));
    let second = Talk::new(103, 640);
    let both = [world.ask(&second), world.ask(&second)];
    for _ in 0..60 {
        world.warm(&mut talks[4..], 1);
        assert_eq!(world.is_granted(both[0]), world.is_granted(both[1]));
    }
    assert!(world.is_granted(both[0]));
}

#[test]
fn bodies_that_wait_are_bounded_over_all_classes_and_tenants() {
    let (mut world, _) = full();
    let small = ClassSettings { body_bytes_max: Some(350_000), ..ClassSettings::default() };
    world.sessions.configure(SessionSettings::default(), Classes { standard: small, ..Classes::default() });
    let tenants = ["a", "b", "c", "d"];
    let all: Vec<TicketId> =
        (0..4).map(|one| world.ask(&Talk { tenant: tenants[one], ..Talk::new(100 + one as u64, 640) })).collect();
    assert_eq!(world.sessions.waiting(), 3, "of 100,000 bytes each");
    assert!(world.refused.contains_key(&all[3]));
    world.on(Event::Over(all[0], None));
    let next = world.ask(&Talk::new(110, 640));
    assert!(!world.refused.contains_key(&next) && world.sessions.waiting() == 3);
}

#[test]
fn another_share_counts_from_a_reload_on() {
    let (mut world, _) = full();
    let before = share(&world);
    world.sessions.configure(SessionSettings { kv_share: 0.3, ..SessionSettings::default() }, Classes::default());
    assert!((share(&world) - before / 3.0).abs() < 1e-9, "{before} {}", share(&world));
}

proptest! {
    #[test]
    fn histories_keep_what_is_promised_and_are_the_same_every_time(seed in any::<u64>()) {
        assert_eq!(history(seed), history(seed), "seed {seed}");
    }
}

/// A random history, checked after every step; what came of it.
fn history(seed: u64) -> (Vec<TicketId>, usize, Option<Mono>) {
    let mut rng = Rng::new(seed);
    let mut world = World::new();
    let mut talks: Vec<Talk> = (0..40)
        .map(|number| {
            let class = Class::ALL[rng.below(3) as usize];
            let tenant = ["a", "b", "c"][rng.below(3) as usize];
            Talk { class, tenant, ..Talk::new(1_000 + number, 1 + rng.below(1_000) as usize) }
        })
        .collect();
    // Where the talk is, which it is, and how long its prompt was.
    let mut open: BTreeMap<TicketId, (usize, u64, usize)> = BTreeMap::new();
    for _ in 0..600 {
        match rng.below(10) {
            0..=4 => {
                let at = rng.below(talks.len() as u64) as usize;
                let is_active = open.iter().any(|(ticket, talk)| {
                    *talk == (at, talks[at].number, talks[at].blocks)
                        && world.is_granted(*ticket)
                        && world.sessions.tickets.contains_key(ticket)
                });
                let ticket = world.ask(&talks[at]);
                assert!(!is_active || world.is_granted(ticket), "seed {seed}: a session under way was held");
                if !world.refused.contains_key(&ticket) {
                    open.insert(ticket, (at, talks[at].number, talks[at].blocks));
                }
            }
            5..=7 => {
                let Some((&ticket, &(at, ..))) = open.iter().nth(rng.below(open.len().max(1) as u64) as usize) else {
                    continue;
                };
                open.remove(&ticket);
                if world.is_granted(ticket) && rng.below(8) > 0 {
                    let cached = rng.below(talks[at].blocks as u64 * 64);
                    world.end(ticket, &mut talks[at], cached);
                    if rng.below(10) == 0 {
                        talks[at].number += 1_000;
                    }
                } else {
                    world.on(Event::Over(ticket, None));
                }
            }
            8 => world.pass(rng.unit() * 20.0),
            _ => {
                let capacity = [0, CAPACITY / 10, CAPACITY][rng.below(3) as usize];
                world.on(Event::Pods("m".into(), Crew { capacity: Tokens(capacity), pods: 2.0 }));
            }
        }
        open.retain(|ticket, _| !world.refused.contains_key(ticket));
        let late = world.sessions.timers.first().is_some_and(|(at, _)| *at < world.now);
        assert!(!late || world.sessions.next_deadline().is_some_and(|at| at <= world.now), "seed {seed}");
    }
    for (ticket, _) in open {
        world.on(Event::Over(ticket, None));
    }
    assert_eq!((world.sessions.waiting(), world.sessions.tickets.len()), (0, 0), "seed {seed}: something is left");
    (world.granted, world.refused.len(), world.sessions.next_deadline())
}
