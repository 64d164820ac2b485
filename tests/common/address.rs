//! Where a proxy serves that was left to choose its port.

use std::net::SocketAddr;

/// The address in its log, which may be JSON; `None`: it does not serve yet.
pub fn served_at(log: &str) -> Option<SocketAddr> {
    let line = log.split_inclusive('\n').find(|line| line.contains("serving ") && line.ends_with('\n'))?;
    let (_, rest) = line.split_once("://127.0.0.1:")?;
    let port = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    Some(SocketAddr::from(([127, 0, 0, 1], port.parse().ok()?)))
}
