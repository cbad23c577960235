//! A prompt as chained hashes of 256-byte blocks of its canonical text. Two prompts share their first k hashes exactly if
//! (up to collisions of 64 bits) they share model, salt, tenant scope and the first 256·k canonical bytes, however their
//! JSON is spaced, escaped or ordered. XXH3-64 is not a cryptographic hash: the secret in the seed keeps strangers from
//! computing collisions ahead.
use std::fmt;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::api::{Anatomy, Api};

use super::anchor::Anchors;
use super::canon;
use super::traits::Traits;
use super::writer::Writer;

/// Canonical bytes per block; about 64 tokens, and exactly 64 for prompts given as token ids (4 bytes each).
pub const BLOCK_BYTES: usize = 256;
/// Most blocks hashed for one request, all its prompts together: 4 MiB of text. What is beyond is counted, not hashed.
pub const BLOCKS_MAX: usize = 16_384;
/// Most prompts of one request that are told apart; further ones are counted only.
pub const PROMPTS_MAX: usize = 1_024;
/// Most parts of a request's prompts (messages, tools) whose beginnings are known; what follows counts as one part.
pub(super) const SECTIONS_MAX: usize = 4_096;

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

/// Where in a prompt a hit ends. Pods treat them differently: templates change answers and move tools, and some models
/// match only where an earlier request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Boundary {
    /// Inside a message, or inside a text without messages.
    #[default]
    Middle,
    /// Where a message ends, or with the prompt itself.
    Message,
    /// Among tools or template arguments.
    Tools,
}

impl Boundary {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Middle, Self::Message, Self::Tools];
}

/// One prompt of a request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// Hash of each whole block, each chained to the one before.
    pub blocks: Vec<u64>,
    /// Canonical bytes of the prompt, those of the last, partial block and beyond the limit included.
    pub bytes: u64,
    /// First byte of each part of the prompt, and whether it is a message.
    pub(super) sections: Vec<(u32, bool)>,
}

impl Chain {
    /// A prompt of whole blocks with these hashes.
    pub fn of(blocks: Vec<u64>) -> Self {
        let bytes = (blocks.len() * BLOCK_BYTES) as u64;
        Self { blocks, bytes, sections: Vec::new() }
    }

    /// Bytes that this prompt probably shares with one that has its first `blocks` blocks and no more: to where a message begins
    /// in the next block, else half of it.
    pub(super) fn shared_bytes(&self, blocks: u32) -> u64 {
        let from = blocks.saturating_mul(BLOCK_BYTES as u32);
        let next = self.sections.partition_point(|(start, _)| *start <= from);
        let begins =
            self.sections.get(next).map(|(start, _)| *start).filter(|start| *start < from + BLOCK_BYTES as u32);
        u64::from(begins.unwrap_or(from + BLOCK_BYTES as u32 / 2)).min(self.bytes)
    }

    /// What kind of place the end of the first `blocks` blocks is, which need not be at the boundary exactly: it is where
    /// the next block, the first that differs, has one.
    pub fn boundary(&self, blocks: u32) -> Boundary {
        if blocks as usize >= self.blocks.len() {
            return Boundary::Message;
        }
        let from = blocks.saturating_mul(BLOCK_BYTES as u32);
        let next = self.sections.partition_point(|(start, _)| *start <= from);
        let inside = next.checked_sub(1).and_then(|at| self.sections.get(at));
        let ends = self.sections.get(next).is_some_and(|(start, _)| *start < from.saturating_add(BLOCK_BYTES as u32));
        match inside {
            Some((_, false)) => Boundary::Tools,
            _ if ends => Boundary::Message,
            _ => Boundary::Middle,
        }
    }
}

/// How the answer joins the prompt when it comes back in the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Joint {
    /// As a message of the assistant.
    Message,
    /// As more of the same text.
    Text,
}

/// Where hashing stopped, to go on with the answer. Holds up to 255 bytes of the prompt, which are shown to nobody.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Tail {
    pub(super) joint: Joint,
    pub(super) seed: u64,
    pub(super) parent: u64,
    /// Bytes of the last, partial block.
    pub(super) rest: Vec<u8>,
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail").field("joint", &self.joint).field("rest_bytes", &self.rest.len()).finish_non_exhaustive()
    }
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
    /// The pod computes the whole prompt, whatever its cache holds (`prompt_logprobs` of vLLM 0.32).
    pub skips_cache: bool,
    /// Hash of the name of the tenant who is charged for the index's memory; 0 is nobody.
    pub tenant: u64,
    /// Images, clips and other parts that are no text, over all prompts.
    pub media: u32,
    /// Its beginnings, as every gate names them, if it is one conversation.
    pub anchors: Anchors,
    pub(super) tail: Option<Box<Tail>>,
}

impl Fingerprint {
    /// Reads the prompts of a body.
    pub fn of(api: Api, anatomy: &Anatomy<'_>, seed: &Seed<'_>) -> Self {
        let traits = Traits::of(api, anatomy);
        let mut writer = Writer::new(seed.hash() ^ traits.salt);
        if api.prefills() {
            canon::write(anatomy, &mut writer);
        }
        let scope = Seed { secret: 0, ..*seed }.hash();
        let mut print = writer.finish(xxh3_64(seed.model.as_bytes()), scope, traits.joint);
        print.skips_cache = traits.skips_cache;
        print
    }

    /// Prompts whose blocks are known already, of the model whose name has this hash.
    pub fn of_chains(chains: Vec<Chain>, model: u64) -> Self {
        let bytes = chains.iter().map(|chain| chain.bytes).sum();
        Self { chains, bytes, model, ..Self::default() }
    }

    /// Names the tenant who is charged for what this prompt takes of the index.
    #[must_use]
    pub fn charged_to(mut self, tenant: &str) -> Self {
        self.tenant = if tenant.is_empty() { 0 } else { xxh3_64(tenant.as_bytes()) };
        self
    }

    /// Blocks of all prompts.
    pub fn blocks(&self) -> usize {
        self.chains.iter().map(|chain| chain.blocks.len()).sum()
    }
}
