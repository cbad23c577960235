//! What a strict HTTP/1.1 gate must refuse: requests whose framing two parsers could read differently, by class.
//!
//! The classes are those known from request smuggling (RFC 9112 sections 2.2, 3, 5, 6, 7 and 11.2). Every case carries a hidden second request
//! whose target names it: if one ever arrives at a pod, the gate and the pod disagreed. Cases are data; nothing here judges an answer.

/// Hidden request at the end of most cases.
const TAIL: &str = "GET /smuggled HTTP/1.1\r\nHost: gate.local\r\nContent-Length: 0\r\n\r\n";

/// What must become of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Want {
    /// One of these statuses first, then the connection is closed, and nothing reaches a pod.
    Refused(&'static [u16]),
    /// Any answer; at most the visible request reaches a pod, the hidden one never does.
    Harmless,
}

/// One payload.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Class of the fault.
    pub(crate) class: &'static str,
    /// What is wrong, readable.
    pub(crate) name: String,
    /// Bytes to send.
    pub(crate) bytes: Vec<u8>,
    /// What must become of it.
    pub(crate) want: Want,
}

const BAD: Want = Want::Refused(&[400]);
/// A coding or version that is unknown rather than malformed.
const BAD_OR_UNKNOWN: Want = Want::Refused(&[400, 501, 505]);
const BAD_OR_TOO_LONG: Want = Want::Refused(&[400, 414, 431]);
const BAD_OR_TOO_LARGE: Want = Want::Refused(&[400, 413]);

struct Maker {
    model: String,
    cases: Vec<Case>,
}

/// The whole corpus; `model` is a name the gate serves, so that an accepted case really would reach a pod.
pub(crate) fn corpus(model: &str) -> Vec<Case> {
    let mut maker = Maker { model: model.to_owned(), cases: Vec::new() };
    maker.content_length();
    maker.transfer_encoding();
    maker.both_framings();
    maker.chunks();
    maker.line_ends();
    maker.fields();
    maker.hosts();
    maker.targets();
    maker.request_lines();
    maker.harmless();
    maker.cases
}

impl Maker {
    fn json(&self) -> String {
        format!(r#"{{"model":"{}","messages":[{{"role":"user","content":"hidden"}}],"max_tokens":1}}"#, self.model)
    }

    fn add(&mut self, class: &'static str, name: impl Into<String>, bytes: impl Into<Vec<u8>>, want: Want) {
        self.cases.push(Case { class, name: name.into(), bytes: bytes.into(), want });
    }

    /// A chat request with these raw header lines (without the last line end) and this body, then the hidden one.
    fn post(&mut self, class: &'static str, name: impl Into<String>, lines: &str, body: &str, want: Want) {
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
        );
        self.add(class, name, head + body + TAIL, want);
    }

    fn chunked(&mut self, name: &str, body: &str, want: Want) {
        self.post("chunk framing", name, "Transfer-Encoding: chunked", body, want);
    }

    fn content_length(&mut self) {
        let json = self.json();
        let n = json.len();
        let class = "content-length";
        let values = [
            ("plus sign", format!("+{n}")),
            ("minus sign", format!("-{n}")),
            ("minus zero", "-0".to_owned()),
            ("hexadecimal", format!("0x{n:x}")),
            ("underscore", format!("{}_{}", n / 10, n % 10)),
            ("space inside", format!("{} {}", n / 10, n % 10)),
            ("fraction", format!("{n}.0")),
            ("exponent", "1e2".to_owned()),
            ("trailing letter", format!("{n}a")),
            ("empty", String::new()),
            ("list of equals", format!("{n}, {n}")),
            ("list of different", format!("{n}, 0")),
            ("list with empty element", format!("{n},")),
            ("quoted", format!("\"{n}\"")),
            ("over 64 bits", "18446744073709551617".to_owned()),
            ("hundred digits", "9".repeat(100)),
            ("vertical tab before", format!("\u{b}{n}")),
            ("vertical tab after", format!("{n}\u{b}")),
            ("NUL after", format!("{n}\0")),
            ("other digits", "\u{ff11}\u{ff12}".to_owned()),
            ("words", "chunked".to_owned()),
        ];
        for (name, value) in values {
            let want = if name.contains("bits") || name.contains("digits") { BAD_OR_TOO_LARGE } else { BAD };
            self.post(class, name, &format!("Content-Length: {value}"), &json, want);
        }
        let twice = [
            ("doubled, equal", format!("Content-Length: {n}\r\nContent-Length: {n}")),
            ("doubled, different", format!("Content-Length: {n}\r\nContent-Length: 0")),
            ("doubled, zero first", format!("Content-Length: 0\r\nContent-Length: {n}")),
            ("doubled, other case", format!("Content-Length: {n}\r\ncontent-length: 5")),
            ("space before colon", format!("Content-Length : {n}")),
            ("tab before colon", format!("Content-Length\t: {n}")),
            ("folded value", format!("Content-Length:\r\n {n}")),
        ];
        for (name, lines) in twice {
            self.post(class, name, &lines, &json, BAD);
        }
    }

    fn transfer_encoding(&mut self) {
        let json = self.json();
        let body = format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len());
        let class = "transfer-encoding";
        let values = [
            ("empty", "", BAD),
            ("empty element first", ",chunked", BAD),
            ("empty element last", "chunked,", BAD),
            ("doubled in a list", "chunked, chunked", BAD),
            ("unknown coding", "xchunked", BAD_OR_UNKNOWN),
            ("identity", "identity", BAD_OR_UNKNOWN),
            ("identity before chunked", "identity, chunked", BAD_OR_UNKNOWN),
            ("chunked not last", "chunked, identity", BAD_OR_UNKNOWN),
            ("gzip alone", "gzip", BAD_OR_UNKNOWN),
            ("gzip then chunked", "gzip, chunked", BAD_OR_UNKNOWN),
            ("cow", "cow", BAD_OR_UNKNOWN),
            ("quoted", "\"chunked\"", BAD_OR_UNKNOWN),
            ("parameter", "chunked;q=1", BAD_OR_UNKNOWN),
            ("vertical tab before", "\u{b}chunked", BAD_OR_UNKNOWN),
            ("NUL inside", "chun\0ked", BAD_OR_UNKNOWN),
            ("long s for s", "chunked\u{17f}", BAD_OR_UNKNOWN),
        ];
        for (name, value, want) in values {
            self.post(class, name, &format!("Transfer-Encoding: {value}"), &body, want);
        }
        let lines = [
            ("doubled", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            ("doubled, unknown second", "Transfer-Encoding: chunked\r\nTransfer-Encoding: cow"),
            ("doubled, unknown first", "Transfer-Encoding: cow\r\nTransfer-Encoding: chunked"),
            ("space before colon", "Transfer-Encoding : chunked"),
            ("folded", "Transfer-Encoding:\r\n chunked"),
            ("hidden in a folded line", "X: y\r\n Transfer-Encoding: chunked"),
        ];
        for (name, line) in lines {
            self.post(class, name, line, &body, BAD_OR_UNKNOWN);
        }
        let old = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nHost: gate.local\r\nTransfer-Encoding: chunked\r\n\r\n{body}{TAIL}"
        );
        self.add(class, "on HTTP/1.0", old, BAD_OR_UNKNOWN);
        let kept = format!(
            "POST /v1/chat/completions HTTP/1.0\r\nHost: gate.local\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n{body}{TAIL}"
        );
        self.add(class, "on HTTP/1.0 with keep-alive", kept, BAD_OR_UNKNOWN);
    }

    fn both_framings(&mut self) {
        let json = self.json();
        let class = "length and chunked";
        let chunked = format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len());
        let pairs = [
            ("length first", format!("Content-Length: {}\r\nTransfer-Encoding: chunked", json.len())),
            ("chunked first", format!("Transfer-Encoding: chunked\r\nContent-Length: {}", json.len())),
            ("length 0", "Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned()),
            ("length 4, classic", "Content-Length: 4\r\nTransfer-Encoding: chunked".to_owned()),
            ("comma before chunked", format!("Content-Length: {}\r\nTransfer-Encoding: ,chunked", json.len())),
            ("unknown coding", format!("Content-Length: {}\r\nTransfer-Encoding: xchunked", json.len())),
            ("tab before chunked", "Content-Length: 4\r\nTransfer-Encoding:\tchunked".to_owned()),
            ("upper case", "Content-Length: 4\r\nTRANSFER-ENCODING: CHUNKED".to_owned()),
            ("space before colon", "Content-Length: 4\r\nTransfer-Encoding : chunked".to_owned()),
            (
                "length nominated away",
                "Content-Length: 4\r\nConnection: content-length\r\nTransfer-Encoding: chunked".to_owned(),
            ),
        ];
        for (name, lines) in pairs {
            self.post(class, name, &lines, &chunked, BAD_OR_UNKNOWN);
        }
    }

    fn chunks(&mut self) {
        let json = self.json();
        let n = format!("{:x}", json.len());
        let sizes = [
            ("plus sign", format!("+{n}")),
            ("minus sign", format!("-{n}")),
            ("0x before", format!("0x{n}")),
            ("underscore", format!("{}_{}", &n[..1], &n[1..])),
            ("space before", format!(" {n}")),
            ("space inside", format!("{} {}", &n[..1], &n[1..])),
            ("over 64 bits", format!("1{}", "0".repeat(16))),
            ("over 64 bits by far", format!("{}{n}", "f".repeat(40))),
            ("not hexadecimal", "zz".to_owned()),
            ("empty", String::new()),
            ("negative zero", "-0".to_owned()),
            ("NUL after", format!("{n}\0")),
            ("vertical tab after", format!("{n}\u{b}")),
            ("bare CR in extension", format!("{n};a=\rb")),
            ("bare LF in extension", format!("{n};a=\nb")),
            ("NUL in extension", format!("{n};a=\0")),
        ];
        for (name, size) in sizes {
            self.chunked(&format!("size: {name}"), &format!("{size}\r\n{json}\r\n0\r\n\r\n"), BAD);
        }
        self.chunked("size line ends with LF", &format!("{n}\n{json}\r\n0\r\n\r\n"), BAD);
        self.chunked("size line ends with CR", &format!("{n}\r{json}\r\n0\r\n\r\n"), BAD);
        self.chunked("data ends with LF", &format!("{n}\r\n{json}\n0\r\n\r\n"), BAD);
        self.chunked("data longer than its size", &format!("{:x}\r\n{json}\r\n0\r\n\r\n", json.len() - 2), BAD);
        self.chunked("data ends with other bytes", &format!("{n}\r\n{json}XX0\r\n\r\n"), BAD);
        self.chunked("last chunk ends with LF", &format!("{n}\r\n{json}\r\n0\n\n"), BAD);
        let long = "x".repeat(100_000);
        self.chunked(
            "extension of 100 kB",
            &format!("{n};{long}\r\n{json}\r\n0\r\n\r\n"),
            Want::Refused(&[400, 413, 431]),
        );
    }

    fn line_ends(&mut self) {
        let json = self.json();
        let n = json.len();
        let class = "line ends and control bytes";
        let heads: [(&str, String); 10] = [
            ("all bare LF", format!("POST /v1/chat/completions HTTP/1.1\nHost: gate.local\nContent-Length: {n}\n\n")),
            (
                "bare LF after request line",
                format!("POST /v1/chat/completions HTTP/1.1\nHost: gate.local\r\nContent-Length: {n}\r\n\r\n"),
            ),
            (
                "bare LF between fields",
                format!("POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\nContent-Length: {n}\r\n\r\n"),
            ),
            (
                "bare LF ends the head",
                format!("POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nContent-Length: {n}\r\n\n"),
            ),
            (
                "bare CR in a value",
                format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nX: a\rb\r\nContent-Length: {n}\r\n\r\n"
                ),
            ),
            (
                "bare CR hides a field",
                format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nX: a\rTransfer-Encoding: chunked\r\nContent-Length: {n}\r\n\r\n"
                ),
            ),
            (
                "CR CR LF",
                format!("POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\r\nContent-Length: {n}\r\n\r\n"),
            ),
            (
                "NUL in a value",
                format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nX: a\0b\r\nContent-Length: {n}\r\n\r\n"
                ),
            ),
            (
                "escape in a value",
                format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nX: a\u{1b}b\r\nContent-Length: {n}\r\n\r\n"
                ),
            ),
            (
                "DEL in a value",
                format!(
                    "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nX: a\u{7f}b\r\nContent-Length: {n}\r\n\r\n"
                ),
            ),
        ];
        for (name, head) in heads {
            self.add(class, name, format!("{head}{json}{TAIL}"), BAD);
        }
    }

    fn fields(&mut self) {
        let json = self.json();
        let n = json.len();
        let lines = [
            ("folded line", "X: a\r\n b"),
            ("folded with tab", "X: a\r\n\tb"),
            ("space before colon", "X : a"),
            ("empty name", ": a"),
            ("no colon", "nothing"),
            ("space in name", "X Y: a"),
            ("NUL in name", "X\0Y: a"),
            ("control byte in name", "X\u{1}Y: a"),
            ("bracket in name", "X[Y]: a"),
            ("slash in name", "X/Y: a"),
            ("letter above ASCII in name", "X\u{e9}: a"),
        ];
        for (name, line) in lines {
            self.post("field lines", name, &format!("{line}\r\nContent-Length: {n}"), &json, BAD);
        }
        let folded = format!(
            "POST /v1/chat/completions HTTP/1.1\r\n Host: gate.local\r\nContent-Length: {n}\r\n\r\n{json}{TAIL}"
        );
        self.add("field lines", "first line is folded", folded, BAD);
    }

    fn hosts(&mut self) {
        let json = self.json();
        let rest = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}{TAIL}", json.len());
        let hosts = [
            ("missing", ""),
            ("doubled, equal", "Host: gate.local\r\nHost: gate.local\r\n"),
            ("doubled, different", "Host: gate.local\r\nHost: other.local\r\n"),
            ("doubled, other case", "Host: gate.local\r\nhOST: other.local\r\n"),
            ("list", "Host: gate.local, other.local\r\n"),
            ("with path", "Host: gate.local/x\r\n"),
            ("with user", "Host: a@gate.local\r\n"),
            ("with space", "Host: gate local\r\n"),
            ("bad port", "Host: gate.local:port\r\n"),
            ("with NUL", "Host: gate\0local\r\n"),
        ];
        for (name, lines) in hosts {
            self.add("host", name, format!("POST /v1/chat/completions HTTP/1.1\r\n{lines}{rest}"), BAD);
        }
    }

    fn targets(&mut self) {
        let json = self.json();
        let rest = format!(
            "Host: gate.local\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}{TAIL}",
            json.len()
        );
        let targets = [
            ("control byte", "/v1/chat/completions\u{1}"),
            ("bare CR", "/v1/chat/\rcompletions"),
            ("NUL", "/v1/chat/completions\0"),
            ("tab", "/v1/chat\t/completions"),
            ("DEL", "/v1/chat/completions\u{7f}"),
            ("space", "/v1/chat /completions"),
            ("fragment", "/v1/chat/completions#x"),
            ("authority form", "gate.local:80"),
            ("asterisk form", "*"),
            ("no slash", "v1/chat/completions"),
            ("absolute form, other host", "http://other.local/v1/chat/completions"),
            ("absolute form, no host", "http:///v1/chat/completions"),
            ("other scheme", "ftp://gate.local/v1/chat/completions"),
        ];
        for (name, target) in targets {
            // The absolute form is legal and wins over Host (RFC 9112 section 3.2.2), so it may be served, but not misread.
            let want =
                if name.starts_with("absolute form, other") { Want::Harmless } else { Want::Refused(&[400, 404, 405]) };
            self.add("target", name, format!("POST {target} HTTP/1.1\r\n{rest}"), want);
        }
        let long = format!("/v1/chat/completions?{}", "a".repeat(70_000));
        self.add("target", "70 kB", format!("POST {long} HTTP/1.1\r\n{rest}"), BAD_OR_TOO_LONG);
    }

    fn request_lines(&mut self) {
        let json = self.json();
        let rest = format!(
            "Host: gate.local\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{json}{TAIL}",
            json.len()
        );
        let lines = [
            ("two spaces", "POST  /v1/chat/completions HTTP/1.1"),
            ("tab as space", "POST\t/v1/chat/completions\tHTTP/1.1"),
            ("space first", " POST /v1/chat/completions HTTP/1.1"),
            ("space last", "POST /v1/chat/completions HTTP/1.1 "),
            ("no version", "POST /v1/chat/completions"),
            ("version 1.2", "POST /v1/chat/completions HTTP/1.2"),
            ("version 2.0", "POST /v1/chat/completions HTTP/2.0"),
            ("version 0.9", "POST /v1/chat/completions HTTP/0.9"),
            ("version 1.10", "POST /v1/chat/completions HTTP/1.10"),
            ("lower-case version", "POST /v1/chat/completions http/1.1"),
            ("bad method byte", "PO(ST /v1/chat/completions HTTP/1.1"),
            ("NUL in method", "PO\0ST /v1/chat/completions HTTP/1.1"),
            ("words only", "hello"),
        ];
        for (name, line) in lines {
            self.add("request line", name, format!("{line}\r\n{rest}"), BAD_OR_UNKNOWN);
        }
        let field = "x".repeat(70_000);
        self.post(
            "head size",
            "a field of 70 kB",
            &format!("X: {field}\r\nContent-Length: {}", json.len()),
            &json,
            Want::Refused(&[431]),
        );
        let many: Vec<String> = (0..300).map(|number| format!("X-{number}: a")).collect();
        let lines = format!("{}\r\nContent-Length: {}", many.join("\r\n"), json.len());
        self.post("head size", "300 fields", &lines, &json, Want::Refused(&[431]));
    }

    /// Legal requests with a tail that a careless gate would send on as part of them.
    fn harmless(&mut self) {
        let json = self.json();
        let n = json.len();
        let class = "legal, with a tail";
        self.post(class, "pipelined tail after a length", &format!("Content-Length: {n}"), &json, Want::Harmless);
        let trailers = format!(
            "{n:x}\r\n{json}\r\n0\r\nContent-Length: 50\r\nTransfer-Encoding: chunked\r\nHost: other.local\r\n\r\n"
        );
        self.post(class, "trailers naming framing fields", "Transfer-Encoding: chunked", &trailers, Want::Harmless);
        self.post(
            class,
            "chunk extension",
            "Transfer-Encoding: chunked",
            &format!("{n:x};a=b\r\n{json}\r\n0\r\n\r\n"),
            Want::Harmless,
        );
        let upgrade = format!(
            "GET /v1/models HTTP/1.1\r\nHost: gate.local\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n{TAIL}"
        );
        self.add(class, "early bytes after Upgrade", upgrade, Want::Harmless);
        let h2c = format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: {n}"
        );
        self.post(class, "early bytes after Upgrade: h2c", &h2c, &json, Want::Harmless);
        let expect = format!("Expect: 100-continue\r\nContent-Length: {n}");
        self.post(class, "body sent before 100 Continue", &expect, &json, Want::Harmless);
        let get =
            format!("GET /v1/models HTTP/1.1\r\nHost: gate.local\r\nContent-Length: {}\r\n\r\n{TAIL}", TAIL.len());
        self.add(class, "GET with a body that is a request", get, Want::Harmless);
        self.post(
            class,
            "underscore for hyphen",
            &format!("Content_Length: 0\r\nContent-Length: {n}"),
            &json,
            Want::Harmless,
        );
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;
    use std::collections::{BTreeMap, HashSet};

    #[test]
    fn the_corpus_is_large_distinct_and_covers_every_class() {
        let cases = corpus("m");
        assert!(cases.len() >= 100, "{} cases", cases.len());
        let names: HashSet<_> = cases.iter().map(|case| (case.class, case.name.clone())).collect();
        assert_eq!(names.len(), cases.len(), "names tell cases apart");
        let bytes: HashSet<_> = cases.iter().map(|case| case.bytes.clone()).collect();
        assert_eq!(bytes.len(), cases.len(), "no payload twice");
        let mut classes = BTreeMap::new();
        for case in &cases {
            *classes.entry(case.class).or_insert(0) += 1;
        }
        assert_eq!(classes.len(), 11, "{classes:?}");
    }

    #[test]
    fn every_case_hides_a_request_and_names_the_model() {
        for case in corpus("model-x") {
            let text = String::from_utf8(case.bytes).unwrap();
            assert!(text.ends_with(TAIL), "{}: {}", case.class, case.name);
            assert!(text.contains("model-x") || text.starts_with("GET "), "{}: {}", case.class, case.name);
        }
    }

    #[test]
    fn refusals_are_client_faults_and_legal_cases_are_few() {
        let cases = corpus("m");
        for case in &cases {
            if let Want::Refused(list) = case.want {
                let known = [400, 404, 405, 413, 414, 431, 501, 505];
                assert!(!list.is_empty() && list.iter().all(|status| known.contains(status)), "{}", case.name);
            }
        }
        assert!(cases.iter().filter(|case| case.want == Want::Harmless).count() <= 10);
    }
}
