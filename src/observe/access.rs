//! One access line per request, as a struct of borrowed values and a fast writer of JSON.
//!
//! The fields are all there is: no prompt, key, body, query string or header other than the request id can get in. A model
//! is named only if a pod serves it. Absent values are left out of the line. Times are in the unit their name says.
use std::fmt::Write as _;

use super::cause::Cause;
use super::civil::rfc3339;
use super::json;
use crate::base::PodId;

/// Bytes to reserve for a line.
pub const LINE_BYTES: usize = 768;

/// Everything an access line tells. Fill with `..AccessRecord::new(..)`.
#[derive(Clone, Copy, Debug)]
pub struct AccessRecord<'a> {
    /// Wall clock when the request ended, milliseconds since 1970.
    pub unix_ms: u64,
    /// `x-request-id` of the answer.
    pub request_id: &'a str,
    /// Trace it is part of, if its spans are exported.
    pub trace_id: Option<u128>,
    /// HTTP method.
    pub method: &'a str,
    /// Name of the route or API (`chat`, `models`, `unknown`), never the raw path.
    pub route: &'static str,
    /// HTTP version spoken by the client: `1.1`, `2`.
    pub http: &'static str,
    /// Model, if some pod serves it.
    pub model: Option<&'a str>,
    /// Who is charged.
    pub tenant: Option<&'a str>,
    /// QoS class.
    pub class: Option<&'a str>,
    /// Address the client connects from, without the port, if it is to be logged.
    pub client: Option<&'a str>,
    /// Status sent; `None` if none was.
    pub status: Option<u16>,
    /// How it ended.
    pub cause: Cause,
    /// Finer reason from a closed list: a framing rule, a refusal reason, a retry rule.
    pub reason: Option<&'static str>,
    /// Pod that answered or failed last.
    pub pod: Option<PodId>,
    /// Pod that made the prefill for it.
    pub prefill_pod: Option<PodId>,
    /// Attempts on pods.
    pub attempts: u32,
    /// Whether anything of a pod's answer reached the client.
    pub committed: bool,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// How the pod was chosen: `normal`, `safe`, `pinned`.
    pub mode: Option<&'static str>,
    /// Body bytes received.
    pub bytes_in: u64,
    /// Body bytes sent.
    pub bytes_out: u64,
    /// Prompt tokens by usage.
    pub prompt_tokens: Option<u64>,
    /// Generated tokens by usage.
    pub completion_tokens: Option<u64>,
    /// Prompt tokens the pod had cached, by usage.
    pub cached_tokens: Option<u64>,
    /// Prompt tokens the gate thought the chosen pod had.
    pub hit_estimate_tokens: Option<u64>,
    /// SSE events passed on.
    pub events: u64,
    /// Head complete to first data event or byte \[µs\].
    pub ttft_us: Option<u64>,
    /// Head complete to the end \[µs\].
    pub e2e_us: u64,
    /// Waited for admission \[µs\].
    pub queue_us: Option<u64>,
    /// Choosing the pod took \[µs\].
    pub plan_us: Option<u64>,
}

impl<'a> AccessRecord<'a> {
    /// A record with what is always there; everything else absent or zero.
    pub const fn new(unix_ms: u64, request_id: &'a str, method: &'a str, route: &'static str, cause: Cause) -> Self {
        Self {
            unix_ms,
            request_id,
            trace_id: None,
            method,
            route,
            http: "1.1",
            model: None,
            tenant: None,
            class: None,
            client: None,
            status: None,
            cause,
            reason: None,
            pod: None,
            prefill_pod: None,
            attempts: 0,
            committed: false,
            stream: false,
            mode: None,
            bytes_in: 0,
            bytes_out: 0,
            prompt_tokens: None,
            completion_tokens: None,
            cached_tokens: None,
            hit_estimate_tokens: None,
            events: 0,
            ttft_us: None,
            e2e_us: 0,
            queue_us: None,
            plan_us: None,
        }
    }

    /// Appends the line with its newline.
    pub fn to_json_line(&self, out: &mut String) {
        out.push_str("{\"ts\":\"");
        rfc3339(out, self.unix_ms);
        out.push('"');
        text(out, ",\"request_id\":", Some(self.request_id));
        if let Some(trace) = self.trace_id {
            _ = write!(out, ",\"trace_id\":\"{trace:032x}\"");
        }
        text(out, ",\"method\":", Some(self.method));
        text(out, ",\"route\":", Some(self.route));
        text(out, ",\"http\":", Some(self.http));
        text(out, ",\"model\":", self.model);
        text(out, ",\"tenant\":", self.tenant);
        text(out, ",\"class\":", self.class);
        text(out, ",\"client\":", self.client);
        number(out, ",\"status\":", self.status.map(u64::from));
        text(out, ",\"cause\":", Some(self.cause.as_str()));
        text(out, ",\"fault\":", Some(self.cause.fault().as_str()));
        text(out, ",\"reason\":", self.reason);
        if let Some(PodId(number)) = self.pod {
            out.push_str(",\"pod\":\"pod-");
            json::integer(out, u64::from(number));
            out.push('"');
        }
        if let Some(PodId(number)) = self.prefill_pod {
            out.push_str(",\"prefill_pod\":\"pod-");
            json::integer(out, u64::from(number));
            out.push('"');
        }
        number(out, ",\"attempts\":", Some(u64::from(self.attempts)));
        flag(out, ",\"committed\":", self.committed);
        flag(out, ",\"stream\":", self.stream);
        text(out, ",\"mode\":", self.mode);
        number(out, ",\"bytes_in\":", Some(self.bytes_in));
        number(out, ",\"bytes_out\":", Some(self.bytes_out));
        number(out, ",\"prompt_tokens\":", self.prompt_tokens);
        number(out, ",\"completion_tokens\":", self.completion_tokens);
        number(out, ",\"cached_tokens\":", self.cached_tokens);
        number(out, ",\"hit_estimate_tokens\":", self.hit_estimate_tokens);
        number(out, ",\"events\":", self.stream.then_some(self.events));
        time(out, ",\"ttft_ms\":", self.ttft_us);
        time(out, ",\"e2e_ms\":", Some(self.e2e_us));
        time(out, ",\"queue_ms\":", self.queue_us);
        number(out, ",\"plan_us\":", self.plan_us);
        out.push_str("}\n");
    }
}

fn text(out: &mut String, key: &str, value: Option<&str>) {
    if let Some(value) = value {
        out.push_str(key);
        json::string(out, value);
    }
}

fn number(out: &mut String, key: &str, value: Option<u64>) {
    if let Some(value) = value {
        out.push_str(key);
        json::integer(out, value);
    }
}

fn time(out: &mut String, key: &str, value_us: Option<u64>) {
    if let Some(value_us) = value_us {
        out.push_str(key);
        json::millis(out, value_us);
    }
}

fn flag(out: &mut String, key: &str, value: bool) {
    out.push_str(key);
    out.push_str(if value { "true" } else { "false" });
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn line(record: &AccessRecord<'_>) -> serde_json::Value {
        let mut out = String::new();
        record.to_json_line(&mut out);
        assert_eq!(out.matches('\n').count(), 1, "one line: {out:?}");
        assert!(out.len() <= LINE_BYTES, "{} bytes", out.len());
        serde_json::from_str(&out).unwrap()
    }

    #[test]
    fn absent_values_are_left_out() {
        let value = line(&AccessRecord::new(0, "id", "GET", "health", Cause::Local));
        assert_eq!(value["ts"], "1970-01-01T00:00:00.000Z");
        assert_eq!((&value["cause"], &value["fault"]), (&"local".into(), &"none".into()));
        for absent in ["model", "status", "pod", "ttft_ms", "prompt_tokens", "events"] {
            assert!(value.get(absent).is_none(), "{absent}");
        }
    }

    #[test]
    fn everything_is_told_and_hostile_names_stay_one_line() {
        let record = AccessRecord {
            model: Some("org/m\"\n{\u{2028}"),
            tenant: Some("t\\"),
            class: Some("default"),
            client: Some("127.0.0.1"),
            status: Some(200),
            reason: Some("retry"),
            pod: Some(PodId(7)),
            attempts: 2,
            committed: true,
            stream: true,
            mode: Some("normal"),
            prompt_tokens: Some(u64::MAX),
            completion_tokens: Some(2),
            cached_tokens: Some(3),
            hit_estimate_tokens: Some(4),
            events: 5,
            ttft_us: Some(12_345),
            e2e_us: 1_000_000,
            queue_us: Some(0),
            plan_us: Some(9),
            ..AccessRecord::new(1_795_330_800_123, "id", "POST", "chat", Cause::Ok)
        };
        let value = line(&record);
        assert_eq!(value["model"], "org/m\"\n{\u{2028}");
        assert_eq!(value["pod"], "pod-7");
        assert_eq!(value["prompt_tokens"], u64::MAX);
        assert_eq!((value["ttft_ms"].as_f64(), value["e2e_ms"].as_u64()), (Some(12.345), Some(1_000)));
        assert_eq!(value.as_object().unwrap().len(), 29);
    }
}
