//! Files of the repository as the rules see them: text, code without comments and literals, and where tests are.
//!
//! The reader is a lexer, not a parser: it knows comments, literals, attributes and brackets, which is all the rules
//! need, and it needs no dependency. Offsets are bytes and the same in every view of a file.
//! It must not judge anything; that is for the rules.
use std::fs;
use std::ops::Range;
use std::path::Path;

/// Everything the rules look at.
#[derive(Default)]
pub(crate) struct Tree {
    pub(crate) sources: Vec<Source>,
    /// Every other text file: (path, text).
    pub(crate) texts: Vec<(String, String)>,
}

/// One Rust file.
pub(crate) struct Source {
    /// Path from the root of the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// The text with comments and the insides of literals as spaces.
    pub(crate) code: String,
    /// The text with everything but comments as spaces.
    pub(crate) comments: String,
    attributes: Vec<Attribute>,
    is_test: bool,
    test_ranges: Vec<Range<usize>>,
}

/// `#[...]` or `#![...]` with the bytes it applies to (itself included). `text` has no spaces and no literals.
struct Attribute {
    text: String,
    range: Range<usize>,
}

impl Tree {
    /// The tree of a repository on disk.
    pub(crate) fn read(root: &Path) -> Self {
        let mut files = Vec::new();
        walk(root, "", &mut files);
        Self::of(files)
    }

    /// A tree from (path, text) pairs.
    pub(crate) fn of(files: impl IntoIterator<Item = (impl Into<String>, impl Into<String>)>) -> Self {
        let mut tree = Self::default();
        for (path, text) in files {
            let (path, text) = (path.into(), text.into());
            let is_rust = Path::new(&path).extension().is_some_and(|extension| extension == "rs");
            if is_rust && !path.starts_with('.') {
                tree.sources.push(Source::new(path, text));
            } else {
                tree.texts.push((path, text));
            }
        }
        let test_modules: Vec<String> = tree.sources.iter().flat_map(Source::test_modules).collect();
        for source in &mut tree.sources {
            let stem = source.path.trim_end_matches(".rs");
            let is_named = |module: &String| stem == module || stem.starts_with(&format!("{module}/"));
            source.is_test |= test_modules.iter().any(is_named);
        }
        tree
    }
}

fn walk(dir: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    let mut entries: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let relative = format!("{prefix}{name}");
        if path.is_dir() {
            let is_foreign = ["target", ".git", "__pycache__", "node_modules"].contains(&name.as_str());
            if !is_foreign && !path.join("pyvenv.cfg").exists() {
                walk(&path, &format!("{relative}/"), files);
            }
        } else if name != ".git"
            && let Ok(text) = fs::read_to_string(&path)
        {
            files.push((relative, text));
        }
    }
}

impl Source {
    pub(crate) fn new(path: String, text: String) -> Self {
        let (code, comments) = split(&text);
        let attributes = attributes(&code);
        let is_test = path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
        let test_ranges =
            attributes.iter().filter(|attribute| is_test_mark(&attribute.text)).map(|a| a.range.clone()).collect();
        Self { path, text, code, comments, attributes, is_test, test_ranges }
    }

    /// Is the byte at `offset` compiled for tests only?
    pub(crate) fn in_test(&self, offset: usize) -> bool {
        self.is_test || self.test_ranges.iter().any(|range| range.contains(&offset))
    }

    /// Is `lint` switched off at `offset` with a reason given? The same attribute speaks to clippy and to these rules.
    pub(crate) fn is_excused(&self, lint: &str, offset: usize) -> bool {
        self.attributes.iter().any(|attribute| {
            let word = attribute.text.trim_start_matches(['#', '!', '[']);
            let is_level = word.starts_with("allow(") || word.starts_with("expect(");
            is_level
                && attribute.range.contains(&offset)
                && word.contains("reason=")
                && !matches(word, &format!("clippy::{lint}")).is_empty()
        })
    }

    /// Is the byte at `offset` in the value of a `const`, where a panic is an error of the compiler?
    pub(crate) fn in_const(&self, offset: usize) -> bool {
        matches(&self.code[..offset], "const ").last().is_some_and(|start| {
            let name = self.code[start + 6..].trim_start();
            name.starts_with(|letter: char| letter.is_uppercase() || letter == '_')
                && offset < item_end(&self.code, *start)
        })
    }

    /// 1-based line of a byte.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
    }

    /// `path:line` of a byte, as editors understand it.
    pub(crate) fn at(&self, offset: usize) -> String {
        format!("{}:{}", self.path, self.line(offset))
    }

    /// Folder in which `mod x;` of this file looks for x, with a slash at its end.
    pub(crate) fn module_folder(&self) -> String {
        let (folder, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let is_root = folder == "src" || folder == "loadtest/src" || folder == "tests";
        let owns_folder = name == "mod.rs" || ["main.rs", "lib.rs", "build.rs"].contains(&name);
        if owns_folder || (is_root && folder == "tests") {
            format!("{folder}/")
        } else {
            format!("{}/", self.path.trim_end_matches(".rs"))
        }
    }

    /// (offset, name) of every `mod name;`.
    pub(crate) fn declared_modules(&self) -> Vec<(usize, &str)> {
        let declared = |offset: &usize| {
            let rest = &self.code[offset + 4..];
            let name = &rest[..rest.find(|letter| !is_word(letter))?];
            rest[name.len()..].trim_start().starts_with(';').then_some((*offset, name))
        };
        matches(&self.code, "mod ").iter().filter_map(declared).collect()
    }

    /// Paths at which the file of a declared module may be.
    pub(crate) fn module_files(&self, offset: usize, name: &str) -> Vec<String> {
        let folder = self.module_folder();
        let start = self.code[..offset].rfind([';', '{', '}']).map_or(0, |end| end + 1);
        let moved = self.code[start..offset].find("#[path").and_then(|at| self.literal(start + at..offset));
        moved.map_or_else(|| vec![format!("{folder}{name}.rs"), format!("{folder}{name}/mod.rs")], |path| vec![path])
    }

    /// The first literal in a range as a path, seen from the folder of this file.
    pub(crate) fn literal(&self, range: Range<usize>) -> Option<String> {
        let mut parts: Vec<&str> = self.path.split('/').collect();
        parts.pop();
        for part in self.text[range].split('"').nth(1)?.split('/') {
            if part == ".." {
                parts.pop();
            } else {
                parts.push(part);
            }
        }
        Some(parts.join("/"))
    }

    /// Paths without `.rs` of the modules declared here for tests only.
    fn test_modules(&self) -> Vec<String> {
        let declared = self.declared_modules();
        let for_tests = declared.iter().filter(|(offset, _)| self.in_test(*offset));
        let files = for_tests.flat_map(|(offset, name)| self.module_files(*offset, name));
        files.map(|path| path.trim_end_matches("/mod.rs").trim_end_matches(".rs").to_owned()).collect()
    }
}

pub(crate) fn is_word(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '_'
}

/// Offsets of `pattern` in `code`, not inside of a longer word.
pub(crate) fn matches(code: &str, pattern: &str) -> Vec<usize> {
    let opens_word = pattern.starts_with(is_word);
    let ends_word = pattern.ends_with(is_word);
    let is_whole = |offset: &usize| {
        let before = code[..*offset].chars().next_back();
        let after = code[offset + pattern.len()..].chars().next();
        !(opens_word && before.is_some_and(is_word) || ends_word && after.is_some_and(is_word))
    };
    code.match_indices(pattern).map(|(offset, _)| offset).filter(is_whole).collect()
}

/// Offset just after the bracket that closes the one at `open`; the end of the text if none does.
pub(crate) fn close(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return offset + 1;
                }
            }
            _ => {}
        }
    }
    code.len()
}

fn is_test_mark(attribute: &str) -> bool {
    ["#[cfg(test)]", "#[test]", "#![cfg(test)]"].contains(&attribute)
        || attribute.starts_with("#[tokio::test")
        || attribute.starts_with("#[cfg(all(test,")
}

fn attributes(code: &str) -> Vec<Attribute> {
    let mut found = Vec::new();
    for (offset, _) in code.match_indices('#') {
        let rest = &code[offset..];
        let is_inner = rest.starts_with("#![");
        if !is_inner && !rest.starts_with("#[") {
            continue;
        }
        let end = close(code, offset + 1 + usize::from(is_inner));
        let text = code[offset..end].chars().filter(|letter| !letter.is_whitespace()).collect();
        let range = if is_inner { enclosing(code, offset) } else { offset..item_end(code, end) };
        found.push(Attribute { text, range });
    }
    found
}

/// The block around `offset`, or the whole file.
fn enclosing(code: &str, offset: usize) -> Range<usize> {
    let mut open = Vec::new();
    for (at, byte) in code.bytes().enumerate().take(offset) {
        match byte {
            b'{' => open.push(at),
            b'}' => drop(open.pop()),
            _ => {}
        }
    }
    open.last().map_or(0..code.len(), |start| *start..close(code, *start))
}

/// Where the item, statement, field or arm that follows an attribute ends.
fn item_end(code: &str, mut start: usize) -> usize {
    loop {
        start += code[start..].len() - code[start..].trim_start().len();
        if !code[start..].starts_with("#[") {
            break;
        }
        start = close(code, start + 1);
    }
    let rest = &code[start..];
    let bare = rest.strip_prefix("pub(crate)").or_else(|| rest.strip_prefix("pub")).unwrap_or(rest).trim_start();
    let opens = |words: &[&str]| words.iter().any(|word| bare.starts_with(word));
    let ends_at_semicolon =
        opens(&["let ", "use ", "static ", "type "]) || (opens(&["const "]) && !opens(&["const fn"]));
    let is_item =
        opens(&["fn ", "mod ", "impl", "struct ", "enum ", "trait ", "async ", "const fn", "unsafe ", "macro_rules"]);
    let mut at = start;
    while let Some(byte) = code.as_bytes().get(at) {
        match byte {
            b';' => return at + 1,
            b',' if !is_item && !ends_at_semicolon => return at,
            b'{' if !ends_at_semicolon => return close(code, at),
            b'(' | b'[' | b'{' => at = close(code, at),
            b')' | b']' | b'}' => return at,
            _ => at += 1,
        }
    }
    code.len()
}

/// What the lexer is in.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Code,
    Comment,
    Literal,
}

/// (code, comments) of a Rust text, both as long as the text.
fn split(text: &str) -> (String, String) {
    let bytes = text.as_bytes();
    let (mut code, mut comments) = (Vec::with_capacity(bytes.len()), Vec::with_capacity(bytes.len()));
    let mut at = 0;
    while at < bytes.len() {
        let (kind, end) = token(text, at);
        for byte in &bytes[at..end] {
            let blank = if *byte == b'\n' { b'\n' } else { b' ' };
            code.push(if kind == Kind::Code { *byte } else { blank });
            comments.push(if kind == Kind::Comment { *byte } else { blank });
        }
        at = end;
    }
    (String::from_utf8(code).unwrap(), String::from_utf8(comments).unwrap())
}

/// Kind and end of the token at `at`; of code, one character at a time.
fn token(text: &str, at: usize) -> (Kind, usize) {
    let rest = &text[at..];
    let line_end = at + rest.find('\n').unwrap_or(rest.len());
    let is_in_word = text[..at].chars().next_back().is_some_and(is_word);
    if rest.starts_with("//") {
        return (Kind::Comment, line_end);
    }
    if rest.starts_with("/*") {
        return (Kind::Comment, at + block_comment(rest));
    }
    if rest.starts_with('"') {
        return (Kind::Literal, at + quoted(rest, 1));
    }
    if let Some(end) = (!is_in_word).then(|| raw_string(rest)).flatten() {
        return (Kind::Literal, at + end);
    }
    if let Some(end) = character(rest) {
        return (Kind::Literal, at + end);
    }
    (Kind::Code, at + rest.chars().next().map_or(1, char::len_utf8))
}

fn block_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        let tail = &rest.as_bytes()[at..];
        if tail.starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if tail.starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// End of a string whose opening quote ends at `start`.
fn quoted(rest: &str, start: usize) -> usize {
    let mut bytes = rest.bytes().enumerate().skip(start);
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

fn raw_string(rest: &str) -> Option<usize> {
    let letters = ["r", "br", "cr"]
        .into_iter()
        .find(|letters| rest.strip_prefix(letters).is_some_and(|tail| tail.trim_start_matches('#').starts_with('"')))?;
    let hashes = rest[letters.len()..].find('"')?;
    let start = letters.len() + hashes + 1;
    let ending = format!("\"{}", "#".repeat(hashes));
    Some(rest[start..].find(&ending).map_or(rest.len(), |end| start + end + ending.len()))
}

/// End of a character literal; `None` for a lifetime and for anything else.
fn character(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    if let Some(escape) = inside.strip_prefix('\\') {
        let first = escape.chars().next()?.len_utf8();
        return Some(2 + first + escape[first..].find('\'')? + 1);
    }
    let letter = inside.chars().next()?.len_utf8();
    inside[letter..].starts_with('\'').then_some(letter + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_not_code() {
        let text = "let a = \"x.unwrap() \\\" // no\"; // panic!()\n/* /* dbg!() */ todo!() */ let b: &'a str = r#\"x\"y\"#; let c = ['\"', '\\'', '\\u{1F600}', 'é'];";
        let (code, comments) = split(text);
        assert_eq!(code.len(), text.len());
        for hidden in ["unwrap", "panic", "dbg", "todo", "x\"y"] {
            assert!(!code.contains(hidden), "{hidden} in {code}");
        }
        assert!(code.contains("let b: &'a str =") && code.contains("let c = ["));
        assert!(comments.contains("panic!()") && comments.contains("todo!()") && !comments.contains("unwrap"));
    }

    #[test]
    fn test_code_is_known() {
        let tree = Tree::of([
            (
                "src/flow/mod.rs",
                "fn a() { x }\n#[cfg(test)]\nmod tests { fn b() { y } }\nfn c() { z }\n#[cfg(test)]\nmod kit;\n",
            ),
            ("src/flow/kit.rs", "fn d() { w }"),
            ("src/flow/odd.rs", "#[cfg(test)]\n#[path = \"odd_tests.rs\"]\npub(super) mod tests;"),
            ("src/flow/odd_tests.rs", "fn e() { v }"),
        ]);
        let in_test = |file: usize, word: &str| {
            let source = &tree.sources[file];
            source.in_test(source.code.find(word).unwrap())
        };
        assert_eq!([in_test(0, "x"), in_test(0, "y"), in_test(0, "z")], [false, true, false]);
        assert!(in_test(1, "w") && in_test(3, "v"));
    }

    #[test]
    fn an_excuse_needs_a_reason_and_ends_with_its_item() {
        let text = "#[allow(clippy::panic)]\nfn a() { one }\n#[allow(clippy::panic, reason = \"r\")]\nfn b() { two }\nfn c() { three }\n";
        let source = Source::new("src/a.rs".into(), text.into());
        let excused = |word: &str| source.is_excused("panic", text.find(word).unwrap());
        assert_eq!([excused("one"), excused("two"), excused("three")], [false, true, false]);
        let inner = "mod m { #![expect(clippy::panic, reason = \"r\")]\n four }\n five";
        let source = Source::new("src/a.rs".into(), inner.into());
        assert!(source.is_excused("panic", inner.find("four").unwrap()));
        assert!(!source.is_excused("panic", inner.find("five").unwrap()));
    }
}
