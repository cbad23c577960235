//! The blocks that an answer adds to its prompt. A pod keeps the KV of what it generated, and the next turn sends that text
//! back as a message of the assistant: fed with the answer as it passes, this gives the very hashes that the next turn's
//! prompt will have there.
//!
//! Bounded: one partial block and the hashes. It can't know what the template makes of an answer; how much of it comes true
//! is learnt per model (`truth`).
use std::fmt;

use crate::api::json::{self, Sink};
use crate::api::{AnswerScan, Api, Delta, EventView, Then};

use super::fingerprint::{BLOCK_BYTES, BLOCKS_MAX, Fingerprint, Joint};
use super::writer::Secret;

/// The beginning of the message that brings an answer back, as [`super::message`] writes it.
const MESSAGE: [&[u8]; 3] = [&[0xFF, b'm'], b"assistant", &[0xFF, b'c']];

/// What an answer added to its prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// Hashes of the blocks behind those of the prompt.
    pub blocks: Vec<u64>,
    /// Canonical bytes of prompt and answer.
    pub bytes: u64,
}

/// An answer on its way.
#[derive(Clone)]
pub struct Extension {
    scan: AnswerScan,
    seed: u64,
    parent: u64,
    /// The partial block: text of prompt or answer, shown to nobody.
    rest: [u8; BLOCK_BYTES],
    rest_len: usize,
    blocks: Vec<u64>,
    room: usize,
    bytes: u64,
    then: Then,
    has_text: bool,
}

impl fmt::Debug for Extension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { blocks, bytes, then, .. } = self;
        f.debug_struct("Extension").field("blocks", &blocks.len()).field("bytes", bytes).field("then", then).finish()
    }
}

impl Extension {
    /// For the answer to a request; `None` if it can't be foreseen how that comes back (several prompts or answers, token
    /// ids, an answer that continues a message, an API without text).
    pub fn of(api: Api, prompt: &Fingerprint) -> Option<Self> {
        let (tail, scan) = (prompt.tail.as_deref()?, AnswerScan::new(api)?);
        let mut extension = Self {
            scan,
            seed: tail.seed,
            parent: tail.parent,
            rest: [0; BLOCK_BYTES],
            rest_len: 0,
            blocks: Vec::new(),
            room: BLOCKS_MAX.saturating_sub(prompt.blocks()),
            bytes: prompt.bytes - tail.rest.len() as u64,
            then: Then::More,
            has_text: false,
        };
        extension.put(&tail.rest);
        if tail.joint == Joint::Message {
            for bytes in MESSAGE {
                extension.put(bytes);
            }
        }
        Some(extension)
    }

    /// Takes an event of a stream.
    pub fn event(&mut self, event: EventView<'_>) {
        if self.then == Then::More {
            match event.data {
                Some(data) => self.take(self.scan.event(event.name, data)),
                None => self.then = Then::End,
            }
        }
    }

    /// Takes a whole answer.
    pub fn body(&mut self, body: &[u8]) {
        if self.then == Then::More {
            self.take(self.scan.body(body));
        }
    }

    fn take(&mut self, delta: Delta<'_>) {
        if let Some(text) = delta.text {
            self.has_text |= !text.is_empty();
            json::decode_into(text, self);
        }
        self.then = delta.then;
    }

    /// What the answer added, once it ended well, be it less than a block; `None` if nothing.
    pub fn close(self) -> Option<Answered> {
        let is_good = self.then != Then::Void && self.has_text;
        is_good.then_some(Answered { blocks: self.blocks, bytes: self.bytes })
    }
}

impl Sink for Extension {
    fn put(&mut self, mut bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK_BYTES - self.rest_len));
            if let Some(free) = self.rest.get_mut(self.rest_len..self.rest_len + now.len()) {
                free.copy_from_slice(now);
            }
            self.rest_len += now.len();
            if self.rest_len == BLOCK_BYTES {
                self.rest_len = 0;
                if self.room == 0 {
                    self.then = Then::End;
                    return;
                }
                self.room -= 1;
                self.parent = Secret::new(self.seed).chained(self.parent, &self.rest);
                self.blocks.push(self.parent);
            }
            bytes = later;
        }
    }
}
