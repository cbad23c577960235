//! A made-up engine whose constants are known, seen through samples.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use crate::base::{Mono, PodId, Rng};
use crate::pods::{PodSpec, Reservation, Role, StepTime, Work};

const TRUE: StepTime = StepTime { a: 0.006, b: 30e-6, c: 30e-6, d: 45e-9, e: 3.3e-10 };

fn pod(id: u32) -> Arc<Pod> {
    let addr = ([127, 0, 0, 1], 8_000).into();
    let spec = PodSpec {
        addr,
        authority: "a".into(),
        tls: None,
        rank: None,
        role: Role::Both,
        labels: std::collections::BTreeMap::new(),
    };
    Arc::new(Pod::new(PodId(id), spec))
}

fn any_sample(step: &StepTime, rng: &mut Rng) -> Sample {
    let noise = 0.95 + 0.1 * rng.unit();
    let batch = Batch { sequences: (1.0 + rng.unit() * 60.0).floor(), context: rng.unit() * 300_000.0 };
    let is_clean = rng.below(4) > 0;
    let mixed = if is_clean { 1.0 } else { 3.0 };
    if rng.below(2) == 0 {
        let seconds = step.decode(batch.sequences, batch.context) * noise * mixed;
        return Sample::Gap { seconds, batch, is_clean };
    }
    let octave = 4 + rng.below(13);
    let (uncached, hit) = (1 + rng.below(1 << octave), rng.below(2) * rng.below(40_000));
    let sample = Sample::First { seconds: 0.0, uncached, hit, batch, wait_s: 0.0, is_clean };
    let seconds = meter::predicted(&sample, step, 0.002) * noise * mixed;
    Sample::First { seconds, uncached, hit, batch, wait_s: 0.0, is_clean }
}

#[test]
fn constants_are_learnt_within_200_requests_and_predict_well() {
    let (latency, pod, mut rng) = (Latency::default(), pod(0), Rng::new(5));
    for _ in 0..400 {
        assert!(latency.observe(&pod, &any_sample(&TRUE, &mut rng)));
    }
    let mut errors = Vec::new();
    for _ in 0..500 {
        let sample = any_sample(&TRUE, &mut rng);
        let (Sample::First { seconds, is_clean, .. } | Sample::Gap { seconds, is_clean, .. }) = sample;
        if is_clean {
            let report = latency.reports()[0].1;
            errors.push((meter::predicted(&sample, &report.step, report.overhead_s) / seconds - 1.0).abs());
        }
    }
    errors.sort_by(f64::total_cmp);
    let (median, p90) = (errors[errors.len() / 2], errors[errors.len() * 9 / 10]);
    assert!(median < 0.06 && p90 < 0.2, "median {median}, p90 {p90}: {:?}", latency.reports());
    latency.publish(&pod, &variant_of(&pod));
    let step = pod.load.step.get();
    for ((name, found), (_, is)) in step.terms().into_iter().zip(TRUE.terms()) {
        // A sequence and a pair of tokens are hardly felt here: they may stay near the prior.
        let bound = if "abd".contains(name) { 0.4 } else { 10.0 };
        assert!((found / is - 1.0).abs() < bound, "{name}: {found} is {is}");
    }
    assert!(latency.reports()[0].1.errors.iter().all(Option::is_some));
}

#[test]
fn a_slow_pod_is_told_from_its_variant() {
    let (latency, pods, mut rng) = (Latency::default(), [pod(0), pod(1), pod(2), pod(3)], Rng::new(9));
    for round in 0..8_000 {
        let pod = &pods[round % 4];
        let step = if round % 4 == 3 { TRUE.scaled(2.0) } else { TRUE };
        latency.observe(pod, &any_sample(&step, &mut rng));
    }
    for pod in &pods {
        latency.publish(pod, &variant_of(pod));
    }
    let [fast, slow] = [0, 3].map(|at: usize| pods[at].load.step.get().decode(20.0, 100_000.0));
    assert!((1.6..2.4).contains(&(slow / fast)), "{slow} against {fast}");
}

#[test]
fn a_new_pod_gets_what_its_variant_knows() {
    let (latency, known) = (Latency::default(), pod(0));
    let mut rng = Rng::new(2);
    (0..200).for_each(|_| assert!(latency.observe(&known, &any_sample(&TRUE, &mut rng))));
    let table = crate::pods::Table::default();
    let addr = ([127, 0, 0, 1], 8_001).into();
    table.set(vec![PodSpec { addr, ..known.spec.clone() }]);
    let fresh = Arc::clone(&table.fleet().pods[0]);
    assert_eq!(fresh.load.step.get(), pods_prior());
    latency.refresh(&table.fleet());
    assert!((fresh.load.step.get().a / TRUE.a - 1.0).abs() < 0.3);
}

fn pods_prior() -> StepTime {
    crate::pods::StepCell::default().get()
}

#[test]
fn a_meter_makes_clean_samples_only_when_nothing_interferes() {
    let run_told = |other_at_ms: Option<u64>, usage: Option<u64>, is_plain: bool, cached: Option<(Tokens, Tokens)>| {
        let pod = pod(0);
        let mut work = Work::new(Mono(1_000_000), Tokens(500), Tokens(400));
        work.is_stream = true;
        let mut meter = Meter::new(&pod, &work, is_plain);
        let mut booking = Reservation::dispatch(Arc::clone(&pod), &work);
        let mut other = None;
        for ms in 0..400 {
            let now = Mono(1_000_000 + ms * 1_000);
            if other_at_ms == Some(ms) {
                other = Some(Reservation::dispatch(Arc::clone(&pod), &Work::new(now, Tokens(9), Tokens(9))));
            }
            if ms == 50 {
                booking.first_token(now);
                meter.first_token(now, &pod, 1);
            } else if ms > 50 && ms % 10 == 0 {
                meter.events(now, &pod, 1);
            }
        }
        drop(other);
        meter.samples(&pod, usage.map(Tokens), cached).collect::<Vec<_>>()
    };
    let run = |other_at_ms, usage, is_plain| run_told(other_at_ms, usage, is_plain, None);
    let alone = run(None, Some(70), true);
    let Sample::First { seconds, uncached: 400, hit: 100, is_clean: true, .. } = alone[0] else { panic!("{alone:?}") };
    assert!((seconds - 0.05).abs() < 1e-9);
    let told = run_told(None, Some(70), true, Some((Tokens(510), Tokens(16))));
    assert!(matches!(told[0], Sample::First { uncached: 494, hit: 16, is_clean: true, .. }), "{told:?}");
    let Sample::Gap { seconds, is_clean: true, .. } = alone[1] else { panic!("{alone:?}") };
    assert!((seconds - 0.005).abs() < 1e-3, "35 events are 70 tokens: {seconds}");
    assert!(matches!(run(Some(20), Some(70), true)[0], Sample::First { is_clean: false, .. }));
    assert!(matches!(
        run(Some(100), Some(70), true)[..],
        [Sample::First { is_clean: true, .. }, Sample::Gap { is_clean: false, .. }, ..]
    ));
    assert_eq!(run(None, None, true).len(), 1, "without usage nobody knows the tokens");
    assert!(matches!(run(None, Some(70), false)[0], Sample::Gap { .. }), "a first use measures loading");
}

#[test]
fn answers_have_a_mean_per_model() {
    let (latency, pod) = (Latency::default(), pod(0));
    let meter = Meter::new(&pod, &Work::new(Mono(1), Tokens(1), Tokens(1)), true);
    assert_eq!(latency.expected("m"), None);
    for tokens in [100, 300] {
        latency.learn(&pod, &meter, "m", Some(Tokens(tokens)), None);
    }
    assert_eq!(latency.expected("m").map(|mean| mean as u64), Some(200));
}

#[test]
fn nothing_is_learnt_while_others_use_the_pod() {
    let learnt = |other_at_ms: Option<u64>| {
        let (latency, pod) = (Latency::default(), pod(0));
        let work = Work::new(Mono(10_000_000), Tokens(500), Tokens(400));
        let mut meter = Meter::new(&pod, &work, true);
        let mut booking = Reservation::dispatch(Arc::clone(&pod), &work);
        booking.first_token(Mono(10_050_000));
        meter.first_token(Mono(10_050_000), &pod, 1);
        if let Some(ms) = other_at_ms {
            let (taken, own) = (Mono(ms * 1_000), pod.load.now());
            pod.read(crate::pods::Reading { taken, own, running: Some(own.requests + 1), ..Default::default() });
        }
        latency.learn(&pod, &meter, "m", Some(Tokens(9)), None);
        latency.reports().first().map_or([0; 2], |(_, report)| report.seen)
    };
    assert_eq!([learnt(None), learnt(Some(8_000))], [[1, 0]; 2], "long before");
    assert_eq!([learnt(Some(9_500)), learnt(Some(10_200))], [[0, 0]; 2], "just before, or meanwhile");
}
