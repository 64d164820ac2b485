//! [`RateLimits`]: requests of each caller, and invalid tokens from each network address.
//!
//! A blocked address cannot have its tokens checked, or guessing would go on at full speed. Tokens that were valid from
//! that address before still pass, so one guesser does not stop others behind the same router or reverse proxy. A valid
//! token that is new there waits for a few seconds.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;

use super::connections::NetworkAddress;

type KeyedLimiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// How long a token stays trusted at an address after its last valid use.
const TRUST_PERIOD: Duration = Duration::from_secs(24 * 3600);
const MAX_BLOCKED_ADDRESSES: usize = 10_000;
const MAX_TRUSTED_TOKENS: usize = 10_000;

pub(crate) struct RateLimits {
    /// By the caller's id. `None`: no limit.
    requests: Option<KeyedLimiter<String>>,
    failures: KeyedLimiter<NetworkAddress>,
    addresses: Mutex<AddressTable>,
}

#[derive(Default)]
struct AddressTable {
    blocked_until: HashMap<NetworkAddress, Instant>,
    /// Hashes of tokens that were valid from an address, with the end of the trust.
    trusted: HashMap<(NetworkAddress, blake3::Hash), Instant>,
}

impl RateLimits {
    /// `requests`: a second, of one caller. `failures`: a minute, from one address.
    pub(crate) fn new(requests: Option<NonZeroU32>, failures: NonZeroU32) -> Self {
        Self {
            requests: requests.map(|rate| RateLimiter::hashmap(Quota::per_second(rate))),
            failures: RateLimiter::hashmap(Quota::per_minute(failures)),
            addresses: Mutex::default(),
        }
    }

    /// How long `address` must wait before this token is checked. `None`: not at all.
    pub(crate) fn blocked_for(&self, address: NetworkAddress, token: &blake3::Hash) -> Option<Duration> {
        let mut addresses = self.addresses.lock();
        let until = *addresses.blocked_until.get(&address)?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            addresses.blocked_until.remove(&address);
            return None;
        }
        (!addresses.trusted.contains_key(&(address, *token))).then_some(left)
    }

    /// Begins the check of a token. It counts as failed unless it is settled, so that hanging up before the answer
    /// saves a guesser nothing.
    pub(crate) fn begin_attempt(&self, address: NetworkAddress) -> TokenAttempt<'_> {
        TokenAttempt { rates: self, address, is_open: true }
    }

    /// Counts an invalid token. Gives how long the address is blocked, if that was one too many.
    fn record_failure(&self, address: NetworkAddress) -> Option<Duration> {
        let wait = self.failures.check_key(&address).err()?.wait_time_from(DefaultClock::default().now());
        let mut addresses = self.addresses.lock();
        if addresses.blocked_until.len() < MAX_BLOCKED_ADDRESSES {
            addresses.blocked_until.insert(address, Instant::now() + wait);
        }
        Some(wait)
    }

    /// Trusts a valid token at this address from now on.
    pub(crate) fn trust(&self, address: NetworkAddress, token: blake3::Hash) {
        let (until, mut addresses) = (Instant::now() + TRUST_PERIOD, self.addresses.lock());
        let has_room = addresses.trusted.len() < MAX_TRUSTED_TOKENS;
        match addresses.trusted.get_mut(&(address, token)) {
            Some(end) => *end = until,
            None if has_room => drop(addresses.trusted.insert((address, token), until)),
            None => {}
        }
    }

    /// Counts a request of the caller with this id. Gives how long to wait, if it was one too many.
    pub(crate) fn check_request(&self, caller: &String) -> Option<Duration> {
        let refused = self.requests.as_ref()?.check_key(caller).err()?;
        Some(refused.wait_time_from(DefaultClock::default().now()))
    }

    /// Removes entries that have no effect any more. To be called now and then.
    pub(crate) fn prune(&self) {
        self.failures.retain_recent();
        self.failures.shrink_to_fit();
        if let Some(requests) = &self.requests {
            requests.retain_recent();
            requests.shrink_to_fit();
        }
        let now = Instant::now();
        let mut addresses = self.addresses.lock();
        addresses.blocked_until.retain(|_, until| *until > now);
        addresses.trusted.retain(|_, until| *until > now);
    }
}

/// The check of one token.
pub(crate) struct TokenAttempt<'a> {
    rates: &'a RateLimits,
    address: NetworkAddress,
    is_open: bool,
}

impl TokenAttempt<'_> {
    /// The token is valid, or its check failed for another reason.
    pub(crate) fn settle(mut self) {
        self.is_open = false;
    }

    /// The token is invalid. Gives how long the address is blocked, if that was one too many.
    pub(crate) fn fail(mut self) -> Option<Duration> {
        self.is_open = false;
        self.rates.record_failure(self.address)
    }
}

impl Drop for TokenAttempt<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.rates.record_failure(self.address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocked_address_may_use_its_trusted_tokens() {
        let rates = RateLimits::new(None, NonZeroU32::new(3).unwrap());
        let [here, there] = ["10.0.0.1", "10.0.0.2"].map(|ip| NetworkAddress::of(ip.parse().unwrap()));
        let [valid, other] = ["valid", "other"].map(|token| blake3::hash(token.as_bytes()));
        rates.trust(here, valid);
        for _ in 0..3 {
            assert_eq!(rates.record_failure(here), None);
        }
        assert_eq!(rates.blocked_for(here, &other), None, "as many as are allowed");
        let wait = rates.record_failure(here).unwrap();
        assert!(wait > Duration::from_secs(1) && wait <= Duration::from_secs(20), "{wait:?}");
        assert!(rates.blocked_for(here, &other).is_some());
        assert_eq!(rates.blocked_for(here, &valid), None);
        assert!(rates.blocked_for(here, &other).is_some(), "a valid token does not lift the block");
        assert_eq!(rates.blocked_for(there, &other), None);
        rates.prune();
        assert!(rates.blocked_for(here, &other).is_some());
        assert_eq!(rates.blocked_for(here, &valid), None);
    }

    #[test]
    fn attempt_that_is_dropped_counts_as_failed() {
        let rates = RateLimits::new(None, NonZeroU32::new(2).unwrap());
        let here = NetworkAddress::of("10.0.0.1".parse().unwrap());
        let other = blake3::hash(b"other");
        for _ in 0..5 {
            rates.begin_attempt(here).settle();
        }
        drop((rates.begin_attempt(here), rates.begin_attempt(here)));
        assert_eq!(rates.blocked_for(here, &other), None, "as many as are allowed");
        drop(rates.begin_attempt(here));
        assert!(rates.blocked_for(here, &other).is_some());
    }

    #[test]
    fn callers_have_separate_request_rates() {
        let rates = RateLimits::new(NonZeroU32::new(2), NonZeroU32::MIN);
        let [a, b] = ["a", "b"].map(str::to_owned);
        assert!(rates.check_request(&a).is_none() && rates.check_request(&a).is_none());
        assert!(rates.check_request(&a).unwrap() <= Duration::from_millis(500));
        assert!(rates.check_request(&b).is_none());
        let unlimited = RateLimits::new(None, NonZeroU32::MIN);
        assert!((0..1000).all(|_| unlimited.check_request(&a).is_none()));
    }
}
