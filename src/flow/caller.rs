//! Who sends a request: tenant, class and trust. Without keys everybody is the tenant [`Caller::OPEN_TENANT`].
//!
//! Facts only; what a class may do is decided by the gate. Never holds a key.
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How urgent a request is. Ordered: the first is served first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Somebody watches the first token.
    Interactive,
    /// The default.
    #[default]
    Standard,
    /// Nobody waits; may be delayed, moved and refused first.
    Batch,
}

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Self; 3] = [Self::Interactive, Self::Standard, Self::Batch];

    /// Its name in configuration, headers and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Interactive => "interactive",
            Self::Standard => "standard",
            Self::Batch => "batch",
        }
    }

    /// Time to the first token by which requests without a promise are ordered \[seconds\].
    pub const fn order_s(self) -> f64 {
        match self {
            Self::Interactive => 5.0,
            Self::Standard => 30.0,
            Self::Batch => 600.0,
        }
    }

    /// Worth of a second before the first token against one after it, for the ranking: 5 to 1.
    pub const fn urgency(self) -> f64 {
        match self {
            Self::Interactive => 5.0,
            Self::Standard => 3.0,
            Self::Batch => 1.0,
        }
    }
}

/// How far the gate believes what a client says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Trust {
    /// Its routing headers are removed, its class can only be lowered.
    #[default]
    Open,
    /// From a trusted network: may choose ranks and classes and ask for explanations.
    Trusted,
}

/// Who a request is charged to and how it is treated.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// Name of the tenant, from configuration; never a key.
    pub tenant: Arc<str>,
    /// Class of its requests.
    pub class: Class,
    /// How far it is believed.
    pub trust: Trust,
}

impl Caller {
    /// Name of the only tenant of a gate without keys.
    pub const OPEN_TENANT: &str = "default";

    /// The caller of every request when no keys are configured.
    pub fn open(trust: Trust) -> Self {
        Self { tenant: Arc::from(Self::OPEN_TENANT), class: Class::default(), trust }
    }
}

impl Default for Caller {
    fn default() -> Self {
        Self::open(Trust::Open)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn classes_are_ordered_and_named_as_in_configuration() {
        assert!(Class::ALL.is_sorted() && Class::ALL.is_sorted_by(|a, b| a.urgency() >= b.urgency()));
        for class in Class::ALL {
            assert_eq!(serde_json::to_string(&class).unwrap(), format!("\"{}\"", class.as_str()));
        }
        assert_eq!(Caller::default().trust, Trust::Open);
    }
}
