//! Changes top-level members of a body and keeps every other byte. A removed member takes along exactly one comma: the one
//! that joined it to a member that stays. White space, key order, number spelling and unknown members survive.
//!
//! Dangerous members go wherever vLLM 0.32 reads them: at top level, and (for they end in the same `extra_args` of the
//! sampling parameters) in `vllm_xargs`, `extra_args`, `sampling_params` and `sampling_params.extra_args`. An `extra_body`
//! member is the OpenAI client's own notion: it never reaches the wire as such and vLLM ignores it, so it is left alone.
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::anatomy::{Anatomy, Member};
use super::json::{self, MemberView};

/// Members that only gates may send to a pod: one of them from a client can kill a decode server (vLLM 0.32, NIXL).
pub const DANGEROUS: [&str; 2] = ["kv_transfer_params", "ec_transfer_params"];

/// One change of a top-level member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edit<'a> {
    /// The member, escapes resolved.
    pub key: &'a str,
    /// JSON to put there (replacing the first of that name, else appended); `None` removes all of that name.
    pub value: Option<&'a [u8]>,
}

/// The edits that remove [`DANGEROUS`] members; empty for a body that has none, which is then sent as it came.
pub fn strip_dangerous(anatomy: &Anatomy<'_>) -> &'static [Edit<'static>] {
    const STRIP: [Edit<'static>; 2] =
        [Edit { key: DANGEROUS[0], value: None }, Edit { key: DANGEROUS[1], value: None }];
    if anatomy.dangerous() { &STRIP } else { &[] }
}

/// Applies edits to the body that `anatomy` was read from. Any edit of a dangerous member, its replacement included, also
/// drops all dangerous members below the top level. Without edits the body itself comes back, not a copy.
pub fn splice(body: &Bytes, anatomy: &Anatomy<'_>, edits: &[Edit<'_>]) -> Bytes {
    if edits.is_empty() {
        return body.clone();
    }
    let mut changes = changes(anatomy, edits);
    changes.sort_by_key(|(range, _)| (range.start, range.end));
    let grown: usize = changes.iter().map(|(_, text)| text.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + grown);
    let mut at = 0;
    for (range, text) in &changes {
        if range.start < at {
            continue;
        }
        out.extend_from_slice(body.get(at..range.start).unwrap_or_default());
        out.extend_from_slice(text);
        at = range.end;
    }
    out.extend_from_slice(body.get(at..).unwrap_or_default());
    out.freeze()
}

/// What to do with one member.
#[derive(Clone, Copy)]
enum Fate<'a> {
    Stays,
    Goes,
    Becomes(&'a [u8]),
}

fn changes(anatomy: &Anatomy<'_>, edits: &[Edit<'_>]) -> Vec<(Range<usize>, Vec<u8>)> {
    let mut placed = vec![false; edits.len()];
    let fates: Vec<_> = anatomy.members.iter().map(|member| fate(member, edits, &mut placed)).collect();
    let mut changes: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    let spans = anatomy.members.iter().map(|member| (member.start..member.end(), member.comma));
    let goes = |index: usize| matches!(fates.get(index), Some(Fate::Goes));
    changes.extend(cuts(spans, goes).into_iter().map(|cut| (cut, Vec::new())));
    let mut last = None;
    for (member, fate) in anatomy.members.iter().zip(&fates) {
        if let Fate::Becomes(value) = fate {
            changes.push((member.value_start..member.end(), value.to_vec()));
        }
        if !matches!(fate, Fate::Goes) {
            last = Some(member.end());
        }
    }
    let mut added = Vec::new();
    for (edit, placed) in edits.iter().zip(placed) {
        let Some(value) = edit.value.filter(|_| !placed) else { continue };
        if last.is_some() || !added.is_empty() {
            added.push(b',');
        }
        added.extend_from_slice(serde_json::Value::from(edit.key).to_string().as_bytes());
        added.push(b':');
        added.extend_from_slice(value);
    }
    if !added.is_empty() {
        let at = last.unwrap_or(anatomy.inside);
        changes.push((at..at, added));
    }
    if edits.iter().any(|edit| DANGEROUS.contains(&edit.key)) {
        changes.extend(anatomy.nested.iter().map(|cut| (cut.clone(), Vec::new())));
    }
    changes
}

/// The last edit of a key counts; the first member of that key takes the new value, the others go.
fn fate<'a>(member: &Member<'_>, edits: &[Edit<'a>], placed: &mut [bool]) -> Fate<'a> {
    let Some(index) = edits.iter().rposition(|edit| edit.key == member.key) else { return Fate::Stays };
    let is_placed = edits.iter().zip(placed.iter()).any(|(edit, placed)| *placed && edit.key == member.key);
    for (edit, placed) in edits.iter().zip(placed.iter_mut()) {
        *placed |= edit.key == member.key;
    }
    match edits.get(index).and_then(|edit| edit.value) {
        Some(value) if !is_placed => Fate::Becomes(value),
        _ => Fate::Goes,
    }
}

/// The ranges to cut so that the members that go leave valid JSON behind: each with the comma before it if one stays before
/// it, else with the comma after it.
fn cuts(spans: impl Iterator<Item = (Range<usize>, Option<usize>)>, goes: impl Fn(usize) -> bool) -> Vec<Range<usize>> {
    let mut cuts = Vec::new();
    let mut comma_before = None;
    let mut has_stayed = false;
    for (index, (span, comma)) in spans.enumerate() {
        if goes(index) {
            cuts.push(span);
            let joint = if has_stayed { comma_before } else { comma };
            cuts.extend(joint.map(|at| at..at + 1));
        } else {
            has_stayed = true;
        }
        comma_before = comma;
    }
    cuts
}

/// Which of [`DANGEROUS`] the body holds, at the top level or below it, wherever they are removed.
pub fn dangers<'a>(anatomy: &'a Anatomy<'_>) -> impl Iterator<Item = &'static str> + 'a {
    let holders = holders(&anatomy.members);
    DANGEROUS.into_iter().filter(move |name| {
        let is_held = |object: &[u8]| json::members(object).any(|member| json::key_is(member.key, name));
        anatomy.members.iter().any(|member| member.key == *name) || holders.iter().any(|(object, _)| is_held(object))
    })
}

/// Ranges of dangerous members below the top level, ready to be cut.
pub(super) fn nested_dangers(members: &[Member<'_>]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    for (object, offset) in holders(members) {
        dangers_in(object, offset, &mut found);
    }
    found
}

/// The objects below the top level whose members end in the extra arguments of an engine, with their offsets.
fn holders<'a>(members: &[Member<'a>]) -> Vec<(&'a [u8], usize)> {
    let mut found = Vec::new();
    for member in members {
        let is_sampling = member.key == "sampling_params";
        if is_sampling || matches!(member.key.as_ref(), "vllm_xargs" | "extra_args") {
            found.push((member.value, member.value_start));
        }
        if is_sampling {
            let inner = json::members(member.value).filter(|inner| json::key_is(inner.key, "extra_args"));
            found.extend(inner.map(|inner| (inner.value, member.value_start + inner.value_start)));
        }
    }
    found
}

fn dangers_in(object: &[u8], offset: usize, found: &mut Vec<Range<usize>>) {
    let is_dangerous = |member: &MemberView<'_>| DANGEROUS.iter().any(|name| json::key_is(member.key, name));
    if !json::members(object).any(|member| is_dangerous(&member)) {
        return;
    }
    let inner: Vec<_> = json::members(object).collect();
    let spans = inner.iter().map(|member| (member.start..member.end(), member.comma));
    let cut = cuts(spans, |index| inner.get(index).is_some_and(is_dangerous));
    found.extend(cut.into_iter().map(|cut| cut.start + offset..cut.end + offset));
}
