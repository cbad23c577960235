//! Tokens at any place of a prompt: counted from the exact usage of earlier prompts that ended on the way, between and
//! beyond them by bytes per token.
use crate::base::Tokens;

use super::fingerprint::{BLOCK_BYTES, Chain};
use super::tree::Tree;
use super::walk::Step;

/// How well the tokens at a place are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Known {
    /// By bytes per token.
    #[default]
    Estimated,
    /// As pods told of hits that ended there.
    Told,
    /// From usage: a prompt ended there.
    Exact,
}

/// So many tokens in so many bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Point {
    bytes: f64,
    tokens: f64,
    is_told: bool,
}

/// Tokens by canonical bytes, as a line through what is known. Kept for its memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Scale {
    /// Bytes and tokens, both growing; the last is the prompt's end.
    points: Vec<Point>,
    /// How many bytes it shares where it shares so many blocks.
    reach: (u32, f64),
}

impl Scale {
    /// Takes the prompt `chain`, of which the tree knows `path`; prompts of token ids need no exact usage.
    pub(super) fn set(&mut self, tree: &Tree, path: &[Step], chain: &Chain, bytes_per_token: f64, is_ids: bool) {
        self.points.clear();
        self.reach = reach(tree, path, chain);
        let end = chain.bytes as f64;
        let mut last = Point::default();
        for step in path.iter().filter(|_| !is_ids) {
            let exact = tree.runs.get(step.run).map_or(&[][..], |run| &run.exact);
            for exact in exact.iter().filter(|exact| exact.depth <= step.matched) {
                let (bytes, tokens) = (f64::from(exact.bytes), f64::from(exact.tokens));
                let point = Point { bytes, tokens, is_told: exact.is_told };
                if bytes > last.bytes && tokens > last.tokens {
                    self.points.push(point);
                    last = point;
                }
            }
        }
        let tokens = (last.tokens + (end - last.bytes) / bytes_per_token).max(1.0);
        while self.points.last().is_some_and(|point| point.bytes >= end || point.tokens >= tokens) {
            self.points.pop();
        }
        self.points.push(Point { bytes: end, tokens, is_told: false });
    }

    /// Tokens of the whole prompt.
    pub(super) fn total(&self) -> Tokens {
        Tokens(self.points.last().map_or(0, |point| point.tokens as u64))
    }

    /// Tokens of its first blocks, in whole blocks of the pod; the last token of a prompt is always computed.
    pub(super) fn hit(&self, blocks: u32, block: Tokens) -> u64 {
        let bytes = if blocks == self.reach.0 { self.reach.1 } else { f64::from(blocks) * BLOCK_BYTES as f64 };
        let hit = (self.at(bytes) as u64).min(self.total().0.saturating_sub(1));
        hit - hit % block.0.max(1)
    }

    /// How well tokens are known within a block of this depth.
    pub(super) fn known_at(&self, blocks: u32) -> Known {
        let at = f64::from(blocks) * BLOCK_BYTES as f64;
        let known = self.points.split_last().map_or(&[][..], |(_, known)| known);
        // What a hit ends at says more than what is beside it.
        let near = known.iter().rfind(|point| (point.bytes - at).abs() <= BLOCK_BYTES as f64);
        near.map_or(Known::Estimated, |point| if point.is_told { Known::Told } else { Known::Exact })
    }

    fn at(&self, bytes: f64) -> f64 {
        let next = self.points.partition_point(|point| point.bytes < bytes);
        let low = next.checked_sub(1).and_then(|before| self.points.get(before)).copied().unwrap_or_default();
        let Some(high) = self.points.get(next) else { return low.tokens };
        let part = (bytes - low.bytes) / (high.bytes - low.bytes).max(1.0);
        low.tokens + (high.tokens - low.tokens) * part
    }
}

/// Where the known part of a prompt ends, in blocks, and how many bytes that are: more than the blocks, if a prompt or an answer
/// is known to have ended in the next block and this one goes on from there. That block's bytes were not compared. They are the
/// same if a message begins here where the other ended; in a text without messages, if nothing else has gone on from there.
fn reach(tree: &Tree, path: &[Step], chain: &Chain) -> (u32, f64) {
    let Some(last) = path.last() else { return (0, 0.0) };
    let blocks = last.end();
    let whole = f64::from(blocks) * BLOCK_BYTES as f64;
    let Some(run) = tree.runs.get(last.run) else { return (blocks, whole) };
    let goes_on = |bytes: u32| {
        if chain.sections.is_empty() {
            return run.is_leaf() && last.matched == run.len() && u64::from(bytes) < chain.bytes;
        }
        chain.sections.binary_search_by_key(&bytes, |(start, _)| *start).is_ok()
    };
    let mut ended = run.exact.iter().filter(|exact| exact.depth == last.matched && f64::from(exact.bytes) > whole);
    (blocks, ended.rfind(|exact| goes_on(exact.bytes)).map_or(whole, |exact| f64::from(exact.bytes)))
}
