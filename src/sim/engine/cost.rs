//! Time of one engine step: `a + b·prefill + c·decodes + d·Σctx + e·Σ(new·ctx)`, in microseconds.
//!
//! The form is the one all published engine models share; the default constants are those of an 8B model on one H100-like
//! GPU: 6 ms for a forward pass, about 33,000 prefill tokens per second, 128 KiB of KV per token read at 3 TB/s.

/// Constants of the step time. All in microseconds, all at `speed` 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepCost {
    /// `a`: a forward pass with an empty batch (weights are read once).
    pub base_us: f64,
    /// `b`: per prompt token computed in the step.
    pub prefill_token_us: f64,
    /// `c`: per sequence that decodes one token.
    pub decode_us: f64,
    /// `d`: per token of context read by a decoding sequence.
    pub context_token_us: f64,
    /// `e`: per pair (new prompt token, token before it): the quadratic part of attention.
    pub attention_us: f64,
    /// Everything is divided by this. 0 means that steps take no time at all.
    pub speed: f64,
}

impl Default for StepCost {
    fn default() -> Self {
        Self {
            base_us: 6_000.0,
            prefill_token_us: 30.0,
            decode_us: 30.0,
            context_token_us: 0.045,
            attention_us: 0.000_33,
            speed: 1.0,
        }
    }
}

/// What one step computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct StepWork {
    /// Prompt tokens computed.
    pub(super) prefill_tokens: u64,
    /// Sequences that decode one token.
    pub(super) decodes: u64,
    /// Sum over decoding sequences of the tokens they attend to.
    pub(super) context_tokens: u64,
    /// Sum over prompt chunks of new tokens times tokens before them.
    pub(super) attention_pairs: f64,
}

impl StepWork {
    /// Adds a chunk of `new` prompt tokens with `before` tokens of context already computed.
    pub(super) fn add_prefill(&mut self, new: u64, before: u64) {
        self.prefill_tokens += new;
        self.attention_pairs += new as f64 * (before as f64 + new as f64 / 2.0);
    }

    /// Adds one decoding sequence with `context` tokens.
    pub(super) fn add_decode(&mut self, context: u64) {
        self.decodes += 1;
        self.context_tokens += context;
    }
}

impl StepCost {
    /// Steps that take no time: for tests that want answers at once.
    pub fn instant() -> Self {
        Self { speed: 0.0, ..Self::default() }
    }

    /// Microseconds of a step that does `work`; 0 at speed 0.
    pub(super) fn micros(&self, work: &StepWork) -> u64 {
        if self.speed <= 0.0 {
            return 0;
        }
        let micros = self.base_us
            + self.prefill_token_us * work.prefill_tokens as f64
            + self.decode_us * work.decodes as f64
            + self.context_token_us * work.context_tokens as f64
            + self.attention_us * work.attention_pairs;
        (micros / self.speed).max(1.0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_prompt_costs_what_the_formula_says() {
        let mut work = StepWork::default();
        work.add_prefill(1_000, 0);
        work.add_decode(500);
        let expected = 6_000.0 + 30.0 * 1_000.0 + 30.0 + 0.045 * 500.0 + 0.000_33 * 500_000.0;
        assert_eq!(StepCost::default().micros(&work), expected as u64);
        let fast = StepCost { speed: 10.0, ..StepCost::default() };
        assert_eq!(fast.micros(&work), (expected / 10.0) as u64);
        assert_eq!(StepCost::instant().micros(&work), 0);
    }
}
