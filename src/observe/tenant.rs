//! Numbers of tenants. Only those that configuration names have series of their own; all others share `other`.
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arc_swap::ArcSwap;

use super::family::{Family, OTHER};
use super::model::TokenKind;

/// Numbers of one tenant.
#[derive(Debug)]
pub struct TenantMetrics {
    /// Name of the label.
    pub name: Arc<str>,
    /// Requests that ended, by class.
    pub requests: Family,
    /// Requests refused by the tenant's own limits, by reason.
    pub refused: Family,
    tokens: [AtomicU64; 2],
}

impl TenantMetrics {
    /// Kinds of tokens that are counted.
    pub const TOKENS: [TokenKind; 2] = [TokenKind::Prompt, TokenKind::Completion];

    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.into(),
            requests: Family::default(),
            refused: Family::default(),
            tokens: Default::default(),
        })
    }

    /// Counts tokens told by usage.
    pub fn add_tokens(&self, prompt: u64, completion: u64) {
        for (counter, tokens) in self.tokens.iter().zip([prompt, completion]) {
            counter.fetch_add(tokens, Relaxed);
        }
    }

    /// Tokens counted so far, in the order of [`Self::TOKENS`].
    pub fn tokens(&self) -> [u64; 2] {
        self.tokens.each_ref().map(|tokens| tokens.load(Relaxed))
    }
}

/// Numbers of all tenants.
#[derive(Debug)]
pub struct TenantSet {
    named: ArcSwap<HashMap<Arc<str>, Arc<TenantMetrics>>>,
    other: Arc<TenantMetrics>,
}

impl Default for TenantSet {
    fn default() -> Self {
        Self { named: ArcSwap::default(), other: TenantMetrics::new(OTHER) }
    }
}

impl TenantSet {
    /// From now on these tenants, and no others, have series of their own. Configuration bounds their number.
    pub fn name<'a>(&self, names: impl Iterator<Item = &'a str>) {
        let old = self.named.load_full();
        let kept = |name: &str| old.get(name).cloned().unwrap_or_else(|| TenantMetrics::new(name));
        let named = names.map(kept).map(|tenant| (Arc::clone(&tenant.name), tenant)).collect();
        self.named.store(Arc::new(named));
    }

    /// Numbers of a tenant.
    pub fn of(&self, tenant: &str) -> Arc<TenantMetrics> {
        Arc::clone(self.named.load().get(tenant).unwrap_or(&self.other))
    }

    /// All, by name.
    pub fn all(&self) -> Vec<Arc<TenantMetrics>> {
        let mut all: Vec<_> = self.named.load().values().chain([&self.other]).cloned().collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tenants_of_the_configuration_have_series() {
        let set = TenantSet::default();
        set.name(["a", "b"].into_iter());
        set.of("a").add_tokens(3, 4);
        set.of("stranger").requests.inc("batch");
        set.name(["c", "a"].into_iter());
        let all = set.all();
        assert_eq!(all.iter().map(|tenant| &*tenant.name).collect::<Vec<_>>(), ["a", "c", OTHER]);
        assert_eq!((set.of("a").tokens(), set.of("b").requests.value("batch")), ([3, 4], 1));
    }
}
