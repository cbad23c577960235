//! Histories of one pod and the standing they must lead to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use crate::base::Rng;

const BUSY: Outcome = Outcome::Busy { retry_after: None };

fn at(ms: u64) -> Mono {
    Mono(ms * 1_000)
}

/// Feeds (ms, outcome) and compares the standing at `look_ms`.
fn check(history: &[(u64, Outcome)], look_ms: u64, expected: Standing) {
    let mut health = Health::default();
    for (ms, outcome) in history {
        health.on(at(*ms), *outcome);
    }
    assert_eq!(health.standing(at(look_ms)), expected, "{history:?} at {look_ms} ms");
}

#[test]
fn three_refusals_or_five_broken_answers_take_a_pod_out() {
    use Outcome::{Broken, ConnectFailed, Good, ServerError};
    check(&[(0, ConnectFailed), (1, ConnectFailed)], 2, Standing::Ramp(1.0 / 3.0));
    check(&[(0, ConnectFailed), (1, ConnectFailed), (2, ConnectFailed)], 2, Standing::Ejected(at(5_002)));
    check(&[(0, ConnectFailed), (1, Good), (2, ConnectFailed), (3, ConnectFailed)], 4, Standing::Ramp(1.0 / 3.0));
    check(&[(0, Broken), (1, ServerError), (2, Broken), (3, ServerError)], 4, Standing::Ramp(0.2));
    check(
        &[(0, Broken), (1, ServerError), (2, Broken), (3, ServerError), (9, Broken)],
        9,
        Standing::Ejected(at(5_009)),
    );
    check(&[(0, Broken), (1, Good)], 2, Standing::Ready);
    check(&[(0, Broken)], 10_000, Standing::Ready);
    check(&[(0, BUSY); 9], 2_000, Standing::Ready);
}

#[test]
fn a_poor_success_ratio_takes_a_pod_out_only_with_enough_samples() {
    let history = |good: usize, bad: usize| {
        let mut health = Health::default();
        // Mixed so that never five bad ones follow each other.
        let (mut left, mut was_out) = ((good, bad), false);
        while left != (0, 0) {
            let is_good = left.0 * bad >= left.1 * good.max(1) && left.0 > 0 || left.1 == 0;
            health.on(at(1), if is_good { Outcome::Good } else { Outcome::ServerError });
            was_out |= matches!(health.standing(at(1)), Standing::Ejected(_));
            if is_good { left.0 -= 1 } else { left.1 -= 1 }
        }
        was_out
    };
    assert!(!history(10, 9), "19 samples are too few");
    assert!(history(12, 12), "half of 24 is poor");
    assert!(!history(85, 15), "85 % is good enough");
    assert!(history(70, 30), "70 % is not");
}

#[test]
fn one_probe_then_a_ramp_then_full() {
    let mut health = Health::default();
    for _ in 0..3 {
        health.on(at(0), Outcome::ConnectFailed);
    }
    assert_eq!(health.standing(at(4_999)), Standing::Ejected(at(5_000)));
    assert_eq!(health.standing(at(5_000)), Standing::Probe);
    let probe = health.begin(at(5_000));
    assert!(probe.is_probe());
    assert!(!health.begin(at(5_000)).is_probe(), "the probe is taken");
    assert_eq!(health.standing(at(5_000)), Standing::Ejected(at(6_000)));
    health.abandon(probe);
    let probe = health.begin(at(5_500));
    assert!(probe.is_probe(), "an abandoned probe is free again");
    health.answered(at(6_000), probe);
    assert_eq!(health.standing(at(6_000)), Standing::Ramp(1.0 / 32.0));
    assert_eq!(health.standing(at(21_000)), Standing::Ramp(0.5));
    assert_eq!(health.standing(at(36_000)), Standing::Ready);
    for _ in 0..16 {
        health.on(at(6_000), Outcome::Good);
    }
    assert_eq!(health.standing(at(6_000)), Standing::Ramp(17.0 / 32.0));
}

#[test]
fn a_failed_probe_doubles_the_time_out_and_busy_fails_it() {
    let mut health = Health::default();
    for _ in 0..5 {
        health.on(at(0), Outcome::Broken);
    }
    let mut out_until = 5_000;
    for (outcome, wait) in [(BUSY, 10_000), (Outcome::Broken, 20_000), (Outcome::ConnectFailed, 40_000), (BUSY, 60_000)]
    {
        health.on(at(out_until), outcome);
        assert_eq!(health.standing(at(out_until)), Standing::Ejected(at(out_until + wait)), "{outcome:?}");
        out_until += wait;
    }
    health.on(at(out_until), Outcome::Good);
    for _ in 0..3 {
        health.on(at(out_until), Outcome::ConnectFailed);
    }
    assert_eq!(health.standing(at(out_until)), Standing::Ejected(at(out_until + 60_000)), "no reset before full");
}

#[test]
fn one_death_counts_once_and_old_news_not_at_all() {
    let mut health = Health::default();
    let streams: Vec<Ticket> = (0..100).map(|_| health.begin(at(0))).collect();
    for ticket in &streams[..99] {
        health.end(at(10), *ticket, Outcome::Broken);
    }
    assert_eq!(health.standing(at(10)), Standing::Ejected(at(5_010)), "first ejection only");
    health.end(at(20), streams[99], Outcome::Good);
    assert_eq!(health.standing(at(20)), Standing::Ejected(at(5_010)), "a stream from before proves nothing");
    let forced = health.begin(at(100));
    assert!(!forced.is_probe());
    health.end(at(200), forced, Outcome::Good);
    assert_eq!(health.standing(at(200)), Standing::Ramp(1.0 / 32.0), "traffic that began since proves it is back");
}

#[test]
fn retry_after_is_believed_up_to_its_cap() {
    for (asked_s, expected_ms) in [(Some(3), 3_000), (Some(900), 30_000), (None, 1_000), (Some(0), 0)] {
        let mut health = Health::default();
        health.on(at(50), Outcome::Busy { retry_after: asked_s.map(Duration::from_secs) });
        let until = health.busy_until(at(50));
        assert_eq!(until, (expected_ms > 0).then(|| at(50 + expected_ms)), "{asked_s:?}");
        assert_eq!(health.busy_until(at(50 + expected_ms)), None);
        assert_eq!(health.standing(at(50)), Standing::Ready, "busy is not ill");
    }
}

#[test]
fn a_restart_ends_an_ejection_in_a_probe_and_else_ramps() {
    let mut health = Health::default();
    let before = health.begin(at(0));
    health.restarted(at(0));
    assert_eq!(health.standing(at(1_000)), Standing::Ramp(1.0 / 32.0), "the ramp starts at the first look");
    assert_eq!(health.standing(at(16_000)), Standing::Ramp(0.5));
    for _ in 0..3 {
        health.on(at(16_000), Outcome::ConnectFailed);
    }
    health.restarted(at(17_000));
    assert_eq!(health.standing(at(17_000)), Standing::Probe);
    for _ in 0..9 {
        health.end(at(17_000), before, Outcome::Broken);
    }
    assert_eq!(health.standing(at(17_000)), Standing::Probe, "news of the old process");
}

/// A pod that answers at once and badly is the least loaded one of all, so suppose a picker that sends it every request it
/// may: over ten minutes at 100 requests per second that must stay a handful (of 60,000; its fair share of four is 15,000).
#[test]
fn a_black_hole_draws_no_load() {
    for (outcome, attempts_max) in
        [(Outcome::ConnectFailed, 16), (Outcome::Broken, 18), (Outcome::ServerError, 18), (BUSY, 700)]
    {
        let (mut health, mut attempts) = (Health::default(), 0);
        for request in 0..60_000_u64 {
            let now = at(request * 10);
            if matches!(health.standing(now), Standing::Ejected(_)) || health.busy_until(now).is_some() {
                continue;
            }
            health.on(now, outcome);
            attempts += 1;
        }
        assert!((1..=attempts_max).contains(&attempts), "{outcome:?}: {attempts}");
    }
}

#[test]
fn any_history_keeps_the_rules() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let (mut health, mut now, mut open) = (Health::default(), Mono::ZERO, Vec::new());
        for _ in 0..500 {
            now = now.after(Duration::from_millis(rng.below(900)));
            if rng.below(2) == 0 {
                let was = health.standing(now);
                let ticket = health.begin(now);
                assert_eq!(ticket.is_probe(), was == Standing::Probe, "seed {seed}: a probe only when one is due");
                open.push(ticket);
            } else if !open.is_empty() {
                let ticket = open.swap_remove(rng.below(open.len() as u64) as usize);
                let outcomes = [Outcome::Good, Outcome::Broken, Outcome::ConnectFailed, Outcome::ServerError, BUSY];
                match outcomes.get(rng.below(7) as usize) {
                    Some(outcome) => health.end(now, ticket, *outcome),
                    None => health.abandon(ticket),
                }
            }
            let probes = open.iter().filter(|ticket| ticket.probe && ticket.epoch == health.epoch).count();
            assert!(probes <= 1, "seed {seed}: {probes} probes at once");
            match health.standing(now) {
                Standing::Ramp(share) => assert!(share > 0.0 && share < 1.0, "seed {seed}: share {share}"),
                Standing::Ejected(until) => {
                    assert!(until > now && until <= now.after(Duration::from_mins(1)), "seed {seed}");
                }
                Standing::Ready | Standing::Probe => {}
            }
            let quiet = health.standing(now) == Standing::Ready && health.busy_until(now).is_none();
            assert_eq!(!health.seen.is_uneasy.load(Relaxed), quiet, "seed {seed}: the flag tells the same");
        }
    }
}
