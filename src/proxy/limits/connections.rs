//! Open connections: those without a valid token, and those of each caller. [`NameCounts`]: how many of something each name
//! has.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The unit by which limits count peers: an IPv4 address, or the /64 network that an IPv6 customer gets at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NetworkAddress(IpAddr);

impl NetworkAddress {
    pub(crate) fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => Self(Ipv6Addr::from(u128::from(ip) >> 64 << 64).into()),
            v4 => Self(v4),
        }
    }
}

/// The open connections whose peer has not shown a valid token yet.
///
/// An honest newcomer looks like any other peer, so a plain cap would let silent peers lock it out. A connection beyond
/// a limit is accepted, and the oldest one is closed instead.
pub(crate) struct UnauthenticatedConnections {
    max: usize,
    max_per_address: usize,
    open: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    next_number: u64,
    /// In order of arrival, each with its signal to close.
    by_number: BTreeMap<u64, (NetworkAddress, Arc<Notify>)>,
}

impl UnauthenticatedConnections {
    /// Both limits are at least 1.
    pub(crate) fn new(max: usize, max_per_address: usize) -> Arc<Self> {
        Arc::new(Self { max: max.max(1), max_per_address: max_per_address.max(1), open: Mutex::default() })
    }

    /// Adds a connection. Closes the oldest one if a limit is exceeded.
    pub(crate) fn enter(self: &Arc<Self>, address: NetworkAddress) -> UnauthenticatedSlot {
        let mut open = self.open.lock();
        let mut of_address = open.by_number.iter().filter(|(_, (other, _))| *other == address).map(|(n, _)| *n);
        let oldest_of_address = of_address.next();
        let oldest = if oldest_of_address.is_some() && of_address.count() + 1 >= self.max_per_address {
            oldest_of_address
        } else if open.by_number.len() >= self.max {
            open.by_number.keys().next().copied()
        } else {
            None
        };
        if let Some((_, close)) = oldest.and_then(|number| open.by_number.remove(&number)) {
            close.notify_one();
        }
        let (number, close) = (open.next_number, Arc::new(Notify::new()));
        open.next_number += 1;
        open.by_number.insert(number, (address, close.clone()));
        UnauthenticatedSlot { connections: self.clone(), number, close }
    }
}

/// A connection in [`UnauthenticatedConnections`], until it is dropped or released.
pub(crate) struct UnauthenticatedSlot {
    connections: Arc<UnauthenticatedConnections>,
    number: u64,
    close: Arc<Notify>,
}

impl UnauthenticatedSlot {
    /// The peer has shown a valid token. The connection will not be closed for others.
    pub(crate) fn release(&self) {
        self.connections.open.lock().by_number.remove(&self.number);
    }

    /// Returns when the connection must close to make room for another.
    pub(crate) async fn closed(&self) {
        self.close.notified().await;
    }
}

impl Drop for UnauthenticatedSlot {
    fn drop(&mut self) {
        self.release();
    }
}

/// How many of something each name has, such as open connections of each caller.
#[derive(Default)]
pub(crate) struct NameCounts(Mutex<HashMap<String, usize>>);

impl NameCounts {
    /// Counts one more for `name`. `None`: it has `max` already.
    pub(crate) fn enter(self: &Arc<Self>, name: &str, max: usize) -> Option<NameSlot> {
        let mut counts = self.0.lock();
        let count = counts.get(name).copied().unwrap_or(0);
        if count >= max {
            return None;
        }
        counts.insert(name.to_owned(), count + 1);
        Some(NameSlot { counts: self.clone(), name: name.to_owned() })
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}

/// One of those counted, until it is dropped.
pub(crate) struct NameSlot {
    counts: Arc<NameCounts>,
    pub name: String,
}

impl Drop for NameSlot {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock();
        if let Some(count) = counts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn address(text: &str) -> NetworkAddress {
        NetworkAddress::of(text.parse().unwrap())
    }

    fn is_closed(slot: &UnauthenticatedSlot) -> bool {
        slot.closed().now_or_never().is_some()
    }

    #[test]
    fn oldest_unauthenticated_connection_is_closed() {
        let all = UnauthenticatedConnections::new(3, 2);
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let (first, second) = (all.enter(b), all.enter(a));
        let third = all.enter(a);
        assert!(!is_closed(&first) && !is_closed(&second));
        let fourth = all.enter(a);
        assert!(is_closed(&second), "the oldest of the same address");
        let fifth = all.enter(address("10.0.0.3"));
        assert!(is_closed(&first), "the oldest of all");
        third.release();
        drop(fourth);
        let more: Vec<_> = (4..6).map(|n| all.enter(address(&format!("10.0.0.{n}")))).collect();
        assert!(!is_closed(&third) && !is_closed(&fifth) && !is_closed(&more[0]), "no limit was exceeded");
        drop((fifth, more, first, second, third));
        assert!(all.open.lock().by_number.is_empty());
    }

    #[test]
    fn addresses_of_one_ipv6_network_count_as_one() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }

    #[test]
    fn callers_are_limited_separately() {
        let callers = Arc::new(NameCounts::default());
        let (one, two) = (callers.enter("a", 2), callers.enter("a", 2));
        assert!(one.is_some() && two.is_some() && callers.enter("a", 2).is_none());
        let other = callers.enter("b", 2);
        assert!(other.is_some());
        drop(one);
        assert!(callers.enter("a", 2).is_some());
        drop((two, other));
        assert!(callers.names().is_empty(), "callers without connections are removed");
    }
}
