//! Who waits for one pod or for some, models that share pods, and who goes without a turn.
use super::*;

#[test]
fn who_waits_for_one_pod_stands_in_nobodys_way_however_many_they_are() {
    for partner in [None, Some(2)] {
        let mut world = World::new(queue(3));
        world.ask(large(0, 0, world.now));
        world.ask(large(1, 2, world.now));
        (2..300).for_each(|number| world.ask(Wish { bound: Some(bound(0, partner)), ..large(number, 0, world.now) }));
        assert_eq!(world.order(), [0, 1]);
        world.ask(Wish { places: vec![spot(0, 100_000, 0)], ..wish(900, Class::Standard, world.now) });
        assert_eq!(world.granted[2..], [(TicketId(900), PodId(1))], "{partner:?}");
        world.end(TicketId(1));
        world.end(TicketId(0));
        assert_eq!(world.granted[3..], [(TicketId(2), PodId(0))], "{partner:?}");
    }
}

#[test]
fn a_head_that_fits_nowhere_hides_nobody_behind_places_that_became_free() {
    let mut world = World::new(queue(2));
    world.ask(large(0, 0, world.now));
    world.ask(large(1, 1, world.now));
    (2..400).for_each(|number| world.ask(large(number, 0, world.now)));
    (3..399).for_each(|number| {
        world.wishes.remove(&TicketId(number));
        world.on(Event::Left(TicketId(number)));
    });
    world.ask(Wish { tried: vec![PodId(0)], ..large(900, 1, world.now) });
    world.end(TicketId(1));
    world.end(TicketId(2));
    world.end(TicketId(399));
    assert!(world.order().contains(&900), "{:?}", world.order());
}

#[test]
fn who_waits_for_a_pod_that_is_gone_is_let_go() {
    let mut world = World::new(queue(3));
    world.fleet.down.insert(PodId(0));
    world.ask(Wish { bound: Some(bound(0, None)), ..large(0, 0, world.now) });
    assert_eq!(world.order(), [0], "nothing is won by waiting for one that is out");
    (0..3).for_each(|pod| world.ask(large(1 + u64::from(pod), pod, world.now)));
    world.ask(Wish { bound: Some(bound(1, Some(2))), ..large(10, 1, world.now) });
    world.ask(Wish { is_restricted: true, ..large(11, 1, world.now) });
    world.ask(Wish { tried: vec![PodId(0), PodId(1)], ..large(12, 2, world.now) });
    assert_eq!(world.queue.waiting(), 3 + 1, "one of those that fill pods waits too");
    world.fleet.down.extend([PodId(1), PodId(2)]);
    world.fleet.down.remove(&PodId(0));
    world.fleet.begin(world.now, PodId(0), TicketId(99), 9_000_000_000, Tokens(9_900));
    world.is_forced = true;
    world.pass(Duration::from_secs(6));
    let order = world.order();
    assert!([10, 11, 12].iter().all(|number| order.contains(number)), "{order:?}");
}

#[test]
fn a_restricted_one_goes_to_its_places_only() {
    let mut world = World::new(queue(2));
    world.ask(large(0, 0, world.now));
    world.ask(Wish { is_restricted: true, ..large(1, 0, world.now) });
    assert_eq!(world.order(), [0], "the other pod is idle");
    world.end(TicketId(0));
    assert_eq!(world.granted[1..], [(TicketId(1), PodId(0))]);
}

#[test]
fn models_that_share_pods_take_turns_and_the_first_class_of_all_goes_first() {
    let mut world = World::new(queue(1));
    world.on(Event::Pods(pool("adapter"), vec![PodId(0)]));
    (0..60).for_each(|number| world.ask(large(number, 0, world.now)));
    for _ in 0..20 {
        let last = *world.order().last().unwrap();
        world.end(TicketId(last));
    }
    let other = |number, class, now| Wish { pool: pool("adapter"), class, ..large(number, 0, now) };
    (100..110).for_each(|number| world.ask(other(number, Class::Standard, world.now)));
    world.ask(other(200, Class::Batch, world.now));
    world.ask(Wish { class: Class::Interactive, ..large(300, 0, world.now) });
    for _ in 0..9 {
        let last = *world.order().last().unwrap();
        world.end(TicketId(last));
    }
    let next = &world.order()[21..];
    assert_eq!(next[0], 300, "{next:?}");
    let of_adapter = next.iter().filter(|number| (100..110).contains(*number)).count();
    assert!((3..=5).contains(&of_adapter), "one that comes late takes turns: {next:?}");
}

#[test]
fn a_pod_that_says_nothing_is_looked_at_as_long_as_somebody_waits() {
    let mut world = World::new(queue(1));
    world.ask(large(0, 0, world.now));
    world.ask(Wish { tried: vec![PodId(9)], ..large(1, 0, world.now) });
    // The pod has room without an event that says so.
    world.fleet.end(PodId(0), TicketId(0));
    world.pass(Duration::from_millis(300));
    assert_eq!(world.order(), [0, 1]);
}

#[test]
fn switched_off_or_released_all_go() {
    for is_off in [true, false] {
        let mut world = World::new(queue(1));
        (0..20).for_each(|number| world.ask(large(number, 0, world.now)));
        world.is_forced = true;
        if is_off {
            world.queue.configure(QueueSettings { enabled: false, ..QueueSettings::default() }, Classes::default());
            world.pass(Duration::from_millis(300));
        } else {
            world.on(Event::Release);
        }
        assert_eq!((world.queue.waiting(), world.granted.len()), (0, 20));
    }
}

#[test]
fn a_body_that_never_fits_evicts_nobody() {
    let mut world = World::new(queue(1));
    let mut classes = Classes::default();
    (classes.standard.when_full, classes.standard.body_bytes_max) = (WhenFull::EvictLast, Some(1_000));
    world.queue.configure(QueueSettings::default(), classes);
    let due = |number, seconds, now: Mono| Wish {
        deadline: now.after(Duration::from_secs(seconds)),
        body_bytes: 300,
        ..large(number, 0, now)
    };
    (0..4).for_each(|number| world.ask(due(number, 100, world.now)));
    world.ask(Wish { body_bytes: 1_001, ..due(10, 1, world.now) });
    assert_eq!(world.refused.keys().collect::<Vec<_>>(), [&TicketId(10)]);
    world.ask(Wish { body_bytes: 700, ..due(11, 1, world.now) });
    assert_eq!(world.refused.len(), 3, "two make room for it: {:?}", world.refused);
}

#[test]
fn what_was_never_charged_is_not_given_back() {
    let mut world = World::new(queue(2));
    let of = |number, tenant: &str, pod, now| Wish { tenant: tenant.into(), ..large(number, pod, now) };
    world.ask(of(0, "a", 0, world.now));
    world.ask(of(1, "b", 1, world.now));
    for number in 2..10 {
        world.ask(of(number, if number % 2 == 0 { "a" } else { "b" }, 0, world.now));
    }
    // What went at once turns out to have cost nothing.
    world.running.remove(&TicketId(0));
    world.fleet.end(PodId(0), TicketId(0));
    world.on(Event::Over(TicketId(0), Some(0)));
    let mut by_tenant = [0, 0];
    for _ in 0..6 {
        let (last, _) = *world.granted.last().unwrap();
        by_tenant[last.0 as usize % 2] += 1;
        world.end(last);
    }
    assert_eq!(by_tenant, [3, 3]);
}

#[test]
fn who_waits_for_kv_keeps_one_pod_and_neither_stops_nor_refuses_others() {
    let mut world = World::new(queue(8));
    (0..8).for_each(|pod| {
        let first = Wish {
            kv: Tokens(3_000),
            places: vec![spot(pod, 1_000, 0)],
            ..wish(u64::from(pod), Class::Interactive, world.now)
        };
        world.ask(first);
    });
    let large = Wish {
        kv: Tokens(9_000),
        cost_us: 30_000_000,
        places: vec![spot(0, 9_000_000, 0)],
        cold_us: 9_000_000,
        deadline: world.now.after(Duration::from_mins(1)),
        is_promised: true,
        ..wish(100, Class::Interactive, world.now)
    };
    world.ask(large);
    assert!(!world.order().contains(&100), "no pod has so much room");
    for number in 200..240 {
        let pod = number as u32 % 8;
        world.ask(Wish {
            kv: Tokens(100),
            cost_us: 100_000,
            places: vec![spot(pod, 20_000, 0)],
            deadline: world.now.after(Duration::from_secs(1)),
            is_promised: true,
            ..wish(number, Class::Interactive, world.now)
        });
        world.pass(Duration::from_millis(30));
    }
    assert_eq!(world.refused, BTreeMap::new());
    let small = world.order().iter().filter(|number| **number >= 200).count();
    assert!(small >= 40 - 5, "{small} of 40 went past it, all but those of the pod that is kept");
    world.end(TicketId(0));
    (1..8).for_each(|number| world.end(TicketId(number)));
    world.pass(Duration::from_secs(3));
    assert!(world.order().contains(&100), "and it goes as soon as a pod is empty enough");
}

#[test]
fn a_pod_that_is_kept_for_a_later_class_is_kept_for_an_earlier_one_instead_and_in_the_end_against_all() {
    let mut world = World::new(queue(1));
    let of = |number: u64, class: Class, tokens: u64, now: Mono| Wish {
        kv: Tokens(tokens),
        places: vec![spot(0, 1_000, 0)],
        cold_us: 1_000,
        ..wish(number, class, now)
    };
    world.ask(of(0, Class::Standard, 3_000, world.now));
    world.ask(of(1, Class::Batch, 9_000, world.now));
    world.pass(Duration::from_secs(3));
    let small = |world: &mut World, number: u64, class: Class| {
        world.ask(of(number, class, 100, world.now));
        let goes = world.order().contains(&number);
        if goes {
            world.end(TicketId(number));
        }
        goes
    };
    assert!(small(&mut world, 10, Class::Standard), "it is kept for one of a later class");
    world.ask(of(2, Class::Standard, 9_000, world.now));
    world.pass(Duration::from_secs(3));
    assert!(!small(&mut world, 20, Class::Standard), "now it is kept for one of this class");
    assert!(small(&mut world, 30, Class::Interactive));
    world.pass(Duration::from_secs(57));
    assert!(!small(&mut world, 40, Class::Interactive), "for one that has waited for so long even against the first");
    world.end(TicketId(0));
    assert!(world.order().contains(&2));
}
