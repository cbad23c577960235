//! All sources of pods side by side.
use std::sync::Arc;

use tokio::sync::watch;

use super::lists::{Book, Inputs};
use super::roster::Roster;
use super::settings::Settings;
use super::source::PodSource;
use super::{kubernetes, resolve};

/// Follows `sources` and `settings` for ever and publishes what is found. `tried` becomes true when every source was tried once, with or
/// without success, and those in Kubernetes were heard or refused for good.
pub async fn run(
    sources: watch::Receiver<Vec<PodSource>>,
    settings: watch::Receiver<Settings>,
    roster: Arc<Roster>,
    tried: watch::Sender<bool>,
) {
    let publisher = Arc::clone(roster.publisher());
    let inputs = Inputs { sources, settings: settings.clone(), added: roster.added() };
    let mut book = Book::new(inputs, Arc::clone(&publisher));
    let (lists, lists_seen) = watch::channel(book.lists().await);
    let (listed, mut is_listed) = watch::channel(false);
    let (heard, mut is_heard) = watch::channel(false);
    let (cluster, cluster_seen) = watch::channel(settings.borrow().kubernetes.clone());
    let mut changed = settings.clone();
    let follow = async {
        while changed.changed().await.is_ok() {
            let now = changed.borrow_and_update().kubernetes.clone();
            cluster.send_if_modified(|before| std::mem::replace(before, now.clone()) != now);
        }
        std::future::pending::<()>().await;
    };
    let first = async {
        // Both senders live as long as this future.
        drop(is_listed.wait_for(|listed| *listed).await);
        drop(is_heard.wait_for(|heard| *heard).await);
        publisher.publish();
        tried.send_replace(true);
    };
    tokio::join!(
        book.run(lists),
        roster.keep_saved(),
        resolve::run(lists_seen, settings, Arc::clone(&publisher), listed),
        kubernetes::run(cluster_seen, Arc::clone(&publisher), heard),
        publisher.run(),
        follow,
        first,
    );
}
