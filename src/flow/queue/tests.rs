//! Who goes first, who waits and who is refused, in histories that are written out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
mod history;
mod lanes;
mod sharing;

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::base::Rng;
use crate::flow::Reason;

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
            is_tried: false,
            wait_s: until.since(now).as_secs_f64(),
            requests: jobs.len() as u32,
            unanswered: 0,
            overdue: 0,
            full_step_s: 0.5,
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

fn spot(pod: u32, prefill_us: u64, worse_us: u64) -> Spot {
    Spot { pod: PodId(pod), prefill_us, worse_us }
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
        places: vec![spot(0, 100_000, 0)],
        cold_us: 100_000,
        bound: None,
        is_restricted: false,
        tried: vec![],
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
    held: BTreeMap<PodId, u64>,
    /// Grants may go anywhere: all are out, or all were released.
    is_forced: bool,
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
            held: BTreeMap::new(),
            is_forced: false,
        }
    }

    fn on(&mut self, event: Event) {
        let mut todo = vec![event];
        while let Some(event) = todo.pop() {
            for effect in self.queue.on(self.now, event, &self.fleet) {
                match effect {
                    Effect::Grant(ticket, pod) => {
                        let wish = self.wishes.remove(&ticket).expect("a departed client, or one twice, was granted");
                        let is_right = |pod| wish.may_use(pod) && wish.bound.is_none_or(|bound| bound.pod == pod);
                        let is_in = |pod| is_right(pod) && !self.fleet.down.contains(&pod);
                        let may = is_right(pod) || !(0..PODS).map(PodId).any(is_in) || self.is_forced;
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
                    Effect::Holds(pod, held) => drop(self.held.insert(pod, held.all_us)),
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
fn a_tenant_whose_costs_are_hard_to_tell_is_served_as_much_as_one_whose_are_not() {
    let mut world = World::new(queue(1));
    let of = |number: u64, tenant: &str, now| Wish {
        tenant: tenant.into(),
        kv: Tokens(900),
        deadline: Mono(1 << 40),
        ..wish(number, Class::Standard, now)
    };
    (0..300).for_each(|number| world.ask(of(number, "plain", world.now)));
    (300..600).for_each(|number| world.ask(of(number, "other", world.now)));
    let mut served = [0_i64; 2];
    for ended in 0..300 {
        let (ticket, _) = world.granted[ended];
        let really = if ticket.0 < 300 { 100_000 } else { 20_000 + 160_000 * (ticket.0 % 2) };
        served[usize::from(ticket.0 >= 300)] += really.cast_signed();
        let pod = world.running.remove(&ticket).unwrap();
        world.fleet.end(pod, ticket);
        world.on(Event::Over(ticket, Some(really)));
        world.pass(Duration::from_millis(100));
    }
    // One that is under way may be unknown to either, and what went before anybody waited was not charged.
    assert!((served[0] - served[1]).abs() <= 20 * 100_000, "{served:?}");
}

#[test]
fn a_tenant_is_not_refused_for_what_another_has_waiting() {
    let mut world = World::new(queue(1));
    let of =
        |number: u64, tenant: &str, now| Wish { tenant: tenant.into(), cost_us: 1_000_000, ..large(number, 0, now) };
    (0..400).for_each(|number| world.ask(of(number, "flood", world.now)));
    let refused = world.refused.len();
    assert!((100..399).contains(&refused), "what would wait for two minutes and more: {refused}");
    world.ask(of(900, "other", world.now));
    assert_eq!(world.refused.len(), refused);
    world.end(TicketId(0));
    let next = world.granted.last().map(|(ticket, _)| ticket.0);
    world.end(TicketId(next.unwrap()));
    assert!(world.order().contains(&900), "{:?}", world.order());
}

#[test]
fn a_large_head_is_passed_over_eight_times_and_then_waited_for() {
    let mut world = World::new(queue(1));
    (0..3).for_each(|number| world.ask(Wish { kv: Tokens(2_400), ..large(number, 0, world.now) }));
    world.ask(Wish { kv: Tokens(2_400), ..large(100, 0, world.now) });
    (10..40).for_each(|number| world.ask(Wish { kv: Tokens(500), ..large(number, 0, world.now) }));
    let is_small = |number: &u64| (10..40).contains(number);
    for _ in 0..20 {
        world.pass(Duration::from_millis(300));
        let last = world.order().into_iter().rev().find(is_small);
        world.end(TicketId(last.unwrap_or(10)));
    }
    let smaller = world.order().iter().filter(|number| is_small(number)).count();
    assert_eq!(smaller, 8, "{:?}", world.order());
    (0..3).for_each(|number| world.end(TicketId(number)));
    world.pass(Duration::from_secs(1));
    assert!(world.order().contains(&100));
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
fn a_ticket_waits_for_its_warm_pod_as_long_as_that_pays() {
    let mut world = World::new(queue(2));
    let warm = |number: u64, now| Wish {
        places: vec![spot(0, 100_000, 0)],
        cold_us: 400_000,
        kv: Tokens(10),
        ..wish(number, Class::Standard, now)
    };
    world.ask(Wish { places: vec![spot(0, 600_000, 0)], ..warm(0, world.now) });
    world.ask(Wish { places: vec![spot(1, 50_000, 0)], ..warm(1, world.now) });
    world.ask(warm(2, world.now));
    assert_eq!(
        (world.order(), &world.held),
        (vec![0, 1], &[(PodId(0), 100_000)].into()),
        "the other pod is open, but waiting is cheaper"
    );
    world.pass(Duration::from_millis(120));
    assert_eq!((world.granted.last(), world.held[&PodId(0)]), (Some(&(TicketId(2), PodId(0))), 0));
    // Its best pod has room later than it may wait for it.
    let mut world = World::new(queue(2));
    world.fleet.begin(world.now, PodId(0), TicketId(98), 4_000_000, Tokens(1));
    world.fleet.begin(world.now, PodId(1), TicketId(99), 1_000, Tokens(1));
    world.ask(Wish { places: vec![spot(0, 100_000, 0), spot(1, 100_000, 200_000)], ..warm(4, world.now) });
    world.pass(Duration::from_secs(2));
    assert_eq!(world.granted, [], "not before a quarter of its time");
    world.pass(Duration::from_secs(1));
    assert_eq!(world.granted, [(TicketId(4), PodId(1))]);
    let mut world = World::new(queue(2));
    world.ask(Wish { places: vec![spot(0, 600_000, 0)], ..warm(0, world.now) });
    world.ask(warm(2, world.now));
    assert_eq!(world.granted.last(), Some(&(TicketId(2), PodId(1))), "one without work takes whom that helps");
    let mut world = World::new(queue(2));
    world.ask(Wish { places: vec![spot(0, 600_000, 0)], ..warm(0, world.now) });
    world.ask(Wish { cold_us: 2_000_000, ..warm(2, world.now) });
    assert_eq!(world.order(), [0], "to compute all of it again would take longer than to wait");
    world.end(TicketId(0));
    world.pass(Duration::from_secs(1));
    assert_eq!(world.granted.last(), Some(&(TicketId(2), PodId(0))));
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
        places: vec![spot(pod, 100_000, 0)],
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
        places: (0..4).map(|pod| spot((number as u32 + pod) % 4, 9_000_000, 0)).collect(),
        cold_us: 9_000_000,
        kv: Tokens(10),
        ..wish(number, Class::Batch, now)
    };
    (0..4).for_each(|number| world.ask(long(number, world.now)));
    assert_eq!(
        world.granted,
        [(TicketId(0), PodId(0)), (TicketId(1), PodId(0))],
        "one more behind the first, none elsewhere"
    );
    world.pass(Duration::from_secs(6));
    world.ask(wish(10, Class::Standard, world.now));
    world.pass(Duration::from_millis(300));
    let pods: BTreeSet<PodId> = world.granted.iter().filter(|(ticket, _)| ticket.0 < 4).map(|(_, pod)| *pod).collect();
    assert_eq!(pods.len(), 2, "nobody else had to wait for long: one pod more may have them");
    // Everybody else has to wait now.
    (20..40).for_each(|number| world.ask(Wish { cost_us: 1, ..wish(number, Class::Standard, world.now) }));
    (20..40).for_each(|number| world.ask(large(number + 80, (number % 4) as u32, world.now)));
    world.pass(Duration::from_secs(1));
    (0..200).for_each(|number| world.end(TicketId(number)));
    (50..54).for_each(|number| world.ask(long(number, world.now)));
    let pods: BTreeSet<PodId> =
        world.granted.iter().filter(|(ticket, _)| (50..54).contains(&ticket.0)).map(|(_, pod)| *pod).collect();
    assert_eq!(pods.len(), 1, "they had to wait: one pod less");
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
            deadline: now.after(Duration::from_millis(2_000 - 100 * number)),
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
fn a_tenant_that_fills_a_class_gives_way_to_others_up_to_their_share() {
    let mut classes = Classes::default();
    (classes.standard.requests_max, classes.standard.wait_max_s) = (Some(12), Some(500.0));
    let mut world = World::new(queue(1));
    world.queue.configure(QueueSettings::default(), classes);
    let of = |number: u64, tenant: &str, weight: f64, now: Mono| Wish {
        kv: Tokens(9_900),
        tenant: tenant.into(),
        weight,
        deadline: now.after(Duration::from_secs(900 + number)),
        ..wish(number, Class::Standard, now)
    };
    (0..30).for_each(|number| world.ask(of(number, "flood", 1.0, world.now)));
    assert_eq!((world.granted.len(), world.queue.waiting(), world.refused.len()), (1, 12, 17));
    // One of twice the weight gets two thirds of the room, and no more; what is due last goes first.
    (100..130).for_each(|number| world.ask(of(number, "other", 2.0, world.now)));
    let gone = world.refused.keys().filter(|ticket| ticket.0 < 13).map(|ticket| ticket.0);
    assert_eq!(gone.collect::<Vec<_>>(), (5..13).collect::<Vec<_>>());
    let own = world.refused.keys().filter(|ticket| ticket.0 >= 100).count();
    assert_eq!((world.queue.waiting(), own), (12, 22));
    assert!(world.refused.values().all(|(reason, _)| *reason == Reason::QueueFull));
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

/// What fills a pod.
fn large(number: u64, pod: u32, now: Mono) -> Wish {
    Wish { kv: Tokens(9_900), places: vec![spot(pod, 100_000, 0)], ..wish(number, Class::Standard, now) }
}

fn bound(pod: u32, partner: Option<u32>) -> Bound {
    Bound { pod: PodId(pod), partner: partner.map(PodId) }
}
