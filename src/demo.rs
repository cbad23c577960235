//! `tidegate demo`: a gate in front of simulated pods in one process, so that a first user sees it work within a minute.
use std::net::SocketAddr;
use std::time::Duration;

use crate::app::{App, StartError};
use crate::config::ServeArgs;
use crate::disagg::Decider;
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
}

/// A running demonstration.
pub struct Demo {
    app: App,
    pods: Vec<SocketAddr>,
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
        Ok(Self { app: App::start(serve, None)?, pods, _fleets: fleets, _runtime: runtime })
    }

    /// What to type next.
    pub fn greeting(&self) -> String {
        let (addr, admin) = (self.app.addr(), self.app.admin_addr());
        format!(
            "Tidegate serves {} simulated pods on http://{addr}. Try:\n\n  \
             curl -N http://{addr}/v1/chat/completions -H 'content-type: application/json' \\\n    \
             -H 'x-tidegate-explain: 1' -D - \\\n    \
             -d '{{\"model\":\"demo\",\"stream\":true,\"max_tokens\":32,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'\n\n\
             Operators look at http://{admin}/ (/metrics, /pods, /explain, /readyz). With your own pods:\n\n  \
             tidegate serve --pod http://HOST:8000 --pod http://HOST:8001\n",
            self.pods.len()
        )
    }

    /// Where clients connect.
    pub fn addr(&self) -> SocketAddr {
        self.app.addr()
    }

    /// Ends it.
    pub fn stop(self) {
        self.app.close(Duration::from_secs(1));
    }
}
