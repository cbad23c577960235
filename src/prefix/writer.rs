//! Takes canonical bytes as they are found, cuts them into prompts and blocks, and chains the hashes of the blocks.
use xxhash_rust::xxh3::{xxh3_64_with_secret, xxh3_64_with_seed};

use crate::api::decode::{self, Buffer, Drain};
use crate::api::json::Sink;

use super::anchor::Naming;
use super::fingerprint::{BLOCK_BYTES, BLOCKS_MAX, Chain, Fingerprint, Joint, PROMPTS_MAX, SECTIONS_MAX, Tail};

/// Bytes of a secret of XXH3.
const SECRET_BYTES: usize = 192;

/// What blocks are hashed with, made from the seed: quicker than a seed per block, which makes as much for each.
pub(super) struct Secret([u8; SECRET_BYTES]);

impl Secret {
    pub(super) fn new(seed: u64) -> Self {
        let mut secret = [0; SECRET_BYTES];
        for (index, word) in secret.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&xxh3_64_with_seed(&(index as u64).to_le_bytes(), seed).to_le_bytes());
        }
        Self(secret)
    }

    /// The hash of a block behind `parent`.
    pub(super) fn chained(&self, parent: u64, block: &[u8; BLOCK_BYTES]) -> u64 {
        let hash = xxh3_64_with_secret(block, &self.0);
        xxh3_64_with_seed(&hash.to_le_bytes(), parent)
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
    sections: usize,
    /// Only token ids so far?
    ids_only: bool,
    /// Is the last message the assistant's, so that the answer may continue it?
    ends_in_answer: bool,
    /// Where the first prompt ended: the last hash and the bytes behind it.
    end: (u64, Vec<u8>),
    naming: Naming,
    media: u32,
    /// Is the last message before the user's first, by its role?
    is_lead: bool,
}

impl Writer {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            buffer: Buffer::default(),
            hasher: BlockHasher::new(seed),
            beyond: 0,
            done: Vec::new(),
            sections: 0,
            ids_only: true,
            ends_in_answer: false,
            end: (0, Vec::new()),
            naming: Naming::default(),
            media: 0,
            is_lead: true,
        }
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

    /// A part of the prompt begins here: a message, or what comes before messages.
    pub(super) fn section(&mut self, is_message: bool) {
        self.sections += 1;
        if self.sections <= SECTIONS_MAX {
            let at = self.hasher.chain.bytes + self.buffer.text().len() as u64;
            self.hasher.chain.sections.push((u32::try_from(at).unwrap_or(u32::MAX), is_message));
        }
    }

    /// A message of this role begins, given as in the body.
    pub(super) fn role(&mut self, role: &[u8]) {
        self.ends_in_answer = role == b"\"assistant\"";
        self.is_lead = role == b"\"system\"" || role == b"\"developer\"";
    }

    /// An image, a clip or the like enters here by its digest.
    pub(super) const fn medium(&mut self) {
        self.media = self.media.saturating_add(1);
    }

    /// A part of a conversation was written, `raw` is its JSON: a message, or what comes before messages.
    pub(super) fn named(&mut self, raw: &[u8]) {
        if self.done.is_empty() {
            let bytes = self.hasher.chain.bytes + self.buffer.text().len() as u64;
            self.naming.part(raw, bytes, !self.is_lead);
        }
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
        if self.done.is_empty() && rest < BLOCK_BYTES {
            self.end = (self.hasher.parent, self.buffer.text().to_vec());
        }
        self.buffer.consume(rest);
        let mut chain = self.hasher.end();
        chain.bytes += rest as u64;
        if chain.bytes > 0 && self.done.len() < PROMPTS_MAX {
            self.done.push(chain);
        } else {
            self.beyond += chain.bytes;
        }
    }

    /// The fingerprint; `joint` says how an answer would continue the prompt.
    pub(super) fn finish(mut self, model: u64, scope: u64, joint: Option<Joint>) -> Fingerprint {
        if !self.buffer.text().is_empty() || self.hasher.chain.bytes > 0 {
            self.end_prompt();
        }
        let bytes = self.done.iter().map(|chain| chain.bytes).sum::<u64>() + self.beyond;
        let exact_tokens = (self.ids_only && self.beyond == 0 && bytes > 0).then_some(bytes / 4);
        let is_one = self.done.len() == 1 && self.beyond == 0 && self.hasher.room > 0;
        let joint = joint.filter(|_| is_one && exact_tokens.is_none() && !self.ends_in_answer);
        let (parent, rest) = self.end;
        let seed = self.hasher.seed;
        let last = self.done.first().filter(|_| is_one).and_then(|chain| chain.sections.last());
        let anchors = last.map(|(last, _)| self.naming.end(u64::from(*last), scope)).unwrap_or_default();
        let tail = joint.map(|joint| Box::new(Tail { joint, seed, parent, rest }));
        Fingerprint {
            chains: self.done,
            bytes,
            exact_tokens,
            model,
            skips_cache: false,
            tenant: 0,
            media: self.media,
            anchors,
            tail,
        }
    }
}

impl Sink for Writer {
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
    secret: Secret,
    parent: u64,
    room: usize,
    chain: Chain,
}

impl BlockHasher {
    fn new(seed: u64) -> Self {
        Self { seed, secret: Secret::new(seed), parent: seed, room: BLOCKS_MAX, chain: Chain::default() }
    }

    /// Hashes the whole blocks that `text` begins with; returns how many bytes they have.
    fn blocks(&mut self, text: &[u8]) -> usize {
        let (blocks, _) = text.as_chunks::<BLOCK_BYTES>();
        for block in blocks.iter().take(self.room) {
            self.parent = self.secret.chained(self.parent, block);
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
