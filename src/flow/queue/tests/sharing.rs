//! Who shares with whom over time: classes, models, tenants, and what is remembered of the past.
use super::*;

fn end_last(world: &mut World) {
    let last = *world.order().last().unwrap();
    world.end(TicketId(last));
}

fn count(world: &World, from: usize, is_so: impl Fn(u64) -> bool) -> usize {
    world.order()[from..].iter().filter(|number| is_so(**number)).count()
}

#[test]
fn a_class_that_comes_late_gets_its_share_and_no_more() {
    let mut world = World::new(queue(1));
    (0..1_000).for_each(|number| world.ask(large(number, 0, world.now)));
    (0..500).for_each(|_| end_last(&mut world));
    (2_000..2_300).for_each(|number| world.ask(Wish { class: Class::Batch, ..large(number, 0, world.now) }));
    let from = world.order().len();
    (0..100).for_each(|_| end_last(&mut world));
    let batch = count(&world, from, |number| number >= 2_000);
    assert!((15..=25).contains(&batch), "four to one: {batch} of 100");
}

#[test]
fn a_model_that_was_busy_for_long_takes_turns_with_one_that_is_new() {
    let mut world = World::new(queue(1));
    world.on(Event::Pods(pool("adapter"), vec![PodId(0)]));
    for number in 0..500 {
        world.ask(large(number, 0, world.now));
        world.end(TicketId(number));
    }
    world.ask(large(999, 0, world.now));
    (1_000..1_300).for_each(|number| world.ask(Wish { pool: pool("adapter"), ..large(number, 0, world.now) }));
    (2_000..2_100).for_each(|number| world.ask(large(number, 0, world.now)));
    let from = world.order().len();
    (0..100).for_each(|_| end_last(&mut world));
    let busy = count(&world, from, |number| number >= 2_000);
    assert!((45..=55).contains(&busy), "{busy} of 100");
}

#[test]
fn floors_hold_where_the_queued_prefill_is_what_shuts_a_pod() {
    for (first, second, least) in [(Class::Standard, Class::Batch, 15), (Class::Interactive, Class::Standard, 40)] {
        let mut world = World::new(queue(1));
        let of = |number, class, now: Mono| Wish {
            class,
            kv: Tokens(1),
            deadline: now.after(Duration::from_mins(5)),
            ..wish(number, class, now)
        };
        (100_000..100_050).for_each(|number| world.ask(of(number, second, world.now)));
        for step in 0..600 {
            (0..2).for_each(|other| world.ask(of(2 * step + other, first, world.now)));
            world.pass(Duration::from_millis(100));
            while world.running.len() > 7 {
                let first = *world.running.keys().next().unwrap();
                world.end(first);
            }
        }
        let got = count(&world, 0, |number| number >= 100_000);
        assert!(got >= least, "{first:?} over {second:?}: {got} of {}", world.order().len());
    }
}

#[test]
fn floors_hold_where_kv_is_what_shuts_a_pod() {
    let mut world = World::new(queue(1));
    let standard = |number, now: Mono| Wish { kv: Tokens(1_000), ..wish(number, Class::Standard, now) };
    let batch = |number, kv, now| Wish { kv: Tokens(kv), ..wish(number, Class::Batch, now) };
    for number in 0..12 {
        world.ask(standard(number, world.now));
        world.pass(Duration::from_millis(100));
    }
    world.ask(batch(100_000, 2_000, world.now));
    (100_001..100_040).for_each(|number| world.ask(batch(number, 500, world.now)));
    for number in 100..2_000 {
        world.ask(standard(number, world.now));
        world.pass(Duration::from_millis(100));
        let first = world.running.keys().next().copied();
        if let Some(first) = first {
            world.end(first);
        }
    }
    assert_eq!(count(&world, 0, |number| number >= 100_000), 40, "all of the last class");
}

#[test]
fn a_floor_is_no_more_than_that_where_cheap_ones_wait_before_dear_ones() {
    let mut world = World::new(queue(2));
    world.fleet.begin(world.now, PodId(0), TicketId(90_000), 600_000_000, Tokens(1));
    world.fleet.begin(world.now, PodId(1), TicketId(90_001), 1_000_000, Tokens(1));
    let of = |number, class, now: Mono| Wish {
        class,
        kv: Tokens(1),
        places: vec![spot(1, 100_000, 0)],
        deadline: now.after(Duration::from_mins(10)),
        ..wish(number, class, now)
    };
    // Their turn comes first, but they wait for the other pod.
    for number in 100_000..100_010 {
        let places = vec![spot(0, 1_000, 0), spot(1, 1_000, 900_000_000)];
        let deadline = world.now.after(Duration::from_mins(9));
        world.ask(Wish { cost_us: 1_000, places, deadline, ..of(number, Class::Standard, world.now) });
    }
    for number in 200_000..200_200 {
        world.ask(Wish { cost_us: 800_000, ..of(number, Class::Standard, world.now) });
    }
    for step in 0..600 {
        (0..2).for_each(|other| world.ask(of(2 * step + other, Class::Interactive, world.now)));
        world.pass(Duration::from_millis(100));
        let running = world.running.keys().next().copied().filter(|_| world.running.len() > 7);
        if let Some(first) = running {
            world.end(first);
        }
    }
    let (dear, first) = (count(&world, 0, |number| number >= 200_000), count(&world, 0, |number| number < 90_000));
    let share = dear as f64 * 0.8 / (dear as f64 * 0.8 + first as f64 * 0.1);
    assert!((0.05..=0.12).contains(&share), "{dear} of 0.8 s and {first} of 0.1 s: {share:.3}");
}

#[test]
fn the_first_class_is_left_more_where_it_was_refused() {
    let mut world = World::new(queue(1));
    for step in 0..400 {
        (0..2).for_each(|one| {
            let kv = Tokens(10);
            world.ask(Wish { kv, ..wish(100_000 + 2 * step + one, Class::Standard, world.now) });
        });
        world.pass(Duration::from_millis(100));
        let running = world.running.keys().next().copied().filter(|_| world.running.len() > 7);
        if let Some(first) = running {
            world.end(first);
        }
        for one in (0..4).filter(|_| step % 5 == 0) {
            let deadline = world.now.after(Duration::from_millis(350));
            let kv = Tokens(10);
            let first = wish(10 * step + one, Class::Interactive, world.now);
            world.ask(Wish { deadline, is_promised: true, kv, ..first });
        }
    }
    let refused = world.refused.keys().filter(|one| one.0 < 100_000).count();
    assert!((1..=8).contains(&refused), "{refused} of 320 are refused, and the first of them teach");
}

#[test]
fn those_who_wait_for_a_hot_pod_hide_nobody_from_another() {
    let mut world = World::new(queue(2));
    world.fleet.begin(world.now, PodId(0), TicketId(900), 60_000_000, Tokens(1));
    world.fleet.begin(world.now, PodId(1), TicketId(901), 1, Tokens(1));
    let spots = vec![spot(0, 10_000, 0), spot(1, 500_000, 2_000_000)];
    for number in 0..100 {
        let places = spots.clone();
        world.ask(Wish {
            tenant: "a".into(),
            cost_us: 1_000,
            places,
            kv: Tokens(1),
            ..wish(number, Class::Standard, world.now)
        });
    }
    world.ask(Wish {
        tenant: "b".into(),
        cost_us: 1_000,
        places: vec![spot(1, 10_000, 0)],
        kv: Tokens(1),
        ..wish(500, Class::Standard, world.now)
    });
    assert_eq!(world.order(), [500]);
}

#[test]
fn what_was_slow_once_refuses_nobody_an_hour_later() {
    let mut world = World::new(queue(1));
    world.fleet.begin(world.now, PodId(0), TicketId(900), 1, Tokens(9_999));
    (0..5).for_each(|number| world.ask(wish(number, Class::Standard, world.now)));
    world.pass(Duration::from_secs(100));
    for number in 0..5 {
        world.wishes.remove(&TicketId(number));
        world.on(Event::Left(TicketId(number)));
    }
    world.fleet.end(PodId(0), TicketId(900));
    world.pass(Duration::from_hours(1));
    for burst in 1..20 {
        for number in 0..10 {
            let deadline = world.now.after(Duration::from_secs(5));
            let one = wish(100 * burst + number, Class::Standard, world.now);
            world.ask(Wish { is_promised: true, kv: Tokens(1), deadline, ..one });
        }
        world.pass(Duration::from_secs(2));
        let running: Vec<_> = world.running.keys().copied().collect();
        for ticket in running {
            world.end(ticket);
        }
    }
    assert!(world.refused.is_empty(), "{:?}", world.refused.len());
}

#[test]
fn what_the_first_class_was_left_is_taken_again_once_it_is_gone() {
    let mut world = World::new(queue(1));
    for number in 0..100 {
        world.fleet.begin(world.now, PodId(0), TicketId(900), 300_000, Tokens(1));
        let one = wish(number, Class::Interactive, world.now);
        world.ask(Wish { places: vec![spot(0, 20_000, 0)], kv: Tokens(1), ..one });
        world.pass(Duration::from_secs(1));
        world.end(TicketId(number));
        world.fleet.end(PodId(0), TicketId(900));
    }
    let take = |world: &mut World, from: u64| {
        let before = world.order().len();
        (from..from + 8)
            .for_each(|number| world.ask(Wish { kv: Tokens(1), ..wish(number, Class::Standard, world.now) }));
        let took = world.order().len() - before;
        (from..from + 8).for_each(|number| world.end(TicketId(number)));
        took
    };
    assert!(take(&mut world, 1_000) < 6, "some is left to it");
    world.pass(Duration::from_hours(2));
    assert_eq!(take(&mut world, 2_000), 6, "as on a new pod");
}

#[test]
fn long_prefills_of_two_models_are_counted_apart_and_to_the_end() {
    let mut world = World::new(queue(1));
    world.on(Event::Pods(pool("adapter"), vec![PodId(0)]));
    let long = |number, model: &str, now| Wish {
        pool: pool(model),
        places: vec![spot(0, 3_000_000, 0)],
        cold_us: 3_000_000,
        kv: Tokens(10),
        ..wish(number, Class::Batch, now)
    };
    world.ask(long(1, "m", world.now));
    world.pass(Duration::from_secs(1));
    world.ask(long(2, "adapter", world.now));
    world.pass(Duration::from_secs(1));
    (1..3).for_each(|number| world.end(TicketId(number)));
    world.pass(Duration::from_secs(100));
    world.ask(long(3, "m", world.now));
    assert_eq!(world.order(), [1, 2, 3]);
}

#[test]
fn what_is_held_for_a_pod_ends_with_those_who_wait_whatever_is_configured_meanwhile() {
    let mut world = World::new(queue(1));
    world.ask(large(0, 0, world.now));
    world.ask(Wish { class: Class::Batch, places: vec![spot(0, 3_000_000, 0)], ..large(1, 0, world.now) });
    assert_eq!(world.held[&PodId(0)], 3_000_000);
    let settings = QueueSettings { long_prefill_s: 5.0, ..QueueSettings::default() };
    world.queue.configure(settings, Classes::default());
    (0..2).for_each(|number| world.end(TicketId(number)));
    assert_eq!((world.queue.waiting(), world.held[&PodId(0)]), (0, 0));
}

#[test]
fn among_many_tenants_a_light_one_is_not_refused_for_a_flood() {
    let mut world = World::new(queue(1));
    world.ask(large(0, 0, world.now));
    let of = |number, tenant: String, now| Wish { tenant: tenant.into(), cost_us: 10_000, ..large(number, 0, now) };
    (10..268).for_each(|number| world.ask(of(number, format!("t{number}"), world.now)));
    (1_000..3_000).for_each(|number| world.ask(of(number, "flood".to_owned(), world.now)));
    world.ask(Wish { is_promised: true, ..of(9_000, "light".to_owned(), world.now) });
    assert!(world.refused.is_empty());
}

#[test]
fn what_is_held_before_the_first_class_is_its_own() {
    let mut queue = queue(1);
    let fleet =
        Fleet { down: BTreeSet::new(), pods: [(PodId(0), (Mono(1), [(TicketId(900), 9_999.0)].into()))].into() };
    let mut held = Held::default();
    for (number, class) in [(1, Class::Standard), (2, Class::Interactive), (3, Class::Batch)] {
        for effect in queue.on(Mono(5), Event::Asks(wish(number, class, Mono(5))), &fleet) {
            if let Effect::Holds(_, now) = effect {
                held = now;
            }
        }
    }
    assert_eq!(held, Held { all_us: 200_000, first_us: 100_000 }, "and short ones of the last class let all pass");
}

#[test]
fn one_grant_of_great_cost_does_not_put_a_class_before_the_first_for_long() {
    let here = |number, now| Wish { is_restricted: true, ..large(number, 0, now) };
    let mut world = World::new(queue(2));
    (0..30).for_each(|number| world.ask(here(number, world.now)));
    assert_eq!(world.order(), [0]);
    // Goes at once to the idle pod, and every class has a floor of what it takes.
    world.ask(Wish { cost_us: 60_000_000, places: vec![spot(1, 1_900_000, 0)], ..wish(30, Class::Batch, world.now) });
    assert_eq!(world.order(), [0, 30]);
    (50..60).for_each(|number| world.ask(Wish { class: Class::Interactive, ..here(number, world.now) }));
    for _ in 0..11 {
        let (last, _) = *world.granted.iter().rev().find(|(_, pod)| *pod == PodId(0)).unwrap();
        world.end(last);
        world.pass(Duration::from_millis(200));
    }
    let served = world.order().split_off(2);
    let first = served.iter().filter(|number| **number >= 50).count();
    assert!(served.len() == 11 && first >= 9, "{served:?}");
}

#[test]
fn a_long_prefill_does_not_pass_one_of_the_first_class_that_waits_for_the_queue() {
    let mut world = World::new(queue(1));
    (0..6).for_each(|number| world.ask(wish(number, Class::Standard, world.now)));
    world.ask(wish(20, Class::Interactive, world.now));
    let long = Wish { places: vec![spot(0, 3_000_000, 0)], cold_us: 3_000_000, ..wish(21, Class::Batch, world.now) };
    world.ask(long);
    assert_eq!((world.order().len(), world.queue.waiting()), (6, 2));
    world.pass(Duration::from_secs(4));
    assert_eq!(world.order()[6..], [20, 21]);
}

#[test]
fn a_tenant_that_is_served_in_time_is_served_in_order_however_late_others_are() {
    let mut world = World::new(queue(1));
    let of = |number: u64, tenant: &str, due_s: u64, cost_us, now: Mono| Wish {
        tenant: tenant.into(),
        kv: Tokens(9_900),
        deadline: now.after(Duration::from_secs(due_s)),
        cost_us,
        ..wish(number, Class::Standard, now)
    };
    (0..60).for_each(|number| world.ask(of(number, "flood", 1, 200_000 - number, world.now)));
    world.pass(Duration::from_secs(5));
    (0..30).for_each(|_| world.end(world.granted.last().unwrap().0));
    let flood = world.order().split_off(25);
    assert!(flood.is_sorted_by(|a, b| a > b), "the cheapest of who is late go first: {flood:?}");
    world.ask(of(100, "other", 50, 1_000_000, world.now));
    (101..110).for_each(|number| world.ask(of(number, "other", 60, 50_000, world.now)));
    (0..3).for_each(|_| world.end(world.granted.last().unwrap().0));
    let first = world.order().into_iter().find(|number| *number >= 100);
    assert_eq!(first, Some(100), "{:?}", world.order());
}

#[test]
fn a_light_tenant_does_not_wait_for_a_pod_that_a_flood_waits_for() {
    let mut world = World::new(queue(2));
    let of = |number: u64, tenant: &str, now| Wish {
        tenant: tenant.into(),
        kv: Tokens(4_400),
        places: vec![spot(0, 100_000, 0), spot(1, 200_000, 100_000)],
        ..wish(number, Class::Standard, now)
    };
    (0..100).for_each(|number| world.ask(of(number, "flood", world.now)));
    world.ask(of(200, "other", world.now));
    world.pass(Duration::from_millis(600));
    // One more runs there, so it takes nobody who would rather wait.
    let there = world.running.iter().find(|(_, pod)| **pod == PodId(1)).map(|(ticket, _)| *ticket);
    world.end(there.unwrap());
    assert!(world.order().contains(&200), "{:?}", world.order());
}

#[test]
fn where_first_tokens_come_late_fewer_are_let_wait() {
    let promised = |number: u64, now: Mono| Wish {
        is_promised: true,
        deadline: now.after(Duration::from_secs(8)),
        ..large(number, 0, now)
    };
    let admitted = |is_late: bool| {
        let mut world = World::new(queue(1));
        world.ask(promised(0, world.now));
        for number in 1..40 {
            world.ask(promised(number, world.now));
            world.end(TicketId(number - 1));
            assert_eq!(world.order().last(), Some(&number));
            let parts = if is_late { [9_000, 0] } else { [0, 9_000] };
            world.pass(Duration::from_millis(parts[0]));
            world.on(Event::Committed(TicketId(number)));
            world.pass(Duration::from_millis(parts[1]));
        }
        (100..400).for_each(|number| world.ask(promised(number, world.now)));
        300 - world.refused.len()
    };
    let (in_time, late) = (admitted(false), admitted(true));
    assert!(in_time > 10 && (late as f64) < 0.6 * in_time as f64, "{in_time} {late}");
}

#[test]
fn what_goes_before_one_is_summed_exactly_near_the_ends_and_nearly_between() {
    let mut line = Line::default();
    let mut rng = Rng::new(5);
    let mut all = Vec::new();
    for number in 1..=4_000 {
        let wish = Wish { cost_us: 1 + rng.below(1_000), ..wish(number, Class::Standard, Mono(1)) };
        let due = Mono(rng.below(1_000_000));
        all.push((due, number, wish.cost_us));
        line.push(Waiting {
            number,
            since: Mono(1),
            due,
            skips: 0,
            opens_us: 0,
            held: None,
            shut: None,
            patience_us: 0,
            mark: 0,
            wish,
        });
    }
    for (place, due) in [0, 20_000, 250_000, 500_000, 900_000, 980_000, 1_000_000].into_iter().enumerate() {
        let exact: u64 = all.iter().filter(|(other, ..)| other.0 <= due).map(|(_, _, cost_us)| cost_us).sum();
        let found = line.ahead_us(&wish(9_000, Class::Standard, Mono(1)), Mono(due), u64::MAX);
        let error = found.abs_diff(exact) as f64 / line.cost_us() as f64;
        assert!(error <= if (2..5).contains(&place) { 0.03 } else { 0.0 }, "{due}: {found} {exact}");
    }
}
