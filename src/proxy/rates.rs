//! [`Rates`]: how often one caller may ask, and one address may fail to show a valid token.
//!
//! While an address is barred its tokens are not looked at, or guessing would go on at full speed. Tokens that were
//! right from that address before are let through all the same: others behind the same router or reverse proxy keep
//! working while one of them guesses. A right token that was never shown from there waits for a few seconds.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

use super::strangers::Address;

type Keyed<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// How long a token that was right is remembered for the address it came from.
const MEMORY: Duration = Duration::from_secs(24 * 3600);
/// Most addresses and tokens remembered.
const MOST: usize = 10_000;

/// Who asks: the name of the key that was shown.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Caller(pub Arc<str>);

/// The limits of one proxy.
pub struct Rates {
    callers: Option<Keyed<Caller>>,
    failures: Keyed<Address>,
    addresses: Mutex<Addresses>,
}

#[derive(Default)]
struct Addresses {
    barred: HashMap<Address, Instant>,
    /// Tokens (as hashes) that were right, and until when that counts.
    trusted: HashMap<(Address, blake3::Hash), Instant>,
}

impl Rates {
    /// `rate`: requests a second of one caller. `failures`: attempts a minute of one address.
    pub fn new(rate: Option<NonZeroU32>, failures: NonZeroU32) -> Self {
        Self {
            callers: rate.map(|rate| RateLimiter::hashmap(Quota::per_second(rate))),
            failures: RateLimiter::hashmap(Quota::per_minute(failures)),
            addresses: Mutex::default(),
        }
    }

    fn addresses(&self) -> MutexGuard<'_, Addresses> {
        // The maps are changed in single steps.
        self.addresses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long `address` must wait before this token is looked at; `None`: now.
    pub fn barred(&self, address: Address, token: &blake3::Hash) -> Option<Duration> {
        let mut addresses = self.addresses();
        let until = *addresses.barred.get(&address)?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            addresses.barred.remove(&address);
            return None;
        }
        (!addresses.trusted.contains_key(&(address, *token))).then_some(left)
    }

    /// A token from `address` was wrong; gives how long to wait, where that was once too often.
    fn failed(&self, address: Address) -> Option<Duration> {
        let wait = self.failures.check_key(&address).err()?.wait_time_from(DefaultClock::default().now());
        let mut addresses = self.addresses();
        if addresses.barred.len() < MOST {
            addresses.barred.insert(address, Instant::now() + wait);
        }
        Some(wait)
    }

    /// A token from `address` is about to be looked at. Who leaves before that is over counts as one whose token was
    /// wrong: else guessing would cost nothing to those who do not wait for the answer.
    pub fn attempt(&self, address: Address) -> Attempt<'_> {
        Attempt { rates: self, address, open: true }
    }

    /// A token from `address` was right.
    pub fn succeeded(&self, address: Address, token: blake3::Hash) {
        let (now, mut addresses) = (Instant::now(), self.addresses());
        let room = addresses.trusted.len() < MOST;
        match addresses.trusted.get_mut(&(address, token)) {
            Some(until) => *until = now + MEMORY,
            None if room => drop(addresses.trusted.insert((address, token), now + MEMORY)),
            None => {}
        }
    }

    /// Counts one request of `caller`; gives how long to wait, where that is one too many.
    pub fn too_fast(&self, caller: &Caller) -> Option<Duration> {
        let refused = self.callers.as_ref()?.check_key(caller).err()?;
        Some(refused.wait_time_from(DefaultClock::default().now()))
    }

    /// Forgets what makes no difference any more. To be called now and then.
    pub fn forget_old(&self) {
        self.failures.retain_recent();
        self.failures.shrink_to_fit();
        if let Some(callers) = &self.callers {
            callers.retain_recent();
            callers.shrink_to_fit();
        }
        let now = Instant::now();
        let mut addresses = self.addresses();
        addresses.barred.retain(|_, until| *until > now);
        addresses.trusted.retain(|_, until| *until > now);
    }
}

/// A token is being looked at.
pub struct Attempt<'a> {
    rates: &'a Rates,
    address: Address,
    open: bool,
}

impl Attempt<'_> {
    /// It was right, or nobody could tell.
    pub fn over(mut self) {
        self.open = false;
    }

    /// It was wrong; gives how long to wait, where that was once too often.
    pub fn failed(mut self) -> Option<Duration> {
        self.open = false;
        self.rates.failed(self.address)
    }
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if self.open {
            self.rates.failed(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guessing_bars_the_address_but_no_token_that_was_right_there() {
        let rates = Rates::new(None, NonZeroU32::new(3).unwrap());
        let [here, there] = ["10.0.0.1", "10.0.0.2"].map(|ip| Address::of(ip.parse().unwrap()));
        let [right, other] = ["right", "other"].map(|token| blake3::hash(token.as_bytes()));
        rates.succeeded(here, right);
        for _ in 0..3 {
            assert_eq!(rates.failed(here), None);
        }
        assert_eq!(rates.barred(here, &other), None, "as many as are allowed");
        let wait = rates.failed(here).unwrap();
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(20), "{wait:?}");
        assert!(rates.barred(here, &other).is_some());
        assert_eq!(rates.barred(here, &right), None);
        assert!(rates.barred(here, &other).is_some(), "the right one does not lift it");
        assert_eq!(rates.barred(there, &other), None);
        rates.forget_old();
        assert!(rates.barred(here, &other).is_some());
        assert_eq!(rates.barred(here, &right), None);
    }

    #[test]
    fn who_leaves_before_the_answer_has_failed() {
        let rates = Rates::new(None, NonZeroU32::new(2).unwrap());
        let here = Address::of("10.0.0.1".parse().unwrap());
        let other = blake3::hash(b"other");
        for _ in 0..5 {
            rates.attempt(here).over();
        }
        drop((rates.attempt(here), rates.attempt(here)));
        assert_eq!(rates.barred(here, &other), None, "as many as are allowed");
        drop(rates.attempt(here));
        assert!(rates.barred(here, &other).is_some());
    }

    #[test]
    fn a_caller_has_its_rate_and_no_other_pays_for_it() {
        let rates = Rates::new(NonZeroU32::new(2), NonZeroU32::MIN);
        let [a, b] = ["a", "b"].map(|name| Caller(name.into()));
        assert!(rates.too_fast(&a).is_none() && rates.too_fast(&a).is_none());
        assert!(rates.too_fast(&a).unwrap() <= Duration::from_millis(500));
        assert!(rates.too_fast(&b).is_none());
        let none = Rates::new(None, NonZeroU32::MIN);
        assert!((0..1000).all(|_| none.too_fast(&a).is_none()));
    }
}
