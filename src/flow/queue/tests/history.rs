//! Random histories of requests, pods, clients that leave and readings.
use super::*;

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
        let places =
            (0..self.rng.below(4)).map(|at| spot(self.pod().0, warm_us, at * self.rng.below(2_000_000))).collect();
        let (to, partner, tried) = (self.pod(), self.pod(), self.pod());
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
            bound: (rng.below(6) == 0).then(|| Bound { pod: to, partner: (rng.below(2) == 0).then_some(partner) }),
            is_restricted: rng.below(8) == 0,
            tried: (rng.below(8) == 0).then_some(tried).into_iter().collect(),
            deadline: now.after(Duration::from_millis(50 + rng.below(9_000))),
            is_promised: rng.below(2) == 0,
            ..wish(self.next, class, now)
        };
        let wish = match wish.bound {
            Some(bound) => Wish { places: vec![spot(bound.pod.0, warm_us, 0)], ..wish },
            None => wish,
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
        self.world.on(Event::Read(
            pod,
            EngineState { running, waiting, preemptions: 0, generated: None, taken: self.world.now },
        ));
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
        assert!(world.held.values().all(|held_us| *held_us == 0), "seed {seed}: {:?}", world.held);
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
    /// `PROPTEST_CASES=16700` makes five million steps, in about a minute.
    #[test]
    fn random_histories_keep_every_promise_and_repeat(seed: u64, steps in 1_u32..600) {
        let story = history(seed, steps);
        if seed % 4 == 0 {
            assert_eq!(story, history(seed, steps));
        }
    }
}
