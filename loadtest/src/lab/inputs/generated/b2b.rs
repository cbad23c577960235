//! `b2b-saas`, llm-d's benchmark: groups that share a long system prompt, a few fixed questions per group, asked again and
//! again at random. 150 groups of 6,000 tokens with 5 questions of 1,200 are 73 % of 8 pods' KV.
use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use crate::lab::script::{Class, Draw as _, Message, Piece, Recipe, Role, Script, Session, Turn, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct B2b {
    /// Requests per second, Poisson.
    pub(crate) rate: f64,
    /// How long \[s\].
    pub(crate) secs: f64,
    /// Groups.
    pub(crate) groups: u64,
    /// Questions of each.
    pub(crate) questions: u64,
    /// Tokens of the shared part.
    pub(crate) system_tokens: u32,
    /// Tokens of a question.
    pub(crate) question_tokens: u32,
    /// Tokens of an answer.
    pub(crate) output_tokens: u32,
}

impl Default for B2b {
    fn default() -> Self {
        Self {
            rate: 9.0,
            secs: 300.0,
            groups: 150,
            questions: 5,
            system_tokens: 6_000,
            question_tokens: 1_200,
            output_tokens: 1_000,
        }
    }
}

impl B2b {
    pub(in super::super) fn script(&self, seed: u64) -> Script {
        let mut rng = Rng::new(mix(seed, 0xB2B));
        let mut sessions = Vec::new();
        let mut at = 0.0;
        loop {
            at += rng.exponential(1.0 / self.rate);
            if at > self.secs {
                return Script { sessions, has_template: false };
            }
            let (group, question) = (rng.below(self.groups), rng.below(self.questions));
            let system = Piece::new(mix(group, mix(seed, 1)), self.system_tokens, group);
            let question =
                Piece::new(mix(group * self.questions + question, mix(seed, 2)), self.question_tokens, group);
            let messages = vec![Message { role: Role::System, pieces: vec![system] }, Message::user(vec![question])];
            let turn = Turn {
                think_us: 0,
                recipe: Recipe::Fresh(messages),
                output_tokens: self.output_tokens,
                reasoning_tokens: 0,
                class: Class::Standard,
            };
            sessions.push(Session { start_us: (at * 1e6) as u64, turns: vec![turn] });
        }
    }
}
