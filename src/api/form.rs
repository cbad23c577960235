//! What the gate reads of a multipart form (RFC 7578), the body of the audio routes: model and stream flag, by their place in the
//! body, so that every other byte stays as it is.
//!
//! A form that two parsers could read in two ways is refused, since a tenant's allowed models are checked here and the pod
//! reads it again (Starlette with python-multipart, vLLM 0.32).
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use memchr::memmem;
use thiserror::Error;

/// Longest boundary (RFC 2046, section 5.1.1).
const BOUNDARY_BYTES_MAX: usize = 70;
/// Most parts of a form.
const PARTS_MAX: usize = 64;
/// Most header fields of a part, and their bytes together.
const FIELDS_MAX: usize = 8;
const FIELDS_BYTES_MAX: usize = 4 * 1024;
/// Longest value of a member that is read.
const VALUE_BYTES_MAX: usize = 512;
/// In the names of members that only gates may send.
const DANGEROUS: &[u8] = b"transfer_params";

/// Why a form cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadForm {
    /// Another content type, or no usable boundary.
    #[error("this route takes a form: send Content-Type: multipart/form-data with a boundary")]
    NotAForm,
    /// Not delimited as it should be.
    #[error("the form has no {0}: write it as RFC 7578 says")]
    Broken(&'static str),
    /// Header fields of a part that may be read in several ways.
    #[error("a part of the form has {0}: write Content-Disposition: form-data; name=\"...\"")]
    Part(&'static str),
    /// Too many parts.
    #[error("the form has more than {PARTS_MAX} parts")]
    TooManyParts,
    /// A member that matters is there twice.
    #[error("the form has the member '{0}' more than once: send it once")]
    Duplicate(&'static str),
    /// A member that matters is too long, no text, or a file.
    #[error("the form's member '{0}' is not a short text")]
    Value(&'static str),
}

/// What was found in a form.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Form<'a> {
    /// `model`, if it is there and not empty.
    pub model: Option<&'a str>,
    /// Whether the answer is to be streamed.
    pub stream: bool,
    /// Where the value of `model` stands.
    model_at: Option<Range<usize>>,
    /// Parts that endanger pods, with the delimiter before each.
    dangerous: Vec<Range<usize>>,
}

impl<'a> Form<'a> {
    /// Reads a body of this content type.
    pub fn read(content_type: Option<&[u8]>, body: &'a [u8]) -> Result<Self, BadForm> {
        let boundary = content_type.and_then(boundary).ok_or(BadForm::NotAForm)?;
        let delimiter = [b"\r\n--".as_slice(), boundary].concat();
        let first = delimiter.get(2..).unwrap_or_default();
        if !body.starts_with(first) {
            return Err(BadForm::Broken("boundary at its start"));
        }
        let finder = memmem::Finder::new(&delimiter);
        let mut form = Self::default();
        let (mut has_model, mut has_stream) = (false, false);
        // Where the delimiter of this part begins, and what follows it.
        let (mut from, mut at) = (0, first.len());
        for _ in 0..PARTS_MAX {
            let rest = body.get(at..).unwrap_or_default();
            if rest.starts_with(b"--") {
                return Ok(form);
            }
            let rest = rest.strip_prefix(b"\r\n").ok_or(BadForm::Broken("line end behind a boundary"))?;
            at += 2;
            let length = finder.find(rest).ok_or(BadForm::Broken("boundary at its end"))?;
            let part = rest.get(..length).unwrap_or_default();
            let (name, is_file, offset) = part_of(part)?;
            let value = part.get(offset..).unwrap_or_default();
            match name {
                b"model" => {
                    if std::mem::replace(&mut has_model, true) {
                        return Err(BadForm::Duplicate("model"));
                    }
                    form.model = Some(text(value, is_file, "model")?).filter(|model| !model.is_empty());
                    form.model_at = Some(at + offset..at + length);
                }
                b"stream" => {
                    if std::mem::replace(&mut has_stream, true) {
                        return Err(BadForm::Duplicate("stream"));
                    }
                    form.stream = is_yes(text(value, is_file, "stream")?);
                }
                name if endangers(name, value, is_file) => form.dangerous.push(from..at + length),
                _ => {}
            }
            from = at + length;
            at = from + delimiter.len();
        }
        Err(BadForm::TooManyParts)
    }

    /// How many parts endanger pods.
    pub fn dangers(&self) -> usize {
        self.dangerous.len()
    }

    /// The form without parts that endanger pods, and with another model if one is given.
    pub fn rewritten(&self, body: &Bytes, model: Option<&str>) -> Bytes {
        let named = self.model_at.clone().zip(model);
        if self.dangerous.is_empty() && named.is_none() {
            return body.clone();
        }
        let gone = self.dangerous.iter().map(|range| (range.clone(), ""));
        let mut changes: Vec<_> = gone.chain(named).collect();
        // An empty value ends where the next part's delimiter begins: it goes first.
        changes.sort_by_key(|(range, _)| (range.start, range.end));
        let (mut out, mut at) = (BytesMut::with_capacity(body.len() + 64), 0);
        for (range, text) in changes {
            out.extend_from_slice(body.get(at..range.start).unwrap_or_default());
            out.extend_from_slice(text.as_bytes());
            at = range.end;
        }
        out.extend_from_slice(body.get(at..).unwrap_or_default());
        // Without its first part a form begins with the line end before the next boundary.
        if out.starts_with(b"\r\n") { out.split_off(2).freeze() } else { out.freeze() }
    }
}

/// The boundary that a content type names.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let mut parts = content_type.split(|byte| *byte == b';');
    if !parts.next()?.trim_ascii().eq_ignore_ascii_case(b"multipart/form-data") {
        return None;
    }
    let mut found = None;
    for part in parts {
        let (key, value) = split_once(part, b'=')?;
        if key.trim_ascii().eq_ignore_ascii_case(b"boundary") && found.replace(value.trim_ascii()).is_some() {
            return None;
        }
    }
    let boundary = found?;
    let bare = boundary.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(boundary);
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"'()+_,-./:=?".contains(byte);
    (!bare.is_empty() && bare.len() <= BOUNDARY_BYTES_MAX && bare.iter().all(is_plain)).then_some(bare)
}

fn split_once(bytes: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let at = memchr::memchr(mark, bytes)?;
    Some((bytes.get(..at)?, bytes.get(at + 1..)?))
}

/// Name of a part, whether it is a file, and where its value begins.
fn part_of(part: &[u8]) -> Result<(&[u8], bool, usize), BadForm> {
    let head = part.get(..part.len().min(FIELDS_BYTES_MAX)).unwrap_or_default();
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let Ok(httparse::Status::Complete((offset, fields))) = httparse::parse_headers(head, &mut fields) else {
        return Err(BadForm::Part("header fields that cannot be read"));
    };
    let mut dispositions = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("content-disposition"));
    let (Some(disposition), None) = (dispositions.next(), dispositions.next()) else {
        return Err(BadForm::Part("not one Content-Disposition"));
    };
    let value = disposition.value;
    let kind_ends = memchr::memchr(b';', value).unwrap_or(value.len());
    let (kind, mut rest) = value.split_at_checked(kind_ends).unwrap_or_default();
    if !kind.trim_ascii().eq_ignore_ascii_case(b"form-data") {
        return Err(BadForm::Part("a Content-Disposition that is not form-data"));
    }
    let (mut name, mut is_file) = (None, false);
    while let Some(after) = rest.trim_ascii_start().strip_prefix(b";") {
        if after.trim_ascii().is_empty() {
            break;
        }
        let (key, value) = split_once(after, b'=').ok_or(BadForm::Part("a parameter without a value"))?;
        let (value, tail) = parameter(value).ok_or(BadForm::Part("a parameter that cannot be read"))?;
        match key.trim_ascii().to_ascii_lowercase().as_slice() {
            b"name" if name.replace(value).is_some() => return Err(BadForm::Part("two names")),
            b"filename" | b"filename*" => is_file = true,
            key if key.starts_with(b"name*") => return Err(BadForm::Part("an encoded name")),
            _ => {}
        }
        rest = tail;
    }
    if !rest.trim_ascii().is_empty() && !rest.trim_ascii().starts_with(b";") {
        return Err(BadForm::Part("a parameter that cannot be read"));
    }
    Ok((name.ok_or(BadForm::Part("no name"))?, is_file, offset))
}

/// A parameter's value, quoted or not, and what follows it. Escapes have no place in a name, so none are resolved.
fn parameter(value: &[u8]) -> Option<(&[u8], &[u8])> {
    let value = value.trim_ascii_start();
    let Some(quoted) = value.strip_prefix(b"\"") else {
        let end = memchr::memchr(b';', value).unwrap_or(value.len());
        let (bare, rest) = value.split_at_checked(end)?;
        return (!bare.contains(&b'"')).then_some((bare.trim_ascii(), rest));
    };
    let end = memchr::memchr2(b'"', b'\\', quoted)?;
    let (inside, rest) = quoted.split_at_checked(end)?;
    rest.strip_prefix(b"\"").map(|rest| (inside, rest))
}

fn text<'a>(value: &'a [u8], is_file: bool, member: &'static str) -> Result<&'a str, BadForm> {
    let is_short = !is_file && value.len() <= VALUE_BYTES_MAX;
    std::str::from_utf8(value).ok().filter(|_| is_short).ok_or(BadForm::Value(member))
}

/// What Pydantic takes for true.
fn is_yes(value: &str) -> bool {
    ["1", "true", "t", "yes", "y", "on"].iter().any(|yes| value.trim().eq_ignore_ascii_case(yes))
}

/// Whether a member could reach the engine as transfer parameters, itself or in what it holds.
fn endangers(name: &[u8], value: &[u8], is_file: bool) -> bool {
    let has = |bytes| memmem::find(bytes, DANGEROUS).is_some();
    let holds_others = [b"vllm_xargs".as_slice(), b"extra_args"].iter().any(|prefix| name.starts_with(prefix));
    // JSON may spell the name with escapes.
    has(name) || (holds_others && !is_file && (has(value) || value.contains(&b'\\')))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    const TYPE: &[u8] = b"multipart/form-data; boundary=xyz";

    fn form(parts: &[(&str, &str)]) -> String {
        let part = |(fields, value): &(&str, &str)| format!("--xyz\r\n{fields}\r\n\r\n{value}\r\n");
        parts.iter().map(part).chain(["--xyz--\r\n".to_owned()]).collect()
    }

    fn named(name: &str) -> String {
        format!("Content-Disposition: form-data; name=\"{name}\"")
    }

    #[test]
    fn model_and_stream_are_found_and_the_rest_stays() {
        let (file, model, stream) = (named("file") + "; filename=\"a;b=\\\"c.wav\"", named("model"), named("stream"));
        let file = file.replace("\\\"", "");
        let body = form(&[(&file, "RIFF\r\n--xy\0z"), (&model, "whisper"), (&stream, "True")]);
        let found = Form::read(Some(TYPE), body.as_bytes()).unwrap();
        assert_eq!((found.model, found.stream, found.dangers()), (Some("whisper"), true, 0));
        let bytes = Bytes::from(body.clone());
        assert_eq!(found.rewritten(&bytes, None), bytes);
        let expected = body.replace("whisper", "openai/whisper-large");
        assert_eq!(found.rewritten(&bytes, Some("openai/whisper-large")), expected);
        let empty = form(&[(&model, "")]);
        assert_eq!(Form::read(Some(TYPE), empty.as_bytes()).unwrap().model, None);
        let bare = form(&[("content-disposition: form-data; name=model", "m")]);
        let quoted: &[u8] = b"Multipart/Form-Data; charset=utf-8; boundary=\"xyz\"";
        assert_eq!(Form::read(Some(quoted), bare.as_bytes()).unwrap().model, Some("m"));
    }

    #[test]
    fn what_endangers_pods_is_taken_out() {
        let [kv, xargs, model, other] = ["kv_transfer_params", "vllm_xargs", "model", "prompt"].map(named);
        let evil = r#"{"kv_transfer_params": "x"}"#;
        let hidden = r#"{"kv\u005ftransfer_params": "x"}"#;
        for parts in [
            vec![(kv.as_str(), "{}"), (&model, "m"), (&other, "transfer_params")],
            vec![(model.as_str(), "m"), (&xargs, evil), (&other, "transfer_params")],
            vec![(model.as_str(), "m"), (&other, "transfer_params"), (&xargs, hidden)],
        ] {
            let body = Bytes::from(form(&parts));
            let found = Form::read(Some(TYPE), &body).unwrap();
            assert_eq!(found.dangers(), 1);
            let wanted = form(&[(&model, "n"), (&other, "transfer_params")]);
            assert_eq!(found.rewritten(&body, Some("n")), wanted);
        }
        let harmless = form(&[(&xargs, r#"{"a": 1}"#)]);
        assert_eq!(Form::read(Some(TYPE), harmless.as_bytes()).unwrap().dangers(), 0);
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let [model, stream] = ["model", "stream"].map(named);
        let file = format!("{model}; filename=\"x\"");
        let twice = format!("{model}\r\n{stream}");
        let long = "m".repeat(VALUE_BYTES_MAX + 1);
        for (body, problem) in [
            (form(&[(&model, "a"), (&model, "b")]), BadForm::Duplicate("model")),
            (form(&[(&stream, "1"), (&stream, "0")]), BadForm::Duplicate("stream")),
            (form(&[(&file, "a")]), BadForm::Value("model")),
            (form(&[(&model, &long)]), BadForm::Value("model")),
            (form(&[(&twice, "a")]), BadForm::Part("not one Content-Disposition")),
            (form(&[("Content-Type: text/plain", "a")]), BadForm::Part("not one Content-Disposition")),
            (
                form(&[("Content-Disposition: attachment; name=model", "a")]),
                BadForm::Part("a Content-Disposition that is not form-data"),
            ),
            (form(&[("Content-Disposition: form-data", "a")]), BadForm::Part("no name")),
            (form(&[("Content-Disposition: form-data; name=a; name=model", "a")]), BadForm::Part("two names")),
            (
                form(&[("Content-Disposition: form-data; name=a; name*=utf-8''model", "a")]),
                BadForm::Part("an encoded name"),
            ),
            (
                form(&[("Content-Disposition: form-data; name=\"mo\\del\"", "a")]),
                BadForm::Part("a parameter that cannot be read"),
            ),
            (
                form(&[("Content-Disposition: form-data; name=\"a\"x", "a")]),
                BadForm::Part("a parameter that cannot be read"),
            ),
            (form(&[("Content-Disposition: form-data; name", "a")]), BadForm::Part("a parameter without a value")),
            ("x--xyz".into(), BadForm::Broken("boundary at its start")),
            ("--xyz\r\n".into(), BadForm::Broken("boundary at its end")),
            ("--xyzmore\r\n".into(), BadForm::Broken("line end behind a boundary")),
            (String::new(), BadForm::Broken("boundary at its start")),
            (form(&vec![(model.replace("model", "x").as_str(), ""); PARTS_MAX]), BadForm::TooManyParts),
        ] {
            assert_eq!(Form::read(Some(TYPE), body.as_bytes()), Err(problem), "{body:?}");
        }
        for bad in [
            None,
            Some("application/json"),
            Some("multipart/form-data"),
            Some("multipart/form-data; boundary="),
            Some("multipart/form-data; boundary=a; boundary=b"),
            Some("multipart/form-data; boundary=a b"),
            Some("multipart/mixed; boundary=xyz"),
        ] {
            assert_eq!(Form::read(bad.map(str::as_bytes), b"--xyz--"), Err(BadForm::NotAForm), "{bad:?}");
        }
    }

    #[test]
    fn an_empty_model_does_not_save_the_part_behind_it() {
        let parts = [(named("model"), ""), (named("kv_transfer_params"), "{}"), (named("prompt"), "p")];
        let parts: Vec<_> = parts.iter().map(|(fields, value)| (fields.as_str(), *value)).collect();
        let body = Bytes::from(form(&parts));
        let out = Form::read(Some(TYPE), &body).unwrap().rewritten(&body, Some("other"));
        let again = Form::read(Some(TYPE), &out).unwrap();
        assert_eq!((again.model, again.dangers()), (Some("other"), 0));
    }

    proptest! {
        #[test]
        fn nothing_panics_and_rewriting_agrees_with_reading(
            values in prop::collection::vec(("(model|file|prompt|vllm_xargs|kv_transfer_params)", "[ -~\r\n]{0,40}"), 0..6),
            cut in 0_usize..400,
        ) {
            let parts: Vec<_> = values.iter().map(|(name, value)| (named(name), value.as_str())).collect();
            let parts: Vec<_> = parts.iter().map(|(fields, value)| (fields.as_str(), *value)).collect();
            let body = Bytes::from(form(&parts));
            drop(Form::read(Some(TYPE), body.get(..cut).unwrap_or(&body)));
            if let Ok(found) = Form::read(Some(TYPE), &body) {
                let out = found.rewritten(&body, Some("other"));
                let again = Form::read(Some(TYPE), &out).unwrap();
                prop_assert_eq!(again.dangers(), 0);
                prop_assert_eq!(again.model.is_some(), found.model_at.is_some());
                prop_assert_eq!(again.stream, found.stream);
            }
        }
    }
}
