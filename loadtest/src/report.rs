//! What a sub-command found, as text for a person and as JSON for a machine.
//!
//! The only place of this tool that prints. Text goes out line by line while the work runs; the JSON object is written once, at the
//! end, to the file given with `--json` (`-` means standard output). A run that missed a check ends with exit code 1.

use serde_json::{Map, Value};
use std::io;
use std::path::PathBuf;

/// Collects the lines and values of one sub-command.
pub(crate) struct Report {
    values: Map<String, Value>,
    json: Option<PathBuf>,
    misses: Vec<String>,
}

impl Report {
    /// An empty report; `json` is where the values go at the end.
    pub(crate) fn new(json: Option<PathBuf>) -> Self {
        Self { values: Map::new(), json, misses: Vec::new() }
    }

    /// Shows one line (or block) of text at once.
    #[allow(clippy::print_stdout, clippy::unused_self)]
    pub(crate) fn say(&self, line: impl AsRef<str>) {
        println!("{}", line.as_ref());
    }

    /// Keeps a value for the JSON output.
    pub(crate) fn put(&mut self, key: &str, value: impl Into<Value>) {
        self.values.insert(key.to_owned(), value.into());
    }

    /// Notes a check that did not hold; it is shown and fails the command at the end.
    pub(crate) fn miss(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.say(format!("MISS  {what}"));
        self.misses.push(what);
    }

    /// Writes the JSON and says whether every check held.
    #[allow(clippy::print_stdout)]
    pub(crate) fn finish(mut self) -> io::Result<bool> {
        let good = self.misses.is_empty();
        self.values.insert("ok".to_owned(), Value::Bool(good));
        self.values.insert("misses".to_owned(), Value::from(std::mem::take(&mut self.misses)));
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&Value::Object(self.values)).map_err(io::Error::other)?;
            if path.as_os_str() == "-" {
                println!("{text}");
            } else {
                std::fs::write(path, text + "\n")?;
            }
        }
        Ok(good)
    }
}
