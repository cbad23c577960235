//! Recorded coding-agent sessions in compact form: one line per session, a request shares its first blocks of 64 tokens with
//! an earlier one of the same session. Source: callanjfox/kv-cache-tester. Requests of a session run one after the other, with
//! the recorded think time (capped) between them; the tool definitions at the front are shared by all sessions.
use std::io;

use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use super::{File, bad_line, default_speed};
use crate::lab::script::{Class, Message, Piece, Recipe, Script, Session, Turn, mix};

/// How far back a request may branch off: the recorded parents are within the last 64.
const BLOCK_TOKENS: u32 = 64;

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Weka {
    /// The file, relative to the folder of traces.
    pub(crate) file: File,
    /// How many sessions; which ones depends on the seed.
    pub(crate) sessions: usize,
    /// Only the first so many requests of each.
    #[serde(default = "turns_max")]
    pub(crate) turns_max: usize,
    /// Longer think times are cut to this \[s\].
    #[serde(default = "think_max")]
    pub(crate) think_max_s: f64,
    /// Think times are divided by this.
    #[serde(default = "default_speed")]
    pub(crate) speed: f64,
    /// Sessions start evenly spread over this time \[s\].
    #[serde(default = "ramp")]
    pub(crate) ramp_s: f64,
}

const fn turns_max() -> usize {
    40
}

const fn think_max() -> f64 {
    60.0
}

const fn ramp() -> f64 {
    60.0
}

/// `[t_ms, is_subagent, in, out, think_ms, api_ms, parent, lcp_blocks, n_blocks]`.
type Call = (f64, u8, u32, u32, f64, f64, i64, u32, u32);

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    tool: u32,
    r: Vec<Call>,
}

impl Weka {
    pub(super) fn script(&self, text: &str, seed: u64) -> io::Result<Script> {
        let lines: Vec<(usize, &str)> = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
        let mut rng = Rng::new(mix(seed, 0x3EA));
        let mut order: Vec<usize> = (0..lines.len()).collect();
        for at in 0..order.len() {
            let other = at + rng.below((order.len() - at) as u64) as usize;
            order.swap(at, other);
        }
        let count = self.sessions.min(order.len());
        let mut sessions = Vec::with_capacity(count);
        for (place, number) in order.into_iter().take(count).enumerate() {
            let Some((at, line)) = lines.get(number) else { continue };
            let line: Line =
                serde_json::from_str(line).map_err(|error| bad_line(&self.file, *at, &error.to_string()))?;
            let start_us = (self.ramp_s * 1e6 * place as f64 / count as f64) as u64;
            sessions.push(Session { start_us, turns: self.turns(&line, number as u64) });
        }
        Ok(Script { sessions, has_template: false })
    }

    fn turns(&self, line: &Line, session: u64) -> Vec<Turn> {
        let calls = line.r.iter().take(self.turns_max).enumerate();
        let turns = calls.map(|(number, &(_, _, input, output, think_ms, _, parent, shared, _))| {
            let think_us = (think_ms / 1e3).clamp(0.0, self.think_max_s) * 1e6 / self.speed;
            let tools = line.tool.min(input) / BLOCK_TOKENS * BLOCK_TOKENS;
            let fresh = |tokens: u32| Piece::new(mix(session, number as u64 + 7), tokens.max(1), session);
            let recipe = match usize::try_from(parent) {
                Ok(parent) if parent < number => {
                    let tokens = (shared * BLOCK_TOKENS).min(input);
                    Recipe::Branch { parent: parent as u32, tokens, add: fresh(input - tokens) }
                }
                _ => {
                    let shared_tools = Piece::new(mix(u64::from(line.tool), 0x7001), tools.max(1), 0x7001);
                    Recipe::Fresh(vec![Message::user(vec![shared_tools, fresh(input - tools)])])
                }
            };
            let think_us = if number == 0 { 0 } else { think_us as u64 };
            Turn { think_us, recipe, output_tokens: output.max(1), reasoning_tokens: 0, class: Class::Standard }
        });
        turns.collect()
    }
}
