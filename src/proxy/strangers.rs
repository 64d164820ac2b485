//! [`Strangers`]: connections whose peer has not shown a valid token yet. They must not take all places.
//!
//! Nobody is turned away at the door, where an honest newcomer looks like any other: when there are too many, the
//! stranger that has been here longest goes.

use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Who counts as one: an IPv4 address, or the network (/64) that one IPv6 customer gets at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address(IpAddr);

impl Address {
    pub fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V6(ip) => Self(Ipv6Addr::from(u128::from(ip) >> 64 << 64).into()),
            v4 => Self(v4),
        }
    }
}

/// All strangers of a proxy.
pub struct Strangers {
    most: usize,
    most_of_one: usize,
    present: Mutex<Present>,
}

#[derive(Default)]
struct Present {
    /// The number of the next one to come.
    next: u64,
    by_number: std::collections::BTreeMap<u64, (Address, Arc<Notify>)>,
    by_address: HashMap<Address, BTreeSet<u64>>,
}

impl Present {
    fn leave(&mut self, number: u64) -> Option<Arc<Notify>> {
        let (address, go) = self.by_number.remove(&number)?;
        if let Some(numbers) = self.by_address.get_mut(&address) {
            numbers.remove(&number);
            if numbers.is_empty() {
                self.by_address.remove(&address);
            }
        }
        Some(go)
    }
}

impl Strangers {
    /// At most `most` (at least 1), and `most_of_one` of one address.
    pub fn new(most: usize, most_of_one: usize) -> Arc<Self> {
        Arc::new(Self { most: most.max(1), most_of_one: most_of_one.max(1), present: Mutex::default() })
    }

    fn present(&self) -> MutexGuard<'_, Present> {
        // What it guards is changed in steps that cannot panic.
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another one has come; where that is one too many, the oldest is told to go.
    pub fn enter(self: &Arc<Self>, address: Address) -> Stranger {
        let mut present = self.present();
        let of_one = present.by_address.get(&address).filter(|numbers| numbers.len() >= self.most_of_one);
        let oldest = match of_one {
            Some(numbers) => numbers.first().copied(),
            None if present.by_number.len() >= self.most => present.by_number.keys().next().copied(),
            None => None,
        };
        if let Some(go) = oldest.and_then(|number| present.leave(number)) {
            go.notify_one();
        }
        let number = present.next;
        present.next += 1;
        let go = Arc::new(Notify::new());
        present.by_number.insert(number, (address, go.clone()));
        present.by_address.entry(address).or_default().insert(number);
        Stranger { all: self.clone(), number, go }
    }
}

/// One of them, until it is dropped or known.
pub struct Stranger {
    all: Arc<Strangers>,
    number: u64,
    go: Arc<Notify>,
}

impl Stranger {
    /// It is none any more, and will not be told to go.
    pub fn is_known(&self) {
        self.all.present().leave(self.number);
    }

    /// Ready when it has to make room for another.
    pub async fn has_to_go(&self) {
        self.go.notified().await;
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        self.is_known();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn address(text: &str) -> Address {
        Address::of(text.parse().unwrap())
    }

    fn told(stranger: &Stranger) -> bool {
        stranger.has_to_go().now_or_never().is_some()
    }

    #[test]
    fn the_oldest_makes_room() {
        let all = Strangers::new(3, 2);
        let (a, b) = (address("10.0.0.1"), address("10.0.0.2"));
        let (first, second) = (all.enter(b), all.enter(a));
        let third = all.enter(a);
        assert!(!told(&first) && !told(&second));
        let fourth = all.enter(a);
        assert!(told(&second), "the oldest of the same address");
        let fifth = all.enter(address("10.0.0.3"));
        assert!(told(&first), "the oldest of all");
        third.is_known();
        drop(fourth);
        let more: Vec<_> = (4..6).map(|n| all.enter(address(&format!("10.0.0.{n}")))).collect();
        assert!(!told(&third) && !told(&fifth) && !told(&more[0]), "there was room");
        drop((fifth, more, first, second, third));
        assert!(all.present().by_number.is_empty() && all.present().by_address.is_empty());
    }

    #[test]
    fn one_network_is_one_address() {
        assert_eq!(address("2001:db8::1"), address("2001:db8::ffff:1:2"));
        assert_ne!(address("2001:db8::1"), address("2001:db8:0:1::1"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
    }
}
