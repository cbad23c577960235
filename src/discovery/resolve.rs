//! Turns sources into pods: looks names up off the data path, again and again, and publishes what changed.
//!
//! Each address of a name is a pod, with the name as its authority. If a name has addresses of both families, only those of
//! IPv4 are taken: `localhost` would otherwise be two pods, one of them dead. A look-up that fails or gives nothing leaves the
//! addresses last known; a source that never resolved has no pods and is told in the log.
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::found::{Found, State};
use super::lists::Lists;
use super::publish::Publisher;
use super::settings::Settings;
use super::source::{Host, PodSource};
use crate::pods::PodSpec;

/// Addresses of one name that are used; the rest are left out, and told.
const ADDRS_MAX: usize = 4_096;
/// Look-ups at once.
const LOOKUPS_MAX: usize = 16;

/// Follows `lists` for ever: resolves them, now and every `resolve_interval_s`, and tells the result.
/// `tried` becomes true when every source of the first lists was tried once, with or without success.
pub(super) async fn run(
    mut lists: watch::Receiver<Lists>,
    settings: watch::Receiver<Settings>,
    publisher: Arc<Publisher>,
    tried: watch::Sender<bool>,
) {
    let mut resolver = Resolver::new(publisher);
    loop {
        let (interval, timeout) = {
            let settings = settings.borrow();
            (seconds(settings.resolve_interval_s), seconds(settings.resolve_timeout_s))
        };
        let current = lists.borrow_and_update().clone();
        // Names seen for the first time must not keep the others waiting.
        resolver.publish(&current);
        resolver.look_up(&current, timeout, system_lookup).await;
        resolver.publish(&current);
        tried.send_replace(true);
        tokio::select! {
            changed = lists.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            () = tokio::time::sleep(interval) => {}
        }
    }
}

async fn system_lookup(name: String) -> io::Result<Vec<IpAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.map(|addr| addr.ip()).collect())
}

struct Resolver {
    publisher: Arc<Publisher>,
    /// Addresses last known, by name.
    known: HashMap<String, Vec<IpAddr>>,
    /// Names whose last look-up failed, so that each failure is told once.
    failing: HashSet<String>,
    /// Lists that were told.
    told: BTreeSet<String>,
}

impl Resolver {
    fn new(publisher: Arc<Publisher>) -> Self {
        Self { publisher, known: HashMap::new(), failing: HashSet::new(), told: BTreeSet::new() }
    }

    /// Looks up every name, a few at a time, and forgets names that are no longer there.
    async fn look_up<F>(&mut self, lists: &Lists, timeout: Duration, lookup: fn(String) -> F)
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        let names: HashSet<&String> = lists.values().flatten().filter_map(PodSource::name).collect();
        self.known.retain(|name, _| names.contains(name));
        self.failing.retain(|name| names.contains(name));
        let mut running = JoinSet::new();
        for name in names {
            if running.len() >= LOOKUPS_MAX {
                self.take_next(&mut running).await;
            }
            let name = name.clone();
            running.spawn(async move {
                let found = tokio::time::timeout(timeout, lookup(name.clone())).await;
                (name, found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())))
            });
        }
        while !running.is_empty() {
            self.take_next(&mut running).await;
        }
    }

    async fn take_next(&mut self, running: &mut JoinSet<(String, io::Result<Vec<IpAddr>>)>) {
        if let Some(Ok((name, found))) = running.join_next().await {
            self.take(name, found);
        }
    }

    fn take(&mut self, name: String, found: io::Result<Vec<IpAddr>>) {
        let problem = match found {
            Ok(addrs) if addrs.is_empty() => "it has no address".to_owned(),
            Ok(addrs) => {
                if self.failing.remove(&name) {
                    tracing::info!(name, "pod name resolves again");
                }
                self.known.insert(name, one_family(addrs));
                return;
            }
            Err(error) => error.to_string(),
        };
        if self.failing.insert(name.clone()) {
            let known = self.known.get(&name).map_or(0, Vec::len);
            tracing::warn!(name, problem, kept = known, "pod name does not resolve, the addresses last known stay");
        }
    }

    /// Says what is known.
    fn publish(&mut self, lists: &Lists) {
        let mut is_news = false;
        for (list, sources) in lists {
            let found = self.specs(sources).into_iter().enumerate();
            // In the order of the list.
            let found = found.map(|(at, spec)| (format!("{at:06}"), vec![Found { spec, state: State::Ready }]));
            is_news |= self.publisher.set(list, found.collect::<BTreeMap<_, _>>());
        }
        if self.told.iter().any(|list| !lists.contains_key(list)) {
            self.publisher.keep(|list| !self.told.contains(list) || lists.contains_key(list));
            is_news = true;
        }
        self.told = lists.keys().cloned().collect();
        if is_news {
            self.publisher.publish();
        }
    }

    /// One description per address and role; of two sources with the same, the first counts.
    fn specs(&self, sources: &[PodSource]) -> Vec<PodSpec> {
        let mut seen = HashSet::new();
        let mut specs = Vec::new();
        for source in sources {
            let addrs = match &source.host {
                Host::Addr(addr) => std::slice::from_ref(addr),
                Host::Name(name) => self.known.get(name).map_or(&[][..], Vec::as_slice),
            };
            for ip in addrs {
                let addr = SocketAddr::new(*ip, source.port);
                if !seen.insert((addr, source.role)) {
                    continue;
                }
                specs.push(PodSpec {
                    addr,
                    authority: Arc::clone(&source.authority),
                    tls: source.tls.clone(),
                    rank: None,
                    role: source.role,
                    labels: source.labels.clone(),
                });
            }
        }
        specs
    }
}

impl PodSource {
    fn name(&self) -> Option<&String> {
        match &self.host {
            Host::Name(name) => Some(name),
            Host::Addr(_) => None,
        }
    }
}

/// Addresses of one family, sorted, each once.
fn one_family(mut addrs: Vec<IpAddr>) -> Vec<IpAddr> {
    if addrs.iter().any(IpAddr::is_ipv4) {
        addrs.retain(IpAddr::is_ipv4);
    }
    addrs.sort_unstable();
    addrs.dedup();
    if addrs.len() > ADDRS_MAX {
        tracing::warn!(addrs = addrs.len(), used = ADDRS_MAX, "a pod name has too many addresses");
        addrs.truncate(ADDRS_MAX);
    }
    addrs
}

fn seconds(value: f64) -> Duration {
    Duration::try_from_secs_f64(value).unwrap_or(Duration::from_secs(10)).max(Duration::from_millis(100))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use std::collections::BTreeMap;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use super::*;
    use crate::pods::{Role, Table};
    use crate::runtime::supervise;

    const LONG: Duration = Duration::from_mins(1);

    fn sources(urls: &[&str]) -> Lists {
        let list = urls.iter().map(|url| PodSource::parse(url, Role::Both, BTreeMap::new()).unwrap()).collect();
        [("list".to_owned(), list)].into()
    }

    fn shown(table: &Table) -> Vec<String> {
        table.fleet().pods.iter().map(|pod| format!("{} {}", pod.spec.addr, pod.spec.authority)).collect()
    }

    /// A name server of few names; `flaky` works every other time.
    async fn lookup(name: String) -> io::Result<Vec<IpAddr>> {
        static ASKED: AtomicU32 = AtomicU32::new(0);
        let addrs: &[&str] = match name.as_str() {
            "two" => &["10.0.0.2", "10.0.0.1", "10.0.0.2"],
            "both" => &["::1", "127.0.0.1"],
            "six" => &["::2", "::1"],
            "flaky" if ASKED.fetch_add(1, SeqCst).is_multiple_of(2) => &["10.0.0.9"],
            "flaky" => &[],
            "hangs" => return std::future::pending().await,
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(addrs.iter().map(|addr| addr.parse().unwrap()).collect())
    }

    #[tokio::test]
    async fn each_address_of_a_name_is_a_pod() {
        let table = Arc::new(Table::default());
        let mut resolver = Resolver::new(Arc::new(Publisher::new(Arc::clone(&table))));
        let sources = sources(&["two:8000", "both:1", "http://[::7]:1", "six:2", "gone:1", "10.0.0.1:8000"]);
        resolver.publish(&sources);
        assert_eq!(shown(&table), ["[::7]:1 [::7]:1", "10.0.0.1:8000 10.0.0.1:8000"], "addresses need no name server");
        resolver.look_up(&sources, LONG, lookup).await;
        resolver.publish(&sources);
        let mut pods = shown(&table);
        pods.sort();
        assert_eq!(
            pods,
            [
                "10.0.0.1:8000 two:8000",
                "10.0.0.2:8000 two:8000",
                "127.0.0.1:1 both:1",
                "[::1]:2 six:2",
                "[::2]:2 six:2",
                "[::7]:1 [::7]:1"
            ]
        );
    }

    #[tokio::test]
    async fn addresses_last_known_stay_when_a_look_up_fails() {
        let table = Arc::new(Table::default());
        let mut resolver = Resolver::new(Arc::new(Publisher::new(Arc::clone(&table))));
        let both = sources(&["flaky:1", "two:1"]);
        for round in 0..4 {
            resolver.look_up(&both, LONG, lookup).await;
            resolver.publish(&both);
            assert_eq!(table.fleet().pods.len(), 3, "round {round}");
            assert_eq!(table.fleet().generation, 1, "nothing changed, nothing published");
        }
        let one = sources(&["two:1"]);
        resolver.look_up(&one, LONG, lookup).await;
        resolver.publish(&one);
        assert_eq!((table.fleet().pods.len(), resolver.known.len()), (2, 1));
    }

    #[tokio::test]
    async fn a_look_up_that_hangs_delays_only_itself() {
        let mut resolver = Resolver::new(Arc::new(Publisher::new(Arc::default())));
        let sources = sources(&["hangs:1", "two:1"]);
        resolver.look_up(&sources, Duration::from_millis(20), lookup).await;
        assert_eq!((resolver.known.len(), resolver.failing.len()), (1, 1));
    }

    #[tokio::test]
    async fn runs_until_dropped_and_follows_its_sources() {
        let table = Arc::new(Table::default());
        let (sender, receiver) = watch::channel(sources(&["127.0.0.1:1"]));
        let (_settings_sender, settings) = watch::channel(Settings::default());
        let (tried, mut was_tried) = watch::channel(false);
        let task = supervise("discovery", run(receiver, settings, Arc::new(Publisher::new(Arc::clone(&table))), tried));
        was_tried.wait_for(|tried| *tried).await.unwrap();
        assert_eq!(shown(&table), ["127.0.0.1:1 127.0.0.1:1"]);
        was_tried.mark_unchanged();
        sender.send_replace(sources(&["127.0.0.1:2", "localhost:3"]));
        was_tried.changed().await.unwrap();
        assert!(shown(&table).contains(&"127.0.0.1:2 127.0.0.1:2".to_owned()), "{:?}", shown(&table));
        assert!(!shown(&table).contains(&"127.0.0.1:1 127.0.0.1:1".to_owned()));
        drop(sender);
        drop(task);
    }
}
