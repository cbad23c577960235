//! The index over a restart of the gate, as bytes: what pods hold, in the order they would evict it, and what was learnt of
//! models. Hashes and counts only; without the secret of the gate they say nothing.
//!
//! Pods are named by address and rank, because ids change, and with the start of their process: what a pod held before it
//! restarted is not believed. Claims are not saved; their requests ended with the gate. Whoever reads or writes the file
//! bounds its size; a file that is cut, changed, of another version or another secret is refused whole.
use thiserror::Error;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::base::PodId;

use super::fingerprint::BLOCK_BYTES;
use super::index::Index;
use super::ratio::{PARTS, Ratio};
use super::run::{Exact, NONE};
use super::slab::Map;
use super::tree::Tree;

const MAGIC: &[u8; 8] = b"TIDEGATE";
/// Changes with every change of the format, or of what a block is made of.
const VERSION: u32 = 1;
/// Start times that differ less are the same process, in seconds.
const START_SLACK_S: f64 = 1.0;

/// A pod as a snapshot names it.
#[derive(Clone, Debug, PartialEq)]
pub struct PodName {
    /// Host and port as configured or discovered.
    pub address: String,
    /// Data-parallel rank.
    pub rank: Option<u32>,
    /// Start of the pod's process, in seconds of the pod's own clock.
    pub started_at_s: f64,
}

impl PodName {
    fn is_place(&self, other: &Self) -> bool {
        (&self.address, self.rank) == (&other.address, other.rank)
    }
}

/// Why a snapshot is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadSnapshot {
    /// Not one of ours, or of another version.
    #[error("it is no snapshot of this version; it will be replaced at shutdown")]
    Foreign,
    /// Another secret: its hashes mean nothing here.
    #[error("it was made with another secret; give prefix.secret_file the one it was made with, or remove it")]
    OtherSecret,
    /// Cut or changed.
    #[error("it is damaged; remove it")]
    Damaged,
}

/// A run as it was saved.
#[derive(Debug)]
pub(super) struct SavedRun {
    pub(super) parent: u32,
    pub(super) tenant: u64,
    pub(super) blocks: Vec<u64>,
    pub(super) exact: Vec<Exact>,
}

/// What a pod held of a run.
#[derive(Clone, Copy, Debug)]
pub(super) struct SavedHold {
    pub(super) touched: u64,
    pub(super) run: u32,
    pub(super) ready: u16,
    pub(super) prompted: u16,
}

/// A snapshot that was read: waits until its pods are met again.
#[derive(Debug, Default)]
pub struct Snapshot {
    pub(super) runs: Vec<SavedRun>,
    pub(super) pods: Vec<(PodName, Vec<SavedHold>)>,
    pub(super) ratios: Vec<(u64, Ratio)>,
}

impl Snapshot {
    /// Reads a snapshot made with this secret.
    pub fn read(bytes: &[u8], secret: u64) -> Result<Self, BadSnapshot> {
        let head = bytes.strip_prefix(MAGIC).ok_or(BadSnapshot::Foreign)?;
        let mut head = Reader(head);
        if head.u32() != Some(VERSION) || head.u32() != Some(BLOCK_BYTES as u32) {
            return Err(BadSnapshot::Foreign);
        }
        if head.u64() != Some(mark_of(secret)) {
            return Err(BadSnapshot::OtherSecret);
        }
        let (body, sum) = bytes.split_last_chunk::<8>().ok_or(BadSnapshot::Damaged)?;
        if u64::from_le_bytes(*sum) != xxh3_64_with_seed(body, secret) {
            return Err(BadSnapshot::Damaged);
        }
        let mut body = Reader(head.0.get(..head.0.len() - 8).ok_or(BadSnapshot::Damaged)?);
        let snapshot = Self::read_body(&mut body).ok_or(BadSnapshot::Damaged)?;
        if body.0.is_empty() { Ok(snapshot) } else { Err(BadSnapshot::Damaged) }
    }

    fn read_body(from: &mut Reader<'_>) -> Option<Self> {
        let mut snapshot = Self::default();
        for _ in 0..from.u32()? {
            let (model, samples, mut parts) = (from.u64()?, from.u32()?, [0.0; PARTS]);
            for part in &mut parts {
                *part = f64::from_bits(from.u64()?);
            }
            snapshot.ratios.push((model, Ratio::saved(samples, parts)?));
        }
        for _ in 0..from.u32()? {
            let len = usize::from(from.u16()?);
            let address = String::from_utf8(from.take(len)?.to_vec()).ok()?;
            let rank = Some(from.u32()?).filter(|rank| *rank != NONE);
            let name = PodName { address, rank, started_at_s: f64::from_bits(from.u64()?) };
            snapshot.pods.push((name, Vec::new()));
        }
        for number in 0..from.u32()? {
            let run = SavedRun::read(from)?;
            // Parents come first, so that no circle can be written.
            if run.blocks.is_empty() || run.parent != NONE && run.parent >= number {
                return None;
            }
            for _ in 0..from.u32()? {
                let pod = from.u32()? as usize;
                let hold = SavedHold { run: number, ready: from.u16()?, prompted: from.u16()?, touched: from.u64()? };
                if hold.prompted > hold.ready || usize::from(hold.ready) > run.blocks.len() {
                    return None;
                }
                snapshot.pods.get_mut(pod)?.1.push(hold);
            }
            snapshot.runs.push(run);
        }
        Some(snapshot)
    }

    /// Takes out what a pod held; nothing if it is not named or has restarted since.
    pub(super) fn take(&mut self, name: &PodName) -> Option<Vec<SavedHold>> {
        let at = self.pods.iter().position(|(saved, _)| saved.is_place(name))?;
        let (saved, holds) = self.pods.swap_remove(at);
        ((saved.started_at_s - name.started_at_s).abs() <= START_SLACK_S).then_some(holds)
    }

    /// Were all its pods met?
    pub const fn is_done(&self) -> bool {
        self.pods.is_empty()
    }
}

impl SavedRun {
    fn read(from: &mut Reader<'_>) -> Option<Self> {
        let (parent, tenant, len) = (from.u32()?, from.u64()?, from.u16()?);
        let (words, rest) = from.take(usize::from(len) * 8)?.as_chunks::<8>();
        debug_assert!(rest.is_empty(), "whole words were taken");
        let blocks = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let mut exact = Vec::new();
        for _ in 0..from.u16()? {
            exact.push(Exact { depth: from.u16()?, bytes: from.u32()?, tokens: from.u32()?, is_told: false, doubt: 0 });
        }
        Some(Self { parent, tenant, blocks, exact })
    }
}

/// Tells secrets apart without telling them.
fn mark_of(secret: u64) -> u64 {
    xxh3_64_with_seed(MAGIC, xxh3_64(&secret.to_le_bytes()))
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[derive(Default)]
struct Out(Vec<u8>);

impl Out {
    fn u16(&mut self, number: u16) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn u32(&mut self, number: u32) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn u64(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn pods(&mut self, names: &[(PodId, PodName)]) {
        self.u32(names.len() as u32);
        for (_, name) in names {
            let address = name.address.get(..name.address.len().min(1_024)).unwrap_or_default();
            self.u16(address.len() as u16);
            self.0.extend_from_slice(address.as_bytes());
            self.u32(name.rank.unwrap_or(NONE));
            self.u64(name.started_at_s.to_bits());
        }
    }

    /// Writes all runs, parents before children.
    fn runs(&mut self, tree: &Tree, pods: &Map<PodId, u32>) {
        self.u32(tree.runs.len() as u32);
        let is_root = |id: &u32| tree.runs.get(*id).is_some_and(|run| !run.blocks.is_empty() && run.parent == NONE);
        let mut open: Vec<(u32, u32)> = (0..tree.runs.end()).filter(is_root).map(|id| (id, NONE)).collect();
        let mut number = 0;
        while let Some((id, parent)) = open.pop() {
            let Some(run) = tree.runs.get(id) else { continue };
            self.u32(parent);
            self.u64(tree.tenants.name(run.tenant));
            self.u16(run.len());
            run.blocks.iter().for_each(|block| self.u64(*block));
            // What pods told is learnt again soon.
            let exact = || run.exact.iter().filter(|exact| !exact.is_told);
            self.u16(exact().count() as u16);
            for exact in exact() {
                self.u16(exact.depth);
                self.u32(exact.bytes);
                self.u32(exact.tokens);
            }
            let holders = || run.holders.iter().filter_map(|holder| Some((*pods.get(&holder.pod)?, holder)));
            self.u32(holders().count() as u32);
            for (pod, holder) in holders() {
                self.u32(pod);
                self.u16(holder.held.ready);
                self.u16(holder.held.prompted);
                self.u64(holder.touched);
            }
            let mut child = run.child;
            while let Some(next) = tree.runs.get(child) {
                open.push((child, number));
                child = next.next;
            }
            number += 1;
        }
    }
}

impl Index {
    /// All of the index that outlives the gate. Pods without a name are left out.
    pub fn snapshot(&self, secret: u64, name: impl Fn(PodId) -> Option<PodName>) -> Vec<u8> {
        let inner = self.inner.read();
        let mut out = Out(MAGIC.to_vec());
        out.u32(VERSION);
        out.u32(BLOCK_BYTES as u32);
        out.u64(mark_of(secret));
        out.u32(inner.ratios.len() as u32);
        for (model, ratio) in &inner.ratios {
            let (samples, parts) = ratio.parts();
            out.u64(*model);
            out.u32(samples);
            for part in parts {
                out.u64(part.to_bits());
            }
        }
        let mut names: Vec<_> = inner.tree.pods.keys().filter_map(|pod| Some((*pod, name(*pod)?))).collect();
        names.sort_by_key(|(pod, _)| *pod);
        out.pods(&names);
        let places = names.iter().zip(0..).map(|((pod, _), place)| (*pod, place)).collect();
        out.runs(&inner.tree, &places);
        let sum = xxh3_64_with_seed(&out.0, secret);
        out.u64(sum);
        out.0
    }
}
