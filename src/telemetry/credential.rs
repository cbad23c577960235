//! The key pods are asked with, from a file that may change while the gate runs (a mounted secret is rotated that way).
//!
//! Telemetry needs it when pods run with `--api-key`, and requests may be sent with it. It is never printed: not by `Debug`,
//! not in an error. A file that becomes bad or goes away leaves the last good key in force.
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;

const FILE_BYTES_MAX: u64 = 16 * 1024;

/// What is wrong with a credential file.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// It cannot be read.
    #[error("cannot read the credential file {path}: {source}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It holds no key.
    #[error("the credential file {0} must hold one key: visible ASCII on one line, at most 16 KiB")]
    NoKey(PathBuf),
}

/// The key in force.
#[derive(Default)]
pub struct Credential {
    path: ArcSwapOption<PathBuf>,
    key: ArcSwapOption<String>,
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential").field("path", &self.path.load()).finish_non_exhaustive()
    }
}

impl Credential {
    /// The key for `Authorization: Bearer`; `None` if there is no file.
    pub fn key(&self) -> Option<Arc<String>> {
        self.key.load_full()
    }

    /// Takes the key from another file, or from none. On an error everything stays as it was.
    pub fn change(&self, path: Option<&Path>) -> Result<(), CredentialError> {
        let key = path.map(read).transpose()?;
        self.path.store(path.map(|path| Arc::new(path.to_owned())));
        self.key.store(key.map(Arc::new));
        Ok(())
    }

    /// Reads the file again; true if the key changed.
    pub fn reload(&self) -> Result<bool, CredentialError> {
        let Some(path) = self.path.load_full() else { return Ok(false) };
        let key = read(&path)?;
        if self.key.load().as_deref() == Some(&key) {
            return Ok(false);
        }
        self.key.store(Some(Arc::new(key)));
        Ok(true)
    }
}

fn read(path: &Path) -> Result<String, CredentialError> {
    use std::io::Read;
    let unreadable = |source| CredentialError::Unreadable { path: path.to_owned(), source };
    let no_key = || CredentialError::NoKey(path.to_owned());
    let file = std::fs::File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    let key = bytes.trim_ascii();
    if bytes.len() as u64 > FILE_BYTES_MAX || key.is_empty() || !key.iter().all(u8::is_ascii_graphic) {
        return Err(no_key());
    }
    String::from_utf8(key.to_vec()).map_err(|_| no_key())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn follows_its_file_and_keeps_the_last_good_key() {
        let folder = std::env::temp_dir().join(format!("tidegate-credential-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("key");
        let credential = Credential::default();
        assert!(credential.change(Some(&path)).is_err());
        assert!(!credential.reload().unwrap());
        std::fs::write(&path, "  sk-first\n").unwrap();
        credential.change(Some(&path)).unwrap();
        assert_eq!(credential.key().unwrap().as_str(), "sk-first");
        assert!(!credential.reload().unwrap());
        for bad in ["", "two words", "two\nlines", "\u{e9}", &"x".repeat(20_000)] {
            std::fs::write(&path, bad).unwrap();
            assert!(credential.reload().is_err(), "{bad:.9}");
            assert_eq!(credential.key().unwrap().as_str(), "sk-first");
        }
        std::fs::write(&path, "sk-second").unwrap();
        assert!(credential.reload().unwrap());
        let shown = format!("{credential:?} {:?}", credential.change(Some(&folder)));
        assert!(!shown.contains("sk-"), "{shown}");
        credential.change(None).unwrap();
        assert_eq!(credential.key(), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
