//! Reads the configuration and reads it again when it changed.
//!
//! Changes are noticed by time, inode and length of the file, which also sees the link swaps of a mounted ConfigMap. A bad
//! reload changes nothing: the caller keeps what it has and tells the problems.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::args::ServeArgs;
use super::build::Config;
use super::problem::{Problem, Problems};
use super::shape::parse;
use super::tree::Tree;

/// How often [`Watcher::poll`] is worth calling \[seconds\].
pub const POLL_INTERVAL_S: u64 = 2;

/// Largest configuration file \[bytes\].
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Reads file and flags.
pub fn load(args: &ServeArgs) -> Result<Config, Problems> {
    let text = match &args.config {
        Some(path) => read(path, "--config")?,
        None => String::new(),
    };
    let mut tree: Tree = parse(&text)?;
    let overrides = args.apply(&mut tree);
    Config::build(tree, &text, &overrides)
}

fn read(path: &Path, told_as: &str) -> Result<String, Problems> {
    let problem = |what: String| Problems(vec![Problem::new(told_as, format!("{}: {what}", path.display()))]);
    let metadata = fs::metadata(path).map_err(|error| problem(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(problem("not a regular file of reasonable size".to_owned()));
    }
    fs::read_to_string(path).map_err(|error| problem(error.to_string()))
}

/// Time, inode and length of a file, by which a change is noticed; `None` if it is not there.
pub type Stamp = Option<(i64, i64, u64, u64)>;

/// The stamp of a file now.
pub fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.ino(), metadata.len()))
}

/// Notices changes of the configuration file.
#[derive(Debug)]
pub struct Watcher {
    args: ServeArgs,
    stamp: Stamp,
}

impl Watcher {
    /// Loads the first time and watches from then on. Without a file it never has news.
    pub fn start(args: ServeArgs) -> Result<(Config, Self), Problems> {
        let stamp = args.config.as_deref().and_then(stamp);
        let config = load(&args)?;
        Ok((config, Self { args, stamp }))
    }

    /// Reads everything again, changed or not.
    pub fn read(&mut self) -> Result<Config, Problems> {
        self.stamp = self.args.config.as_deref().and_then(stamp);
        load(&self.args)
    }

    /// The new configuration if the file changed since the last call, or what is wrong with it. Told once per change.
    pub fn poll(&mut self) -> Option<Result<Config, Problems>> {
        let now = self.args.config.as_deref().and_then(stamp);
        if now == self.stamp {
            return None;
        }
        self.stamp = now;
        Some(load(&self.args))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::float_cmp)]
    use std::path::PathBuf;

    use super::*;
    use crate::discovery::PodSource;
    use crate::pods::Role;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tidegate-config-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, text: &str) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, text).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn flags_override_the_file() {
        let folder = Folder::new("flags");
        let file =
            folder.write("c.yaml", "listen: {addr: '127.0.0.1:1', threads: 3}\npods: {list: [{url: 'http://a'}]}\n");
        let args = ServeArgs {
            config: Some(file),
            listen: Some("127.0.0.1:2".parse().unwrap()),
            prefill: vec!["http://p:1".into()],
            decode: vec!["http://d:1".into()],
            explain: true,
            ..ServeArgs::default()
        };
        let config = load(&args).unwrap();
        assert_eq!((config.listen.addr.port(), config.listen.threads, config.observe.explain), (2, Some(3), true));
        let pods: Vec<_> =
            config.sources.iter().map(|PodSource { authority, role, .. }| (&**authority, *role)).collect();
        assert_eq!(pods, [("p:1", Role::Prefill), ("d:1", Role::Decode)]);
        let wrong = ServeArgs { pod: vec!["ftp://a:1".into()], ..ServeArgs::default() };
        let problem = load(&wrong).unwrap_err().to_string();
        assert_eq!(
            problem,
            "--pod, --prefill or --decode: `ftp://` is not a scheme pods speak; write http://host:port or https://host:port"
        );
    }

    #[test]
    fn a_bad_reload_is_told_once_and_a_good_one_taken() {
        let folder = Folder::new("reload");
        let file = folder.write("c.yaml", "pods: {resolve_interval_s: 7}\n");
        let args = ServeArgs { config: Some(file.clone()), ..ServeArgs::default() };
        let (config, mut watcher) = Watcher::start(args).unwrap();
        assert_eq!(config.pods.resolve_interval_s, 7.0);
        assert!(watcher.poll().is_none());
        folder.write("c.yaml", "pods: {resolve_interval_s: soon}\n");
        let problems = watcher.poll().unwrap().unwrap_err();
        assert_eq!(problems.0[0].path, "pods.resolve_interval_s");
        assert!(watcher.poll().is_none());
        fs::remove_file(&file).unwrap();
        assert!(watcher.poll().unwrap().is_err());
        folder.write("c.yaml", "pods: {resolve_interval_s: 9000}\n");
        assert_eq!(watcher.poll().unwrap().unwrap().pods.resolve_interval_s, 9_000.0);
    }
}
