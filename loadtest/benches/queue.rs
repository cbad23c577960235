//! Measures the queue: what it costs when nobody waits, and when a hundred thousand do.
//!
//! `cargo bench --bench queue` prints, on one thread: an admission with its end where there is room (asks, booked, first token, over), and
//! asks with a grant each while 100,000 requests of 1,000 tenants in three classes wait.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hint::black_box;
use std::time::{Duration, Instant};

use tidegate::base::{Mono, PodId, Rng, Tokens};
use tidegate::flow::queue::{Effect, Event};
use tidegate::flow::{Class, ClassSettings, Classes, Pool, Queue, QueueSettings, Room, Rooms, Spot, TicketId, Wish};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PODS: u32 = 100;
/// Requests of each part.
const COUNT: u64 = 100_000;

/// Requests in flight by pod; a pod takes ten.
struct Fleet(RefCell<HashMap<PodId, u32>>);

impl Rooms for Fleet {
    fn room(&self, pod: PodId, _: Mono) -> Option<Room> {
        let requests = self.0.borrow().get(&pod).copied().unwrap_or(0);
        Some(Room { requests, occupied: f64::from(requests) * 1_000.0, capacity: 10_600.0, ..Room::IDLE })
    }
}

impl Fleet {
    fn add(&self, pod: PodId, change: i64) {
        let mut all = self.0.borrow_mut();
        let count = all.entry(pod).or_default();
        *count = count.saturating_add_signed(change as i32);
    }
}

fn wish(number: u64, rng: &mut Rng, now: Mono) -> Wish {
    let pod = PodId((number % u64::from(PODS)) as u32);
    Wish {
        ticket: TicketId(number),
        pool: Pool { model: "m".into(), is_prefill: false },
        class: Class::ALL.get(rng.below(3) as usize).copied().unwrap_or_default(),
        tenant: format!("tenant-{}", rng.below(1_000)).into(),
        weight: 1.0,
        cost_us: 50_000 + rng.below(100_000),
        kv: Tokens(1_000),
        places: vec![Spot { pod, prefill_us: 50_000, worse_us: 0 }],
        cold_us: 50_000,
        bound: None,
        is_restricted: false,
        tried: Vec::new(),
        body_bytes: 1_000,
        arrived: now,
        deadline: now.after(Duration::from_millis(500 + rng.below(20_000))),
        is_promised: false,
        is_again: false,
    }
}

/// A queue, its pods, and who runs there.
struct World {
    queue: Queue,
    fleet: Fleet,
    running: VecDeque<(TicketId, PodId)>,
}

impl World {
    fn new() -> Self {
        let all = || ClassSettings { requests_max: Some(1 << 20), ..ClassSettings::default() };
        let classes = Classes { interactive: all(), standard: all(), batch: all() };
        let (mut queue, fleet) = (Queue::new(QueueSettings::default(), classes), Fleet(RefCell::default()));
        let pool = Pool { model: "m".into(), is_prefill: false };
        queue.on(Mono(1), Event::Pods(pool, (0..PODS).map(PodId).collect()), &fleet);
        Self { queue, fleet, running: VecDeque::new() }
    }

    fn on(&mut self, event: Event) -> Vec<Effect> {
        black_box(self.queue.on(Mono(3_000), event, &self.fleet))
    }

    /// Grants among the effects; their pods are booked.
    fn book(&mut self, effects: Vec<Effect>) -> usize {
        let before = self.running.len();
        for effect in effects {
            if let Effect::Grant(ticket, pod) = effect {
                self.fleet.add(pod, 1);
                self.running.push_back((ticket, pod));
                self.on(Event::Booked(ticket));
            }
        }
        self.running.len() - before
    }
}

fn wishes(from: u64, count: u64, rng: &mut Rng) -> Vec<Wish> {
    (from..from + count).map(|number| wish(number, rng, Mono(3_000))).collect()
}

fn where_there_is_room(rng: &mut Rng) {
    let (mut world, wishes) = (World::new(), wishes(0, COUNT, rng));
    let began = Instant::now();
    for wish in wishes {
        let ticket = wish.ticket;
        world.on(Event::Asks(wish));
        world.on(Event::Booked(ticket));
        world.on(Event::Committed(ticket));
        world.on(Event::Over(ticket, Some(60_000)));
    }
    println!("where there is room: {:.2} us for a whole request", micros(began.elapsed()));
}

fn where_many_wait(rng: &mut Rng) {
    let mut world = World::new();
    for wish in wishes(0, COUNT + 10 * u64::from(PODS), rng) {
        let effects = world.on(Event::Asks(wish));
        world.book(effects);
    }
    let (mut asks, mut ends, mut grants) = (Duration::ZERO, Duration::ZERO, 0);
    for wish in wishes(2 * COUNT, COUNT, rng) {
        let began = Instant::now();
        world.on(Event::Asks(wish));
        asks += began.elapsed();
        let Some((ticket, pod)) = world.running.pop_front() else { break };
        world.fleet.add(pod, -1);
        let began = Instant::now();
        let effects = world.on(Event::Over(ticket, Some(60_000)));
        ends += began.elapsed();
        grants += world.book(effects);
    }
    let waiting = world.queue.waiting();
    let (ask, end) = (micros(asks), micros(ends));
    println!(
        "at {waiting} waiting: {ask:.2} us to enqueue, {end:.2} us to end one and grant the next ({grants} grants)"
    );
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6 / COUNT as f64
}

fn main() {
    let mut rng = Rng::new(1);
    where_there_is_room(&mut rng);
    where_many_wait(&mut rng);
}
