//! The Memory Proxy: [`serve`] answers both dialects over any [`Store`].
//!
//! It parses, authenticates, limits and answers; every decision about content is the store's. It opens no
//! ports and listens to no signals: the caller owns both. Each request is logged once, at level info, under the
//! target `memsync::access`.

use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::store::Store;

mod answer;
mod auth;
mod batch;
mod blobs;
mod callers;
mod chores;
mod clock;
mod conditions;
mod connection;
mod elsewhere;
mod encoding;
mod events;
mod health;
mod index;
pub mod keys;
mod memory;
mod metrics;
mod namespaced;
mod patience;
mod quota;
mod rates;
mod route;
mod strangers;
pub mod tls;
mod verifier;
mod versions;

pub use verifier::VerifierOptions;

use auth::Auth;
use callers::Callers;
use connection::{Door, connection};
use memory::Memory;
use metrics::Metrics;
use rates::Rates;
use strangers::Strangers;
use tls::Tls;

/// Connections for metrics alone that are served at once.
const METRICS_CONNECTIONS: usize = 8;
/// How often rates that make no difference any more are forgotten.
const SWEEP: Duration = Duration::from_secs(60);

/// Limits and secrets of a proxy.
#[derive(Debug, Clone)]
pub struct Options {
    /// A token that opens everything, as `Authorization: Bearer`. The store's keys may call besides.
    pub token: Option<SecretString>,
    /// Who is asked about tokens that are neither.
    pub verifier: Option<VerifierOptions>,
    /// How long a change of the store's keys may go unnoticed.
    pub keys_fresh: Duration,
    /// Longest body taken, in bytes.
    pub max_body: u64,
    /// Bytes of memory that all bodies in flight share, requests and answers. One key may hold a quarter of it.
    pub body_memory: u64,
    /// How long a request's head may take once it has begun, and how long a new connection may say nothing.
    pub head_timeout: Duration,
    /// How long a connection may idle between requests.
    pub idle_timeout: Duration,
    /// How long the next piece of a body, in either direction, may keep us waiting.
    pub body_timeout: Duration,
    /// How long requests in flight may go on after the stop signal.
    pub stop_timeout: Duration,
    /// Connections served at once; further ones wait to be accepted.
    pub max_connections: usize,
    /// Of these, connections that have not shown a valid token yet. Beyond it the one that has been here longest has
    /// to go, so that newcomers always get their chance.
    pub max_strangers: usize,
    /// The same for one address (of IPv6: one /64).
    pub max_strangers_per_address: usize,
    /// Connections of one caller (one key), but for the token that opens everything.
    pub max_connections_per_caller: usize,
    /// Requests a second that one caller (one key) may make; `None`: any number.
    pub rate: Option<NonZeroU32>,
    /// Tokens a minute that one address may show and that are not valid.
    pub failed_attempts: NonZeroU32,
    /// Where `/metrics` is answered in plain HTTP and without a token, and nothing else; without it they are answered
    /// beside the rest, to whoever has a token.
    pub metrics_listener: Option<Arc<TcpListener>>,
    /// Less free space than this many bytes is a warning of `/health`.
    pub low_space: u64,
    /// TLS; without it plain HTTP is spoken.
    pub tls: Option<Tls>,
    /// How often an event stream that has nothing to say shows that it lives.
    pub heartbeat: Duration,
    /// How often a store that other proxies write to as well is asked for their changes, while somebody listens.
    pub look_elsewhere: Duration,
}

impl Options {
    /// The defaults, with this token.
    pub fn new(token: SecretString) -> Self {
        Self { token: Some(token), ..Self::default() }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            token: None,
            verifier: None,
            keys_fresh: Duration::from_secs(1),
            max_body: 64 * 1024 * 1024,
            body_memory: 192 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(8),
            max_connections: 4096,
            max_strangers: 1024,
            max_strangers_per_address: 64,
            max_connections_per_caller: 1024,
            rate: None,
            failed_attempts: const { NonZeroU32::new(20).expect("not zero") },
            metrics_listener: None,
            low_space: 512 << 20,
            tls: None,
            heartbeat: Duration::from_secs(15),
            look_elsewhere: Duration::from_millis(1500),
        }
    }
}

/// What all requests share.
struct Proxy<S> {
    store: Arc<S>,
    auth: Auth<S>,
    quotas: Arc<quota::Quotas>,
    checkup: health::Checkup,
    memory: Memory,
    encoders: encoding::Encoders,
    options: Options,
    index: index::Cache,
    listened: Arc<elsewhere::Listened>,
    strangers: Arc<Strangers>,
    callers: Arc<Callers>,
    rates: Rates,
    metrics: Arc<Metrics>,
    /// Becomes true once, when the proxy stops.
    stopping: watch::Receiver<bool>,
}

/// Serves `store` on `listener` until `shutdown` is ready, then lets requests in flight finish.
///
/// # Errors
/// `InvalidInput` for an empty token or a verifier's address that is none. Errors of single connections are logged and
/// end only those.
pub async fn serve<S: Store>(
    listener: TcpListener,
    store: Arc<S>,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let auth = Auth::new(&options, store.clone());
    let auth = auth.map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why))?;
    let (stop, stopping) = watch::channel(false);
    let room = Arc::new(Semaphore::new(options.max_connections));
    let stop_timeout = options.stop_timeout;
    let proxy = Arc::new(Proxy {
        store,
        auth,
        quotas: Arc::default(),
        checkup: health::Checkup::default(),
        memory: Memory::new(options.body_memory),
        encoders: encoding::Encoders::default(),
        index: index::Cache::default(),
        listened: Arc::default(),
        rates: Rates::new(options.rate, options.failed_attempts),
        metrics: Metrics::new(),
        callers: Callers::new(options.max_connections_per_caller),
        strangers: Strangers::new(options.max_strangers, options.max_strangers_per_address),
        options,
        stopping,
    });

    let mut connections = JoinSet::new();
    // A place of their own, so that whoever watches sees how it is when all others are taken.
    let metrics_room = Arc::new(Semaphore::new(METRICS_CONNECTIONS));
    let metrics_listener = proxy.options.metrics_listener.clone();
    let mut sweep = tokio::time::interval(SWEEP);
    // A store without a file shows that it is new only before the first file comes.
    let clock = chores::look_at_clock(&proxy.store).await;
    let chores = tokio::spawn(chores::run(proxy.clone(), clock));
    let looking = tokio::spawn(elsewhere::look(proxy.clone()));
    let auth = proxy.clone();
    let tending = async move { auth.auth.tend().await };
    tokio::pin!(shutdown, tending);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            // It never ends, and must not begin anew with each connection.
            () = &mut tending => {}
            // Keeps the set from growing with connections that are over.
            Some(ended) = connections.join_next() => {
                if let Err(e) = ended {
                    tracing::error!("a connection ended in a bug: {e}");
                }
            }
            _ = sweep.tick() => proxy.rates.forget_old(),
            (stream, peer, permit) = accept_metrics(metrics_listener.as_deref(), &metrics_room) => {
                connections.spawn(connection(proxy.clone(), stream, peer, Door::Metrics, permit));
            }
            (stream, peer, permit) = accept(&listener, &room) => {
                connections.spawn(connection(proxy.clone(), stream, peer, Door::Main, permit));
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async {
        while connections.join_next().await.is_some() {}
        // The store is let go only when nothing works on it any more.
        proxy.auth.finish().await;
        for (what, task) in [("chores", chores), ("looking for what others write", looking)] {
            if let Err(e) = task.await {
                tracing::error!("the proxy's {what} ended in a bug: {e}");
            }
        }
    };
    if tokio::time::timeout(stop_timeout, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "stopping with requests unfinished");
        connections.shutdown().await;
    }
    Ok(())
}

/// The next connection for the metrics alone, where they have a listener.
async fn accept_metrics(
    listener: Option<&TcpListener>,
    room: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    match listener {
        Some(listener) => accept(listener, room).await,
        None => std::future::pending().await,
    }
}

/// The next connection, once there is room for it. Cancelling it loses none.
async fn accept(listener: &TcpListener, room: &Arc<Semaphore>) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = room.clone().acquire_owned().await else {
            // The semaphore is never closed.
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(e) => {
                // Out of descriptors, or a peer that went at once: neither ends the proxy.
                tracing::warn!("no connection could be accepted: {e}");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
