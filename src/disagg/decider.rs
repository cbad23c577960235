//! One pod or two, for one request at one moment.
use super::obstacle::Obstacle;
use super::settings::{Decider, Settings};
use crate::base::Tokens;
use crate::scheduling::marginal::Terms;

/// Two pods must be cheaper by this part of what one pod takes to the first token: what is predicted of two pods has more that can
/// go otherwise.
const HYSTERESIS: f64 = 0.05;

/// What a way to serve a request is predicted to cost, in the seconds of the ranking cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Way {
    /// Up to the first token: waiting, prefill, handing over.
    pub first_s: f64,
    /// What decoding loses to this prefill.
    pub stall_s: f64,
    /// The rest: decoding, the request's own and the others'. The price of cache pressure is left out: it compares pods of
    /// one pool, and here there are two.
    pub rest_s: f64,
}

impl Way {
    /// No pod can do it.
    pub(super) const IMPOSSIBLE: Self = Self { first_s: f64::INFINITY, stall_s: 0.0, rest_s: 0.0 };

    /// The parts of a cost.
    pub fn of(terms: &Terms) -> Self {
        Self {
            first_s: terms.wait + terms.prefill + terms.unseen + terms.loads,
            stall_s: terms.stall,
            rest_s: terms.decode + terms.slow,
        }
    }

    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            first_s: self.first_s + other.first_s,
            stall_s: self.stall_s + other.stall_s,
            rest_s: self.rest_s + other.rest_s,
        }
    }

    /// All of it, with `weight` for each second that decoding loses.
    pub fn sum(self, weight: f64) -> f64 {
        self.first_s + weight * self.stall_s + self.rest_s
    }
}

/// What both ways are predicted to cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Costs {
    /// On the best decode pod alone.
    pub local: Way,
    /// On the best pair.
    pub remote: Way,
    /// Prompt tokens that the decode pod alone would compute.
    pub uncached: Tokens,
    /// What a second that decoding loses is worth.
    pub weight: f64,
}

impl Costs {
    /// Of the best decode pod alone \[seconds\].
    pub fn local_s(&self) -> f64 {
        self.local.sum(self.weight)
    }

    /// Of the best pair \[seconds\].
    pub fn remote_s(&self) -> f64 {
        self.remote.sum(self.weight)
    }
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
        (Decider::Cost, Some(costs)) => {
            (of(costs.remote_s() + HYSTERESIS * costs.local.first_s.min(1e9) < costs.local_s()), Reason::Cost)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_decider_has_its_rule() {
        let way = |seconds| Way { first_s: seconds / 2.0, stall_s: 0.0, rest_s: seconds / 2.0 };
        let costs = |local, remote, uncached| Costs {
            local: way(local),
            remote: way(remote),
            uncached: Tokens(uncached),
            weight: 1.0,
        };
        let of = |decider, costs: Option<Costs>| {
            weigh(&Settings { decider, uncached_tokens_min: 100, ..Settings::default() }, None, costs.as_ref())
        };
        assert_eq!(of(Decider::Cost, Some(costs(2.0, 1.0, 9))), (Choice::Remote, Reason::Cost));
        assert_eq!(of(Decider::Cost, Some(costs(2.0, 1.96, 9))), (Choice::Local, Reason::Cost));
        assert_eq!(of(Decider::Cost, None), (Choice::Local, Reason::NoPair));
        let impossible = Costs { local: Way::IMPOSSIBLE, ..costs(0.0, 9.0, 9) };
        assert_eq!(of(Decider::Cost, Some(impossible)), (Choice::Remote, Reason::Cost));
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
