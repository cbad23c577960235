//! Two beginnings of a conversation, named so that every gate names them alike: without the secret that blocks are hashed
//! with, from the JSON as it came. Gates that share nothing go by them to the same pod.
//!
//! A name is no proof of anything: only the first bytes of each part and its length enter. Two prompts with one name are
//! guessed to be alike, and a wrong guess costs a little order.
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Bytes of a part that enter its name.
const PART_BYTES: usize = 1_024;

/// A beginning of a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Anchor {
    /// Its name.
    pub key: u64,
    /// Its length in canonical bytes.
    pub bytes: u64,
}

/// The beginnings of one conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anchors {
    /// Tools and system messages: what many conversations share. `None` without any.
    pub lead: Option<Anchor>,
    /// That, and the first message of the user: the conversation. `None` for prompts that are no conversation.
    pub opening: Option<Anchor>,
    /// Canonical bytes before the last message, if the conversation goes on: what a pod has seen that had the turn before.
    pub past: Option<u64>,
}

/// Collects them while a prompt is read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Naming {
    key: u64,
    found: Anchors,
}

impl Naming {
    /// A part of the prompt was read: `raw` is its JSON, `bytes` what the prompt has so far. A part is the user's, or what
    /// comes before.
    pub(super) fn part(&mut self, raw: &[u8], bytes: u64, is_user: bool) {
        if self.found.opening.is_some() {
            return;
        }
        let shown = raw.get(..PART_BYTES).unwrap_or(raw);
        self.key = xxh3_64_with_seed(shown, self.key ^ raw.len() as u64);
        let anchor = Some(Anchor { key: self.key, bytes });
        if is_user {
            self.found.opening = anchor;
        } else {
            self.found.lead = anchor;
        }
    }

    /// The beginnings of a prompt whose last message begins at `last`, in scope of `seed`.
    pub(super) fn end(mut self, last: u64, seed: u64) -> Anchors {
        for anchor in [&mut self.found.lead, &mut self.found.opening].into_iter().flatten() {
            anchor.key = xxh3_64_with_seed(&anchor.key.to_le_bytes(), seed);
        }
        self.found.past = self.found.opening.filter(|opening| last > opening.bytes).map(|_| last);
        self.found
    }
}
