//! One connection: TLS if it is spoken, its requests in turn, and its end.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::peer::{Peer, Port, TimedStream};
use super::tls::OpenStream;
use crate::proxy::context::ServerState;
use crate::proxy::limits::connections::NetworkAddress;
use crate::proxy::metrics::GaugeGuard;
use crate::proxy::response::EndlessResponse;
use crate::proxy::routes::respond;
use crate::store::Store;

/// Most bytes of a request's head, and of a body that are read at once.
const BUFFER_BYTES: usize = 64 * 1024;
/// How long the rest of a request is read after the response to it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves `stream` until either side ends it.
pub(super) async fn serve_connection<S: Store>(
    state: Arc<ServerState<S>>,
    stream: TcpStream,
    from: SocketAddr,
    port: Port,
) {
    let _gauge = GaugeGuard::new(&state.metrics.connections);
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%from, "TCP_NODELAY cannot be set: {e}");
    }
    let slot = state.limits.unauthenticated.enter(NetworkAddress::of(from.ip()));
    let peer = Arc::new(Peer::new(from.ip(), port, slot));
    let mut stopping = state.stopping.clone();
    let stream = match state.options.tls.as_ref().filter(|_| port == Port::Main) {
        None => OpenStream::Plain(stream),
        Some(tls) => tokio::select! {
            opened = tls.accept(stream, state.options.head_timeout) => match opened {
                Ok(opened) => opened,
                Err(e) => return tracing::debug!(%from, "the TLS handshake failed: {e}"),
            },
            () = peer.unauthenticated.closed() => return,
            _ = stopping.wait_for(|stop| *stop) => return,
        },
    };
    // Boxed, so that a plain connection does not take the memory of an encrypted one.
    match stream {
        OpenStream::Plain(stream) => Box::pin(serve_requests(state, stream, from, peer)).await,
        OpenStream::Encrypted(stream) => Box::pin(serve_requests(state, *stream, from, peer)).await,
    }
}

async fn serve_requests<S: Store, T>(state: Arc<ServerState<S>>, stream: T, from: SocketAddr, peer: Arc<Peer>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let options = &state.options;
    let stream = TimedStream::new(stream, peer.clone(), state.metrics.clone(), options);
    let service = {
        let (state, peer) = (state.clone(), peer.clone());
        service_fn(move |request| {
            let (state, peer) = (state.clone(), peer.clone());
            Box::pin(async move {
                peer.begin_request();
                let response = respond(&state, &peer, request).await;
                peer.begin_response(response.extensions().get::<EndlessResponse>().is_some());
                Ok::<_, Infallible>(response)
            })
        })
    };
    let mut stopping = state.stopping.clone();
    // hyper counts the idle time before a head as part of it. `TimedStream` limits the head itself.
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut is_stopping = false;
    let outcome = {
        let mut closed = pin!(peer.unauthenticated.closed());
        loop {
            tokio::select! {
                outcome = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)) => break outcome,
                _ = stopping.wait_for(|stop| *stop), if !is_stopping => {
                    is_stopping = true;
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
                () = &mut closed => return tracing::debug!(%from, "closed to make room for a new connection"),
            }
        }
    };
    match outcome {
        Ok(()) => drain(connection.into_parts().io.into_inner().into_inner(), &mut stopping).await,
        Err(e) => tracing::debug!(%from, "connection ended: {e}"),
    }
}

/// Closes our side, and reads for a moment what the peer still sends. Closing with unread bytes would reset the
/// connection, and the peer could lose an early response (401, 413).
async fn drain(mut stream: impl AsyncRead + AsyncWrite + Unpin, stopping: &mut watch::Receiver<bool>) {
    let drain = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut buffer = vec![0; BUFFER_BYTES];
        while matches!(stream.read(&mut buffer).await, Ok(n) if n > 0) {}
    };
    tokio::select! {
        _ = tokio::time::timeout(DRAIN_TIMEOUT, drain) => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}
