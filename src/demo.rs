//! `tidegate demo`: a gate in front of simulated pods in one process, with some made-up traffic, so that a first user sees it work
//! within a minute.
mod visitors;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::app::{App, StartError};
use crate::config::ServeArgs;
use crate::disagg::Decider;
use crate::runtime::{Task, supervise};
use crate::sim::http::{Fleet, SimConfig, SimPod, SimRole};

/// Arguments of `tidegate demo`.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Address for clients.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// Address for operators.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9901")]
    pub admin: SocketAddr,
    /// Simulated pods.
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub pods: usize,
    /// How many times faster than an 8B model on one GPU.
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// Prefill and decode on two pods: one pod prefills, two decode, in place of `--pods`.
    #[arg(long)]
    pub pd: bool,
    /// Requests per second of made-up users, on average; 0: nobody but you.
    #[arg(long, value_name = "RATE", default_value_t = 2.0, value_parser = rate)]
    pub load: f64,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=RATE_MAX).contains(rate));
    rate.ok_or_else(|| format!("write requests per second, from 0 to {RATE_MAX}"))
}

/// Most requests per second that the made-up users can be asked for.
const RATE_MAX: f64 = 500.0;

/// A running demonstration.
pub struct Demo {
    app: App,
    pods: Vec<SocketAddr>,
    visitors: Option<Task>,
    _fleets: Vec<Fleet>,
    _runtime: tokio::runtime::Runtime,
}

impl Demo {
    /// Starts pods and gate.
    pub fn start(args: &DemoArgs) -> Result<Self, StartError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let config = SimConfig {
            models: vec!["demo".to_owned()],
            speed: args.speed,
            log_requests_max: 0,
            ..SimConfig::default()
        };
        let start =
            |count: usize, role: SimRole| runtime.block_on(Fleet::start(count, SimConfig { role, ..config.clone() }));
        let fleets = if args.pd {
            vec![start(1, SimRole::Prefill)?, start(2, SimRole::Decode)?]
        } else {
            vec![start(args.pods.max(1), SimRole::Both)?]
        };
        let of = |role: SimRole| {
            let own = fleets.iter().flat_map(|fleet| &fleet.pods).filter(move |pod| pod.config().role == role);
            own.map(SimPod::url).collect::<Vec<_>>()
        };
        let serve = ServeArgs {
            listen: Some(args.listen),
            admin: Some(args.admin),
            pod: of(SimRole::Both),
            prefill: of(SimRole::Prefill),
            decode: of(SimRole::Decode),
            // An idle fleet would do all on one pod.
            decider: args.pd.then_some(Decider::Always),
            explain: true,
            access_log: Some("off".to_owned()),
            ..ServeArgs::default()
        };
        let pods = fleets.iter().flat_map(Fleet::addrs).collect();
        let app = App::start(serve, None)?;
        let context = runtime.enter();
        let table = Arc::clone(&app.gate().table);
        let is_open = move || table.fleet().unknown.is_empty() && !table.fleet().pods.is_empty();
        let visitors =
            (args.load > 0.0).then(|| supervise("visitors", visitors::visit(app.addr(), args.load, is_open)));
        drop(context);
        Ok(Self { app, pods, visitors, _fleets: fleets, _runtime: runtime })
    }

    /// What to type next.
    pub fn greeting(&self) -> String {
        let (addr, admin) = (self.app.addr(), self.app.admin_addr());
        format!(
            "Tidegate serves {} simulated pods on http://{addr}. Try:\n\n  \
             curl -N http://{addr}/v1/chat/completions -H 'content-type: application/json' \\\n    \
             -H 'x-tidegate-explain: 1' -D - \\\n    \
             -d '{{\"model\":\"demo\",\"stream\":true,\"max_tokens\":32,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n\n\
             Watch it: http://{admin}/dashboard{} (for tools: /metrics, /pods, /explain, /readyz). With your own pods:\n\n  \
             tidegate serve --pod http://HOST:8000 --pod http://HOST:8001\n",
            self.pods.len(),
            if self.visitors.is_some() {
                " (some made-up users are there already; --load 0 sends them away)"
            } else {
                ""
            }
        )
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.app.addr()
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self.visitors);
        self.app.close(Duration::from_secs(1));
    }
}
