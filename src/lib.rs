//! Tidegate: a layer-7 reverse proxy and load balancer for LLM inference, in front of vLLM pods. This page is the map.
//!
//! # Rooms and arrows
//!
//! A room is a folder below `src/`. It imports rooms of lower levels and those its row names, nothing else. The table is in
//! `tests/tidy/arrows.rs`, which fails on a new arrow and on any circle.
//!
//! ```text
//! main, demo   arguments, exit codes; gate, simulated pods and users in one process
//! app          builds every room, connects, starts, stops; knows all, decides nothing
//! 4  config      tree of settings -> Config; problems with place and remedy -> settings of all rooms
//! 3  proxy       the data path: accept, check, plan, forward, stream back   -> scheduling, flow, disagg, api, prefix, pods,
//!                                                                              observe, tls
//!    admin       health, metrics, pods, explain, safe mode; the dashboard   -> export, tls, observe, pods
//!    export      Prometheus text, access log, spans over OTLP               -> tls, observe, pods
//!    discovery   list, DNS, Kubernetes -> pods                              -> tls, pods, observe
//!    telemetry   /metrics, /v1/models of pods -> readings and facts         -> tls, pods, observe
//!    tls         handshakes with clients and pods, certificates that change -> pods, observe
//!    sim         simulated pods over HTTP, with faults                      -> sim/engine, api
//!    runtime     the one clock, the one way to start a task
//! 2  scheduling  filters, scorers, picker -> decision                       -> prefix, pods, api
//!    flow        keys, tenants, classes, limits; admission, queue, retries  -> pods, api
//!    disagg      one pod or two, connectors, leases, sentinel, life of legs  -> scheduling, prefix, pods, api
//! 1  api         routes, anatomy of a body, splice, event scan, error shapes
//!    prefix      prompt -> block hashes; which pod has seen which           -> api
//!    pods        table, readings, bookings, health
//!    observe     names of metrics, counters, causes, redaction
//!    sim/engine  continuous batching without clock or sockets               -> api
//! 0  base        ids, units, seeded randomness                              (every room may import it)
//! ```
//! Levels 0 to 2 and `sim/engine` are **pure**: no async runtime, socket, clock, environment or ambient randomness. `now` and
//! the generator are arguments, so the code that decides in production is the code that tests and simulations run.
//!
//! # The path of one request, by function
//!
//! ```text
//! proxy::accept    Worker::accept -> take (cap) -> serve             one thread and runtime per worker; h2c told by its preface
//!   tls::Server      accept                                              where TLS is spoken; certificate -> Conn
//! proxy::guard     GuardedStream, HeadLint, FrameMeter               raw head linted, bounded and timed before any parser
//! proxy::gate      GateApp::process_new_http -> read_head            from here a panic costs this request only (catch)
//! proxy::exchange  Exchange::run -> serve                            frame::check, then api::route:
//!   proxy::identity  identify (key -> tenant; before the body), later classify, permit, additions, charge (limits)
//!   proxy::local     models, alive, version, preflight, response_by_id   answered here, or passed to a pod unread
//!   proxy::intake    balanced -> read_body -> facts                      Anatomy::read, model(), strip_dangerous, Fingerprint::of,
//!                                                                        splice; then Guards::admit, Guards::poisoned
//! proxy::attempt   Exchange::attempts                                 until an answer is committed or the rules end it:
//!   proxy::plan      choose | choose_legs -> plan                        Index::lookup_into, scheduling::place | safe_mode,
//!                                                                        disagg::Around::plan
//!   proxy::legs      legs: prefill -> decode, as disagg::Life says       on two pods; what fails is planned anew, or on one
//!   proxy::attempt   Trial::begin -> attempt -> ask                      books load, health and prefix claim; headers::to_pod
//!   proxy::upstream  checkout | connect, send, head, body                own HTTP/1.1 client, pool per worker
//!   proxy::relay     relay -> stream | plain                             holds all until the first data, then commit()
//!   proxy::attempt   broke, goes_again -> flow::may_retry                nothing reached the client: again, elsewhere?
//!   proxy::realtime realtime, tunnel                                    a WebSocket: as above until 101, then bytes both ways
//! proxy::reply     Fault::row, body, event                            what a client sees of any failure: one table
//! proxy::exchange  finish                                             metrics, the one access line, the trace; the connection goes on
//! ```
//! Beside it: `app::control` runs discovery, telemetry and reload on a thread of their own and publishes a new fleet, rules
//! or profile; a request takes a snapshot and never waits for them. `app::service` turns signals into reload, drain and the hand-over of
//! sockets to a new program.
//!
//! # What always holds
//!
//! - A body goes to the pod byte for byte, except for members that endanger pods, a model's alias, a tenant's salt and priority
//!   where configured (`api::splice`), and what two legs need (`disagg::body`).
//! - A client's key is hashed and forgotten: where keys are configured none goes further than `proxy::identity`.
//! - KV blocks that a prefill pod may have let go are never read for a client: a lease is used once and early, and the decoder's
//!   first token is held against the prefiller's.
//! - Nothing reaches the client before *commit*; nothing is tried again after it.
//! - Whatever is booked for an attempt is given back by a guard's `Drop`, a panic included: in-flight gauges end at 0.
//! - Every map, buffer, wait and retry has a named limit. One access line per request, with one cause from a closed list.
//! - No prompt, key or body in a log, an error, a metric or a decision.
//!
//! Deliberately absent: a schema of the APIs (vLLM judges requests; its 4xx pass), a tokenizer, streaming of request bodies
//! (a body is read whole, so that it can be planned and sent again), compression, caching of answers, sticky cookies,
//! configuration by environment, plug-ins loaded at run time.
//!
//! Not built yet, though names leave room for it: connectors other than NIXL, an index fed by KV events, autoscaling.
//!
//! # Where it differs from the first design, and why
//!
//! - *Pingora's server sessions through `HttpServerApp`, not `ProxyHttp`.* Its native forwarding hangs once a body was read in
//!   an early phase, and every body is read here; without forwarding the phases around it only cost.
//! - *An own HTTP/1.1 client towards pods, not Pingora's connector.* Head and body leave in one vectored write, an answer that
//!   comes before the body was taken is seen at once, and a stream holds no more than one read: little memory per stream.
//! - *Own workers, not Pingora's server.* One thread with a current-thread runtime each, so a connection, its pods' sockets and
//!   its timers stay on one thread without locks. It also gives the cap, the absolute head deadline, the raw lint and a drain
//!   that can keep accepting, which Pingora's listener has not.
//! - *After a handover that failed, one pod does it all*, in place of a second pair: only two decodes are allowed, and the last
//!   one is not risked. A lease is never given to a second decoder that could be reached: a pod that answers at all, if only with
//!   a refusal, has told the prefill pod to let go (vLLM 0.32).
//! - *A room `runtime`* for the clock and for starting tasks: everywhere else both are banned by a lint.
//! - *zlib-ng is replaced* by zlib-rs (`.cargo/libz-ng-sys`), because its build needs cmake and nothing here compresses.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | pod | one vLLM engine that can be addressed: host, port and data-parallel rank |
//! | fleet | one immutable snapshot of all pods |
//! | role | what a pod may be asked to do: prefill, decode, both |
//! | standing | what passive health says of a pod: ready, ramp, probe, ejected |
//! | reading | what a pod said of its load at its last scrape, with its age |
//! | anatomy | what one pass over a body found; borrowed, nothing parsed beyond it |
//! | block | 256 canonical bytes of a prompt, hashed in a chain |
//! | hit, uncached | prompt tokens believed to be in a pod's KV cache; the rest |
//! | claim | a prompt entered for a pod at dispatch; confirmed by the first data, withdrawn on failure |
//! | in flight | dispatched to a pod and not ended |
//! | caller, tenant, class, trust | who sends; who is charged; how urgent; how far it is believed (without keys: one tenant, `default`) |
//! | plan, decision | choosing a pod; the result with its reasons |
//! | attempt | one try of a request on one pod |
//! | leg | one of the two calls of a request that is prefilled on one pod and decoded on another |
//! | lease | how long a prefill pod keeps blocks for a decoder that has said nothing |
//! | sentinel | the check that both pods made the same first token |
//! | epoch | counts up when a pod's prefix cache may be poisoned; it enters the salt of all later requests there |
//! | commit | the first data event that is neither comment nor error, or the first body byte, goes to the client |
//! | good ending | what ends a whole stream: `[DONE]`, `response.completed`, `message_stop` |
//! | cause | how a request ended: one word of `observe::Cause` |
//! | retry class | A to G: what a failure allows (`flow::retry`) |
//! | safe mode | least in flight, no prefix index; switched by an operator or by a planner that fails |
//! | gate | this program; `flow::Gate` is its admission, `proxy::Gate` its data path |
pub mod base;

pub mod api;
pub mod observe;
pub mod pods;
pub mod prefix;

pub mod disagg;
pub mod flow;
pub mod scheduling;

pub mod admin;
pub mod discovery;
pub mod export;
pub mod proxy;
pub mod runtime;
pub mod telemetry;
pub mod tls;

pub mod config;
pub mod sim;

pub mod app;
pub mod demo;
