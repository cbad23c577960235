//! Random histories of requests, pods, clients that leave and readings; and who goes first in some that are written out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use std::collections::{BTreeMap, BTreeSet};

use super::*;

const PODS: u32 = 4;

/// End of the queued prefill, and KV by job.
type Jobs = (Mono, BTreeMap<TicketId, f64>);

/// Pods that prefill one after another and decode for a while.
#[derive(Default)]
struct Fleet {
    pods: BTreeMap<PodId, Jobs>,
    down: BTreeSet<PodId>,
}

impl Rooms for Fleet {
    fn room(&self, pod: PodId, now: Mono) -> Option<Room> {
        if self.down.contains(&pod) {
            return None;
        }
        let Some((until, jobs)) = self.pods.get(&pod) else { return Some(Room { capacity: 10_000.0, ..Room::IDLE }) };
        Some(Room {
            is_spared: false,
            wait_s: until.since(now).as_secs_f64(),
            requests: jobs.len() as u32,
            unanswered: 0,
            overdue: 0,
            occupied: jobs.values().sum(),
            capacity: 10_000.0,
        })
    }
}

impl Fleet {
    fn begin(&mut self, now: Mono, pod: PodId, ticket: TicketId, prefill_us: u64, kv: Tokens) {
        let (until, jobs) = self.pods.entry(pod).or_default();
        *until = now.max(*until).after(Duration::from_micros(prefill_us));
        jobs.insert(ticket, kv.0 as f64);
    }

    fn end(&mut self, pod: PodId, ticket: TicketId) {
        if let Some((_, jobs)) = self.pods.get_mut(&pod) {
            jobs.remove(&ticket);
        }
    }
}

fn pool(model: &str) -> Pool {
    Pool { model: model.into(), is_prefill: false }
}

fn wish(number: u64, class: Class, now: Mono) -> Wish {
    Wish {
        ticket: TicketId(number),
        pool: pool("m"),
        class,
        tenant: "t".into(),
        weight: 1.0,
        cost_us: 100_000,
        kv: Tokens(1_000),
        places: vec![(PodId(0), 100_000)],
        cold_us: 100_000,
        partner: None,
        tried: vec![],
        is_pinned: false,
        body_bytes: 10,
        arrived: now,
        deadline: now.after(Duration::from_secs(10)),
        is_promised: false,
        is_again: false,
    }
}

fn queue(pods: u32) -> Queue {
    let mut queue = Queue::new(QueueSettings::default(), Classes::default());
    queue.on(Mono(1), Event::Pods(pool("m"), (0..pods).map(PodId).collect()), &Fleet::default());
    queue
}

/// A queue before fleets that do what it says; ends what runs in the order of time.
struct World {
    queue: Queue,
    fleet: Fleet,
    now: Mono,
    wishes: BTreeMap<TicketId, Wish>,
    running: BTreeMap<TicketId, PodId>,
    granted: Vec<(TicketId, PodId)>,
    refused: BTreeMap<TicketId, (Reason, Mono)>,
    recalled: u64,
}

impl World {
    fn new(queue: Queue) -> Self {
        Self {
            queue,
            fleet: Fleet::default(),
            now: Mono(1_000),
            wishes: BTreeMap::new(),
            running: BTreeMap::new(),
            granted: vec![],
            refused: BTreeMap::new(),
            recalled: 0,
        }
    }

    fn on(&mut self, event: Event) {
        let mut todo = vec![event];
        while let Some(event) = todo.pop() {
            for effect in self.queue.on(self.now, event, &self.fleet) {
                match effect {
                    Effect::Grant(ticket, pod) => {
                        let wish = self.wishes.remove(&ticket).expect("a departed client, or one twice, was granted");
                        let may = !wish.tried.contains(&pod) || self.fleet.down.contains(&pod);
                        assert!(!self.running.contains_key(&ticket) && may);
                        self.fleet.begin(self.now, pod, ticket, wish.prefill_us(pod), wish.kv);
                        self.running.insert(ticket, pod);
                        self.granted.push((ticket, pod));
                        todo.push(Event::Booked(ticket));
                    }
                    Effect::Refuse(ticket, refusal) => {
                        assert!(self.wishes.remove(&ticket).is_some() && refusal.retry_after.is_some());
                        self.refused.insert(ticket, (refusal.reason, self.now));
                    }
                    Effect::Recall(ticket) => {
                        self.recalled += 1;
                        let pod = self.running.remove(&ticket).expect("one that runs is recalled");
                        self.fleet.end(pod, ticket);
                        todo.push(Event::Over(ticket, Some(0)));
                    }
                }
            }
        }
    }

    fn ask(&mut self, wish: Wish) {
        self.wishes.insert(wish.ticket, wish.clone());
        self.on(Event::Asks(wish));
    }

    fn end(&mut self, ticket: TicketId) {
        if let Some(pod) = self.running.remove(&ticket) {
            self.fleet.end(pod, ticket);
            self.on(Event::Over(ticket, None));
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now.after(time);
        while let Some(at) = self.queue.next_deadline().filter(|at| *at <= until) {
            self.now = at.max(self.now);
            self.on(Event::Tick);
        }
        self.now = until;
    }

    fn order(&self) -> Vec<u64> {
        self.granted.iter().map(|(ticket, _)| ticket.0).collect()
    }
}

#[test]
fn what_fits_goes_at_once_and_the_rest_when_there_is_room() {
    let mut world = World::new(queue(1));
    for number in 0..8 {
        world.ask(wish(number, Class::Standard, world.now));
    }
    assert_eq!(world.order(), [0, 1, 2, 3, 4, 5], "half a second of prefill may wait there, and one more");
    assert_eq!(world.queue.waiting(), 2);
    world.pass(Duration::from_millis(99));
    assert_eq!(world.queue.waiting(), 2);
    world.pass(Duration::from_millis(150));
    assert_eq!((world.order().len(), world.queue.waiting()), (8, 0));
}

#[test]
fn the_first_class_goes_first_and_the_others_by_weight_with_floors() {
    let mut world = World::new(queue(1));
    let classes = [Class::Batch, Class::Standard, Class::Interactive];
    world.ask(Wish { kv: Tokens(9_900), ..wish(1_000, Class::Standard, world.now) });
    for number in 0..300 {
        world.ask(Wish { kv: Tokens(9_900), ..wish(number, classes[number as usize % 3], world.now) });
    }
    for _ in 0..230 {
        let last = *world.order().last().unwrap();
        world.end(TicketId(last));
    }
    let of = |from: usize, to: usize, class: usize| {
        world.order()[from..to].iter().filter(|number| classes[(**number % 3) as usize] == classes[class]).count()
    };
    let (batch, standard, interactive) = (of(1, 101, 0), of(1, 101, 1), of(1, 101, 2));
    assert!((4..=6).contains(&batch) && (9..=11).contains(&standard), "{batch} {standard} {interactive}");
    assert!(interactive >= 83, "{interactive}");
    let left = of(130, 231, 0) as f64 / of(130, 231, 1) as f64;
    assert!((0.2..0.4).contains(&left), "four to one below: {left}");
}

#[test]
fn a_flood_of_one_tenant_costs_the_others_nothing() {
    let mut world = World::new(queue(1));
    let of = |number: u64, tenant: &str, now| Wish {
        tenant: tenant.into(),
        kv: Tokens(9_900),
        ..wish(number, Class::Standard, now)
    };
    (0..100).for_each(|number| world.ask(of(number, "flood", world.now)));
    (100..104).for_each(|number| world.ask(of(number, "other", world.now)));
    for _ in 0..9 {
        let last = *world.order().last().unwrap();
        world.end(TicketId(last));
    }
    let others = world.order()[1..].iter().filter(|number| **number >= 100).count();
    assert_eq!(others, 4, "{:?}", world.order());
}

#[test]
fn who_is_due_first_goes_first_and_the_cheapest_when_most_are_late() {
    let mut world = World::new(queue(1));
    let due = |number: u64, seconds, now: Mono| Wish {
        kv: Tokens(9_900),
        deadline: now.after(Duration::from_secs(seconds)),
        cost_us: 1_000_000 - number * 1_000,
        ..wish(number, Class::Standard, now)
    };
    world.ask(due(0, 1, world.now));
    (1..60).for_each(|number| world.ask(due(number, 100 - number, world.now)));
    world.end(TicketId(0));
    assert_eq!(world.order(), [0, 59]);
    world.pass(Duration::from_secs(99));
    for _ in 0..20 {
        let last = *world.order().last().unwrap();
        world.end(TicketId(last));
    }
    let order = world.order();
    assert!(order[15..].is_sorted_by(|a, b| a > b), "the cheapest have the highest numbers: {order:?}");
}

#[test]
fn a_ticket_waits_for_its_warm_pod_as_long_as_that_pays_and_no_pod_idles() {
    let mut world = World::new(queue(2));
    let warm = |number: u64, now| Wish {
        places: vec![(PodId(0), 100_000)],
        cold_us: 400_000,
        kv: Tokens(10),
        ..wish(number, Class::Standard, now)
    };
    world.ask(Wish { places: vec![(PodId(0), 600_000)], ..warm(0, world.now) });
    world.ask(Wish { places: vec![(PodId(1), 50_000)], ..warm(1, world.now) });
    world.ask(warm(2, world.now));
    assert_eq!(world.order(), [0, 1], "the other pod is open, but waiting is cheaper");
    world.pass(Duration::from_millis(120));
    assert_eq!(world.granted.last(), Some(&(TicketId(2), PodId(0))));
    let mut world = World::new(queue(2));
    world.ask(Wish { places: vec![(PodId(0), 600_000)], ..warm(0, world.now) });
    world.ask(warm(2, world.now));
    assert_eq!(world.granted.last(), Some(&(TicketId(2), PodId(1))), "one without work takes anybody");
}

#[test]
fn a_blocked_head_blocks_nobody_and_a_large_one_has_a_pod_emptied() {
    for is_promised in [true, false] {
        let mut world = World::new(queue(1));
        (0..5).for_each(|number| world.ask(wish(number, Class::Standard, world.now)));
        world.pass(Duration::from_secs(1));
        world.ask(Wish { kv: Tokens(9_000), is_promised, ..wish(10, Class::Standard, world.now) });
        world.ask(wish(11, Class::Standard, world.now));
        assert_eq!(world.order(), [0, 1, 2, 3, 4, 11]);
        world.pass(Duration::from_secs(6));
        world.ask(wish(12, Class::Standard, world.now));
        assert_eq!(world.order().len(), 6, "the pod is kept for the large one");
        world.ask(wish(13, Class::Interactive, world.now));
        assert_eq!(world.order()[6..], [13], "but not against the first class");
        (0..14).filter(|number| *number != 12).for_each(|number| world.end(TicketId(number)));
        assert_eq!(world.order()[7..], [10]);
        world.end(TicketId(10));
        assert_eq!(world.order()[8..], [12]);
    }
}

#[test]
fn a_pod_that_was_kept_is_open_again_once_its_ticket_went_elsewhere() {
    let mut world = World::new(queue(2));
    let full = |number: u64, pod: u32, now| Wish {
        kv: Tokens(9_000),
        places: vec![(PodId(pod), 100_000)],
        ..wish(number, Class::Standard, now)
    };
    world.ask(full(0, 0, world.now));
    world.ask(full(1, 1, world.now));
    world.ask(full(2, 0, world.now));
    world.pass(Duration::from_secs(3));
    world.end(TicketId(1));
    assert_eq!(world.granted.last(), Some(&(TicketId(2), PodId(1))));
    world.ask(Wish { kv: Tokens(100), ..full(3, 0, world.now) });
    assert_eq!(world.granted.last(), Some(&(TicketId(3), PodId(0))));
}

#[test]
fn long_prefills_of_the_last_class_leave_pods_to_others() {
    let mut world = World::new(queue(4));
    let long = |number: u64, now| Wish {
        places: (0..4).map(|pod| (PodId((number as u32 + pod) % 4), 9_000_000)).collect(),
        cold_us: 9_000_000,
        kv: Tokens(10),
        ..wish(number, Class::Batch, now)
    };
    (0..4).for_each(|number| world.ask(long(number, world.now)));
    assert_eq!(world.order(), [0]);
    world.on(Event::Committed(TicketId(0)));
    world.pass(Duration::from_millis(300));
    assert_eq!(world.order().len(), 2);
}

#[test]
fn what_would_come_too_late_is_refused_at_once_and_told_when_to_come_back() {
    let mut world = World::new(queue(1));
    let promised = |number: u64, now: Mono| Wish {
        is_promised: true,
        kv: Tokens(5_000),
        deadline: now.after(Duration::from_secs(1)),
        ..wish(number, Class::Interactive, now)
    };
    (0..40).for_each(|number| world.ask(promised(number, world.now)));
    let refused = world.refused.len();
    assert!((25..35).contains(&refused), "{refused}");
    assert!(world.refused.values().all(|(reason, at)| (*reason, *at) == (Reason::PredictedLate, world.now)));
    world.pass(Duration::from_millis(700));
    let late: Vec<_> = world.refused.values().filter(|(_, at)| *at > Mono(1_000)).collect();
    assert!(late.iter().all(|(_, at)| at.since(Mono(1_000)) <= Duration::from_millis(500)), "{late:?}");
}

#[test]
fn who_waited_as_long_as_he_may_is_refused_and_a_full_class_refuses_or_evicts() {
    let mut classes = Classes::default();
    (classes.standard.requests_max, classes.standard.wait_max_s) = (Some(2), Some(5.0));
    for when_full in [WhenFull::RefuseNewest, WhenFull::EvictLast] {
        classes.standard.when_full = when_full;
        let mut world = World::new(queue(1));
        world.queue.configure(QueueSettings::default(), classes.clone());
        let large = |number: u64, now: Mono| Wish {
            kv: Tokens(9_900),
            deadline: now.after(Duration::from_secs(100 - number)),
            ..wish(number, Class::Standard, now)
        };
        (0..4).for_each(|number| world.ask(large(number, world.now)));
        let first = if when_full == WhenFull::EvictLast { 1 } else { 3 };
        assert_eq!(world.refused.keys().collect::<Vec<_>>(), [&TicketId(first)]);
        assert_eq!(world.refused[&TicketId(first)].0, Reason::QueueFull);
        world.pass(Duration::from_secs(6));
        assert_eq!(world.refused.len(), 3);
        assert!(world.refused.values().any(|(reason, _)| *reason == Reason::QueueTimeout));
    }
}

#[test]
fn the_last_class_makes_room_for_the_first() {
    let mut world = World::new(queue(1));
    world.ask(Wish { kv: Tokens(9_900), ..wish(0, Class::Batch, world.now) });
    world.ask(Wish { kv: Tokens(9_900), is_promised: true, ..wish(1, Class::Interactive, world.now) });
    world.pass(Duration::from_secs(6));
    assert_eq!((world.recalled, world.order()), (1, vec![0, 1]));
}

#[test]
fn where_all_pods_are_out_nobody_waits() {
    let mut world = World::new(queue(2));
    (0..20).for_each(|number| world.ask(wish(number, Class::Standard, world.now)));
    assert!(world.queue.waiting() > 0);
    world.fleet.down.extend([PodId(0), PodId(1)]);
    world.pass(Duration::from_millis(300));
    assert_eq!(
        (world.queue.waiting(), world.granted.len()),
        (0, 20),
        "what happens to them is not for the queue to say"
    );
    world.ask(wish(20, Class::Standard, world.now));
    assert_eq!(world.granted.len(), 21);
}

/// A random history under way.
struct History {
    world: World,
    rng: Rng,
    seed: u64,
    next: u64,
    classes: Classes,
}

impl History {
    fn new(seed: u64) -> Self {
        let mut classes = Classes::default();
        (classes.batch.requests_max, classes.interactive.wait_max_s) = (Some(30), Some(20.0));
        let mut world = World::new(Queue::new(QueueSettings::default(), classes.clone()));
        for model in ["a", "b"] {
            world.on(Event::Pods(pool(model), (0..PODS).map(PodId).collect()));
        }
        Self { world, rng: Rng::new(seed), seed, next: 0, classes }
    }

    fn pod(&mut self) -> PodId {
        PodId(self.rng.below(u64::from(PODS)) as u32)
    }

    fn one_of(&mut self, all: &[TicketId]) -> Option<TicketId> {
        all.get(self.rng.below(all.len().max(1) as u64) as usize).copied()
    }

    fn running(&mut self) -> Option<TicketId> {
        let running: Vec<TicketId> = self.world.running.keys().copied().collect();
        self.one_of(&running)
    }

    fn ask(&mut self) {
        let (class, now) = (Class::ALL[self.rng.below(3) as usize], self.world.now);
        let size = 8 + self.rng.below(14);
        let cold_us = 1_000 + self.rng.below(1 << size);
        let warm_us = cold_us - self.rng.below(2) * cold_us / 2;
        let places = (0..self.rng.below(4)).map(|_| (self.pod(), warm_us)).collect();
        let (partner, tried) = (self.pod(), self.pod());
        let rng = &mut self.rng;
        self.next += 1;
        let wish = Wish {
            pool: pool(["a", "b"][rng.below(2) as usize]),
            tenant: ["x", "y", "z"][rng.below(3) as usize].into(),
            weight: 1.0 + rng.unit(),
            cost_us: cold_us + rng.below(100_000),
            kv: Tokens(1 + rng.below(6_000)),
            places,
            cold_us,
            partner: (rng.below(8) == 0).then_some(partner),
            tried: (rng.below(8) == 0).then_some(tried).into_iter().collect(),
            deadline: now.after(Duration::from_millis(50 + rng.below(9_000))),
            is_promised: rng.below(2) == 0,
            ..wish(self.next, class, now)
        };
        self.world.ask(wish);
    }

    fn leave(&mut self) {
        let all: Vec<TicketId> = self.world.wishes.keys().chain(self.world.running.keys()).copied().collect();
        let Some(ticket) = self.one_of(&all) else { return };
        self.world.wishes.remove(&ticket);
        if let Some(pod) = self.world.running.remove(&ticket) {
            self.world.fleet.end(pod, ticket);
        }
        self.world.on(Event::Left(ticket));
    }

    fn read(&mut self) {
        let pod = self.pod();
        if !self.world.fleet.down.remove(&pod) && self.rng.below(4) == 0 {
            self.world.fleet.down.insert(pod);
        }
        let (running, waiting) = (self.rng.below(9) as u32, self.rng.below(4) as u32);
        self.world.on(Event::Read(pod, EngineState { running, waiting, preemptions: 0 }));
    }

    fn step(&mut self) {
        match self.rng.below(12) {
            0..=4 => self.ask(),
            5..=7 => self.running().into_iter().for_each(|ticket| self.world.end(ticket)),
            8 => self.leave(),
            9 => self.running().into_iter().for_each(|ticket| self.world.on(Event::Committed(ticket))),
            10 => self.read(),
            _ => {
                let millis = self.rng.below(400);
                self.world.pass(Duration::from_millis(millis));
            }
        }
    }

    fn check(&self) {
        let (world, seed) = (&self.world, self.seed);
        assert_eq!(world.queue.invariants(), Ok(()), "seed {seed}");
        assert_eq!(world.queue.waiting() as usize, world.wishes.len(), "seed {seed}: one is lost, or there twice");
        for (_, class, backlog) in world.queue.backlogs(world.now) {
            assert!(backlog.requests <= u64::from(self.classes.of(class).requests_max), "seed {seed}");
            assert!(backlog.oldest_s <= 2.0 * self.classes.of(class).wait_max_s, "seed {seed}");
        }
    }

    /// Everything comes to an end; what happened, in words.
    fn end(mut self) -> String {
        let (world, seed) = (&mut self.world, self.seed);
        world.fleet.down.clear();
        for _ in 0..100_000 {
            let running: Vec<TicketId> = world.running.keys().copied().collect();
            for ticket in running {
                world.end(ticket);
            }
            world.pass(Duration::from_mins(1));
            if world.wishes.is_empty() && world.running.is_empty() {
                break;
            }
        }
        assert!(world.wishes.is_empty() && world.running.is_empty(), "seed {seed}: {:?}", world.wishes);
        assert_eq!((world.queue.waiting(), world.queue.invariants()), (0, Ok(())), "seed {seed}");
        assert!(world.queue.places.is_empty() && world.queue.recallable.is_empty(), "seed {seed}");
        let granted = world.granted.iter().map(|(ticket, pod)| format!("{}>{} ", ticket.0, pod.0));
        let refused = world.refused.iter();
        let refused = refused.map(|(ticket, (reason, at))| format!("{}!{}@{} ", ticket.0, reason.as_str(), at.0));
        granted.chain(refused).collect()
    }
}

fn history(seed: u64, steps: u32) -> String {
    let mut history = History::new(seed);
    for _ in 0..steps {
        history.step();
        history.check();
    }
    history.end()
}

proptest::proptest! {
    /// `PROPTEST_CASES=1000` with five thousand steps each is what it was run with once.
    #[test]
    fn random_histories_keep_every_promise_and_repeat(seed: u64, steps in 1_u32..600) {
        let story = history(seed, steps);
        if seed % 4 == 0 {
            assert_eq!(story, history(seed, steps));
        }
    }
}
