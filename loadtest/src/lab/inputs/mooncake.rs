//! Mooncake's trace format: arrival in ms, lengths in tokens, and an id for each 512-token block that stands for the block
//! and all before it. Source: kvcache-ai/Mooncake, FAST'25 release. Answers are not part of later prompts: the trace does not
//! say which prompt goes on from which.
use std::io;

use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use super::{File, bad_line, default_speed};
use crate::lab::script::{Class, Message, Piece, Script, Session, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mooncake {
    /// The file, relative to the folder of traces.
    pub(crate) file: File,
    /// How much faster than recorded requests arrive.
    #[serde(default = "default_speed")]
    pub(crate) speed: f64,
    /// How many copies of the trace run at once, each with prompts of its own, spread over the first 10 seconds.
    #[serde(default = "one")]
    pub(crate) copies: u32,
    /// Only the first so many requests; 0 is all.
    #[serde(default)]
    pub(crate) requests_max: usize,
    /// Tokens per id.
    #[serde(default = "block")]
    pub(crate) block_tokens: u32,
    /// Share of conversations of the first class, told by the second block of their prompts; the others are standard.
    #[serde(default)]
    pub(crate) interactive_share: f64,
}

const fn one() -> u32 {
    1
}

const fn block() -> u32 {
    512
}

#[derive(Deserialize)]
struct Line {
    timestamp: f64,
    input_length: u32,
    output_length: u32,
    #[serde(default)]
    hash_ids: Vec<u64>,
}

impl Mooncake {
    pub(super) fn script(&self, text: &str) -> io::Result<Script> {
        let mut lines = Vec::new();
        for (at, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let line: Line =
                serde_json::from_str(line).map_err(|error| bad_line(&self.file, at, &error.to_string()))?;
            lines.push(line);
        }
        if self.requests_max > 0 {
            lines.truncate(self.requests_max);
        }
        let mut sessions = Vec::with_capacity(lines.len() * self.copies as usize);
        for copy in 0..u64::from(self.copies) {
            let shift = mix(copy, 0x5417) % 10_000_000 * u64::from(copy > 0);
            for (number, line) in lines.iter().enumerate() {
                let start_us = (line.timestamp * 1_000.0 / self.speed) as u64 + shift;
                let message = Message::user(self.pieces(line, copy, number as u64));
                let output = line.output_length.max(1);
                sessions.push(Session::single(start_us, message, output, self.class(line, number as u64)));
            }
        }
        Ok(Script { sessions, has_template: false })
    }

    /// The first block may be a system prompt that many share.
    fn class(&self, line: &Line, number: u64) -> Class {
        let own = line.hash_ids.get(1).copied().unwrap_or(number);
        let is_interactive = Rng::new(mix(own, 0xC1A5)).unit() < self.interactive_share;
        if is_interactive { Class::Interactive } else { Class::Standard }
    }

    /// One piece per id. Ids are given in order of first use, so neighbours come from the same content.
    fn pieces(&self, line: &Line, copy: u64, number: u64) -> Vec<Piece> {
        let mut left = line.input_length.max(1);
        let mut pieces = Vec::with_capacity(line.hash_ids.len() + 1);
        for &id in &line.hash_ids {
            let tokens = left.min(self.block_tokens);
            if tokens > 0 {
                pieces.push(Piece::new(mix(id, copy << 8 | 1), tokens, mix(id / 16, 3)));
            }
            left -= tokens;
        }
        if left > 0 {
            pieces.push(Piece::new(mix(number, copy << 8 | 2), left, number));
        }
        pieces
    }
}
