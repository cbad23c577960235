//! What clients will do, before any of it happens: sessions of turns, prompts as lists of pieces of text.
//!
//! A piece is a stretch of one endless text that follows from its id, so pieces with the same id begin alike, as text and as
//! tokens. `bytes_per_token` belongs to the piece: the same number of tokens is 2.5 to 5 times as many bytes, as content
//! goes. Scripts are made once per cell and seed and shared by all policies; times are microseconds.
use serde::{Deserialize, Serialize};
use tidegate::base::Rng;

/// A stretch of text.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Piece {
    /// Which endless text it is the beginning of.
    pub(crate) id: u64,
    /// Its length in tokens of the engine.
    pub(crate) tokens: u32,
    /// Its length in bytes for each of these.
    pub(crate) bytes_per_token: f32,
}

/// Who speaks in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    System,
    User,
    Assistant,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) pieces: Vec<Piece>,
}

/// What a prompt consists of.
#[derive(Clone, Debug)]
pub(crate) enum Recipe {
    /// These messages.
    Fresh(Vec<Message>),
    /// The prompt before, its answer (without its reasoning), and these messages.
    Continue(Vec<Message>),
    /// The first `tokens` of the prompt of turn `parent`, then this text in the same message.
    Branch { parent: u32, tokens: u32, add: Piece },
}

/// How urgent a request is, as its client told the gate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Class {
    Interactive,
    #[default]
    Standard,
    Batch,
}

/// One request of a session.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// From the end of the turn before to the arrival; for the first turn from the start of the session.
    pub(crate) think_us: u64,
    pub(crate) recipe: Recipe,
    /// Tokens the engine will generate, reasoning included.
    pub(crate) output_tokens: u32,
    /// Of these, reasoning: generated first, left out when the answer is sent back.
    pub(crate) reasoning_tokens: u32,
    pub(crate) class: Class,
}

/// Turns that follow each other: a turn begins when the one before has ended.
#[derive(Clone, Debug)]
pub(crate) struct Session {
    pub(crate) start_us: u64,
    pub(crate) turns: Vec<Turn>,
}

/// All that clients will do in a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Script {
    /// In order of their starts.
    pub(crate) sessions: Vec<Session>,
    /// Whether messages carry the tokens of a chat template besides their text.
    pub(crate) has_template: bool,
}

impl Script {
    /// Requests in all.
    pub(crate) fn requests(&self) -> usize {
        self.sessions.iter().map(|session| session.turns.len()).sum()
    }
}

/// A well mixed number made from two.
pub(crate) fn mix(a: u64, b: u64) -> u64 {
    Rng::new(a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23)).bits()
}

impl Piece {
    /// A piece whose bytes per token follow from `kind`: content of one kind is equally dense.
    pub(crate) fn new(id: u64, tokens: u32, kind: u64) -> Self {
        let share = (mix(kind, 0xB17E) >> 40) as f32 / (1_u32 << 24) as f32;
        Self { id, tokens, bytes_per_token: 2.5 + 2.5 * share }
    }

    /// Its length in bytes.
    pub(crate) fn bytes(&self) -> usize {
        (self.tokens as f32 * self.bytes_per_token) as usize
    }
}

impl Session {
    /// A session of one turn.
    pub(crate) fn single(start_us: u64, message: Message, output_tokens: u32, class: Class) -> Self {
        let recipe = Recipe::Fresh(vec![message]);
        Self { start_us, turns: vec![Turn { think_us: 0, recipe, output_tokens, reasoning_tokens: 0, class }] }
    }
}

impl Message {
    /// A user's message.
    pub(crate) fn user(pieces: Vec<Piece>) -> Self {
        Self { role: Role::User, pieces }
    }
}

/// Draws for generated workloads.
pub(crate) trait Draw {
    /// Exponential with this mean.
    fn exponential(&mut self, mean: f64) -> f64;
    /// Standard normal.
    fn normal(&mut self) -> f64;
    /// Log-normal with this median, and `sigma` of the logarithm.
    fn log_normal(&mut self, median: f64, sigma: f64) -> f64;
}

impl Draw for Rng {
    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * (1.0 - self.unit()).ln()
    }

    fn normal(&mut self) -> f64 {
        let (radius, angle) = ((-2.0 * (1.0 - self.unit()).ln()).sqrt(), std::f64::consts::TAU * self.unit());
        radius * angle.cos()
    }

    fn log_normal(&mut self, median: f64, sigma: f64) -> f64 {
        median * (sigma * self.normal()).exp()
    }
}
