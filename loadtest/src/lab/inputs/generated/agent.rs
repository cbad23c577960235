//! Agents in a closed loop: a context that begins long and grows by tool results, short answers, think time between turns.
//! Shapes follow the recorded Weka sessions: contexts of tens of thousands of tokens, answers of some hundred.
use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use crate::lab::script::{Class, Draw as _, Message, Piece, Recipe, Role, Script, Session, Turn, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Agent {
    /// Sessions, all there from the start (within the ramp).
    pub(crate) sessions: u64,
    /// Turns of each: this on average, half to one and a half times as many.
    pub(crate) turns: u64,
    /// Tokens that all sessions begin with.
    pub(crate) shared_tokens: u32,
    /// Further tokens of the first prompt, median.
    pub(crate) first_tokens: f64,
    /// Tokens that each turn adds besides the answer, median.
    pub(crate) step_tokens: f64,
    /// Tokens of an answer, median.
    pub(crate) output_tokens: f64,
    /// Think time, median \[s\].
    pub(crate) think_s: f64,
    /// Sessions start spread over this time \[s\].
    pub(crate) ramp_s: f64,
    /// Sessions that each agent has, one after the other.
    pub(crate) rounds: u64,
    /// How urgent all of it is.
    pub(crate) class: Class,
}

impl Default for Agent {
    fn default() -> Self {
        Self {
            sessions: 120,
            turns: 30,
            shared_tokens: 4_000,
            first_tokens: 14_000.0,
            step_tokens: 1_350.0,
            output_tokens: 225.0,
            think_s: 27.0,
            ramp_s: 120.0,
            rounds: 1,
            class: Class::Standard,
        }
    }
}

impl Agent {
    pub(in super::super) fn script(&self, seed: u64) -> Script {
        let sessions = (0..self.sessions).filter_map(|number| {
            let rounds = (0..self.rounds.max(1)).map(|round| self.session(number, mix(seed, 0xA6E + (round << 32))));
            rounds.reduce(|mut all, next| {
                let pause = Rng::new(next.start_us).log_normal(self.think_s, 1.0).min(120.0);
                let turns = next.turns.into_iter().enumerate();
                all.turns.extend(turns.map(|(at, turn)| match at {
                    0 => Turn { think_us: (pause * 1e6) as u64, ..turn },
                    _ => turn,
                }));
                all
            })
        });
        Script { sessions: sessions.collect(), has_template: true }
    }

    fn session(&self, number: u64, seed: u64) -> Session {
        let own = mix(number, seed);
        let mut rng = Rng::new(own);
        let shared = Piece::new(0x5A5A, self.shared_tokens, 0x5A5A);
        let first = rng.log_normal(self.first_tokens, 0.5).clamp(500.0, 150_000.0) as u32;
        let mut messages = vec![
            Message { role: Role::System, pieces: vec![shared] },
            Message::user(vec![Piece::new(mix(own, 1), first, own)]),
        ];
        let turns = self.turns / 2 + rng.below(self.turns.max(1)) + 1;
        let turns = (0..turns).map(|turn| {
            let think_us = if turn == 0 { 0 } else { (rng.log_normal(self.think_s, 1.0).min(120.0) * 1e6) as u64 };
            let recipe = if turn == 0 {
                Recipe::Fresh(std::mem::take(&mut messages))
            } else {
                let tokens = rng.log_normal(self.step_tokens, 0.8).clamp(20.0, 20_000.0) as u32;
                Recipe::Continue(vec![Message::user(vec![Piece::new(mix(own, 100 + turn), tokens, mix(own, turn))])])
            };
            let output_tokens = rng.log_normal(self.output_tokens, 0.8).clamp(10.0, 4_000.0) as u32;
            Turn { think_us, recipe, output_tokens, reasoning_tokens: 0, class: self.class }
        });
        let turns = turns.collect();
        Session { start_us: (rng.unit() * self.ramp_s * 1e6) as u64, turns }
    }
}
