//! Idle connections to pods, kept per worker thread: taken and given back without a lock or a task.
//!
//! uvicorn closes an idle connection after 5 s (`VLLM_HTTP_TIMEOUT_KEEP_ALIVE`), so none is kept longer than 4 s, and each
//! is looked at before it is used again.
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::PodConn;
use crate::base::Mono;
use crate::tls::Dial;

const IDLE_MAX: Duration = Duration::from_secs(4);
/// Idle connections kept per pod and worker.
const IDLE_PER_POD_MAX: usize = 512;

struct Idle {
    conn: PodConn,
    since: Mono,
}

thread_local! {
    static POOL: RefCell<HashMap<SocketAddr, Vec<Idle>>> = RefCell::new(HashMap::new());
}

/// A connection to `addr` that was used before and still looks alive. What was made with other credentials is closed.
pub fn checkout(addr: SocketAddr, dial: Option<&Dial>, now: Mono) -> Option<PodConn> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.get_mut(&addr)?;
        while let Some(Idle { mut conn, since }) = idle.pop() {
            if conn.dial.as_ref() == dial && now.since(since) < IDLE_MAX && !conn.went_stale() {
                return Some(conn);
            }
        }
        None
    })
}

/// Gives a connection back after an exchange; it is closed unless it can serve again.
pub fn checkin(mut conn: PodConn, now: Mono) {
    if !conn.can_serve_again() {
        return;
    }
    conn.reused = true;
    conn.buf = bytes::BytesMut::new();
    POOL.with_borrow_mut(|pool| {
        let idle = pool.entry(conn.addr).or_default();
        if idle.len() < IDLE_PER_POD_MAX {
            idle.push(Idle { conn, since: now });
        }
    });
}

/// Closes all idle connections to `addr`: its pod broke or is gone.
pub fn forget(addr: SocketAddr) {
    POOL.with_borrow_mut(|pool| pool.remove(&addr));
}

/// Closes what has been idle too long. Called now and then by each worker.
pub fn sweep(now: Mono) {
    POOL.with_borrow_mut(|pool| {
        pool.retain(|_, idle| {
            idle.retain(|idle| now.since(idle.since) < IDLE_MAX);
            !idle.is_empty()
        });
    });
}
