//! Pods of a Kubernetes cluster, watched: no polling, no sidecar, no custom resource of our own.
//!
//! `translate` says what an object means (pure), `watch` follows one kind of objects in one namespace with the list and watch
//! protocol, `follow` keeps a watch for each source and namespace. Only get, list and watch are asked for. While the API server
//! cannot be reached, what it said last stands.
mod client;
mod follow;
mod settings;
mod translate;
mod watch;

pub(in crate::discovery) use follow::run;
pub use settings::{Named, Settings, Source};
