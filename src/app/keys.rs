//! The file of clients' keys: read at the start, and again when it changed. One that became bad or went away leaves the last good
//! keys in force: an edit that went wrong must neither let everybody in nor shut everybody out.
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Stamp, stamp};
use crate::flow::keys::line_of;
use crate::flow::{Keys, TenantSettings, tenant_name_problem};

/// Largest file that is read \[bytes\].
const FILE_BYTES_MAX: u64 = 16 << 20;
/// What a key that is made here begins with, by which people and scanners for secrets know it.
const KEY_MARK: &str = "tg-";

/// Most tenants without settings that are named.
const STRANGERS_MAX: usize = 20;

/// The file and the keys last read from it.
#[derive(Debug, Default)]
pub(super) struct KeysFile {
    path: Option<PathBuf>,
    stamp: Stamp,
    keys: Option<Arc<Keys>>,
}

impl KeysFile {
    /// Reads the file, if there is to be one.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let stamp = stamp(path);
        Ok(Self { keys: Some(Arc::new(read(path)?)), path: Some(path.to_owned()), stamp })
    }

    /// The keys in force; `None`: everybody is let in.
    pub(super) fn keys(&self) -> Option<Arc<Keys>> {
        self.keys.clone()
    }

    /// Where they are read from.
    pub(super) fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Says who is asked for a key, and which tenants are not configured: a name with a slip in it would have no limits.
    pub(super) fn tell(&self, tenants: &BTreeMap<String, TenantSettings>) {
        let Some(keys) = &self.keys else {
            tracing::info!("no API keys are configured (flow.keys_file): whoever can connect is served");
            return;
        };
        tracing::info!(keys = keys.len(), "clients are asked for API keys");
        let strangers = strangers(keys, tenants);
        if !(tenants.is_empty() || strangers.is_empty()) {
            tracing::warn!(
                tenants = strangers,
                "have keys but no entry in flow.tenants, so they may do what `default` may"
            );
        }
    }

    /// Reads the file again if it changed since it was last looked at, and says how that went.
    pub(super) fn poll(&mut self) -> Option<io::Result<()>> {
        let path = self.path.as_deref()?;
        let now = stamp(path);
        if now == self.stamp {
            return None;
        }
        self.stamp = now;
        Some(read(path).map(|keys| self.keys = Some(Arc::new(keys))))
    }
}

/// Names of tenants that have keys but no settings, as far as a log line takes them.
fn strangers(keys: &Keys, tenants: &BTreeMap<String, TenantSettings>) -> String {
    let mut names: Vec<_> = keys.tenants().filter(|name| !tenants.contains_key(*name)).collect();
    names.sort_unstable();
    names.truncate(STRANGERS_MAX);
    names.join(", ")
}

fn read(path: &Path) -> io::Result<Keys> {
    let named = |error: &dyn std::fmt::Display, kind| {
        io::Error::new(kind, format!("cannot use flow.keys_file ({}): {error}", path.display()))
    };
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text));
    read.map_err(|error| named(&error, error.kind()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(named(&"it is larger than 16 MiB", io::ErrorKind::InvalidData));
    }
    Keys::parse(&text).map_err(|bad| named(&bad, io::ErrorKind::InvalidData))
}

/// A new random key.
pub fn new_key() -> io::Result<String> {
    use std::fmt::Write as _;
    let mut key = KEY_MARK.to_owned();
    for byte in super::setup::random::<32>()? {
        let _infallible = write!(key, "{byte:02x}");
    }
    Ok(key)
}

/// The line of `flow.keys_file` for a key.
pub fn key_line(key: &str, tenant: &str, note: &str) -> io::Result<String> {
    let bad = |text: String| io::Error::new(io::ErrorKind::InvalidInput, text);
    if let Some(problem) = tenant_name_problem(tenant) {
        return Err(bad(problem));
    }
    if key.is_empty() || note.contains(['\n', '\r', '#']) {
        return Err(bad("a key has at least one character, and a note is one line without `#`".to_owned()));
    }
    Ok(line_of(key.as_bytes(), tenant, note))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;

    use super::*;

    #[test]
    fn the_last_good_keys_stay() {
        let folder = std::env::temp_dir().join(format!("tidegate-keys-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("keys");
        assert!(KeysFile::open(Some(&path)).unwrap_err().to_string().contains("flow.keys_file"));
        assert!(KeysFile::open(None).unwrap().keys().is_none());
        let (first, second) = (new_key().unwrap(), new_key().unwrap());
        assert!(first != second && first.starts_with(KEY_MARK));
        fs::write(&path, key_line(&first, "a", "").unwrap()).unwrap();
        let mut file = KeysFile::open(Some(&path)).unwrap();
        let tenant =
            |file: &KeysFile, key: &str| file.keys().unwrap().tenant([key.as_bytes()]).map(ToString::to_string);
        assert_eq!(tenant(&file, &first).unwrap(), "a");
        assert!(file.poll().is_none());
        fs::write(&path, format!("{first} a")).unwrap();
        let bad = file.poll().unwrap().unwrap_err().to_string();
        assert!(bad.contains("line 1") && !bad.contains(&first), "{bad}");
        assert!(file.poll().is_none(), "told once");
        assert_eq!(tenant(&file, &first).unwrap(), "a");
        fs::remove_file(&path).unwrap();
        assert!(file.poll().unwrap().is_err() && file.keys().is_some());
        fs::write(&path, format!("{}\n", key_line(&second, "b", "the new one").unwrap())).unwrap();
        file.poll().unwrap().unwrap();
        let settings = BTreeMap::from([("a".to_owned(), TenantSettings::default())]);
        assert_eq!(strangers(&file.keys().unwrap(), &settings), "b");
        assert!(tenant(&file, &first).is_err());
        assert_eq!(tenant(&file, &second).unwrap(), "b");
        assert!(key_line("k", "no name", "").is_err() && key_line("", "a", "").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
