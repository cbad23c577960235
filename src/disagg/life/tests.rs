//! The machine in a small world with two prefill pods and two decode pods, in which blocks are let go when their lease ends and
//! a decoder that reads them later gets other text. Everything that can go wrong is drawn, or tried out in full.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::time::Duration;

use super::*;
use crate::base::Rng;

/// What the pods really keep.
const LEASE: Duration = Duration::from_secs(12);
const TIMING: Timing = Timing { wire_up: Duration::ZERO, ingest: Duration::from_secs(1) };

/// Where the decisions of the world come from.
trait Fate {
    /// One of `count`, from 0.
    fn draw(&mut self, count: u64) -> u64;
}

impl Fate for Rng {
    fn draw(&mut self, count: u64) -> u64 {
        self.below(count)
    }
}

/// A path through all decisions, counted up like a number whose digits have different bases.
#[derive(Default)]
struct Path {
    digits: Vec<(u64, u64)>,
    at: usize,
}

impl Fate for Path {
    fn draw(&mut self, count: u64) -> u64 {
        if self.at == self.digits.len() {
            self.digits.push((0, count));
        }
        let digit = self.digits.get(self.at).map_or(0, |digit| digit.0);
        self.at += 1;
        digit
    }
}

impl Path {
    /// The next path; false if this was the last.
    fn advance(&mut self) -> bool {
        self.at = 0;
        while let Some((digit, count)) = self.digits.pop() {
            if digit + 1 < count {
                self.digits.push((digit + 1, count));
                return true;
            }
        }
        false
    }
}

/// What the gate is made to believe.
#[derive(Clone, Copy)]
struct Belief {
    lease: Duration,
    checks_token: bool,
    /// What the sentinel cannot see, once in so many; 0: it sees all.
    blind: u64,
}

const HONEST: Belief = Belief { lease: LEASE, checks_token: true, blind: 0 };

#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    is_wrong_text: bool,
    sends_of_lease: u8,
    leases: u8,
    commits: u8,
    alone: u8,
    ends: u8,
    sent_late: bool,
}

/// Lets one request live. Times are drawn from a few instants around those that matter.
fn live(fate: &mut impl Fate, belief: Belief, rules: Rules) -> (Seen, Life) {
    let (mut life, mut act) = Life::begin(rules);
    let mut now = Mono(1_000_000_000);
    let mut seen = Seen::default();
    // True end of the lease that is out, and whether it was sent.
    let mut out: Option<(Mono, bool)> = None;
    for _ in 0..40 {
        let event = match act {
            Act::Finish(_) | Act::Alone => {
                seen.ends += 1;
                seen.alone += u8::from(act == Act::Alone);
                return (seen, life);
            }
            Act::Plan(_) => match fate.draw(3) {
                0 => Event::NotPlanned,
                1 => Event::Left,
                _ => Event::Planned,
            },
            Act::Prefill => match fate.draw(6) {
                0 => Event::PrefillFailed(PrefillFault::Refused),
                1 => Event::PrefillFailed(PrefillFault::Lost),
                2 => Event::PrefillFailed(PrefillFault::Judged),
                3 => Event::PrefillFailed(PrefillFault::Late),
                4 => Event::Left,
                _ => {
                    // The gate sees the answer when it gets to it, and counts from before.
                    let begun = now;
                    out = Some((begun.after(LEASE), false));
                    seen.leases += 1;
                    now = now.after(Duration::from_secs([0, 5, 13][fate.draw(3) as usize]));
                    Event::PrefillDone(Lease::new(begun, belief.lease))
                }
            },
            Act::Decode => match fate.draw(4) {
                0 => Event::DecodeFailed(DecodeFault::Unreached),
                1 => Event::Left,
                delay => {
                    now = now.after(Duration::from_secs(if delay == 2 { 0 } else { 6 }));
                    Event::Sending(TIMING)
                }
            },
            Act::Send => {
                let (ends, is_sent) = out.unwrap();
                seen.sends_of_lease = seen.sends_of_lease.max(u8::from(is_sent) + 1);
                seen.sent_late |= now.after(Duration::from_secs(2)) > ends;
                out = Some((ends, true));
                read(fate, belief, &mut now, ends, &mut seen)
            }
            Act::Commit => {
                seen.commits += 1;
                assert!(!(seen.is_wrong_text && belief.checks_token && belief.blind == 0), "wrong text was committed");
                if fate.draw(2) == 0 { Event::Left } else { Event::Ended }
            }
        };
        act = life.on(event, now);
    }
    panic!("it never ended");
}

/// The decoder reads, at once or after a stall, up to past the end of the lease; or it fails.
fn read(fate: &mut impl Fate, belief: Belief, now: &mut Mono, ends: Mono, seen: &mut Seen) -> Event {
    match fate.draw(6) {
        0 => Event::DecodeFailed(DecodeFault::Broken),
        1 => Event::DecodeFailed(DecodeFault::Late),
        2 => Event::Left,
        stall => {
            *now = now.after(Duration::from_secs([0, 5, 14][stall as usize - 3]));
            let is_wrong = *now > ends && fate.draw(2) == 1;
            let is_blind = belief.blind > 0 && fate.draw(belief.blind) == 0;
            seen.is_wrong_text = is_wrong;
            let may_see = belief.checks_token && !is_blind;
            Event::First(match (is_wrong, may_see) {
                (true, true) => Check::Differs,
                (false, true) => Check::Agrees,
                (_, false) => Check::Open,
            })
        }
    }
}

fn assert_sound(seen: &Seen, life: &Life, belief: Belief, rules: Rules) {
    assert_eq!(seen.ends, 1);
    assert!(seen.commits <= 1 && seen.commits + seen.alone <= 1, "{seen:?}");
    assert!(seen.sends_of_lease <= 1, "a lease was sent twice");
    assert!(life.prefills() <= rules.prefills_max && life.decodes() <= rules.decodes_max, "{life:?}");
    assert!(life.lease.is_none() && life.dropped() <= seen.leases, "every lease is sent or given up once");
    if belief.lease == LEASE {
        assert!(!seen.sent_late, "a lease was sent when it was over");
    }
}

/// Runs every path, at most `most`; returns how many there were and what was seen worst.
fn explore(belief: Belief, rules: Rules, most: u64) -> (u64, bool, bool) {
    let (mut path, mut count) = (Path::default(), 0);
    let (mut is_late, mut is_wrong) = (false, false);
    loop {
        let (seen, life) = live(&mut path, belief, rules);
        assert_sound(&seen, &life, belief, rules);
        is_late |= seen.sent_late;
        is_wrong |= seen.is_wrong_text && seen.commits > 0;
        count += 1;
        if !path.advance() || count >= most {
            return (count, is_late, is_wrong);
        }
    }
}

#[test]
fn every_order_of_events_is_sound() {
    for falls_back in [true, false] {
        let rules = Rules { falls_back, ..Rules::default() };
        let (count, is_late, is_wrong) = explore(HONEST, rules, u64::MAX);
        assert!(count > 500, "{count} orders");
        assert!(!is_late && !is_wrong);
    }
}

#[test]
fn a_million_drawn_orders_are_sound() {
    let seed = 0x71DE_6A7E;
    let mut rng = Rng::new(seed);
    for round in 0..1_000_000_u32 {
        let rules = Rules {
            falls_back: rng.below(2) == 0,
            prefills_max: 1 + rng.below(2) as u8,
            decodes_max: 1 + rng.below(2) as u8,
        };
        let (seen, life) = live(&mut rng, HONEST, rules);
        assert_sound(&seen, &life, HONEST, rules);
        assert!(seen.ends == 1, "seed {seed}, round {round}");
    }
}

#[test]
fn without_the_check_of_the_lease_or_of_the_token_wrong_text_gets_through() {
    // A gate that believes in far longer leases than there are sends when they are over.
    let careless = Belief { lease: Duration::from_hours(1), ..HONEST };
    assert!(explore(careless, Rules::default(), u64::MAX).1, "nothing noticed that the lease is not looked at");
    // And one that does not look at the token lets through what a decoder that stalled has read.
    let blind = Belief { checks_token: false, ..HONEST };
    assert!(explore(blind, Rules::default(), u64::MAX).2, "nothing noticed that the token is not looked at");
}

#[test]
fn a_decoder_that_was_never_reached_leaves_the_lease_to_another() {
    let at = |seconds: u64| Mono(1_000_000_000 + seconds * 1_000_000);
    let (mut life, act) = Life::begin(Rules::default());
    assert_eq!(act, Act::Prefill);
    assert_eq!(life.on(Event::PrefillDone(Lease::new(at(0), LEASE)), at(1)), Act::Decode);
    assert_eq!(life.on(Event::DecodeFailed(DecodeFault::Unreached), at(2)), Act::Plan(Want::Decoder));
    assert_eq!(life.on(Event::Planned, at(2)), Act::Decode);
    assert_eq!(life.on(Event::Sending(TIMING), at(3)), Act::Send);
    assert_eq!(life.on(Event::First(Check::Open), at(4)), Act::Commit);
    assert_eq!(life.on(Event::Ended, at(9)), Act::Finish(Outcome::Answered));
    assert_eq!((life.prefills(), life.decodes(), life.dropped()), (1, 1, 0));
}

#[test]
fn a_client_that_leaves_after_the_prefill_leaves_an_orphan() {
    let (mut life, _) = Life::begin(Rules::default());
    life.on(Event::PrefillDone(Lease::new(Mono(9), LEASE)), Mono(10));
    assert_eq!(life.on(Event::Left, Mono(11)), Act::Finish(Outcome::Left { orphan: true }));
    let (mut life, _) = Life::begin(Rules::default());
    assert_eq!(life.on(Event::Left, Mono(11)), Act::Finish(Outcome::Left { orphan: false }));
}
