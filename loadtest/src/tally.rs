//! What came back to one kind of clients: good answers, refusals by reason, and the times of both.
//!
//! The time to the first token is that of the attempt that was served; what its client waited before it came again is not in it.

use crate::body::Template;
use crate::client::Answer;
use crate::histogram::Histogram;
use crate::load::verdict;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Refusals within this time were told at once.
const AT_ONCE: Duration = Duration::from_millis(50);

/// Counts and times of one kind.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    /// Requests its clients wanted answered.
    pub(crate) asked: u64,
    /// Times they were sent.
    pub(crate) sent: u64,
    /// Sent again after a refusal.
    pub(crate) again: u64,
    /// Not sent again, although told to: too often, or the end of the load would have come first.
    pub(crate) gave_up: u64,
    /// Answered well.
    pub(crate) good: u64,
    /// Of these, with their first token as promised.
    pub(crate) kept: u64,
    /// Tokens of good answers.
    pub(crate) tokens: u64,
    /// Refusals, by status and reason.
    pub(crate) refused: BTreeMap<String, u64>,
    /// Of these, told within 50 ms.
    pub(crate) refused_at_once: u64,
    /// What else ended badly, by kind.
    pub(crate) errors: BTreeMap<String, u64>,
    /// Time to the first token of good answers.
    pub(crate) first: Histogram,
    /// Time to the end of good answers.
    pub(crate) total: Histogram,
    /// Time to a refusal.
    pub(crate) refusal: Histogram,
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Well.
    Good,
    /// Refused; to come again after this time, if it was told.
    Refused(Option<Duration>),
    /// In any other way.
    Bad,
}

impl Tally {
    /// Books an attempt. `slo` is what its time to the first token was to be, `tokens` what its usage said.
    pub(crate) fn book(
        &mut self,
        template: &Template,
        result: Result<Answer, String>,
        tokens: Option<u64>,
        slo: Option<Duration>,
    ) -> End {
        if let Ok(answer) = &result
            && matches!(answer.status, 429 | 503)
        {
            let reason = answer.reason.as_deref().unwrap_or("-");
            *self.refused.entry(format!("{} {reason}", answer.status)).or_default() += 1;
            self.refused_at_once += u64::from(answer.total <= AT_ONCE);
            self.refusal.add(answer.total);
            return End::Refused(answer.retry_after);
        }
        match result.and_then(|answer| verdict(template, answer)) {
            Ok(answer) => {
                let first = answer.first.unwrap_or(answer.total);
                self.good += 1;
                self.kept += u64::from(slo.is_none_or(|slo| first <= slo));
                self.tokens += tokens.unwrap_or(answer.events);
                self.first.add(first);
                self.total.add(answer.total);
                End::Good
            }
            Err(kind) => {
                *self.errors.entry(kind).or_default() += 1;
                End::Bad
            }
        }
    }

    /// Refusals of any kind.
    pub(crate) fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Everything over a load of so many seconds; times in microseconds.
    pub(crate) fn json(&self, seconds: f64) -> Value {
        json!({
            "asked": self.asked, "sent": self.sent, "again": self.again, "gave_up": self.gave_up, "good": self.good,
            "kept": self.kept, "kept_per_s": self.kept as f64 / seconds, "tokens_per_s": self.tokens as f64 / seconds,
            "refused": self.refused, "refused_at_once": self.refused_at_once, "errors": self.errors,
            "ttft": self.first.json(), "e2e": self.total.json(), "refusal": self.refusal.json(),
        })
    }

    /// The same as lines for a person.
    pub(crate) fn lines(&self, name: &str, seconds: f64) -> Vec<String> {
        let mut lines = vec![
            format!(
                "{name}: {} asked, {} sent ({} again, {} gave up), {} good, {} refused",
                self.asked,
                self.sent,
                self.again,
                self.gave_up,
                self.good,
                self.refusals()
            ),
            format!(
                "  as promised {:.2}/s ({:.1} % of the good)   {:.0} tokens/s",
                self.kept as f64 / seconds,
                100.0 * self.kept as f64 / self.good.max(1) as f64,
                self.tokens as f64 / seconds
            ),
            format!("  TTFT ms     {}", self.first.line()),
            format!("  E2E ms      {}", self.total.line()),
        ];
        if self.refusals() > 0 {
            let reasons: Vec<String> =
                self.refused.iter().map(|(reason, count)| format!("{reason}: {count}")).collect();
            let at_once = 100.0 * self.refused_at_once as f64 / self.refusals() as f64;
            lines.push(format!("  refusal ms  {}", self.refusal.line()));
            lines.push(format!("  refused     {}   {at_once:.1} % within 50 ms", reasons.join("  ")));
        }
        lines.extend(self.errors.iter().map(|(kind, count)| format!("  error       {kind}: {count}")));
        lines
    }
}

/// `completion_tokens` in the last part of an answer.
pub(crate) fn completion_tokens(tail: &[u8]) -> Option<u64> {
    const NAME: &[u8] = b"\"completion_tokens\":";
    let at = memchr::memmem::rfind(tail, NAME)?;
    let rest = tail.get(at + NAME.len()..)?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(rest.get(..digits)?).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn template() -> Template {
        Template { front: Vec::new(), tail: Vec::new(), stream: true, events: 4 }
    }

    #[test]
    fn attempts_are_booked_by_how_they_ended() {
        let (mut tally, ms) = (Tally::default(), Duration::from_millis);
        let good = |first| Answer {
            status: 200,
            first: Some(ms(first)),
            total: ms(90),
            events: 5,
            done: true,
            ..Answer::default()
        };
        assert_eq!(tally.book(&template(), Ok(good(20)), Some(4), Some(ms(30))), End::Good);
        assert_eq!(tally.book(&template(), Ok(good(40)), None, Some(ms(30))), End::Good);
        let refused = Answer {
            status: 429,
            total: ms(3),
            retry_after: Some(ms(2_000)),
            reason: Some("predicted_late".into()),
            ..Answer::default()
        };
        assert_eq!(tally.book(&template(), Ok(refused), None, None), End::Refused(Some(ms(2_000))));
        let late = Answer { status: 503, total: ms(300), ..Answer::default() };
        assert_eq!(tally.book(&template(), Ok(late), None, None), End::Refused(None));
        let broken = Answer { status: 502, ..Answer::default() };
        assert_eq!(tally.book(&template(), Ok(broken), None, None), End::Bad);
        assert_eq!(tally.book(&template(), Err("timeout".into()), None, None), End::Bad);
        assert_eq!((tally.good, tally.kept, tally.tokens), (2, 1, 4 + 5));
        assert_eq!((tally.refusals(), tally.refused_at_once), (2, 1));
        assert_eq!(tally.refused.keys().collect::<Vec<_>>(), ["429 predicted_late", "503 -"]);
        assert_eq!(tally.errors.values().sum::<u64>(), 2);
        assert!(tally.lines("a", 1.0).concat().contains("50.0 % within 50 ms"));
        assert_eq!(tally.json(2.0)["kept_per_s"], 0.5);
    }

    #[test]
    fn the_count_of_tokens_is_the_last_that_was_told() {
        let tail = br#"{"completion_tokens":1}} data: {"usage":{"completion_tokens": 17,"x":{"y":1}}}"#;
        assert_eq!(completion_tokens(tail), Some(17));
        assert_eq!((completion_tokens(b"[DONE]"), completion_tokens(b"\"completion_tokens\":null")), (None, None));
    }
}
