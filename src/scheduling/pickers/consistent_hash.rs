//! Sends prompts that begin alike, or a session, to the same pod unless it has more than its share (CHWBL).
//!
//! Reads: the request's `head` or `session`, `load.requests` of the offered pods (own bookings, current), the seeded generator.
//! Range: any offer. The pod is the one that wins the draw between key and pod (rendezvous hashing) among those with at most `load_factor`
//!   times the mean of requests in flight, this one counted; costs are not looked at.
//! Unknown: a request without the key goes to the pod with the fewest requests, equals by the draw.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::base::Rng;
use crate::scheduling::plugin::drawn;
use crate::scheduling::{Context, Offer, Picker};

/// Settings of `consistent-hash`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// What is hashed.
    pub by: By,
    /// Most requests in flight of a pod against the mean, 1 or more.
    pub load_factor: f64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { by: By::Head, load_factor: 1.25 }
    }
}

/// What stands for "alike".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum By {
    /// The first 256 canonical bytes of the prompt.
    Head,
    /// The client's session.
    Session,
}

#[derive(Debug)]
struct ConsistentHash(Settings);

/// Makes the picker.
pub fn build(settings: &Settings) -> Box<dyn Picker> {
    Box::new(ConsistentHash(settings.clone()))
}

impl Picker for ConsistentHash {
    fn pick(&self, cx: &Context<'_>, offers: &[Offer], rng: &mut Rng) -> usize {
        let key = match self.0.by {
            By::Head => cx.request.head,
            By::Session => cx.request.session,
        };
        let load = |offer: &Offer| cx.pods.get(offer.at as usize).map_or(0, |pod| pod.load.requests);
        let all = offers.iter().enumerate();
        let Some(key) = key else {
            let chance = rng.bits();
            let least = all.min_by_key(|(_, offer)| (load(offer), drawn(chance, offer.pod), offer.pod));
            return least.map_or(0, |(position, _)| position);
        };
        let sum = offers.iter().map(|offer| u64::from(load(offer))).sum::<u64>();
        let factor = if self.0.load_factor.is_finite() { self.0.load_factor.max(1.0) } else { 1.0 };
        let most = (factor * (sum + 1) as f64 / offers.len().max(1) as f64).ceil();
        let open = all.filter(|(_, offer)| f64::from(load(offer)) + 1.0 <= most);
        open.max_by_key(|(_, offer)| (drawn(key, offer.pod), offer.pod)).map_or(0, |(position, _)| position)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::Request;
    use crate::scheduling::testing::{context, loaded};

    fn picked(head: Option<u64>, requests: &[u32]) -> usize {
        let pods: Vec<_> = (0..).zip(requests).map(|(id, &requests)| loaded(id, requests, 0, 0)).collect();
        let offers: Vec<_> = pods.iter().map(|pod| Offer { pod: pod.id, cost: 0.0, at: pod.id.0 }).collect();
        let request = Request { head, ..Request::new("m", Tokens(1)) };
        ConsistentHash(Settings::default()).pick(&context(&request, &pods), &offers, &mut Rng::new(1))
    }

    #[test]
    fn a_key_keeps_its_pod_until_that_has_more_than_its_share() {
        let home = picked(Some(7), &[0; 4]);
        assert!((0..20).all(|_| picked(Some(7), &[1; 4]) == home));
        let mut swamped = [4; 4];
        swamped[home] = 9;
        assert_ne!(picked(Some(7), &swamped), home);
        assert_eq!(picked(None, &[3, 2, 1, 2]), 2);
        let mut homes: Vec<_> = (0..100).map(|key| picked(Some(key), &[0; 4])).collect();
        homes.sort_unstable();
        homes.dedup();
        assert_eq!(homes.len(), 4);
    }
}
