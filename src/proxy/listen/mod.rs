//! The listener: accepts connections until the stop signal, then lets requests in flight finish.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::context::ServerState;
use super::maintenance::{expiry, foreign_changes};
use super::options::ProxyOptions;
use crate::store::Store;
use connection::serve_connection;
use peer::Port;

mod connection;
pub(super) mod peer;
pub mod tls;

/// How often rate limits without an effect are removed.
const PRUNE_INTERVAL: Duration = Duration::from_secs(60);
/// Wait after a failed accept, such as for want of file descriptors.
const ACCEPT_RETRY: Duration = Duration::from_millis(50);

/// Serves `store` on `listener` until `shutdown` is ready, then lets requests in flight finish.
///
/// # Errors
/// `InvalidInput` for an empty token or an invalid address of the verifier. The error of a connection is logged and ends
/// only that connection.
pub async fn serve<S: Store>(
    listener: TcpListener,
    store: Arc<S>,
    options: ProxyOptions,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let (stop, stopping) = watch::channel(false);
    let state = Arc::new(ServerState::new(store, options, stopping)?);
    let maintenance = start_maintenance(&state).await;
    let mut connections = JoinSet::new();
    tokio::select! {
        biased;
        () = shutdown => {}
        // It never returns. A flood of connections must not keep it from running.
        () = state.auth.keys.refresh_for_leases() => {}
        () = accept_all(&state, listener, &mut connections) => {}
    }
    stop.send_replace(true);
    let finish = async {
        while connections.join_next().await.is_some() {}
        // The store can be closed only when nothing uses it any more.
        state.auth.keys.finish().await;
        for (name, task) in maintenance {
            if let Err(e) = task.await {
                tracing::error!("the proxy's task for {name} failed: {e}");
            }
        }
    };
    if tokio::time::timeout(state.options.stop_timeout, finish).await.is_err() {
        tracing::warn!(connections = connections.len(), "stopping before all requests are finished");
        connections.shutdown().await;
    }
    Ok(())
}

/// Starts the tasks that run beside the requests, each with its name for the log.
async fn start_maintenance<S: Store>(state: &Arc<ServerState<S>>) -> [(&'static str, JoinHandle<()>); 2] {
    let (store, stopping) = (state.store.clone(), state.stopping.clone());
    // The clock is checked before the first write: a new store needs no hour of steady time.
    let clock = expiry::start_clock(&store).await;
    let expiry = tokio::spawn(expiry::run(store.clone(), clock, stopping.clone()));
    let interval = state.options.foreign_poll_interval;
    let polling = tokio::spawn(foreign_changes::run(store, state.listeners.clone(), interval, stopping));
    [("expiry", expiry), ("changes of other proxies", polling)]
}

/// Accepts connections and serves each in a task of `connections`. Never returns. Dropping it closes the listener.
async fn accept_all<S: Store>(state: &Arc<ServerState<S>>, listener: TcpListener, connections: &mut JoinSet<()>) {
    let limits = &state.limits;
    let metrics_listener = state.options.metrics_listener.as_deref();
    let mut prune = tokio::time::interval(PRUNE_INTERVAL);
    loop {
        let (accepted, port) = tokio::select! {
            biased;
            // Keeps the set from growing with connections that have ended.
            Some(ended) = connections.join_next() => {
                if let Err(e) = ended {
                    tracing::error!("a connection failed: {e}");
                }
                continue;
            }
            _ = prune.tick() => {
                limits.rates.prune();
                continue;
            }
            accepted = accept(metrics_listener, &limits.metrics_connections) => (accepted, Port::Metrics),
            accepted = accept(Some(&listener), &limits.connections) => (accepted, Port::Main),
        };
        let (stream, address, permit) = accepted;
        let state = state.clone();
        connections.spawn(async move {
            serve_connection(state, stream, address, port).await;
            drop(permit);
        });
    }
}

/// The next connection, once there is a permit for it. Never returns without a listener. Cancel safe.
async fn accept(
    listener: Option<&TcpListener>,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let Some(listener) = listener else { return std::future::pending().await };
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else {
            // The semaphore is never closed.
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(e) => {
                tracing::warn!("a connection could not be accepted: {e}");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}
