//! One connection: TLS where it is spoken, requests in turn, limits on its peer's patience, the end.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::auth::Caller;
use super::callers::{Callers, Place};
use super::metrics::Present;
use super::patience::{Endless, Patience, Patient};
use super::strangers::{Address, Stranger};
use super::tls::Opened;
use super::{Proxy, route};
use crate::store::Store;

/// Most bytes of a request's head that are held, and of a body that are read at once.
const BUFFER: usize = 64 * 1024;

/// Where a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Door {
    Main,
    /// Plain HTTP and no token, for `/metrics` alone.
    Metrics,
}

/// What is known of who is at the other end.
pub struct Peer {
    /// For the log.
    pub ip: IpAddr,
    pub address: Address,
    pub door: Door,
    pub patience: Patience,
    stranger: Stranger,
    /// Of the caller that showed a valid token last. Behind a reverse proxy that may be another one each time.
    place: Mutex<Option<Place>>,
}

impl Peer {
    /// Counts the connection as one of `caller`. False: it has as many as it may.
    pub fn is_let_in(&self, callers: &Arc<Callers>, caller: &Caller) -> bool {
        // Replaced whole, so a panic elsewhere cannot have damaged it.
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if !caller.is_limited() || place.as_ref().is_some_and(|place| place.caller == caller.id) {
            return true;
        }
        *place = callers.enter(&caller.id);
        place.is_some()
    }

    /// It has shown a valid token: from now on it may idle, and does not count as a stranger.
    pub fn is_known(&self) {
        if self.patience.is_known() {
            self.stranger.is_known();
        }
    }
}

/// Serves `stream` until either side ends it. Holds `_permit` as long.
pub async fn connection<S: Store>(
    proxy: Arc<Proxy<S>>,
    stream: TcpStream,
    from: SocketAddr,
    door: Door,
    _permit: OwnedSemaphorePermit,
) {
    let _open = Present::of(&proxy.metrics.connections);
    if let Err(e) = stream.set_nodelay(true) {
        tracing::debug!(%from, "TCP_NODELAY: {e}");
    }
    let address = Address::of(from.ip());
    let peer = Arc::new(Peer {
        ip: from.ip().to_canonical(),
        address,
        door,
        patience: Patience::new(proxy.options.head_timeout),
        stranger: proxy.strangers.enter(address),
        place: Mutex::default(),
    });
    let mut stopping = proxy.stopping.clone();
    let opened = match proxy.options.tls.as_ref().filter(|_| door == Door::Main) {
        None => Opened::Plain(stream),
        Some(tls) => tokio::select! {
            opened = tls.accept(stream, proxy.options.head_timeout) => match opened {
                Ok(opened) => opened,
                Err(e) => return tracing::debug!(%from, "no TLS: {e}"),
            },
            () = peer.stranger.has_to_go() => return,
            _ = stopping.wait_for(|stop| *stop) => return,
        },
    };
    // Boxed, so that each costs what it needs and not what the larger of the two would.
    match opened {
        Opened::Plain(stream) => Box::pin(requests(proxy, stream, from, peer)).await,
        Opened::Encrypted(stream) => Box::pin(requests(proxy, *stream, from, peer)).await,
    }
}

async fn requests<S: Store, T>(proxy: Arc<Proxy<S>>, stream: T, from: SocketAddr, peer: Arc<Peer>)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let options = &proxy.options;
    let io = TokioIo::new(Patient::new(stream, peer.clone(), proxy.metrics.clone(), options.body_timeout));
    let service = {
        let (proxy, peer) = (proxy.clone(), peer.clone());
        service_fn(move |request| {
            let (proxy, peer) = (proxy.clone(), peer.clone());
            Box::pin(async move {
                peer.patience.head_has_come();
                let answer = route::respond(&proxy, &peer, request).await;
                peer.patience.is_answered(answer.extensions().get::<Endless>().is_some());
                peer.patience.head_may_come();
                Ok::<_, std::convert::Infallible>(answer)
            })
        })
    };
    let mut stopping = proxy.stopping.clone();
    // For hyper the head's time includes the idle time before it; `Patient` holds the head itself to its limit.
    let mut served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(options.idle_timeout)
        .max_buf_size(BUFFER)
        .serve_connection(io, service);
    let mut stopped = false;
    let outcome = {
        let mut has_to_go = pin!(peer.stranger.has_to_go());
        loop {
            tokio::select! {
                outcome = std::future::poll_fn(|cx| served.poll_without_shutdown(cx)) => break outcome,
                _ = stopping.wait_for(|stop| *stop), if !stopped => {
                    stopped = true;
                    std::pin::Pin::new(&mut served).graceful_shutdown();
                }
                () = &mut has_to_go => return tracing::debug!(%from, "made room for others"),
            }
        }
    };
    match outcome {
        Ok(()) => linger(served.into_parts().io.into_inner().into_inner(), &mut stopping).await,
        Err(e) => tracing::debug!(%from, "connection ended: {e}"),
    }
}

/// Closes our side and reads off what the peer still sends, for a moment: closing with unread bytes would
/// reset the connection and could take away an early refusal (401, 413) before the peer has read it.
async fn linger(mut stream: impl AsyncRead + AsyncWrite + Unpin, stopping: &mut watch::Receiver<bool>) {
    const AT_MOST: Duration = Duration::from_secs(5);
    let drain = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let mut sink = vec![0; 64 * 1024];
        while matches!(stream.read(&mut sink).await, Ok(n) if n > 0) {}
    };
    tokio::select! {
        _ = tokio::time::timeout(AT_MOST, drain) => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::super::metrics::Metrics;
    use super::super::strangers::Strangers;
    use super::*;

    /// What becomes of an answer of `bytes` that is read slowly and never stalls, and how much of it is read.
    async fn read_slowly(is_endless: bool, bytes: usize) -> (std::io::Result<()>, usize) {
        let address = Address::of([127, 0, 0, 1].into());
        let peer = Arc::new(Peer {
            ip: [127, 0, 0, 1].into(),
            address,
            door: Door::Main,
            patience: Patience::new(Duration::from_secs(10)),
            stranger: Strangers::new(1, 1).enter(address),
            place: Mutex::default(),
        });
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut stream = Patient::new(ours, peer.clone(), Metrics::new(), Duration::from_secs(2));
        let reader = tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(20));
            let mut read = 0;
            // Ends when the other side is dropped.
            while theirs.read_u8().await.is_ok() {
                read += 1;
                every.tick().await;
            }
            read
        });
        peer.patience.head_has_come();
        peer.patience.is_answered(is_endless);
        let written = stream.write_all(&vec![7; bytes]).await;
        drop(stream);
        (written, reader.await.unwrap())
    }

    /// A byte now and then must not hold memory for hours.
    #[tokio::test]
    async fn slow_reader_is_cut_off_though_it_never_stalls() {
        let (written, read) = read_slowly(false, 2000).await;
        assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
        assert!(read > 2, "it was no stall");
    }

    #[tokio::test]
    async fn endless_answer_may_be_read_slowly() {
        let (written, read) = read_slowly(true, 150).await;
        assert!(written.is_ok() && read >= 149, "{written:?} {read}");
    }
}
