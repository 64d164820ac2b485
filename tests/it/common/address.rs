//! The address of a proxy that chose its own port.

use std::net::SocketAddr;

/// Finds the address in the log, which may be JSON. `None`: the proxy does not serve yet.
pub(crate) fn served_at(log: &str) -> Option<SocketAddr> {
    let line = log.split_inclusive('\n').find(|line| line.contains("serving ") && line.ends_with('\n'))?;
    let (_, rest) = line.split_once("://127.0.0.1:")?;
    let port = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?)))
}
