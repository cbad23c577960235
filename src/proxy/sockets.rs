//! Options of every socket, towards clients and pods: small writes leave at once, and a peer that vanished is noticed.
//!
//! A machine that loses power or its network sends no FIN. Without keepalive a pod's stream, or a pooled connection, would
//! look alive until a deadline of the request, and a client that left would have its answer generated to the end.
use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Silence after which the peer is asked whether it is there.
const IDLE: Duration = Duration::from_secs(10);
/// Time between two such questions.
const INTERVAL: Duration = Duration::from_secs(5);
/// Questions without an answer that end the connection.
const QUESTIONS: u32 = 3;
/// Longest time that sent bytes, or questions, may stay without an answer (`TCP_USER_TIMEOUT`).
pub(super) const UNANSWERED_MAX: Duration = Duration::from_secs(30);

/// Sets the options. A peer that is there but reads nothing is given up after `stalled_max` at the earliest: to Linux a
/// window that stays closed is silence too, however well the peer answers.
pub(super) fn tend(io: &TcpStream, stalled_max: Duration) -> io::Result<()> {
    io.set_nodelay(true)?;
    let socket = SockRef::from(io);
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(INTERVAL).with_retries(QUESTIONS);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(stalled_max.max(UNANSWERED_MAX)))
}

/// Whether an idle connection's peer has closed it, or said something that nobody asked for. Asks the system: what the
/// runtime knows may be older than those bytes.
pub(super) fn is_stale(io: &TcpStream) -> bool {
    let mut probe = [std::mem::MaybeUninit::uninit(); 1];
    let looked = SockRef::from(io).recv_with_flags(&mut probe, libc::MSG_PEEK | libc::MSG_DONTWAIT);
    !matches!(looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, std::net::TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (ours, listener.accept().unwrap().0)
    }

    #[tokio::test]
    async fn a_peer_that_vanished_is_noticed() {
        let (ours, _theirs) = pair().await;
        for (stalled_max, expected_s) in [(Duration::ZERO, 30), (Duration::from_mins(2), 120)] {
            tend(&ours, stalled_max).unwrap();
            let socket = SockRef::from(&ours);
            assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
            let times = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            assert_eq!(times, (IDLE, INTERVAL));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), QUESTIONS);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(expected_s)));
        }
    }

    #[tokio::test]
    async fn what_nobody_asked_for_is_seen_at_once() {
        let (ours, mut theirs) = pair().await;
        // As after an answer: the runtime has seen that there is nothing more to read.
        ours.writable().await.unwrap();
        assert!(ours.try_read(&mut [0; 8]).is_err());
        assert!(!is_stale(&ours));
        theirs.write_all(b"HTTP/1.1 200 OK\r\n").unwrap();
        assert!(is_stale(&ours), "surplus bytes");
        let (ours, theirs) = pair().await;
        assert!(!is_stale(&ours));
        drop(theirs);
        assert!(is_stale(&ours), "closed");
    }
}
