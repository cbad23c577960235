//! Files that others read while they are written.
use std::io;
use std::path::Path;

/// Writes a file aside and renames it, so that nobody reads half of it.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension("new");
    std::fs::write(&aside, bytes)?;
    std::fs::rename(aside, path)
}
