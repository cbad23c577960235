//! One pod or two, for one request at one moment.
use super::obstacle::Obstacle;
use super::settings::{Decider, Settings};
use crate::base::Tokens;

/// Two pods must be cheaper by this part: what is predicted of two pods has more that can go otherwise.
const HYSTERESIS: f64 = 0.05;

/// What both ways are predicted to cost, in the seconds of the ranking cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// On the best decode pod alone.
    pub local_s: f64,
    /// On the best pair.
    pub remote_s: f64,
    /// Prompt tokens that the decode pod alone would compute.
    pub uncached: Tokens,
}

/// One pod, or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// One.
    Local,
    /// Two.
    Remote,
}

/// Why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It cannot be split.
    Obstacle(Obstacle),
    /// No pair can serve it now.
    NoPair,
    /// So configured.
    Always,
    /// So configured.
    Never,
    /// Many tokens, or few, are to be computed.
    UncachedTokens,
    /// It costs less.
    Cost,
}

impl Reason {
    /// Its name in metrics and decisions.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Obstacle(obstacle) => obstacle.as_str(),
            Self::NoPair => "no_pair",
            Self::Always => "always",
            Self::Never => "never",
            Self::UncachedTokens => "uncached_tokens",
            Self::Cost => "cost",
        }
    }
}

/// Chooses. `costs` is `None` if there is no pair.
pub fn weigh(settings: &Settings, obstacle: Option<Obstacle>, costs: Option<&Costs>) -> (Choice, Reason) {
    if let Some(obstacle) = obstacle {
        return (Choice::Local, Reason::Obstacle(obstacle));
    }
    let of = |is_remote: bool| if is_remote { Choice::Remote } else { Choice::Local };
    match (settings.decider, costs) {
        (Decider::Never, _) => (Choice::Local, Reason::Never),
        (_, None) => (Choice::Local, Reason::NoPair),
        (Decider::Always, _) => (Choice::Remote, Reason::Always),
        (Decider::UncachedTokens, Some(costs)) => {
            (of(costs.uncached.0 >= settings.uncached_tokens_min), Reason::UncachedTokens)
        }
        (Decider::Cost, Some(costs)) => (of(costs.remote_s < costs.local_s * (1.0 - HYSTERESIS)), Reason::Cost),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_decider_has_its_rule() {
        let costs = |local_s, remote_s, uncached| Costs { local_s, remote_s, uncached: Tokens(uncached) };
        let of = |decider, costs: Option<Costs>| {
            weigh(&Settings { decider, uncached_tokens_min: 100, ..Settings::default() }, None, costs.as_ref())
        };
        assert_eq!(of(Decider::Cost, Some(costs(2.0, 1.0, 9))), (Choice::Remote, Reason::Cost));
        assert_eq!(of(Decider::Cost, Some(costs(2.0, 1.95, 9))), (Choice::Local, Reason::Cost));
        assert_eq!(of(Decider::Cost, None), (Choice::Local, Reason::NoPair));
        assert_eq!(of(Decider::Always, Some(costs(1.0, 9.0, 9))), (Choice::Remote, Reason::Always));
        assert_eq!(of(Decider::Never, Some(costs(9.0, 1.0, 999))), (Choice::Local, Reason::Never));
        for (uncached, choice) in [(99, Choice::Local), (100, Choice::Remote)] {
            let decided = of(Decider::UncachedTokens, Some(costs(1.0, 1.0, uncached)));
            assert_eq!(decided, (choice, Reason::UncachedTokens));
        }
        let decided = weigh(&Settings::default(), Some(Obstacle::Echo), Some(&costs(9.0, 1.0, 9)));
        assert_eq!((decided.0, decided.1.as_str()), (Choice::Local, "echo"));
    }
}
