//! [`Peer`]: the other end of a connection, and the phase that the connection is in.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use parking_lot::Mutex;

use crate::proxy::auth::caller::Caller;
use crate::proxy::limits::connections::{NameCounts, NameSlot, NetworkAddress, UnauthenticatedSlot};

/// The port that a connection came in at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Port {
    Main,
    /// Plain HTTP without a token, for `/metrics` alone.
    Metrics,
}

/// Idle: waiting for the next request.
const IDLE: u8 = 0;
/// Receiving a request's head. A new connection starts here, as it must send one soon.
const HEAD: u8 = 1;
/// Answering a request. Its body has limits of its own.
const BUSY: u8 = 2;

/// The other end of a connection. The HTTP service sets the phase, and the stream below it reads the phase.
pub(crate) struct Peer {
    /// For the log.
    pub ip: IpAddr,
    pub address: NetworkAddress,
    pub port: Port,
    unauthenticated: UnauthenticatedSlot,
    is_authenticated: AtomicBool,
    /// The slot of the last caller. Behind a reverse proxy each request may have another one.
    caller: Mutex<Option<NameSlot>>,
    phase: AtomicU8,
    /// Requests so far.
    requests: AtomicU32,
    /// The current response has no end and no minimum speed.
    is_endless: AtomicBool,
}

impl Peer {
    pub(crate) fn new(ip: IpAddr, port: Port, unauthenticated: UnauthenticatedSlot) -> Self {
        Self {
            ip: ip.to_canonical(),
            address: NetworkAddress::of(ip),
            port,
            unauthenticated,
            is_authenticated: AtomicBool::new(false),
            caller: Mutex::default(),
            phase: AtomicU8::new(HEAD),
            requests: AtomicU32::new(0),
            is_endless: AtomicBool::new(false),
        }
    }

    /// Counts the connection as one of `caller`, who may have `max`. False: there are too many.
    pub(crate) fn enter_as(&self, caller: &Caller, callers: &Arc<NameCounts>, max: usize) -> bool {
        let mut slot = self.caller.lock();
        if !caller.is_limited() || slot.as_ref().is_some_and(|slot| slot.name == caller.id) {
            return true;
        }
        *slot = callers.enter(&caller.id, max);
        slot.is_some()
    }

    /// The peer has shown a valid token: it may idle from now on, and its connection is not closed for others.
    pub(crate) fn set_authenticated(&self) {
        if !self.is_authenticated.swap(true, Ordering::Relaxed) {
            self.unauthenticated.release();
        }
    }

    /// Returns when the connection must close to make room for another.
    pub(crate) async fn closed_for_others(&self) {
        self.unauthenticated.closed().await;
    }

    /// The head of a request is complete.
    pub(crate) fn begin_request(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The response begins. A peer without a valid token may not idle after it: its next head is due at once.
    pub(crate) fn begin_response(&self, is_endless: bool) {
        self.is_endless.store(is_endless, Ordering::Relaxed);
        let next = if self.is_authenticated.load(Ordering::Relaxed) { IDLE } else { HEAD };
        self.phase.store(next, Ordering::Relaxed);
    }

    /// Bytes came. While a request is answered they are its body, otherwise they begin a head. True for the latter.
    pub(crate) fn begin_head(&self) -> bool {
        self.phase.compare_exchange(IDLE, HEAD, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    pub(crate) fn is_in_head(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == HEAD
    }

    pub(crate) fn is_endless(&self) -> bool {
        self.is_endless.load(Ordering::Relaxed)
    }

    pub(crate) fn request_number(&self) -> u32 {
        self.requests.load(Ordering::Relaxed)
    }
}
