//! A prompt as chained hashes of 256-byte blocks of its canonical text. Two prompts share their first k hashes exactly if
//! (up to collisions of 64 bits) they share model, salt, tenant scope and the first 256·k canonical bytes, however their
//! JSON is spaced, escaped or ordered. XXH3-64 is not a cryptographic hash: the secret in the seed keeps strangers from
//! computing collisions ahead.
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_secret, xxh3_64_with_seed};

use crate::api::decode::{self, Buffer, Drain};
use crate::api::{Anatomy, Api};

use super::canon;

/// Canonical bytes per block; about 64 tokens, and exactly 64 for prompts given as token ids (4 bytes each).
pub const BLOCK_BYTES: usize = 256;
/// Most blocks hashed for one request, all its prompts together: 4 MiB of text. What is beyond is counted, not hashed.
pub const BLOCKS_MAX: usize = 16_384;
/// Most prompts of one request that are told apart; further ones are counted only.
pub const PROMPTS_MAX: usize = 1_024;

/// Bytes of a secret of XXH3.
const SECRET_BYTES: usize = 192;

/// What a prompt's blocks are chained from: prompts that must not be taken for each other differ in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seed<'a> {
    /// Model or adapter that will serve the request (after aliases and rewrites).
    pub model: &'a str,
    /// `cache_salt` of the request.
    pub salt: Option<&'a str>,
    /// Scope of the tenant, empty when prefixes are shared by all.
    pub tenant: &'a str,
    /// Secret of the gate; the same secret gives the same hashes after a restart.
    pub secret: u64,
}

impl Seed<'_> {
    fn hash(&self) -> u64 {
        let mut hash = self.secret;
        for part in [self.model, self.tenant, self.salt.unwrap_or_default()] {
            hash = xxh3_64_with_seed(part.as_bytes(), hash);
        }
        hash ^ u64::from(self.salt.is_some())
    }
}

/// One prompt of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Hash of each whole block, each chained to the one before.
    pub blocks: Vec<u64>,
    /// Canonical bytes of the prompt, those of the last, partial block and beyond the limit included.
    pub bytes: u64,
}

/// The prompts of one request: one, unless it is a batch, a reranking or the like. None for APIs that run no prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fingerprint {
    /// Every prompt, in order.
    pub chains: Vec<Chain>,
    /// Canonical bytes of all prompts.
    pub bytes: u64,
    /// Exact number of tokens, when prompts came as token ids.
    pub exact_tokens: Option<u64>,
    /// Hash of the model's name: what the bytes-per-token ratio is kept by.
    pub model: u64,
}

impl Fingerprint {
    /// Reads the prompts of a body.
    pub fn of(api: Api, anatomy: &Anatomy<'_>, seed: &Seed<'_>) -> Self {
        let mut writer = Writer::new(seed.hash());
        if api.prefills() {
            canon::write(anatomy, &mut writer);
        }
        writer.finish(xxh3_64(seed.model.as_bytes()))
    }

    /// Blocks of all prompts.
    pub fn blocks(&self) -> usize {
        self.chains.iter().map(|chain| chain.blocks.len()).sum()
    }
}

/// Takes canonical bytes and cuts them into prompts.
pub(super) struct Writer {
    /// Bytes of the prompt that are not hashed yet.
    buffer: Buffer,
    hasher: BlockHasher,
    /// Canonical bytes of prompts beyond the limits.
    beyond: u64,
    done: Vec<Chain>,
    /// Only token ids so far?
    ids_only: bool,
}

impl Writer {
    fn new(seed: u64) -> Self {
        Self { buffer: Buffer::default(), hasher: BlockHasher::new(seed), beyond: 0, done: Vec::new(), ids_only: true }
    }

    /// Is there no room for more blocks or prompts, so that further prompts need not be read?
    pub(super) const fn is_full(&self) -> bool {
        self.hasher.room == 0 || self.done.len() >= PROMPTS_MAX
    }

    /// A boundary of a kind; 0xFF occurs in no text, so no text can imitate it.
    pub(super) fn mark(&mut self, kind: u8) {
        self.ids_only = false;
        self.buffer.push(&[0xFF, kind], &mut self.hasher);
    }

    /// One token id.
    pub(super) fn id(&mut self, id: u32) {
        self.buffer.push(&id.to_le_bytes(), &mut self.hasher);
    }

    /// Counts bytes of a prompt that is not read any more.
    pub(super) const fn skip(&mut self, bytes: usize) {
        self.beyond += bytes as u64;
    }

    /// Ends a prompt; an empty one is not kept.
    pub(super) fn end_prompt(&mut self) {
        self.hasher.drain(&mut self.buffer);
        let rest = self.buffer.text().len();
        self.buffer.consume(rest);
        let mut chain = self.hasher.end();
        chain.bytes += rest as u64;
        if chain.bytes > 0 && self.done.len() < PROMPTS_MAX {
            self.done.push(chain);
        } else {
            self.beyond += chain.bytes;
        }
    }

    fn finish(mut self, model: u64) -> Fingerprint {
        self.end_prompt();
        let bytes = self.done.iter().map(|chain| chain.bytes).sum::<u64>() + self.beyond;
        let exact_tokens = (self.ids_only && self.beyond == 0 && bytes > 0).then_some(bytes / 4);
        Fingerprint { chains: self.done, bytes, exact_tokens, model }
    }
}

impl crate::api::json::Sink for Writer {
    fn put(&mut self, bytes: &[u8]) {
        self.ids_only = false;
        if bytes.len() < BLOCK_BYTES {
            self.buffer.push(bytes, &mut self.hasher);
        } else {
            self.hasher.plain(&mut self.buffer, bytes);
        }
    }

    fn decode(&mut self, raw: &[u8]) {
        self.ids_only = false;
        decode::decode(raw, &mut self.buffer, &mut self.hasher);
    }

    fn decode_to_quote(&mut self, text: &[u8]) -> usize {
        self.ids_only = false;
        decode::decode_to_quote(text, &mut self.buffer, &mut self.hasher)
    }
}

/// Hashes whole blocks and chains the hashes.
struct BlockHasher {
    seed: u64,
    /// What blocks are hashed with, made from the seed: quicker than a seed per block, which makes as much for each.
    secret: [u8; SECRET_BYTES],
    parent: u64,
    room: usize,
    chain: Chain,
}

impl BlockHasher {
    fn new(seed: u64) -> Self {
        let mut secret = [0; SECRET_BYTES];
        for (index, word) in secret.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&xxh3_64_with_seed(&(index as u64).to_le_bytes(), seed).to_le_bytes());
        }
        Self { seed, secret, parent: seed, room: BLOCKS_MAX, chain: Chain::default() }
    }

    /// Hashes the whole blocks that `text` begins with; returns how many bytes they have.
    fn blocks(&mut self, text: &[u8]) -> usize {
        let (blocks, _) = text.as_chunks::<BLOCK_BYTES>();
        for block in blocks.iter().take(self.room) {
            let hash = xxh3_64_with_secret(block, &self.secret);
            self.parent = xxh3_64_with_seed(&hash.to_le_bytes(), self.parent);
            self.chain.blocks.push(self.parent);
        }
        self.room -= blocks.len().min(self.room);
        self.chain.bytes += blocks.as_flattened().len() as u64;
        blocks.as_flattened().len()
    }

    /// Ends the chain and begins the next.
    fn end(&mut self) -> Chain {
        self.parent = self.seed;
        std::mem::take(&mut self.chain)
    }
}

impl Drain for BlockHasher {
    fn drain(&mut self, buffer: &mut Buffer) {
        let used = self.blocks(buffer.text());
        buffer.consume(used);
    }

    fn plain(&mut self, buffer: &mut Buffer, text: &[u8]) {
        let begun = buffer.text().len() % BLOCK_BYTES;
        let (first, rest) = text.split_at(text.len().min((BLOCK_BYTES - begun) % BLOCK_BYTES));
        buffer.push(first, self);
        if !rest.is_empty() {
            self.drain(buffer);
            let used = self.blocks(rest);
            buffer.push(rest.get(used..).unwrap_or_default(), self);
        }
    }
}
