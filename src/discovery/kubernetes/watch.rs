//! One kind of objects in one namespace, followed with the list and watch protocol.
//!
//! First a list in pages, then a watch from its version on, again and again: the server ends each after a minute, so that a
//! connection that died in silence is noticed. A version that the server no longer has (410) leads to a new list. Errors are answered by
//! waiting, up to some seconds; what was known stands meanwhile.
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::{Api, Resource, ResourceExt as _};
use serde::de::DeserializeOwned;

use crate::base::Rng;

/// How long the server lets a watch run \[s\], and how long one may be silent.
const WATCH_S: u32 = 60;
const SILENT_MAX: Duration = Duration::from_secs(WATCH_S as u64 + 15);
/// Longest time for a page of a list, or for the head of a watch.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// Objects of one page.
const PAGE: u32 = 500;
/// Waits after errors.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Most objects that are kept of one source.
const OBJECTS_MAX: usize = 100_000;

/// What is followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Which {
    pub(super) labels: Option<String>,
    pub(super) fields: Option<String>,
}

/// What is told of a watch.
pub(super) enum News<'a, T> {
    /// Everything there is, by name.
    All(BTreeMap<String, T>),
    /// One object is new or changed.
    Put(String, T),
    /// One is gone.
    Gone(String),
    /// The server was heard, without news.
    Alive,
    /// It failed.
    Failed(&'a Failure),
}

/// Why the server did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It said so.
    #[error("the API server answers {code} ({reason})")]
    Status { code: u16, reason: String },
    /// It could not be reached, or was cut off.
    #[error("{0}")]
    Lost(String),
    /// It did not answer in time.
    #[error("no answer in time")]
    Silent,
}

impl Failure {
    /// Whether the credentials were not accepted: they may have been changed.
    pub(super) const fn is_unauthorized(&self) -> bool {
        matches!(self, Self::Status { code: 401, .. })
    }

    /// Whether asking again will hardly help: the source names what is not there, or what may not be seen.
    pub(super) const fn is_final(&self) -> bool {
        matches!(self, Self::Status { code: 400 | 403 | 404 | 422, .. })
    }

    const fn is_expired(&self) -> bool {
        matches!(self, Self::Status { code: 410, .. })
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::Status { code: status.code, reason: status.reason },
            other => Self::Lost(other.to_string()),
        }
    }
}

/// A watch on objects `K`, each of which means a `T`.
pub(super) struct Watch<K, T> {
    pub(super) api: Api<K>,
    pub(super) which: Which,
    pub(super) means: Box<dyn Fn(&K) -> T + Send + Sync>,
    pub(super) rng: Rng,
}

impl<K, T> Watch<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug,
{
    /// Follows until the credentials are refused.
    pub(super) async fn run(mut self, mut tell: impl FnMut(News<'_, T>)) -> Failure {
        let mut pause = PAUSE.0;
        loop {
            let failed = match self.list().await {
                Ok((all, version)) => {
                    pause = PAUSE.0;
                    tell(News::All(all));
                    self.follow(version, &mut tell).await
                }
                Err(failed) => failed,
            };
            if failed.is_expired() {
                continue;
            }
            tell(News::Failed(&failed));
            if failed.is_unauthorized() {
                return failed;
            }
            self.wait(&mut pause).await;
        }
    }

    async fn wait(&mut self, pause: &mut Duration) {
        tokio::time::sleep(pause.mul_f64(0.5 + 0.5 * self.rng.unit())).await;
        *pause = (*pause * 2).min(PAUSE.1);
    }

    async fn list(&self) -> Result<(BTreeMap<String, T>, String), Failure> {
        let mut all = BTreeMap::new();
        let mut params = ListParams {
            label_selector: self.which.labels.clone(),
            field_selector: self.which.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        loop {
            let page = in_time(self.api.list(&params)).await?;
            all.extend(page.items.iter().map(|object| (object.name_any(), (self.means)(object))));
            let next = page.metadata.continue_.filter(|next| !next.is_empty());
            if next.is_none() || all.len() >= OBJECTS_MAX {
                return Ok((all, page.metadata.resource_version.unwrap_or_default()));
            }
            params.continue_token = next;
        }
    }

    /// Watches from a version on, until that is of no use any more.
    async fn follow(&mut self, mut version: String, tell: &mut impl FnMut(News<'_, T>)) -> Failure {
        let mut pause = PAUSE.0;
        loop {
            let before = version.clone();
            let ended = self.once(&mut version, tell).await;
            match &ended {
                Ok(()) => tell(News::Alive),
                Err(Failure::Status { .. }) => {}
                Err(lost) => tell(News::Failed(lost)),
            }
            if let Err(failed @ Failure::Status { .. }) = ended {
                return failed;
            }
            if version == before {
                // A server that is gone, or ends every watch at once, is not asked without pause.
                self.wait(&mut pause).await;
            } else {
                pause = PAUSE.0;
            }
        }
    }

    /// One watch. `Ok`: the server ended it.
    async fn once(&self, version: &mut String, tell: &mut impl FnMut(News<'_, T>)) -> Result<(), Failure> {
        let params = WatchParams {
            label_selector: self.which.labels.clone(),
            field_selector: self.which.fields.clone(),
            timeout: Some(WATCH_S),
            bookmarks: true,
            ..WatchParams::default()
        };
        let events = in_time(self.api.watch(&params, version)).await?;
        pin_mut!(events);
        tell(News::Alive);
        loop {
            let event = match tokio::time::timeout(SILENT_MAX, events.next()).await {
                Err(_) => return Err(Failure::Silent),
                Ok(None) => return Ok(()),
                Ok(Some(event)) => event?,
            };
            match event {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    *version = object.resource_version().unwrap_or_default();
                    tell(News::Put(object.name_any(), (self.means)(&object)));
                }
                WatchEvent::Deleted(object) => {
                    *version = object.resource_version().unwrap_or_default();
                    tell(News::Gone(object.name_any()));
                }
                WatchEvent::Bookmark(mark) => {
                    *version = mark.metadata.resource_version;
                    tell(News::Alive);
                }
                WatchEvent::Error(status) => return Err(Failure::Status { code: status.code, reason: status.reason }),
            }
        }
    }
}

async fn in_time<V>(answer: impl Future<Output = kube::Result<V>>) -> Result<V, Failure> {
    match tokio::time::timeout(ANSWER_MAX, answer).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(Failure::Silent),
    }
}
