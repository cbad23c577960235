//! Keeps a watch for each source and namespace, as the settings say.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, Client, Resource};
use tokio::sync::watch;

use super::client::connect;
use super::settings::{Named, Settings, Source};
use super::translate::{self, Pool};
use super::watch::{Failure, News, Watch, Which};
use crate::base::Rng;
use crate::discovery::found::Found;
use crate::discovery::publish::Publisher;
use crate::runtime::{Task, now, supervise};

/// Before the names of sources on the board.
const PREFIX: &str = "kubernetes ";
/// Pause before credentials are read again.
const RECONNECT: Duration = Duration::from_secs(2);
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Follows `settings` for ever. `tried` becomes true when every source was heard once, or was refused for good.
pub(in crate::discovery) async fn run(
    mut settings: watch::Receiver<Settings>,
    publisher: Arc<Publisher>,
    tried: watch::Sender<bool>,
) {
    let mut feeds: HashMap<String, (Task, watch::Receiver<bool>)> = HashMap::new();
    let mut running = Settings::default();
    loop {
        let current = settings.borrow_and_update().clone();
        if (&current.kubeconfig, &current.context) != (&running.kubeconfig, &running.context) {
            feeds.clear();
        }
        running = current;
        let wanted = wanted(&running);
        feeds.retain(|key, _| wanted.iter().any(|(other, ..)| other == key));
        publisher.keep(|name| !name.starts_with(PREFIX) || feeds.contains_key(name));
        for (key, source, namespace) in wanted {
            feeds.entry(key.clone()).or_insert_with(|| {
                let (first, heard) = watch::channel(false);
                let feed = Feed {
                    key,
                    shown: shown(&source, namespace.as_deref()),
                    source,
                    namespace,
                    settings: running.clone(),
                    publisher: Arc::clone(&publisher),
                    first,
                };
                (supervise("kubernetes", feed.run()), heard)
            });
        }
        let waits: Vec<_> = feeds.values().map(|(_, heard)| heard.clone()).collect();
        let all_heard = async {
            for mut heard in waits {
                if heard.wait_for(|heard| *heard).await.is_err() {
                    return std::future::pending().await;
                }
            }
        };
        tokio::select! {
            () = async { all_heard.await; tried.send_replace(true); std::future::pending::<()>().await } => {}
            changed = settings.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
        }
    }
}

/// For logs and metrics: `service/vllm`, `ai/service/vllm`.
fn shown(source: &Source, namespace: Option<&str>) -> String {
    let shown = source.shown();
    namespace.map_or_else(|| shown.clone(), |namespace| format!("{namespace}/{shown}"))
}

/// Each source in each of its namespaces, with a name for it. No namespace means that of the credentials.
fn wanted(settings: &Settings) -> Vec<(String, Source, Option<String>)> {
    let each = |source: &Source| {
        let own = source.namespaces.is_empty().then_some(None);
        let named: Vec<Option<String>> = own.into_iter().chain(source.namespaces.iter().cloned().map(Some)).collect();
        let one = Source { namespaces: Vec::new(), ..source.clone() };
        named.into_iter().map(move |namespace| (format!("{PREFIX}{namespace:?} {one:?}"), one.clone(), namespace))
    };
    settings.sources.iter().flat_map(each).collect()
}

/// One source in one namespace.
struct Feed {
    key: String,
    shown: String,
    source: Source,
    namespace: Option<String>,
    settings: Settings,
    publisher: Arc<Publisher>,
    first: watch::Sender<bool>,
}

impl Feed {
    async fn run(self) {
        loop {
            match connect(&self.settings).await {
                Ok(client) => self.follow(client).await,
                Err(problem) => self.failed(&problem, false),
            }
            // Refused: a token may have been replaced meanwhile.
            tokio::time::sleep(RECONNECT).await;
        }
    }

    /// Follows until the credentials are refused.
    async fn follow(&self, client: Client) {
        match self.source.named() {
            Some(Named::Service(name)) => {
                let which = Which { labels: Some(format!("{SERVICE_LABEL}={name}")), fields: None };
                let source = self.source.clone();
                let means = Box::new(move |slice: &EndpointSlice| translate::of_slice(slice, &source));
                let watch = Watch { api: self.api(client), which, means, rng: rng() };
                watch.run(|news| self.found(news)).await;
            }
            Some(Named::Selector(selector)) => {
                self.pods(client, selector.to_owned(), None).await;
            }
            Some(Named::Pool(name)) => self.pool(client, name).await,
            None => std::future::pending().await,
        }
    }

    async fn pods(&self, client: Client, selector: String, pool: Option<Pool>) -> Failure {
        let which = Which { labels: Some(selector), fields: None };
        let source = self.source.clone();
        let means = Box::new(move |pod: &Pod| translate::of_pod(pod, &source, pool.as_ref()));
        let watch = Watch { api: self.api(client), which, means, rng: rng() };
        watch.run(|news| self.found(news)).await
    }

    /// An InferencePool, and the pods that it selects by now.
    async fn pool(&self, client: Client, name: &str) {
        let kind = GroupVersionKind::gvk("inference.networking.k8s.io", "v1", "InferencePool");
        let kind = ApiResource::from_gvk(&kind);
        let api: Api<DynamicObject> = match &self.namespace {
            Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
            None => Api::default_namespaced_with(client.clone(), &kind),
        };
        let which = Which { labels: None, fields: Some(format!("metadata.name={name}")) };
        let (told, mut said) = watch::channel(None::<Pool>);
        let means = Box::new(|object: &DynamicObject| object.data.get("spec").and_then(translate::of_pool));
        let watched = Watch { api, which, means, rng: rng() }.run(|news| match news {
            News::All(all) => {
                let pool = all.into_values().flatten().next();
                if pool.is_none() {
                    self.failed("there is no such InferencePool, or it selects nothing", true);
                }
                told.send_if_modified(|now| std::mem::replace(now, pool.clone()) != pool);
            }
            News::Put(_, pool) => drop(told.send_if_modified(|now| std::mem::replace(now, pool.clone()) != pool)),
            News::Gone(_) => drop(told.send_if_modified(|now| now.take().is_some())),
            News::Alive => {}
            News::Failed(failure) => self.failed(&failure.to_string(), failure.is_final()),
        });
        let pods = async {
            loop {
                let pool = said.borrow_and_update().clone();
                let Some(pool) = pool else {
                    if said.changed().await.is_err() {
                        std::future::pending::<()>().await;
                    }
                    continue;
                };
                tokio::select! {
                    _refused = self.pods(client.clone(), pool.selector.clone(), Some(pool)) => return,
                    _ = said.changed() => {}
                }
            }
        };
        tokio::select! { _ = watched => {} () = pods => {} }
    }

    fn api<K>(&self, client: Client) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(client, namespace),
            None => Api::default_namespaced(client),
        }
    }

    fn found(&self, news: News<'_, Vec<Found>>) {
        match news {
            News::All(all) => drop(self.publisher.set(&self.key, all)),
            News::Put(object, found) => self.publisher.put(&self.key, &object, found),
            News::Gone(object) => self.publisher.put(&self.key, &object, Vec::new()),
            News::Alive => {}
            News::Failed(failure) => return self.failed(&failure.to_string(), failure.is_final()),
        }
        if self.publisher.heard(&self.key, &self.shown, false) {
            tracing::info!(source = self.shown, namespace = self.namespace, "API server heard again");
        }
        self.first.send_if_modified(|first| !std::mem::replace(first, true));
    }

    /// Told once until it is heard again. What is refused for good is not waited for by readiness.
    fn failed(&self, problem: &str, is_final: bool) {
        if self.publisher.heard(&self.key, &self.shown, true) {
            let (source, namespace) = (&self.shown, &self.namespace);
            tracing::warn!(source, namespace, problem, "pods cannot be looked for, those last known stay");
        }
        if is_final {
            self.first.send_if_modified(|first| !std::mem::replace(first, true));
        }
    }
}

fn rng() -> Rng {
    Rng::new(now().0 ^ u64::from(std::process::id()) << 32)
}
