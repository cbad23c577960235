//! Who of a model's pods may be used now: each pod's own standing, corrected by what the others are like.
//!
//! Two passes over the candidates, nothing allocated: count them into a [`Census`], then ask its [`Rule`] about each. The
//! rules: pods that are shut (asleep, drained, not ready, terminating) get nothing, ever. At most a share (half) of the serving pods may be out, the last one never; if
//! more are out, all serving ones are used again (Envoy's panic threshold), because then the fault is hardly theirs. A pod
//! that is ejected *and* does not answer telemetry is down, not ejected: it is used only if there is nothing else. A pod
//! that asked for a pause is spared while another can take the request.
use super::health::Standing;
use super::shut::Shut;
use crate::base::Mono;

/// What the rules look at, of one pod at one instant.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sign {
    /// The pod's own health.
    pub standing: Standing,
    /// Until when it asked to be spared.
    pub busy_until: Option<Mono>,
    /// Why it gets nothing new, if it does not.
    pub shut: Option<Shut>,
    /// Telemetry could not reach it several times in a row.
    pub is_dark: bool,
}

/// Why a pod may not be used now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Absent {
    /// It gets nothing new.
    Shut(Shut),
    /// Ejected until then.
    Ejected(Mono),
    /// Ejected, and telemetry cannot reach it either.
    Down,
    /// It asked to be spared until then.
    Busy(Mono),
}

/// Candidates counted by what they are like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// In good standing and not busy.
    pub free: u32,
    /// In good standing, but asked to be spared.
    pub busy: u32,
    /// Out (also those waiting for their probe), though telemetry reaches them or was never asked.
    pub out: u32,
    /// Out and out of telemetry's reach.
    pub down: u32,
    /// Those that get nothing new.
    pub shut: u32,
}

/// What follows for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So many are out that ejection is ignored; attempts need [`super::Leave::Forced`].
    pub panic: bool,
    /// Nothing else is left: pods that are down are tried too.
    pub last_resort: bool,
    /// All are busy, so being busy makes no difference.
    pub ignore_busy: bool,
}

impl Census {
    /// Counts one candidate.
    pub fn add(&mut self, sign: &Sign) {
        let group = match sign {
            Sign { shut: Some(_), .. } => &mut self.shut,
            Sign { standing: Standing::Ejected(_) | Standing::Probe, is_dark, .. } => {
                if *is_dark {
                    &mut self.down
                } else {
                    &mut self.out
                }
            }
            Sign { busy_until: Some(_), .. } => &mut self.busy,
            _ => &mut self.free,
        };
        *group = group.saturating_add(1);
    }

    /// The rule for these candidates; `ejected_share_max` from [`super::health::Settings`].
    pub fn rule(&self, ejected_share_max: f64) -> Rule {
        let serving = self.free + self.busy + self.out;
        let panic =
            self.out > 0 && (self.out == serving || f64::from(self.out) > ejected_share_max * f64::from(serving));
        let last_resort = serving == 0;
        Rule { panic: panic || last_resort && self.down > 0, last_resort, ignore_busy: self.free == 0 }
    }
}

impl Rule {
    /// Whether this candidate may be used: its standing for the decision, or why not.
    pub fn apply(&self, sign: &Sign) -> Result<Standing, Absent> {
        match *sign {
            Sign { shut: Some(why), .. } => Err(Absent::Shut(why)),
            Sign { standing: standing @ (Standing::Ejected(_) | Standing::Probe), is_dark, .. } => {
                if self.panic && (self.last_resort || !is_dark) {
                    return Ok(Standing::Ready);
                }
                match standing {
                    Standing::Ejected(_) if is_dark => Err(Absent::Down),
                    Standing::Ejected(until) => Err(Absent::Ejected(until)),
                    other => Ok(other),
                }
            }
            Sign { busy_until: Some(until), .. } if !self.ignore_busy => Err(Absent::Busy(until)),
            Sign { standing, .. } => Ok(standing),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]
    use super::*;
    use crate::base::Rng;

    const LATER: Mono = Mono(9);

    /// One letter per pod: `r`eady, `b`usy, `e`jected, `p`robe, `d`own, `s`leeping. Answers the letters that may be used.
    fn check(pods: &str, usable: &str, panic: bool) {
        let signs: Vec<Sign> = pods.chars().map(sign).collect();
        let mut census = Census::default();
        for sign in &signs {
            census.add(sign);
        }
        let rule = census.rule(0.5);
        let used: String =
            pods.chars().zip(&signs).filter(|(_, sign)| rule.apply(sign).is_ok()).map(|(letter, _)| letter).collect();
        assert_eq!((used.as_str(), rule.panic), (usable, panic), "{pods}");
    }

    fn sign(letter: char) -> Sign {
        let standing = match letter {
            'e' | 'd' => Standing::Ejected(LATER),
            'p' => Standing::Probe,
            _ => Standing::Ready,
        };
        let busy_until = (letter == 'b').then_some(LATER);
        Sign { standing, busy_until, shut: (letter == 's').then_some(Shut::Asleep), is_dark: letter == 'd' }
    }

    #[test]
    fn at_most_half_are_out_and_the_last_one_never() {
        check("rrrr", "rrrr", false);
        check("rrre", "rrr", false);
        check("rree", "rr", false);
        check("reee", "reee", true);
        check("e", "e", true);
        check("re", "r", false);
        check("eeee", "eeee", true);
        check("rrep", "rrp", false);
        check("", "", false);
    }

    #[test]
    fn sleepers_get_nothing_and_the_down_only_when_nothing_else_is_left() {
        check("ses", "e", true);
        check("sss", "", false);
        check("rddd", "r", false);
        check("reed", "ree", true);
        check("ddd", "ddd", true);
        check("sdd", "dd", true);
    }

    #[test]
    fn the_busy_are_spared_while_another_is_free() {
        check("rbb", "r", false);
        check("bbb", "bbb", false);
        check("bbe", "bb", false);
        check("bbp", "bbp", false);
    }

    #[test]
    fn a_serving_pod_is_always_left_over() {
        for seed in 0..2_000 {
            let mut rng = Rng::new(seed);
            let letters: Vec<char> =
                (0..rng.below(9)).map(|_| ['r', 'b', 'e', 'p', 'd', 's'][rng.below(6) as usize]).collect();
            let mut census = Census::default();
            for letter in &letters {
                census.add(&sign(*letter));
            }
            let rule = census.rule([0.0, 0.5, 1.0][rng.below(3) as usize]);
            let usable = letters.iter().filter(|letter| rule.apply(&sign(**letter)).is_ok()).count();
            let awake = letters.iter().filter(|letter| **letter != 's').count();
            assert_eq!(usable > 0, awake > 0, "seed {seed}: {letters:?}");
        }
    }
}
