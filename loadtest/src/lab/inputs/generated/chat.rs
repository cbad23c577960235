//! People in conversations: sessions arrive at random, have a few turns, and think between them. With a share of reasoning
//! the engine thinks before it answers, and the chat template leaves that out of later prompts: what was generated and what
//! is sent back part ways right after the head of the answer, though the gate saw all of it.
use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use crate::lab::script::{Class, Draw as _, Message, Piece, Recipe, Role, Script, Session, Turn, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Chat {
    /// Sessions per second, Poisson.
    pub(crate) rate: f64,
    /// How long sessions arrive \[s\].
    pub(crate) secs: f64,
    /// Turns of each, geometric with this mean.
    pub(crate) turns: f64,
    /// System prompts in use; sessions pick one, the first ones more often.
    pub(crate) systems: u64,
    /// Tokens of a system prompt.
    pub(crate) system_tokens: u32,
    /// Tokens of a question, median.
    pub(crate) question_tokens: f64,
    /// Tokens of an answer without what was thought, median.
    pub(crate) output_tokens: f64,
    /// Share of turns with reasoning.
    pub(crate) reasoning_share: f64,
    /// Tokens of reasoning, median.
    pub(crate) reasoning_tokens: f64,
    /// Think time, median \[s\].
    pub(crate) think_s: f64,
    /// Share of sessions of the first class; the others are standard.
    pub(crate) interactive_share: f64,
}

impl Default for Chat {
    fn default() -> Self {
        Self {
            rate: 1.5,
            secs: 600.0,
            turns: 5.0,
            systems: 20,
            system_tokens: 1_500,
            question_tokens: 400.0,
            output_tokens: 300.0,
            reasoning_share: 0.0,
            reasoning_tokens: 800.0,
            think_s: 15.0,
            interactive_share: 0.0,
        }
    }
}

impl Chat {
    pub(in super::super) fn script(&self, seed: u64) -> Script {
        let mut rng = Rng::new(mix(seed, 0xC4A7));
        let mut sessions = Vec::new();
        let mut at = 0.0;
        loop {
            at += rng.exponential(1.0 / self.rate);
            if at > self.secs {
                return Script { sessions, has_template: true };
            }
            let own = mix(sessions.len() as u64, mix(seed, 3));
            sessions.push(Session { start_us: (at * 1e6) as u64, turns: self.turns(&mut rng, own) });
        }
    }

    fn turns(&self, rng: &mut Rng, own: u64) -> Vec<Turn> {
        let pick = rng.unit() * rng.unit() * self.systems as f64;
        let system = Piece::new(mix(pick as u64, 0x575), self.system_tokens, pick as u64);
        let mut turns = Vec::new();
        let is_interactive = Rng::new(mix(own, 0xC1A5)).unit() < self.interactive_share;
        let class = if is_interactive { Class::Interactive } else { Class::Standard };
        loop {
            let number = turns.len() as u64;
            let tokens = rng.log_normal(self.question_tokens, 1.0).clamp(5.0, 20_000.0) as u32;
            let question = Message::user(vec![Piece::new(mix(own, number), tokens, own)]);
            let recipe = if number == 0 {
                Recipe::Fresh(vec![Message { role: Role::System, pieces: vec![system] }, question])
            } else {
                Recipe::Continue(vec![question])
            };
            let reasons = rng.unit() < self.reasoning_share;
            let thought = rng.log_normal(self.reasoning_tokens, 0.7).clamp(20.0, 12_000.0) as u32;
            let reasoning_tokens = if reasons { thought } else { 0 };
            let said = rng.log_normal(self.output_tokens, 0.8).clamp(5.0, 4_000.0) as u32;
            let think_us = if number == 0 { 0 } else { (rng.log_normal(self.think_s, 0.8).min(300.0) * 1e6) as u64 };
            let output_tokens = said + reasoning_tokens;
            turns.push(Turn { think_us, recipe, output_tokens, reasoning_tokens, class });
            if rng.unit() < 1.0 / self.turns.max(1.0) {
                return turns;
            }
        }
    }
}
