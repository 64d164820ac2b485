//! A relay between a device and its proxy. It spoils the proxy's events, and passes everything else on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::common::world::eventually;

/// The fate of the events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Push {
    /// The stream opens, and no event arrives.
    Withheld,
    /// Nothing arrives, not even the head of the answer.
    Silent,
    /// The stream ends in the middle of the first event.
    Cut,
    /// The request for the stream is held until [`Relay::release`].
    Late,
}

pub(crate) struct Relay {
    addr: SocketAddr,
    streams: Arc<AtomicUsize>,
    spoiled: Arc<AtomicUsize>,
    released: Arc<AtomicBool>,
}

impl Relay {
    /// Starts a relay to the proxy at this URL.
    pub(crate) fn start(proxy: &str, push: Push) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let relay = Self { addr, streams: Arc::default(), spoiled: Arc::default(), released: Arc::default() };
        let proxy = proxy.trim_start_matches("http://").to_owned();
        let counts = (relay.streams.clone(), relay.spoiled.clone(), relay.released.clone());
        // The thread ends with the test.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // While the proxy is away, the relay refuses as well.
                let Ok(server) = TcpStream::connect(&proxy) else { continue };
                pass(client, server, push, counts.clone());
            }
        });
        relay
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The number of requests for the stream of events.
    pub(crate) fn streams(&self) -> usize {
        self.streams.load(Ordering::SeqCst)
    }

    /// Lets requests for the stream pass from now on.
    pub(crate) fn release(&self) {
        self.released.store(true, Ordering::SeqCst);
    }

    /// The number of events that did not pass.
    pub(crate) fn spoiled(&self) -> usize {
        self.spoiled.load(Ordering::SeqCst)
    }
}

/// Passes data both ways, each in a thread.
fn pass(
    client: TcpStream,
    server: TcpStream,
    push: Push,
    (streams, spoiled, released): (Arc<AtomicUsize>, Arc<AtomicUsize>, Arc<AtomicBool>),
) {
    let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    // True: the last request on this connection was for the events.
    let events = Arc::new(AtomicBool::new(false));
    let asked = events.clone();
    thread::spawn(move || {
        carry(from_client, to_server, |piece| {
            // A request begins a piece, because the client waits for each answer.
            if piece.starts_with(b"GET /events") {
                asked.store(true, Ordering::SeqCst);
                streams.fetch_add(1, Ordering::SeqCst);
                if push == Push::Late {
                    eventually("the stream is let through", || released.load(Ordering::SeqCst));
                }
            }
            (piece.len(), true)
        });
    });
    thread::spawn(move || {
        carry(server, client, |piece| {
            let event = piece.windows(5).position(|w| w == b"\nid: ").filter(|_| events.load(Ordering::SeqCst));
            spoiled.fetch_add(usize::from(event.is_some()), Ordering::SeqCst);
            match (event, push) {
                (_, Push::Silent) if events.load(Ordering::SeqCst) => (0, true),
                (None, _) | (_, Push::Late | Push::Silent) => (piece.len(), true),
                (Some(_), Push::Withheld) => (0, true),
                (Some(at), Push::Cut) => (at, false),
            }
        });
    });
}

/// Copies data until one side ends. `let_through` decides how much of a piece passes, and whether to go on.
fn carry(mut from: TcpStream, mut to: TcpStream, mut let_through: impl FnMut(&[u8]) -> (usize, bool)) {
    let mut piece = [0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut piece) {
        let (passes, goes_on) = let_through(&piece[..n]);
        if to.write_all(&piece[..passes]).is_err() || !goes_on {
            break;
        }
    }
    // The other side may have disconnected already.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
