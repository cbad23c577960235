//! Azure's trace format: `TIMESTAMP,ContextTokens,GeneratedTokens` with a day's time in the timestamp. Source:
//! Azure/AzurePublicDataset (Splitwise, ISCA'24). There are no hashes: every prompt is its own.
use std::io;

use serde::{Deserialize, Serialize};

use super::{File, bad_line, default_speed};
use crate::lab::script::{Class, Message, Piece, Script, Session, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Azure {
    /// The file, relative to the folder of traces.
    pub(crate) file: File,
    /// How much faster than recorded requests arrive.
    #[serde(default = "default_speed")]
    pub(crate) speed: f64,
    /// Only the first so many requests; 0 is all.
    #[serde(default)]
    pub(crate) requests_max: usize,
}

impl Azure {
    pub(super) fn script(&self, text: &str) -> io::Result<Script> {
        let mut sessions = Vec::new();
        let mut first = None;
        for (at, line) in text.lines().enumerate().skip(1).filter(|(_, line)| !line.trim().is_empty()) {
            if self.requests_max > 0 && sessions.len() >= self.requests_max {
                break;
            }
            let parsed = parse(line).ok_or_else(|| bad_line(&self.file, at, "write TIMESTAMP,tokens,tokens"))?;
            let (seconds, input, output) = parsed;
            let since = (seconds - *first.get_or_insert(seconds)).rem_euclid(86_400.0);
            let number = at as u64;
            let message = Message::user(vec![Piece::new(mix(number, 0xA2), input.max(1), mix(number, 5))]);
            let start_us = (since * 1e6 / self.speed) as u64;
            sessions.push(Session::single(start_us, message, output.max(1), Class::Standard));
        }
        Ok(Script { sessions, has_template: false })
    }
}

/// Seconds of the day, prompt tokens, generated tokens.
fn parse(line: &str) -> Option<(f64, u32, u32)> {
    let mut fields = line.trim().split(',');
    let time = fields.next()?.split_whitespace().last()?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let (hours, minutes): (f64, f64) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let seconds: f64 = parts.next()?.split('+').next()?.parse().ok()?;
    Some((hours * 3_600.0 + minutes * 60.0 + seconds, fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}
