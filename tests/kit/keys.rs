//! Files of API keys for gates that ask for them.
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use tidegate::app::key_line;

/// A file of keys in a folder of its own.
pub struct KeysFile(PathBuf);

impl KeysFile {
    pub fn new(keys: &[(&str, &str)]) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("tidegate-identity-{}-{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        let file = Self(folder);
        file.write(keys);
        file
    }

    pub fn path(&self) -> PathBuf {
        self.0.join("keys")
    }

    pub fn write(&self, keys: &[(&str, &str)]) {
        let lines = keys.iter().map(|(key, tenant)| key_line(key, tenant, "of a test").unwrap() + "\n");
        std::fs::write(self.path(), lines.collect::<String>()).unwrap();
    }

    /// A configuration with this file; `flow` is what else is under `flow`, each line indented by two.
    pub fn yaml(&self, flow: &str, rest: &str) -> String {
        format!("flow:\n  keys_file: {}\n{flow}\n{rest}\n", self.path().display())
    }
}

impl Drop for KeysFile {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}
