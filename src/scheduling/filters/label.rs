//! Keeps the pods that carry all of these labels.
//!
//! Reads: `labels` (configuration or discovery, never stale).
//! Drops: pods that lack one of the labels of the settings, or have another value for it.
//! Range: keep or drop. Without labels in the settings every pod stays.
//! Unknown: a pod without labels has none; of a pod with more than eight only the first eight, by key, can be selected by.
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pods::LabelSet;
use crate::scheduling::{Candidates, Context, Filter, Verdict};

/// Settings of `label`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Labels a pod must have, as `key: value`.
    pub labels: BTreeMap<String, String>,
}

#[derive(Debug)]
struct Label(LabelSet);

/// Makes the filter.
pub fn build(settings: &Settings) -> Box<dyn Filter> {
    Box::new(Label(LabelSet::of(&settings.labels)))
}

impl Filter for Label {
    fn judge(&self, _: &Context<'_>, pods: &Candidates<'_>, verdicts: &mut [Verdict]) {
        for (pod, verdict) in pods.iter().zip(verdicts) {
            if !pod.labels.has_all(&self.0) {
                *verdict = Verdict::Drop("lacks a label");
            }
        }
    }

    fn is_lasting(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use crate::base::Tokens;
    use crate::scheduling::testing::{judged, pod};
    use crate::scheduling::{PodView, Request};

    #[test]
    fn only_pods_with_the_labels() {
        let labels = |value: &str| BTreeMap::from([("rack".to_owned(), value.to_owned())]);
        let pods = [pod(0), PodView { labels: LabelSet::of(&labels("a")), ..pod(1) }];
        let kept = |labels| judged(&*build(&Settings { labels }), &Request::new("m", Tokens(1)), &pods);
        assert_eq!(kept(labels("a")), [false, true]);
        assert_eq!((kept(labels("b")), kept(BTreeMap::new())), (vec![false, false], vec![true, true]));
    }
}
