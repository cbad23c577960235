//! The prefix index on disk: the secret of its hashes, what was saved at the last shutdown, and saving it again. Whatever is
//! wrong with a snapshot is told once and costs the memory of the past, never the start.
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::xxh3_64;

use super::setup;
use crate::base::PodId;
use crate::config::Prefix;
use crate::pods::{Pod, Table};
use crate::prefix::{Index, PodName, SaltKey, Snapshot};

/// Bytes of a secret that is made here.
const SECRET_BYTES: usize = 32;
/// A secret of an operator has at least so many bytes, and no file of one is read beyond the second number.
const SECRET_BYTES_RANGE: (usize, u64) = (16, 4_096);

/// The secret of prefix hashes, and that of tenants' salts.
pub(super) fn secrets(prefix: &Prefix) -> io::Result<(u64, SaltKey)> {
    secret(prefix).map(|bytes| (xxh3_64(&bytes), SaltKey::new(&bytes)))
}

/// What both are made of: the configured file; else one kept beside the snapshot; else something of this process.
fn secret(prefix: &Prefix) -> io::Result<Vec<u8>> {
    if let Some(path) = &prefix.secret_file {
        return read_secret(path).map_err(|error| named("prefix.secret_file", path, &error));
    }
    let Some(snapshot) = &prefix.snapshot_file else {
        return setup::random::<SECRET_BYTES>().map(Vec::from);
    };
    let path = with_suffix(snapshot, ".secret");
    match read_secret(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let bytes = setup::random::<SECRET_BYTES>()?;
            let written = private(&path).and_then(|mut file| file.write_all(&bytes));
            written.map_err(|error| named("the secret beside prefix.snapshot_file", &path, &error))?;
            Ok(bytes.to_vec())
        }
        read => read.map_err(|error| named("the secret beside prefix.snapshot_file", &path, &error)),
    }
}

fn read_secret(path: &Path) -> io::Result<Vec<u8>> {
    let (least, most) = SECRET_BYTES_RANGE;
    let mut bytes = Vec::new();
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    if bytes.len() < least {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it must hold 16 bytes or more, random ones"));
    }
    Ok(bytes)
}

fn named(what: &str, path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot use {what} ({}): {error}", path.display()))
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// A new file that only its owner may read.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// Reads what was saved, if that is configured, there and good.
pub(super) fn load(prefix: &Prefix, secret: u64) -> Option<Snapshot> {
    let path = prefix.snapshot_file.as_deref()?;
    let bytes = match read_bounded(path, bytes_max(prefix)) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "snapshot of the prefix index not read; starting without");
            return None;
        }
    };
    match Snapshot::read(&bytes, secret) {
        Ok(snapshot) => {
            tracing::info!(path = %path.display(), bytes = bytes.len(), "snapshot of the prefix index read");
            Some(snapshot)
        }
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "snapshot of the prefix index refused; starting without");
            None
        }
    }
}

/// A snapshot is smaller than what it was made of.
const fn bytes_max(prefix: &Prefix) -> u64 {
    prefix.index_bytes_max.saturating_add(1 << 20)
}

fn read_bounded(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is larger than prefix.index_bytes_max allows"));
    }
    Ok(bytes)
}

/// Saves the index, if that is configured: whole or not at all.
pub(super) fn save(path: &Path, index: &Index, table: &Table, secret: u64) {
    let fleet = table.fleet();
    let bytes = index.snapshot(secret, |pod: PodId| fleet.find(pod).and_then(|pod| name(pod)));
    match replace(path, &bytes) {
        Ok(()) => tracing::info!(path = %path.display(), bytes = bytes.len(), "prefix index saved"),
        Err(error) => tracing::error!(path = %path.display(), %error, "prefix index not saved"),
    }
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let new = with_suffix(path, ".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(new, path)
}

/// How a snapshot names a pod; `None` until its process has told when it started.
pub(super) fn name(pod: &Pod) -> Option<PodName> {
    let started_at_s = pod.facts.load().started_at_s?;
    Some(PodName { address: pod.spec.authority.to_string(), rank: pod.spec.rank, started_at_s })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tidegate-snapshot-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn prefix(snapshot: Option<&Path>, secret: Option<&Path>) -> Prefix {
        let owned = |path: Option<&Path>| path.map(Path::to_owned);
        Prefix { snapshot_file: owned(snapshot), secret_file: owned(secret), ..Prefix::default() }
    }

    #[test]
    fn a_secret_is_made_once_and_only_its_owner_reads_it() {
        let folder = folder("secret");
        let made = prefix(Some(&folder.join("index")), None);
        let first = secret(&made).unwrap();
        assert_eq!(secret(&made).unwrap(), first);
        let mode = fs::metadata(folder.join("index.secret")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let given = prefix(None, Some(&folder.join("given")));
        assert!(secret(&given).unwrap_err().to_string().contains("prefix.secret_file"));
        fs::write(folder.join("given"), "short").unwrap();
        assert!(secret(&given).unwrap_err().to_string().contains("16 bytes"));
        fs::write(folder.join("given"), "long enough to be one").unwrap();
        assert_ne!(secret(&given).unwrap(), first);
        assert_ne!(secret(&Prefix::default()).unwrap(), secret(&Prefix::default()).unwrap());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn what_is_saved_is_read_again_and_what_is_damaged_is_not() {
        let folder = folder("saved");
        let path = folder.join("index");
        let settings = prefix(Some(&path), None);
        assert!(load(&settings, 7).is_none());
        let (index, table) = (Index::default(), Table::default());
        for _ in 0..2 {
            save(&path, &index, &table, 7);
            assert!(load(&settings, 7).is_some() && load(&settings, 8).is_none());
        }
        fs::write(&path, "TIDEGATE, but not really").unwrap();
        assert!(load(&settings, 7).is_none());
        fs::remove_dir_all(folder).unwrap();
    }
}
