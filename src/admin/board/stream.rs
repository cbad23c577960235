//! Decisions as they happen: the newest ones of each second, and how those that were shown ended.
//!
//! Of a busy gate a sample is shown: the latest [`EACH_MAX`] of each second. Those are followed until they end or are too old.
use std::collections::VecDeque;

use serde::Serialize;

use crate::base::RequestId;
use crate::observe::{Brief, Ending, ExplainRing};

/// New decisions told per second.
const EACH_MAX: usize = 12;
/// Decisions remembered, to tell them to who comes, and to follow them.
const KEPT_MAX: usize = 60;

/// Where a request goes and why.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Line {
    id: String,
    /// When it was decided, milliseconds since 1970.
    t: u64,
    model: String,
    attempt: u32,
    prompt: u64,
    hit: u64,
    pod: Option<String>,
    prefill_pod: Option<String>,
    cost: Option<f32>,
    mode: &'static str,
    end: Option<End>,
}

/// How it ended: cause, whose fault, status, class, attempts, time to the first token \[ms\], time to the end \[ms\], cached and
/// generated tokens by usage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct End(
    &'static str,
    &'static str,
    Option<u16>,
    Option<&'static str>,
    u32,
    Option<u64>,
    u64,
    Option<u64>,
    Option<u64>,
);

impl Line {
    fn new(id: String, brief: &Brief) -> Self {
        Self {
            id,
            t: brief.unix_ms,
            model: brief.model.to_string(),
            attempt: brief.attempt,
            prompt: brief.prompt.0,
            hit: brief.hit.0,
            pod: brief.pod.map(|pod| pod.to_string()),
            prefill_pod: brief.prefill_pod.map(|pod| pod.to_string()),
            cost: brief.cost.map(|cost| super::trend::rounded(cost as f32)),
            mode: brief.mode,
            end: None,
        }
    }
}

impl From<Ending> for End {
    fn from(ending: Ending) -> Self {
        Self(
            ending.cause.as_str(),
            ending.cause.fault().as_str(),
            ending.status,
            ending.class,
            ending.attempts,
            ending.ttft_us.map(|micros| micros / 1_000),
            ending.e2e_us / 1_000,
            ending.cached_tokens,
            ending.completion_tokens,
        )
    }
}

/// The decisions that are shown.
#[derive(Debug, Default)]
pub(super) struct Stream {
    lines: VecDeque<Line>,
    /// The newest one of the last look.
    newest: Option<RequestId>,
}

impl Stream {
    /// Lines that are new or have ended since the last look, oldest first.
    pub(super) fn look(&mut self, ring: &ExplainRing) -> Vec<Line> {
        let mut changed = Vec::new();
        for line in self.lines.iter_mut().filter(|line| line.end.is_none()) {
            let Some(ending) = ring.ending(&line.id) else { continue };
            // It was planned again since.
            if ending.attempts > line.attempt
                && let Some(brief) = ring.source(&line.id).and_then(|source| source.brief())
            {
                *line = Line::new(line.id.clone(), &brief);
            }
            line.end = Some(ending.into());
            changed.push(line.clone());
        }
        let recent = ring.recent(EACH_MAX);
        let newest = recent.first().cloned();
        let new = recent.into_iter().take_while(|id| Some(id) != self.newest.as_ref());
        let mut new: Vec<Line> =
            new.filter_map(|id| Some(Line::new(id.to_string(), &ring.source(&id)?.brief()?))).collect();
        new.reverse();
        for mut line in new {
            line.end = ring.ending(&line.id).map(End::from);
            // A request that is planned again is one request still.
            self.lines.retain(|known| known.id != line.id);
            self.lines.push_back(line.clone());
            changed.push(line);
        }
        let surplus = self.lines.len().saturating_sub(KEPT_MAX);
        self.lines.drain(..surplus);
        self.newest = newest;
        changed
    }

    /// All that are remembered, oldest first.
    pub(super) fn lines(&self) -> &VecDeque<Line> {
        &self.lines
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use std::sync::Arc;

    use super::*;
    use crate::base::{PodId, Tokens};
    use crate::observe::{Cause, ExplainSource};

    struct Source;

    impl ExplainSource for Source {
        fn write_json(&self, out: &mut String) {
            out.push_str("{}");
        }

        fn brief(&self) -> Option<Brief> {
            Some(Brief {
                unix_ms: 5,
                attempt: 1,
                model: "m".into(),
                prompt: Tokens(10),
                pod: Some(PodId(3)),
                prefill_pod: None,
                hit: Tokens(4),
                cost: Some(0.12345),
                mode: "normal",
            })
        }
    }

    const ENDING: Ending = Ending {
        cause: Cause::Ok,
        status: Some(200),
        class: Some("batch"),
        attempts: 1,
        ttft_us: Some(2_900),
        e2e_us: 7_100,
        cached_tokens: Some(4),
        completion_tokens: Some(9),
    };

    fn ids(lines: &[Line]) -> Vec<&str> {
        lines.iter().map(|line| &*line.id).collect()
    }

    #[test]
    fn each_decision_is_told_when_it_is_made_and_when_it_has_ended() {
        let (ring, mut stream) = (ExplainRing::new(8), Stream::default());
        ring.put("a".into(), Arc::new(Source));
        ring.put("b".into(), Arc::new(Source));
        let told = stream.look(&ring);
        assert_eq!(ids(&told), ["a", "b"]);
        assert_eq!((told[0].pod.as_deref(), told[0].cost, &told[0].end), (Some("pod-3"), Some(0.123), &None));
        assert!(stream.look(&ring).is_empty());
        ring.ended("a", ENDING);
        let told = stream.look(&ring);
        assert_eq!(ids(&told), ["a"]);
        assert_eq!(told[0].end, Some(End("ok", "none", Some(200), Some("batch"), 1, Some(2), 7, Some(4), Some(9))));
        assert!(stream.look(&ring).is_empty());
        ring.put("b".into(), Arc::new(Source));
        assert_eq!(stream.lines().len(), 2, "planned again, one line");
    }

    #[test]
    fn a_busy_gate_shows_a_sample_and_keeps_no_more_than_its_bound() {
        let (ring, mut stream) = (ExplainRing::new(2_000), Stream::default());
        for second in 0..20 {
            for number in 0..50 {
                ring.put(format!("{second}-{number}").into(), Arc::new(Source));
            }
            let told = stream.look(&ring);
            assert_eq!((told.len(), ids(&told)[EACH_MAX - 1]), (EACH_MAX, &*format!("{second}-49")));
        }
        assert_eq!(stream.lines().len(), KEPT_MAX);
        ring.put("plain".into(), Arc::new("{}".to_owned()));
        assert!(stream.look(&ring).is_empty(), "what cannot be told in a line is left out");
    }
}
