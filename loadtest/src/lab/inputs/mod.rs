//! Where scripts come from: traces read from files, and generated workloads that need none.
//!
//! A workload is named in a cell; [`Workload::script`] makes it. The same workload and seed always give the same script. The
//! seed of a trace changes nothing but ties, classes and foreign shares: the arrivals are the trace's.
mod azure;
mod generated;
mod mooncake;
mod weka;

use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use azure::Azure;
pub(crate) use generated::{Agent, B2b, Bursts, Chat, Mixed};
pub(crate) use mooncake::Mooncake;
pub(crate) use weka::Weka;

use super::script::{Script, mix};

/// What clients do in a cell.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Workload {
    /// A file in Mooncake's format: `{timestamp, input_length, output_length, hash_ids}` per line.
    Mooncake(Mooncake),
    /// Agent sessions in the compact form of the Weka traces (`.jsonl.gz`).
    Weka(Weka),
    /// `TIMESTAMP,ContextTokens,GeneratedTokens` per line, as Azure publishes it. Prompts share nothing.
    Azure(Azure),
    /// Groups with a long shared system prompt, few questions each, asked again and again.
    B2b(B2b),
    /// Agents: long growing contexts, many short turns, think time; a turn waits for the one before.
    Agent(Agent),
    /// People in conversations; with `reasoning_share` the template strips what was thought.
    Chat(Chat),
    /// Prompts without a past, in lengths and shares of choice: decode-bound, reasoning, long prompts of the batch class.
    Mixed(Mixed),
    /// As `mixed`, arriving in bursts.
    Bursts(Bursts),
    /// Several of them at once.
    Together(Vec<Workload>),
}

impl Workload {
    /// The file it needs, relative to the folder of traces.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::Mooncake(Mooncake { file, .. }) | Self::Weka(Weka { file, .. }) | Self::Azure(Azure { file, .. }) => {
                Some(file)
            }
            _ => None,
        }
    }

    /// The same with more or fewer requests per second; of agents with more or fewer sessions.
    pub(crate) fn times(&self, load: f64) -> Self {
        match self.clone() {
            Self::Mooncake(own) => Self::Mooncake(Mooncake { speed: own.speed * load, ..own }),
            Self::Weka(own) => Self::Weka(Weka { sessions: (own.sessions as f64 * load).round() as usize, ..own }),
            Self::Azure(own) => Self::Azure(Azure { speed: own.speed * load, ..own }),
            Self::B2b(own) => Self::B2b(B2b { rate: own.rate * load, ..own }),
            Self::Agent(own) => Self::Agent(Agent { sessions: (own.sessions as f64 * load).round() as u64, ..own }),
            Self::Chat(own) => Self::Chat(Chat { rate: own.rate * load, ..own }),
            Self::Mixed(own) => Self::Mixed(Mixed { rate: own.rate * load, ..own }),
            Self::Bursts(own) => Self::Bursts(Bursts { of: Mixed { rate: own.of.rate * load, ..own.of }, ..own }),
            Self::Together(parts) => Self::Together(parts.iter().map(|part| part.times(load)).collect()),
        }
    }

    /// Everything the clients will do.
    pub(crate) fn script(&self, traces: &Path, seed: u64) -> io::Result<Script> {
        let text = match self.file() {
            Some(file) => read(&traces.join(file))?,
            None => String::new(),
        };
        let mut script = match self {
            Self::Mooncake(own) => own.script(&text)?,
            Self::Weka(own) => own.script(&text, seed)?,
            Self::Azure(own) => own.script(&text)?,
            Self::B2b(own) => own.script(seed),
            Self::Agent(own) => own.script(seed),
            Self::Chat(own) => own.script(seed),
            Self::Mixed(own) => own.script(seed),
            Self::Bursts(own) => own.script(seed),
            Self::Together(parts) => {
                let mut all = Script { has_template: true, ..Script::default() };
                for (number, part) in parts.iter().enumerate() {
                    let part = part.script(traces, mix(seed, number as u64))?;
                    all.has_template &= part.has_template;
                    all.sessions.extend(part.sessions);
                }
                all
            }
        };
        script.sessions.sort_by_key(|session| session.start_us);
        Ok(script)
    }
}

/// The text of a file, unpacked if its name ends in `.gz`.
fn read(path: &Path) -> io::Result<String> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let bytes = std::fs::read(path).map_err(named)?;
    if path.extension().is_some_and(|extension| extension == "gz") {
        return io::read_to_string(flate2::read::MultiGzDecoder::new(bytes.as_slice())).map_err(named);
    }
    String::from_utf8(bytes).map_err(|_| named(io::Error::other("is not UTF-8 text")))
}

/// What is wrong with a line of a trace.
fn bad_line(file: &Path, line: usize, what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}:{}: {what}", file.display(), line + 1))
}

fn default_speed() -> f64 {
    1.0
}

/// Names used by several inputs.
type File = PathBuf;
