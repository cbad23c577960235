//! Other gates in front of the same pods. They share nothing with this one, but they read the same prompts: a gate that meets
//! the beginning of a conversation sends it, others being equal, to the pod that rendezvous hashing names for it (highest
//! random weight, Thaler and Ravishankar 1998), and a gate that meets a conversation it has not seen guesses that it is there.
//!
//! All of it is worth as much as it comes true. Whether there are others is seen from load that is not ours; whether they go
//! by the same names, from the cached tokens that pods report where this gate knew of none. A gate that is alone guesses
//! nothing.
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::base::{Mono, PodId, Tokens};
use crate::pods::{Fleet, Lane, Role};
use crate::prefix::{Anchor, Fingerprint};

/// How quickly the share of others' load moves, per refresh.
const SHARE_RATE: f64 = 0.1;
/// Below this share of the load there are no others.
const SHARE_MIN: f64 = 0.02;
/// How quickly a guess's worth moves.
const TRUE_RATE: f64 = 0.005;
/// What a new conversation is drawn to its pod with, as a multiple of the tokens of its own, where all conversations go on.
const DRAW: f64 = 1.5;
/// How quickly the share of conversations that go on moves.
const GOING_ON_RATE: f64 = 0.01;
/// Guesses that come true this often count in full.
const TRUE_ENOUGH: f64 = 0.2;
/// So much of a guess must be cached for it to have come true.
const TRUE_PART: f64 = 0.9;

/// What is guessed to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Tools and system messages.
    Lead,
    /// The turns before the last message.
    Past,
    /// Nothing: a new conversation, which is drawn to where later turns will look for it.
    Draw,
}

/// One guess.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Guess {
    /// The pod.
    pub pod: PodId,
    /// What it is guessed to hold.
    pub kind: Kind,
    /// How many tokens that is.
    pub tokens: f64,
    /// How many it counts as.
    pub worth: f64,
}

/// Guesses of one request, none from a gate that is alone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Guesses {
    all: [Option<Guess>; 2],
    /// What tells requests apart.
    nonce: u64,
    /// Share of the load that is not ours.
    share: f64,
}

impl Guesses {
    /// Tokens that `pod` counts as holding beyond the `hit` that is known.
    #[inline]
    pub fn beyond(&self, pod: PodId, hit: Tokens) -> Tokens {
        self.most(pod, |_| true).less(hit)
    }

    /// Tokens that `pod` is expected to hold beyond the `hit` that is known.
    pub fn expected(&self, pod: PodId, hit: Tokens) -> Tokens {
        self.most(pod, |kind| kind != Kind::Draw).less(hit)
    }

    /// The best guess at `pod` among those of the kinds that count.
    fn most(&self, pod: PodId, counts: impl Fn(Kind) -> bool) -> Tokens {
        let guesses = self.of(pod).filter(|guess| counts(guess.kind));
        Tokens(guesses.fold(0.0, |most: f64, guess| most.max(guess.worth)) as u64)
    }

    /// What is not known of `pod` because others send requests there in the same moment: 0 to their share of the load, by
    /// chance, another for each request and pod. Gates that see the same readings do not all choose the same pod.
    #[inline]
    pub fn blur(&self, pod: PodId) -> f64 {
        if self.share <= 0.0 {
            return 0.0;
        }
        (mixed(self.nonce ^ u64::from(pod.0)) >> 11) as f64 / (1_u64 << 53) as f64 * self.share
    }

    /// The pods that are guessed at.
    pub fn pods(&self) -> impl Iterator<Item = PodId> + '_ {
        self.all.iter().flatten().map(|guess| guess.pod)
    }

    fn of(&self, pod: PodId) -> impl Iterator<Item = &Guess> {
        self.all.iter().flatten().filter(move |guess| guess.pod == pod)
    }
}

/// What is known of other gates. Shared by all request tasks.
#[derive(Debug)]
pub struct Peers {
    /// Their share of the load, 0 to 1.
    share: AtomicU32,
    /// Share of conversations that come with earlier turns, 0 to 1.
    going_on: AtomicU32,
    /// How often a lead and a past came true, 0 to 1; taken to be always until it is seen.
    truth: [AtomicU32; 2],
}

impl Default for Peers {
    fn default() -> Self {
        let one = || AtomicU32::new(1.0_f32.to_bits());
        Self { share: AtomicU32::new(0), going_on: AtomicU32::new(0), truth: [one(), one()] }
    }
}

impl Peers {
    /// Takes what the pods' readings say of the load of others; about once a second.
    pub fn refresh(&self, fleet: &Fleet, now: Mono) {
        let (mut ours, mut theirs) = (0.0, 0.0);
        for lane in &fleet.lanes {
            ours += f64::from(lane.load.now().requests);
            theirs += lane.load.others(now).0;
        }
        if ours + theirs > 0.0 {
            move_to(&self.share, theirs / (ours + theirs), SHARE_RATE);
        }
    }

    /// Share of the load on the pods that is not ours, 0 to 1.
    pub fn share(&self) -> f64 {
        load(&self.share)
    }

    /// What others are likely to have put where, of a prompt of `tokens`.
    pub fn guess(&self, prompt: &Fingerprint, tokens: Tokens, fleet: &Fleet, model: &str) -> Guesses {
        let share = self.share();
        let [chain] = prompt.chains.as_slice() else { return Guesses::default() };
        if share < SHARE_MIN || prompt.skips_cache || chain.bytes == 0 {
            return Guesses::default();
        }
        let length = |bytes: u64| bytes as f64 * tokens.0 as f64 / chain.bytes as f64;
        let [lead_truth, past_truth] = self.truth.each_ref().map(|truth| (load(truth) / TRUE_ENOUGH).min(1.0));
        let guess = |anchor: Anchor, kind, tokens: f64, part: f64| {
            Some(Guess { pod: named(anchor.key, fleet, model)?, kind, tokens, worth: tokens * part })
        };
        let anchors = &prompt.anchors;
        if anchors.opening.is_some() {
            move_to(&self.going_on, f64::from(u8::from(anchors.past.is_some())), GOING_ON_RATE);
        }
        let lead = anchors.lead.and_then(|lead| guess(lead, Kind::Lead, length(lead.bytes), lead_truth));
        let opening = anchors.opening.and_then(|opening| {
            if let Some(past) = anchors.past {
                return guess(opening, Kind::Past, length(past), past_truth);
            }
            let own = opening.bytes.saturating_sub(anchors.lead.map_or(0, |lead| lead.bytes));
            guess(opening, Kind::Draw, length(own), DRAW * load(&self.going_on) * past_truth)
        });
        let nonce = chain.blocks.last().copied().unwrap_or(chain.bytes);
        Guesses { all: [lead, opening], nonce, share }
    }

    /// A pod told how much of the prompt it had cached, where this gate knew of `known` tokens.
    pub fn learn(&self, guesses: &Guesses, pod: PodId, known: Tokens, cached: Tokens) {
        for guess in guesses.of(pod) {
            let truth = match guess.kind {
                Kind::Lead => self.truth.first(),
                Kind::Past => self.truth.last(),
                Kind::Draw => None,
            };
            if let Some(truth) = truth.filter(|_| (known.0 as f64) < guess.tokens * TRUE_PART) {
                let came = f64::from(u8::from(cached.0 as f64 >= guess.tokens * TRUE_PART));
                move_to(truth, came, TRUE_RATE);
            }
        }
    }
}

/// The pod that every gate names for a key, of those that serve the model and are well.
fn named(key: u64, fleet: &Fleet, model: &str) -> Option<PodId> {
    let weigh = |lane: &Lane| mixed(lane.name ^ key);
    let can = |lane: &&Lane| lane.role != Role::Prefill && lane.load.is_clear();
    let best = if model.is_empty() {
        fleet.lanes.iter().filter(can).max_by_key(|lane| weigh(lane))
    } else {
        let serving = fleet.serving(model).iter().filter_map(|position| fleet.lanes.get(*position));
        serving.filter(can).max_by_key(|lane| weigh(lane))
    };
    best.map(|lane| lane.id)
}

/// Spreads a key over all bits (the finaliser of MurmurHash3).
const fn mixed(key: u64) -> u64 {
    let key = (key ^ (key >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
    let key = (key ^ (key >> 33)).wrapping_mul(0xC4CE_B9FE_1A85_EC53);
    key ^ (key >> 33)
}

fn load(cell: &AtomicU32) -> f64 {
    f64::from(f32::from_bits(cell.load(Relaxed)))
}

/// Moves a mean towards a value.
fn move_to(cell: &AtomicU32, value: f64, rate: f64) {
    let before = load(cell);
    cell.store(((before + rate * (value - before)).clamp(0.0, 1.0) as f32).to_bits(), Relaxed);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use super::*;
    use crate::api::{Anatomy, Api};
    use crate::pods::{Outcome, PodSpec, Reading, Table};
    use crate::prefix::Seed;

    const NOW: Mono = Mono(9_000_000);

    fn table(ports: impl IntoIterator<Item = u16>) -> Table {
        let spec = |port: u16| PodSpec {
            addr: ([127, 0, 0, 1], port).into(),
            authority: "a".into(),
            tls: None,
            rank: None,
            role: Role::Both,
            labels: BTreeMap::new(),
        };
        let table = Table::default();
        table.set(ports.into_iter().map(spec).collect());
        table
    }

    /// A gate that has seen load of others on all pods for a while.
    fn crowded(fleet: &Fleet) -> Peers {
        let peers = Peers::default();
        for pod in &fleet.pods {
            pod.read(Reading { taken: NOW, running: Some(3), ..Reading::default() });
        }
        (0..50).for_each(|_| peers.refresh(fleet, NOW));
        peers
    }

    fn prompt(number: u32, turns: usize, secret: u64) -> Fingerprint {
        let more = r#",{"role":"assistant","content":"Hi."},{"role":"user","content":"And now?"}"#.repeat(turns - 1);
        let body = format!(
            r#"{{"messages":[{{"role":"system","content":"Be brief."}},{{"role":"user","content":"{number}"}}{more}]}}"#
        );
        let anatomy = Anatomy::read(Api::Chat, body.as_bytes()).unwrap();
        Fingerprint::of(Api::Chat, &anatomy, &Seed { model: "m", secret, ..Seed::default() })
    }

    fn kinds(guesses: &Guesses) -> Vec<Kind> {
        guesses.all.iter().flatten().map(|guess| guess.kind).collect()
    }

    #[test]
    fn a_gate_that_is_alone_guesses_nothing() {
        let fleet = table(1..9).fleet();
        let peers = Peers::default();
        (0..50).for_each(|_| peers.refresh(&fleet, NOW));
        let guesses = peers.guess(&prompt(1, 3, 0), Tokens(100), &fleet, "");
        assert_eq!((guesses, guesses.blur(PodId(1)).to_bits()), (Guesses::default(), 0));
    }

    #[test]
    fn gates_with_other_ids_and_secrets_name_the_same_pod() {
        let (one, two) = (table(1..9).fleet(), table((1..9).rev()).fleet());
        let (peers, others) = (crowded(&one), crowded(&two));
        let mut named = std::collections::HashSet::new();
        for number in 0..64 {
            let addr = |guesses: &Guesses, fleet: &Fleet| {
                let guess = guesses.all[1].unwrap();
                fleet.find(guess.pod).unwrap().spec.addr
            };
            let first = peers.guess(&prompt(number, 1, 1), Tokens(100), &one, "");
            let next = others.guess(&prompt(number, 3, 2), Tokens(300), &two, "");
            assert_eq!(addr(&first, &one), addr(&next, &two), "conversation {number}");
            assert_eq!((kinds(&first), kinds(&next)), (vec![Kind::Lead, Kind::Draw], vec![Kind::Lead, Kind::Past]));
            named.insert(addr(&first, &one));
        }
        assert_eq!(named.len(), 8, "conversations spread over all pods");
    }

    #[test]
    fn what_does_not_come_true_counts_for_nothing() {
        let fleet = table(1..9).fleet();
        let peers = crowded(&fleet);
        let guess = || peers.guess(&prompt(1, 3, 0), Tokens(300), &fleet, "");
        let guesses = guess();
        let past = guesses.all[1].unwrap();
        let all = Tokens(past.tokens as u64);
        assert!(guesses.expected(past.pod, Tokens(0)) >= all && guesses.expected(past.pod, all) == Tokens(0));
        assert!(guesses.expected(past.pod, Tokens(10)) == Tokens(all.0 - 10), "beyond what is known");
        for _ in 0..2_000 {
            peers.learn(&guesses, past.pod, Tokens(0), Tokens(0));
        }
        assert_eq!(guess().expected(past.pod, Tokens(0)), Tokens(0));
        for _ in 0..2_000 {
            peers.learn(&guesses, past.pod, Tokens(0), Tokens(300));
        }
        assert_eq!(guess().expected(past.pod, Tokens(0)), all);
        let known = Tokens(300);
        (0..2_000).for_each(|_| peers.learn(&guesses, past.pod, known, Tokens(0)));
        assert_eq!(guess().expected(past.pod, Tokens(0)), all, "what this gate knew by itself proves nothing");
    }

    #[test]
    fn a_draw_is_no_hit_and_needs_conversations_that_go_on() {
        let fleet = table(1..9).fleet();
        let peers = crowded(&fleet);
        let draw = |peers: &Peers| peers.guess(&prompt(1, 1, 0), Tokens(100), &fleet, "").all[1].unwrap();
        assert!(draw(&peers).worth.abs() < 1e-9, "no conversation has gone on yet");
        for _ in 0..500 {
            let _ = peers.guess(&prompt(2, 2, 0), Tokens(100), &fleet, "");
        }
        let drawn = draw(&peers);
        let guesses = Guesses { all: [None, Some(drawn)], ..Guesses::default() };
        assert!(
            guesses.beyond(drawn.pod, Tokens(0)) > Tokens(0) && guesses.expected(drawn.pod, Tokens(0)) == Tokens(0)
        );
    }

    #[test]
    fn a_pod_that_is_out_is_not_named_and_the_others_keep_theirs() {
        let fleet = table(1..9).fleet();
        let before: Vec<Option<PodId>> = (0..64).map(|key| named(mixed(key), &fleet, "")).collect();
        let out: &Arc<_> = fleet.pods.first().unwrap();
        (0..9).for_each(|_| out.health.lock().on(NOW, Outcome::ConnectFailed));
        for (key, before) in before.into_iter().enumerate() {
            let after = named(mixed(key as u64), &fleet, "");
            assert!(after != Some(out.id) && (after == before || before == Some(out.id)));
        }
    }

    #[test]
    fn blur_is_within_the_share_of_others() {
        let fleet = table(1..9).fleet();
        let guesses = crowded(&fleet).guess(&prompt(1, 1, 0), Tokens(100), &fleet, "");
        let blurs: Vec<f64> = (0..100).map(|pod| guesses.blur(PodId(pod))).collect();
        let mean = blurs.iter().sum::<f64>() / 100.0;
        assert!(blurs.iter().all(|blur| (0.0..=guesses.share).contains(blur)) && mean > 0.3 * guesses.share);
    }
}
