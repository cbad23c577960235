//! `loadtest bare-pingora`: the least a proxy on Pingora can be, two upstreams in turn and nothing else.
//!
//! It shows the floor: what the library costs without any gate. It has no access log, no metrics, no checks; it must not be used for more.

use async_trait::async_trait;
use pingora::prelude::{HttpPeer, Result, Server};
use pingora::proxy::{ProxyHttp, Session, http_proxy_service};
use pingora::server::configuration::ServerConf;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Arguments of `loadtest bare-pingora`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to listen (127.0.0.1 only)
    #[arg(long, value_parser = crate::target::loopback)]
    pub(crate) listen: SocketAddr,
    /// An upstream; give it twice
    #[arg(long, required = true, value_parser = crate::target::loopback)]
    pub(crate) pod: Vec<SocketAddr>,
    /// Worker threads
    #[arg(long, default_value_t = 1)]
    pub(crate) threads: usize,
}

struct Turn {
    pods: Vec<SocketAddr>,
    next: AtomicUsize,
}

#[async_trait]
impl ProxyHttp for Turn {
    type CTX = ();
    fn new_ctx(&self) -> Self::CTX {}

    async fn upstream_peer(&self, _session: &mut Session, _ctx: &mut ()) -> Result<Box<HttpPeer>> {
        let next = self.next.fetch_add(1, Ordering::Relaxed) % self.pods.len().max(1);
        let pod = self.pods.get(next).ok_or_else(|| pingora::Error::new(pingora::ErrorType::ConnectNoRoute))?;
        Ok(Box::new(HttpPeer::new(*pod, false, String::new())))
    }
}

/// Serves until a signal ends the process.
pub(crate) fn serve(args: Args) -> ! {
    let conf = ServerConf {
        threads: args.threads,
        upstream_keepalive_pool_size: 512,
        grace_period_seconds: Some(0),
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let turn = Turn { pods: args.pod, next: AtomicUsize::new(0) };
    let mut service = http_proxy_service(&Arc::clone(&server.configuration), turn);
    service.add_tcp(&args.listen.to_string());
    server.add_service(service);
    server.run_forever()
}
