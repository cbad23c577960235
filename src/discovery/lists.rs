//! Lists of pods: the configured one, those in files that are watched, and what operators have added.
//!
//! A file is read every second, so that it may be replaced in any way: written over, renamed over, or by a swapped link as in a
//! mounted ConfigMap. One that cannot be read, or is not good, changes nothing: its pods stay as they were last known.
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::publish::Publisher;
use super::settings::{PodEntry, Settings, sources_of};
use super::source::PodSource;

/// Pods by the name of where they come from.
pub(super) type Lists = BTreeMap<String, Vec<PodSource>>;

/// Name of the configured list.
pub(super) const LIST: &str = "list";
/// Name of what operators have added.
pub(super) const ADDED: &str = "added";
/// Time between two reads of the files.
const EVERY: Duration = Duration::from_secs(1);
/// Largest file \[bytes\].
const FILE_BYTES_MAX: u64 = 16 << 20;

/// What the lists are made of.
pub(super) struct Inputs {
    /// The configured list, with flags.
    pub(super) sources: watch::Receiver<Vec<PodSource>>,
    /// Where the files are, and how TLS is spoken.
    pub(super) settings: watch::Receiver<Settings>,
    /// What operators have added.
    pub(super) added: watch::Receiver<Vec<PodEntry>>,
}

/// Makes the lists, again and again.
pub(super) struct Book {
    inputs: Inputs,
    publisher: Arc<Publisher>,
    files: HashMap<PathBuf, File>,
}

/// A file as it was last read.
#[derive(Default)]
struct File {
    /// `None` before it could be read, and while it cannot.
    text: Option<Vec<u8>>,
    entries: Vec<PodEntry>,
    /// What is wrong with it, so that it is told once.
    problem: Option<String>,
}

impl Book {
    pub(super) fn new(inputs: Inputs, publisher: Arc<Publisher>) -> Self {
        Self { inputs, publisher, files: HashMap::new() }
    }

    /// Reads the files and makes the lists.
    pub(super) async fn lists(&mut self) -> Lists {
        let settings = self.inputs.settings.borrow_and_update().clone();
        self.files.retain(|path, _| settings.files.contains(path));
        for path in &settings.files {
            let place = path.clone();
            let text = tokio::task::spawn_blocking(move || read(&place)).await;
            self.take(path, text.unwrap_or_else(|_| Err("it cannot be read".to_owned())));
        }
        let tls = Arc::new(settings.tls.clone());
        // Those that cannot be a source were refused when they were read.
        let good = |entries: &[PodEntry]| sources_of(entries, &tls).unwrap_or_default();
        let mut lists: Lists = self.files.iter().map(|(path, file)| (name(path), good(&file.entries))).collect();
        lists.insert(LIST.to_owned(), self.inputs.sources.borrow_and_update().clone());
        lists.insert(ADDED.to_owned(), good(&self.inputs.added.borrow_and_update()));
        lists
    }

    /// Keeps `lists` as they are, for ever.
    pub(super) async fn run(mut self, lists: watch::Sender<Lists>) {
        loop {
            tokio::select! {
                Ok(()) = self.inputs.sources.changed() => {}
                Ok(()) = self.inputs.settings.changed() => {}
                Ok(()) = self.inputs.added.changed() => {}
                () = tokio::time::sleep(EVERY) => {}
            }
            let now = self.lists().await;
            lists.send_if_modified(|before| {
                let is_news = *before != now;
                *before = now;
                is_news
            });
        }
    }

    fn take(&mut self, path: &Path, text: Result<Vec<u8>, String>) {
        let file = self.files.entry(path.to_owned()).or_default();
        let problem = match text {
            Ok(text) if file.text.as_ref() == Some(&text) => file.problem.clone(),
            Ok(text) => {
                let entries = parse(&text);
                file.text = Some(text);
                match entries {
                    Ok(entries) => {
                        tracing::info!(file = %path.display(), pods = entries.len(), "pods read from a file");
                        file.entries = entries;
                        None
                    }
                    Err(problem) => Some(problem),
                }
            }
            Err(problem) => {
                // Once it is back it is read, whether it has changed or not.
                file.text = None;
                Some(problem)
            }
        };
        let name = name(path);
        self.publisher.heard(&name, &name, problem.is_some());
        if let Some(problem) = problem.as_deref().filter(|_| problem != file.problem) {
            tracing::error!(file = %path.display(), problem, kept = file.entries.len(), "file of pods not taken, its pods stay");
        }
        file.problem = problem;
    }
}

/// Name of the source that a file is.
fn name(path: &Path) -> String {
    format!("file/{}", path.display())
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let metadata = std::fs::metadata(path).map_err(|error| error.to_string())?;
    if !metadata.is_file() || metadata.len() > FILE_BYTES_MAX {
        return Err("not a regular file of reasonable size".to_owned());
    }
    std::fs::read(path).map_err(|error| error.to_string())
}

/// Reads a list of pods in YAML or JSON.
fn parse(text: &[u8]) -> Result<Vec<PodEntry>, String> {
    // Found empty while it is written over, it must not take all pods away.
    if text.trim_ascii().is_empty() {
        return Err("it is empty; write [] for no pods".to_owned());
    }
    let entries: Vec<PodEntry> = serde_yaml::from_slice(text).map_err(|error| error.to_string())?;
    match sources_of(&entries, &Arc::default()) {
        Ok(_) => Ok(entries),
        Err(bad) => {
            let told: Vec<_> = bad.iter().map(|(position, problem)| format!("[{position}].url: {problem}")).collect();
            Err(told.join("; "))
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
            let path = std::env::temp_dir().join(format!("tidegate-lists-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    fn book(files: Vec<PathBuf>) -> (Book, Arc<Publisher>) {
        let inputs = Inputs {
            sources: watch::channel(Vec::new()).1,
            settings: watch::channel(Settings { files, ..Settings::default() }).1,
            added: watch::channel(Vec::new()).1,
        };
        let publisher = Arc::new(Publisher::new(Arc::default()));
        (Book::new(inputs, Arc::clone(&publisher)), publisher)
    }

    async fn shown(book: &mut Book) -> Vec<String> {
        book.lists().await.into_values().flatten().map(|source| source.authority.to_string()).collect()
    }

    #[tokio::test]
    async fn a_file_may_be_replaced_in_any_way_and_a_bad_one_changes_nothing() {
        let folder = Folder::new("swap");
        let link = folder.0.join("pods.yaml");
        let write = |name: &str, text: &str| std::fs::write(folder.0.join(name), text).unwrap();
        let swap = |name: &str| {
            std::os::unix::fs::symlink(folder.0.join(name), folder.0.join("next")).unwrap();
            std::fs::rename(folder.0.join("next"), &link).unwrap();
        };
        let (mut book, publisher) = book(vec![link.clone()]);
        let is_failing = || publisher.health()[0].is_failing;
        assert!(shown(&mut book).await.is_empty() && is_failing(), "it is not there yet");
        write("0", "");
        swap("0");
        assert!(shown(&mut book).await.is_empty() && is_failing(), "it is empty from the start");
        write("1", "- {url: 'http://a:1', role: prefill}\n- url: b:1\n");
        swap("1");
        assert_eq!(shown(&mut book).await, ["a:1", "b:1"]);
        assert!(!is_failing());
        // The same length, the same time perhaps, another file.
        write("2", "- {url: 'http://c:1', role: prefill}\n- url: d:1\n");
        swap("2");
        assert_eq!(shown(&mut book).await, ["c:1", "d:1"]);
        for bad in ["", "\n", "pods: []", "- {url: 'ftp://x'}", "- {url: 'e:1', rôle: both}", "- {url: ["] {
            write("2", bad);
            assert_eq!(shown(&mut book).await, ["c:1", "d:1"], "{bad}");
            assert!(is_failing(), "{bad}");
        }
        std::fs::remove_file(&link).unwrap();
        assert_eq!(shown(&mut book).await, ["c:1", "d:1"]);
        write("2", r#"[{"url": "http://f:1", "labels": {"rack": "7"}}]"#);
        swap("2");
        assert_eq!(shown(&mut book).await, ["f:1"]);
        write("2", "[]");
        assert!(shown(&mut book).await.is_empty() && !is_failing());
    }

    #[tokio::test]
    async fn what_is_wrong_is_told_with_its_place() {
        let told = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(
            told("[{url: 'http://a:1'}, {url: 'ftp://x'}, {url: b}]"),
            "[1].url: `ftp://` is not a scheme pods speak; write http://host:port or https://host:port; \
             [2].url: the port is missing; write b:8000, with the pod's port"
        );
        assert!(told("- url: a:1\n  role: decoder\n").contains("line 2"), "{}", told("- url: a:1\n  role: decoder\n"));
    }

    #[tokio::test]
    async fn lists_keep_their_names_and_take_the_tls_of_all() {
        let (sources, seen) = watch::channel(vec![PodSource::parse("l:1", Role::Both, BTreeMap::new()).unwrap()]);
        let tls = crate::pods::TlsSettings { server_name: Some("vllm".into()), ..Default::default() };
        let settings = watch::channel(Settings { tls, ..Settings::default() }).1;
        let added = watch::channel(vec![PodEntry { url: "https://a:1".into(), ..PodEntry::default() }]).1;
        let publisher = Arc::new(Publisher::new(Arc::default()));
        let mut book = Book::new(Inputs { sources: seen, settings, added }, publisher);
        let lists = book.lists().await;
        assert_eq!(lists.keys().collect::<Vec<_>>(), ["added", "list"]);
        assert_eq!(&*lists["added"][0].tls.as_ref().unwrap().server_name, "vllm");
        drop(sources);
    }
}
