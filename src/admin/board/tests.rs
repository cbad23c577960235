//! What viewers are sent: shapes, that only changes are told, and how much it is for a large fleet.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use std::collections::BTreeMap;

use serde_json::Value;

use super::*;
use crate::admin::answer::tests::state;
use crate::observe::Cause;
use crate::pods::{Pod, PodSpec, Reading, Role};

fn data(event: &str) -> Value {
    serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap()
}

fn pods(state: &AdminState, count: u16) -> Vec<Arc<Pod>> {
    let spec = |port| PodSpec {
        addr: ([10, 1, (port >> 8) as u8, port as u8], 8_000).into(),
        authority: format!("10.1.{}.{}:8000", port >> 8, port & 255).into(),
        tls: None,
        rank: None,
        role: Role::Both,
        labels: BTreeMap::new(),
    };
    state.table.set((0..count).map(spec).collect()).0
}

fn second(number: u64) -> Mono {
    Mono(number * 1_000_000)
}

/// Everything about a pod that moves, moved.
fn stir(pod: &Pod, number: u64) {
    let reading = Reading {
        taken: second(number),
        running: Some(100 + number as u32),
        waiting: Some(10),
        kv_used: Some(0.5 + number as f64 * 1e-3),
        prefix_hits: Some(number * 812),
        prefix_queries: Some(number * 1_000),
        ..Reading::default()
    };
    pod.reading.store(Arc::new(Some(reading)));
}

#[test]
fn a_tick_tells_what_changed_and_a_newcomer_all() {
    let state = state();
    let board = Board::new();
    let added = pods(&state, 3);
    board.look(&state, second(1), 1_000);
    let mut viewer = board.join().unwrap();
    let (number, whole) = board.whole(&state);
    let whole = data(&whole);
    assert_eq!((number, &whole["version"], whole["pods"].as_array().unwrap().len()), (0, &Value::from("9.9"), 3));
    assert_eq!(whole["cards"][2][1], "10.1.0.2:8000");

    stir(&added[1], 2);
    state.metrics.finish(state.metrics.other(), None, 200, Cause::Ok);
    board.look(&state, second(2), 2_000);
    let tick = viewer.ticks.borrow_and_update().clone();
    let told = data(&tick.event);
    assert_eq!((tick.number, told["pods"].as_array().unwrap().len(), &told["pods"][0][0]), (1, 1, &Value::from(1)));
    assert_eq!((&told["cards"], &told["point"]["ended"][0]), (&Value::Null, &Value::from(1.0)));
    assert_eq!(told["now"]["gate"]["missing"], "configuration is not loaded yet");

    pods(&state, 4);
    board.look(&state, second(3), 3_000);
    let told = data(&viewer.ticks.borrow_and_update().event);
    assert_eq!((told["cards"].as_array().unwrap().len(), told["pods"].as_array().unwrap().len()), (4, 4));
}

#[test]
fn nothing_is_written_while_nobody_watches_and_places_are_bounded() {
    let state = state();
    let board = Board::new();
    for number in 0..5 {
        board.look(&state, second(number), number);
    }
    assert_eq!(board.inner.lock().number, 0);
    let viewers: Vec<_> = std::iter::from_fn(|| board.join()).take(VIEWERS_MAX + 1).collect();
    assert_eq!((viewers.len(), board.viewers()), (VIEWERS_MAX, VIEWERS_MAX));
    drop(viewers);
    assert!(board.join().is_some());
    assert_eq!(data(&board.whole(&state).1)["points"].as_array().unwrap().len(), 4, "but counters were looked at");
}

#[test]
fn a_thousand_pods_that_all_move_fit_into_few_bytes() {
    let state = state();
    let board = Board::new();
    let added = pods(&state, 1_000);
    let viewer = board.join().unwrap();
    for pod in &added {
        stir(pod, 1);
    }
    board.look(&state, second(1), 1_000);
    let first = viewer.ticks.borrow().event.len();
    for pod in &added {
        stir(pod, 2);
    }
    board.look(&state, second(2), 2_000);
    let busy = viewer.ticks.borrow().event.len();
    board.look(&state, second(3), 3_000);
    let idle = viewer.ticks.borrow().event.len();
    assert!(first < 160_000 && busy < 48_000 && idle < 1_000, "{first}, {busy}, {idle}");
}

#[test]
fn hostile_names_stay_within_their_event() {
    let state = state();
    let board = Board::new();
    state.explain.put("a\nb\r\n\nevent: x".into(), Arc::new("{}".to_owned()));
    let model = state.metrics.model("m\n\ndata: <script>");
    model.ttft.observe(Duration::from_millis(1));
    let viewer = board.join().unwrap();
    board.look(&state, second(1), 1);
    board.look(&state, second(2), 2);
    let event = viewer.ticks.borrow().event.clone();
    assert_eq!((event.matches('\n').count(), &event[event.len() - 2..]), (3, "\n\n"), "{event}");
}
