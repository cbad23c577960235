//! Policies by name: the gate's default, a file of `conf/policies`, a single scorer, or settings written on the command line.
//!
//! A file holds either a profile (`filters`, `scorers`, `picker`) or a gate's configuration with one under `routing.profile`.
use std::io;
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use tidegate::flow::{Classes, QueueSettings, SessionSettings};
use tidegate::scheduling::{Profile, ProfileSettings};

/// A profile under the name that reports use.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) profile: Arc<Profile>,
    /// One pod or two, where there are prefill pods.
    pub(crate) disagg: tidegate::disagg::Settings,
    /// Who waits at the gate; without it all go at once.
    pub(crate) queue: Option<Flow>,
    /// Takes pods in turn; the profile is not asked.
    pub(crate) is_rotation: bool,
}

/// The part of a gate's section `flow` that the lab knows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Flow {
    pub(crate) queue: QueueSettings,
    pub(crate) sessions: SessionSettings,
    pub(crate) classes: Classes,
}

/// Taken in turn by the lab itself where no file describes it: a profile does not remember whose turn it is.
const ROTATION: &str = "round-robin";

fn bad(name: &str, what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("policy `{name}`: {what}"))
}

impl Policy {
    /// `NAME` or `NAME=SETTINGS`, settings as YAML in one line.
    pub(crate) fn of(text: &str, folder: &Path) -> io::Result<Self> {
        let (name, yaml) = match text.split_once('=') {
            Some((name, yaml)) => (name, yaml.to_owned()),
            None => (text, Self::source(text, folder)?),
        };
        let value: Value = serde_yaml::from_str(&yaml).map_err(|error| bad(name, error))?;
        Self::with(name, value, text == ROTATION && !folder.join(format!("{ROTATION}.yaml")).is_file())
    }

    /// The profile that these settings describe.
    pub(crate) fn with(name: &str, settings: Value, is_rotation: bool) -> io::Result<Self> {
        let disagg = settings.get("disaggregation").cloned().unwrap_or_else(|| Value::Object(serde_json::Map::new()));
        let disagg = serde_json::from_value(disagg).map_err(|error| bad(name, error))?;
        let queue = settings.get("flow").cloned().map(serde_json::from_value).transpose();
        let queue = queue.map_err(|error| bad(name, error))?;
        let settings: ProfileSettings =
            serde_json::from_value(profile_in(settings)).map_err(|error| bad(name, error))?;
        let profile = Profile::new(&settings).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            bad(name, problems.join("; "))
        })?;
        Ok(Self { name: name.to_owned(), profile: Arc::new(profile), disagg, queue, is_rotation })
    }

    fn source(name: &str, folder: &Path) -> io::Result<String> {
        if name == "default" {
            return Ok("{}".to_owned());
        }
        let is_file = Path::new(name).extension().is_some_and(|extension| extension == "yaml");
        let file = if is_file { name.into() } else { folder.join(format!("{name}.yaml")) };
        match std::fs::read_to_string(&file) {
            Ok(text) => Ok(text),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(bad(name, error)),
            Err(_) if is_file => Err(bad(name, "there is no such file")),
            Err(_) if name == ROTATION => Ok("{}".to_owned()),
            Err(_) if name == "random" => Ok("{scorers: [], picker: {random: {}}}".to_owned()),
            Err(_) => Ok(format!("{{scorers: [{{{name}: {{}}}}]}}")),
        }
    }
}

/// The profile of a gate's configuration, or the value itself.
fn profile_in(value: Value) -> Value {
    let routing = value.get("routing");
    let profile = routing.and_then(|routing| routing.get("profile"));
    let named = routing.and_then(|routing| routing.get("profiles")?.as_object()?.values().next());
    let is_gate = ["routing", "disaggregation", "flow"].iter().any(|section| value.get(section).is_some());
    match profile.or(named).cloned() {
        Some(profile) => profile,
        None if is_gate => Value::Object(serde_json::Map::new()),
        None => value,
    }
}
