//! Addresses this tool may touch: the machine it runs on, nothing else.
//!
//! A load tool pointed at a stranger is an attack, so every address is checked here, when the arguments are read.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Reads `host:port` (with or without `http://`) and refuses everything but 127.0.0.1.
pub(crate) fn loopback(text: &str) -> Result<SocketAddr, String> {
    let bare = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/').replace("localhost:", "127.0.0.1:");
    let address: SocketAddr = bare.parse().map_err(|_| format!("`{text}` is not an address; write 127.0.0.1:PORT"))?;
    if address.ip() != Ipv4Addr::LOCALHOST {
        return Err(format!("`{text}` is not 127.0.0.1; this tool sends load to its own machine only"));
    }
    Ok(address)
}

/// A port nobody listens on now.
pub(crate) fn free_port() -> io::Result<SocketAddr> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()
}

/// Reads a size such as `230`, `10k`, `1m` (powers of ten, as the bodies of the tables are named).
pub(crate) fn size(text: &str) -> Result<usize, String> {
    let lower = text.to_ascii_lowercase();
    let (digits, unit) = match lower.as_bytes().last() {
        Some(b'k') => (lower.trim_end_matches('k'), 1000),
        Some(b'm') => (lower.trim_end_matches('m'), 1_000_000),
        _ => (lower.as_str(), 1),
    };
    let number: usize = digits.parse().map_err(|_| format!("`{text}` is not a size; write 230, 10k or 1m"))?;
    Ok(number * unit)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]
    use super::*;

    #[test]
    fn only_this_machine_is_a_target() {
        assert_eq!(loopback("127.0.0.1:80").unwrap().port(), 80);
        assert_eq!(loopback("http://localhost:8080/").unwrap().port(), 8080);
        for other in ["10.0.0.1:80", "0.0.0.0:80", "127.0.0.2:80", "[::1]:80", "example.org:80", "127.0.0.1", ""] {
            assert!(loopback(other).is_err(), "{other} must be refused");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!((size("230").unwrap(), size("10k").unwrap(), size("1M").unwrap()), (230, 10_000, 1_000_000));
        assert!(size("ten").is_err() && size("k").is_err());
    }
}
