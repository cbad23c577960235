//! KV room of a pod that no request of its own stands for.
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::Pod;
use super::load::TOKENS_MAX;
use crate::base::Tokens;

/// KV blocks that a pod keeps for another one after its own work is done, or room for those that will come. Dropping it gives
/// them back.
#[derive(Debug)]
pub struct Lien {
    pod: Arc<Pod>,
    tokens: u64,
    is_coming: bool,
}

impl Lien {
    /// The pod keeps the blocks of so many tokens.
    pub fn new(pod: Arc<Pod>, tokens: Tokens) -> Self {
        let tokens = tokens.0.min(TOKENS_MAX);
        pod.load.prompt_tokens.fetch_add(tokens, Relaxed);
        Self { pod, tokens, is_coming: false }
    }

    /// The pod will be brought so many tokens, and decode from there.
    pub fn coming(pod: Arc<Pod>, tokens: Tokens) -> Self {
        pod.load.coming.fetch_add(1, Relaxed);
        let mut lien = Self::new(pod, tokens);
        lien.is_coming = true;
        lien
    }
}

impl Drop for Lien {
    fn drop(&mut self) {
        self.pod.load.prompt_tokens.fetch_sub(self.tokens, Relaxed);
        if self.is_coming {
            self.pod.load.coming.fetch_sub(1, Relaxed);
        }
    }
}
