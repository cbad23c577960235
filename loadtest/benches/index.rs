//! Measures the prefix index where it hurts: many pods, many blocks, nothing in the processor's caches.
//!
//! `cargo bench --bench index` builds an index of 10 million distinct blocks on 1,000 pods, each run held by two pods in the
//! mean, with run lengths as in a chat trace (mean 32 blocks of 256 bytes; prompts of 512 blocks), and prints what lookups,
//! claims and the rest cost and how many live bytes a block takes. `-- --quick` is a twentieth of it. Times are
//! those of one thread.
#![allow(clippy::print_stdout, clippy::disallowed_methods, unsafe_code)]
use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use tidegate::api::{Anatomy, Api};
use tidegate::base::{PodId, Rng, Tokens};
use tidegate::prefix::{Chain, Claim, Fingerprint, Hits, Index, Limits, Seed};

/// Counts live bytes as they were asked for.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        LIVE.fetch_add(size, Relaxed);
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const PODS: u32 = 1_000;
/// Turns of a conversation, and conversations of a family: number `k` shares its first `k` turns with number 0 and goes
/// its own way from there, so that the family's trunk has a branch after every turn.
const TURNS: u64 = 16;
/// System prompts: the first turn is one of these.
const SYSTEMS: u64 = 200;
/// Distinct blocks of a family in the mean.
const FAMILY_BLOCKS: u64 = 32 * TURNS * (TURNS + 1) / 2;

/// Families of conversations: the text of one follows from its number, so that any can be written again.
struct World {
    families: u64,
}

impl World {
    /// All blocks of a conversation. A turn has 8 to 56.
    fn prompt(family: u64, member: u64) -> Fingerprint {
        let mut blocks = Vec::with_capacity(TURNS as usize * 32);
        let mut parent = 1;
        for turn in 0..TURNS {
            let who = match turn {
                0 => family % SYSTEMS,
                _ if turn <= member => family << 8,
                _ => family << 8 | (member + 1),
            };
            let mut rng = Rng::new((who << 8 | turn) ^ 0x5EED);
            for _ in 0..8 + rng.below(49) {
                parent = Rng::new(parent ^ rng.bits()).bits();
                blocks.push(parent);
            }
        }
        Fingerprint::of_chains(vec![Chain::of(blocks)], 1)
    }

    /// A conversation to look up or send again: one of the last of its family, whose prompt has most branches.
    fn known(&self, rng: &mut Rng) -> (Fingerprint, PodId) {
        let (family, member) = (rng.below(self.families), TURNS - 1 - rng.below(3));
        let [pod, _] = Self::pods(family, member);
        (Self::prompt(family, member), pod)
    }

    /// The two pods of a conversation; those of a family mostly meet again.
    fn pods(family: u64, member: u64) -> [PodId; 2] {
        let pod = |salt: u64| PodId(Rng::new(family << 8 ^ salt).below(PODS.into()) as u32);
        [pod(if member.is_multiple_of(4) { member } else { 100 }), pod(101)]
    }

    fn fill(&self, index: &Index) {
        for member in 0..TURNS {
            for family in 0..self.families {
                let prompt = Self::prompt(family, member);
                for pod in Self::pods(family, member) {
                    let claim = index.claim(&prompt, pod);
                    index.confirm(&prompt, claim);
                }
            }
        }
    }
}

/// Prints the mean and percentiles of single calls, in microseconds.
fn report(name: &str, mut nanos: Vec<u64>) {
    nanos.sort_unstable();
    let at = |part: f64| {
        let place = ((nanos.len() - 1) as f64 * part) as usize;
        nanos.get(place).copied().unwrap_or_default() as f64 / 1e3
    };
    let mean = nanos.iter().sum::<u64>() as f64 / nanos.len() as f64 / 1e3;
    println!("{name:34} mean {mean:7.2} us   p50 {:7.2}   p99 {:7.2}   p99.9 {:7.2}", at(0.5), at(0.99), at(0.999));
}

fn timed<T>(count: usize, mut prepare: impl FnMut() -> T, mut work: impl FnMut(&T)) -> Vec<u64> {
    (0..count)
        .map(|_| {
            let input = prepare();
            let start = Instant::now();
            work(&input);
            start.elapsed().as_nanos() as u64
        })
        .collect()
}

fn lookups(index: &Index, world: &World, calls: usize) {
    let (mut rng, mut hits) = (Rng::new(3), Hits::default());
    let mut next = || world.known(&mut rng).0;
    let (mut holders, mut blocks, mut out) = (0, 0, Hits::default());
    let times = timed(calls, &mut next, |prompt| {
        index.lookup_into(prompt, &mut out);
        holders += out.len();
        blocks += prompt.blocks();
    });
    println!("prompts of {} blocks, held in part by {} pods of {PODS} (means)", blocks / calls, holders / calls);
    report("lookup", times);
    let times = timed(calls, &mut next, |prompt| {
        index.lookup_into(prompt, &mut hits);
        let all: u64 = (0..PODS).map(|pod| hits.of(PodId(pod)).0.0).sum();
        black_box(all);
    });
    report("lookup and depth of every pod", times);
    let prompt = next();
    let before = LIVE.load(Relaxed);
    (0..100).for_each(|_| index.lookup_into(&prompt, &mut hits));
    println!("allocated by lookups into used memory: {} bytes", LIVE.load(Relaxed) - before);
}

fn writes(index: &Index, world: &World, calls: usize) {
    let (mut rng, mut claims) = (Rng::new(4), Vec::new());
    let claimed = timed(calls, || world.known(&mut rng), |(prompt, pod)| claims.push(index.claim(prompt, *pod)));
    report("claim", claimed);
    // The same prompts again, each with its claim.
    let again = || {
        let (mut rng, mut claims) = (Rng::new(4), claims.iter());
        move || (world.known(&mut rng).0, claims.next().copied())
    };
    let confirm = |(prompt, claim): &(Fingerprint, Option<Claim>)| {
        if let Some(claim) = claim {
            index.confirm(prompt, *claim);
        }
    };
    report("confirm", timed(calls, again(), confirm));
    let learn = |(prompt, claim): &(Fingerprint, Option<Claim>)| {
        if let Some(claim) = claim {
            index.learn(prompt, *claim, Tokens(prompt.bytes / 4), Some(claim.expected));
        }
    };
    report("learn", timed(calls, again(), learn));
    let mut family = world.families;
    let mut next = || {
        family += 1;
        (World::prompt(family, 0), PodId(family as u32 % PODS))
    };
    let claim = |(prompt, pod): &(_, PodId)| {
        black_box(index.claim(prompt, *pod));
    };
    report("claim of a new prompt", timed(calls, &mut next, claim));
    index.set_capacity(PodId(7), Tokens(64 * 4_000), Tokens(16));
    let on_full = || (next().0, PodId(7));
    report("the same on a full pod", timed(calls, on_full, claim));
}

fn fingerprints() {
    let message = |turn: usize| {
        let role = if turn.is_multiple_of(2) { "user" } else { "assistant" };
        let text = "The quick brown fox jumps over the lazy dog, again and again. ".repeat(4) + "\\n\\\"So it is.\\\" ";
        format!("{{\"role\":\"{role}\",\"content\":\"{}\"}}", text.repeat(8))
    };
    let messages: Vec<_> = (0..46).map(message).collect();
    let body = format!("{{\"model\":\"m\",\"messages\":[{}]}}", messages.join(","));
    println!("chat of {} KB:", body.len() / 1_000);
    let read = || Anatomy::read(Api::Chat, body.as_bytes());
    report("anatomy", timed(2_000, || (), |()| drop(black_box(read()))));
    let of = |anatomy: &Result<Anatomy<'_>, _>| {
        let print = anatomy.as_ref().map(|anatomy| Fingerprint::of(Api::Chat, anatomy, &Seed::default()));
        drop(black_box(print));
    };
    report("fingerprint", timed(2_000, read, of));
}

fn main() {
    let is_quick = std::env::args().any(|word| word == "--quick");
    let (goal, calls) = if is_quick { (500_000, 5_000) } else { (10_000_000, 20_000) };
    fingerprints();
    let world = World { families: goal / FAMILY_BLOCKS };
    let limits = Limits { bytes_max: 1 << 40, pod_tokens: Tokens(1 << 40), ..Limits::default() };
    let index = Index::new(limits);
    let before = LIVE.load(Relaxed);
    let started = Instant::now();
    world.fill(&index);
    let live = LIVE.load(Relaxed) - before;
    let stats = index.stats();
    println!(
        "{} blocks on {} pods, filled in {:.1} s: {:.1} live bytes per block ({:.1} by the index's own count)",
        stats.blocks,
        stats.pods,
        started.elapsed().as_secs_f64(),
        live as f64 / stats.blocks as f64,
        stats.bytes as f64 / stats.blocks as f64
    );
    lookups(&index, &world, calls);
    writes(&index, &world, calls);
}
