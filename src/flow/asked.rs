//! Which class a request asks for, in its own words or those of other stacks, and which it gets.
//!
//! The tenant's policy decides; what a request says chooses among the classes allowed there, so by default it can only make
//! itself less urgent. A caller from a trusted network may ask for any class. What is not understood or not allowed is not
//! heeded, and told, so that it can be counted.
use super::caller::{Class, Trust};
use super::tenant::Policy;

/// Fields that are looked at unless configured otherwise: this gate's; llm-d's name of an objective (the second is that of the
/// gateway API's extension); SMG's; vLLM's number.
pub const CLASS_HEADERS: [&str; 5] = [
    "x-tidegate-class",
    "x-llm-d-inference-objective",
    "x-gateway-inference-objective",
    "x-smg-priority",
    "x-vllm-priority",
];

/// What is said about an ask that was not heeded; the label of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ignored {
    /// It names no class.
    Unknown,
    /// The policy does not allow this class.
    NotAllowed,
}

impl Ignored {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Unknown, Self::NotAllowed];

    /// Value of the `kind` label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::NotAllowed => "not_allowed",
        }
    }
}

/// The class of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Chosen {
    /// The class; `None`: neither the policy nor the request says, so it counts as standard and nothing follows from it.
    pub class: Option<Class>,
    /// What was not heeded.
    pub ignored: Option<Ignored>,
}

/// The class a word stands for: a name of ours or of SMG (`system`, `interactive`, `default`, `bulk`), or vLLM's number.
fn class_of(word: &str) -> Result<Option<Class>, Ignored> {
    let word = word.trim();
    if let Ok(number) = word.parse::<i64>() {
        return Ok(class_of_priority(number));
    }
    let names: [(&str, Class); 6] = [
        ("interactive", Class::Interactive),
        ("system", Class::Interactive),
        ("standard", Class::Standard),
        ("default", Class::Standard),
        ("batch", Class::Batch),
        ("bulk", Class::Batch),
    ];
    let named = names.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name));
    named.map(|(_, class)| Some(class)).ok_or(Ignored::Unknown)
}

/// The class of a priority as vLLM has it, where lower is earlier. 0 is what every request has that says nothing.
const fn class_of_priority(priority: i64) -> Option<Class> {
    match priority {
        ..0 => Some(Class::Interactive),
        0 => None,
        1.. => Some(Class::Batch),
    }
}

/// The priority for pods that schedule by it.
pub const fn pod_priority(class: Class) -> u64 {
    match class {
        Class::Interactive => 0,
        Class::Standard => 10,
        Class::Batch => 20,
    }
}

/// The class of a request. `word` is the value of the first class field it has, `priority` the member of its body; the word
/// counts if both are there.
pub fn choose(policy: &Policy, trust: Trust, word: Option<&str>, priority: Option<i64>) -> Chosen {
    let asked = match word {
        Some(word) => class_of(word),
        None => Ok(priority.and_then(class_of_priority)),
    };
    match asked {
        Ok(None) => Chosen { class: policy.class, ignored: None },
        Ok(Some(class)) if trust == Trust::Trusted || policy.classes.contains(&class) => {
            Chosen { class: Some(class), ignored: None }
        }
        Ok(Some(_)) => Chosen { class: policy.class, ignored: Some(Ignored::NotAllowed) },
        Err(ignored) => Chosen { class: policy.class, ignored: Some(ignored) },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::super::tenant::TenantSettings;
    use super::*;

    fn policy(class: Option<Class>, classes: Option<Vec<Class>>) -> Policy {
        Policy::new(&TenantSettings { class, classes, ..TenantSettings::default() }, |name| vec![name.into()])
    }

    #[test]
    fn a_request_may_lower_its_class_and_a_trusted_one_may_raise_it() {
        use Class::{Batch, Interactive, Standard};
        use Trust::{Open, Trusted};
        let not_allowed = Some(Ignored::NotAllowed);
        for (own, trust, word, priority, class, ignored) in [
            (None, Open, None, None, None, None),
            (None, Open, Some("batch"), None, Some(Batch), None),
            (None, Open, Some(" BULK "), None, Some(Batch), None),
            (None, Open, Some("interactive"), None, None, not_allowed),
            (None, Trusted, Some("interactive"), None, Some(Interactive), None),
            (None, Trusted, Some("system"), None, Some(Interactive), None),
            (None, Open, Some("food-review"), None, None, Some(Ignored::Unknown)),
            (None, Open, Some(""), Some(5), None, Some(Ignored::Unknown)),
            (None, Open, Some("-3"), None, None, not_allowed),
            (None, Open, Some("7"), None, Some(Batch), None),
            (None, Open, Some("0"), None, None, None),
            (None, Open, None, Some(1), Some(Batch), None),
            (None, Open, None, Some(-1), None, not_allowed),
            (None, Trusted, None, Some(i64::MIN), Some(Interactive), None),
            (Some(Interactive), Open, None, Some(0), Some(Interactive), None),
            (Some(Interactive), Open, Some("standard"), Some(5), Some(Standard), None),
            (Some(Batch), Open, Some("standard"), None, Some(Batch), not_allowed),
            (Some(Batch), Open, None, None, Some(Batch), None),
        ] {
            let got = choose(&policy(own, None), trust, word, priority);
            assert_eq!(got, Chosen { class, ignored }, "{own:?} {trust:?} {word:?} {priority:?}");
        }
        let listed = policy(None, Some(vec![Interactive, Standard]));
        assert_eq!(choose(&listed, Open, Some("interactive"), None).class, Some(Interactive));
        assert_eq!(choose(&listed, Open, Some("batch"), None).ignored, not_allowed);
    }

    #[test]
    fn more_urgent_is_earlier_on_pods() {
        assert!(Class::ALL.map(pod_priority).is_sorted_by(|a, b| a < b));
    }
}
