//! Checks JSON syntax in one pass, without recursion and without building anything. Accepts what Python's `json` module
//! accepts (vLLM parses bodies with it): also `NaN`, `Infinity` and lone surrogate escapes. Limits: depth and keys per
//! object, so that a hostile body is refused early. Error texts are Python's, because vLLM hands those to clients.
use super::blocks;
use super::json::{short_string_end, skip_space};

/// Deepest nesting accepted, the top-level object included (`reliability` limit of the gate).
pub(super) const DEPTH_MAX: usize = 64;
/// Most keys accepted in one object.
pub(super) const KEYS_MAX: u32 = 10_000;

/// Why the text was refused, and where (byte offset).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Syntax { at: usize, what: &'static str },
    TooDeep,
    TooManyKeys,
}

/// One pass over a text. `at` is the next byte to read.
pub(super) struct Scan<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    /// False once a string was read that holds a byte above 0x7F, or has one close behind it.
    pub(super) is_ascii: bool,
}

/// The containers that are open: a bit per level (1 = object) and the keys seen in each.
struct Open {
    objects: u64,
    depth: usize,
    base: usize,
    keys: [u32; DEPTH_MAX],
}

impl Open {
    fn push(&mut self, is_object: bool) -> Result<(), Fault> {
        if self.base + self.depth >= DEPTH_MAX {
            return Err(Fault::TooDeep);
        }
        self.objects = (self.objects << 1) | u64::from(is_object);
        if let Some(keys) = self.keys.get_mut(self.depth) {
            *keys = 0;
        }
        self.depth += 1;
        Ok(())
    }

    fn pop(&mut self) {
        self.objects >>= 1;
        self.depth -= 1;
    }

    const fn in_object(&self) -> bool {
        self.objects & 1 == 1
    }

    fn count_key(&mut self) -> Result<(), Fault> {
        match self.keys.get_mut(self.depth.wrapping_sub(1)) {
            Some(keys) if *keys < KEYS_MAX => *keys += 1,
            _ => return Err(Fault::TooManyKeys),
        }
        Ok(())
    }
}

impl<'a> Scan<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, is_ascii: true }
    }
}

impl Scan<'_> {
    pub(super) fn space(&mut self) {
        self.at = skip_space(self.bytes, self.at);
    }

    pub(super) fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    pub(super) const fn fault<T>(&self, what: &'static str) -> Result<T, Fault> {
        Err(Fault::Syntax { at: self.at, what })
    }

    /// A key and its colon, up to the value. Returns whether the key holds an escape and the offset behind its quote.
    pub(super) fn key(&mut self) -> Result<(usize, bool), Fault> {
        if self.peek() != Some(b'"') {
            return self.fault("Expecting property name enclosed in double quotes");
        }
        let has_escape = self.string()?;
        let end = self.at;
        self.space();
        if self.peek() != Some(b':') {
            return self.fault("Expecting ':' delimiter");
        }
        self.at += 1;
        self.space();
        Ok((end, has_escape))
    }

    /// One whole value inside `base` open containers.
    pub(super) fn value(&mut self, base: usize) -> Result<(), Fault> {
        let mut open = Open { objects: 0, depth: 0, base, keys: [0; DEPTH_MAX] };
        loop {
            if !self.begin(&mut open)? && !self.follow(&mut open)? {
                return Ok(());
            }
        }
    }

    /// Reads the start of a value: a whole scalar or empty container (false), or the opening of a container and its first
    /// key (true: a value comes next).
    fn begin(&mut self, open: &mut Open) -> Result<bool, Fault> {
        match self.peek() {
            Some(b'"') => self.string().map(|_| false),
            Some(b'{') => self.enter(open, true, b'}'),
            Some(b'[') => self.enter(open, false, b']'),
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| false),
            Some(b't') => self.literal(b"true"),
            Some(b'f') => self.literal(b"false"),
            Some(b'n') => self.literal(b"null"),
            Some(b'N') => self.literal(b"NaN"),
            Some(b'I') => self.literal(b"Infinity"),
            _ => self.fault("Expecting value"),
        }
    }

    fn enter(&mut self, open: &mut Open, is_object: bool, close: u8) -> Result<bool, Fault> {
        open.push(is_object)?;
        self.at += 1;
        self.space();
        if self.peek() == Some(close) {
            self.at += 1;
            open.pop();
            return Ok(false);
        }
        if is_object {
            open.count_key()?;
            self.key()?;
        }
        Ok(true)
    }

    /// Reads what follows a value; true if another value comes next, false when the outermost one is complete.
    fn follow(&mut self, open: &mut Open) -> Result<bool, Fault> {
        while open.depth > 0 {
            self.space();
            match (self.peek(), open.in_object()) {
                (Some(b','), is_object) => {
                    self.at += 1;
                    self.space();
                    if is_object {
                        open.count_key()?;
                        self.key()?;
                    }
                    return Ok(true);
                }
                (Some(b'}'), true) | (Some(b']'), false) => {
                    self.at += 1;
                    open.pop();
                }
                _ => return self.fault("Expecting ',' delimiter"),
            }
        }
        Ok(false)
    }

    fn literal(&mut self, word: &[u8]) -> Result<bool, Fault> {
        if !self.bytes.get(self.at..).is_some_and(|rest| rest.starts_with(word)) {
            return self.fault("Expecting value");
        }
        self.at += word.len();
        Ok(false)
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    /// `-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?`, or `-Infinity`. As in Python, a number ends where the pattern
    /// ends, and what follows is judged next.
    fn number(&mut self) -> Result<(), Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => {
                self.digits();
            }
            Some(b'I') if self.at > start => return self.literal(b"Infinity").map(|_| ()),
            _ => {
                self.at = start;
                return self.fault("Expecting value");
            }
        }
        if self.peek() == Some(b'.') {
            self.optional(1);
        }
        if matches!(self.peek(), Some(b'e' | b'E')) {
            let signed = matches!(self.bytes.get(self.at + 1), Some(b'+' | b'-'));
            self.optional(if signed { 2 } else { 1 });
        }
        Ok(())
    }

    /// Digits after a mark of `mark` bytes; the mark is not taken if none follow.
    fn optional(&mut self, mark: usize) {
        self.at += mark;
        if self.digits() == 0 {
            self.at -= mark;
        }
    }

    /// A string from its opening quote; true if it holds an escape.
    pub(super) fn string(&mut self) -> Result<bool, Fault> {
        let start = self.at + 1;
        if let Some((end, is_ascii)) = short_string_end(self.bytes, start) {
            self.at = end;
            self.is_ascii &= is_ascii;
            return Ok(false);
        }
        match blocks::string_end::<true>(self.bytes, start) {
            Some(closed) => {
                self.at = closed.end;
                self.is_ascii &= closed.is_ascii;
                Ok(closed.has_escape)
            }
            None => self.string_by_bytes(),
        }
    }

    /// The same, to find out what is wrong with a string.
    #[cold]
    fn string_by_bytes(&mut self) -> Result<bool, Fault> {
        self.is_ascii = false;
        let opening = self.at;
        let mut has_escape = false;
        loop {
            self.at += 1;
            match self.peek() {
                None => {
                    self.at = opening;
                    return self.fault("Unterminated string starting at");
                }
                Some(b'"') => {
                    self.at += 1;
                    return Ok(has_escape);
                }
                Some(b'\\') => {
                    has_escape = true;
                    self.at += 1;
                    self.escape(opening)?;
                    self.at -= 1;
                }
                Some(0..0x20) => return self.fault("Invalid control character at"),
                Some(_) => {}
            }
        }
    }

    fn escape(&mut self, opening: usize) -> Result<(), Fault> {
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                let digits = self.bytes.get(self.at + 1..self.at + 5);
                if !digits.is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit)) {
                    return self.fault("Invalid \\uXXXX escape");
                }
                self.at += 5;
            }
            Some(_) => {
                self.at -= 1;
                return self.fault("Invalid \\escape");
            }
            None => {
                self.at = opening;
                return self.fault("Unterminated string starting at");
            }
        }
        Ok(())
    }
}
