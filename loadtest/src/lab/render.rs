//! One prompt twice: as the tokens an engine computes, and as the JSON body a gate reads. Neither side sees the other's.
//!
//! Tokens of a piece are `content::token(id, 0..)`, the same that an engine generates for a job with that seed; so an answer
//! that is sent back gives the tokens that were generated. Text is cut from one fixed stretch of words, headed by the piece's
//! id in letters, so that different pieces differ in their first block.
use std::sync::Arc;

use tidegate::sim::engine::{Prompt, content, tokenizer};

use super::script::{Message, Piece, Recipe, Role, Turn, mix};

/// Bytes of the stretch that text is cut from.
const POOL_BYTES: usize = 1 << 20;
/// Tokens that open and close a message.
const MESSAGE_TOKENS: usize = 6;

/// Text that all pieces are cut from.
pub(crate) struct Pool(Vec<u8>);

impl Pool {
    /// Words of letters that need no escape.
    pub(crate) fn new() -> Self {
        Self(content::text(7, 0, POOL_BYTES as u64 / 4).into_bytes())
    }

    fn write(&self, piece: &Piece, out: &mut Vec<u8>) {
        let bytes = piece.bytes();
        let start = out.len();
        let mark = mix(piece.id, 1);
        out.extend((0..16).map(|at| b'a' + ((mark >> (4 * at)) & 15) as u8));
        let mut from = (mark >> 20) as usize % POOL_BYTES;
        while out.len() < start + bytes {
            let rest = self.0.get(from..).unwrap_or_default();
            out.extend_from_slice(rest.get(..start + bytes - out.len()).unwrap_or(rest));
            from = 0;
        }
        out.truncate(start + bytes);
    }
}

/// Tokens as an engine counts them: chained block hashes, and what is beyond the last whole block.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    blocks: Vec<u64>,
    tail: Vec<u32>,
    tokens: u64,
}

impl Chain {
    fn push(&mut self, tokens: impl Iterator<Item = u32>, block_tokens: u32) {
        let before = self.tail.len();
        self.tail.extend(tokens);
        self.tokens += (self.tail.len() - before) as u64;
        let root = self.blocks.last().copied().unwrap_or(0);
        let more = Prompt::of(&self.tail, root, block_tokens);
        self.blocks.extend_from_slice(&more.blocks);
        self.tail = more.tail;
    }

    fn prompt(&self) -> Prompt {
        let tip = self.blocks.last().copied().unwrap_or(0);
        Prompt { tokens: self.tokens, blocks: self.blocks.as_slice().into(), tail: self.tail.clone(), tip }
    }
}

/// A prompt that was made: what later turns go on from.
#[derive(Clone, Debug)]
pub(crate) struct Made {
    pub(crate) messages: Vec<Message>,
    chain: Chain,
}

impl Made {
    /// Hashes of its whole blocks.
    pub(crate) fn blocks(&self) -> &[u64] {
        &self.chain.blocks
    }
}

/// How prompts are made into tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tokens {
    pub(crate) block_tokens: u32,
    pub(crate) has_template: bool,
}

fn tokens_of(piece: &Piece, from: u32) -> impl Iterator<Item = u32> + use<> {
    let (id, to) = (piece.id, piece.tokens);
    (from..to).map(move |index| content::token(id, u64::from(index)))
}

impl Tokens {
    fn open(self, role: Role) -> impl Iterator<Item = u32> {
        let name = match role {
            Role::System => 3,
            Role::User => 4,
            Role::Assistant => 5,
        };
        [tokenizer::MESSAGE_START, name, 16 + 10].into_iter().filter(move |_| self.has_template)
    }

    fn close(self) -> impl Iterator<Item = u32> {
        let count = MESSAGE_TOKENS - 3;
        [tokenizer::MESSAGE_END, 16 + 10, 16 + 10].into_iter().take(count).filter(move |_| self.has_template)
    }

    fn message(self, chain: &mut Chain, message: &Message) {
        chain.push(self.open(message.role), self.block_tokens);
        for piece in &message.pieces {
            chain.push(tokens_of(piece, 0), self.block_tokens);
        }
        chain.push(self.close(), self.block_tokens);
    }

    /// The prompt of a turn. `before` gives earlier turns of the session by number.
    pub(crate) fn make(self, turn: &Turn, number: usize, before: impl Fn(usize) -> Option<Arc<Made>>) -> Made {
        let mut made = match &turn.recipe {
            Recipe::Branch { parent, tokens, add } => return self.branch(before(*parent as usize), *tokens, *add),
            Recipe::Fresh(_) => Made { messages: Vec::new(), chain: Chain::default() },
            Recipe::Continue(_) => {
                let last = number.checked_sub(1).and_then(&before);
                last.map_or_else(|| Made { messages: Vec::new(), chain: Chain::default() }, |made| (*made).clone())
            }
        };
        let (Recipe::Fresh(add) | Recipe::Continue(add)) = &turn.recipe else { return made };
        for message in add {
            self.message(&mut made.chain, message);
        }
        made.messages.extend_from_slice(add);
        made
    }

    fn branch(self, parent: Option<Arc<Made>>, tokens: u32, add: Piece) -> Made {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut room = tokens;
        let old = parent.as_ref().and_then(|made| made.messages.first()).map_or(&[][..], |message| &message.pieces);
        for piece in old {
            let kept = piece.tokens.min(room);
            room -= kept;
            if kept > 0 {
                pieces.push(Piece { tokens: kept, ..*piece });
            }
        }
        let mut chain = Chain::default();
        let shared = u64::from(tokens - room);
        if let Some(made) = parent.filter(|_| shared > 0) {
            let whole = (shared / u64::from(self.block_tokens.max(1))) as usize;
            chain.blocks.extend_from_slice(made.chain.blocks.get(..whole).unwrap_or_default());
            chain.tokens = chain.blocks.len() as u64 * u64::from(self.block_tokens);
            let mut at = 0_u64;
            for piece in &pieces {
                let end = at + u64::from(piece.tokens);
                if end > chain.tokens {
                    let from = (chain.tokens - at.min(chain.tokens)) as u32;
                    chain.push(tokens_of(piece, from), self.block_tokens);
                }
                at = end;
            }
        }
        chain.push(tokens_of(&add, 0), self.block_tokens);
        pieces.push(add);
        Made { messages: vec![Message { role: Role::User, pieces }], chain }
    }

    /// The prompt as its engine gets it: with the head of the answer, where there is a template.
    pub(crate) fn prompt(self, made: &Made) -> Prompt {
        if !self.has_template {
            return made.chain.prompt();
        }
        let mut chain = made.chain.clone();
        chain.push(self.open(Role::Assistant), self.block_tokens);
        chain.prompt()
    }

    /// Adds the answer as the client sends it back: what came after the reasoning.
    pub(crate) fn answered(self, made: &mut Made, answer: Answer) {
        chain_answer(self, &mut made.chain, answer);
        let pieces = if answer.reasoning == 0 { vec![answer.text()] } else { vec![answer.told()] };
        made.messages.push(Message { role: Role::Assistant, pieces });
    }
}

fn chain_answer(tokens: Tokens, chain: &mut Chain, answer: Answer) {
    chain.push(tokens.open(Role::Assistant), tokens.block_tokens);
    chain.push(tokens_of(&answer.text(), answer.reasoning), tokens.block_tokens);
    chain.push(tokens.close(), tokens.block_tokens);
}

/// What a request got.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answer {
    /// Seed of its content.
    pub(crate) seed: u64,
    /// Tokens generated.
    pub(crate) tokens: u32,
    /// Of these, reasoning.
    pub(crate) reasoning: u32,
}

impl Answer {
    /// All of it as a piece.
    pub(crate) fn text(self) -> Piece {
        Piece::new(self.seed, self.tokens, self.seed)
    }

    /// What is sent back of it as a piece of text; without reasoning it is a text of its own.
    pub(crate) fn told(self) -> Piece {
        if self.reasoning == 0 {
            return self.text();
        }
        Piece::new(mix(self.seed, 2), self.tokens.saturating_sub(self.reasoning), self.seed)
    }
}

/// The body of a chat request with these messages.
pub(crate) fn body(pool: &Pool, messages: &[Message], is_stream: bool) -> Vec<u8> {
    let text: usize = messages.iter().flat_map(|message| &message.pieces).map(Piece::bytes).sum();
    let mut out = Vec::with_capacity(text + 96 + 48 * messages.len());
    out.extend_from_slice(b"{\"model\":\"lab\",\"messages\":[");
    for (at, message) in messages.iter().enumerate() {
        let role: &[u8] = match message.role {
            Role::System => b"system",
            Role::User => b"user",
            Role::Assistant => b"assistant",
        };
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"role\":\"");
        out.extend_from_slice(role);
        out.extend_from_slice(b"\",\"content\":\"");
        for piece in &message.pieces {
            pool.write(piece, &mut out);
        }
        out.extend_from_slice(b"\"}");
    }
    out.extend_from_slice(if is_stream { b"],\"stream\":true}" } else { b"],\"stream\":false}" });
    out
}

/// The text of an answer as the gate sees it pass.
pub(crate) fn text(pool: &Pool, piece: &Piece) -> Vec<u8> {
    let mut out = Vec::with_capacity(piece.bytes());
    pool.write(piece, &mut out);
    out
}
