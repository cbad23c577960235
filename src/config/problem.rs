//! One problem of a configuration, and how it is shown.
use std::fmt;

/// Something that is wrong, where, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path in the tree, as `pods.list[1].url`; empty for the file as a whole; a flag for one given by a flag.
    pub path: String,
    /// Line (from 1), if it is in the file.
    pub line: Option<u64>,
    /// Column (from 1), if it is in the file.
    pub column: Option<u64>,
    /// The line itself.
    pub snippet: Option<String>,
    /// What is wrong.
    pub message: String,
    /// What to write instead; empty if the message says so.
    pub instead: String,
}

impl Problem {
    /// A problem without a place in the file.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            line: None,
            column: None,
            snippet: None,
            message: message.into(),
            instead: String::new(),
        }
    }

    /// The same problem, placed in `text`.
    #[must_use]
    pub(super) fn at(mut self, text: &str, line: u64, column: u64) -> Self {
        let position = usize::try_from(line.saturating_sub(1)).unwrap_or(usize::MAX);
        self.snippet = text.lines().nth(position).map(|line| line.trim_end().to_owned());
        (self.line, self.column) = (Some(line), Some(column));
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "line {line}, column {column}: ")?;
        }
        let separator = if self.path.is_empty() { "" } else { ": " };
        write!(f, "{}{separator}{}", self.path, self.message)?;
        if let (Some(snippet), Some(line), Some(column)) = (&self.snippet, self.line, self.column) {
            let (number, caret) = (line.to_string(), usize::try_from(column).unwrap_or(1));
            let gutter = " ".repeat(number.len());
            let shown: String = snippet.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
            write!(f, "\n{gutter} |\n{number} | {shown}\n{gutter} | {:>caret$}", "^")?;
            if !self.instead.is_empty() {
                write!(f, "\n{gutter} = {}", self.instead)?;
            }
        } else if !self.instead.is_empty() {
            write!(f, "; {}", self.instead)?;
        }
        Ok(())
    }
}

/// All problems of a configuration; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if position == 0 { "" } else { "\n\n" })?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
