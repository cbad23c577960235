//! Labels of a pod as a small value that can be copied into a view: a hash for each `key=value`, at most [`LABELS_MAX`].
//!
//! Two labels are taken for each other with a chance of 2^-32; operators name them, not clients.
use std::collections::BTreeMap;

/// Labels of one pod that can be selected by; further ones, in the order of their keys, cannot.
pub const LABELS_MAX: usize = 8;

/// Label with the share of a fair load that a pod gets at most.
const WEIGHT: &str = "weight";

/// What the label `weight` says, in (0, 1]; 1 without it, `None` if it is no such number.
pub fn weight(labels: &BTreeMap<String, String>) -> Option<f64> {
    let Some(text) = labels.get(WEIGHT) else { return Some(1.0) };
    text.parse().ok().filter(|weight| *weight > 0.0 && *weight <= 1.0)
}

/// Hashes of labels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelSet([u32; LABELS_MAX]);

impl LabelSet {
    /// The set of these labels.
    pub fn of(labels: &BTreeMap<String, String>) -> Self {
        let mut set = Self::default();
        for (slot, (key, value)) in set.0.iter_mut().zip(labels) {
            *slot = hash(key, value);
        }
        set
    }

    /// Whether all labels of `wanted` are in it.
    pub fn has_all(&self, wanted: &Self) -> bool {
        wanted.0.iter().filter(|hash| **hash != 0).all(|hash| self.0.contains(hash))
    }
}

fn hash(key: &str, value: &str) -> u32 {
    let key = xxhash_rust::xxh3::xxh3_64(key.as_bytes());
    let hash = xxhash_rust::xxh3::xxh3_64_with_seed(value.as_bytes(), key);
    (hash as u32).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(labels: &[(&str, &str)]) -> LabelSet {
        LabelSet::of(&labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn a_weight_is_a_share() {
        let of = |text: &str| weight(&BTreeMap::from([("weight".to_owned(), text.to_owned())]));
        assert_eq!((weight(&BTreeMap::new()), of("0.25"), of("1")), (Some(1.0), Some(0.25), Some(1.0)));
        assert!(["0", "-1", "2", "NaN", "half", ""].iter().all(|bad| of(bad).is_none()));
    }

    #[test]
    fn all_wanted_labels_must_be_there() {
        let pod = set(&[("rack", "a"), ("gpu", "h100")]);
        assert!(pod.has_all(&set(&[])) && pod.has_all(&set(&[("gpu", "h100")])) && pod.has_all(&pod));
        for missing in [set(&[("gpu", "a100")]), set(&[("rack", "a"), ("zone", "b")]), set(&[("h100", "gpu")])] {
            assert!(!pod.has_all(&missing));
        }
    }
}
