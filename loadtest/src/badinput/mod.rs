//! `loadtest badinput`: what a gate must refuse, while a good client runs beside it and must not notice.
//!
//! Bodies that are not what they should be, bodies and heads that come slowly or lie about their length, and the corpus of ambiguous framing.
//! Each case is judged by the status, by the connection being closed, and by what the pods say arrived (`/__seen` of `loadtest backend`); the
//! good client marks its bodies, so that everything else that arrives is a fault.

mod exchange;
mod good;
mod slow;

use crate::corpus::{Case, Want, corpus};
use crate::report::Report;
use exchange::{Seen, Transcript, exchange, seen};
use good::Good;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Arguments of `loadtest badinput`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// The gate (127.0.0.1 only)
    #[arg(long, value_parser = crate::target::loopback)]
    pub(crate) target: SocketAddr,
    /// A pod behind it that is a `loadtest backend` (repeatable; all of them)
    #[arg(long, required = true, value_parser = crate::target::loopback)]
    pub(crate) pod: Vec<SocketAddr>,
    /// Name of the model
    #[arg(long, default_value = crate::MODEL)]
    pub(crate) model: String,
    /// The gate's limit of a body in bytes
    #[arg(long, default_value_t = 64 * 1024 * 1024)]
    pub(crate) body_limit: usize,
    /// Sockets of the slow heads
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..=10000))]
    pub(crate) slow_sockets: u16,
    /// Seconds the gate gives a head
    #[arg(long, default_value_t = 10)]
    pub(crate) head_secs: u64,
    /// Seconds the gate gives a small body
    #[arg(long, default_value_t = 30)]
    pub(crate) body_secs: u64,
    /// Requests per second of the good client
    #[arg(long, default_value_t = 50.0)]
    pub(crate) good_rate: f64,
    /// The good client's p99 may grow by this factor (and 50 ms are always allowed)
    #[arg(long, default_value_t = 2.0)]
    pub(crate) good_factor: f64,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = [Part::Corpus, Part::Bodies, Part::Slow])]
    parts: Vec<Part>,
}

/// A part of the sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Ambiguous framing
    Corpus,
    /// Bad bodies and lying lengths
    Bodies,
    /// Slow heads and bodies
    Slow,
}

/// What became of one case.
pub(crate) struct Finding {
    class: String,
    name: String,
    statuses: Vec<u16>,
    is_closed: bool,
    /// What is wrong; `None` if all is as it should be.
    fault: Option<String>,
}

/// Collects findings and counts what reached the pods.
pub(crate) struct Sweep<'a> {
    args: &'a Args,
    findings: Vec<Finding>,
    seen: Seen,
}

/// Runs the sweep and judges it.
pub(crate) async fn run(args: Args, report: &mut Report) -> io::Result<()> {
    let good = Good::start(&args);
    let before = seen(&args.pod).await?;
    let mut sweep = Sweep { args: &args, findings: Vec::new(), seen: before };
    tokio::time::sleep(Duration::from_secs(3)).await;
    let quiet = good.window();
    report.say(format!("good client alone: {}", quiet.line()));
    let mut windows = vec![("alone", quiet)];
    if args.parts.contains(&Part::Corpus) {
        for case in corpus(&args.model) {
            sweep.framing(&case).await?;
        }
        windows.push(("framing corpus", good.window()));
    }
    if args.parts.contains(&Part::Bodies) {
        sweep.bodies().await?;
        windows.push(("bad bodies", good.window()));
    }
    if args.parts.contains(&Part::Slow) {
        slow::slow(&mut sweep).await?;
        windows.push(("slow clients", good.window()));
    }
    sweep.tell(report);
    good::judge(&windows, args.good_factor, report);
    good.stop().await;
    Ok(())
}

impl Sweep<'_> {
    /// Takes what arrived at the pods since the last case and records the case with its fault.
    async fn record(
        &mut self,
        class: &str,
        name: &str,
        transcript: Transcript,
        want: Want,
        must_close: bool,
    ) -> io::Result<()> {
        let now = seen(&self.args.pod).await?;
        let (other, smuggled) = (now.other - self.seen.other, now.smuggled - self.seen.smuggled);
        self.seen = now;
        let fault = fault(&transcript, want, must_close, other, smuggled);
        let (class, name) = (class.to_owned(), name.to_owned());
        self.findings.push(Finding {
            class,
            name,
            statuses: transcript.statuses,
            is_closed: transcript.is_closed,
            fault,
        });
        Ok(())
    }

    async fn framing(&mut self, case: &Case) -> io::Result<()> {
        let transcript = exchange(self.args.target, &case.bytes, false, Duration::from_secs(3)).await;
        self.record(case.class, &case.name, transcript, case.want, true).await
    }

    async fn bodies(&mut self) -> io::Result<()> {
        let model = &self.args.model;
        let head = |length: usize, more: &str| {
            format!(
                "POST /v1/chat/completions HTTP/1.1\r\nHost: gate.local\r\nContent-Type: application/json\r\n{more}Content-Length: {length}\r\n\r\n"
            )
        };
        let good = format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":1}}"#);
        let with = |body: &str, more: &str| head(body.len(), more) + body;
        let truncated = good.get(..good.len() - 7).unwrap_or_default();
        let deep = format!(r#"{{"model":"{model}","messages":{}{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        let deep_object =
            format!(r#"{{"model":"{model}","x":{}1{}}}"#, r#"{"a":"#.repeat(100_000), "}".repeat(100_000));
        let keys: Vec<String> = (0..1_000_000).map(|number| format!("\"k{number}\":0")).collect();
        let many = format!(r#"{{"model":"{model}","messages":[],{}}}"#, keys.join(","));
        let twice = format!(r#"{{"model":"{model}","model":"other","messages":[]}}"#);
        let refused = Want::Refused(&[400]);
        let cases: Vec<(&str, Vec<u8>, Want, bool)> = vec![
            ("truncated JSON", with(truncated, "").into(), refused, false),
            ("empty body", with("", "").into(), refused, false),
            ("not an object", with("[1,2]", "").into(), refused, false),
            ("two values", with(&format!("{good}{good}"), "").into(), refused, false),
            ("invalid UTF-8", invalid_utf8(&good, &head), refused, false),
            ("arrays 100,000 deep", with(&deep, "").into(), refused, false),
            ("objects 100,000 deep", with(&deep_object, "").into(), refused, false),
            ("1,000,000 members", with(&many, "").into(), refused, false),
            ("doubled member `model`", with(&twice, "").into(), refused, false),
            ("gzip body", with(&good, "Content-Encoding: gzip\r\n").into(), Want::Refused(&[415]), false),
            ("over the limit, announced", head(self.args.body_limit + 1, "").into(), Want::Refused(&[413]), true),
            ("length too short", (head(20, "") + &good).into(), refused, true),
        ];
        for (name, bytes, want, must_close) in cases {
            let transcript = exchange(self.args.target, &bytes, false, Duration::from_secs(10)).await;
            self.record("body", name, transcript, want, must_close).await?;
        }
        let lie = with(&good, "")
            .replace(&format!("Content-Length: {}", good.len()), &format!("Content-Length: {}", good.len() + 50));
        let mut transcript = exchange(self.args.target, lie.as_bytes(), true, Duration::from_secs(10)).await;
        transcript.silence_is(408);
        self.record("body", "length too long, then half-closed", transcript, Want::Refused(&[400, 408]), true).await?;
        let transcript = exchange::flood(self.args.target, self.args.body_limit).await;
        self.record("body", "over the limit, chunked", transcript, Want::Refused(&[413]), true).await
    }

    fn tell(&self, report: &mut Report) {
        let mut classes: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        for finding in &self.findings {
            let count = classes.entry(&finding.class).or_default();
            count.0 += 1;
            count.1 += usize::from(finding.fault.is_none());
            let mark = if finding.fault.is_none() { "ok  " } else { "MISS" };
            let end = if finding.is_closed { "closed" } else { "open" };
            report.say(format!("{mark} {:<28} {:<36} {:?} {end}", finding.class, finding.name, finding.statuses));
        }
        for (class, (all, good)) in &classes {
            report.say(format!("{class}: {good} of {all} as they should be"));
        }
        for finding in &self.findings {
            if let Some(fault) = &finding.fault {
                report.miss(format!("{} / {}: {fault}", finding.class, finding.name));
            }
        }
        let rows: Vec<Value> = self
            .findings
            .iter()
            .map(|finding| {
                json!({"class": finding.class, "name": finding.name, "statuses": finding.statuses, "closed": finding.is_closed, "fault": finding.fault})
            })
            .collect();
        report.put("cases", rows);
    }
}

fn invalid_utf8(good: &str, head: &impl Fn(usize, &str) -> String) -> Vec<u8> {
    let body: Vec<u8> = good.bytes().map(|byte| if byte == b'h' { 0xff } else { byte }).collect();
    [head(body.len(), "").into_bytes(), body].concat()
}

/// What is wrong with how a case ended.
fn fault(transcript: &Transcript, want: Want, must_close: bool, other: u64, smuggled: u64) -> Option<String> {
    if smuggled > 0 {
        return Some(format!("{smuggled} hidden requests reached a pod"));
    }
    let Want::Refused(list) = want else {
        return (other > 1).then(|| format!("{other} requests reached a pod"));
    };
    if other > 0 {
        return Some(format!("{other} requests reached a pod (statuses {:?})", transcript.statuses));
    }
    match transcript.statuses.first() {
        None if transcript.is_closed => Some("closed without an answer".to_owned()),
        None => Some("no answer".to_owned()),
        Some(status) if !list.contains(status) => Some(format!("status {status}, wanted one of {list:?}")),
        // A plain "not found" leaves the framing sound, so the connection may live on.
        Some(404 | 405) => None,
        Some(_) if must_close && !transcript.is_closed => Some("refused, but the connection stays open".to_owned()),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    fn check(statuses: &[u16], is_closed: bool, other: u64, smuggled: u64, want: Want) -> bool {
        fault(&Transcript { statuses: statuses.to_vec(), is_closed }, want, true, other, smuggled).is_none()
    }

    #[test]
    fn a_case_is_good_only_if_refused_closed_and_unseen() {
        let want = Want::Refused(&[400]);
        assert!(check(&[400], true, 0, 0, want));
        assert!(!check(&[400], false, 0, 0, want), "left open");
        assert!(!check(&[400], true, 1, 0, want), "reached a pod");
        assert!(!check(&[200, 400], true, 0, 0, want), "the first status counts");
        assert!(!check(&[], true, 0, 0, want), "silence is not an answer");
        assert!(check(&[200, 404], false, 1, 0, Want::Harmless));
        assert!(!check(&[200, 404], false, 1, 1, Want::Harmless), "the hidden request arrived");
    }
}
