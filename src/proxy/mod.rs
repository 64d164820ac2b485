//! The Memory Proxy: [`serve`] answers both dialects over any [`Store`].
//!
//! It parses, authenticates, limits and answers; every decision about content is the store's. It opens no
//! ports and listens to no signals: the caller owns both. Each request is logged once, at level info, under the
//! target `memsync::access`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use crate::store::Store;

mod answer;
mod blobs;
mod chores;
mod events;
mod index;
mod namespaced;
mod patience;
mod route;
mod versions;

use patience::{Patience, Patient};

/// Limits and secrets of a proxy.
#[derive(Debug, Clone)]
pub struct Options {
    /// What callers must show as `Authorization: Bearer`.
    pub token: SecretString,
    /// Longest body taken, in bytes.
    pub max_body: u64,
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
    /// How often an event stream that has nothing to say shows that it lives.
    pub heartbeat: Duration,
}

impl Options {
    /// The defaults, with this token.
    pub fn new(token: SecretString) -> Self {
        Self {
            token,
            max_body: 64 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            body_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(8),
            max_connections: 4096,
            heartbeat: Duration::from_secs(15),
        }
    }
}

/// What all requests share.
struct Proxy<S> {
    store: Arc<S>,
    /// Hashes of equal length compare in constant time, which tokens would not.
    token: blake3::Hash,
    options: Options,
    index: index::Cache,
    /// Becomes true once, when the proxy stops.
    stopping: watch::Receiver<bool>,
}

/// Serves `store` on `listener` until `shutdown` is ready, then lets requests in flight finish.
///
/// # Errors
/// `InvalidInput` for an empty token. Errors of single connections are logged and end only those.
pub async fn serve<S: Store>(
    listener: TcpListener,
    store: Arc<S>,
    options: Options,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    if options.token.expose_secret().is_empty() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the proxy's token is empty"));
    }
    let (stop, stopping) = watch::channel(false);
    let room = Arc::new(Semaphore::new(options.max_connections));
    let stop_timeout = options.stop_timeout;
    let proxy = Arc::new(Proxy {
        store,
        token: blake3::hash(options.token.expose_secret().as_bytes()),
        options,
        index: index::Cache::default(),
        stopping,
    });

    let mut connections = JoinSet::new();
    let chores = tokio::spawn(chores::run(proxy.clone()));
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            // Keeps the set from growing with connections that are over.
            Some(ended) = connections.join_next() => {
                if let Err(e) = ended {
                    tracing::error!("a connection ended in a bug: {e}");
                }
            }
            (stream, peer, permit) = accept(&listener, &room) => {
                connections.spawn(connection(proxy.clone(), stream, peer, permit));
            }
        }
    }
    drop(listener);
    stop.send_replace(true);
    let all = async {
        while connections.join_next().await.is_some() {}
        // The store is let go only when nothing works on it any more.
        if let Err(e) = chores.await {
            tracing::error!("the proxy's chores ended in a bug: {e}");
        }
    };
    if tokio::time::timeout(stop_timeout, all).await.is_err() {
        tracing::warn!(connections = connections.len(), "stopping with requests unfinished");
        connections.shutdown().await;
    }
    Ok(())
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

async fn connection<S: Store>(
    proxy: Arc<Proxy<S>>,
    stream: TcpStream,
    peer: SocketAddr,
    _permit: OwnedSemaphorePermit,
) {
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%peer, "TCP_NODELAY: {e}");
    }
    let options = &proxy.options;
    let patience = Arc::new(Patience::new(options.head_timeout));
    let io = TokioIo::new(Patient::new(stream, patience.clone(), options.body_timeout));
    let service = {
        let proxy = proxy.clone();
        service_fn(move |request| {
            let (proxy, patience) = (proxy.clone(), patience.clone());
            Box::pin(async move {
                patience.head_has_come();
                let answer = route::respond(&proxy, request).await;
                patience.head_may_come();
                Ok::<_, std::convert::Infallible>(answer)
            })
        })
    };
    let mut stopping = proxy.stopping.clone();
    // For hyper the head's time includes the idle time before it; `Patient` holds the head itself to its limit.
    let mut served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_buf_size(256 * 1024)
        .serve_connection(io, service);
    let mut stopped = false;
    let outcome = loop {
        tokio::select! {
            outcome = std::future::poll_fn(|cx| served.poll_without_shutdown(cx)) => break outcome,
            _ = stopping.wait_for(|stop| *stop), if !stopped => {
                stopped = true;
                std::pin::Pin::new(&mut served).graceful_shutdown();
            }
        }
    };
    match outcome {
        Ok(()) => linger(served.into_parts().io.into_inner().into_inner(), &mut stopping).await,
        Err(e) => tracing::debug!(%peer, "connection ended: {e}"),
    }
}

/// Closes our side and reads off what the peer still sends, for a moment: closing with unread bytes would
/// reset the connection and could take away an early refusal (401, 413) before the peer has read it.
async fn linger(mut stream: TcpStream, stopping: &mut watch::Receiver<bool>) {
    const AT_MOST: Duration = Duration::from_secs(5);
    if stream.shutdown().await.is_err() {
        return;
    }
    let drain = async {
        let mut sink = vec![0; 64 * 1024];
        while matches!(stream.read(&mut sink).await, Ok(n) if n > 0) {}
    };
    tokio::select! {
        _ = tokio::time::timeout(AT_MOST, drain) => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}
