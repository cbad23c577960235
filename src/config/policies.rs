//! The policies that come with the program (`conf/policies/`): how other routers choose, to be compared with.
//!
//! Each file is a whole configuration that sets `routing.profile`, so it can be served as it is; here only the profile counts.
use std::sync::Arc;

use super::shape::parse;
use crate::scheduling::{Profile, ProfileSettings};

const TEXTS: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/policies.rs"));

/// Names of all policies, sorted.
pub fn policy_names() -> impl Iterator<Item = &'static str> {
    TEXTS.iter().map(|(name, _)| *name)
}

/// Settings of a policy; `None` if there is none of this name.
pub fn policy_settings(name: &str) -> Option<ProfileSettings> {
    let (_, text) = TEXTS.iter().find(|(known, _)| *known == name)?;
    parse(text).ok().map(|tree| tree.routing.profile)
}

/// A policy ready to decide; `None` if there is none of this name.
pub fn policy(name: &str) -> Option<Arc<Profile>> {
    Profile::new(&policy_settings(name)?).ok().map(Arc::new)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use std::collections::BTreeMap;

    use super::super::shape::check;
    use super::*;
    use crate::base::{Mono, Rng, Tokens};
    use crate::pods::health::Settings;
    use crate::pods::{PodSpec, Table};
    use crate::prefix::Hits;
    use crate::scheduling::{Desk, Detail, Query, Request, place};

    #[test]
    fn every_policy_says_what_it_is_and_decides() {
        let table = Table::new(Settings::default());
        let spec = |number: u16| PodSpec {
            addr: ([127, 0, 0, 1], number).into(),
            authority: "a".into(),
            tls: None,
            rank: None,
            role: crate::pods::Role::Both,
            labels: BTreeMap::new(),
        };
        table.set((1..9).map(spec).collect());
        let (fleet, mut desk) = (table.fleet(), Desk::default());
        let hits = Hits::made_up(Tokens(1000), [(fleet.pods.first().unwrap().id, Tokens(900), Tokens(0))]);
        let request = Request { head: Some(5), ..Request::new("m", Tokens(1000)) };
        let query = Query::new(&fleet, &request, &hits, Mono(9_000_000));
        for (name, text) in TEXTS {
            assert!(check(text).is_empty(), "{name}: {:#?}", check(text));
            for word in if *name == "marginal-cost" { &["The default"][..] } else { &["Source:", "Differences:"][..] } {
                assert!(text.lines().any(|line| line.starts_with(&format!("# {word}"))), "{name} says no {word}");
            }
            assert_ne!(policy_settings(name) == Some(ProfileSettings::default()), *name != "marginal-cost", "{name}");
            let decision = place(&policy(name).unwrap(), &query, &mut Rng::new(1), Detail::Rows, &mut desk);
            assert!(decision.chosen.is_some(), "{name}: {decision:?}");
        }
        assert!(policy_names().count() >= 12 && policy("none").is_none());
    }
}
