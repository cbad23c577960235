//! Clients' API keys: which tenant a key belongs to. Only SHA-256 hashes are known here; a key itself is hashed and forgotten.
//!
//! The file has a line per key: its hash in hex, the tenant, and anything else as a note; `#` begins a comment. A tenant may have
//! several keys, so that one can be replaced without an outage. Reading the file is the caller's; nothing here quotes a line,
//! since it may hold a key that somebody wrote there by mistake.
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

/// Most keys of a gate.
pub const KEYS_MAX: usize = 100_000;
/// Longest key that is looked at \[bytes\].
const KEY_BYTES_MAX: usize = 1_024;
/// Longest name of a tenant \[bytes\].
const TENANT_BYTES_MAX: usize = 64;

/// SHA-256 of a key.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyHash([u8; SHA256_OUTPUT_LEN]);

impl KeyHash {
    /// The hash of a key as a client presents it.
    pub fn of(key: &[u8]) -> Self {
        let mut hash = [0; SHA256_OUTPUT_LEN];
        for (to, from) in hash.iter_mut().zip(digest(&SHA256, key).as_ref()) {
            *to = *from;
        }
        Self(hash)
    }

    fn read(text: &str) -> Option<Self> {
        let mut hash = [0; SHA256_OUTPUT_LEN];
        if text.len() != 2 * hash.len() || !text.is_ascii() {
            return None;
        }
        for (to, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            let digit = |byte: u8| char::from(byte).to_digit(16);
            let [high, low] = pair else { return None };
            *to = (digit(*high)? * 16 + digit(*low)?) as u8;
        }
        Some(Self(hash))
    }
}

impl fmt::Display for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[hash of a key]")
    }
}

/// Why a request is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// It has no key.
    Missing,
    /// Its key is nobody's.
    Unknown,
}

impl Denied {
    /// Every way.
    pub const ALL: [Self; 2] = [Self::Missing, Self::Unknown];

    /// Its name in `x-tidegate-reason`, metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "key_missing",
            Self::Unknown => "key_unknown",
        }
    }
}

/// What is wrong with a file of keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadKeys {
    /// A line that begins with something else than a hash.
    #[error(
        "line {0} does not begin with the SHA-256 of a key in 64 hex digits; make lines with `tidegate key --tenant NAME`"
    )]
    NoHash(usize),
    /// A line without a tenant that can be used.
    #[error("line {0} names no tenant behind the hash; write 1 to {TENANT_BYTES_MAX} letters, digits, `-`, `_` or `.`")]
    NoTenant(usize),
    /// One key of two tenants.
    #[error("line {0} gives a key to a second tenant; every key has one")]
    Twice(usize),
    /// Nothing in it, as when it is just being written.
    #[error("it holds no key; without keys nobody would be served")]
    Empty,
    /// More than [`KEYS_MAX`].
    #[error("it holds more than {KEYS_MAX} keys")]
    TooMany,
}

/// Whether a text can name a tenant: it goes into logs and metrics as it is.
fn is_tenant_name(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=TENANT_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_plain)
}

/// What is wrong with a name for a tenant, if anything.
pub fn tenant_name_problem(name: &str) -> Option<String> {
    let hint = || format!("this cannot name a tenant; write 1 to {TENANT_BYTES_MAX} letters, digits, `-`, `_` or `.`");
    (!is_tenant_name(name)).then(hint)
}

/// The keys in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    by_hash: HashMap<KeyHash, Arc<str>>,
    tenants: HashSet<Arc<str>>,
}

impl Keys {
    /// Reads the text of a file.
    pub fn parse(text: &str) -> Result<Self, BadKeys> {
        let (mut keys, mut names) = (HashMap::new(), HashSet::<Arc<str>>::new());
        for (number, line) in text.lines().enumerate().map(|(index, line)| (index + 1, line)) {
            let line = line.split('#').next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let Some(first) = words.next() else { continue };
            let hash = KeyHash::read(first).ok_or(BadKeys::NoHash(number))?;
            let tenant = words.next().filter(|name| is_tenant_name(name)).ok_or(BadKeys::NoTenant(number))?;
            let tenant = names.get(tenant).cloned().unwrap_or_else(|| tenant.into());
            names.insert(Arc::clone(&tenant));
            if keys.insert(hash, Arc::clone(&tenant)).is_some_and(|other| other != tenant) {
                return Err(BadKeys::Twice(number));
            }
            if keys.len() > KEYS_MAX {
                return Err(BadKeys::TooMany);
            }
        }
        if keys.is_empty() { Err(BadKeys::Empty) } else { Ok(Self { by_hash: keys, tenants: names }) }
    }

    /// The tenant whose key is among those presented; the first that is known counts.
    ///
    /// The look-up takes no constant time and need not: what is compared is the SHA-256 of the guess with those of the keys. A
    /// guess whose hash begins like that of a key is found by chance only and is no nearer to the key, so how long the
    /// comparison takes says nothing that helps to find one.
    pub fn tenant<'a>(&self, presented: impl IntoIterator<Item = &'a [u8]>) -> Result<&Arc<str>, Denied> {
        let mut denied = Denied::Missing;
        for key in presented.into_iter().filter(|key| !key.is_empty()) {
            denied = Denied::Unknown;
            if key.len() <= KEY_BYTES_MAX
                && let Some(tenant) = self.by_hash.get(&KeyHash::of(key))
            {
                return Ok(tenant);
            }
        }
        Err(denied)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_hash.len()
    }

    /// Never so: a file without keys is refused.
    pub fn is_empty(&self) -> bool {
        self.by_hash.is_empty()
    }

    /// Tenants that have a key, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &str> {
        self.tenants.iter().map(|tenant| &**tenant)
    }

    /// Whether a tenant has a key.
    pub fn knows(&self, tenant: &str) -> bool {
        self.tenants.contains(tenant)
    }
}

/// The line of the file for a key.
pub fn line_of(key: &[u8], tenant: &str, note: &str) -> String {
    format!("{} {tenant} {note}", KeyHash::of(key)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn tenant(keys: &Keys, presented: &[&str]) -> Result<String, Denied> {
        keys.tenant(presented.iter().map(|key| key.as_bytes())).map(ToString::to_string)
    }

    #[test]
    fn a_key_is_known_by_its_hash() {
        // The example of FIPS 180-2 for "abc".
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyHash::of(b"abc").to_string(), abc);
        let text =
            format!("# keys\n\n{} red laptop of A  # old\n{}\tblue\r\n", abc.to_uppercase(), KeyHash::of(b"xyz"));
        let keys = Keys::parse(&text).unwrap();
        assert_eq!((keys.len(), keys.is_empty()), (2, false));
        assert!(keys.knows("red") && !keys.knows("green"));
        assert_eq!(keys.tenants().count(), 2);
        assert_eq!(tenant(&keys, &["abc"]), Ok("red".into()));
        assert_eq!(tenant(&keys, &["", "none", "xyz"]), Ok("blue".into()));
        assert_eq!(tenant(&keys, &["abd"]), Err(Denied::Unknown));
        assert_eq!(tenant(&keys, &[&"x".repeat(2_000)]), Err(Denied::Unknown));
        assert_eq!((tenant(&keys, &[]), tenant(&keys, &[""])), (Err(Denied::Missing), Err(Denied::Missing)));
        assert_eq!(tenant(&keys, &[abc]), Err(Denied::Unknown), "the hash is no key");
        assert_eq!(Keys::parse(&line_of(b"k", "t", "a note")).unwrap().len(), 1);
    }

    #[test]
    fn what_is_wrong_with_a_file_is_told_without_quoting_it() {
        let hash = KeyHash::of(b"abc").to_string();
        let check = |text: &str, expected: BadKeys| {
            let bad = Keys::parse(text).unwrap_err();
            assert_eq!(bad, expected, "{text}");
            assert!(!bad.to_string().contains("sk-"));
        };
        check("sk-secret red", BadKeys::NoHash(1));
        check(&format!("{hash}0 red"), BadKeys::NoHash(1));
        check(&format!("\n{}g red", &hash[1..]), BadKeys::NoHash(2));
        check(&format!("{}\u{e9} red", &hash[2..]), BadKeys::NoHash(1));
        check(&hash, BadKeys::NoTenant(1));
        check(&format!("{hash} a\u{e9}"), BadKeys::NoTenant(1));
        check(&format!("{hash} {}", "t".repeat(65)), BadKeys::NoTenant(1));
        check(&format!("{hash} red\n{hash} red\n{hash} blue"), BadKeys::Twice(3));
        check(" \n# nobody\n", BadKeys::Empty);
        assert!(!format!("{:?}", Keys::parse(&format!("{hash} red"))).contains(&hash));
    }
}
