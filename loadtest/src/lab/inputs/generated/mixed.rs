//! Single prompts, Poisson, of lengths and shares of choice: decode-bound (short prompt, long answer), reasoning (a share of
//! answers many times as long as the rest), long documents in the batch class among short interactive ones.
use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

use crate::lab::script::Recipe;
use crate::lab::script::{Class, Draw as _, Message, Piece, Role, Script, Session, Turn, mix};

/// Settings of the input.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Mixed {
    /// Requests per second, Poisson.
    pub(crate) rate: f64,
    /// How long \[s\].
    pub(crate) secs: f64,
    /// Tokens of a prompt, median.
    pub(crate) prompt_tokens: f64,
    /// Tokens of an answer, median.
    pub(crate) output_tokens: f64,
    /// Spread of both: sigma of the logarithm.
    pub(crate) sigma: f64,
    /// Shared beginnings in use; 0: prompts share nothing.
    pub(crate) prefixes: u64,
    /// Tokens of a shared beginning.
    pub(crate) prefix_tokens: u32,
    /// Share of answers that are long.
    pub(crate) long_output_share: f64,
    /// Least and most tokens of a long answer.
    pub(crate) long_output_tokens: (u32, u32),
    /// Share of prompts that are long; they are of the batch class, all others interactive.
    pub(crate) long_prompt_share: f64,
    /// Least and most tokens of a long prompt.
    pub(crate) long_prompt_tokens: (u32, u32),
    /// All are of this class, whatever their length.
    pub(crate) class: Option<Class>,
}

impl Default for Mixed {
    fn default() -> Self {
        Self {
            rate: 8.0,
            secs: 600.0,
            prompt_tokens: 400.0,
            output_tokens: 600.0,
            sigma: 0.7,
            prefixes: 0,
            prefix_tokens: 1_000,
            long_output_share: 0.0,
            long_output_tokens: (3_000, 12_000),
            long_prompt_share: 0.0,
            long_prompt_tokens: (100_000, 160_000),
            class: None,
        }
    }
}

impl Mixed {
    pub(in super::super) fn script(&self, seed: u64) -> Script {
        let mut rng = Rng::new(mix(seed, 0x313D));
        let mut sessions = Vec::new();
        let mut at = 0.0;
        loop {
            at += rng.exponential(1.0 / self.rate);
            if at > self.secs {
                return Script { sessions, has_template: true };
            }
            let number = sessions.len() as u64;
            sessions.push(self.session(&mut rng, (at * 1e6) as u64, mix(number, mix(seed, 4))));
        }
    }

    /// One request.
    pub(super) fn session(&self, rng: &mut Rng, start_us: u64, own: u64) -> Session {
        let between = |rng: &mut Rng, (least, most): (u32, u32)| least + rng.below(u64::from(most - least) + 1) as u32;
        let is_long = rng.unit() < self.long_prompt_share;
        let prompt = if is_long {
            between(rng, self.long_prompt_tokens)
        } else {
            rng.log_normal(self.prompt_tokens, self.sigma).clamp(4.0, 90_000.0) as u32
        };
        let output_tokens = if rng.unit() < self.long_output_share {
            between(rng, self.long_output_tokens)
        } else {
            rng.log_normal(self.output_tokens, self.sigma).clamp(2.0, 8_000.0) as u32
        };
        let mut messages = Vec::new();
        if self.prefixes > 0 && !is_long {
            let pick = rng.below(self.prefixes);
            let pieces = vec![Piece::new(mix(pick, 0xF1), self.prefix_tokens, pick)];
            messages.push(Message { role: Role::System, pieces });
        }
        messages.push(Message::user(vec![Piece::new(own, prompt, own)]));
        let class = self.class.unwrap_or(match (is_long, self.long_prompt_share > 0.0) {
            (true, _) => Class::Batch,
            (false, true) => Class::Interactive,
            (false, false) => Class::Standard,
        });
        let recipe = Recipe::Fresh(messages);
        Session { start_us, turns: vec![Turn { think_us: 0, recipe, output_tokens, reasoning_tokens: 0, class }] }
    }
}
