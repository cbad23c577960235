//! One YAML tree in, one [`Config`] out, with every problem told at once.
//!
//! [`Tree`] is what is written: the settings structs of the rooms under their keys, unknown fields refused. [`Config`] is what
//! it means: addresses parsed, names resolved. Between the two, [`check`] collects all problems with path, line, caret and
//! what to write instead. Rooms get their own part; none of them imports this one. Reads files, no environment.
mod args;
mod build;
mod load;
mod locate;
mod policies;
mod problem;
mod reference;
mod schema;
mod sections;
mod shape;
mod shown;
mod tree;

pub use args::ServeArgs;
pub use build::{Config, ModelNames, ModelRule};
pub use load::{POLL_INTERVAL_S, Stamp, Watcher, load, stamp};
pub use policies::{policy, policy_names, policy_settings};
pub use problem::{Problem, Problems};
pub use reference::reference;
pub use schema::schema;
pub use sections::{CacheIsolation, Prefix, Routing};
pub use shape::{check, parse};
pub use tree::Tree;
