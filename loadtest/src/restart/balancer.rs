//! A balancer of TCP connections, as a cloud or a Service has one: it asks each gate's `/readyz` and sends new connections to those that say
//! yes, in turn. Connections that are there stay where they are.

use crate::client::Connection;
use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// Time between two questions: connections go on being sent to a gate that leaves for so long.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Where connections may go.
struct Backend {
    addr: SocketAddr,
    admin: SocketAddr,
    is_ready: bool,
}

/// The balancer's state.
pub(super) struct Balancer {
    addr: SocketAddr,
    backends: RefCell<Vec<Backend>>,
    turn: Cell<usize>,
    /// Connections that no gate took.
    pub(super) refused: Cell<u64>,
}

impl Balancer {
    /// Listens and balances from now on; to be run in a local set.
    pub(super) async fn start() -> io::Result<Rc<Self>> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let own = Rc::new(Self {
            addr: listener.local_addr()?,
            backends: RefCell::default(),
            turn: Cell::new(0),
            refused: Cell::new(0),
        });
        let (accepts, asks) = (Rc::clone(&own), Rc::clone(&own));
        tokio::task::spawn_local(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::task::spawn_local(Rc::clone(&accepts).carry(client));
            }
        });
        tokio::task::spawn_local(async move {
            loop {
                asks.ask().await;
                tokio::time::sleep(ASKED_EVERY).await;
            }
        });
        Ok(own)
    }

    /// Where clients connect.
    pub(super) const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A gate that gets connections once it is ready.
    pub(super) fn add(&self, addr: SocketAddr, admin: SocketAddr) {
        self.backends.borrow_mut().push(Backend { addr, admin, is_ready: false });
    }

    /// Whether new connections go to this gate.
    pub(super) fn uses(&self, addr: SocketAddr) -> bool {
        self.backends.borrow().iter().any(|backend| backend.addr == addr && backend.is_ready)
    }

    async fn ask(&self) {
        let all: Vec<_> = self.backends.borrow().iter().map(|backend| (backend.addr, backend.admin)).collect();
        for (addr, admin) in all {
            let is_ready = Connection::get(admin, "/readyz").await.is_ok_and(|(status, _)| status == 200);
            if let Some(backend) = self.backends.borrow_mut().iter_mut().find(|backend| backend.addr == addr) {
                backend.is_ready = is_ready;
            }
        }
    }

    /// One connection, to a gate and back, to its end.
    async fn carry(self: Rc<Self>, mut client: TcpStream) {
        let ready: Vec<_> =
            self.backends.borrow().iter().filter(|backend| backend.is_ready).map(|backend| backend.addr).collect();
        let turn = self.turn.replace(self.turn.get().wrapping_add(1));
        for place in 0..ready.len() {
            let Some(addr) = ready.get((turn + place) % ready.len()) else { continue };
            if let Ok(mut gate) = TcpStream::connect(addr).await {
                let _is_over = client.set_nodelay(true).and_then(|()| gate.set_nodelay(true));
                let _ended = tokio::io::copy_bidirectional(&mut client, &mut gate).await;
                return;
            }
        }
        self.refused.set(self.refused.get() + 1);
    }
}
