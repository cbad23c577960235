//! Why a request ended as it did: one closed list for the access line and the `cause` label.
//!
//! A cause names what happened first, not every consequence: a stream that broke because the pod died is `stream_broken`,
//! whatever the client did afterwards. [`Cause::fault`] tells whose fault it was, so that origin is never guessed from a
//! status code. Adding a cause is adding a line to the table below; removing or renaming one breaks dashboards.

/// Whose fault an ending was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// Nobody's: the request was served.
    Nobody,
    /// The client's: it asked wrongly, was too slow, or left.
    Client,
    /// The gate's: a limit, a policy, a shutdown or a defect.
    Gate,
    /// The pod's or the network's between gate and pod.
    Pod,
}

impl Fault {
    /// Every one.
    pub const ALL: [Self; 4] = [Self::Nobody, Self::Client, Self::Gate, Self::Pod];

    /// Name in the access line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Nobody => "none",
            Self::Client => "client",
            Self::Gate => "gate",
            Self::Pod => "pod",
        }
    }
}

macro_rules! causes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $fault:ident;)*) => {
        /// How a request ended. Exactly one per request.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Cause {
            $($(#[$doc])* $variant,)*
        }

        impl Cause {
            /// Every cause, in the order of declaration.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Stable name in the access line and the `cause` label.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Whose fault it was.
            pub const fn fault(self) -> Fault {
                match self { $(Self::$variant => Fault::$fault,)* }
            }
        }
    };
}

causes! {
    /// A pod's good answer reached its end.
    Ok = "ok", Nobody;
    /// The gate answered by itself and well: `/v1/models`, `/health`, `/version`, CORS preflight.
    Local = "local", Nobody;
    /// The client left (FIN, RST, HTTP/2 reset) before its answer was complete.
    ClientGone = "client_gone", Client;
    /// The client stopped reading until the write deadline passed.
    ClientStalled = "client_stalled", Client;
    /// Ambiguous or illegal HTTP framing; see `framing_rejected_total` for the rule.
    BadFraming = "bad_framing", Client;
    /// Request head over the limit of bytes, fields or target length.
    HeadTooLarge = "head_too_large", Client;
    /// The head was not complete at its deadline.
    HeadTimeout = "head_timeout", Client;
    /// The body was not complete at its deadline.
    BodyTimeout = "body_timeout", Client;
    /// Body over the limit of bytes.
    BodyTooLarge = "body_too_large", Client;
    /// Body is not an acceptable JSON object, or a member the gate reads is malformed or doubled.
    BadBody = "bad_body", Client;
    /// Content encoding or type the gate does not take.
    UnsupportedMedia = "unsupported_media", Client;
    /// A header the gate reads is malformed.
    BadHeader = "bad_header", Client;
    /// No answer had begun when the request's own deadline passed.
    DeadlinePassed = "deadline_passed", Client;
    /// No pod serves this model.
    UnknownModel = "unknown_model", Client;
    /// No such path.
    UnknownRoute = "unknown_route", Client;
    /// The path exists but not with this method.
    MethodNotAllowed = "method_not_allowed", Client;
    /// A development, administration or telemetry route of a pod that configuration does not allow.
    RouteRefused = "route_refused", Client;
    /// The response id is not known here, or its pod is gone.
    UnknownResponse = "unknown_response", Client;
    /// The pod refused the request as faulty (4xx other than 429); its answer was passed on.
    PodClientFault = "pod_client_fault", Client;
    /// The same body killed pods before; quarantined.
    Poisoned = "poisoned", Client;
    /// Refused: connection cap reached.
    RefusedConnections = "refused_connections", Gate;
    /// Refused: memory stage or body budget reached.
    RefusedMemory = "refused_memory", Gate;
    /// Refused: the model's own share of requests or bytes is taken.
    RefusedModelBudget = "refused_model_budget", Gate;
    /// It would have waited too long, or did.
    RefusedQueue = "refused_queue", Gate;
    /// Refused: capacity exists but is taken (429).
    RefusedSaturated = "refused_saturated", Gate;
    /// Refused: the queue is full.
    RefusedQueueFull = "refused_queue_full", Gate;
    /// Refused: waited in the queue until its time ran out.
    RefusedQueueTimeout = "refused_queue_timeout", Gate;
    /// Refused: no pod may take it (503).
    RefusedNoPod = "refused_no_pod", Gate;
    /// Refused: the tenant's own limit is reached.
    RefusedTenant = "refused_tenant", Client;
    /// Refused: the caller is not allowed.
    RefusedCaller = "refused_caller", Gate;
    /// The gate is shutting down.
    ShuttingDown = "shutting_down", Gate;
    /// A panic in the gate; cost this request only.
    GatePanic = "gate_panic", Gate;
    /// An internal fault of the gate that is not a panic.
    GateFault = "gate_fault", Gate;
    /// Descriptors or local ports ran out.
    GateExhausted = "gate_exhausted", Gate;
    /// No connection to the pod could be made.
    ConnectFailed = "connect_failed", Pod;
    /// The pod closed or reset before an answer's head.
    PodClosed = "pod_closed", Pod;
    /// The pod's answer is not HTTP, or its head is over the limit.
    PodGarbage = "pod_garbage", Pod;
    /// The pod answered 5xx other than 503; passed on.
    PodError = "pod_error", Pod;
    /// The pod answered 429 or 503; passed on.
    PodBusy = "pod_busy", Pod;
    /// The pod sent an error event; before commit and not retried, or after commit.
    PodErrorEvent = "pod_error_event", Pod;
    /// Nothing of the answer came until the deadline of the first byte or token.
    FirstByteTimeout = "first_byte_timeout", Pod;
    /// A non-streamed answer was not complete at its deadline.
    AnswerTimeout = "answer_timeout", Pod;
    /// Silence between two events of a stream longer than allowed.
    IdleTimeout = "idle_timeout", Pod;
    /// The connection to the pod broke after commit.
    StreamBroken = "stream_broken", Pod;
    /// The answer ended cleanly as HTTP but without the API's good ending.
    Truncated = "truncated", Pod;
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_distinct_label_words_and_fit_six_bits() {
        let names: HashSet<_> = Cause::ALL.iter().map(|cause| cause.as_str()).collect();
        assert_eq!(names.len(), Cause::ALL.len());
        assert!(Cause::ALL.len() <= 64, "the series key holds six bits of cause");
        for cause in Cause::ALL {
            assert!(cause.as_str().bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{cause:?}");
            assert_eq!(cause.as_str().starts_with("refused"), format!("{cause:?}").starts_with("Refused"));
        }
        assert_eq!(Cause::Ok.fault().as_str(), "none");
        assert_eq!(Cause::Truncated.fault(), Fault::Pod);
    }
}
