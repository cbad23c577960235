//! Reads the configuration and reads it again when a file changed.
//!
//! Changes are noticed by time, inode and length of the files, which also sees the link swaps of a mounted ConfigMap. A bad
//! reload changes nothing: the caller keeps what it has and tells the problems.
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::args::ServeArgs;
use super::build::Config;
use super::problem::{Problem, Problems};
use super::shape::parse;
use super::tree::Tree;
use crate::observe::Secret;

/// How often [`Watcher::poll`] is worth calling \[seconds\].
pub const POLL_INTERVAL_S: u64 = 2;

/// Largest configuration or credential file \[bytes\].
const FILE_BYTES_MAX: u64 = 16 << 20;

/// A configuration with what its files hold.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// Key sent to pods; `None` passes the client's own on.
    pub credential: Option<Secret>,
}

/// Reads file and flags.
pub fn load(args: &ServeArgs) -> Result<Loaded, Problems> {
    let text = match &args.config {
        Some(path) => read(path, "--config")?,
        None => String::new(),
    };
    let mut tree: Tree = parse(&text)?;
    let overrides = args.apply(&mut tree);
    let config = Config::build(tree, &text, &overrides)?;
    let credential = match &config.credential_file {
        Some(path) => Some(credential(path)?),
        None => None,
    };
    Ok(Loaded { config, credential })
}

fn read(path: &Path, told_as: &str) -> Result<String, Problems> {
    let problem = |what: String| Problems(vec![Problem::new(told_as, format!("{}: {what}", path.display()))]);
    let metadata = fs::metadata(path).map_err(|error| problem(error.to_string()))?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err(problem("not a regular file of reasonable size".to_owned()));
    }
    fs::read_to_string(path).map_err(|error| problem(error.to_string()))
}

/// The key in a file. What is in the file never gets into a problem.
fn credential(path: &Path) -> Result<Secret, Problems> {
    const TOLD_AS: &str = "pods.credential_file";
    let text = read(path, TOLD_AS)?;
    let key = text.trim();
    if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_graphic()) {
        let what = format!("{}: must hold one key of visible ASCII characters and nothing else", path.display());
        return Err(Problems(vec![Problem::new(TOLD_AS, what)]));
    }
    Ok(Secret::new(key))
}

/// Time, inode and length of a file; `None` if it is not there.
type Stamp = Option<(i64, i64, u64, u64)>;

fn stamp(path: &Path) -> Stamp {
    let metadata = fs::metadata(path).ok()?;
    Some((metadata.mtime(), metadata.mtime_nsec(), metadata.ino(), metadata.len()))
}

/// Notices changes of the configuration file and the files it names.
#[derive(Debug)]
pub struct Watcher {
    args: ServeArgs,
    stamps: Vec<(PathBuf, Stamp)>,
}

impl Watcher {
    /// Loads the first time and watches from then on.
    pub fn start(args: ServeArgs) -> Result<(Loaded, Self), Problems> {
        let before: Vec<_> = args.config.iter().map(|path| (path.clone(), stamp(path))).collect();
        let loaded = load(&args)?;
        let mut watcher = Self { args, stamps: before };
        watcher.follow(&loaded);
        Ok((loaded, watcher))
    }

    /// The new configuration if a file changed since the last call, or what is wrong with it. Told once per change.
    pub fn poll(&mut self) -> Option<Result<Loaded, Problems>> {
        let now: Vec<_> = self.stamps.iter().map(|(path, _)| (path.clone(), stamp(path))).collect();
        if now == self.stamps {
            return None;
        }
        self.stamps = now;
        let loaded = load(&self.args);
        if let Ok(loaded) = &loaded {
            self.follow(loaded);
        }
        Some(loaded)
    }

    /// Watches the credential file of the configuration in force.
    fn follow(&mut self, loaded: &Loaded) {
        let (config, credential) = (&self.args.config, &loaded.config.credential_file);
        self.stamps.retain(|(path, _)| [config, credential].into_iter().flatten().any(|watched| watched == path));
        if let Some(path) = credential
            && !self.stamps.iter().any(|(watched, _)| watched == path)
        {
            self.stamps.push((path.clone(), stamp(path)));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;
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
        let config = load(&args).unwrap().config;
        assert_eq!((config.listen.addr.port(), config.listen.threads, config.observe.explain), (2, Some(3), true));
        let pods: Vec<_> = config.targets.iter().map(|target| (&*target.host, target.role)).collect();
        assert_eq!(pods, [("p", Role::Prefill), ("d", Role::Decode)]);
        let wrong = ServeArgs { pod: vec!["nonsense".into()], ..ServeArgs::default() };
        let problem = load(&wrong).unwrap_err().to_string();
        assert_eq!(problem, "--pod, --prefill or --decode: the scheme is missing; write http://nonsense");
    }

    #[test]
    fn a_bad_reload_is_told_once_and_a_good_one_taken() {
        let folder = Folder::new("reload");
        let file = folder.write("c.yaml", "pods: {resolve_interval_s: 7}\n");
        let args = ServeArgs { config: Some(file.clone()), ..ServeArgs::default() };
        let (loaded, mut watcher) = Watcher::start(args).unwrap();
        assert_eq!(loaded.config.resolve_interval.as_secs(), 7);
        assert!(watcher.poll().is_none());
        folder.write("c.yaml", "pods: {resolve_interval_s: soon}\n");
        let problems = watcher.poll().unwrap().unwrap_err();
        assert_eq!(problems.0[0].path, "pods.resolve_interval_s");
        assert!(watcher.poll().is_none());
        fs::remove_file(&file).unwrap();
        assert!(watcher.poll().unwrap().is_err());
        folder.write("c.yaml", "pods: {resolve_interval_s: 9000}\n");
        assert_eq!(watcher.poll().unwrap().unwrap().config.resolve_interval.as_secs(), 9_000);
    }

    #[test]
    fn a_credential_is_watched_and_never_shown() {
        let folder = Folder::new("credential");
        let key = folder.write("key", "sk-canary-1\n");
        let file = folder.write("c.yaml", &format!("pods: {{credential_file: '{}'}}\n", key.display()));
        let args = ServeArgs { config: Some(file), ..ServeArgs::default() };
        let (loaded, mut watcher) = Watcher::start(args).unwrap();
        assert_eq!(loaded.credential.as_ref().map(Secret::expose), Some("sk-canary-1"));
        assert!(!format!("{loaded:?}").contains("canary"));
        folder.write("key", "sk-canary-two\n");
        let rotated = watcher.poll().unwrap().unwrap();
        assert_eq!(rotated.credential.as_ref().map(Secret::expose), Some("sk-canary-two"));
        folder.write("key", "sk-canary two keys\n");
        let problem = watcher.poll().unwrap().unwrap_err();
        assert!(!format!("{problem} {problem:?}").contains("canary"));
    }
}
