//! One YAML tree in, one [`Config`] out, with every problem told at once.
//!
//! [`Tree`] is what is written: the settings structs of the rooms under their keys, unknown fields refused. [`Config`] is what
//! it means: addresses parsed, names resolved. Between the two, [`check`] collects all problems with path, line, caret and
//! what to write instead. Rooms get their own part; none of them imports this one. Reads files, no environment.
mod args;
mod build;
mod load;
mod locate;
mod pending;
mod pod_url;
mod problem;
mod reference;
mod schema;
mod shape;
mod tree;

pub use args::ServeArgs;
pub use build::{Config, ModelNames, ModelRule};
pub use load::{Loaded, POLL_INTERVAL_S, Watcher, load};
pub use pending::{Prefix, Retry, Routing, Telemetry};
pub use pod_url::Target;
pub use problem::{Problem, Problems};
pub use reference::reference;
pub use schema::schema;
pub use shape::{check, parse};
pub use tree::{PodEntry, Pods, Tree};
